package planes

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// worse is a driver whose stores are seen to give less, while it is set.
type worse struct {
	rocketmq.Driver
	set atomic.Bool
}

func (w *worse) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	st, err := w.Driver.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return seen{st.(*rocketmq.Store), w}, nil
}

type seen struct {
	*rocketmq.Store
	by *worse
}

func (s seen) Probe(ctx context.Context) (store.Capabilities, error) {
	caps, err := s.Store.Probe(ctx)
	if s.by.set.Load() {
		caps.Durability = store.DurabilityProcess
	}
	return caps, err
}

// TestNeedsNoLongerMet: a topic whose store gives less than it was admitted for
// goes on, and its status says so, until the store gives it again.
func TestNeedsNoLongerMet(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	mq, ns := servers.SharedRocketMQ(t), servers.Namespace(t)
	driver := &worse{}
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = driver
	s, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Drivers: drivers, Options: binding.AdminOptions, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	runFor(t, s.Run)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	admin := adminv1.NewAdminServiceClient(conn)
	main, orders := eventStore(ns, "main", ""), topic(ns, "orders")
	main.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{mq}}}}}
	orders.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_DISK}
	if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{main, orders}}); err != nil {
		t.Fatal(err)
	}
	await := func(what string, provisioned adminv1.Condition_State, says string) {
		t.Helper()
		for n := 0; ctx.Err() == nil; n++ {
			got, err := admin.Get(ctx, &adminv1.GetRequest{Name: "topic/" + ns + "/orders"})
			if err != nil {
				t.Fatal(err)
			}
			found := map[string]*adminv1.Condition{}
			for _, c := range got.Conditions {
				found[c.Type] = c
			}
			if p := found["Provisioned"]; found["Ready"].GetState() == adminv1.Condition_STATE_TRUE && p.GetState() == provisioned && strings.Contains(p.GetMessage(), says) {
				return
			}
			if n%50 == 0 { // a change makes it look again
				if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore(ns, "poke", time.Now().Format("150405.000000"))}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Fatal(what)
	}
	await("it is not ready", adminv1.Condition_STATE_UNSPECIFIED, "")
	driver.set.Store(true)
	await("nobody says that the store gives less", adminv1.Condition_STATE_FALSE, "needs durability disk, EventStore main was observed to give process")
	driver.set.Store(false)
	await("nobody says that the store is as it was", adminv1.Condition_STATE_TRUE, "")
}
