package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/latest"
)

func hashOf(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// roles is a file with a token for each role, of namespace a and of the mesh.
func roles() string {
	var b strings.Builder
	b.WriteString("tokens:\n")
	for _, where := range []string{"a", "mesh"} {
		for _, role := range roleNames()[1:] {
			fmt.Fprintf(&b, "  - {subject: %s-%s, sha256: %s}\n", role, where, hashOf(role+"-"+where))
		}
	}
	fmt.Fprintf(&b, "  - {subject: unbound, sha256: %s}\n  - {subject: late, sha256: %s, expires_at: 2001-01-01T00:00:00Z}\n  - {subject: grouped, groups: [ops], sha256: %s}\n",
		hashOf("unbound"), hashOf("late"), hashOf("grouped"))
	b.WriteString("bindings:\n")
	for where, ns := range map[string]string{"a": "a", "mesh": "*"} {
		for _, role := range roleNames()[1:] {
			fmt.Fprintf(&b, "  - {subjects: [%s-%s], role: %s, namespaces: [%q]}\n", role, where, role, ns)
		}
	}
	b.WriteString("  - {groups: [ops], role: editor, namespaces: [a]}\n  - {groups: [ops], role: viewer, namespaces: [b]}\n")
	return b.String()
}

func messageOf(name string) (any, error) {
	m, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	return m.New().Interface(), nil
}

func gaugeOf(t *testing.T, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve serves the world's service with an access file, and TLS if there is some.
func (w *world) serve(access *Access, creds credentials.TransportCredentials) (addr string) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	opts := w.services[0].ServerOptions(access)
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	srv := grpc.NewServer(opts...)
	adminv1.RegisterAdminServiceServer(srv, w.services[0])
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	w.Cleanup(func() { srv.Stop(); <-ended })
	return l.Addr().String()
}

func (w *world) dial(addr string, creds credentials.TransportCredentials) adminv1.AdminServiceClient {
	w.Helper()
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(creds))
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

func (w *world) access(text string) *Access {
	w.Helper()
	file := filepath.Join(w.TempDir(), "access.yaml")
	write(w, file, text)
	a, err := NewAccess(AccessConfig{File: file, Every: 5 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	w.must(err)
	return a
}

// as is a call with a token.
func as(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// TestAccessReload: what the file says counts from when it says it, for streams
// that are open too; what is wrong is not in force.
func TestAccessReload(t *testing.T) {
	w := newWorld(t, 1)
	w.apply(eventStore("a", "main", "1"))
	a := w.access(roles())
	ctx, cancel := context.WithCancel(w.ctx)
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	c := w.dial(w.serve(a, nil), nil)
	list := func(who string) codes.Code {
		_, err := c.List(as(w.ctx, who), &adminv1.ListRequest{Namespace: "a"})
		return status.Code(err)
	}
	watch, err := c.Watch(as(w.ctx, "viewer-a"), &adminv1.WatchRequest{Namespace: "a"})
	w.must(err)
	_, err = watch.Recv()
	w.must(err)
	swap := func(text string) {
		// As a mounted volume does it: another file takes the name.
		write(t, a.file+".new", text)
		w.must(os.Rename(a.file+".new", a.file))
	}
	swap("bindings: [{subjects: [x], role: king, namespaces: [a]}]")
	for gaugeOf(t, a.good) != 0 {
		w.must(w.ctx.Err())
	}
	if list("viewer-a") != codes.OK {
		t.Error("a wrong file took a right away")
	}
	swap(strings.ReplaceAll(roles(), "subjects: [viewer-a]", "subjects: [someone]"))
	for list("viewer-a") == codes.OK {
		w.must(w.ctx.Err())
	}
	if list("editor-a") != codes.OK {
		t.Error("another one lost his right")
	}
	w.apply(eventStore("a", "main", "2"))
	if _, err := watch.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the stream goes on: %v", err)
	}
	for gaugeOf(t, a.good) != 1 {
		w.must(w.ctx.Err())
	}
	w.must(os.Remove(a.file))
	for gaugeOf(t, a.good) != 0 {
		w.must(w.ctx.Err())
	}
	if list("editor-a") != codes.OK || list("viewer-a") != codes.PermissionDenied {
		t.Error("without the file the last good one is not in force")
	}
}

// TestStrangers: whoever may not call hears so at once, and of what he sends nothing is
// read.
func TestStrangers(t *testing.T) {
	w := newWorld(t, 1)
	conn, err := grpc.NewClient(w.serve(w.access(roles()), nil), grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	t.Cleanup(func() { _ = conn.Close() })
	rpc, err := conn.NewStream(as(w.ctx, "nobody"), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, adminv1.AdminService_Apply_FullMethodName)
	w.must(err)
	if err := rpc.RecvMsg(&adminv1.ApplyResponse{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("who has sent no request yet is told %v", err)
	}
}

// TestAuthorization: what is no one bearer token is none.
func TestAuthorization(t *testing.T) {
	w := newWorld(t, 1)
	withFile := w.dial(w.serve(w.access(roles()), nil), nil)
	for _, values := range [][]string{{"admin-mesh"}, {"Basic admin-mesh"}, {"Bearer"}, {"Bearer "}, {"Bearer admin-mesh", "Bearer admin-mesh"}, {"Bearer admin-mesh, Bearer admin-mesh"}, {"Bearer  admin-mesh"}, {"Bearer admin-mesh "},
		{"Bearer " + hashOf("admin-mesh")}, {"Bearer " + strings.Repeat("x", 10000)}} {
		ctx := w.ctx
		for _, v := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
		}
		if _, err := withFile.List(ctx, &adminv1.ListRequest{}); status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "admin-mesh") {
			t.Errorf("%q: %v", values, err)
		}
	}
	if _, err := withFile.List(metadata.AppendToOutgoingContext(w.ctx, "Authorization", "bearer admin-mesh"), &adminv1.ListRequest{}); err != nil {
		t.Error(err)
	}
	// Without a file there are no tokens, and nobody is let in for having one.
	if _, err := w.api[0].List(as(w.ctx, "admin-mesh"), &adminv1.ListRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a file: %v", err)
	}
	// Nor is anybody where no Access let him in.
	if _, err := w.services[0].Apply(w.ctx, &adminv1.ApplyRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if resp, err := w.services[0].List(w.ctx, &adminv1.ListRequest{}); err != nil || len(resp.Resources) > 0 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestJSONWebTokens: tokens of an issuer are its principals', under its prefix; who
// names himself as others are named gets nowhere.
func TestJSONWebTokens(t *testing.T) {
	w := newWorld(t, 1)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	w.must(err)
	sign := func(claims map[string]any) string {
		all := map[string]any{"iss": "https://sso", "aud": "weft", "exp": time.Now().Add(time.Hour).Unix()}
		maps.Copy(all, claims)
		b, err := json.Marshal(all)
		w.must(err)
		sig, err := signer.Sign(b)
		w.must(err)
		token, err := sig.CompactSerialize()
		w.must(err)
		return token
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	w.must(err)
	file := filepath.Join(t.TempDir(), "keys.json")
	write(t, file, string(set))
	open := func(prefix string) adminv1.AdminServiceClient {
		a := w.access(roles() + fmt.Sprintf("  - {subjects: [local, 'cn:x', 'spiffe://x', '%[1]sann'], groups: ['%[1]sops'], role: viewer, namespaces: [a]}\njwt: [{issuer: 'https://sso', audiences: [weft], jwks_file: %[2]s, groups_claim: groups, prefix: '%[1]s'}]\n", prefix, file))
		return w.dial(w.serve(a, nil), nil)
	}
	plain, prefixed := open(""), open("sso:")
	for name, tc := range map[string]struct {
		claims          map[string]any
		plain, prefixed codes.Code
	}{
		"a subject":                {map[string]any{"sub": "ann"}, codes.OK, codes.OK},
		"a group":                  {map[string]any{"sub": "x", "groups": []string{"y", "ops"}}, codes.OK, codes.OK},
		"neither":                  {map[string]any{"sub": "x", "groups": "y"}, codes.PermissionDenied, codes.PermissionDenied},
		"the file's own":           {map[string]any{"sub": "viewer-a"}, codes.Unauthenticated, codes.PermissionDenied},
		"local":                    {map[string]any{"sub": "local"}, codes.Unauthenticated, codes.PermissionDenied},
		"a certificate's":          {map[string]any{"sub": "cn:x"}, codes.Unauthenticated, codes.PermissionDenied},
		"a SPIFFE ID":              {map[string]any{"sub": "spiffe://x"}, codes.Unauthenticated, codes.PermissionDenied},
		"a control plane":          {map[string]any{"sub": "spiffe://mesh/weft/controlplane"}, codes.Unauthenticated, codes.PermissionDenied},
		"another issuer":           {map[string]any{"sub": "ann", "iss": "https://else"}, codes.Unauthenticated, codes.Unauthenticated},
		"another audience":         {map[string]any{"sub": "ann", "aud": "other"}, codes.Unauthenticated, codes.Unauthenticated},
		"one that has expired":     {map[string]any{"sub": "ann", "exp": time.Now().Add(-time.Second).Unix()}, codes.Unauthenticated, codes.Unauthenticated},
		"the prefix is no other's": {map[string]any{"sub": "sso:ann"}, codes.PermissionDenied, codes.PermissionDenied},
	} {
		for i, c := range []adminv1.AdminServiceClient{plain, prefixed} {
			want := tc.plain
			if i == 1 {
				want = tc.prefixed
			}
			token := sign(tc.claims)
			if _, err := c.List(as(w.ctx, token), &adminv1.ListRequest{Namespace: "a"}); status.Code(err) != want || err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("%s (%d): %v, want %v", name, i, err, want)
			}
		}
	}
	// What is open ends with its token.
	if (&session{access: &Access{now: latest.New(everyone())}, until: time.Now().Add(-time.Second)}).still() == nil {
		t.Error("a stream outlives its token")
	}
}

func newVerifier(e issuerEntry) (*jwtauth.Verifier, error) { return jwtauth.New(e.config(nil)) }

// TestAccessFile: what is wrong is said, with its line.
func TestAccessFile(t *testing.T) {
	hash := hashOf("x")
	for name, tc := range map[string]struct{ text, says string }{
		"nothing":                    {"", "f: is empty"},
		"no bindings":                {"tokens: []", "f: has no bindings"},
		"an unknown field":           {"bindings:\n  - {subject: [x], role: viewer, namespaces: [a]}", "f: unmarshal errors:\n  line 2: field subject is no field here"},
		"a field at the top":         {"rules: []\n", "line 1: field rules is no field here"},
		"twice":                      {"tokens: []\ntokens: []\n", "line 2: mapping key \"tokens\" already defined at line 1"},
		"two documents":              {"bindings: [{subjects: [x], role: viewer, namespaces: [a]}]\n---\n{}", "f: has more than one document"},
		"no YAML":                    {"bindings: [", "f: line 1: did not find expected node content"},
		"a list":                     {"- a", "cannot unmarshal !!seq"},
		"a role":                     {"bindings:\n  - {subjects: [x], role: viewer, namespaces: [a]}\n  - {subjects: [x], role: king, namespaces: [a]}", `f:3: bindings[1].role: "king" is not viewer, editor or admin`},
		"the role none":              {"bindings: [{subjects: [x], role: none, namespaces: [a]}]", "f:1: bindings[0].role"},
		"no subject":                 {"bindings: [{role: viewer, namespaces: [a]}]", "has neither subjects nor groups"},
		"no namespace":               {"bindings: [{subjects: [x], role: viewer}]", `bindings[0].namespaces: are missing; "*" is all of the mesh`},
		"a pattern":                  {`bindings: [{subjects: [x], role: viewer, namespaces: ["a*"]}]`, "bindings[0].namespaces: namespace"},
		"a subject's pattern":        {`bindings: [{subjects: ["*"], role: viewer, namespaces: [a]}]`, "there are no patterns of subjects"},
		"an empty subject":           {`bindings: [{subjects: [""], role: viewer, namespaces: [a]}]`, "must have 1 to 512"},
		"a hash":                     {"tokens: [{subject: x, sha256: abc}]\nbindings: [{subjects: [x], role: viewer, namespaces: [a]}]", "f:1: tokens[0].sha256: must be the SHA-256"},
		"the hash of nothing":        {"tokens: [{subject: x, sha256: " + hashOf("") + "}]", "is that of nothing"},
		"a hash twice":               {"tokens:\n- {subject: x, sha256: " + hash + "}\n- {subject: y, sha256: " + hash + "}", "f:3: tokens[1].sha256: is there twice"},
		"a token of local":           {"tokens: [{subject: local, sha256: " + hash + "}]", "is not a token's"},
		"a token of a SPIFFE":        {`tokens: [{subject: "spiffe://a/b", sha256: ` + hash + "}]", "is not a token's"},
		"a time that is none":        {"tokens: [{subject: x, sha256: " + hash + ", expires_at: soon}]", "parsing time"},
		"an issuer without audience": {"jwt: [{issuer: i, jwks_url: 'https://i/keys'}]\nbindings: [{subjects: [x], role: viewer, namespaces: [a]}]", "f:1: jwt[0]: an issuer and at least one audience are needed"},
		"an issuer without keys":     {"jwt: [{issuer: i, audiences: [a]}]", "jwt[0]: the keys come from exactly one"},
		"keys in the clear":          {"jwt: [{issuer: i, audiences: [a], jwks_url: 'http://i.example/keys'}]", "jwt[0]: jwks url"},
		"an issuer twice":            {"jwt:\n- {issuer: i, audiences: [a], jwks_url: 'https://i/keys'}\n- {issuer: i, audiences: [b], jwks_url: 'https://i/keys', prefix: b}", "f:3: jwt[1].issuer: is there twice"},
		"two without prefix":         {"jwt:\n- {issuer: i, audiences: [a], jwks_url: 'https://i/keys'}\n- {issuer: j, audiences: [b], jwks_url: 'https://j/keys'}", "f:3: jwt[1].prefix"},
		"one without prefix":         {"jwt:\n- {issuer: i, audiences: [a], jwks_url: 'https://i/keys'}\n- {issuer: j, audiences: [b], jwks_url: 'https://j/keys', prefix: 'ci:'}", "f:3: jwt[1].prefix: \"ci:\" and \"\" of jwt[0]"},
		"a prefix within another":    {"jwt:\n- {issuer: i, audiences: [a], jwks_url: 'https://i/keys', prefix: 'ci:x'}\n- {issuer: j, audiences: [b], jwks_url: 'https://j/keys', prefix: 'ci:'}", "f:3: jwt[1].prefix"},
		"a certificate's prefix":     {"jwt: [{issuer: i, audiences: [a], jwks_url: 'https://i/keys', prefix: 'cn:'}]", "jwt[0].prefix: must"},
		"more than there may be":     {strings.Repeat("# x\n", 1<<19), "has more than"},
	} {
		p, err := parseAccess("f", []byte(tc.text), newVerifier)
		if err == nil || p != nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "admin.") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseAccess("f", []byte(roles()), newVerifier); err != nil {
		t.Error(err)
	}
	if _, err := NewAccess(AccessConfig{File: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// FuzzAccessFile: whatever a file has, it is refused or says only roles that
// there are, of namespaces that may be.
func FuzzAccessFile(f *testing.F) {
	f.Add([]byte(roles()))
	f.Add([]byte("bindings: [{subjects: [x], role: admin, namespaces: ['*']}]"))
	f.Add([]byte("jwt: [{issuer: i, audiences: [a], jwks_url: 'https://i/keys', prefix: 'i:'}]\nbindings: [{groups: ['i:x'], role: editor, namespaces: [a]}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("bindings: &b [{subjects: [x], role: viewer, namespaces: [a]}]\ntokens: *b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseAccess("f", b, newVerifier)
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if p == nil {
			return
		}
		for _, by := range []map[string]map[string]Role{p.subjects, p.groups} {
			for s, roles := range by {
				for ns, r := range roles {
					if s == "" || r < Viewer || r > Admin || ns == "" {
						t.Errorf("%q is %d in %q", s, r, ns)
					}
				}
			}
		}
	})
}
