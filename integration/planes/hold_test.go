package planes

import (
	"context"
	"errors"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// TestHoldScope: a proxy that had configuration of all namespaces once, and has a token
// for one of them now, is told nothing of the moves of another, and what it says of them
// does not count.
func TestHoldScope(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	r := startReplica(ctx, t, e)
	await := func(ctx context.Context, what string, is func() bool) {
		t.Helper()
		until(ctx, t, what, func() error {
			if is() {
				return nil
			}
			return errors.New("not yet")
		})
	}
	migration := func(ns string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: "orders"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next"}}}
	}
	var uids []string
	for _, ns := range []string{"demo", "pay"} {
		apply(ctx, t, r, eventStore(ns, "main", "1"), eventStore(ns, "next", "1"), topic(ns, "orders"))
		apply(ctx, t, r, migration(ns))
	}
	for _, ns := range []string{"demo", "pay"} {
		await(ctx, "the moves", func() bool {
			got, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "topicbinding/" + ns + "/orders"})
			return err == nil && got.Resource.GetTopicBinding().GetMove() != nil
		})
		got, err := r.admin.Get(ctx, &adminv1.GetRequest{Name: "topic/" + ns + "/orders"})
		if err != nil {
			t.Fatal(err)
		}
		uids = append(uids, got.Resource.Metadata.Uid)
	}
	conn, err := grpc.NewClient(r.Addrs().Discovery, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	for _, tc := range []struct {
		namespaces, moving []string
	}{
		{nil, []string{"topicbinding/demo/orders", "topicbinding/pay/orders"}},
		{[]string{"demo"}, []string{"topicbinding/demo/orders"}},
	} {
		token, err := r.admin.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{NodeId: "edge", Namespaces: tc.namespaces})
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token.Token))
		await(ctx, "it joins", func() bool { // the one before may not be seen to have gone
			rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
			if err == nil {
				_ = rpc.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "edge"}, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*"}})
				_, err = rpc.Recv()
			}
			return err == nil
		})
		hold, err := discoveryv1.NewMoveServiceClient(conn).Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		req := &discoveryv1.HoldRequest{NodeId: "edge", Lists: true}
		for _, ns := range []string{"demo", "pay"} {
			req.Moves = append(req.Moves, &discoveryv1.Held{Binding: "topicbinding/" + ns + "/orders", Version: "of " + ns, Idle: len(tc.namespaces) > 0})
		}
		if err := hold.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := hold.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if slices.Sort(resp.Moving); !slices.Equal(resp.Moving, tc.moving) {
			t.Errorf("with a token for %q it is told that these move: %q", tc.namespaces, resp.Moving)
		}
		idle := func(topic int) bool {
			got, err := e.Client().Get(ctx, "/weft/v1/s/move/"+uids[topic]+"/edge")
			if err != nil {
				t.Fatal(err)
			}
			held := &discoveryv1.Held{}
			if len(got.Kvs) == 1 {
				if err := proto.Unmarshal(got.Kvs[0].Value, held); err != nil {
					t.Fatal(err)
				}
			}
			return held.Version != "" && held.Idle == (len(tc.namespaces) > 0)
		}
		await(ctx, "its word on its own topic", func() bool { return idle(0) })
		if len(tc.namespaces) == 0 {
			await(ctx, "its word on both", func() bool { return idle(1) })
		} else if idle(1) { // both are of one request, and of one transaction
			t.Error("with a token for demo it has said of a topic of pay that it writes nothing to it")
		}
		leave()
	}
}
