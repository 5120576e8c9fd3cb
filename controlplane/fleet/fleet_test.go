package fleet

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/registry"
)

// list is a registry that is one list; what is healthy the test says. The real
// one is tested in integration/planes.
type list struct {
	there   []registry.Instance
	healthy string
	down    error
}

func (l *list) Reconcile(_ context.Context, _ string, want []registry.Instance) error {
	if l.down != nil {
		return l.down
	}
	l.there = want
	return nil
}

func (l *list) Watch(context.Context, string) iter.Seq2[[]registry.Instance, error] {
	return func(yield func([]registry.Instance, error) bool) {
		var out []registry.Instance
		for _, i := range l.there {
			i.Healthy = strings.Contains(l.healthy, i.ID)
			out = append(out, i)
		}
		yield(out, l.down)
	}
}

func (*list) Close(context.Context) error { return nil }

func (l *list) ids() string {
	var out []string
	for _, i := range l.there {
		out = append(out, i.ID)
	}
	return strings.Join(out, " ")
}

func status(id, host string) *adminv1.ProxyStatus {
	return &adminv1.ProxyStatus{NodeId: id, Info: &discoveryv1.NodeInfo{AdvertiseHost: host, Ports: map[string]uint32{"grpc": 7411, "health": 7418}}}
}

// elected holds an office until ctx ends.
func elected(ctx context.Context, client *clientv3.Client) election.Term {
	terms := make(chan election.Term)
	go election.Run(ctx, election.Config{Client: client, Key: "/weft/s/elect/test", Log: slog.New(slog.DiscardHandler)}, func(ctx context.Context, term election.Term) error {
		terms <- term
		<-ctx.Done()
		return nil
	})
	return <-terms
}

// TestFleet: who advertises itself is registered and stays while it is alive or
// was seen of late; a replica that knows nothing removes nobody.
func TestFleet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	term := elected(ctx, e.Client())
	l := &list{}
	connected := []*adminv1.ProxyStatus{status("a", "10.0.0.1"), status("b/x", "10.0.0.2"), status("hidden", "")}
	var jump time.Duration
	wall := func() time.Time { return time.Now().Add(jump) }
	fleet := func() *Fleet {
		return New(Config{Etcd: e.Client(), StatusKey: func(n string) string { return "/weft/s/" + n }, Proxies: func() []*adminv1.ProxyStatus { return connected },
			Registry: l, Service: "weft", Forget: time.Minute, Clock: wall, Log: slog.New(slog.DiscardHandler)})
	}
	f := fleet()
	now := time.Now()
	pass := func(f *Fleet, after time.Duration, grace bool, want string) {
		t.Helper()
		if err := f.record(ctx); err != nil {
			t.Fatal(err)
		}
		if err := f.pass(ctx, term, now.Add(after), grace); err != nil {
			t.Fatal(err)
		}
		if got := l.ids(); got != want {
			t.Errorf("after %v there are %q, want %q", after, got, want)
		}
	}
	pass(f, 0, false, "a b/x")
	// Another replica, to which nobody is connected, knows them too.
	connected = nil
	f = fleet()
	pass(f, 30*time.Second, false, "a b/x")
	// Long unseen: the one that is alive stays.
	l.healthy = "a"
	pass(f, time.Hour, false, "a")
	// The records are lost: who is alive stays, and in the grace nobody is removed.
	if _, err := e.Client().Delete(ctx, "/weft/s/instance/a"); err != nil {
		t.Fatal(err)
	}
	pass(f, time.Hour, false, "a")
	l.healthy = ""
	pass(f, time.Hour, true, "a")
	pass(f, time.Hour, false, "")
	l.healthy, l.there = "a", []registry.Instance{{ID: "a", Host: "10.0.0.1"}}
	pass(f, time.Hour, false, "a")
	// It moved: its one record says where it is.
	connected = []*adminv1.ProxyStatus{status("a", "10.0.0.9")}
	pass(f, 2*time.Hour, false, "a")
	if l.there[0].Host != "10.0.0.9" {
		t.Errorf("it is said to be at %s", l.there[0].Host)
	}
	// It is started anew and does not want to be found: it is not, though it lives, also by
	// another replica; until it wants to.
	l.healthy = "a"
	connected = []*adminv1.ProxyStatus{status("a", ""), status("hidden", "")}
	pass(f, 2*time.Hour, true, "a")
	pass(f, 2*time.Hour, false, "")
	l.there, connected = []registry.Instance{{ID: "a", Host: "10.0.0.9"}}, nil
	f = fleet()
	pass(f, 2*time.Hour, false, "")
	if records, err := f.records(ctx); err != nil || len(records) != 1 {
		t.Errorf("%v %v", records, err)
	}
	pass(f, 2*time.Hour+61*time.Second, false, "")
	if records, err := f.records(ctx); err != nil || len(records) != 0 {
		t.Errorf("%v %v", records, err)
	}
	connected = []*adminv1.ProxyStatus{status("a", "10.0.0.9")}
	pass(f, 2*time.Hour, false, "a")
	connected = []*adminv1.ProxyStatus{status("a", "")}
	pass(f, 2*time.Hour, false, "")
	connected = []*adminv1.ProxyStatus{status("a", "10.0.0.9")}
	pass(f, 2*time.Hour, false, "a")
	// Its clock, or the writer's, jumps: nobody is forgotten for that, and
	// whoever is silent for long enough is, whatever its record says.
	for _, jump = range []time.Duration{-24 * time.Hour, -time.Hour, time.Hour, 24 * time.Hour} {
		connected, l.healthy = []*adminv1.ProxyStatus{status("a", "10.0.0.9"), status("c", "10.0.0.3")}, ""
		f = fleet()
		pass(f, 3*time.Hour, false, "a c")
		connected = nil
		pass(f, 3*time.Hour+59*time.Second, false, "a c")
		pass(f, 3*time.Hour+61*time.Second, false, "")
	}
	jump = 0
	connected = []*adminv1.ProxyStatus{status("a", "10.0.0.9")}
	f = fleet()
	pass(f, 4*time.Hour, false, "a")
	// Its data folder was lost: it is back at its address under another id, and
	// the old one, whose address answers, is not there twice.
	connected = []*adminv1.ProxyStatus{status("0", "10.0.0.9")}
	l.healthy = "a"
	pass(f, 4*time.Hour, true, "0")
	pass(f, 4*time.Hour, false, "0")
	// A registry that is down is an error, and forgets nobody.
	l.down, l.healthy = errors.New("down"), ""
	if err := f.pass(ctx, term, now.Add(5*time.Hour), false); err == nil {
		t.Error("a registry that is down is no error")
	}
	l.down = nil
	records, err := f.records(ctx)
	if err != nil || len(records) != 2 {
		t.Errorf("%v %v", records, err)
	}
}
