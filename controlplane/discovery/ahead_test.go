package discovery

import (
	"context"
	"log/slog"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

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
	w := newWorldOf(t, ctx, client())
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
