package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestInitialVersions: a client that says what it has is sent the rest, and told
// what of it is gone or not for it.
func TestInitialVersions(t *testing.T) {
	w := newWorld(t)
	rev := w.put("1", "demo/a", "demo/b", "demo/gone", "other/x")
	have := map[string]string{}
	for _, n := range []string{"demo/a", "demo/b", "demo/gone", "other/x"} {
		have["eventstore/"+n] = strconv.FormatInt(rev, 10)
	}
	w.put("2", "demo/b", "demo/new")
	w.remove("demo/gone")
	for _, tc := range []struct {
		names []string
		want  string
	}{
		{[]string{"*"}, "+demo/b +demo/new -demo/gone"},
		{[]string{"*/demo/*"}, "+demo/b +demo/new -demo/gone -other/x"},
		{[]string{"eventstore/demo/a", "eventstore/demo/b", "eventstore/demo/gone"}, "+demo/b -demo/gone"},
	} {
		p := w.connect(w.addr, nil)
		p.plain = true
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.node(), ResourceNamesSubscribe: tc.names, InitialResourceVersions: have})
		p.wants(tc.want)
		w.put(fmt.Sprint(tc.names), "demo/a")
		p.wants("+demo/a")
		have["eventstore/demo/a"] = w.version("demo/a")
	}
}

func (w *world) version(name string) string {
	snap, err := w.store.Current()
	w.must(err)
	return snap.Get("eventstore/" + name).Version()
}

// TestResume: a token brings what changed since, and what was refused stays
// refused; one that this history does not know, or of another scope, brings all.
func TestResume(t *testing.T) {
	w := newWorld(t)
	snap, err := w.store.Current()
	w.must(err)
	rev := w.put("1", "demo/a", "demo/b", "demo/refused", "demo/gone")
	refused := w.version("demo/refused")
	w.put("2", "demo/b")
	w.remove("demo/gone")
	token := func(change func(*discoveryv1.ResumeToken)) *discoveryv1.ResumeToken {
		tok := &discoveryv1.ResumeToken{Lineage: snap.Lineage, Revision: rev, Scope: []string{"*"}}
		change(tok)
		return tok
	}
	const all = "+demo/a +demo/b +demo/refused"
	for name, tc := range map[string]struct {
		change func(*discoveryv1.ResumeToken)
		ask    []string
		want   string
	}{
		"what changed": {func(*discoveryv1.ResumeToken) {}, []string{"*"}, "+demo/b -demo/gone"},
		"as old":       {func(*discoveryv1.ResumeToken) {}, nil, "+demo/b -demo/gone"},
		"refused": {func(tok *discoveryv1.ResumeToken) {
			tok.Revision = rev - 1
			tok.Rejected = []*discoveryv1.Rejection{{Name: "eventstore/demo/refused", Version: refused}}
		}, []string{"*"}, "+demo/a +demo/b -demo/gone"},
		"another lineage":      {func(tok *discoveryv1.ResumeToken) { tok.Lineage = "0-before" }, []string{"*"}, all},
		"newer, of another":    {func(tok *discoveryv1.ResumeToken) { tok.Lineage, tok.Revision = "0-before", 1<<40 }, []string{"*"}, all},
		"before the log":       {func(tok *discoveryv1.ResumeToken) { tok.Revision = 0 }, []string{"*"}, all},
		"another scope":        {func(tok *discoveryv1.ResumeToken) { tok.Scope = []string{"*/other/*"} }, []string{"*"}, all},
		"another subscription": {func(*discoveryv1.ResumeToken) {}, []string{"*/demo/*"}, all},
	} {
		p := w.connect(w.addr, token(tc.change))
		p.ask(tc.ask...)
		if got := p.next(); got != tc.want || p.last.Complete != (tc.want == all) {
			t.Errorf("%s: %q, want %q; %v", name, got, tc.want, p.last)
		}
		_ = p.rpc.CloseSend()
		if err := p.ends(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// lagging is a replica that has read up to a snapshot and hears no more.
type lagging struct {
	*configstore.Store
	at *configstore.Snapshot
}

func (l lagging) Snapshot() (*configstore.Snapshot, <-chan struct{}) { return l.at, nil }

// TestNeverThePast: a replica that is behind what a proxy has catches up or sends
// it elsewhere; one whose etcd is behind it says so to people too.
func TestNeverThePast(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	snap, err := w.store.Current()
	w.must(err)
	quick := Config{CatchUp: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	refused := func(cfg Config, lineage string, revision int64, says string) *Server {
		t.Helper()
		s, addr := serve(t, cfg)
		p := w.connect(addr, &discoveryv1.ResumeToken{Lineage: lineage, Revision: revision, Scope: []string{"*"}})
		p.ask("*")
		if resp, err := p.rpc.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, %v", resp, err)
		}
		return s
	}
	quick.Source = lagging{w.store, snap}
	newer := w.put("2", "demo/a")
	if s := refused(quick, snap.Lineage, newer, "try another"); len(s.Alarms()) != 0 {
		t.Errorf("a replica that lags raises %v", s.Alarms())
	}
	quick.Source = w.store
	if a := refused(quick, snap.Lineage, newer+1, "restored from a backup").Alarms(); len(a) != 1 || a[0].Reason != "RestoreSuspected" || !strings.Contains(a[0].Message, "node-1") {
		t.Errorf("the alarms are %v", a)
	}
	// Nor one whose etcd knows nothing of what the proxy has: it was emptied.
	for _, lineage := range []string{"1-other", "7-later"} {
		if a := refused(quick, lineage, 1, "etcd was emptied").Alarms(); len(a) != 1 || a[0].Reason != "RestoreSuspected" || !strings.Contains(a[0].Message, lineage) {
			t.Errorf("the alarms are %v", a)
		}
	}
	snap, err = w.store.Current()
	w.must(err)
	// One that is there in time serves, and what it shows is not older.
	_, patient := serve(t, Config{Source: w.store, CatchUp: time.Minute, Log: slog.New(slog.DiscardHandler)})
	p := w.connect(patient, &discoveryv1.ResumeToken{Lineage: snap.Lineage, Revision: snap.Revision + 1, Scope: []string{"*"}})
	p.ask("*")
	w.put("2", "demo/b")
	w.put("3", "demo/b")
	for p.has["eventstore/demo/b"] == "" || p.has["eventstore/demo/b"] == strconv.FormatInt(snap.Revision+1, 10) {
		p.next()
		if p.last.Revision <= snap.Revision {
			t.Fatalf("revision %d is shown, the proxy has %d", p.last.Revision, snap.Revision+1)
		}
	}
}

// TestResumeWithAnotherView: a proxy that may see, or can enforce, something else than when
// it was sent what it has, as after an upgrade, is sent everything, and that is no sign of a
// restore. One for which there is nothing else resumes.
func TestResumeWithAnotherView(t *testing.T) {
	policy := &configv1.Resource{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{}}}
	lacking := slices.DeleteFunc(resource.AllFeatures(), func(f string) bool { return f == "kind/accesspolicy" })
	demo := map[string]bool{"demo": true}
	w := newWorld(t)
	w.put("1", "demo/a", "other/b")
	w.commit(configstore.Change{Put: []*configv1.Resource{policy}})
	var allowed atomic.Pointer[map[string]bool]
	server, addr := serve(t, Config{Source: w.store, Allowed: func(context.Context) (map[string]bool, error) { return *allowed.Load(), nil }, Log: slog.New(slog.DiscardHandler)})
	connect := func(token *discoveryv1.ResumeToken, can []string, of map[string]bool) *proxy {
		allowed.Store(&of)
		p := w.connect(addr, token)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says("n", &discoveryv1.NodeInfo{Manifest: true, Capabilities: can}), ResourceNamesSubscribe: []string{"*"}})
		return p
	}
	leave := func(p *proxy) {
		w.must(p.rpc.CloseSend())
		_ = p.ends()
	}
	all := resource.AllFeatures()
	for name, tc := range map[string]struct {
		before, after []string
		of, then      map[string]bool
		want          string
	}{
		"it was upgraded":   {lacking, all, nil, nil, "+accesspolicy/demo/p +demo/a +other/b"},
		"it was downgraded": {all, lacking, nil, nil, "+demo/a +other/b"},
		"it may see more":   {all, all, demo, nil, "+accesspolicy/demo/p +demo/a +other/b"},
		"it may see less":   {all, all, nil, demo, "+accesspolicy/demo/p +demo/a"},
		"it sees the same":  {all, all, nil, map[string]bool{"demo": true, "other": true}, ""},
	} {
		old := connect(nil, tc.before, tc.of)
		old.next()
		leave(old)
		p := connect(&discoveryv1.ResumeToken{Lineage: old.last.Lineage, Revision: old.last.Revision, Scope: []string{"*"}, Digests: old.last.Kinds, View: old.last.View}, tc.after, tc.then)
		if got := p.next(); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		leave(p)
		if a := server.Alarms(); len(a) != 0 {
			t.Errorf("%s: %v", name, a)
		}
	}
}
