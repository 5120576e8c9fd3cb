package sendqueue

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"testing/synctest"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// sender sends a batch when the test has it do so: each to go on for, with what is to
// come of it.
type sender struct {
	*Queue[int]
	sent [][]int
	next chan error
}

func newSender(all *Queues[int]) *sender {
	s := &sender{next: make(chan error)}
	s.Queue = all.Queue(func() {
		for batch := s.Take(); batch != nil; batch = s.Take() {
			err := <-s.next
			var events []int
			for _, o := range batch {
				events = append(events, o.Event)
			}
			s.sent = append(s.sent, events)
			if err != nil {
				s.Failed(batch, err)
			} else {
				s.Sent(batch, "p", int64(events[0]))
			}
		}
	})
	return s
}

// give gives events of one byte each, and returns how its call ends.
func (s *sender) give(ctx context.Context, t *testing.T, events ...int) func() []store.Result {
	t.Helper()
	items := make([]Item[int], len(events))
	for i, e := range events {
		items[i] = Item[int]{Event: e, Size: 1, To: s.Queue}
	}
	c, err := s.all.Give(items)
	if err != nil {
		t.Fatal(err)
	}
	res := make([]store.Result, len(events))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Wait(ctx, res)
	}()
	return func() []store.Result {
		<-done
		return res
	}
}

func reasons(res []store.Result) []string {
	out := make([]string, len(res))
	for i, r := range res {
		if r.Err != nil {
			out[i] = fault.From(r.Err).Reason
		}
	}
	return out
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestBatches: what comes while a batch is under way goes together in the next, as much
// of it as a batch holds, in order; each call learns where its events are.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 3, Bytes: 100, Waiting: 1000})
		s := newSender(all)
		first := s.give(t.Context(), t, 1)
		synctest.Wait() // it is under way
		second, third := s.give(t.Context(), t, 2, 3), s.give(t.Context(), t, 4, 5)
		for range 3 {
			s.next <- nil
		}
		for i, res := range [][]store.Result{first(), second(), third()} {
			for j, r := range res {
				want := store.Position{Partition: "p", Offset: uint64([][]int{{1}, {2, 3}, {4, 5}}[i][j])} //nolint:gosec // they are small
				if r.Err != nil || r.Pos != want {
					t.Errorf("call %d, event %d: %v, want %v", i, j, r, want)
				}
			}
		}
		all.Close(t.Context(), func() {})
		expect(t, "sent", s.sent, [][]int{{1}, {2, 3, 4}, {5}})
	})
}

// TestBytes: a batch holds so many bytes; an event that is larger goes alone.
func TestBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 10, Bytes: 5, Waiting: 1000})
		s := newSender(all)
		var items []Item[int]
		for i, size := range []int{1, 9, 2, 3, 1} {
			items = append(items, Item[int]{Event: i, Size: size, To: s.Queue})
		}
		c, err := all.Give(items)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			s.next <- nil
		}
		if err := c.Wait(t.Context(), make([]store.Result, len(items))); err != nil {
			t.Error(err)
		}
		all.Close(t.Context(), func() {})
		expect(t, "sent", s.sent, [][]int{{0}, {1}, {2, 3}, {4}})
	})
}

// TestNothing: a call with nothing is answered.
func TestNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSender(New[int]("test", Limits{Events: 10, Bytes: 100, Waiting: 1000}))
		ctx, cancel := context.WithCancel(t.Context())
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			s.give(ctx, t)()
		}()
		synctest.Wait()
		select {
		case <-answered:
		default:
			t.Error("it waits for an answer to nothing")
		}
		cancel()
		<-answered
	})
}

// TestFull: while a queue is full, a call that has anything for it is refused whole.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 10, Bytes: 100, Waiting: 2})
		full, other := newSender(all), newSender(all)
		full.give(t.Context(), t, 0)
		synctest.Wait()
		full.give(t.Context(), t, 1, 2, 3) // the last that fits, and more
		_, err := all.Give([]Item[int]{{Event: 4, Size: 1, To: other.Queue}, {Event: 5, Size: 1, To: full.Queue}})
		if f := fault.From(err); f.Class != fault.Throttled || f.Reason != "store-busy" || f.RetryAfter <= 0 {
			t.Errorf("got %v", err)
		}
		if bytes, busy := other.Load(); bytes != 0 || busy {
			t.Errorf("%d bytes of it were kept", bytes)
		}
		full.next <- nil
		full.next <- nil
		synctest.Wait()
		full.give(t.Context(), t, 6)
		full.next <- nil
		all.Close(t.Context(), func() {})
		expect(t, "sent", full.sent, [][]int{{0}, {1, 2, 3}, {6}})
	})
}

// TestFailed: where an event failed, none behind it of its call and queue is sent; those
// of other calls, and other queues, are.
func TestFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 2, Bytes: 100, Waiting: 1000})
		s, other := newSender(all), newSender(all)
		c, err := all.Give([]Item[int]{{Event: 1, Size: 1, To: s.Queue}, {Event: 2, Size: 1, To: s.Queue}, {Event: 3, Size: 1, To: s.Queue}, {Event: 4, Size: 1, To: other.Queue}})
		if err != nil {
			t.Fatal(err)
		}
		behind := s.give(t.Context(), t, 5)
		s.next <- fault.New(fault.Unavailable, "test", "down", "it is down")
		s.next <- nil
		other.next <- nil
		res := make([]store.Result, 4)
		if err := c.Wait(t.Context(), res); fault.From(err).Reason != "down" {
			t.Errorf("got %v", err)
		}
		expect(t, "the call that failed", reasons(res), []string{"down", "down", "after-a-failure", ""})
		expect(t, "the one behind it", reasons(behind()), []string{""})
		all.Close(t.Context(), func() {})
		expect(t, "sent", s.sent, [][]int{{1, 2}, {5}})
		expect(t, "sent by the other", other.sent, [][]int{{4}})
	})
}

// TestUnfailed: of a batch in halves, what was behind one that failed is answered.
func TestUnfailed(t *testing.T) {
	all := New[int]("test", Limits{Events: 10, Bytes: 100, Waiting: 1000})
	s := newSender(all)
	s.send = func() {} // the test takes
	first, second := s.give(t.Context(), t, 1, 2), s.give(t.Context(), t, 3)
	batch := s.Take()
	s.Failed(batch[:1], fault.New(fault.TooLarge, "test", "event-too-large", "it is too large"))
	rest := s.Unfailed(batch[1:])
	if len(rest) != 1 || rest[0].Event != 3 {
		t.Errorf("the rest: %v", rest)
	}
	s.Sent(rest, "p", 7)
	expect(t, "the call that failed", reasons(first()), []string{"event-too-large", "after-a-failure"})
	expect(t, "the other", reasons(second()), []string{""})
}

// TestRefused: what waits is answered, and the queue is empty.
func TestRefused(t *testing.T) {
	all := New[int]("test", Limits{Events: 1, Bytes: 100, Waiting: 1000})
	s := newSender(all)
	s.send = func() {}
	res := s.give(t.Context(), t, 1, 2, 3)
	batch := s.Take()
	s.Refuse(fault.New(fault.Unavailable, "test", "down", "it is down"))
	if bytes, _ := s.Load(); bytes != 0 {
		t.Errorf("%d bytes wait", bytes)
	}
	s.Sent(batch, "p", 7)
	expect(t, "the call", reasons(res()), []string{"", "down", "down"})
	if batch := s.Take(); batch != nil {
		t.Errorf("%v is taken", batch)
	}
}

// TestContextEnds: an event that still waits fails with the context's error, is not
// sent, and makes room; of one that was taken nobody knows; one that is kept is.
func TestContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 1, Bytes: 100, Waiting: 1000})
		s := newSender(all)
		ctx, cancel := context.WithCancel(t.Context())
		res := s.give(ctx, t, 1, 2, 3)
		behind := s.give(t.Context(), t, 4)
		s.next <- nil
		synctest.Wait() // the second is under way
		cancel()
		got := res()
		if got[0].Err != nil || fault.ClassOf(got[1].Err) != fault.Ambiguous || fault.ClassOf(got[2].Err) != fault.Canceled || !errors.Is(got[1].Err, context.Canceled) {
			t.Errorf("got %v", got)
		}
		if bytes, _ := s.Load(); bytes != 1 {
			t.Errorf("%d bytes wait, want those of the event behind", bytes)
		}
		s.next <- nil // its answer comes too late
		s.next <- nil
		expect(t, "the call behind", reasons(behind()), []string{""})
		expect(t, "the call whose answer came late", reasons(got), []string{"", "ambiguous", fault.From(context.Canceled).Reason})
		all.Close(t.Context(), func() {})
		expect(t, "sent", s.sent, [][]int{{1}, {2}, {4}})
	})
}

// TestClose: it takes nothing more, and waits for what it has; when its context ends, it
// has that end.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New[int]("test", Limits{Events: 10, Bytes: 100, Waiting: 1000})
		s := newSender(all)
		res := s.give(t.Context(), t, 1)
		done, ok := all.Begin()
		if !ok {
			t.Fatal("nothing begins")
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		closed := false
		go func() {
			all.Close(ctx, func() {
				done()
				s.next <- errors.New("it ends")
			})
			closed = true
		}()
		synctest.Wait()
		if _, err := all.Give([]Item[int]{{To: s.Queue}}); fault.From(err).Reason != "store-closed" {
			t.Errorf("an event is taken: %v", err)
		}
		if _, ok := all.Begin(); ok || !all.Closed() {
			t.Error("work begins")
		}
		if all.Close(t.Context(), func() {}) {
			t.Error("it closes twice")
		}
		if closed {
			t.Fatal("it did not wait")
		}
		cancel()
		synctest.Wait()
		if !closed {
			t.Error("it still waits")
		}
		if got := res(); got[0].Err == nil {
			t.Errorf("got %v", got)
		}
	})
}
