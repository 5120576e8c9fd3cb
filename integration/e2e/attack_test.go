package e2e

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// maxGrowth is how much a control plane may grow while it is attacked, in bytes: it
// is built with the race detector, which needs much itself.
const maxGrowth = 512 << 20

// adminAs calls the admin API with a certificate, or none.
func (m *mesh) adminAs(a *authority, show tlsconf.Files) adminv1.AdminServiceClient {
	m.Helper()
	conn, err := grpc.NewClient(m.admin, grpc.WithTransportCredentials(credentials.NewTLS(a.tls(show))))
	m.must(err)
	m.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// tokens makes JSON Web Tokens of an issuer, and what is to be taken for one.
type tokens struct {
	m   *mesh
	key *rsa.PrivateKey
	// file has the public keys.
	file string
}

func (m *mesh) tokens() *tokens {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	m.must(err)
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"}}})
	m.must(err)
	t := &tokens{m, key, filepath.Join(m.dir, "keys.json")}
	m.must(os.WriteFile(t.file, set, 0o600))
	return t
}

// make makes a token with a header and claims beside the usual ones; sign signs it.
func (t *tokens) make(header, claims map[string]any, sign func(text string) []byte) string {
	part := func(usual, more map[string]any) string {
		for k, v := range more {
			usual[k] = v
		}
		b, err := json.Marshal(usual)
		t.m.must(err)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]any{"alg": "RS256", "kid": "k", "typ": "JWT"}, header) + "." +
		part(map[string]any{"iss": "https://sso", "aud": "weft", "sub": "ann", "exp": time.Now().Add(time.Hour).Unix()}, claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

func (t *tokens) rs256(key *rsa.PrivateKey) func(string) []byte {
	return func(text string) []byte {
		sum := sha256.Sum256([]byte(text))
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		t.m.must(err)
		return sig
	}
}

func hs256(key []byte) func(string) []byte {
	return func(text string) []byte {
		h := hmac.New(sha256.New, key)
		_, _ = h.Write([]byte(text))
		return h.Sum(nil)
	}
}

func none(string) []byte { return nil }

// forged are tokens that nobody may come in with.
func (t *tokens) forged() map[string]string {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	t.m.must(err)
	der, err := x509.MarshalPKIXPublicKey(t.key.Public())
	t.m.must(err)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	set, err := os.ReadFile(t.file)
	t.m.must(err)
	own, err := json.Marshal(jose.JSONWebKey{Key: other.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"})
	t.m.must(err)
	alg := func(name string) map[string]any { return map[string]any{"alg": name} }
	good := t.make(nil, nil, t.rs256(t.key))
	head, rest, _ := strings.Cut(good, ".")
	body, sig, _ := strings.Cut(rest, ".")
	return map[string]string{
		"no algorithm":                  t.make(alg("none"), nil, none),
		"None":                          t.make(alg("None"), nil, none),
		"no algorithm and a signature":  t.make(alg("none"), nil, t.rs256(t.key)),
		"an empty algorithm":            t.make(alg(""), nil, t.rs256(t.key)),
		"no signature":                  head + "." + body + ".",
		"two parts":                     head + "." + body,
		"the public key as a secret":    t.make(alg("HS256"), nil, hs256(public)),
		"the same in DER":               t.make(alg("HS256"), nil, hs256(der)),
		"the key set as a secret":       t.make(alg("HS256"), nil, hs256(set)),
		"the modulus as a secret":       t.make(alg("HS256"), nil, hs256(t.key.N.Bytes())),
		"an empty secret":               t.make(alg("HS256"), nil, hs256(nil)),
		"another key":                   t.make(nil, nil, t.rs256(other)),
		"its own key along":             t.make(map[string]any{"jwk": json.RawMessage(own)}, nil, t.rs256(other)),
		"the place of its key":          t.make(map[string]any{"jku": "http://127.0.0.1:1/keys", "x5u": "file:///etc/passwd"}, nil, t.rs256(other)),
		"a key's name that is a path":   t.make(map[string]any{"kid": "../../../../dev/null"}, nil, hs256(nil)),
		"what is critical and unknown":  t.make(map[string]any{"crit": []string{"x"}, "x": 1}, nil, t.rs256(t.key)),
		"another issuer":                t.make(nil, map[string]any{"iss": "https://else"}, t.rs256(t.key)),
		"another audience":              t.make(nil, map[string]any{"aud": "other"}, t.rs256(t.key)),
		"no audience":                   t.make(nil, map[string]any{"aud": nil}, t.rs256(t.key)),
		"no end":                        t.make(nil, map[string]any{"exp": nil}, t.rs256(t.key)),
		"an end that is over":           t.make(nil, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, t.rs256(t.key)),
		"a beginning that is to come":   t.make(nil, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}, t.rs256(t.key)),
		"another's body":                head + "." + strings.Split(t.make(nil, map[string]any{"sub": "root"}, none), ".")[1] + "." + sig,
		"no subject":                    t.make(nil, map[string]any{"sub": nil}, t.rs256(t.key)),
		"many parts":                    strings.Repeat(good+".", 20),
		"nothing that is one":           "weft",
		"what is no header of anything": strings.Repeat("A", 4000),
	}
}

// flood opens connections that say nothing, half of something, or what nobody asked.
func (m *mesh) flood(n int) (closeAll func()) {
	m.Helper()
	var open []net.Conn
	dialer := net.Dialer{Timeout: 10 * time.Second}
	for i := range n {
		c, err := dialer.DialContext(m.ctx, "tcp", m.admin)
		m.must(err)
		open = append(open, c)
		say := [][]byte{nil, []byte("PRI * HTTP/2.0\r\n"), {0x16, 3, 1, 2, 0}, []byte("GET / HTTP/1.1\r\n\r\n"), slices.Repeat([]byte{0xff}, 8<<10)}[i%5]
		_, _ = c.Write(say) // whoever says nonsense may be cut off already
	}
	return func() {
		for _, c := range open {
			_ = c.Close()
		}
	}
}

// TestAdminUnderAttack: whatever comes to the admin API, nobody gets in who may
// not, nothing changes that may not, and who may goes on; the control plane stays
// the same process, of bounded size, and writes no record for each refusal.
func TestAdminUnderAttack(t *testing.T) {
	t.Parallel()
	m := prepareMesh(t, servers.SharedEtcd(t))
	own, other := m.authority("mesh"), m.authority("other")
	control, admin := own.issue("control", ""), own.issue("admin", "")
	issuer := m.tokens()
	access := filepath.Join(m.dir, "access.yaml")
	m.must(os.WriteFile(access, fmt.Appendf(nil, `jwt: [{issuer: "https://sso", audiences: [weft], jwks_file: %s, prefix: "sso:"}]
bindings:
  - {subjects: ["cn:admin"], role: admin, namespaces: ["*"]}
  - {subjects: ["sso:ann"], role: editor, namespaces: [%s]}
  - {subjects: ["sso:", "sso:root"], role: admin, namespaces: ["*"]}
`, issuer.file, m.ns), 0o600))
	m.startControlPlane("--admin-cert", control.Cert, "--admin-key", control.Key, "--admin-ca", own.file, "--admin-access", access)
	m.adminFlags = []string{"--server-ca", own.file, "--server-cert", admin.Cert, "--server-key", admin.Key}
	m.apply(onDisk + topicYAML("orders"))
	api := m.adminAs(own, admin)
	content := func() string {
		resp, err := api.List(m.ctx, &adminv1.ListRequest{})
		m.must(err)
		var names []string
		for _, r := range resp.Resources {
			if !strings.HasPrefix(r.Name, "topicadmission/") { // follows by itself
				names = append(names, r.Name+" "+r.Metadata.Version)
			}
		}
		return strings.Join(names, "\n")
	}
	memory := func() float64 {
		v, err := metric(m.ctx, m.ops, "process_resident_memory_bytes")
		m.must(err)
		return v
	}
	pid, before, small := m.cp.PID(), content(), memory()

	// Certificates.
	for name, show := range map[string]tlsconf.Files{"another authority's": other.issue("admin", ""), "one that has expired": own.issueUntil("late", "", time.Now().Add(-time.Minute)),
		"a proxy's": own.issue("node", "spiffe://mesh/weft/proxy/p1"), "nobody's": own.issue("nobody", ""), "none": {}} {
		_, err := m.adminAs(own, show).List(m.ctx, &adminv1.ListRequest{})
		if code := status.Code(err); code != codes.Unavailable && code != codes.PermissionDenied && code != codes.Unauthenticated {
			t.Errorf("with a certificate, %s: %v", name, err)
		}
	}

	// Tokens.
	nobody := m.adminAs(own, tlsconf.Files{})
	for name, token := range issuer.forged() {
		if _, err := nobody.List(bearer(m.ctx, token), &adminv1.ListRequest{Namespace: m.ns}); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), token) {
			t.Errorf("a token with %s: %v", name, err)
		}
	}
	ann := bearer(m.ctx, issuer.make(nil, nil, issuer.rs256(issuer.key)))
	if _, err := nobody.List(ann, &adminv1.ListRequest{Namespace: m.ns}); err != nil {
		t.Errorf("the token that is good: %v", err)
	}

	// A role and what it may not.
	md := func(ns, name string) *configv1.Metadata { return &configv1.Metadata{Namespace: ns, Name: name} }
	topicOf := func(ns, name string) *configv1.Resource {
		return &configv1.Resource{Metadata: md(ns, name), Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}}
	}
	store := &configv1.Resource{Metadata: md(m.ns, "mine"), Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
	apply := func(ctx context.Context, c adminv1.AdminServiceClient, rs ...*configv1.Resource) error {
		_, err := c.Apply(ctx, &adminv1.ApplyRequest{Resources: rs})
		return err
	}
	remove := func(ctx context.Context, c adminv1.AdminServiceClient, name string) error {
		_, err := c.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: name}}})
		return err
	}
	for name, call := range map[string]func() error{
		"a store":             func() error { return apply(ann, nobody, store) },
		"a store beside more": func() error { return apply(ann, nobody, topicOf(m.ns, "x"), store) },
		"a namespace":         func() error { return apply(ann, nobody, topicOf("elsewhere", "x")) },
		"removing its store":  func() error { return remove(ann, nobody, "eventstore/"+m.ns+"/main") },
		"removing elsewhere":  func() error { return remove(ann, nobody, "topic/elsewhere/x") },
		"a look elsewhere":    func() error { _, err := nobody.Get(ann, &adminv1.GetRequest{Name: "topic/elsewhere/x"}); return err },
		"a status elsewhere": func() error {
			_, err := nobody.GetStatus(ann, &adminv1.GetStatusRequest{Namespace: m.ns, Name: "topic/elsewhere/x"})
			return err
		},
		"joining": func() error {
			_, err := nobody.CreateJoinToken(ann, &adminv1.CreateJoinTokenRequest{NodeId: "p", Namespaces: []string{m.ns}})
			return err
		},
		"a restore": func() error {
			_, err := nobody.DeclareRestore(ann, &adminv1.DeclareRestoreRequest{Reason: "x"})
			return err
		},
		"a drain": func() error {
			_, err := nobody.CommandProxies(ann, &adminv1.CommandProxiesRequest{Command: adminv1.CommandProxiesRequest_COMMAND_DRAIN, NodeIds: []string{"p1"}, Local: true})
			return err
		},
		"a snapshot": func() error {
			s, err := nobody.ExportSnapshot(ann, &adminv1.ExportSnapshotRequest{Namespaces: []string{m.ns}})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"the mesh as it was": func() error { _, err := nobody.Rollback(ann, &adminv1.RollbackRequest{ToRevision: 1}); return err },
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("an editor and %s: %v", name, err)
		}
	}

	// Names that are paths.
	for _, name := range []string{"..", "../x", "../../m/lineage", "x/../../y", "/etc/passwd", "a/b", "a%2fb", "a\x00b", "a\nb", "\u202ea", ".", "a..b", strings.Repeat("a", 100000), "*", ">", "topic/x"} {
		if err := apply(m.ctx, api, topicOf(m.ns, name)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a topic %.20q: %v", name, err)
		}
		if err := apply(m.ctx, api, topicOf(name, "x")); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a namespace %.20q: %v", name, err)
		}
		for _, full := range []string{"topic/" + m.ns + "/" + name, "topic/" + name + "/x", name, "../" + name, "manifest/" + m.ns + "/" + name} {
			_, err := api.Get(m.ctx, &adminv1.GetRequest{Name: full})
			if code := status.Code(err); code != codes.InvalidArgument && code != codes.NotFound {
				t.Errorf("getting %.40q: %v", full, err)
			}
			if code := status.Code(remove(m.ctx, api, full)); code != codes.InvalidArgument && code != codes.NotFound {
				t.Errorf("removing %.40q: %v", full, code)
			}
		}
	}

	// What is too large.
	big := strings.Repeat("x", 64<<20)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for what, call := range map[string]func() error{
				"a request": func() error {
					_, err := api.DeclareRestore(m.ctx, &adminv1.DeclareRestoreRequest{Reason: big})
					return err
				},
				"a request that is small on the way": func() error {
					_, err := api.DeclareRestore(m.ctx, &adminv1.DeclareRestoreRequest{Reason: big}, grpc.UseCompressor(gzip.Name))
					return err
				},
				"a request of whoever": func() error {
					_, err := nobody.DeclareRestore(m.ctx, &adminv1.DeclareRestoreRequest{Reason: big})
					return err
				},
				"a header":   func() error { _, err := nobody.List(bearer(m.ctx, big[:1<<20]), &adminv1.ListRequest{}); return err },
				"a resource": func() error { return apply(m.ctx, api, topicOf(m.ns, big[:3<<20])) },
				"a set": func() error {
					return apply(m.ctx, api, slices.Repeat([]*configv1.Resource{topicOf(m.ns, "x")}, 10000)...)
				},
			} {
				if err := call(); err == nil {
					t.Errorf("%s that is too large is taken", what)
				}
			}
		})
	}
	all.Wait()

	// Connections, while who may goes on; and refusals without end.
	closeAll := m.flood(500)
	defer closeAll()
	m.apply(topicYAML("during"))
	m.must(remove(m.ctx, api, "topic/"+m.ns+"/during"))
	const refusals = 500
	for range refusals {
		if err := remove(ann, nobody, "eventstore/"+m.ns+"/main"); status.Code(err) != codes.PermissionDenied {
			t.Fatal(err)
		}
	}

	// Afterwards.
	if now := content(); now != before {
		t.Errorf("there is\n%s\nand there was\n%s", now, before)
	}
	m.apply(topicYAML("afterwards"))
	resp, err := api.ListHistory(m.ctx, &adminv1.ListHistoryRequest{PageSize: 1000})
	m.must(err)
	if n := len(resp.Records); n == 0 || n > 300 {
		t.Errorf("there are %d records", n)
	}
	if grown := memory() - small; grown > maxGrowth {
		t.Errorf("it has grown by %.0f MiB", grown/(1<<20))
	} else {
		t.Logf("%d records; it has grown by %.0f MiB", len(resp.Records), grown/(1<<20))
	}
	if m.cp.PID() != pid {
		t.Error("the control plane has been started again")
	}
}
