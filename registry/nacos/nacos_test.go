package nacos

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/registry/registrytest"
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

func TestConformance(t *testing.T) {
	registrytest.Run(t, open(t, servers.NacosPassword), servers.Namespace(t))
}

func TestWrongPassword(t *testing.T) {
	r := open(t, "wrong")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
	one := registrytest.NewProxy(t, "one", 17001)
	for r.Reconcile(ctx, "mesh", []registry.Instance{one.Instance}) != nil { // right credentials may be refused for a while after a start
		if ctx.Err() != nil {
			t.Fatal("it cannot be registered")
		}
	}
	step := "alive"
	for set, err := range r.Watch(ctx, "mesh") {
		switch {
		case step == "alive" && err == nil && registrytest.Health("one true")(set):
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			step = "down"
		case step == "down" && err != nil:
			if !registrytest.Health("one true")(set) {
				t.Errorf("while Nacos is down the set is %v", set)
			}
			if err := n.Start(ctx); err != nil {
				t.Fatal(err)
			}
			step = "back"
		case step == "back" && err == nil && registrytest.Health("one true")(set):
			return
		}
	}
	t.Errorf("the watch ended at step %s", step)
}
