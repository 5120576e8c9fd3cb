package nacos

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/registry"
)

func TestMain(m *testing.M) { os.Exit(servers.Main(m)) }

func open(t *testing.T, password string) *Registry {
	t.Helper()
	r, err := New(Config{URL: "http://" + servers.SharedNacos(t) + "/nacos", Poll: 100 * time.Millisecond,
		Credentials: func() (string, string, error) { return servers.NacosUser, password, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return r
}

// proxy is what Nacos asks whether it lives.
type proxy struct {
	registry.Instance
	ready atomic.Bool
}

func newProxy(t *testing.T, id string, grpc uint32) *proxy {
	t.Helper()
	p := &proxy{}
	p.ready.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || !p.ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	health, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	p.Instance = registry.Instance{ID: id, Host: "127.0.0.1", Zone: "z1", Weight: 200, Version: "v1", Namespaces: []string{"a", "b"},
		Ports: map[string]uint32{"grpc": grpc, "http": grpc + 1, "health": uint32(health)}}
	return p
}

// await watches until the set fits.
func await(t *testing.T, r *Registry, service, what string, fits func([]registry.Instance) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var last []registry.Instance
	for set := range r.Watch(ctx, service) {
		if last = set; fits(set) {
			return
		}
	}
	t.Fatalf("%s: not seen; there is %+v", what, last)
}

func health(want ...string) func([]registry.Instance) bool {
	return func(set []registry.Instance) bool {
		var got []string
		for _, i := range set {
			got = append(got, i.ID+" "+strconv.FormatBool(i.Healthy))
		}
		return strings.Join(got, ",") == strings.Join(want, ",")
	}
}

func TestReconcile(t *testing.T) {
	r := open(t, servers.NacosPassword)
	service := servers.Namespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	one, two := newProxy(t, "one", 17001), newProxy(t, "two", 17003)
	reconcile := func(is ...registry.Instance) {
		t.Helper()
		if err := r.Reconcile(ctx, service, is); err != nil {
			t.Fatal(err)
		}
	}
	reconcile(one.Instance, two.Instance)
	await(t, r, service, "both alive", health("one true", "two true"))
	await(t, r, service, "everything that is known of one", func(set []registry.Instance) bool {
		i := set[0]
		return i.Host == "127.0.0.1" && i.Zone == "z1" && i.Weight == 200 && i.Version == "v1" && len(i.Namespaces) == 2 && i.Ports["http"] == 17002 && i.Ports["grpc"] == 17001
	})
	// Draining: its readiness fails, Nacos notices by itself.
	two.ready.Store(false)
	await(t, r, service, "one that drains", health("one true", "two false"))
	// Reconciling again writes nothing that would say it is alive, and a change
	// carries over what was seen.
	two.Version = "v2"
	reconcile(one.Instance, two.Instance)
	await(t, r, service, "the change", func(set []registry.Instance) bool {
		return health("one true", "two false")(set) && set[1].Version == "v2"
	})
	two.ready.Store(true)
	await(t, r, service, "one that is back", health("one true", "two true"))
	// One leaves; the last one is only ever replaced.
	reconcile(one.Instance)
	await(t, r, service, "one that left", health("one true"))
	reconcile()
	await(t, r, service, "the last one", health("one true"))
	reconcile(two.Instance)
	await(t, r, service, "its replacement", health("two true"))
}

func TestWrongPassword(t *testing.T) {
	r := open(t, "wrong")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := r.Reconcile(ctx, servers.Namespace(t), []registry.Instance{newProxy(t, "one", 17001).Instance})
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

// TestOutage: while Nacos is down the last known set stays, with an error, and
// the watch goes on when it is back.
func TestOutage(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*servers.StartTimeout)
	defer cancel()
	n, err := servers.StartNacos(ctx, servers.NacosOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}()
	r, err := New(Config{URL: "http://" + n.Addr + "/nacos", Poll: 100 * time.Millisecond, Credentials: func() (string, string, error) { return n.User, n.Password, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	one := newProxy(t, "one", 17001)
	for r.Reconcile(ctx, "mesh", []registry.Instance{one.Instance}) != nil { // right credentials may be refused for a while after a start
		if ctx.Err() != nil {
			t.Fatal("it cannot be registered")
		}
	}
	step := "alive"
	for set, err := range r.Watch(ctx, "mesh") {
		switch {
		case step == "alive" && err == nil && health("one true")(set):
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			step = "down"
		case step == "down" && err != nil:
			if !health("one true")(set) {
				t.Errorf("while Nacos is down the set is %v", set)
			}
			if err := n.Start(ctx); err != nil {
				t.Fatal(err)
			}
			step = "back"
		case step == "back" && err == nil && health("one true")(set):
			return
		}
	}
	t.Errorf("the watch ended at step %s", step)
}
