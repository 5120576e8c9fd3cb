package nacos

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/registry/registrytest"
)

// relay passes everything on to a real Nacos and counts what it is asked.
type relay struct {
	*httptest.Server
	writes, logins atomic.Int64
	// tokenAs, if set, is sent instead of each token.
	tokenAs atomic.Pointer[string]

	mu   sync.Mutex
	urls []string
}

func newRelay(t *testing.T, addr string, start func(http.Handler) *httptest.Server) *relay {
	t.Helper()
	r := &relay{}
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	r.Server = start(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.urls = append(r.urls, req.URL.String())
		r.mu.Unlock()
		switch {
		case strings.HasSuffix(req.URL.Path, "/login"):
			r.logins.Add(1)
		case req.Method != http.MethodGet:
			r.writes.Add(1)
		}
		if as := r.tokenAs.Load(); as != nil && req.Header.Get("accessToken") != "" {
			req.Header.Set("accessToken", *as)
		}
		pass.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

// wrote is how much was written since it was asked last.
func (r *relay) wrote() int64 { return r.writes.Swap(0) }

func administrator() (string, string, error) {
	return servers.NacosUser, servers.NacosPassword, nil
}

func openWith(t *testing.T, cfg Config) *Registry {
	t.Helper()
	cfg.Poll = 100 * time.Millisecond
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// reconcile does so until the test's time is over: a server on a busy machine may
// answer late.
func reconcile(t *testing.T, r *Registry, service string, want ...registry.Instance) {
	t.Helper()
	if err := r.Reconcile(t.Context(), service, want); err != nil {
		t.Fatal(err)
	}
}

// TestCredentials: over TLS with the authorities only that are given when it connects; the password and the
// token are in no URL and no error; a refused one says so, and a corrected one
// is taken; a token that the server takes no more is replaced, once for all calls.
func TestCredentials(t *testing.T) {
	r := newRelay(t, servers.SharedNacos(t), httptest.NewTLSServer)
	service, one := servers.Namespace(t), registrytest.NewProxy(t, "one", 17001)
	base := r.URL + "/nacos"
	stranger := openWith(t, Config{URL: base, Credentials: administrator})
	if err := stranger.Reconcile(t.Context(), service, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of unknown authorities: %v", err)
	}
	var password atomic.Value
	password.Store("not-the-password")
	var roots atomic.Pointer[x509.CertPool] // as a file that rotates
	roots.Store(x509.NewCertPool())
	n := openWith(t, Config{URL: base, TLS: func() *tls.Config { return &tls.Config{RootCAs: roots.Load(), MinVersion: tls.VersionTLS12} },
		Credentials: func() (string, string, error) { return servers.NacosUser, password.Load().(string), nil }})
	if err := n.Reconcile(t.Context(), service, nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a server of other authorities than the file's: %v", err)
	}
	trusted := x509.NewCertPool()
	trusted.AddCert(r.Certificate())
	roots.Store(trusted)
	err := n.Reconcile(t.Context(), service, []registry.Instance{one.Instance})
	if !errors.Is(err, registry.ErrRefused) || strings.Contains(err.Error(), "not-the-password") {
		t.Errorf("a wrong password: %v", err)
	}
	password.Store(servers.NacosPassword)
	reconcile(t, n, service, one.Instance)
	if r.wrote() == 0 {
		t.Error("nothing was written: the relay is not in the way")
	}

	// The server's key was rotated: it takes none of its old tokens.
	n.client.mu.Lock()
	token := n.client.token
	n.client.token = strings.ToUpper(token)
	n.client.mu.Unlock()
	r.logins.Store(0)
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			if _, err := n.list(t.Context(), service); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if got := r.logins.Load(); got != 1 {
		t.Errorf("8 calls with a token that is taken no more logged in %d times", got)
	}
	// It takes no token at all, though it gives some.
	bad := "nonsense"
	r.tokenAs.Store(&bad)
	if _, err := n.list(t.Context(), service); !errors.Is(err, registry.ErrRefused) {
		t.Errorf("a token that is never taken: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.urls {
		if strings.Contains(u, servers.NacosPassword) || strings.Contains(u, token) || strings.Contains(strings.ToLower(u), "token") {
			t.Errorf("a URL has a secret: %s", u)
		}
	}
}

// TestRedirect: the password follows nobody's redirect.
func TestRedirect(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("it is sent %s", r.URL) }))
	t.Cleanup(thief.Close)
	s := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	t.Cleanup(s.Close)
	n := openWith(t, Config{URL: s.URL, Credentials: administrator})
	if err := n.Reconcile(t.Context(), "x", nil); err == nil {
		t.Error("a redirect is an answer")
	}
}

// TestMany: a thousand proxies in a namespace and group of Nacos's; what is
// written is only what is missing or has changed.
func TestMany(t *testing.T) {
	r := newRelay(t, servers.SharedNacos(t), httptest.NewServer)
	service := servers.Namespace(t)
	// Namespaces of Nacos are made by its administrator.
	admin := openWith(t, Config{URL: r.URL + "/nacos", Credentials: administrator})
	const namespace = "weft-test"
	err := admin.client.call(t.Context(), http.MethodPost, "/v3/admin/core/namespace", url.Values{"customNamespaceId": {namespace}, "namespaceName": {namespace}}, nil)
	if err != nil && !strings.Contains(err.Error(), "already exist") {
		t.Fatal(err)
	}
	n := openWith(t, Config{URL: r.URL + "/nacos", Credentials: administrator, Namespace: namespace, Group: "MESHES"})
	one := registrytest.NewProxy(t, "p", 20000)
	var all []registry.Instance
	for i := range uint32(1000) {
		p := one.Instance
		p.ID, p.Ports = fmt.Sprintf("p%04d", i), map[string]uint32{"grpc": 20000 + i, "health": one.Ports["health"]}
		all = append(all, p)
	}
	t.Cleanup(func() { _ = n.Reconcile(context.Background(), service, nil) })
	r.wrote()
	begin := time.Now()
	reconcile(t, n, service, all...)
	t.Logf("%d proxies registered and read back in %v", len(all), time.Since(begin).Round(time.Millisecond))
	if got := r.wrote(); got < 1002 || got > 2*1002 {
		t.Errorf("%d writes for a service, a checker and 1000 proxies", got)
	}
	step := func(what string, want int64, change func()) {
		t.Helper()
		change()
		begin := time.Now()
		reconcile(t, n, service, all...)
		// What is not seen at once is written once more.
		if got := r.wrote(); got < want || got > 2*want {
			t.Errorf("%s: %d writes, want %d", what, got, want)
		}
		t.Logf("%s: %v", what, time.Since(begin).Round(time.Millisecond))
	}
	step("nothing changed", 0, func() {})
	step("one changed", 1, func() { all[500].Version = "v2" })
	step("one left", 1, func() { all = all[1:] })
	if set, err := admin.list(t.Context(), service); err != nil || len(set) != 0 {
		t.Errorf("another namespace has %d of them: %v", len(set), err)
	}
}

// TestMetadata: what fits into Nacos's bound is registered, what does not is an
// error that says so and holds up nobody.
func TestMetadata(t *testing.T) {
	service := servers.Namespace(t)
	n := openWith(t, Config{URL: "http://" + servers.SharedNacos(t) + "/nacos", Credentials: administrator})
	one, full, over := registrytest.NewProxy(t, "one", 17001).Instance, registrytest.NewProxy(t, "full", 17003).Instance, registrytest.NewProxy(t, "over", 17005).Instance
	full.Namespaces = nil
	e := entryOf(full)
	full.Namespaces = []string{strings.Repeat("n", maxMetadata-e.size())}
	over.Namespaces = []string{full.Namespaces[0] + "n"}
	err := n.Reconcile(t.Context(), service, []registry.Instance{over, one, full})
	if err == nil || !strings.Contains(err.Error(), `instance "over" has 1025 bytes`) {
		t.Errorf("1025 bytes of metadata: %v", err)
	}
	registrytest.Await(t, n, service, "the others", registrytest.Health("full true", "one true"))
	// What only Nacos refuses is told in its words.
	long := entryOf(one)
	long.Metadata[keyZone] = strings.Repeat("z", maxMetadata)
	if err := n.write(t.Context(), http.MethodPost, service, &long, nil); err == nil || !strings.Contains(err.Error(), "should not exceed") {
		t.Errorf("Nacos refuses: %v", err)
	}
}

// asItWas reports whether Nacos has e, and its checker.
func asItWas(t *testing.T, n *Registry, service string, e *entry) bool {
	t.Helper()
	s, have, err := n.read(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	c, old := s.Clusters[e.Cluster], have[e.place()]
	return c.Checker == wantedChecker() && !c.InstancePort && old != nil && old.same(e)
}

// TestMended: what others did to the service is put right at the next pass, and
// costs nothing from then on.
func TestMended(t *testing.T) {
	r := newRelay(t, servers.SharedNacos(t), httptest.NewServer)
	service, one := servers.Namespace(t), registrytest.NewProxy(t, "one", 17001)
	n := openWith(t, Config{URL: r.URL + "/nacos", Credentials: administrator})
	reconcile(t, n, service, one.Instance)
	registrytest.Await(t, n, service, "it", registrytest.Health("one true"))
	e := entryOf(one.Instance)
	console := func(method, path string, more ...string) {
		t.Helper()
		if err := n.client.call(t.Context(), method, path, n.params(service, append([]string{"clusterName", e.Cluster}, more...)...), nil); err != nil {
			t.Fatal(err)
		}
		for asItWas(t, n, service, &e) {
			if t.Context().Err() != nil {
				t.Fatalf("%s %v is not seen", method, more)
			}
		}
		r.wrote()
	}
	mended := func(what string) {
		t.Helper()
		reconcile(t, n, service, one.Instance)
		if r.wrote() == 0 {
			t.Errorf("%s: nothing was written", what)
		}
		if !asItWas(t, n, service, &e) {
			t.Errorf("%s: it is not as it was", what)
		}
		reconcile(t, n, service, one.Instance)
		if got := r.wrote(); got != 0 {
			t.Errorf("%s: %d writes once it is mended", what, got)
		}
	}
	instance := []string{"ip", e.IP, "port", "17001", "ephemeral", "false"}
	// A service that Nacos cleaned gets the checker that dead proxies pass.
	console(http.MethodPut, "/v3/admin/ns/cluster", "checkPort", "80", "useInstancePort4Check", "true", "healthChecker", `{"type":"TCP"}`)
	mended("another checker")
	console(http.MethodDelete, "/v3/admin/ns/instance", instance...)
	mended("removed")
	// A change in the console prevails over registrations.
	console(http.MethodPut, "/v3/admin/ns/instance", append(instance, "weight", "7", "metadata", `{"weft-id":"someone else"}`, "enabled", "true")...)
	mended("changed")
	console(http.MethodPut, "/v3/admin/ns/instance", append(instance, "weight", "7", "metadata", `{}`, "enabled", "true")...)
	mended("not ours any more")
	// But who is disabled there stays so: that is an operator's will.
	registrytest.Await(t, n, service, "healthy again", registrytest.Health("one true"))
	if err := n.write(t.Context(), http.MethodPut, service, &e, &entry{Healthy: true}); err != nil {
		t.Fatal(err)
	}
	registrytest.Await(t, n, service, "disabled", registrytest.Health("one false"))
	one.Version = "v2"
	reconcile(t, n, service, one.Instance)
	registrytest.Await(t, n, service, "disabled still", func(set []registry.Instance) bool {
		return registrytest.Health("one false")(set) && set[0].Version == "v2"
	})
}

// TestOutlives: whoever registered is gone for longer than Nacos's own time-outs
// for instances that must show themselves; the instance stays, and its health is
// what Nacos sees.
func TestOutlives(t *testing.T) {
	service, one := servers.Namespace(t), registrytest.NewProxy(t, "one", 17001)
	cfg := Config{URL: "http://" + servers.SharedNacos(t) + "/nacos", Credentials: administrator}
	controlPlane, n := openWith(t, cfg), openWith(t, cfg)
	reconcile(t, controlPlane, service, one.Instance)
	registrytest.Await(t, n, service, "it", registrytest.Health("one true"))
	if err := controlPlane.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nacos removes this one when its time-outs have passed: it never shows itself.
	clock := service + "-clock"
	if err := n.client.call(t.Context(), http.MethodPost, "/v3/client/ns/instance", n.params(clock, "ip", "127.0.0.1", "port", "9", "ephemeral", "true"), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	seen := false
	for {
		var list []entry
		if err := n.client.call(ctx, http.MethodGet, "/v3/client/ns/instance/list", n.params(clock), &list); err != nil {
			t.Fatal(err)
		}
		seen = seen || len(list) > 0
		if seen && len(list) == 0 {
			break
		}
		wait := time.NewTimer(time.Second)
		select {
		case <-wait.C:
		case <-ctx.Done():
			t.Fatal("Nacos keeps an instance that never shows itself")
		}
	}
	registrytest.Await(t, n, service, "it, after Nacos's time-outs", registrytest.Health("one true"))
	one.Ready.Store(false)
	registrytest.Await(t, n, service, "its health by Nacos", registrytest.Health("one false"))
}
