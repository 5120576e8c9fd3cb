package configstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// TestDeclareRestore: every replica follows the new lineage with what etcd has,
// what was decided on the old one is refused, and the audit record says why.
func TestDeclareRestore(t *testing.T) {
	w := newWorld(t)
	a, b := w.replica(w.etcd, io.Discard), w.replica(w.etcd, io.Discard)
	rev := w.write(a, Change{Put: []*configv1.Resource{res("x", "1")}})
	before, err := b.WaitFor(w.ctx, rev)
	w.must(err)
	lineage, begins, err := a.DeclareRestore(w.ctx, "me", "here", "a fire")
	w.must(err)
	if !strings.HasPrefix(lineage, "2-") || begins <= rev {
		t.Errorf("lineage %s begins at %d", lineage, begins)
	}
	for _, s := range []*Store{a, b} {
		for {
			snap, changed := s.Snapshot()
			if snap.Lineage == lineage {
				if snap.Revision < begins || snap.Newest() != begins || labels(snap)["eventstore/demo/x"] != "1" {
					t.Errorf("the new lineage has %v at %d, changed at %d", labels(snap), snap.Revision, snap.Newest())
				}
				break
			}
			select {
			case <-changed:
			case <-w.ctx.Done():
				t.Fatal("a replica does not follow")
			}
		}
	}
	said := ""
	for r, err := range a.Audit(w.ctx, "") {
		w.must(err)
		if r.Method == "DeclareRestore" && !r.Change {
			said += r.Actor + " from " + r.Peer + ": " + r.Detail
		}
	}
	if !strings.HasPrefix(said, "me from here: lineage "+lineage) || !strings.HasSuffix(said, ": a fire") {
		t.Errorf("the record says %q", said)
	}
	if _, err := b.Commit(w.ctx, before, Change{Put: []*configv1.Resource{res("x", "2")}}); !errors.Is(err, ErrConflict) {
		t.Errorf("a change decided before the restore: %v", err)
	}
}

// TestLookBack: an etcd that went back to where the watch waits in vain is
// noticed, and so is a watch that hangs.
func TestLookBack(t *testing.T) {
	w := newWorld(t)
	s := New(Config{Client: w.etcd, MaxRetry: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	snap, err := s.read(w.ctx, true)
	w.must(err)
	for name, c := range map[string]struct {
		now  Snapshot
		want string
	}{
		"a later revision": {Snapshot{Lineage: snap.Lineage, Revision: snap.Revision + 5}, "and not what it was at " + snap.Lineage},
		"another change":   {Snapshot{Lineage: snap.Lineage, Revision: snap.Revision, chain: "x"}, "and not what it was at " + snap.Lineage},
		"another lineage":  {Snapshot{Lineage: "0-x", Revision: snap.Revision}, "and not what it was at 0-x"},
	} {
		s.now.Store(&c.now)
		if got := w.lookedBack(s); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	// A change of which the watch never tells.
	s.now.Store(snap)
	if _, err := s.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("x", "1")}}); err != nil {
		t.Fatal(err)
	}
	if got := w.lookedBack(s); !strings.Contains(got, "the watch has not told of revision") {
		t.Errorf("a watch that hangs: %q", got)
	}
}

// lookedBack is why lookBack ends a watch.
func (w *world) lookedBack(s *Store) string {
	w.Helper()
	ctx, end := context.WithCancelCause(w.ctx)
	defer end(nil)
	s.lookBack(ctx, end)
	return context.Cause(ctx).Error()
}

// TestManyChangesInOneResponse: a replica that catches up gets several changes at
// once, each of which follows the one before it; one that follows none is of
// another history.
func TestManyChangesInOneResponse(t *testing.T) {
	s := New(Config{Log: slog.New(slog.DiscardHandler)})
	generation := func(revision int64, value string) *clientv3.Event {
		return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(s.prefix + dirMeta + "generation"), Value: []byte(value), ModRevision: revision}}
	}
	now := Empty("1-x", 5)
	now.chain = "a"
	next, err := s.apply(now, clientv3.WatchResponse{Events: []*clientv3.Event{generation(6, "b a"), generation(7, "c b")}})
	if err != nil || next.Generation != 7 || next.chain != "c" {
		t.Fatalf("%+v, %v", next, err)
	}
	if _, err := s.apply(now, clientv3.WatchResponse{Events: []*clientv3.Event{generation(6, "b a"), generation(7, "d x")}}); err == nil {
		t.Error("a change that follows another history is taken")
	}
}
