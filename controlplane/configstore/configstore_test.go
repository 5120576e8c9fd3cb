package configstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd/etcdtest"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestModel: two replicas write at random, one of them misses times; each
// snapshot is what a map would be, stays what it was, and the log leads from any
// of them to any later one, at either replica.
func TestModel(t *testing.T) {
	w := newWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	replicas := []*Store{w.replica(w.etcd, io.Discard), w.replica(w.etcd, io.Discard)}
	model := map[string]string{}
	type kept struct {
		snap *Snapshot
		want map[string]string
	}
	var past []kept
	for i := range 300 {
		s := replicas[rnd.IntN(2)]
		name := fmt.Sprintf("s%d", rnd.IntN(20))
		full := "eventstore/demo/" + name
		var rev int64
		switch rnd.IntN(8) {
		case 0: // bytes that are no resource
			resp, err := w.etcd.Put(w.ctx, DefaultPrefix+"r/"+full, "\xff")
			w.must(err)
			rev = resp.Header.Revision
			delete(model, full)
		case 1, 2:
			rev = w.write(s, Change{Delete: []string{full}})
			delete(model, full)
		case 3: // two at once
			rev = w.write(s, Change{Put: []*configv1.Resource{res("both", fmt.Sprint(i))}, Delete: []string{full}})
			model["eventstore/demo/both"] = fmt.Sprint(i)
			delete(model, full)
		default:
			rev = w.write(s, Change{Put: []*configv1.Resource{res(name, fmt.Sprint(i))}})
			model[full] = fmt.Sprint(i)
		}
		for _, s := range replicas {
			snap, err := s.WaitFor(w.ctx, rev)
			w.must(err)
			if !maps.Equal(labels(snap), model) || snap.Len() != len(model) {
				t.Fatalf("step %d, revision %d: %v, the model has %v", i, rev, labels(snap), model)
			}
			past = append(past, kept{snap, maps.Clone(model)})
			// From any of the past to now.
			from := past[rnd.IntN(len(past))]
			changed, ok := snap.Since(from.snap.Revision)
			got := maps.Clone(from.want)
			for _, n := range changed {
				if e := snap.Get(n); e != nil {
					got[n] = e.Resource.Metadata.Labels["v"]
				} else {
					delete(got, n)
				}
			}
			if ok && !maps.Equal(got, model) || !ok && snap.floor <= from.snap.Revision {
				t.Fatalf("step %d: from revision %d with %v: %v (%v), the model has %v", i, from.snap.Revision, changed, got, ok, model)
			}
		}
	}
	// Somebody who reads everything now sees the same.
	fresh := w.current(w.replica(w.etcd, io.Discard))
	if !maps.Equal(labels(fresh), model) {
		t.Errorf("read anew: %v, the model has %v", labels(fresh), model)
	}
	for _, p := range past {
		if !maps.Equal(labels(p.snap), p.want) {
			t.Fatalf("the snapshot of revision %d has changed", p.snap.Revision)
		}
		var sum resource.Digest
		for e := range p.snap.All("") {
			sum = sum.Add(resource.DigestOf(e.Name, e.Version(), e.Bytes))
		}
		for _, d := range p.snap.Digests("demo") {
			if d != sum {
				t.Fatalf("revision %d: the digest is %v, of its entries %v", p.snap.Revision, d, sum)
			}
		}
		if got := slices.Collect(p.snap.Namespaces()); len(p.want) > 0 != slices.Equal(got, []string{"demo"}) {
			t.Fatalf("revision %d: namespaces %v", p.snap.Revision, got)
		}
	}
}

// TestLog: the log of changes is bounded; whoever is further behind hears so, and
// older snapshots keep theirs.
func TestLog(t *testing.T) {
	snap := Empty("1-x", 1)
	first := snap
	for i := range 2 * maxChanges {
		x := snap.edit()
		x.put("topic/demo/t", newEntry("topic/demo/t", resource.Topic, "demo", &configv1.Resource{}, nil, int64(i+2)), int64(i+2))
		snap = x.commit(int64(i + 2))
	}
	if n := len(snap.changes); n > maxChanges+maxChanges/4 || n < maxChanges {
		t.Errorf("%d changes are kept", n)
	}
	if _, ok := snap.Since(1); ok {
		t.Error("what is not in the log is told")
	}
	if names, ok := snap.Since(snap.Revision - 5); !ok || !slices.Equal(names, []string{"topic/demo/t"}) {
		t.Errorf("%v %v", names, ok)
	}
	if names, ok := snap.Since(snap.floor); !ok || len(names) != 1 {
		t.Errorf("from the floor: %v %v", names, ok)
	}
	if names, ok := first.Since(1); !ok || len(names) != 0 || first.Len() != 0 {
		t.Errorf("the first snapshot: %v %v", names, ok)
	}
}

// TestStatusMovesNothing: a status that is written down is no change of the
// configuration: whoever follows that is not woken.
func TestStatusMovesNothing(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	_, changed := s.Snapshot()
	if _, err := w.etcd.Put(w.ctx, s.StatusKey("x"), "1"); err != nil {
		t.Fatal(err)
	}
	resp, err := w.etcd.Put(w.ctx, s.prefix+dirMeta+"x", "1") // which is seen after it
	w.must(err)
	<-changed
	if got := w.current(s).Revision; got != resp.Header.Revision {
		t.Errorf("the configuration moved to revision %d, by a status; the change has %d", got, resp.Header.Revision)
	}
}

// TestConflict: of two writers who saw the same, one writes and the other hears
// so, and has written nothing; also where the history was replaced.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	a, b := w.replica(w.etcd, io.Discard), w.replica(w.etcd, io.Discard)
	rev := w.write(a, Change{Put: []*configv1.Resource{res("first", "1")}})
	atA, err := a.WaitFor(w.ctx, rev)
	w.must(err)
	atB, err := b.WaitFor(w.ctx, rev)
	w.must(err)
	rev, err = a.Commit(w.ctx, atA, Change{Put: []*configv1.Resource{res("mine", "a")}})
	w.must(err)
	// They write different keys: it is the generation that both compare.
	if _, err := b.Commit(w.ctx, atB, Change{Put: []*configv1.Resource{res("other", "b")}, Delete: []string{"eventstore/demo/first"}}); !errors.Is(err, ErrConflict) {
		t.Fatalf("the second writer: %v", err)
	}
	snap, err := b.WaitFor(w.ctx, rev)
	w.must(err)
	if got := labels(snap); !maps.Equal(got, map[string]string{"eventstore/demo/first": "1", "eventstore/demo/mine": "a"}) || snap.Generation != rev {
		t.Errorf("%v, generation %d at revision %d", got, snap.Generation, rev)
	}
	if e := snap.Get("eventstore/demo/mine"); e.ModRevision != rev || e.Version() != fmt.Sprint(rev) {
		t.Errorf("version %s, written at %d", e.Version(), rev)
	}
	_, err = w.etcd.Put(w.ctx, DefaultPrefix+"m/lineage", "2-restored")
	w.must(err)
	if _, err := b.Commit(w.ctx, snap, Change{Put: []*configv1.Resource{res("late", "b")}}); !errors.Is(err, ErrConflict) {
		t.Errorf("a writer of the old lineage: %v", err)
	}
	for w.current(b).Lineage != "2-restored" {
		_, changed := b.Snapshot()
		<-changed
	}
	w.write(b, Change{Put: []*configv1.Resource{res("late", "b")}})
}

// TestLineage: replicas that start at once on an empty etcd agree.
func TestLineage(t *testing.T) {
	w := newWorld(t)
	stores := make([]*Store, 8)
	var wg sync.WaitGroup
	for i := range stores {
		stores[i] = New(Config{Client: w.etcd, Log: slog.New(slog.DiscardHandler)})
		wg.Go(func() {
			if snap, err := stores[i].read(w.ctx, true); err != nil {
				t.Error(err)
			} else {
				stores[i].now.Store(snap)
			}
		})
	}
	wg.Wait()
	for _, s := range stores {
		if snap := w.current(s); snap.Lineage == "" || snap.Lineage != w.current(stores[0]).Lineage {
			t.Errorf("lineage %q and %q", snap.Lineage, w.current(stores[0]).Lineage)
		}
	}
}

// TestAudit: every change leaves a record of who made it and of what was there
// before and after.
func TestAudit(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	w.write(s, Change{Put: []*configv1.Resource{res("x", "1"), res("gone", "1")}, Actor: "CN=ann", Peer: "127.0.0.1:5"})
	before := w.waitFor(s, "eventstore/demo/x")
	r := res("x", "2")
	r.Metadata.Version = "7" // is of the answer, not of what is stored
	w.write(s, Change{Put: []*configv1.Resource{r}, Delete: []string{"eventstore/demo/gone"}, Actor: "CN=bob"})
	var records []AuditAt
	for r, err := range s.Audit(w.ctx, "") {
		w.must(err)
		records = append(records, r)
	}
	if len(records) != 2 || records[1].Revision != before.ModRevision || records[1].Actor != "CN=ann" {
		t.Fatalf("%+v", records)
	}
	got := records[0]
	var old, now configv1.Resource
	if got.Actor != "CN=bob" || got.Time.IsZero() || len(got.Changes) != 2 || got.Changes[1].Name != "eventstore/demo/gone" || got.Changes[1].New != nil {
		t.Fatalf("%+v", got)
	}
	w.must(proto.Unmarshal(got.Changes[0].Old, &old))
	w.must(proto.Unmarshal(got.Changes[0].New, &now))
	if !bytes.Equal(got.Changes[0].Old, before.Bytes) || old.Metadata.Labels["v"] != "1" || now.Metadata.Labels["v"] != "2" || now.Metadata.Version != "" || r.Metadata.Version != "7" {
		t.Errorf("%v, %v", &old, &now)
	}
}

// TestTooLarge: a change beyond what etcd takes is refused with its size, before
// anything is written.
func TestTooLarge(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	var many, large Change
	for i := range MaxWrites + 1 {
		many.Put = append(many.Put, res(fmt.Sprintf("s%d", i), "x"))
	}
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 100 {
		b := make([]byte, 8<<10)
		for j := range b {
			b[j] = byte('a' + random.IntN(26))
		}
		large.Put = append(large.Put, res(fmt.Sprintf("s%d", i), string(b)))
	}
	for says, c := range map[string]Change{"121 writes": many, "with its audit record": large} {
		if _, err := s.Commit(w.ctx, w.current(s), c); fault.ClassOf(err) != fault.TooLarge || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
	many.Put = many.Put[:MaxWrites]
	w.write(s, many)
	if n := len(w.waitFor(s, "eventstore/demo/s0").Name); n == 0 {
		t.Error("the largest change that may be is not there")
	}
}

// TestStrangers: keys that are no resources are left out and harm nothing.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	for _, k := range []string{"r/x", "r/topic/demo", "r/topic/../x", "r/nokind/demo/x", "r/topic/demo/bad", "other"} {
		_, err := w.etcd.Put(w.ctx, DefaultPrefix+k, "\xff\xff")
		w.must(err)
	}
	s := w.replica(w.etcd, io.Discard)
	w.write(s, Change{Put: []*configv1.Resource{res("good", "1")}})
	w.waitFor(s, "eventstore/demo/good")
	if n := w.current(s).Len(); n != 1 {
		t.Errorf("%d resources", n)
	}
	// Pages are read whole.
	for i := range readPage + 10 {
		b, err := resource.Marshal(res(fmt.Sprintf("p%d", i), "x"))
		w.must(err)
		_, err = w.etcd.Put(w.ctx, fmt.Sprintf("%sr/eventstore/demo/p%d", DefaultPrefix, i), string(b))
		w.must(err)
	}
	if n := w.current(w.replica(w.etcd, io.Discard)).Len(); n != readPage+11 {
		t.Errorf("%d resources", n)
	}
}

// TestCompacted: a watch that was cut off while etcd compacted what it missed
// reads everything again. Nobody sees an empty configuration meanwhile, and the
// log still leads from before to after.
func TestCompacted(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	addr, _ := etcdtest.Start(t)
	way, far0 := startWay(t, addr)
	direct := clientOf(t, way.to)
	w := &world{t, ctx, direct}
	var log buffer
	near := w.replica(direct, io.Discard)
	// It is the watch that is to notice, not a look at etcd's head.
	far := w.run(Config{Client: clientOf(t, far0), ProbeEvery: time.Hour, MaxRetry: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil))})
	rev := w.write(near, Change{Put: []*configv1.Resource{res("stays", "1"), res("goes", "1")}})
	before, err := far.WaitFor(ctx, rev)
	w.must(err)
	// All that far shows from now on.
	seen := make(chan struct{})
	wctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(seen)
		for wctx.Err() == nil {
			snap, changed := far.Snapshot()
			if snap == nil || snap.Get("eventstore/demo/stays") == nil || snap.Revision < before.Revision {
				t.Errorf("a snapshot with %v", labels(snap))
			}
			select {
			case <-changed:
			case <-wctx.Done():
			}
		}
	}()
	way.set(true)
	w.write(near, Change{Delete: []string{"eventstore/demo/goes"}})
	w.waitFor(near, "eventstore/demo/stays")
	for i := range 5 {
		rev = w.write(near, Change{Put: []*configv1.Resource{res("comes", fmt.Sprint(i))}})
		_, err = near.WaitFor(ctx, rev)
		w.must(err)
	}
	_, err = direct.Compact(ctx, rev)
	w.must(err)
	way.set(false)
	after, err := far.WaitFor(ctx, rev)
	w.must(err)
	stop()
	<-seen
	if !strings.Contains(log.String(), "fell behind etcd's compaction") {
		t.Errorf("it never was behind: %s", log.String())
	}
	if _, ok := after.Since(before.Revision + 1); ok || after.Reach(before.Revision+1) != after.Revision || after.Reach(before.Revision) != before.Revision {
		t.Errorf("of what was between %d and %d the log begins at %d", before.Revision, after.Revision, after.Reach(before.Revision+1))
	}
	changed, ok := after.Since(before.Revision)
	if !ok || !slices.Equal(changed, []string{"eventstore/demo/comes", "eventstore/demo/goes"}) || !maps.Equal(labels(after), map[string]string{"eventstore/demo/stays": "1", "eventstore/demo/comes": "4"}) {
		t.Errorf("%v %v, %v", changed, ok, labels(after))
	}
}

// TestRestored: a replica whose etcd went back, or shows another past, keeps what it
// has and takes no writes, until the lineage changes.
func TestRestored(t *testing.T) {
	for name, tc := range map[string]struct {
		// later are the writes to the restored etcd, beside what the backup had.
		later   int
		lineage string // "" is the same
		says    string
	}{
		"behind":         {0, "", "etcd is at revision"},
		"beyond, unlike": {20, "", "is another one than was made|does not follow|at which it was not so"},
		"empty":          {-1, "", "etcd has no mesh any more"},
		"another mesh":   {20, "1-other", "etcd is of lineage 1-other, which does not follow 1-"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			t.Cleanup(cancel)
			old, _ := etcdtest.Start(t)
			backup, _ := etcdtest.Start(t)
			way, addr := startWay(t, old)
			w := &world{t, ctx, clientOf(t, old)}
			s := w.replica(clientOf(t, addr), io.Discard)
			for i := range 10 {
				w.write(s, Change{Put: []*configv1.Resource{res("a", fmt.Sprint(i))}})
				w.waitFor(s, "eventstore/demo/a")
			}
			rev := w.write(s, Change{Put: []*configv1.Resource{res("b", "1")}})
			held, err := s.WaitFor(ctx, rev)
			w.must(err)
			// The backup has the same lineage and another content.
			b := &world{t, ctx, clientOf(t, backup)}
			write := func() {
				other := b.replica(b.etcd, io.Discard)
				b.write(other, Change{Put: []*configv1.Resource{res("a", "0")}})
				b.waitFor(other, "eventstore/demo/a")
				for i := range tc.later {
					b.write(other, Change{Put: []*configv1.Resource{res("c", fmt.Sprint(i))}})
					b.waitFor(other, "eventstore/demo/c")
				}
			}
			if tc.later >= 0 {
				_, err = b.etcd.Put(ctx, DefaultPrefix+"m/lineage", cmp.Or(tc.lineage, held.Lineage))
				b.must(err)
				write()
			}
			way.set(true)
			way.mu.Lock()
			way.to = backup
			way.mu.Unlock()
			way.set(false)
			for message := ""; message == ""; {
				if message, _ = s.Suspected(); message != "" && !regexp.MustCompile(tc.says).MatchString(message) {
					t.Errorf("%q is suspected", message)
				}
				w.must(ctx.Err())
				runtime.Gosched()
			}
			if now := w.current(s); now != held {
				t.Errorf("revision %d is shown instead of %d", now.Revision, held.Revision)
			}
			if _, err := s.Commit(ctx, held, Change{Put: []*configv1.Resource{res("d", "1")}}); fault.ClassOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "weft admin restore") {
				t.Errorf("a write: %v", err)
			}
			// Somebody says that this is the history now.
			if tc.later < 0 {
				write() // of a replica that knows nothing of what was
			}
			_, err = b.etcd.Put(ctx, DefaultPrefix+"m/lineage", "2-restored")
			b.must(err)
			for w.current(s).Lineage != "2-restored" {
				_, changed := s.Snapshot()
				<-changed
			}
			if got := labels(w.current(s)); got["eventstore/demo/a"] != "0" || got["eventstore/demo/b"] != "" {
				t.Errorf("after the declaration there is %v", got)
			}
			if message, _ := s.Suspected(); message != "" {
				t.Errorf("it is still suspected: %s", message)
			}
		})
	}
}

// TestQuarantine: of a version that is quarantined the one before it is served, or
// nothing where there was none; digests and log follow; the next version ends it.
func TestQuarantine(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	const a, b = "eventstore/demo/a", "eventstore/demo/b"
	w.write(s, Change{Put: []*configv1.Resource{res("a", "good")}})
	good := w.waitFor(s, a)
	rev := w.write(s, Change{Put: []*configv1.Resource{res("a", "bad"), res("b", "bad")}})
	before, err := s.WaitFor(w.ctx, rev)
	w.must(err)
	for _, name := range []string{a, b} {
		w.must(s.Quarantine(w.ctx, name, before.Get(name).Version(), "no", []string{"n1"}))
		w.must(s.Quarantine(w.ctx, name, "1", "of another version", nil))
		w.must(s.Quarantine(w.ctx, name, before.Get(name).Version(), "again", nil))
	}
	quarantined := func() *Snapshot {
		for {
			snap, changed := s.Snapshot()
			if len(snap.quarantined) == 2 {
				return snap
			}
			<-changed
		}
	}()
	for _, snap := range []*Snapshot{quarantined, w.current(w.replica(w.etcd, io.Discard))} {
		served, why := snap.Served(a)
		if served == nil || served.Version() != good.Version() || !bytes.Equal(served.Bytes, good.Bytes) || why.GetReason() != "no" || snap.Get(a).Version() == good.Version() {
			t.Errorf("%v is served, %v", served, why)
		}
		if served, why := snap.Served(b); served != nil || why == nil {
			t.Errorf("%v is served, %v", served, why)
		}
		if e, _ := snap.Served(QuarantineName("demo", a)); e != nil || snap.Get(QuarantineName("demo", a)) == nil {
			t.Errorf("the quarantine itself is served: %v", e)
		}
		for kind, d := range snap.Digests("demo") {
			if kind != resource.EventStore || d != good.Mark.Digest {
				t.Errorf("the digest of %s is %v", kind, d)
			}
		}
	}
	changes, ok := quarantined.Log(before.Revision)
	found := 0
	for _, c := range changes {
		if c.Name == a || c.Name == b {
			found++
			if c.Before != before.Get(c.Name).Mark {
				t.Errorf("before its quarantine %s was %v", c.Name, c.Before)
			}
		}
	}
	if !ok || found != 2 {
		t.Errorf("the log has %v", changes)
	}
	w.write(s, Change{Put: []*configv1.Resource{res("a", "better")}, Delete: []string{b}})
	for {
		snap, changed := s.Snapshot()
		if len(snap.quarantined) == 0 {
			if served, why := snap.Served(a); served != snap.Get(a) || why != nil || snap.Get(QuarantineName("demo", a)) != nil || snap.Get(QuarantineName("demo", b)) != nil {
				t.Errorf("after the next version %v is served, %v", served, why)
			}
			break
		}
		<-changed
	}
}

// TestQuarantineBehindCompaction: where etcd has compacted the version before the one
// that is quarantined, the audit record of the change still has it; what was deleted
// meanwhile, or written around the control plane, has none.
func TestQuarantineBehindCompaction(t *testing.T) {
	w := newWorld(t)
	s := w.replica(w.etcd, io.Discard)
	const a, again, around, first = "eventstore/demo/a", "eventstore/demo/again", "eventstore/demo/around", "eventstore/demo/first"
	of := func(uid string, r *configv1.Resource) *configv1.Resource {
		r.Metadata.Uid = uid
		return r
	}
	w.write(s, Change{Put: []*configv1.Resource{of("1", res("a", "good")), of("1", res("again", "good")), of("1", res("around", "good"))}})
	good := w.waitFor(s, a)
	w.must(s.Note(w.ctx, AuditRecord{Method: "Apply", Refused: "no"}))
	w.write(s, Change{Put: []*configv1.Resource{of("2", res("other", "1"))}})
	w.write(s, Change{Delete: []string{again}})
	parent := w.write(s, Change{Put: []*configv1.Resource{of("2", res("other", "2"))}})
	w.must(s.Note(w.ctx, AuditRecord{Method: "Apply", Refused: "no"}))
	w.write(s, Change{Put: []*configv1.Resource{of("1", res("a", "bad")), of("2", res("again", "bad")), of("1", res("first", "bad"))}})
	b, err := resource.Marshal(of("1", res("around", "bad")))
	w.must(err)
	put, err := w.etcd.Put(w.ctx, DefaultPrefix+dirResources+around, string(b))
	w.must(err)
	w.write(s, Change{Put: []*configv1.Resource{of("2", res("other", "3"))}})
	snap, err := s.WaitFor(w.ctx, put.Header.Revision)
	w.must(err)
	_, err = w.etcd.Compact(w.ctx, snap.Revision)
	w.must(err)
	for _, name := range []string{a, again, around, first} {
		w.must(s.Quarantine(w.ctx, name, snap.Get(name).Version(), "no", []string{"n1"}))
	}
	for len(snap.quarantined) < 4 {
		var err error
		snap, err = s.WaitFor(w.ctx, snap.Revision+1)
		w.must(err)
	}
	for _, snap := range []*Snapshot{snap, w.current(w.replica(w.etcd, io.Discard))} {
		// It has a version that nothing else under this name ever had.
		if served, why := snap.Served(a); served == nil || !bytes.Equal(served.Bytes, good.Bytes) || served.ModRevision != parent || why.GetReason() != "no" {
			t.Errorf("%v is served, %v", served, why)
		}
		for _, name := range []string{again, around, first} {
			if served, why := snap.Served(name); served != nil || why == nil {
				t.Errorf("%v is served of %s, %v", served, name, why)
			}
		}
	}
}
