package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/weft-mesh/weft/integration/servers"
)

// daprPeer compares the proxy without a store with Dapr's sidecar, whose component in
// memory keeps nothing either while nobody subscribes.
func daprPeer(ctx context.Context, r *run) error {
	r.printf(" building Dapr's sidecar; its first time takes many minutes\n")
	program := r.buildPeer(ctx, "dapr", "-tags", "stablecomponents")
	if program == "" {
		return nil
	}
	d, err := r.startDapr(ctx, program)
	if err != nil {
		return err
	}
	defer d.end(r)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "peer-dapr", filepath.Join(r.dir, "peer-dapr"), self, withoutStoreCommand)
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML); err != nil {
		return err
	}
	pids := map[string]int{"server": m.proxy.PID()}
	for _, c := range []struct {
		name       string
		weft, dapr *contender
	}{
		{"HTTP, one event a request, 64 clients", m.singleHTTP("weft without a store", "mesh", 64, pids), posts("daprd, pubsub in memory", "http://"+d.http+"/v1.0/publish/mem/mesh", r.size, 64, map[string]int{"server": d.process.PID()}, http.Header{"Content-Type": {"application/octet-stream"}})},
		{"gRPC, one event a call, 64 clients", m.unary("weft without a store", "mesh", 64, pids), d.unary("daprd, pubsub in memory", 64, r.size)},
	} {
		r.printf(" %s\n", c.name)
		if err := r.compare(ctx, c.weft, c.dapr); err != nil {
			return err
		}
		r.note("%s: %s times the rate of daprd, %s times its CPU in the server, %s µs an event against %s",
			c.name, spread(ratio(c.weft, c.dapr), "%.2f"), spread(times(c.weft, c.dapr, "server"), "%.2f"), spread(c.weft.cpu["server"], "%.2f"), spread(c.dapr.cpu["server"], "%.2f"))
	}
	return nil
}

// daprd is a running sidecar of Dapr.
type daprd struct {
	http    string
	conn    *grpc.ClientConn
	process *servers.Process
}

const daprComponent = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: mem
spec:
  type: pubsub.in-memory
  version: v1
`

func (r *run) startDapr(ctx context.Context, program string) (*daprd, error) {
	resources := filepath.Join(r.dir, "dapr-resources")
	if err := os.Mkdir(resources, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(resources, "mem.yaml"), []byte(daprComponent), 0o600); err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		port, err := servers.FreePort()
		if err != nil {
			return nil, err
		}
		ports[i] = strconv.Itoa(port)
	}
	d := &daprd{http: net.JoinHostPort("127.0.0.1", ports[0])}
	d.process = &servers.Process{Name: "daprd", Log: filepath.Join(r.dir, "daprd.log"),
		Args: []string{program, "--mode", "standalone", "--app-id", "bench", "--dapr-listen-addresses", "127.0.0.1", "--dapr-http-port", ports[0], "--dapr-grpc-port", ports[1],
			"--dapr-internal-grpc-port", ports[2], "--dapr-internal-grpc-listen-address", "127.0.0.1", "--enable-metrics=false", "--resources-path", resources, "--log-level", "warn"},
		Ready: answers("http://" + d.http + "/v1.0/healthz/outbound")}
	if err := d.process.Start(ctx); err != nil {
		return nil, err
	}
	var err error
	if d.conn, err = dial(net.JoinHostPort("127.0.0.1", ports[1])); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *daprd) end(r *run) {
	if err := d.conn.Close(); err != nil {
		r.printf("  stopping: %v\n", err)
	}
	if err := d.process.Stop(); err != nil {
		r.printf("  stopping: %v\n", err)
	}
}

// unary publishes one event a call. The request is PublishEventRequest of Dapr's
// runtime/v1, in its fields of then: pubsub_name 1, topic 2, data 3, data_content_type 4.
func (d *daprd) unary(name string, publishers, size int) *contender {
	c := &contender{name: name, pids: map[string]int{"server": d.process.PID()}}
	var b []byte
	for i, v := range []string{"mem", "mesh", string(bytes.Repeat([]byte{'x'}, size)), "application/octet-stream"} {
		b = protowire.AppendString(protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType), v)
	}
	// Of an empty message these are unknown fields, which are encoded as they are.
	req := &emptypb.Empty{}
	req.ProtoReflect().SetUnknown(b)
	for range publishers {
		c.workers = append(c.workers, func(ctx context.Context) (int, error) {
			return 1, d.conn.Invoke(ctx, "/dapr.proto.runtime.v1.Dapr/PublishEvent", req, &emptypb.Empty{})
		})
	}
	return c
}
