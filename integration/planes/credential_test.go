package planes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// authority signs certificates into files below dir.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.file = a.sign("authority", a.cert, a.key).Cert
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) sign(name string, c *x509.Certificate, key *ecdsa.PrivateKey) tlsconf.Files {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	f := tlsconf.Files{Cert: filepath.Join(a.dir, name+".crt"), Key: filepath.Join(a.dir, name+".key"), CA: a.file}
	for file, block := range map[string]*pem.Block{f.Cert: {Type: "CERTIFICATE", Bytes: der}, f.Key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return f
}

// issue makes a certificate for name with SPIFFE IDs.
func (a *authority) issue(name string, ids ...string) tlsconf.Files {
	a.t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			a.t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return a.sign(name, c, a.newKey())
}

// TestCredential: over mutual TLS a proxy's certificate says which node it is and
// which namespaces it may see, whatever the proxy says; a node id that is
// connected with one certificate is not another's.
func TestCredential(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a := newAuthority(t)
	s, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
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
	if _, err := adminv1.NewAdminServiceClient(conn).Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", ""), eventStore("pay", "main", "")}}); err != nil {
		t.Fatal(err)
	}

	bound, boundElsewhere, free := a.issue("bound", "spiffe://example.org/weft/proxy/node-1/demo"), a.issue("other", "spiffe://example.org/weft/proxy/node-2"), a.issue("free")
	for name, tc := range map[string]struct {
		files tlsconf.Files
		node  string
		ask   string
		sees  string
		code  codes.Code
	}{
		"its namespaces":          {bound, "node-1", "*", "eventstore/demo/main", codes.OK},
		"another namespace":       {bound, "node-1", "eventstore/pay/main", "", codes.OK},
		"another node's id":       {bound, "node-2", "*", "", codes.PermissionDenied},
		"every namespace":         {boundElsewhere, "node-2", "*", "eventstore/demo/main eventstore/pay/main", codes.OK},
		"no SPIFFE ID":            {free, "node-3", "*", "eventstore/demo/main eventstore/pay/main", codes.OK},
		"two SPIFFE IDs":          {a.issue("two", "spiffe://example.org/weft/proxy/node-4", "spiffe://example.org/weft/proxy/node-5"), "node-4", "*", "", codes.PermissionDenied},
		"no namespace":            {a.issue("bad", "spiffe://example.org/weft/proxy/node-6/a_b"), "node-6", "*", "", codes.PermissionDenied},
		"no node":                 {a.issue("none", "spiffe://example.org/weft/proxy//demo"), "node-7", "*", "", codes.PermissionDenied},
		"a SPIFFE ID of no proxy": {a.issue("svc", "spiffe://example.org/billing"), "node-8", "*", "eventstore/demo/main eventstore/pay/main", codes.OK},
	} {
		rpc := ask(ctx, t, s.Addrs().Discovery, tc.files, tc.node, tc.ask)
		resp, err := rpc.Recv()
		var sees []string
		for _, r := range resp.GetResources() {
			sees = append(sees, r.Name)
		}
		if got := strings.Join(sees, " "); status.Code(err) != tc.code || got != tc.sees {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}

	// While one holds a node id, nobody takes it with another certificate.
	rpc := ask(ctx, t, s.Addrs().Discovery, free, "node-9", "*")
	if _, err := rpc.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(ctx, t, s.Addrs().Discovery, boundElsewhere, "node-9", "*").Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another node's certificate: %v", err)
	}
	if _, err := ask(ctx, t, s.Addrs().Discovery, a.issue("thief"), "node-9", "*").Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node id that is in use: %v", err)
	}
	if _, err := ask(ctx, t, s.Addrs().Discovery, a.issue("free"), "node-9", "*").Recv(); err != nil {
		t.Errorf("the same node with a renewed certificate: %v", err)
	}
}

// ask opens a discovery stream and asks for a name.
func ask(ctx context.Context, t *testing.T, addr string, f tlsconf.Files, node, name string) discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient {
	t.Helper()
	c, err := tlsconf.Client(f)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(c)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// One that is refused before it has asked is told why by Recv.
	if err := rpc.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{name}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return rpc
}
