package embedded

import (
	"errors"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// restart closes the store and opens it again.
func restart(t *testing.T, s *Store, fs vfs.FS) *Store {
	t.Helper()
	must(t, s.Close(t.Context()))
	return openAt(t, fs, "store", 0)
}

func topicOf(t *testing.T, s *Store, name string) {
	t.Helper()
	must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: name}))
}

func publishTo(t *testing.T, s *Store, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, s.Publish(t.Context(), topic, ev(id), make([]store.Result, 1)))
	}
}

// TestDelayBesideOthers: an event that is held back is seen to, whatever else is
// written with it.
func TestDelayBesideOthers(t *testing.T) {
	s := &Store{failed: make(chan struct{}, 1)}
	due := time.Now().Add(time.Second)
	s.finish([]*request{{done: make(chan struct{})}, {done: make(chan struct{}), due: []time.Time{due}}}, nil, nil)
	if len(s.failed) == 0 || !s.firstDue.Equal(due) {
		t.Errorf("nobody is told that something is due at %v: it would come when something else happens", s.firstDue)
	}
}

// TestDeletedGroupStaysDeleted: what was settled a moment before a group is
// deleted does not bring it back.
func TestDeletedGroupStaysDeleted(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	topicOf(t, s, "t")
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	publishTo(t, s, "t", "a")
	sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "t", Group: "g"})
	must(t, err)
	dst := make([]store.Message, 1)
	_, err = sub.Fetch(t.Context(), dst)
	must(t, err)
	sub.Settle([]*store.Message{&dst[0]})
	must(t, s.DeleteGroup(t.Context(), "t", "g"))
	must(t, sub.Close(t.Context()))
	s = restart(t, s, fs)
	if _, err := s.Lag(t.Context(), "t", "g"); err == nil || fault.ClassOf(err) != fault.NotFound {
		t.Errorf("a deleted group is there again after a restart: %v", err)
	}
	must(t, s.Close(t.Context()))
}

// TestDeletedTopicLeavesNothing: what a deleted topic held back does not come out
// in one that is made later.
func TestDeletedTopicLeavesNothing(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	topicOf(t, s, "mine")
	e := []store.Outgoing{{Event: &event.Event{ID: "secret", Source: "/s", Type: "t"}}}
	must(t, s.PublishDelayed(t.Context(), "mine", e, []time.Time{time.Now().Add(time.Second)}, make([]store.Result, 1)))
	must(t, s.DeleteTopic(t.Context(), "mine"))
	s = restart(t, s, fs)
	topicOf(t, s, "yours")
	tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "yours"})
	must(t, err)
	// A delay that is due later is moved after the one above.
	e = []store.Outgoing{{Event: &event.Event{ID: "ours", Source: "/s", Type: "t"}}}
	must(t, s.PublishDelayed(t.Context(), "yours", e, []time.Time{time.Now().Add(1500 * time.Millisecond)}, make([]store.Result, 1)))
	dst := make([]store.Message, 1)
	_, err = tl.Next(t.Context(), dst)
	must(t, err)
	if dst[0].ID != "ours" {
		t.Errorf("a topic has %q, which was published to another one", dst[0].ID)
	}
	must(t, tl.Close(t.Context()))
	must(t, s.Close(t.Context()))
}

// TestStoredRises: the store's times rise with the offsets, whatever the clock
// does: retention and tails by time search by halves.
func TestStoredRises(t *testing.T) {
	s := openAt(t, vfs.NewMem(), "store", 0)
	topicOf(t, s, "t")
	e := &event.Event{ID: "a", Source: "/s", Type: "t"}
	now := time.Now()
	for _, at := range []time.Time{now, now.Add(-time.Hour), now.Add(time.Second)} {
		r := &request{records: [][]byte{appendRecord(nil, e, at)}, done: make(chan struct{})}
		must(t, s.enqueue(t.Context(), "test", "t", r))
		<-r.done
		must(t, r.err)
	}
	tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
	must(t, err)
	dst := make([]store.Message, 3)
	n, err := tl.Next(t.Context(), dst)
	must(t, err)
	for i := 1; i < n; i++ {
		if dst[i].Stored.Before(dst[i-1].Stored) {
			t.Errorf("event %d was stored %s before the one before it", i, dst[i-1].Stored.Sub(dst[i].Stored))
		}
	}
	must(t, tl.Close(t.Context()))
	must(t, s.Close(t.Context()))
}

// TestReadsAreBounded: one call reads a bounded number of bytes, and the rest
// with the next ones.
func TestReadsAreBounded(t *testing.T) {
	s := openAt(t, vfs.NewMem(), "store", 0)
	topicOf(t, s, "t")
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	const size, events = 256 << 10, 12
	for range events {
		e := []store.Outgoing{{Event: &event.Event{ID: "a", Source: "/s", Type: "t", Data: make([]byte, size)}}}
		must(t, s.Publish(t.Context(), "t", e, make([]store.Result, 1)))
	}
	tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
	must(t, err)
	sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "t", Group: "g"})
	must(t, err)
	dst := make([]store.Message, events)
	next := map[string]func() (int, error){
		"tail":         func() (int, error) { return tl.Next(t.Context(), dst) },
		"subscription": func() (int, error) { return sub.Fetch(t.Context(), dst) },
	}
	for name, next := range next {
		for offset := uint64(0); offset < events; {
			n, err := next()
			must(t, err)
			if n*size > maxRead {
				t.Errorf("%s: one call reads %d events of %d bytes", name, n, size)
			}
			for i := range n {
				if dst[i].Pos.Offset != offset {
					t.Fatalf("%s: offset %d, want %d", name, dst[i].Pos.Offset, offset)
				}
				offset++
			}
		}
	}
	must(t, tl.Close(t.Context()))
	must(t, sub.Close(t.Context()))
	must(t, s.Close(t.Context()))
}

// TestReadsWhileTheDiskIsFull: what is there is read, however long the disk stays
// full.
func TestReadsWhileTheDiskIsFull(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && (op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate) {
			return syscall.ENOSPC
		}
		return nil
	}))
	s := openAt(t, fs, "store", 0)
	topicOf(t, s, "t")
	publishTo(t, s, "t", "a", "b")
	full.Store(true)
	if err := s.Publish(t.Context(), "t", ev("c"), make([]store.Result, 1)); err == nil {
		t.Fatal("a full disk took an event")
	}
	// The store tries more than once to go on.
	for began := time.Now(); time.Since(began) < 3*reopenEvery; {
		tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
		must(t, err)
		dst := make([]store.Message, 3)
		n, err := tl.Next(t.Context(), dst)
		must(t, err)
		if n != 2 || dst[0].ID != "a" || dst[1].ID != "b" {
			t.Fatalf("%d events, first %q", n, dst[0].ID)
		}
		must(t, tl.Close(t.Context()))
	}
	full.Store(false)
	for s.isBroken() {
	}
	publishTo(t, s, "t", "d")
	must(t, s.Close(t.Context()))
}

// TestLagOfWhatIsRemoved: a group is not behind what retention has removed.
func TestLagOfWhatIsRemoved(t *testing.T) {
	s := openAt(t, vfs.NewMem(), "store", 0)
	defer func() { must(t, s.Close(t.Context())) }()
	must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t", MaxBytes: 1}))
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	publishTo(t, s, "t", "1", "2", "3")
	s.retain(time.Now())
	lag, err := s.Lag(t.Context(), "t", "g")
	must(t, err)
	if want := (store.PartitionLag{Committed: 2, End: 3, Behind: 1}); len(lag) != 1 || lag[0] != want {
		t.Errorf("got %+v, want %+v", lag, want)
	}
}

// TestSettledIsDropped: of a topic that keeps nothing that is settled there is what one of
// its groups has not settled, and all before it has one.
func TestSettledIsDropped(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	defer func() { must(t, s.Close(t.Context())) }()
	must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t", DropSettled: true}))
	publishTo(t, s, "t", "0", "1", "2", "3")
	kept := func(begin uint64) {
		t.Helper()
		s.retain(time.Now())
		x, err := s.Extents(t.Context(), "t")
		must(t, err)
		if want := (store.Extent{Begin: begin, End: 4}); x[0] != want {
			t.Fatalf("there is %+v, want %+v", x[0], want)
		}
	}
	settle := func(group string, n int) {
		t.Helper()
		sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "t", Group: group})
		must(t, err)
		dst := make([]store.Message, n)
		for i := range dst {
			_, err := sub.Fetch(t.Context(), dst[i:i+1])
			must(t, err)
			sub.Settle([]*store.Message{&dst[i]})
		}
		must(t, sub.Close(t.Context()))
	}
	kept(0)
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	must(t, s.EnsureGroup(t.Context(), "t", "h", store.Start{}))
	settle("g", 3)
	kept(0)
	settle("h", 2)
	kept(2)
	s = restart(t, s, fs)
	settle("h", 2)
	kept(3)
	settle("g", 1)
	kept(4)
}

// TestLagOfWhatIsHeldBack: what is held back for a topic is told, also after a restart, until
// it lies in the topic: at no moment is it nowhere.
func TestLagOfWhatIsHeldBack(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	defer func() { must(t, s.Close(t.Context())) }()
	topicOf(t, s, "t")
	topicOf(t, s, "u")
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	lag := func() store.PartitionLag {
		lag, err := s.Lag(t.Context(), "t", "g")
		must(t, err)
		return lag[0]
	}
	now := time.Now()
	for i, due := range []time.Time{now.Add(time.Hour), now.Add(time.Hour), now.Add(2 * time.Hour)} {
		must(t, s.PublishDelayed(t.Context(), "t", ev(strconv.Itoa(i)), []time.Time{due}, make([]store.Result, 1)))
	}
	must(t, s.PublishDelayed(t.Context(), "u", ev("u"), []time.Time{now.Add(time.Hour)}, make([]store.Result, 1)))
	if got := lag(); got.Delayed != 3 || got.Behind != 0 {
		t.Errorf("three are held back: %+v", got)
	}
	s = restart(t, s, fs)
	if got := lag(); got.Delayed != 3 || got.Behind != 0 {
		t.Errorf("three are held back, by another process: %+v", got)
	}
	moved := make(chan struct{})
	go func() { defer close(moved); s.moveDue(now.Add(time.Hour)) }()
	for done := false; !done; {
		select {
		case <-moved:
			done = true
		default:
		}
		if got := lag(); got.Delayed+got.Behind != 3 {
			t.Fatalf("three are held back or there: %+v", got)
		}
	}
	if got := lag(); got.Delayed != 1 || got.Behind != 2 {
		t.Errorf("one is held back, two are due: %+v", got)
	}
}

// TestMadeAtOnce: a topic that several ask for at once is one, and what was acknowledged is in
// it after a restart; so is a group, which begins where the first who was answered has it.
func TestMadeAtOnce(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	// What is asked for at once waits for the committer together.
	atOnce := func(f func() error) {
		const n = 8
		held, release := make(chan struct{}), make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			if err := s.do(t.Context(), "test", func(*pebble.Batch) error { close(held); <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		<-held
		for range n {
			all.Go(func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			})
		}
		for waiting := 0; waiting < n && !t.Failed(); runtime.Gosched() {
			s.mu.Lock()
			waiting = len(s.queue)
			s.mu.Unlock()
		}
		close(release)
		all.Wait()
	}
	for range 10 {
		atOnce(func() error { return s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}) })
		atOnce(func() error {
			return errors.Join(s.EnsureGroup(t.Context(), "t", "g", store.Start{End: true}), s.Publish(t.Context(), "t", ev("a"), make([]store.Result, 1)))
		})
		before, err := s.Lag(t.Context(), "t", "g")
		must(t, err)
		s = restart(t, s, fs)
		after, err := s.Lag(t.Context(), "t", "g")
		must(t, err)
		if after[0].End != 8 || after[0] != before[0] {
			t.Fatalf("after a restart the group is at %+v, and was at %+v", after, before)
		}
		must(t, s.DeleteTopic(t.Context(), "t"))
	}
	must(t, s.Close(t.Context()))
}
