// Package registrytest is the suite that every registry passes: each behaviour
// of the contract in package registry.
package registrytest

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/registry"
)

// patience bounds what a case waits for.
const patience = time.Minute

// Proxy is something that can be registered: it answers /readyz at its health
// port as Ready says.
type Proxy struct {
	registry.Instance
	Ready atomic.Bool
}

// NewProxy makes a Proxy that is ready, with ports from grpc on.
func NewProxy(t *testing.T, id string, grpc uint32) *Proxy {
	t.Helper()
	p := &Proxy{}
	p.Ready.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || !p.Ready.Load() {
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

// Await watches service until its set fits.
func Await(t *testing.T, r registry.Registry, service, what string, fits func([]registry.Instance) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last []registry.Instance
	for set := range r.Watch(ctx, service) {
		if last = set; fits(set) {
			return
		}
	}
	t.Fatalf("%s: not seen; there is %+v", what, last)
}

// Health fits a set by its ids and whether they are healthy ("one true").
func Health(want ...string) func([]registry.Instance) bool {
	return func(set []registry.Instance) bool {
		var got []string
		for _, i := range set {
			got = append(got, i.ID+" "+strconv.FormatBool(i.Healthy))
		}
		return strings.Join(got, ",") == strings.Join(want, ",")
	}
}

// Run runs the suite on an open registry, in a service that nobody else has. It
// closes the registry.
func Run(t *testing.T, r registry.Registry, service string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	one, two := NewProxy(t, "one", 17001), NewProxy(t, "two", 17003)
	reconcile := func(is ...registry.Instance) {
		t.Helper()
		if err := r.Reconcile(ctx, service, is); err != nil {
			t.Fatal(err)
		}
	}
	reconcile(one.Instance, two.Instance)
	Await(t, r, service, "both alive", Health("one true", "two true"))
	Await(t, r, service, "everything that is known of one", func(set []registry.Instance) bool {
		i := set[0]
		return i.Host == "127.0.0.1" && i.Zone == "z1" && i.Weight == 200 && i.Version == "v1" && len(i.Namespaces) == 2 && i.Ports["http"] == 17002 && i.Ports["grpc"] == 17001
	})
	// Draining: its readiness fails, the registry notices by itself.
	two.Ready.Store(false)
	Await(t, r, service, "one that drains", Health("one true", "two false"))
	// Reconciling again says nothing of its health, and a change carries over
	// what was seen.
	two.Version = "v2"
	reconcile(one.Instance, two.Instance)
	Await(t, r, service, "the change", func(set []registry.Instance) bool {
		return Health("one true", "two false")(set) && set[1].Version == "v2"
	})
	two.Ready.Store(true)
	Await(t, r, service, "one that is back", Health("one true", "two true"))
	// One leaves; the last one is only ever replaced.
	reconcile(one.Instance)
	Await(t, r, service, "one that left", Health("one true"))
	reconcile()
	Await(t, r, service, "the last one", Health("one true"))
	reconcile(two.Instance)
	Await(t, r, service, "its replacement", Health("two true"))
	// Another service is another set.
	Await(t, r, service+"x", "a service that has nobody", func(set []registry.Instance) bool { return len(set) == 0 })
	// What cannot be registered is an error, stays as it was, and holds up nobody.
	moved, sameAddress := two.Instance, one.Instance
	moved.Ports, sameAddress.ID = map[string]uint32{"grpc": 17003}, "same"
	if err := r.Reconcile(ctx, service, []registry.Instance{{ID: "bad"}, one.Instance, sameAddress, moved}); err == nil {
		t.Error("an instance without host, one without a health port, and two at one address are registered")
	}
	Await(t, r, service, "the good ones", Health("one true", "two true"))
	// It moves: there is one of it, at the new ports.
	elsewhere := NewProxy(t, "two", 17007)
	reconcile(one.Instance, elsewhere.Instance)
	Await(t, r, service, "its new place", func(set []registry.Instance) bool {
		return Health("one true", "two true")(set) && set[1].Ports["grpc"] == 17007
	})
	// A watch ends with its context, and with the registry.
	wctx, wcancel := context.WithCancel(ctx)
	defer wcancel()
	for range r.Watch(wctx, service) {
		wcancel()
	}
	ended := make(chan struct{})
	began := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		for range r.Watch(ctx, service) {
			select {
			case began <- struct{}{}:
			default:
			}
		}
	}()
	<-began
	if err := r.Close(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("the watch goes on after Close")
	}
}
