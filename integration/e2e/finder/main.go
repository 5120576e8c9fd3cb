// Command finder is a client of the mesh that knows nothing but Nacos and the
// mesh's name, as any application may be: it finds a proxy with nacos-sdk-go and
// publishes to it over gRPC.
//
//	finder -nacos HOST:PORT -user USER -service MESH -namespace NS -topic TOPIC
//
// It reads one id a line from its input and, for each, publishes an event with
// the data "found ID" to a healthy proxy, until a proxy has acknowledged it; then
// it prints the id and the proxy's address. The password of Nacos and the API key
// come from the environment: FINDER_NACOS_PASSWORD, FINDER_API_KEY.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nacos-group/nacos-sdk-go/v2/clients/naming_client/naming_cache"
	"github.com/nacos-group/nacos-sdk-go/v2/clients/naming_client/naming_grpc"
	"github.com/nacos-group/nacos-sdk-go/v2/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/common/http_agent"
	"github.com/nacos-group/nacos-sdk-go/v2/common/logger"
	"github.com/nacos-group/nacos-sdk-go/v2/common/nacos_server"
	"github.com/nacos-group/nacos-sdk-go/v2/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

const group = "DEFAULT_GROUP"

type finder struct {
	server, user, dir, service, namespace, topic string

	proxy *naming_grpc.NamingGrpcProxy
}

func main() {
	var f finder
	flag.StringVar(&f.server, "nacos", "", "address of Nacos")
	flag.StringVar(&f.user, "user", "", "user of Nacos")
	flag.StringVar(&f.dir, "dir", "", "folder for the SDK's cache and log")
	flag.StringVar(&f.service, "service", "", "name of the mesh")
	flag.StringVar(&f.namespace, "namespace", "", "namespace to publish in")
	flag.StringVar(&f.topic, "topic", "", "topic to publish to")
	flag.Parse()
	if err := f.run(); err != nil {
		fmt.Fprintln(os.Stderr, "finder:", err)
		os.Exit(1)
	}
}

func (f *finder) run() error {
	ctx := context.Background()
	if err := f.connect(ctx); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := f.publish(ctx, lines.Text()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// connect joins Nacos over its gRPC port; nothing listens here for pushes.
func (f *finder) connect(ctx context.Context) error {
	host, p, err := net.SplitHostPort(f.server)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return err
	}
	cfg := constant.NewClientConfig(constant.WithUsername(f.user), constant.WithPassword(os.Getenv("FINDER_NACOS_PASSWORD")),
		constant.WithCacheDir(f.dir), constant.WithLogDir(f.dir), constant.WithTimeoutMs(5000), constant.WithNotLoadCacheAtStart(true),
		constant.WithUpdateCacheWhenEmpty(true), constant.WithNamespaceId("public"))
	if err := logger.InitLogger(logger.BuildLoggerConfig(*cfg)); err != nil {
		return err
	}
	agent := &http_agent.HttpAgent{TlsConfig: cfg.TLSCfg}
	server, err := nacos_server.NewNacosServer(ctx, []constant.ServerConfig{*constant.NewServerConfig(host, port, constant.WithContextPath("/nacos"))},
		*cfg, agent, cfg.TimeoutMs, cfg.Endpoint, map[string][]string{"Client-Version": {constant.CLIENT_VERSION}, "User-Agent": {constant.CLIENT_VERSION}, "Request-Module": {"Naming"}})
	if err != nil {
		return err
	}
	f.proxy, err = naming_grpc.NewNamingGrpcProxy(ctx, *cfg, server, naming_cache.NewServiceInfoHolder("public", f.dir, true, true))
	return err
}

// publish tries healthy proxies until one has taken the event.
func (f *finder) publish(ctx context.Context, id string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range 600 { // two minutes or so
		addr, err := f.find()
		if err == nil {
			err = f.send(ctx, addr, id)
		}
		if err == nil {
			_, err := fmt.Fprintln(os.Stdout, id, addr)
			return err
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", id, err)
		<-tick.C
	}
	return errors.New("no proxy has taken " + id)
}

func (f *finder) find() (string, error) {
	s, err := f.proxy.QueryInstancesOfService(f.service, group, "", 0, false)
	if err != nil {
		return "", err
	}
	var healthy []model.Instance
	for _, i := range s.Hosts {
		if i.Healthy && i.Enable && i.Weight > 0 {
			healthy = append(healthy, i)
		}
	}
	if len(healthy) == 0 {
		return "", fmt.Errorf("of %d instances none is healthy", len(s.Hosts))
	}
	// The instance's port is the proxy's gRPC port.
	return net.JoinHostPort(healthy[0].Ip, strconv.FormatUint(healthy[0].Port, 10)), nil
}

func (f *finder) send(ctx context.Context, addr, id string) error {
	if !strings.HasPrefix(addr, "127.") {
		return errors.New("the key is not sent to " + addr)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Getenv("FINDER_API_KEY")), 10*time.Second)
	defer cancel()
	_, err = eventsv1.NewEventServiceClient(conn).Publish(ctx, &eventsv1.PublishRequest{Namespace: f.namespace, Topic: f.topic, Event: &cloudeventsv1.CloudEvent{
		Id: id, Source: "/finder", SpecVersion: "1.0", Type: "found", Data: &cloudeventsv1.CloudEvent_TextData{TextData: "found " + id}}})
	return err
}
