package discovery

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// sotwClient is a raw client of State-of-the-World.
type sotwClient struct {
	*world
	rpc   discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	asked []string
}

func (w *world) sotw(addr string) *sotwClient {
	w.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(w.ctx)
	w.must(err)
	return &sotwClient{world: w, rpc: rpc}
}

func (c *sotwClient) send(req *discoveryv3.DiscoveryRequest) {
	c.Helper()
	if req.TypeUrl == "" {
		req.TypeUrl = resource.TypeURL
	}
	req.Node = &corev3.Node{Id: "sotw"}
	c.must(c.rpc.Send(req))
}

func (c *sotwClient) next(names ...string) (*discoveryv3.DiscoveryResponse, string) {
	c.Helper()
	resp, err := c.rpc.Recv()
	c.must(err)
	var has []string
	for _, a := range resp.Resources {
		var r configv1.Resource
		c.must(a.UnmarshalTo(&r))
		has = append(has, strings.TrimPrefix(r.Name, "eventstore/")+"="+r.Metadata.Labels["v"])
	}
	slices.Sort(has)
	return resp, strings.Join(has, " ")
}

// acked receives a response and acknowledges it.
func (c *sotwClient) acked(want string, names ...string) *discoveryv3.DiscoveryResponse {
	c.Helper()
	resp, has := c.next()
	if has != want {
		c.Errorf("%q came, want %q", has, want)
	}
	c.send(&discoveryv3.DiscoveryRequest{VersionInfo: resp.VersionInfo, ResponseNonce: resp.Nonce, ResourceNames: names})
	return resp
}

// TestStateOfTheWorld: always all of what is subscribed to, and only when something
// of it changes; names and wildcards; a refusal, an answer to an older response, a
// subscription that changes with either.
func TestStateOfTheWorld(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b", "other/x")
	all, demo, named := w.sotw(w.addr), w.sotw(w.addr), w.sotw(w.addr)
	all.send(&discoveryv3.DiscoveryRequest{})
	demo.send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"*/demo/*"}})
	named.send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"eventstore/demo/a", "eventstore/demo/later"}})
	first := all.acked("demo/a=1 demo/b=1 other/x=1")
	demo.acked("demo/a=1 demo/b=1", "*/demo/*")
	named.acked("demo/a=1", "eventstore/demo/a", "eventstore/demo/later")
	if snap, _ := w.store.Snapshot(); first.VersionInfo != fmt.Sprintf("%s/%d", snap.Lineage, snap.Revision) || first.TypeUrl != resource.TypeURL {
		t.Errorf("%q, %q", first.VersionInfo, first.TypeUrl)
	}
	// What changes out of scope is not heard of.
	w.put("2", "other/x")
	all.acked("demo/a=1 demo/b=1 other/x=2")
	w.put("3", "demo/b")
	all.acked("demo/a=1 demo/b=3 other/x=2")
	resp, _ := demo.next()
	w.put("1", "demo/later")
	all.acked("demo/a=1 demo/b=3 demo/later=1 other/x=2")
	// A refusal: the same is not sent again until something changes.
	demo.send(&discoveryv3.DiscoveryRequest{ResponseNonce: resp.Nonce, ResourceNames: []string{"*/demo/*"}, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no"}})
	resp, has := demo.next()
	if has != "demo/a=1 demo/b=3 demo/later=1" {
		t.Errorf("after a refusal %q came", has)
	}
	// A subscription that comes with a stale nonce counts; the answer does not.
	demo.send(&discoveryv3.DiscoveryRequest{ResponseNonce: "stale", ResourceNames: []string{"*/demo/*", "*/other/*"}})
	demo.send(&discoveryv3.DiscoveryRequest{VersionInfo: resp.VersionInfo, ResponseNonce: resp.Nonce, ResourceNames: []string{"*/demo/*", "*/other/*"}})
	demo.acked("demo/a=1 demo/b=3 demo/later=1 other/x=2", "*/demo/*", "*/other/*")
	named.acked("demo/a=1 demo/later=1", "eventstore/demo/a")
	// What is gone is not there any more; fewer names bring nothing by themselves.
	w.remove("demo/later")
	w.put("4", "demo/a")
	for want := "demo/a=1 demo/b=3 other/x=2"; ; {
		resp, has := all.next()
		all.send(&discoveryv3.DiscoveryRequest{VersionInfo: resp.VersionInfo, ResponseNonce: resp.Nonce})
		if has == "demo/a=4 demo/b=3 other/x=2" {
			break
		}
		if has != want {
			t.Errorf("%q came", has)
		}
	}
	named.acked("demo/a=4", "eventstore/demo/a", "eventstore/demo/b")
	named.acked("demo/a=4 demo/b=3", "eventstore/demo/a", "eventstore/demo/b")
	// Another type has nothing.
	named.send(&discoveryv3.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"})
	resp, has = named.next()
	if has != "" || resp.TypeUrl != "type.googleapis.com/envoy.config.cluster.v3.Cluster" {
		t.Errorf("of another type %q came", has)
	}
	named.send(&discoveryv3.DiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce, VersionInfo: resp.VersionInfo}) // is not answered
	named.must(named.rpc.CloseSend())
	if _, err := named.rpc.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the half-close: %v", err)
	}
}
