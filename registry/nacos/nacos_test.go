package nacos

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/registry/registrytest"
)

func TestMain(m *testing.M) { os.Exit(servers.DriverMain(m)) }

func open(t *testing.T, password string) *Registry {
	t.Helper()
	return openWith(t, Config{URL: "http://" + servers.SharedNacos(t) + "/nacos", Credentials: func() (string, string, error) { return servers.NacosUser, password, nil }})
}

func TestConformance(t *testing.T) {
	registrytest.Run(t, open(t, servers.NacosPassword), servers.Namespace(t))
}

func TestWrongPassword(t *testing.T) {
	r := open(t, "wrong")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	err := r.Reconcile(ctx, servers.Namespace(t), []registry.Instance{registrytest.NewProxy(t, "one", 17001).Instance})
	if err == nil || !strings.Contains(err.Error(), "log-in") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error is %v", err)
	}
	for set, err := range r.Watch(ctx, "x") {
		if err == nil || len(set) != 0 {
			t.Errorf("a watch gives %v, %v", set, err)
		}
		break
	}
}

// TestWrongURL: neither another path nor another server passes for a password
// that is wrong.
func TestWrongURL(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }))
	t.Cleanup(page.Close)
	for base, want := range map[string]string{"http://" + servers.SharedNacos(t) + "/elsewhere": "context path", page.URL: "not JSON"} {
		for _, credentials := range []func() (string, string, error){nil, administrator} {
			err := openWith(t, Config{URL: base, Credentials: credentials}).Reconcile(t.Context(), "x", nil)
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, registry.ErrRefused) && want == "context path" {
				t.Errorf("%s: %v", base, err)
			}
		}
	}
}

// TestOutage: while Nacos is down the last known set stays, with an error; the
// watch goes on when it is back, with its data and another key for its tokens; a
// server that lost its data is told all again, the checker too.
func TestOutage(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*servers.StartTimeout)
	defer cancel()
	// A token is good for 3 s, so that some end during the test.
	short := "nacos.core.auth.plugin.nacos.token.expire.seconds=3"
	n, err := servers.StartNacos(ctx, servers.NacosOptions{Properties: []string{short}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}()
	relay := newRelay(t, n.Addr, httptest.NewServer)
	r := openWith(t, Config{URL: relay.URL + "/nacos", Credentials: administrator})
	one, two := registrytest.NewProxy(t, "one", 17001), registrytest.NewProxy(t, "two", 17003)
	both := registrytest.Health("one true", "two true")
	want := []registry.Instance{one.Instance, two.Instance}
	reconcile(t, r, "mesh", want...)
	// What a reader sees meanwhile is never less than there was.
	step := "alive"
	for set, err := range r.Watch(ctx, "mesh") {
		switch {
		case step == "alive" && err == nil && both(set):
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			step = "down"
		case step == "down" && err != nil:
			if !both(set) {
				t.Errorf("while Nacos is down the set is %v", set)
			}
			rotated := "nacos.core.auth.plugin.nacos.token.secret.key=cm90YXRlZC1yb3RhdGVkLXJvdGF0ZWQtcm90YXRlZC1yb3RhdGVk"
			if err := n.Configure(short, rotated); err != nil {
				t.Fatal(err)
			}
			if err := n.Start(ctx); err != nil {
				t.Fatal(err)
			}
			step = "back"
		case step == "back":
			t.Logf("back: %v, %v", set, err)
			if err == nil && both(set) {
				step = "done"
			}
		}
		if step == "done" {
			break
		}
	}
	relay.wrote()
	reconcile(t, r, "mesh", want...)
	if got := relay.wrote(); got != 0 {
		t.Errorf("a server that came back with its data is written to %d times", got)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Reconcile(ctx, "mesh", want); err == nil || errors.Is(err, registry.ErrRefused) {
		t.Errorf("a server that is down: %v", err)
	}
	if err := n.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	reconcile(t, r, "mesh", want...)
	registrytest.Await(t, r, "mesh", "all, on a server without data", both)
	two.Ready.Store(false)
	registrytest.Await(t, r, "mesh", "what its checker sees", registrytest.Health("one true", "two false"))
}
