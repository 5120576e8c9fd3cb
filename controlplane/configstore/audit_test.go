package configstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// auditKeys are the keys of records, newest first.
func (w *world) auditKeys() []string {
	w.Helper()
	resp, err := w.etcd.Get(w.ctx, DefaultPrefix+dirAudit, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	w.must(err)
	var keys []string
	for _, kv := range resp.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// TestAuditRetention: audit records older than the retention go, younger ones,
// strange keys and everything else stay.
func TestAuditRetention(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	for i := range 9 {
		snap := w.current(s)
		rev, err := s.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("main", fmt.Sprint(i))}})
		w.must(err)
		_, err = s.WaitFor(w.ctx, rev)
		w.must(err)
		w.must(s.Note(w.ctx, AuditRecord{Method: "Apply", Refused: fmt.Sprint(i)}))
	}
	var records []AuditAt
	for r, err := range s.Audit(w.ctx, "") {
		w.must(err)
		records = append(records, r)
	}
	if len(records) != 18 || len(w.auditKeys()) != 18 {
		t.Fatalf("%d records", len(records))
	}
	// The oldest ten are too old. The newest of them was refused before a change
	// that is not.
	_, err := w.etcd.Delete(w.ctx, DefaultPrefix+dirAudit, clientv3.WithPrefix())
	w.must(err)
	for i, r := range records {
		r.Time = time.Now().Add(-AuditRetention + time.Hour)
		if i >= 8 {
			r.Time = time.Now().Add(-AuditRetention - time.Duration(i-7)*time.Minute)
		}
		key := s.noteKey(r.Parent, r.Time)
		if r.Change {
			key = s.changeKey(r.Parent)
		}
		b, err := deflate(r.AuditRecord)
		w.must(err)
		_, err = w.etcd.Put(w.ctx, key, string(b))
		w.must(err)
	}
	all := w.auditKeys()
	tctx, enough := context.WithCancel(w.ctx)
	trimmed := make(chan error, 1)
	go func() { trimmed <- s.RunAudit(tctx) }()
	for {
		kept := w.auditKeys()
		if len(kept) == len(all) {
			continue
		}
		if !slices.Equal(kept, all[:8]) {
			t.Errorf("there are %v of %v", kept, all)
		}
		break
	}
	enough()
	w.must(<-trimmed)
	w.waitFor(s, "eventstore/demo/main")
	if n, err := s.TrimAudit(w.ctx, time.Now()); n != 8 || err != nil || len(w.auditKeys()) != 0 {
		t.Errorf("%d, %v: %v", n, err, w.auditKeys())
	}
	if n, err := s.TrimAudit(w.ctx, time.Now()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestChangesSince: undoing the changes since any revision gives what was there,
// after compaction too; where a record is missing, or the revision is to come, it
// is said.
func TestChangesSince(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	rnd := rand.New(rand.NewPCG(3, 4))
	type state map[string]string
	was := map[int64]state{w.current(s).Revision: {}}
	for i := range 3 * auditPage {
		snap := w.current(s)
		c := Change{Method: "Apply"}
		for n := range 4 {
			name := fmt.Sprintf("x%d", n)
			switch {
			case rnd.IntN(3) == 0:
				c.Put = append(c.Put, res(name, fmt.Sprint(i)))
			case rnd.IntN(3) == 0 && snap.Get("eventstore/demo/"+name) != nil:
				c.Delete = append(c.Delete, "eventstore/demo/"+name)
			}
		}
		if rnd.IntN(4) == 0 {
			w.must(s.Note(w.ctx, AuditRecord{Method: "Apply", Refused: "no"}))
		}
		if len(c.Put)+len(c.Delete) == 0 {
			continue
		}
		rev, err := s.Commit(w.ctx, snap, c)
		w.must(err)
		snap, err = s.WaitFor(w.ctx, rev)
		w.must(err)
		now := state{}
		for e := range snap.All("") {
			now[e.Name] = string(e.Bytes)
		}
		was[rev] = now
	}
	snap := w.current(s)
	_, err := w.etcd.Compact(w.ctx, snap.Revision)
	w.must(err)
	// One more that the snapshot does not have.
	_, err = s.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("later", "1")}})
	w.must(err)
	for rev, want := range was {
		got := state{}
		for e := range snap.All("") {
			got[e.Name] = string(e.Bytes)
		}
		for r, err := range s.ChangesSince(w.ctx, snap, rev) {
			w.must(err)
			for _, c := range r.Changes {
				if got[c.Name] != string(c.New) {
					t.Fatalf("revision %d: %s is not as the change of %d left it", rev, c.Name, r.Revision)
				}
				if delete(got, c.Name); c.Old != nil {
					got[c.Name] = string(c.Old)
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("revision %d: %v, want %v", rev, got, want)
		}
	}
	since := func(rev int64) error {
		for _, err := range s.ChangesSince(w.ctx, snap, rev) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := since(snap.Revision + 1); fault.ClassOf(err) != fault.Invalid {
		t.Errorf("a revision to come: %v", err)
	}
	revs := slices.Sorted(maps.Keys(was))
	gap := revs[len(revs)-5]
	_, err = w.etcd.Delete(w.ctx, s.changeKey(revs[len(revs)-6]))
	w.must(err)
	for _, rev := range revs {
		if err := since(rev); rev >= gap && err != nil || rev < gap && fault.ClassOf(err) != fault.Precondition {
			t.Errorf("revision %d, with a gap before %d: %v", rev, gap, err)
		}
	}
	_, err = s.TrimAudit(w.ctx, time.Now())
	w.must(err)
	if err := since(revs[0]); fault.ClassOf(err) != fault.Precondition {
		t.Errorf("without records: %v", err)
	}
	if err := since(snap.Revision); err != nil {
		t.Errorf("nothing to undo: %v", err)
	}
}

// TestAuditIsBounded: audit records take no more room than they may, whichever
// replica wrote them; the oldest go first, and what cannot be told then is said.
func TestAuditIsBounded(t *testing.T) {
	w := newWorld(t)
	const most = 1 << 18
	bounded := func() *Store {
		return w.run(Config{Client: w.etcd, AuditBytes: most, Log: slog.New(slog.DiscardHandler)})
	}
	a, b := bounded(), bounded()
	size := func() (bytes int64, keys []string) {
		resp, err := w.etcd.Get(w.ctx, DefaultPrefix+dirAudit, clientv3.WithPrefix())
		w.must(err)
		for _, kv := range resp.Kvs {
			bytes += int64(len(kv.Key) + len(kv.Value))
			keys = append(keys, string(kv.Key))
		}
		return bytes, keys
	}
	// What cannot be made smaller.
	rnd := rand.New(rand.NewPCG(5, 6))
	noise := func(n int) string {
		b := make([]byte, n/2)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return hex.EncodeToString(b)
	}
	write := func(s *Store, n int) {
		for i := range n {
			snap := w.current(s)
			rev, err := s.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("main", noise(5000))}})
			w.must(err)
			for _, s := range []*Store{a, b} {
				_, err = s.WaitFor(w.ctx, rev)
				w.must(err)
			}
			if i%10 == 0 {
				w.must(s.Note(w.ctx, AuditRecord{Refused: noise(100)}))
			}
		}
	}
	first := w.current(a).Revision
	write(a, 20)
	if removed, err := a.BoundAudit(w.ctx); removed != 0 || err != nil {
		t.Fatalf("%d, %v: there is room", removed, err)
	}
	for range 4 {
		write(a, 20)
		write(b, 20)
		_, before := size()
		removed, err := a.BoundAudit(w.ctx)
		w.must(err)
		bytes, keys := size()
		if removed == 0 || bytes > most || bytes < most*9/10 || !slices.Equal(keys, before[:len(keys)]) {
			t.Errorf("%d records were removed, %d bytes are left in %d of %d", removed, bytes, len(keys), len(before))
		}
		// Who looks for the first time, or after another one, finds the same.
		if removed, err := b.BoundAudit(w.ctx); removed > 3 || err != nil {
			t.Errorf("another one removes %d more: %v", removed, err)
		}
		if removed, err := bounded().BoundAudit(w.ctx); removed > 3 || err != nil {
			t.Errorf("a new one removes %d more: %v", removed, err)
		}
	}
	for _, err := range a.ChangesSince(w.ctx, w.current(a), first) {
		if err != nil && (fault.ClassOf(err) != fault.Precondition || !strings.Contains(err.Error(), "days and up to ")) {
			t.Error(err)
		}
	}
	if t.Failed() {
		return // it would wait in vain
	}
	// Who writes much looks without being told.
	ctx, stop := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- a.RunAudit(ctx) }()
	for range 8 {
		write(a, 10)
		for {
			bytes, _ := size()
			if bytes < most+most/8 {
				break
			}
			w.must(w.ctx.Err())
		}
	}
	stop()
	w.must(<-ended)
}
