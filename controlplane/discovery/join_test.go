package discovery

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/pkg/resource"
)

// leaves is Leave of controlplane/moves up to what it asks first.
type leaves struct {
	discoveryv1.UnimplementedMoveServiceServer
	s *Server
}

func (l leaves) Leave(ctx context.Context, req *discoveryv1.LeaveRequest) (*discoveryv1.LeaveResponse, error) {
	return &discoveryv1.LeaveResponse{}, l.s.Authorize(ctx, req.NodeId)
}

// TestCallWithToken: a proxy that has joined with a join token is known by it in calls
// beside its stream, and by no other.
func TestCallWithToken(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	tokens := jointoken.New(jointoken.Config{Etcd: w.etcd, Prefix: "/t/", Lineage: "/lineage", Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(w.ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = tokens.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	var shown []context.Context
	for range 2 {
		text, _, err := tokens.Create(w.ctx, "node-1", nil, time.Time{})
		w.must(err)
		for _, changed, err := tokens.Check(text); err != nil; _, changed, err = tokens.Check(text) {
			select {
			case <-changed:
			case <-w.ctx.Done():
				t.Fatal(err)
			}
		}
		shown = append(shown, metadata.AppendToOutgoingContext(w.ctx, "authorization", "Bearer "+text))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	srv := grpc.NewServer(append(ServerOptions(), Join(tokens)...)...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, w.server)
	discoveryv1.RegisterMoveServiceServer(srv, leaves{s: w.server})
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	t.Cleanup(func() { _ = conn.Close() })
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(shown[0])
	w.must(err)
	p := &proxy{world: w, rpc: rpc, has: map[string]string{}}
	p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.node(), TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*"}})
	p.wants("+demo/a")
	for name, tc := range map[string]struct {
		ctx  context.Context
		want codes.Code
	}{
		"its own":       {shown[0], codes.OK},
		"another token": {shown[1], codes.PermissionDenied},
		"no token":      {w.ctx, codes.PermissionDenied},
		"nobody's":      {metadata.AppendToOutgoingContext(w.ctx, "authorization", "Bearer weftjoin_a_b"), codes.Unauthenticated},
	} {
		_, err := discoveryv1.NewMoveServiceClient(conn).Leave(tc.ctx, &discoveryv1.LeaveRequest{NodeId: "node-1", Entry: 1})
		if status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}
