package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// authority makes certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	c := a.issue("authority", "")
	a.key = c.PrivateKey.(*ecdsa.PrivateKey)
	cert, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	a.cert = cert
	return a
}

func (a *authority) issue(cn, uri string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	parent, signer := tmpl, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	} else {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// TestCertificates: who has one of the authority is who it names; a proxy's lets
// nobody administer, another control plane's reads and passes commands on.
func TestCertificates(t *testing.T) {
	w := newWorld(t, 1)
	ours, others := newAuthority(t), newAuthority(t)
	server := credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ours.issue("cp", "")}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ours.pool()})
	none, err := NewAccess(AccessConfig{})
	w.must(err)
	file := w.access(roles() + `  - {subjects: ["spiffe://mesh/ops/ann"], role: editor, namespaces: [a]}
  - {subjects: ["cn:bob"], role: viewer, namespaces: ["*"]}
`)
	noFile, withFile := w.serve(none, server), w.serve(file, server)
	ann, bob := ours.issue("ann", "spiffe://mesh/ops/ann"), ours.issue("bob", "")
	proxy, replica := ours.issue("p", "spiffe://mesh/weft/proxy/p1"), ours.issue("cp2", "spiffe://mesh/weft/controlplane")
	foreign, asReplica := others.issue("bob", ""), others.issue("x", "spiffe://mesh/weft/controlplane")
	const denied, unknown, ok = codes.PermissionDenied, codes.Unauthenticated, codes.OK
	for name, tc := range map[string]struct {
		cert  *tls.Certificate
		token string
		// Codes without and with a file: reading all, applying a topic in a, an
		// EventStore in b, commanding proxies of the replica, and of all.
		want [2][5]codes.Code
	}{
		"no certificate":        {nil, "", [2][5]codes.Code{{unknown, unknown, unknown, unknown, unknown}, {unknown, unknown, unknown, unknown, unknown}}},
		"by SPIFFE ID":          {&ann, "", [2][5]codes.Code{{ok, ok, ok, ok, ok}, {denied, ok, denied, denied, denied}}},
		"by common name":        {&bob, "", [2][5]codes.Code{{ok, ok, ok, ok, ok}, {ok, denied, denied, denied, denied}}},
		"a proxy":               {&proxy, "", [2][5]codes.Code{{denied, denied, denied, denied, denied}, {denied, denied, denied, denied, denied}}},
		"another control plane": {&replica, "", [2][5]codes.Code{{ok, denied, denied, ok, denied}, {ok, denied, denied, ok, denied}}},
		"a token alone":         {nil, "editor-a", [2][5]codes.Code{{unknown, unknown, unknown, unknown, unknown}, {denied, ok, denied, denied, denied}}},
		"a token counts":        {&bob, "editor-a", [2][5]codes.Code{{unknown, unknown, unknown, unknown, unknown}, {denied, ok, denied, denied, denied}}},
		"a bad token counts":    {&bob, "no", [2][5]codes.Code{{unknown, unknown, unknown, unknown, unknown}, {unknown, unknown, unknown, unknown, unknown}}},
	} {
		for i, addr := range []string{noFile, withFile} {
			cfg := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ours.pool()}
			if tc.cert != nil {
				cfg.Certificates = []tls.Certificate{*tc.cert}
			}
			c := w.dial(addr, credentials.NewTLS(cfg))
			ctx := as(w.ctx, tc.token)
			// Rights in b are asked for by listing it.
			_, read := c.List(ctx, &adminv1.ListRequest{Namespace: "b"})
			_, topics := c.Apply(ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{topic("a", "t")}})
			_, stores := c.Apply(ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{eventStore("b", "s", "")}})
			_, local := c.CommandProxies(ctx, &adminv1.CommandProxiesRequest{Local: true})
			_, all := c.CommandProxies(ctx, &adminv1.CommandProxiesRequest{})
			for j, err := range []error{read, topics, stores, local, all} {
				got := status.Code(err)
				if want := tc.want[i][j]; want == ok && (got == denied || got == unknown) || want != ok && got != want {
					t.Errorf("%s, with a file %v, call %d: %v, want %v", name, i == 1, j, err, want)
				}
			}
		}
	}
	for name, cert := range map[string]tls.Certificate{"another authority's": foreign, "another authority's control plane": asReplica} {
		c := w.dial(withFile, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ours.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}))
		if _, err := c.List(w.ctx, &adminv1.ListRequest{Namespace: "b"}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Where certificates are asked for but not verified, none counts.
	lax := w.serve(none, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{ours.issue("cp", "")}, ClientAuth: tls.RequestClientCert}))
	c := w.dial(lax, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ours.pool(), Certificates: []tls.Certificate{foreign}}))
	if _, err := c.List(w.ctx, &adminv1.ListRequest{}); status.Code(err) != unknown {
		t.Errorf("not verified: %v", err)
	}
	for _, r := range w.history(&adminv1.ListHistoryRequest{PageSize: 1000}) {
		if r.Refused == "" || r.Actor == "" || r.Method == "" {
			t.Errorf("%v", r)
		}
	}
}
