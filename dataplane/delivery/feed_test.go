package delivery

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// countedStore counts the readers of a store.
type countedStore struct {
	store.Store
	open, all atomic.Int32
}

type countedTail struct {
	store.Tail
	s *countedStore
}

func (s *countedStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	up, err := s.Store.Tail(ctx, r)
	if err != nil {
		return nil, err
	}
	s.open.Add(1)
	s.all.Add(1)
	return countedTail{up, s}, nil
}

func (t countedTail) Close(ctx context.Context) error {
	t.s.open.Add(-1)
	return t.Tail.Close(ctx)
}

// TestOneReader: however many clients tail a topic, the store has one reader of it
// once they are at its end, wherever they began; each of them gets everything, and
// the same encoding.
func TestOneReader(t *testing.T) {
	w := newWorld(t, nil)
	counted := &countedStore{Store: w.st}
	w.through(func() store.Store { return counted })
	w.publish(ids(10)...)
	const tails = 50
	var all []Tail
	for i := range tails {
		tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: i%2 == 0}})
		w.must(err)
		defer tl.Close()
		all = append(all, tl)
		if i%2 == 1 {
			w.next(tl, 10)
		}
	}
	for counted.open.Load() > 1 {
	}
	w.publish("last")
	encoded := 0
	for _, tl := range all {
		d := w.next(tl, 1)[0]
		if d.Event.ID != "last" {
			t.Fatalf("%s", d.Event.ID)
		}
		d.Shared.Encoded(FormJSON, func() []byte { encoded++; return nil })
	}
	if encoded != 1 || counted.open.Load() != 1 {
		t.Errorf("it was encoded %d times, the store has %d readers", encoded, counted.open.Load())
	}
	for _, tl := range all {
		tl.Close()
	}
	for counted.open.Load() > 0 { // nobody reads for nobody
	}
}

// recordedStore has what its readers were asked for; the first one fails once.
type recordedStore struct {
	store.Store
	fails    atomic.Int32
	mu       sync.Mutex
	requests []store.TailRequest
}

type recordedTail struct {
	store.Tail
	s *recordedStore
}

func (s *recordedStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	s.mu.Unlock()
	up, err := s.Store.Tail(ctx, r)
	return recordedTail{up, s}, err
}

func (t recordedTail) Next(ctx context.Context, dst []store.Message) (int, error) {
	if t.s.fails.Add(-1) == 0 {
		return 0, fault.New(fault.Internal, "test", "test", "the reader failed")
	}
	return t.Tail.Next(ctx, dst)
}

// TestRingOwns: what is kept in the ring for long holds on to nothing else, also where its
// reader begins again; who catches up needs no memory for each event.
func TestRingOwns(t *testing.T) {
	w := newWorld(t, nil)
	s := &recordedStore{Store: w.st}
	s.fails.Store(1)
	w.through(func() store.Store { return s })
	w.publish("0")
	for i, from := range []store.Start{{End: true}, {}} {
		tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: from})
		w.must(err)
		defer tl.Close()
		w.publish(fmt.Sprint(i + 1))
		w.next(tl, i+1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) != 3 || !s.requests[0].Own || !s.requests[1].Own || s.requests[2].Own {
		t.Errorf("readers were asked for %+v", s.requests)
	}
}

// TestSlowTail: a tail that does not read harms nobody, and misses nothing when it
// does.
func TestSlowTail(t *testing.T) {
	w := newWorld(t, nil)
	req := TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: true}}
	slow, err := w.m.Tail(w.ctx, local, req)
	w.must(err)
	defer slow.Close()
	fast, err := w.m.Tail(w.ctx, local, req)
	w.must(err)
	defer fast.Close()
	const events = 3 * ringEvents
	for i := range events {
		w.publish(fmt.Sprint(i))
		if i%100 == 99 {
			w.next(fast, 100)
		}
	}
	for i, d := range w.next(slow, events) {
		if d.Event.ID != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, d.Event.ID)
		}
	}
}

// cursorOf is what a tail has of its first topic, and the feed that it reads now.
func cursorOf(tl Tail) (*cursor, *feed) {
	t := tl.(*tail) //nolint:forcetypeassert // so are those of a Manager
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cursors[0], t.cursors[0].feed
}

// TestOvertaken: a topic is read once for a tail that is slower than it, by the tail
// itself: nobody reads it at its end for nobody.
func TestOvertaken(t *testing.T) {
	w := newWorld(t, nil)
	counted := &countedStore{Store: w.st}
	w.through(func() store.Store { return counted })
	slow, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: true}})
	w.must(err)
	defer slow.Close()
	_, f := cursorOf(slow)
	w.publish(ids(ringEvents + 1)...)
	for read := uint64(0); read <= ringEvents; {
		f.mu.Lock()
		read = f.next
		f.mu.Unlock()
	}
	if n, _, err := slow.(*tail).take(make([]Delivery, 1)); n != 0 || err != nil {
		t.Fatalf("the ring gives %d, %v to a tail that it has overtaken", n, err)
	}
	if w.m.feedMu.Lock(); w.m.feeds[f.topic.UID] == f {
		t.Error("a tail that was overtaken keeps the reader at the topic's end")
	}
	w.m.feedMu.Unlock()
	for i, d := range w.next(slow, ringEvents+1) {
		if d.Event.ID != ids(ringEvents + 1)[i] {
			t.Fatalf("event %d is %s", i, d.Event.ID)
		}
	}
	for counted.open.Load() > 1 { // it reads by itself, or is at the end again
	}
}

// TestTailModel: tails that begin anywhere and read at any pace, while the store's
// readers fail, are exchanged and topics come and go, get each event of each
// topic from their beginning on once, in order.
func TestTailModel(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) { tailModel(t, rand.New(rand.NewPCG(seed, 1))) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// failingStore's readers end now and then.
type failingStore struct {
	store.Store
	mu  sync.Mutex
	rnd *rand.Rand
}

type failingTail struct {
	store.Tail
	s *failingStore
}

func (s *failingStore) fails(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rnd.IntN(n) == 0
}

func (s *failingStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	up, err := s.Store.Tail(ctx, r)
	if err != nil {
		return nil, err
	}
	return failingTail{up, s}, nil
}

func (t failingTail) Next(ctx context.Context, dst []store.Message) (int, error) {
	if t.s.fails(20) {
		class := fault.Internal
		if t.s.fails(2) {
			class = fault.Unavailable
		}
		return 0, fault.New(class, "test", "test", "the reader failed")
	}
	return t.Tail.Next(ctx, dst)
}

func tailModel(t *testing.T, rnd *rand.Rand) {
	w := newWorld(t, nil)
	w.ctx = t.Context() // it takes hours
	var current atomic.Pointer[failingStore]
	exchange := func() { current.Store(&failingStore{Store: w.st, rnd: rand.New(rand.NewPCG(rnd.Uint64(), 2))}) }
	exchange()
	w.through(func() store.Store { return current.Load() })
	w.must(w.st.(store.Admin).EnsureTopic(w.ctx, store.TopicSpec{Name: "later"}))
	names := []string{"orders", "dead", "later"}
	published := map[string]int{}
	publish := func(n int) {
		for range n {
			topic := names[rnd.IntN(len(names))]
			e := &event.Event{ID: fmt.Sprint(published[topic]), Source: "/test", Type: "t", Data: make([]byte, rnd.IntN(20_000))}
			published[topic]++
			var res [1]store.Result
			w.must(w.st.Publish(w.ctx, topic, []store.Outgoing{{Event: e}}, res[:]))
		}
	}
	// Stores find a time to the millisecond.
	tick := func() { <-time.NewTimer(5 * time.Millisecond).C }
	there := false
	toggle := func() {
		snap := w.snapshot(nil)
		if there = !there; there {
			later := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "later"}, UID: uidStore, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: "later"}}}
			snap.Topics[later.Key] = later
		}
		w.snaps.Store(snap)
		synctest.Wait()
	}
	type client struct {
		t Tail
		// next is the number of the event that comes next, by topic; -1-n where that
		// is n or less. Where it is absent it is 0.
		next map[string]int
	}
	var clients []*client
	publish(rnd.IntN(300))
	for range 60 {
		tick()
		switch rnd.IntN(7) {
		case 0:
			if len(clients) == 6 {
				i := rnd.IntN(6)
				clients[i].t.Close()
				clients = append(clients[:i], clients[i+1:]...)
			}
			c := &client{next: map[string]int{}}
			req := TailRequest{Namespace: "demo", Topics: []string{"*"}}
			switch rnd.IntN(2) {
			case 0:
				// Of what was published before, a feed that has been held up
				// has not read all.
				req.From.End = true
				c.next["orders"], c.next["dead"] = -1-published["orders"], -1-published["dead"]
				if there {
					c.next["later"] = -1 - published["later"]
				}
			default:
				c.next["orders"], c.next["dead"] = 0, 0
			}
			var err error
			c.t, err = w.m.Tail(w.ctx, local, req)
			w.must(err)
			clients = append(clients, c)
		case 1, 2:
			publish(rnd.IntN(400))
		case 3:
			exchange()
		case 4:
			toggle()
			for _, c := range clients {
				delete(c.next, "later") // it begins anew
			}
		case 5:
			<-time.NewTimer(time.Duration(rnd.IntN(3000)) * time.Millisecond).C
		case 6:
			for _, c := range clients {
				read(t, w, c.t, c.next, rnd.IntN(200), there)
			}
		}
	}
	// In the end everybody has everything.
	<-time.NewTimer(time.Minute).C
	for _, c := range clients {
		read(t, w, c.t, c.next, 1<<20, there)
		for topic, n := range published {
			if got, began := c.next[topic]; (topic != "later" || there) && n > 0 && (!began || got != n && got != -1-n) {
				t.Errorf("a client has %d of %d events of %s", got, n, topic)
			}
		}
		c.t.Close()
	}
}

// read takes up to n events, if there are any, and compares.
func read(t *testing.T, w *world, tl Tail, next map[string]int, n int, there bool) {
	t.Helper()
	dst := make([]Delivery, 16)
	for n > 0 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := tl.Next(ctx, dst[:min(n, len(dst))])
		cancel()
		if err != nil {
			if fault.ClassOf(err) != fault.Canceled {
				t.Fatal(err)
			}
			return
		}
		n -= got
		for _, d := range dst[:got] {
			if d.Topic == "later" && !there {
				continue
			}
			n, err := strconv.Atoi(d.Event.ID)
			if want := next[d.Topic]; err != nil || want >= 0 && n != want || want < 0 && n > -1-want {
				t.Fatalf("%s of %s, want %d", d.Event.ID, d.Topic, want)
			}
			next[d.Topic] = n + 1
		}
	}
}

// overlapStore has a feed that is slow, and an event that comes just when a reader
// looks whether it is at the end.
type overlapStore struct {
	store.Store
	gate  chan struct{} // closed when the feed may read
	comes func()
}

type overlapTail struct {
	store.Tail
	s    *overlapStore
	feed bool
}

func (s *overlapStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	up, err := s.Store.Tail(ctx, r)
	return overlapTail{up, s, r.From.End}, err
}

func (t overlapTail) Mark(ctx context.Context) (passed func() bool, err error) {
	t.s.comes()
	return t.Tail.Mark(ctx)
}

func (t overlapTail) Next(ctx context.Context, dst []store.Message) (int, error) {
	if t.feed {
		select {
		case <-t.s.gate:
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
	return t.Tail.Next(ctx, dst)
}

// TestOverlap: what a reader that catches up and the feed have both comes once.
func TestOverlap(t *testing.T) {
	w := newWorld(t, nil)
	w.publish("a")
	s := &overlapStore{Store: w.st, gate: make(chan struct{}), comes: sync.OnceFunc(func() { w.publish("b") })}
	w.through(func() store.Store { return s })
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	defer tl.Close()
	got := w.next(tl, 2)
	c, _ := cursorOf(tl)
	for live := false; !live; {
		c.t.mu.Lock()
		live = c.live
		c.t.mu.Unlock()
	}
	close(s.gate)
	w.publish("c")
	got = append(got, w.next(tl, 1)...)
	for i, want := range []string{"a", "b", "c"} {
		if got[i].Event.ID != want {
			t.Errorf("event %d is %s", i, got[i].Event.ID)
		}
	}
}

// TestNoFeedForSlow: a tail that is behind when its client stops reading keeps no
// reader at the topic's end.
func TestNoFeedForSlow(t *testing.T) {
	w := newWorld(t, nil)
	s := &overlapStore{Store: w.st, gate: make(chan struct{}), comes: sync.OnceFunc(func() { w.publish(ids(2 * tailBuffer)...) })}
	close(s.gate)
	w.through(func() store.Store { return s })
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	defer tl.Close()
	c, _ := cursorOf(tl)
	for full := false; !full; {
		c.t.mu.Lock()
		full = c.room != nil
		c.t.mu.Unlock()
	}
	for feeds := 1; feeds > 0; {
		w.m.feedMu.Lock()
		feeds = len(w.m.feeds)
		w.m.feedMu.Unlock()
	}
	w.next(tl, 2*tailBuffer)
}
