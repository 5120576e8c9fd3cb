package planes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/registry/nacos"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

// TestFoundInNacos: a proxy that advertises itself is found in Nacos, healthy;
// it stays so without the control plane; one that stops is unhealthy.
func TestFoundInNacos(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	service := servers.Namespace(t)
	find := func() *nacos.Registry {
		r, err := nacos.New(nacos.Config{URL: "http://" + servers.SharedNacos(t) + "/nacos", Poll: 200 * time.Millisecond,
			Credentials: func() (string, string, error) { return servers.NacosUser, servers.NacosPassword, nil }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	ours, clients := find(), find()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	s, err := server.New(server.Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		DrainTime: time.Millisecond, Registry: ours, Service: service, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	stopControlPlane := runFor(t, s.Run)
	p, err := proxy.New(proxy.Config{ControlPlane: []string{s.Addrs().Discovery}, DataDir: filepath.Join(t.TempDir(), "data"), HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0",
		HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", AdvertiseHost: "127.0.0.1", Zone: "z1", DrainTime: time.Second, Log: quiet,
		Drivers: map[string]store.Driver{embedded.Kind: embedded.Driver{}},
		Options: func(*configv1.EventStore) (string, any, error) { return embedded.Kind, embedded.Options{}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	stopProxy := runFor(t, p.Run)
	await := func(what string, healthy bool) {
		t.Helper()
		var last []registry.Instance
		for set := range clients.Watch(ctx, service) {
			last = set
			if len(set) == 1 && set[0].ID == p.NodeID() && set[0].Healthy == healthy && set[0].Zone == "z1" && set[0].Ports["grpc"] != 0 {
				return
			}
		}
		t.Fatalf("%s: there is %+v", what, last)
	}
	await("registered", true)
	// A client that knows the mesh's name only: the proxy's answer, that it
	// does not know who asks, shows that it was found.
	conn, err := grpc.NewClient(nacos.Scheme+":///"+service, grpc.WithResolvers(clients.Resolver(nacos.Choice{})), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := p.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = eventsv1.NewEventServiceClient(conn).Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders",
		Event: &cloudeventsv1.CloudEvent{Id: "1", Source: "/test", SpecVersion: "1.0", Type: "t"}})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("through Nacos: %v", err)
	}
	stopControlPlane()
	await("without the control plane", true)
	stopProxy()
	await("stopped", false)
}

func runFor(t *testing.T, run func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}
