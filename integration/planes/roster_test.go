package planes

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestRoster: a node is in etcd before it is sent its first resource, and without etcd a
// new one is sent nothing, while one that is known goes on; one that was declared dead is
// sent nothing more, over the stream that it has and over any other, until it is revived.
func TestRoster(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	away := sync.OnceFunc(e.Close)
	t.Cleanup(away)
	cp := startReplica(ctx, t, e)
	apply(ctx, t, cp, eventStore("demo", "main", "1"))
	conn, err := grpc.NewClient(cp.Addrs().Discovery, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	// first is what a node is answered first.
	first := func(node string) (*discoveryv3.DeltaDiscoveryResponse, discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err == nil {
			err = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*"}})
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.Recv()
		return resp, s, err
	}
	listed := func() (ids []string) {
		t.Helper()
		resp, err := cp.admin.ListNodes(ctx, &adminv1.ListNodesRequest{Namespace: "demo"})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range resp.Nodes {
			ids = append(ids, n.NodeId)
			if n.DeadAt != nil {
				ids[len(ids)-1] += " dead by " + n.DeadBy
			}
		}
		return ids
	}
	if _, _, err := first("other"); err != nil || strings.Join(listed(), " ") != "other" {
		t.Errorf("the first response came, %v, with %v on the roster", err, listed())
	}

	n := startNode(t, t.TempDir(), nil, nil, cp.Addrs().Discovery)
	n.await(ctx, t, "the start", at("eventstore/demo/main", "1"))
	_, err = cp.admin.DeclareNodeDead(ctx, &adminv1.DeclareNodeDeadRequest{NodeId: "node-1", Reason: "test"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "it lives") {
		t.Errorf("a proxy that is connected was declared dead: %v", err)
	}
	n.stop()
	declare := func(node string) error {
		for {
			_, err := cp.admin.DeclareNodeDead(ctx, &adminv1.DeclareNodeDeadRequest{NodeId: node, Reason: "test"})
			if err == nil || !strings.Contains(err.Error(), "it lives") { // that its stream has ended is seen a moment later
				return err
			}
		}
	}
	if err := declare("node-1"); err != nil {
		t.Fatal(err)
	}
	_, _, err = first("node-1")
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "was declared dead by") {
		t.Errorf("a proxy that was declared dead joins: %v", err)
	}
	if got := strings.Join(listed(), " "); !strings.HasPrefix(got, "node-1 dead by ") || !strings.HasSuffix(got, " other") {
		t.Errorf("the roster is %s", got)
	}
	if _, err := cp.admin.ReviveNode(ctx, &adminv1.ReviveNodeRequest{NodeId: "node-1"}); err != nil {
		t.Fatal(err)
	}
	_, open, err := first("node-1")
	if err != nil {
		t.Errorf("a proxy that was revived: %v", err)
	}
	// One that counts is not forgotten; one that does not may join anew.
	if _, err := cp.admin.ForgetNodes(ctx, &adminv1.ForgetNodesRequest{NodeIds: []string{"other"}}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "node other is connected") {
		t.Errorf("a proxy that counts is forgotten: %v", err)
	}
	if _, err := e.Client().Put(ctx, "/weft/v1/s/node/gone", `{"id":"gone","all":true,"dead":{"at":"2026-01-02T03:04:05Z","by":"ops"}}`); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(listed(), " "); got != "gone dead by ops node-1 other" {
		t.Errorf("the roster is %s", got)
	}
	if _, err := cp.admin.ForgetNodes(ctx, &adminv1.ForgetNodesRequest{NodeIds: []string{"gone", "nobody"}}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(listed(), " "); got != "node-1 other" {
		t.Errorf("the roster is %s", got)
	}
	if _, _, err := first("gone"); err != nil || strings.Join(listed(), " ") != "gone node-1 other" {
		t.Errorf("a proxy that was forgotten: %v, with %v on the roster", err, listed())
	}
	// As another replica does it, to which the proxy is not connected.
	if _, err := e.Client().Put(ctx, "/weft/v1/s/node/node-1", `{"id":"node-1","all":true,"dead":{"at":"2026-01-02T03:04:05Z","by":"ops"}}`); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = open.Recv()
	}
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "declared dead by ops") {
		t.Errorf("the stream of a proxy that was declared dead ends with %v", err)
	}

	away()
	if _, _, err := first("other"); err != nil {
		t.Errorf("without etcd a known proxy: %v", err)
	}
	if resp, _, err := first("new"); status.Code(err) != codes.Unavailable {
		t.Errorf("without etcd a new proxy is answered %v, %v", resp, err)
	}
}
