package policy

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/jwtauth"
)

// tokenIssuer signs tokens.
type tokenIssuer struct {
	name string
	key  ed25519.PrivateKey
}

func newTokenIssuer(t *testing.T, name string) tokenIssuer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return tokenIssuer{name, key}
}

func (i tokenIssuer) identity(t *testing.T, ns, aud string) NamedIdentity {
	t.Helper()
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	return NamedIdentity{Namespace: ns, Name: "identity/" + ns + "/" + aud, Spec: &configv1.Identity{Method: &configv1.Identity_Jwt{Jwt: &configv1.JwtIssuer{
		Issuer: i.name, Audiences: []string{aud}, GroupsClaim: "groups", Keys: &configv1.JwtIssuer_Jwks{Jwks: string(jwks)}}}}}
}

func (i tokenIssuer) token(t *testing.T, aud, sub string, expires time.Time) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: i.key}, (&jose.SignerOptions{}).WithHeader("kid", "1"))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]any{"iss": i.name, "aud": aud, "sub": sub, "exp": expires.Unix(), "groups": []string{"dev"}})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sig.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func withVerifiers(t *testing.T, now time.Time, ids ...NamedIdentity) *Identities {
	t.Helper()
	v := map[string]*jwtauth.Verifier{}
	for _, n := range ids {
		if j := n.Spec.GetJwt(); j != nil {
			cfg := TokenRules(j)
			cfg.Clock = func() time.Time { return now }
			var err error
			if v[n.Name], err = jwtauth.New(cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	return CompileIdentities(ids, v, false)
}

func TestTokens(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	end := now.Add(time.Hour)
	ours, theirs, stranger := newTokenIssuer(t, "https://ours"), newTokenIssuer(t, "https://ours"), newTokenIssuer(t, "https://stranger")
	const key = "weft_abcdefgh_s3cret"
	ca := newCA(t)
	ids := []NamedIdentity{ours.identity(t, "a", "shop"), ours.identity(t, "b", "bank"), theirs.identity(t, "c", "evil"), keyIdentity("demo", "abcdefgh", "alice", key, nil),
		mtlsIdentity("a", ca.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")}
	i := withVerifiers(t, now, ids...)
	far := netip.MustParseAddrPort("10.0.0.1:9")
	for name, tc := range map[string]struct {
		bearer string
		want   string // the principal, or part of the error
	}{
		"one audience":        {ours.token(t, "shop", "alice", end), "a/alice"},
		"another audience":    {ours.token(t, "bank", "alice", end), "b/alice"},
		"no identity's":       {ours.token(t, "else", "alice", end), "the token"},
		"own keys, other aud": {theirs.token(t, "shop", "alice", end), "the token"},
		"own keys, own aud":   {theirs.token(t, "evil", "alice", end), "c/alice"},
		"unknown issuer":      {stranger.token(t, "shop", "alice", end), "not of an issuer"},
		"expired":             {ours.token(t, "shop", "alice", now), "the token"},
		"local":               {ours.token(t, "shop", "local", end), "principal"},
		"pattern":             {ours.token(t, "shop", "*", end), "principal"},
		"other namespace":     {ours.token(t, "shop", "demo/alice", end), "principal"},
		"not a token":         {"a.b", "not of an issuer"},
		"a key":               {key, "demo/alice"},
	} {
		p, err := i.Authenticate(t.Context(), Credentials{Bearer: tc.bearer, Peer: far}, now)
		if strings.Contains(tc.want, "/") {
			if err != nil || p.String() != tc.want {
				t.Errorf("%s: %v, %v", name, p, err)
			}
			continue
		}
		if fault.ClassOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), tc.bearer) {
			t.Errorf("%s: %v", name, err)
		}
	}

	p, err := i.Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "alice", end)}, now)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(p.Groups, ",") != "a/dev" || p.Expired(end.Add(-time.Nanosecond)) || !p.Expired(end) {
		t.Errorf("%+v", p)
	}
	// A certificate of somebody else does not go with a token.
	if _, err := i.Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "mallory", end), Certificates: ca.leaf(t, nil)}, now); fault.ClassOf(err) != fault.Unauthenticated {
		t.Errorf("token and certificate of two principals: %v", err)
	}

	// A newer configuration judges it again.
	if q, err := i.Refresh(p, now); err != nil || q.String() != "a/alice" {
		t.Errorf("the same configuration: %v", q)
	}
	if _, err := withVerifiers(t, now, ids[1:]...).Refresh(p, now); fault.ClassOf(err) != fault.Unauthenticated {
		t.Error("the identity is gone, its principal is not")
	}
	if _, err := withVerifiers(t, now, newTokenIssuer(t, "https://ours").identity(t, "a", "shop")).Refresh(p, now); fault.ClassOf(err) != fault.Unauthenticated {
		t.Error("the key is gone, its principal is not")
	}
	if _, err := withVerifiers(t, end, ids...).Refresh(p, end); fault.ClassOf(err) != fault.Unauthenticated {
		t.Error("the token has expired, its principal has not")
	}
	// Without a verifier, or before its keys are there, nobody passes.
	if _, err := CompileIdentities(ids, nil, false).Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "alice", end)}, now); fault.ClassOf(err) != fault.Unauthenticated {
		t.Errorf("without a verifier: %v", err)
	}
	away, err := jwtauth.New(jwtauth.Config{Issuer: "https://ours", Audiences: []string{"shop"}, JWKSURL: "http://127.0.0.1:1/", Wait: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	none := CompileIdentities(ids[:1], map[string]*jwtauth.Verifier{ids[0].Name: away}, false)
	if _, err := none.Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "alice", end)}, now); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("before the keys are there: %v", err)
	}
	// Nor is it taken back from who has shown it before: who is open is told to come
	// again, and passes once the keys are there.
	for name, judge := range map[string]func(*Principal, time.Time) (*Principal, error){"Refresh": none.Refresh, "Current": none.Current} {
		if _, err := judge(p, now); fault.ClassOf(err) != fault.Unavailable || fault.From(err).Reason != "issuer-unreachable" {
			t.Errorf("%s before the keys are there: %v", name, err)
		}
	}
}

// TestIssuerOfSeveral: an identity that a token is not for, of which the keys are away,
// holds up nobody whose token is of the same issuer, and is not what is wrong with it.
func TestIssuerOfSeveral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		ours := newTokenIssuer(t, "https://ours")
		away, shop := ours.identity(t, "a", "bank"), ours.identity(t, "b", "shop")
		cfg := TokenRules(shop.Spec.GetJwt())
		verifier, err := jwtauth.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		gone, err := jwtauth.New(jwtauth.Config{Issuer: "https://ours", Audiences: []string{"bank"}, JWKSURL: "http://127.0.0.1:1/", Wait: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range [][]NamedIdentity{{away, shop}, {shop, away}} {
			i := CompileIdentities(list, map[string]*jwtauth.Verifier{away.Name: gone, shop.Name: verifier}, false)
			if p, err := i.Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "alice", now.Add(time.Minute))}, now); err != nil || p.String() != "b/alice" {
				t.Errorf("%v, %v", p, err)
			}
			for name, tc := range map[string]struct {
				token string
				want  RefusedToken
			}{
				"it has ended":     {ours.token(t, "shop", "alice", now.Add(-time.Minute)), RefusedToken{shop.Name, jwtauth.Expired}},
				"it is for nobody": {ours.token(t, "else", "alice", now.Add(time.Minute)), RefusedToken{list[1].Name, jwtauth.WrongPublic}},
			} {
				_, err := i.Authenticate(t.Context(), Credentials{Bearer: tc.token}, now)
				if why, ok := errors.AsType[*RefusedToken](err); fault.ClassOf(err) != fault.Unauthenticated || !ok || *why != tc.want {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if waited := time.Since(now); waited != 0 {
			t.Errorf("they waited for %v", waited)
		}
	})
}

// TestCurrentWhenKeysCome: a token that could not be checked is not refused for good by
// the configuration that it could not be checked by.
func TestCurrentWhenKeysCome(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ours := newTokenIssuer(t, "https://ours")
	id := ours.identity(t, "a", "shop")
	p, err := withVerifiers(t, now, id).Authenticate(t.Context(), Credentials{Bearer: ours.token(t, "shop", "alice", now.Add(time.Hour))}, now)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(id.Spec.GetJwt().GetJwks())) }))
	defer s.Close()
	fetched := make(chan struct{}, 1)
	cfg := TokenRules(&configv1.JwtIssuer{Issuer: "https://ours", Audiences: []string{"shop"}, Keys: &configv1.JwtIssuer_JwksUri{JwksUri: s.URL}})
	cfg.Clock = func() time.Time { return now }
	cfg.Fetched = func(bool, error) { fetched <- struct{}{} }
	v, err := jwtauth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	i := CompileIdentities([]NamedIdentity{id}, map[string]*jwtauth.Verifier{id.Name: v}, false)
	if _, err := i.Current(p, now); fault.ClassOf(err) != fault.Unavailable {
		t.Fatalf("before the keys are there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = v.Run(ctx) }()
	<-fetched
	if q, err := i.Current(p, now); err != nil || q.String() != "a/alice" {
		t.Errorf("the keys are there: %v, %v", q, err)
	}
	cancel()
	<-ended
}

// TestBothCredentials: who has shown a key or token and a certificate passes for as long
// as both are good, by their dates and by the identities as they are.
func TestBothCredentials(t *testing.T) {
	now := time.Now()
	known := newCA(t)
	ours := newTokenIssuer(t, "https://ours")
	ids := func(authority *ca, key string) []NamedIdentity {
		list := []NamedIdentity{ours.identity(t, "demo", "shop"), keyIdentity("demo", "abcdefgh", "alice", key, nil)}
		if authority != nil {
			list = append(list, mtlsIdentity("demo", authority.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, ""))
		}
		return list
	}
	const key = "weft_abcdefgh_s3cret"
	first := withVerifiers(t, now, ids(known, key)...)
	ends := now.Add(30 * time.Minute)
	chain := known.leaf(t, func(c *x509.Certificate) { c.NotAfter, c.Subject.CommonName = ends, "alice" })
	ends = chain[0].NotAfter
	for name, bearer := range map[string]string{"key": key, "token": ours.token(t, "shop", "alice", now.Add(time.Hour)), "short token": ours.token(t, "shop", "alice", now.Add(time.Minute))} {
		p, err := first.Authenticate(t.Context(), Credentials{Bearer: bearer, Certificates: chain}, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := ends
		if name == "short token" {
			want = now.Add(time.Minute).Truncate(time.Second)
		}
		if got := time.Unix(0, p.Expires); !got.Equal(want) {
			t.Errorf("%s: it ends at %v, want %v", name, got, want)
		}
		for i := range 2 { // what came of one judgement is judged too
			q, err := first.Refresh(p, now)
			if err != nil || q.Expires != p.Expires || q.Identity != p.Identity {
				t.Fatalf("%s: after %d: %+v, %v", name, i, q, err)
			}
			p = q
		}
		if _, err := withVerifiers(t, now, ids(nil, key)...).Refresh(p, now); fault.From(err) == nil || fault.From(err).Reason != "credentials-revoked" {
			t.Errorf("%s: the authority is gone: %v", name, err)
		}
		if _, err := withVerifiers(t, now, ids(newCA(t), key)...).Refresh(p, now); err == nil {
			t.Errorf("%s: the authority is another one", name)
		}
		others := ids(known, key+"2")
		if _, err := withVerifiers(t, now, others[1:]...).Refresh(p, now); err == nil {
			t.Errorf("%s: the key or issuer is gone", name)
		}
	}
}
