package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
)

const (
	allow   = configv1.Effect_EFFECT_ALLOW
	deny    = configv1.Effect_EFFECT_DENY
	shadow  = configv1.Mode_MODE_SHADOWED
	publish = configv1.Action_ACTION_PUBLISH
	consume = configv1.Action_ACTION_CONSUME
)

func rules(rs ...*configv1.AccessRule) []NamedPolicy {
	return []NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: rs}}}
}

func TestAuthorize(t *testing.T) {
	alice := &Principal{Namespace: "demo", Name: "alice", Groups: []string{"demo/staff"}}
	list := rules(
		&configv1.AccessRule{Name: "staff", Effect: allow, Groups: []string{"staff"}, Actions: []configv1.Action{publish}, Topics: []string{"orders.>", "t1"}},
		&configv1.AccessRule{Name: "no-secrets", Effect: deny, Principals: []string{"*"}, Actions: []configv1.Action{publish}, Topics: []string{"orders.secret"}},
		&configv1.AccessRule{Name: "billing", Effect: allow, Principals: []string{"alice", "local"}, Actions: []configv1.Action{consume}, Subscriptions: []string{"billing"}, Topics: []string{"x"}},
		&configv1.AccessRule{Name: "foreign", Effect: allow, Principals: []string{"other/bob"}, Actions: []configv1.Action{publish}, Topics: []string{"*"}},
		&configv1.AccessRule{Name: "soon", Effect: deny, Mode: shadow, Principals: []string{"alice"}, Actions: []configv1.Action{publish}, Topics: []string{"t1"}},
		&configv1.AccessRule{Name: "maybe", Effect: allow, Mode: shadow, Principals: []string{"alice"}, Actions: []configv1.Action{publish}, Topics: []string{"t2"}},
	)
	r := CompileRules(list, map[string]string{"broken": "accesspolicy/broken/p"})
	for _, tc := range []struct {
		p       *Principal
		a       Action
		ns      string
		name    string
		allowed bool
		rule    string
		shadow  string
	}{
		{alice, Publish, "demo", "orders.new", true, "staff", ""},
		{alice, Publish, "demo", "orders", false, "", ""},
		{alice, Publish, "demo", "orders.secret", false, "no-secrets", ""},
		{alice, Subscribe, "demo", "orders.new", false, "", ""},
		{alice, Publish, "demo", "t1", true, "staff", "accesspolicy/demo/p#soon"},
		{alice, Publish, "demo", "t1x", false, "", ""},
		{alice, Publish, "demo", "t2", false, "", "accesspolicy/demo/p#maybe"},
		{alice, Publish, "demo", "T1", false, "", ""},
		{alice, Consume, "demo", "billing", true, "billing", ""},
		{alice, Consume, "demo", "x", false, "", ""},
		{alice, Publish, "other", "orders.new", false, "", ""},
		{alice, Publish, "broken", "orders.new", false, "", ""},
		{&Principal{Namespace: "other", Name: "bob"}, Publish, "demo", "t9", true, "foreign", ""},
		{&Principal{Namespace: "demo", Name: "bob"}, Publish, "demo", "t9", false, "", ""},
		{&Principal{Namespace: "other", Name: "alice", Groups: []string{"other/staff"}}, Publish, "demo", "t1", false, "", ""},
		{&Principal{Name: Local}, Consume, "demo", "billing", true, "billing", ""},
		{&Principal{Namespace: "demo", Name: Local}, Consume, "demo", "billing", false, "", ""},
	} {
		d := r.Authorize(tc.p, tc.a, tc.ns, tc.name)
		if d.Allowed != tc.allowed || d.Rule != tc.rule || d.Shadow != tc.shadow {
			t.Errorf("%v %v %s/%s: %+v", tc.p, tc.a, tc.ns, tc.name, d)
		}
		if !d.Allowed && d.Why == "" {
			t.Errorf("%v %v %s/%s: refused without a reason", tc.p, tc.a, tc.ns, tc.name)
		}
	}
	if d := r.Authorize(alice, Publish, "demo", "orders.secret"); !strings.Contains(d.Why, "no-secrets") || !strings.Contains(d.Why, "accesspolicy/demo/p") {
		t.Errorf("the refusal does not name the rule: %s", d.Why)
	}
	var zero Rules
	if zero.Authorize(alice, Publish, "demo", "t1").Allowed {
		t.Error("the zero value allows")
	}
}

func TestBrokenPolicyDeniesItsNamespace(t *testing.T) {
	r := CompileRules(append(
		rules(&configv1.AccessRule{Name: "all", Effect: allow, Principals: []string{"*"}, Actions: []configv1.Action{publish}, Topics: []string{">"}}),
		rules(&configv1.AccessRule{Name: "future", Effect: configv1.Effect(99), Topics: []string{"t"}})...), nil)
	if d := r.Authorize(&Principal{Namespace: "demo", Name: "a"}, Publish, "demo", "t"); d.Allowed {
		t.Error("a policy that is not understood must deny what it might select")
	}
}

// FuzzAuthorizeIsDispatch: what a rule for one topic allows is that topic and
// no other name.
func FuzzAuthorizeIsDispatch(f *testing.F) {
	for _, s := range []string{"a", "a.b", "A", "a%2Fb", "a/../b", "a\x00", "*", ">", "a.*", "ａ"} {
		f.Add("a", s)
	}
	f.Fuzz(func(t *testing.T, granted, asked string) {
		if names.CheckName("topic", granted) != nil || names.CheckName("topic", asked) != nil {
			return
		}
		r := CompileRules(rules(&configv1.AccessRule{Name: "r", Effect: allow, Principals: []string{"*"}, Actions: []configv1.Action{publish}, Topics: []string{granted}}), nil)
		if got := r.Authorize(&Principal{Namespace: "demo", Name: "x"}, Publish, "demo", asked).Allowed; got != (granted == asked) {
			t.Errorf("granted %q, asked %q: %v", granted, asked, got)
		}
	})
}

func keyIdentity(ns, id, principal, key string, expires *timestamppb.Timestamp) NamedIdentity {
	sum := sha256.Sum256([]byte(key))
	return NamedIdentity{Namespace: ns, Name: "identity/" + ns + "/" + id, Spec: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{
		Keys: []*configv1.ApiKey{{Id: id, Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: principal, Groups: []string{"g"}, ExpiresAt: expires}}}}}}
}

// ca is a certificate authority of a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

func (c *ca) leaf(t *testing.T, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "svc"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(tmpl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{cert}
}

func mtlsIdentity(ns, pemText string, from configv1.PrincipalSource, prefix string) NamedIdentity {
	return NamedIdentity{Namespace: ns, Name: "identity/" + ns + "/mtls", Spec: &configv1.Identity{Method: &configv1.Identity_Mtls{
		Mtls: &configv1.MutualTls{CaCertificates: pemText, PrincipalFrom: from, UriPrefix: prefix, Groups: []string{"m"}}}}}
}

func TestAuthenticate(t *testing.T) {
	now := time.Now()
	good, other := newCA(t), newCA(t)
	const key = "weft_abcdefgh_s3cret"
	uri, err := url.Parse("spiffe://x/ns/demo/svc2")
	if err != nil {
		t.Fatal(err)
	}
	ids := []NamedIdentity{
		keyIdentity("demo", "abcdefgh", "alice", key, nil),
		keyIdentity("demo", "expired1", "old", "weft_expired1_x", timestamppb.New(now.Add(-time.Second))),
		keyIdentity("a", "claimed12", "x", "weft_claimed12_x", nil),
		keyIdentity("b", "claimed12", "y", "weft_claimed12_y", nil),
		mtlsIdentity("demo", good.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, ""),
	}
	loop, far := netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddrPort("10.0.0.1:9")
	i := CompileIdentities(ids, nil, false)
	trusting := CompileIdentities(ids, nil, true)
	byURI := CompileIdentities([]NamedIdentity{mtlsIdentity("demo", good.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_URI_SAN, "spiffe://x/ns/demo/")}, nil, false)
	for name, tc := range map[string]struct {
		i    *Identities
		c    Credentials
		want string // the principal; "" for refused
	}{
		"key":                          {i, Credentials{Bearer: key, Peer: far}, "demo/alice"},
		"wrong secret":                 {i, Credentials{Bearer: "weft_abcdefgh_s3creT", Peer: far}, ""},
		"secret of another":            {i, Credentials{Bearer: "weft_expired1_s3cret", Peer: far}, ""},
		"no secret":                    {i, Credentials{Bearer: "weft_abcdefgh", Peer: far}, ""},
		"empty secret":                 {i, Credentials{Bearer: "weft_abcdefgh_", Peer: far}, ""},
		"unknown id":                   {i, Credentials{Bearer: "weft_zzzzzzzz_s3cret", Peer: far}, ""},
		"another scheme":               {i, Credentials{Bearer: "eyJhbGciOiJub25lIn0.e30.", Peer: far}, ""},
		"huge":                         {i, Credentials{Bearer: "weft_abcdefgh_" + strings.Repeat("x", 1<<20), Peer: far}, ""},
		"expired":                      {i, Credentials{Bearer: "weft_expired1_x", Peer: far}, ""},
		"claimed twice, first":         {i, Credentials{Bearer: "weft_claimed12_x", Peer: far}, ""},
		"claimed twice, second":        {i, Credentials{Bearer: "weft_claimed12_y", Peer: far}, ""},
		"nothing":                      {i, Credentials{Peer: far}, ""},
		"nothing, loopback":            {i, Credentials{Peer: loop}, ""},
		"trusted loopback":             {trusting, Credentials{Peer: loop}, Local},
		"nothing, Unix socket":         {i, Credentials{Unix: true}, ""},
		"trusted Unix socket":          {trusting, Credentials{Unix: true}, Local},
		"wrong key over Unix socket":   {trusting, Credentials{Bearer: "weft_x", Unix: true}, ""},
		"mapped loopback":              {trusting, Credentials{Peer: netip.MustParseAddrPort("[::ffff:127.0.0.1]:9")}, Local},
		"trusting, from afar":          {trusting, Credentials{Peer: far}, ""},
		"wrong key is not loopback":    {trusting, Credentials{Bearer: "weft_x", Peer: loop}, ""},
		"certificate":                  {i, Credentials{Certificates: good.leaf(t, nil), Peer: far}, "demo/svc"},
		"certificate of another CA":    {i, Credentials{Certificates: other.leaf(t, nil), Peer: far}, ""},
		"bad certificate, loopback":    {trusting, Credentials{Certificates: other.leaf(t, nil), Peer: loop}, ""},
		"expired certificate":          {i, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), Peer: far}, ""},
		"server certificate":           {i, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), Peer: far}, ""},
		"name of another namespace":    {i, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.Subject.CommonName = "other/root" }), Peer: far}, ""},
		"name local":                   {i, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.Subject.CommonName = Local }), Peer: far}, ""},
		"name wildcard":                {i, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.Subject.CommonName = "*" }), Peer: far}, ""},
		"URI":                          {byURI, Credentials{Certificates: good.leaf(t, func(c *x509.Certificate) { c.URIs = []*url.URL{uri} }), Peer: far}, "demo/svc2"},
		"URI wanted, none":             {byURI, Credentials{Certificates: good.leaf(t, nil), Peer: far}, ""},
		"key and certificate disagree": {i, Credentials{Bearer: key, Certificates: good.leaf(t, nil), Peer: far}, ""},
		"key and certificate agree":    {i, Credentials{Bearer: key, Certificates: good.leaf(t, func(c *x509.Certificate) { c.Subject.CommonName = "alice" }), Peer: far}, "demo/alice"},
		"wrong key, good certificate":  {i, Credentials{Bearer: "weft_abcdefgh_x", Certificates: good.leaf(t, nil), Peer: far}, ""},
	} {
		p, err := tc.i.Authenticate(t.Context(), tc.c, now)
		switch {
		case tc.want == "" && (err == nil || fault.ClassOf(err) != fault.Unauthenticated):
			t.Errorf("%s: got %v, %v; want a refusal", name, p, err)
		case tc.want != "" && (err != nil || p.String() != tc.want):
			t.Errorf("%s: got %v, %v; want %s", name, p, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "abcdefgh")) {
			t.Errorf("%s: the error tells what was shown: %v", name, err)
		}
	}
}

// FuzzAPIKey: no other string is a key, and none is told in an error.
func FuzzAPIKey(f *testing.F) {
	const key = "weft_abcdefgh_s3cret"
	i := CompileIdentities([]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key, nil)}, nil, false)
	for _, s := range []string{key, "weft_abcdefgh_", "weft__", "weft_abcdefgh_s3cret ", "WEFT_abcdefgh_s3cret", "weft_\x00_x", strings.Repeat("weft_", 1000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := i.Authenticate(t.Context(), Credentials{Bearer: s}, time.Now())
		if (s == key) != (err == nil) || s == key && p.String() != "demo/alice" {
			t.Errorf("%q is %v, %v", s, p, err)
		}
		if err != nil && len(s) > 8 && strings.Contains(err.Error(), s) {
			t.Errorf("the error tells the key: %v", err)
		}
	})
}

// TestNoEnd: credentials that end when no int64 of nanoseconds does are good until then.
func TestNoEnd(t *testing.T) {
	never := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	ca := newCA(t)
	ca.cert.NotAfter = never
	i := CompileIdentities([]NamedIdentity{
		mtlsIdentity("demo", ca.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, ""),
		keyIdentity("demo", "abcdefgh", "alice", "weft_abcdefgh_s3cret", timestamppb.New(never)),
		keyIdentity("demo", "ancientk", "eve", "weft_ancientk_s3cret", timestamppb.New(time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC))),
	}, nil, false)
	now := time.Now()
	for name, c := range map[string]Credentials{
		"certificate": {Certificates: ca.leaf(t, func(c *x509.Certificate) { c.NotAfter = never })},
		"key":         {Bearer: "weft_abcdefgh_s3cret"},
	} {
		p, err := i.Authenticate(t.Context(), c, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, err := i.Current(p, now); err != nil {
			t.Errorf("%s: it is not good any more: %v", name, err)
		}
	}
	if _, err := i.Authenticate(t.Context(), Credentials{Bearer: "weft_ancientk_s3cret"}, now); err == nil {
		t.Error("a key that has expired in 1600 is good")
	}
	if at := expires(never); at != math.MaxInt64 {
		t.Errorf("a token that ends in 9999 expires at %d", at)
	}
}

// TestAuthorityEnds: who came with a certificate passes until that or its authority ends,
// whichever is first.
func TestAuthorityEnds(t *testing.T) {
	now := time.Now()
	ca := newCA(t)
	i := CompileIdentities([]NamedIdentity{mtlsIdentity("demo", ca.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")}, nil, false)
	for name, after := range map[string]time.Duration{"the certificate is first": -time.Minute, "the authority is first": time.Hour} {
		ends := ca.cert.NotAfter.Add(after)
		chain := ca.leaf(t, func(c *x509.Certificate) { c.NotAfter = ends })
		if ends.After(ca.cert.NotAfter) {
			ends = ca.cert.NotAfter
		}
		p, err := i.Authenticate(t.Context(), Credentials{Certificates: chain}, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.Current(p, ends.Add(-time.Second)); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		if _, err := i.Current(p, ends.Add(time.Second)); err == nil {
			t.Errorf("%s: what is open goes on", name)
		}
		if _, err := i.Authenticate(t.Context(), Credentials{Certificates: chain}, ends.Add(time.Second)); err == nil {
			t.Errorf("%s: what comes passes", name)
		}
	}
}

func TestRefresh(t *testing.T) {
	now := time.Now()
	const key = "weft_abcdefgh_s3cret"
	authority := newCA(t)
	first := CompileIdentities([]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key, nil),
		mtlsIdentity("demo", authority.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")}, nil, true)
	byKey, err := first.Authenticate(t.Context(), Credentials{Bearer: key}, now)
	if err != nil {
		t.Fatal(err)
	}
	byCert, err := first.Authenticate(t.Context(), Credentials{Certificates: authority.leaf(t, nil)}, now)
	if err != nil {
		t.Fatal(err)
	}
	more := keyIdentity("demo", "abcdefgh", "alice", key, nil)
	more.Spec.GetApiKeys().Keys[0].Groups = []string{"admins"}
	for name, tc := range map[string]struct {
		ids  []NamedIdentity
		p    *Principal
		ok   bool
		want string
	}{
		"key stays":          {[]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key, nil)}, byKey, true, "demo/g"},
		"groups changed":     {[]NamedIdentity{more}, byKey, true, "demo/admins"},
		"key gone":           {nil, byKey, false, ""},
		"key rotated":        {[]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key+"2", nil)}, byKey, false, ""},
		"key of someone":     {[]NamedIdentity{keyIdentity("demo", "abcdefgh", "bob", key, nil)}, byKey, false, ""},
		"key expired":        {[]NamedIdentity{keyIdentity("demo", "abcdefgh", "alice", key, timestamppb.New(now))}, byKey, false, ""},
		"authority gone":     {nil, byCert, false, ""},
		"authority replaced": {[]NamedIdentity{mtlsIdentity("demo", newCA(t).pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")}, byCert, false, ""},
		"authority stays":    {[]NamedIdentity{mtlsIdentity("demo", authority.pem, configv1.PrincipalSource_PRINCIPAL_SOURCE_COMMON_NAME, "")}, byCert, true, "demo/m"},
	} {
		p, err := CompileIdentities(tc.ids, nil, false).Refresh(tc.p, now)
		if (err == nil) != tc.ok || tc.ok && p.Groups[0] != tc.want || !tc.ok && fault.From(err).Reason != "credentials-revoked" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := CompileIdentities(nil, nil, false).Refresh(&Principal{Name: Local}, now); err == nil {
		t.Error("local is valid where loopback is not trusted")
	}
}

func BenchmarkAuthorize(b *testing.B) {
	r := CompileRules(rules(
		&configv1.AccessRule{Name: "a", Effect: allow, Principals: []string{"alice"}, Actions: []configv1.Action{publish}, Topics: []string{"orders.>"}},
		&configv1.AccessRule{Name: "b", Effect: deny, Principals: []string{"bob"}, Actions: []configv1.Action{publish}, Topics: []string{"orders.>"}},
	), nil)
	p := &Principal{Namespace: "demo", Name: "alice"}
	b.ReportAllocs()
	for b.Loop() {
		if !r.Authorize(p, Publish, "demo", "orders.new").Allowed {
			b.Fatal("denied")
		}
	}
}
