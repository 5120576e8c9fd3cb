package issuers

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// jwks is the example of RFC 8037.
const jwks = `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

// unknown is a token whose key nobody has.
const unknown = "eyJhbGciOiJFZERTQSIsImtpZCI6IjIifQ.e30.AAAA"

func spec(url string) *configv1.JwtIssuer {
	return &configv1.JwtIssuer{Issuer: "https://issuer", Audiences: []string{"a"}, Keys: &configv1.JwtIssuer_JwksUri{JwksUri: url}}
}

// series counts those of a metric.
func series(t *testing.T, reg *prometheus.Registry, name string) int {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return len(f.Metric)
		}
	}
	return 0
}

// TestIssuers: keys are fetched in the background, a verifier outlives changes
// that do not concern it, and what is gone leaves nothing.
func TestIssuers(t *testing.T) {
	var calls atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		_, _ = w.Write([]byte(jwks))
	}))
	defer s.Close()
	dir := filepath.Join(t.TempDir(), "issuers")
	changed := make(chan struct{}, 10)
	reg := prometheus.NewRegistry()
	m := New(Config{Dir: dir, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Changed: func() { changed <- struct{}{} }, Metrics: reg, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = m.Run(ctx) }()
	first := m.Apply(map[string]*configv1.JwtIssuer{"identity/a/x": spec(s.URL)})
	<-changed
	again := m.Apply(map[string]*configv1.JwtIssuer{"identity/a/x": spec(s.URL), "identity/a/y": spec(s.URL + "/y")})
	<-changed
	if first["identity/a/x"] == nil || again["identity/a/x"] != first["identity/a/x"] {
		t.Error("a change elsewhere has made the verifier anew")
	}
	if n := series(t, reg, "weft_proxy_issuer_keys_fetched_timestamp_seconds"); n != 2 {
		t.Errorf("%d issuers are counted", n)
	}
	files := func() int {
		e, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	if n := files(); n != 2 {
		t.Errorf("%d files are kept", n)
	}
	if out := m.Apply(map[string]*configv1.JwtIssuer{"identity/a/x": spec(s.URL + "/moved")}); out["identity/a/x"] == first["identity/a/x"] {
		t.Error("a changed issuer keeps its verifier")
	}
	<-changed
	cancel()
	<-ended
	if n := files(); n != 1 {
		t.Errorf("%d files are kept of one issuer", n)
	}
	if n := calls.Load(); n != 3 {
		t.Errorf("%d fetches", n)
	}
}

// TestGuarded: an issuer's URL gets a proxy to call no address that push could
// not.
func TestGuarded(t *testing.T) {
	called := atomic.Bool{}
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Store(true) }))
	defer s.Close()
	reg := prometheus.NewRegistry()
	m := New(Config{Log: slog.New(slog.DiscardHandler), Changed: func() {}, Metrics: reg})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = m.Run(ctx) }()
	v := m.Apply(map[string]*configv1.JwtIssuer{"identity/a/x": spec(s.URL)})["identity/a/x"]
	if _, err := v.Verify(t.Context(), unknown); err == nil { // waits for the look
		t.Error("believed")
	}
	cancel()
	<-ended
	if series(t, reg, "weft_proxy_issuer_key_fetches_total") != 1 {
		t.Error("no fetch was counted")
	}
	if called.Load() {
		t.Error("an address that is not public was called")
	}
}
