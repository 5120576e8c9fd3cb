package planes

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/store/binding"
)

// TestJoinToken: a proxy joins over TLS with a token alone, also where its
// certificate has expired; a token is good for its node id, namespaces and time
// only; one that is revoked ends what it has opened.
func TestJoinToken(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a := newAuthority(t)
	etcd := startEtcd(ctx, t).Client()
	s, err := server.New(server.Config{Etcd: etcd, AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		DiscoveryTLS: a.issue("control"), DrainTime: time.Millisecond, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	rctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(rctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	admin := adminv1.NewAdminServiceClient(conn)
	if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", ""), eventStore("pay", "main", "")}}); err != nil {
		t.Fatal(err)
	}
	create := func(node string, namespaces ...string) *adminv1.CreateJoinTokenResponse {
		t.Helper()
		resp, err := admin.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{NodeId: node, Namespaces: namespaces})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	demo, all, gone := create("edge", "demo"), create("edge"), create("edge")
	if _, err := admin.RevokeJoinTokens(ctx, &adminv1.RevokeJoinTokensRequest{Ids: []string{gone.Id}}); err != nil {
		t.Fatal(err)
	}
	soon, err := admin.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{NodeId: "soon", ExpiresAt: timestamppb.New(time.Now().Add(3 * time.Second))})
	if err != nil {
		t.Fatal(err)
	}
	// What is kept is a hash.
	kept, err := etcd.Get(ctx, "/weft/v1/join-tokens/"+demo.Id)
	if err != nil || len(kept.Kvs) != 1 || strings.Contains(string(kept.Kvs[0].Value), strings.Split(demo.Token, "_")[2]) {
		t.Fatalf("%v, %v", kept, err)
	}
	if list, err := admin.ListJoinTokens(ctx, &adminv1.ListJoinTokensRequest{}); err != nil || len(list.Tokens) != 3 {
		t.Fatalf("%v, %v", list, err)
	}

	withToken := func(token string, files tlsconf.Files, node string) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
		ctx := ctx
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		return ask(ctx, t, s.Addrs().Discovery, files, node, "*")
	}
	none := tlsconf.Files{CA: a.file}
	const both = "eventstore/demo/main eventstore/pay/main"
	for name, tc := range map[string]struct {
		token string
		files tlsconf.Files
		node  string
		sees  string
		code  codes.Code
	}{
		"its namespaces":      {demo.Token, none, "edge", "eventstore/demo/main", codes.OK},
		"every namespace":     {all.Token, none, "edge", both, codes.OK},
		"another node's id":   {demo.Token, none, "other", "", codes.PermissionDenied},
		"revoked":             {gone.Token, none, "edge", "", codes.Unauthenticated},
		"wrong secret":        {demo.Token[:len(demo.Token)-1] + "!", none, "edge", "", codes.Unauthenticated},
		"no token of ours":    {"abc", none, "edge", "", codes.Unauthenticated},
		"nothing":             {"", none, "edge", "", codes.Unauthenticated},
		"token, certificate":  {demo.Token, a.issue("free"), "edge", "", codes.Unauthenticated},
		"a certificate alone": {"", a.issue("alone"), "third", both, codes.OK},
	} {
		rpc := withToken(tc.token, tc.files, tc.node)
		resp, err := rpc.Recv()
		var sees []string
		for _, r := range resp.GetResources() {
			sees = append(sees, r.Name)
		}
		if got := strings.Join(sees, " "); status.Code(err) != tc.code || got != tc.sees {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if err != nil && tc.token != "" && strings.Contains(err.Error(), tc.token) {
			t.Errorf("%s: the error tells the token", name)
		}
		_ = rpc.CloseSend()
		for err == nil {
			_, err = rpc.Recv()
		}
	}

	// One that ends, by time or by hand, ends its stream.
	open, short := withToken(demo.Token, none, "edge"), withToken(soon.Token, none, "soon")
	for _, rpc := range []discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient{open, short} {
		if _, err := rpc.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := short.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the expired token's stream: %v", err)
	}
	trust, err := tlsconf.Client(none)
	if err != nil {
		t.Fatal(err)
	}
	beside, err := grpc.NewClient(s.Addrs().Discovery, grpc.WithTransportCredentials(credentials.NewTLS(trust)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = beside.Close() })
	hold, err := discoveryv1.NewMoveServiceClient(beside).Hold(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+demo.Token))
	if err == nil {
		err = hold.Send(&discoveryv1.HoldRequest{NodeId: "edge"})
	}
	if err == nil {
		_, err = hold.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RevokeJoinTokens(ctx, &adminv1.RevokeJoinTokensRequest{Ids: []string{demo.Id}}); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the revoked token's stream: %v", err)
	}
	if _, err := hold.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the revoked token's stream of leases: %v", err)
	}

	// A whole proxy: its certificate has expired, its token has not.
	expired := a.sign("expired", &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "expired"}, NotAfter: time.Now().Add(-time.Minute),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, a.newKey())
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(all.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{ControlPlane: []string{s.Addrs().Discovery}, ControlPlaneTLS: expired, JoinTokenFile: file, NodeID: "edge", DataDir: t.TempDir(),
		HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Drivers: binding.Drivers(), Options: binding.Options, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	pctx, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- p.Run(pctx) }()
	if err := p.Ready(ctx); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
