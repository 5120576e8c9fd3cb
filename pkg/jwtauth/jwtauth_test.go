package jwtauth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func TestAccepted(t *testing.T) {
	k := keys()
	v := verifier(t, Config{JWKS: set(t, map[string]crypto.Signer{"r": k.rsa, "e": k.ec, "e3": k.ec384, "d": k.ed})})
	for _, tt := range []struct {
		alg jose.SignatureAlgorithm
		key any
		kid string
	}{
		{jose.RS256, k.rsa, "r"}, {jose.RS384, k.rsa, "r"}, {jose.RS512, k.rsa, "r"}, {jose.PS256, k.rsa, "r"}, {jose.PS384, k.rsa, "r"},
		{jose.PS512, k.rsa, "r"}, {jose.ES256, k.ec, "e"}, {jose.ES384, k.ec384, "e3"}, {jose.EdDSA, k.ed, "d"},
		// Without a kid where only one key is for the algorithm.
		{jose.EdDSA, k.ed, ""},
	} {
		for range 2 { // the second time from what is remembered
			got, err := v.Verify(t.Context(), sign(t, tt.alg, tt.key, tt.kid, good()))
			if err != nil {
				t.Fatalf("%s: %v", tt.alg, err)
			}
			if got.Principal != "alice" || strings.Join(got.Groups, ",") != "dev,ops" || !got.Expires.Equal(noon.Add(time.Hour)) {
				t.Fatalf("%s: %+v", tt.alg, got)
			}
		}
	}
	for name, c := range map[string]claims{
		"several audiences":    good(claims{"aud": []string{"x", "other"}}),
		"no groups":            good(claims{"groups": nil}),
		"one group":            good(claims{"groups": "dev"}),
		"a begin that differs": good(claims{"nbf": noon.Add(20 * time.Second).Unix(), "iat": noon.Add(20 * time.Second).Unix()}),
	} {
		if _, err := v.Verify(t.Context(), sign(t, jose.EdDSA, k.ed, "d", c)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	k := keys()
	jwks := set(t, map[string]crypto.Signer{"r": k.rsa, "e": k.ec, "d": k.ed, "weak": k.weak})
	v := verifier(t, Config{JWKS: jwks})
	der, err := x509.MarshalPKIXPublicKey(k.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	hs := func(secret []byte) func(string) []byte {
		return func(signed string) []byte {
			m := hmac.New(sha256.New, secret)
			m.Write([]byte(signed))
			return m.Sum(nil)
		}
	}
	none := func(string) []byte { return nil }
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	ed := func(c claims) string { return sign(t, jose.EdDSA, k.ed, "d", c) }
	with := func(key any, header map[jose.HeaderKey]any) string {
		return signPayload(t, jose.EdDSA, key, "d", payload, header)
	}
	whole := ed(good())
	parts := strings.Split(whole, ".")
	flip := func(s string) string { // stays base64url
		if s[0] == 'A' {
			return "B" + s[1:]
		}
		return "A" + s[1:]
	}
	other := enc([]byte(`{"iss":"https://issuer.example","aud":"weft","sub":"root","exp":4102444800}`))
	for name, tt := range map[string]struct {
		token string
		want  Reason
	}{
		"empty":                {"", Malformed},
		"not a token":          {"a.b.c", Malformed},
		"two parts":            {parts[0] + "." + parts[1], Malformed},
		"five parts (a JWE)":   {whole + ".a.b", Malformed},
		"JSON serialisation":   {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, Malformed},
		"detached payload":     {parts[0] + ".." + parts[2], Signature},
		"giant":                {strings.Repeat("a", MaxToken+1), Malformed},
		"giant, right":         {ed(good(claims{"x": strings.Repeat("a", MaxToken)})), Malformed},
		"alg none":             {raw(`{"alg":"none"}`, good(), none), Algorithm},
		"alg None":             {raw(`{"alg":"None","kid":"r"}`, good(), none), Algorithm},
		"no alg":               {raw(`{"kid":"r"}`, good(), none), Algorithm},
		"HMAC with public PEM": {raw(`{"alg":"HS256","kid":"r"}`, good(), hs(public)), Algorithm},
		"HMAC with public DER": {raw(`{"alg":"HS256","kid":"r"}`, good(), hs(der)), Algorithm},
		"HMAC with the set":    {raw(`{"alg":"HS256","kid":"r"}`, good(), hs(jwks)), Algorithm},
		"HMAC with nothing":    {raw(`{"alg":"HS256","kid":"../../dev/null"}`, good(), hs(nil)), Algorithm},
		"no signature":         {parts[0] + "." + parts[1] + ".", Signature},
		"other signature":      {parts[0] + "." + parts[1] + "." + flip(parts[2]), Signature},
		"other payload":        {parts[0] + "." + other + "." + parts[2], Signature},
		"other key, same kid":  {sign(t, jose.EdDSA, stranger, "d", good()), Signature},
		"alg of another key":   {sign(t, jose.ES256, k.ec, "r", good()), Algorithm},
		"weak key":             {sign(t, jose.RS256, k.weak, "weak", good()), UnknownKey},
		"kid path":             {sign(t, jose.EdDSA, k.ed, "../d", good()), UnknownKey},
		"kid SQL":              {sign(t, jose.EdDSA, k.ed, "d' OR '1'='1", good()), UnknownKey},
		"kid URL":              {sign(t, jose.EdDSA, k.ed, "https://evil.example/k", good()), UnknownKey},
		"embedded jwk":         {with(stranger, map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: stranger.Public()}}), Signature},
		"crit":                 {with(k.ed, map[jose.HeaderKey]any{"crit": []string{"exp"}, "exp": 1}), Malformed},
		"crit of b64":          {with(k.ed, map[jose.HeaderKey]any{"crit": []string{"b64"}, "b64": true}), Malformed},
		"other issuer":         {ed(good(claims{"iss": "https://issuer.example/"})), WrongIssuer},
		"no issuer":            {ed(good(claims{"iss": nil})), WrongIssuer},
		"issuer list":          {ed(good(claims{"iss": []string{"https://issuer.example"}})), WrongIssuer},
		"other audience":       {ed(good(claims{"aud": "weft2"})), WrongPublic},
		"no audience":          {ed(good(claims{"aud": nil})), WrongPublic},
		"audience not text":    {ed(good(claims{"aud": []any{"weft", 1}})), WrongPublic},
		"expired":              {ed(good(claims{"exp": noon.Unix()})), Expired},
		"no end":               {ed(good(claims{"exp": nil})), Expired},
		"end as text":          {ed(good(claims{"exp": "4102444800"})), Malformed},
		"end below zero":       {ed(good(claims{"exp": -1})), Malformed},
		"end beyond time":      {ed(good(claims{"exp": 1e300})), Malformed},
		"not yet":              {ed(good(claims{"nbf": noon.Add(31 * time.Second).Unix()})), NotYet},
		"made in the future":   {ed(good(claims{"iat": noon.Add(31 * time.Second).Unix()})), NotYet},
		"no principal":         {ed(good(claims{"sub": nil})), BadPrincipal},
		"principal not text":   {ed(good(claims{"sub": 7})), BadPrincipal},
		"principal too long":   {ed(good(claims{"sub": strings.Repeat("a", maxName+1)})), BadPrincipal},
		"principal of control": {ed(good(claims{"sub": "a\nb"})), BadPrincipal},
		"groups not texts":     {ed(good(claims{"groups": map[string]any{"a": 1}})), BadPrincipal},
		"too many groups":      {ed(good(claims{"groups": strings.Split(strings.Repeat("g,", maxGroups)+"g", ",")})), BadPrincipal},
		"claims not an object": {signPayload(t, jose.EdDSA, k.ed, "d", []byte(`["a"]`), nil), Malformed},
		"claims null":          {signPayload(t, jose.EdDSA, k.ed, "d", []byte(`null`), nil), Malformed},
		"claim twice":          {signPayload(t, jose.EdDSA, k.ed, "d", []byte(`{"sub":"a","sub":"b"}`), nil), Malformed},
	} {
		_, err := v.Verify(t.Context(), tt.token)
		if got := reasonOf(err); got != tt.want {
			t.Errorf("%s: %v (reason %q), want reason %q", name, err, got, tt.want)
		}
	}
	// What a token says of where keys are is not looked at: nothing is fetched,
	// and a right token stays right.
	for _, h := range []jose.HeaderKey{"jku", "x5u"} {
		if _, err := v.Verify(t.Context(), with(k.ed, map[jose.HeaderKey]any{h: "https://evil.example/keys"})); err != nil {
			t.Errorf("%s is looked at: %v", h, err)
		}
		if _, err := v.Verify(t.Context(), with(stranger, map[jose.HeaderKey]any{h: "https://evil.example/keys"})); reasonOf(err) != Signature {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// TestErrorsTellNothing: neither a token nor what is in it stands in an error.
func TestErrorsTellNothing(t *testing.T) {
	k := keys()
	v := verifier(t, Config{JWKS: set(t, map[string]crypto.Signer{"d": k.ed})})
	for _, token := range []string{
		sign(t, jose.EdDSA, k.ed, "secret-kid", good()),
		sign(t, jose.EdDSA, k.ed, "d", good(claims{"iss": "secret-issuer"})),
		sign(t, jose.EdDSA, k.ed, "d", good(claims{"aud": "secret-audience"})),
		sign(t, jose.EdDSA, k.ed, "d", good(claims{"sub": "secret\nsubject"})),
		raw(`{"alg":"secret-alg"}`, good(), func(string) []byte { return nil }),
		raw(`{"alg":"EdDSA","jwk":{"kty":"secret-kty"}}`, good(), func(string) []byte { return []byte("x") }),
		"secret.secret.secret",
	} {
		if _, err := v.Verify(t.Context(), token); err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), token[:8]) {
			t.Errorf("the error tells of the token: %v", err)
		}
	}
}

// TestExpiresWhileRemembered: a token that was good does not stay so.
func TestExpiresWhileRemembered(t *testing.T) {
	k := keys()
	var now atomic.Int64
	now.Store(noon.Unix())
	v := verifier(t, Config{JWKS: set(t, map[string]crypto.Signer{"d": k.ed}), Clock: func() time.Time { return time.Unix(now.Load(), 0) }})
	token := sign(t, jose.EdDSA, k.ed, "d", good())
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	now.Add(3599)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	now.Add(1)
	if _, err := v.Verify(t.Context(), token); reasonOf(err) != Expired {
		t.Fatalf("after its end: %v", err)
	}
}

func TestKeySets(t *testing.T) {
	k := keys()
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.ec, KeyID: "e"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		jwks string
		ok   bool
	}{
		"not JSON":       {"{", false},
		"no keys":        {`{"keys":[]}`, false},
		"symmetric":      {`{"keys":[{"kty":"oct","k":"AAAA"}]}`, false},
		"for secrecy":    {strings.Replace(string(set(t, map[string]crypto.Signer{"d": k.ed})), `"kty"`, `"use":"enc","kty"`, 1), false},
		"weak":           {string(set(t, map[string]crypto.Signer{"w": k.weak})), false},
		"too many":       {`{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`, false},
		"too large":      {`{"keys":[],"x":"` + strings.Repeat("a", MaxJWKS) + `"}`, false},
		"one of two":     {`{"keys":[{"kty":"new-kind"},` + strings.TrimPrefix(string(set(t, map[string]crypto.Signer{"d": k.ed})), `{"keys":[`), true},
		"private halves": {string(private), false},
	} {
		if err := CheckJWKS([]byte(tt.jwks)); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Of a private key only the public half stays.
	s, err := parseKeys(private)
	if err != nil || !s.keys[0].IsPublic() {
		t.Fatalf("%+v, %v", s, err)
	}
	// A key for one algorithm is not used for another.
	only := strings.Replace(string(set(t, map[string]crypto.Signer{"r": k.rsa})), `"kty"`, `"alg":"PS256","kty"`, 1)
	v := verifier(t, Config{JWKS: []byte(only)})
	if _, err := v.Verify(t.Context(), sign(t, jose.RS256, k.rsa, "r", good())); reasonOf(err) != Algorithm {
		t.Errorf("RS256 with a key for PS256: %v", err)
	}
}

func TestURLs(t *testing.T) {
	for u, ok := range map[string]bool{
		"https://issuer.example/keys": true, "http://127.0.0.1:1/keys": true, "http://[::1]/k": true, "http://localhost:9/k": true,
		"http://issuer.example/keys": false, "http://127.0.0.1.evil.example/": false, "file:///etc/passwd": false, "https://u:p@issuer.example/": false,
		"https:///keys": false, "https://issuer.example/#f": false, "": false, "https:issuer.example": false, "http://169.254.169.254/": false, "\x7f": false,
	} {
		if err := CheckURL(u); (err == nil) != ok {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// issuer serves a key set over real HTTP.
type issuer struct {
	*httptest.Server
	body  atomic.Pointer[[]byte]
	down  atomic.Bool
	calls atomic.Int32
}

func newIssuer(t *testing.T, jwks []byte) *issuer {
	i := &issuer{}
	i.body.Store(&jwks)
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.calls.Add(1)
		if i.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(*i.body.Load())
	}))
	t.Cleanup(i.Close)
	return i
}

// running starts v.Run and waits for its first look.
func running(t *testing.T, v *Verifier) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	for l, done := v.looks.Load(); l.began.IsZero(); l, done = v.looks.Load() {
		<-done
	}
}

// TestRotation: a token with a new key is accepted at once, by one look, however
// many ask; unknown keys do not make it look again and again.
func TestRotation(t *testing.T) {
	k := keys()
	i := newIssuer(t, set(t, map[string]crypto.Signer{"d": k.ed}))
	v := verifier(t, Config{JWKSURL: i.URL, MinRefresh: time.Nanosecond, Wait: time.Minute})
	running(t, v)
	old, next := sign(t, jose.EdDSA, k.ed, "d", good()), sign(t, jose.ES256, k.ec, "e", good())
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	both := set(t, map[string]crypto.Signer{"d": k.ed, "e": k.ec})
	i.body.Store(&both)
	if _, err := v.Verify(t.Context(), next); err != nil {
		t.Fatalf("after the rotation: %v", err)
	}
	if n := i.calls.Load(); n != 2 {
		t.Fatalf("looked %d times, want 2", n)
	}
	// The old key goes: its tokens do too, remembered or not.
	one := set(t, map[string]crypto.Signer{"e": k.ec})
	i.body.Store(&one)
	if _, err := v.Verify(t.Context(), sign(t, jose.EdDSA, k.ed, "unknown", good())); reasonOf(err) != UnknownKey {
		t.Fatalf("unknown key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old); reasonOf(err) != UnknownKey {
		t.Fatalf("a token of a key that is gone: %v", err)
	}

	limited := verifier(t, Config{JWKSURL: i.URL, MinRefresh: time.Hour, Wait: time.Minute})
	running(t, limited)
	before := i.calls.Load()
	for n := range 50 {
		if _, err := limited.Verify(t.Context(), sign(t, jose.EdDSA, k.ed, fmt.Sprint("guess-", n), good())); reasonOf(err) != UnknownKey {
			t.Fatalf("unknown key: %v", err)
		}
	}
	if n := i.calls.Load() - before; n != 0 {
		t.Fatalf("unknown keys made %d looks within the shortest time", n)
	}
}

// TestOneLookForAll: many that wait for a key share one look.
func TestOneLookForAll(t *testing.T) {
	k := keys()
	jwks := set(t, map[string]crypto.Signer{"d": k.ed})
	var calls atomic.Int32
	inside, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			close(inside)
			<-release
		}
		_, _ = w.Write(jwks)
	}))
	defer s.Close()
	v := verifier(t, Config{JWKSURL: s.URL, Wait: time.Minute, MinRefresh: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = v.Run(ctx) }()
	<-inside
	token := sign(t, jose.EdDSA, k.ed, "d", good())
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := v.Verify(ctx, token); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	all.Wait()
	if n := calls.Load(); n > 2 {
		t.Fatalf("%d looks for 20 that waited", n)
	}
	// A wait is bounded, also by who waits.
	stuck := verifier(t, Config{JWKSURL: "http://127.0.0.1:1/", Wait: time.Hour})
	gone, leave := context.WithCancel(ctx)
	leave()
	if _, err := stuck.Verify(gone, token); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	short := verifier(t, Config{JWKSURL: "http://127.0.0.1:1/", Wait: time.Millisecond})
	if _, err := short.Verify(ctx, token); reasonOf(err) != NoKeys {
		t.Fatalf("%v", err)
	}
}

// TestOutage: while the issuer is away, or answers rubbish, what was there goes
// on, also over a restart.
func TestOutage(t *testing.T) {
	k := keys()
	i := newIssuer(t, set(t, map[string]crypto.Signer{"d": k.ed}))
	cache := filepath.Join(t.TempDir(), "keys.json")
	cfg := Config{JWKSURL: i.URL, CachePath: cache, MinRefresh: time.Nanosecond, Wait: time.Minute}
	v := verifier(t, cfg)
	running(t, v)
	token := sign(t, jose.EdDSA, k.ed, "d", good())
	unknown := sign(t, jose.EdDSA, k.ed, "x", good())
	rubbish := [][]byte{nil, []byte("<html>"), []byte(`{"keys":[]}`), []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`), bytes.Repeat([]byte("["), MaxJWKS+2)}
	for n, body := range rubbish {
		i.body.Store(&body)
		i.down.Store(n == 0)
		if _, err := v.Verify(t.Context(), unknown); reasonOf(err) != UnknownKey { // looks
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Fatalf("answer %d of the issuer made it forget: %v", n, err)
		}
	}
	again := verifier(t, cfg)
	if _, err := again.Verify(t.Context(), token); err != nil {
		t.Fatalf("after a restart without the issuer: %v", err)
	}
	if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	// After a long time, also over a restart, nobody knows what the issuer has
	// withdrawn, until it is back; the clock may also go back.
	for name, v := range map[string]*Verifier{"the one that was there": v, "one after a restart": again} {
		for _, tc := range []struct {
			at   time.Duration
			want Reason
		}{{7 * 24 * time.Hour, ""}, {7*24*time.Hour + time.Second, StaleKeys}, {-time.Hour, ""}} {
			v.cfg.Clock = at(noon.Add(tc.at))
			late := sign(t, jose.EdDSA, k.ed, "d", good(claims{"exp": noon.Add(tc.at + time.Hour).Unix()}))
			if _, err := v.VerifyNow(late); reasonOf(err) != tc.want || tc.want == "" && err != nil {
				t.Errorf("%s, after %v: %v", name, tc.at, err)
			}
		}
	}
	v.cfg.Clock = at(noon.Add(30 * 24 * time.Hour))
	body := set(t, map[string]crypto.Signer{"d": k.ed})
	i.body.Store(&body)
	if _, err := v.Verify(t.Context(), sign(t, jose.EdDSA, k.ed, "d", good(claims{"exp": noon.Add(31 * 24 * time.Hour).Unix()}))); err != nil || !v.Fetched().Equal(noon.Add(30*24*time.Hour)) {
		t.Errorf("when the issuer is back: %v, fetched at %v", err, v.Fetched())
	}
	if info, err := os.Stat(cache); err != nil || !info.ModTime().Equal(v.Fetched()) {
		t.Errorf("%v, %v", info.ModTime(), err)
	}
	// What was kept of another place is not taken, nor what is damaged.
	elsewhere := cfg
	elsewhere.JWKSURL, elsewhere.Wait = i.URL+"/other", time.Millisecond
	if _, err := verifier(t, elsewhere).Verify(t.Context(), token); reasonOf(err) != NoKeys {
		t.Fatalf("keys of another place: %v", err)
	}
	b, err := os.ReadFile(cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cache, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Wait = time.Millisecond
	if _, err := verifier(t, cfg).Verify(t.Context(), token); reasonOf(err) != NoKeys {
		t.Fatalf("a damaged file: %v", err)
	}
}

// TestRedirects: only within the same host.
func TestRedirects(t *testing.T) {
	k := keys()
	i := newIssuer(t, set(t, map[string]crypto.Signer{"d": k.ed}))
	var to atomic.Value
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/here" {
			_, _ = w.Write(*i.body.Load())
			return
		}
		http.Redirect(w, r, to.Load().(string), http.StatusFound)
	}))
	defer s.Close()
	get := urlSource(s.URL+"/keys", nil)
	to.Store("/here")
	if _, err := get(t.Context()); err != nil {
		t.Fatal(err)
	}
	to.Store(i.URL)
	if b, err := get(t.Context()); err == nil {
		t.Fatalf("followed to another host: %s", b)
	}
	to.Store("/round")
	if b, err := get(t.Context()); err == nil {
		t.Fatalf("went round: %s", b)
	}
	if n := i.calls.Load(); n != 0 {
		t.Fatalf("the other host was called %d times", n)
	}
}

func TestFile(t *testing.T) {
	k := keys()
	name := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(name, set(t, map[string]crypto.Signer{"d": k.ed}), 0o600); err != nil {
		t.Fatal(err)
	}
	v := verifier(t, Config{JWKSFile: name, MinRefresh: time.Nanosecond, Wait: time.Minute})
	if _, err := v.Verify(t.Context(), sign(t, jose.EdDSA, k.ed, "d", good())); err != nil {
		t.Fatal(err)
	}
	running(t, v)
	if err := os.WriteFile(name, set(t, map[string]crypto.Signer{"e": k.ec}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), sign(t, jose.ES256, k.ec, "e", good())); err != nil {
		t.Fatal(err)
	}
}

func TestConfigs(t *testing.T) {
	jwks := set(t, map[string]crypto.Signer{"d": keys().ed})
	for name, cfg := range map[string]Config{
		"no issuer":      {Audiences: []string{"a"}, JWKS: jwks},
		"no audience":    {Issuer: "i", JWKS: jwks},
		"empty audience": {Issuer: "i", Audiences: []string{""}, JWKS: jwks},
		"no keys":        {Issuer: "i", Audiences: []string{"a"}},
		"two places":     {Issuer: "i", Audiences: []string{"a"}, JWKS: jwks, JWKSFile: "f"},
		"plain URL":      {Issuer: "i", Audiences: []string{"a"}, JWKSURL: "http://issuer.example/"},
		"bad set":        {Issuer: "i", Audiences: []string{"a"}, JWKS: []byte("{}")},
		"negative":       {Issuer: "i", Audiences: []string{"a"}, JWKS: jwks, Leeway: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// FuzzToken: no token makes the verifier panic, and none is believed that was not
// signed.
func FuzzToken(f *testing.F) {
	k := keys()
	v := verifier(f, Config{JWKS: set(f, map[string]crypto.Signer{"r": k.rsa, "e": k.ec, "d": k.ed})})
	whole := sign(f, jose.EdDSA, k.ed, "d", good())
	for _, s := range []string{whole, sign(f, jose.ES256, k.ec, "e", good()), raw(`{"alg":"none"}`, good(), func(string) []byte { return nil }), "a.b.c", "", whole + "."} {
		f.Add(s)
	}
	// Both signed seeds have this payload.
	signed := strings.Split(whole, ".")[1]
	f.Fuzz(func(t *testing.T, token string) {
		_ = Issuer(token)
		_, err := v.VerifyNow(token)
		if err == nil && strings.Split(token, ".")[1] != signed {
			t.Fatalf("believed: %q", token)
		}
		if err != nil && reasonOf(err) == "" {
			t.Fatalf("without a reason: %v", err)
		}
	})
}

// FuzzJWKS: whatever is served as a key set gives keys that can be used, or an
// error.
func FuzzJWKS(f *testing.F) {
	k := keys()
	f.Add(set(f, map[string]crypto.Signer{"r": k.rsa, "e": k.ec, "d": k.ed}))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":""},{"kty":"oct","k":""}]}`))
	token := sign(f, jose.EdDSA, k.ed, "d", good())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseKeys(b)
		if err != nil {
			return
		}
		for _, key := range s.keys {
			if !key.IsPublic() || algorithmOf(key.Key) == nil {
				t.Fatalf("%T is kept", key.Key)
			}
		}
		_, _ = verifySignature(token, s)
	})
}
