package discovery

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd/etcdtest"
)

// TestStatusIsNoChange: a replica that began later has read status records, of which
// another is not told, and counts further. Its proxies go to the other all the same.
func TestStatusIsNoChange(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	addr, _ := etcdtest.Start(t)
	client := func() *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	w := newWorldOf(ctx, t, client())
	w.put("1", "demo/a")
	_, err := w.etcd.Put(ctx, w.store.StatusKey("x"), "y")
	w.must(err)
	_, other := serve(t, Config{Source: w.replica(client()), Log: slog.New(slog.DiscardHandler)})
	first := w.connect(other, nil)
	first.ask("*")
	first.wants("+demo/a")
	has := first.last
	if snap, err := w.store.Current(); err != nil || snap.Revision >= has.Revision {
		t.Fatalf("the replica is not behind %d: it is at %d, %v", has.Revision, snap.Revision, err)
	}
	// A watch that is to begin later, as that of a roster just read, is not waited for.
	w.etcd.Watch(clientv3.WithRequireLeader(ctx), "other", clientv3.WithRev(has.Revision+1000))
	_, patient := serve(t, Config{Source: w.store, CatchUp: time.Minute, Log: slog.New(slog.DiscardHandler)})
	p := w.connect(patient, &discoveryv1.ResumeToken{Lineage: has.Lineage, Revision: has.Revision, Scope: []string{"*"}, Digests: has.Kinds, View: has.View})
	p.ask("*")
	p.wants("")
	if p.last.Revision < has.Revision {
		t.Errorf("revision %d is shown, the proxy has %d", p.last.Revision, has.Revision)
	}
}

// TestReadAgain: a replica that was away from etcd has read what came meanwhile at once. A
// proxy that another replica told of a part of it has what etcd has in the end, and that
// is no sign of a restore.
func TestReadAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		then func(*world)
		want string
	}{
		"changed":            {func(w *world) { w.put("3", "demo/a") }, "+demo/a +demo/b"},
		"gone that had come": {func(w *world) { w.remove("demo/b") }, "+demo/a"},
		"nothing more":       {func(*world) {}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put("1", "demo/a")
			away := configstore.New(configstore.Config{Client: w.etcd, Log: slog.New(slog.DiscardHandler)})
			stop := w.run(away)
			_, err := away.WaitFor(w.ctx, 0)
			w.must(err)
			stop()
			w.put("2", "demo/a", "demo/b")
			first := w.connect(w.addr, nil)
			first.ask("*")
			first.wants("+demo/a +demo/b")
			has := first.last
			tc.then(w)
			_, err = w.etcd.Put(w.ctx, w.store.StatusKey("x"), "y")
			w.must(err)
			w.Cleanup(w.run(away))
			_, err = away.WaitFor(w.ctx, has.Revision+1)
			w.must(err)
			server, addr := serve(t, Config{Source: away, Log: slog.New(slog.DiscardHandler)})
			p := w.connect(addr, &discoveryv1.ResumeToken{Lineage: has.Lineage, Revision: has.Revision, Scope: []string{"*"}, Digests: has.Kinds, View: has.View})
			p.ask("*")
			if got := p.next(); got != tc.want || p.last.Complete != strings.Contains(got, "+") {
				t.Errorf("%q came, want %q; %v", got, tc.want, p.last)
			}
			if a := server.Alarms(); len(a) != 0 {
				t.Errorf("the alarms are %v", a)
			}
		})
	}
}
