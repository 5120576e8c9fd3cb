package delay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

var (
	errDenied  = fault.New(fault.Unavailable, "test", "store-access-denied", "not this one")
	errLarge   = fault.New(fault.TooLarge, "test", "event-too-large", "it is too large")
	errMissing = fault.New(fault.NotFound, "test", "unknown-topic", "there is none")
)

// bubble runs a test in which time passes where all wait.
func bubble(t *testing.T, window int, test func(t *testing.T, d *driver, s *Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &driver{fs: vfs.NewMem()}
		s := open(t, d, window)
		for _, topic := range []string{"t", "bad"} {
			must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: topic}))
			must(t, s.EnsureGroup(t.Context(), topic, "g", store.Start{}))
		}
		test(t, d, s)
	})
}

// pass has time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, i)
	}
	return out
}

// extent is how many events a topic has.
func extent(t *testing.T, s *Store, topic string) int {
	t.Helper()
	have, err := s.Extents(t.Context(), topic)
	must(t, err)
	n := 0
	for _, e := range have {
		n += int(e.End - e.Begin) //nolint:gosec // tests write few
	}
	return n
}

// waiting is how much of what is parked is not settled.
func waiting(t *testing.T, s *Store) int {
	t.Helper()
	n := 0
	for i := range classes {
		lag, err := s.Lag(t.Context(), s.topic(i), s.topic(i))
		must(t, err)
		n += int(lag[0].Behind)
	}
	return n
}

// all gets events of topic bad until each id was there, and checks that they are as they were.
func all(t *testing.T, s *Store, ids []string) (more int) {
	t.Helper()
	sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "bad", Group: "g"})
	must(t, err)
	defer func() { must(t, sub.Close(t.Context())) }()
	seen := map[string]bool{}
	n := 0
	for len(seen) < len(ids) {
		e := get(t, sub)
		if len(e.Mesh) != 1 || e.Mesh[0] != (event.Attr{Name: "retry-attempt", Value: "3"}) || string(e.Data) != "x" {
			t.Fatalf("it came as %+v", e)
		}
		seen[e.ID] = true
		n++
	}
	for _, id := range ids {
		if !seen[id] {
			t.Errorf("%s is lost", id)
		}
	}
	return n - len(ids)
}

// TestClockSet: what is due since the clock was set, or the machine slept, comes soon, and
// not when as much time has passed here; also where it was parked a moment before.
func TestClockSet(t *testing.T) {
	for name, tc := range map[string]struct{ before, within time.Duration }{
		"read":     {maxLook, lookAgain},
		"not read": {0, maxLook},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 0, func(t *testing.T, _ *driver, s *Store) {
				var ahead atomic.Int64
				s.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
				sub := subscribe(t, s)
				pass(lookEvery) // who reads nothing has looked
				park(t, s, "t", 2*time.Hour, "a")
				pass(tc.before)
				ahead.Store(int64(2 * time.Hour))
				set := time.Now()
				get(t, sub)
				if took := time.Since(set); took > tc.within+Precision {
					t.Errorf("it came %s after the clock was set", took)
				}
				closeAll(t, s, sub)
			})
		})
	}
}

// failures counts the lines of a log that tell of one.
type failures struct{ atomic.Int32 }

func (f *failures) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("cannot be read")) {
		f.Add(1)
	}
	return len(p), nil
}

// TestNotYet: of topics that are made while a store is opened nothing is said; of those that
// nobody makes, it is.
func TestNotYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log failures
		st, err := Driver{Driver: &driver{fs: vfs.NewMem()}}.Open(t.Context(), store.Config{Name: "test", UID: "u", Dir: "store", Log: slog.New(slog.NewTextHandler(&log, nil))})
		must(t, err)
		s := st.(*Store)
		must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}))
		must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
		sub := subscribe(t, s)
		pass(notYet - maxRetry)
		if n := log.Load(); n > 0 {
			t.Errorf("of topics that are not there yet are %d lines", n)
		}
		pass(2 * maxRetry)
		if n := log.Load(); int(n) != len(classes) {
			t.Errorf("of %d topics that nobody makes are %d lines", len(classes), n)
		}
		closeAll(t, s, sub)
	})
}

// TestFailingTopicHoldsUpNothing: what is due for a topic that fails, however much, keeps
// nothing from others, which are on time. It is all there, once, when the topic is back.
func TestFailingTopicHoldsUpNothing(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		d.last.set("bad", errDenied)
		bad := ids("b", 3*maxFetch)
		park(t, s, "bad", 50*time.Millisecond, bad...)
		park(t, s, "t", 100*time.Millisecond, ids("g", maxFetch+1)...)
		due := time.Now().Add(100 * time.Millisecond)
		sub := subscribe(t, s)
		for range maxFetch + 1 {
			get(t, sub)
		}
		if late := time.Since(due); late < 0 || late > Precision {
			t.Errorf("they are %v late", late)
		}
		d.last.set("bad", nil)
		if more := all(t, s, bad); more > 0 {
			t.Errorf("%d came twice", more)
		}
		if _, joins := d.last.count("bad"); joins != 1 {
			t.Errorf("the group was joined %d times", joins)
		}
		pass(time.Second)
		if n := waiting(t, s); n > 0 {
			t.Errorf("%d are not settled", n)
		}
		closeAll(t, s, sub)
	})
}

// TestFailingTopicPause: a topic that fails is tried at a pause that grows, all that is due
// for it at once, and as soon as ever once it was back.
func TestFailingTopicPause(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		d.last.set("bad", errDenied)
		sub := subscribe(t, s)
		for range 2 {
			park(t, s, "bad", 50*time.Millisecond, ids("b", 100)...)
			before, _ := d.last.count("bad")
			pass(time.Second)
			soon, _ := d.last.count("bad")
			if soon -= before; soon < 3 || soon > 10 {
				t.Errorf("it was tried %d times in the first second", soon)
			}
			pass(2 * maxRetry)
			before, _ = d.last.count("bad")
			pass(20 * maxRetry)
			later, _ := d.last.count("bad")
			if later -= before; later < 10 || later > 42 {
				t.Errorf("it was tried %d times in %v", later, 20*maxRetry)
			}
			d.last.set("bad", nil)
			pass(2 * maxRetry)
			d.last.set("bad", errDenied)
		}
		if n := extent(t, s, "bad"); n != 200 {
			t.Errorf("%d of 200 were written", n)
		}
		closeAll(t, s, sub)
	})
}

// TestHangingTopicHoldsUpNothing: nor does one whose writes hang, nor who takes what is
// refused.
func TestHangingTopicHoldsUpNothing(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		s.cfg.Refused = func(ctx context.Context, _ string, _ *event.Event, _ error) error {
			<-ctx.Done()
			return ctx.Err()
		}
		hang := make(chan struct{})
		d.last.hangs["bad"] = hang
		park(t, s, "bad", 50*time.Millisecond, "b")
		park(t, s, "t", 50*time.Millisecond, "refused")
		d.last.set("refused", errLarge)
		sub := subscribe(t, s)
		for i := range 20 {
			due := time.Now().Add(100 * time.Millisecond)
			park(t, s, "t", 100*time.Millisecond, fmt.Sprint(i))
			if get(t, sub); time.Since(due) > Precision {
				t.Errorf("it is %v late", time.Since(due))
			}
		}
		if n := waiting(t, s); n < 2 {
			t.Errorf("%d are not settled, of 2 that are not written", n)
		}
		close(hang)
		if more := all(t, s, []string{"b"}); more > 0 {
			t.Errorf("it came %d times more", more)
		}
		closeAll(t, s, sub)
	})
}

// TestRefusedHoldsUpNothing: one that its topic never takes and nobody else does is tried by
// itself, now and then; what comes for the topic does not wait for it.
func TestRefusedHoldsUpNothing(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		park(t, s, "bad", 50*time.Millisecond, "refused")
		d.last.set("refused", errLarge)
		good := ids("g", 1000)
		park(t, s, "bad", 60*time.Millisecond, good...)
		sub := subscribe(t, s)
		pass(60*time.Millisecond + Precision)
		if n := extent(t, s, "bad"); n != 1000 {
			t.Errorf("%d of 1000 are written", n)
		}
		pass(10 * time.Minute)
		tries, joins := d.last.count("bad")
		if tries -= 1000; joins != 1 || tries > 600 {
			t.Errorf("the group was joined %d times; the topic was tried %d times more", joins, tries)
		}
		d.last.set("refused", nil)
		if more := all(t, s, append(good, "refused")); more > 0 {
			t.Errorf("%d came twice", more)
		}
		pass(time.Second)
		if n := waiting(t, s); n > 0 {
			t.Errorf("%d are not settled", n)
		}
		closeAll(t, s, sub)
	})
}

// TestWindowOfFailing: what cannot be written fills no window for ever: others come, those
// behind many windows of them too, and where it was parked it is settled. When its topic is
// back, now or in the store's next life, it is there as it was.
func TestWindowOfFailing(t *testing.T) {
	const window = 16
	for name, why := range map[string]struct {
		set string
		err error
	}{"topic": {"bad", errDenied}, "missing": {"bad", errMissing}, "event": {"b0", errLarge}} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%t", name, restart), func(t *testing.T) {
				bubble(t, window, func(t *testing.T, d *driver, s *Store) {
					bad := ids("b", 5*window)
					park(t, s, "bad", 50*time.Millisecond, bad...)
					park(t, s, "t", 100*time.Millisecond, ids("g", 5*window)...)
					d.last.set(why.set, why.err)
					sub := subscribe(t, s)
					pass(maxFailing - time.Second)
					if n := extent(t, s, "t"); n != 5*window {
						t.Errorf("%d of %d others have come", n, 5*window)
					}
					if lag, err := s.Lag(t.Context(), s.topic(0), s.topic(0)); err != nil || lag[0].Behind >= window {
						t.Errorf("of class 0 %+v is left: %v", lag, err)
					}
					if restart {
						closeAll(t, s, sub)
						s = open(t, d, window)
						sub = subscribe(t, s)
					}
					d.last.set(why.set, nil)
					all(t, s, bad)
					pass(time.Minute)
					if n := waiting(t, s); n > 0 {
						t.Errorf("%d are not settled", n)
					}
					closeAll(t, s, sub)
				})
			})
		}
	}
}

// TestRoomOfFailing: nor does it what a member may hold, where few of it are large.
func TestRoomOfFailing(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		d.last.set("bad", errDenied)
		const n = 10
		for i := range n {
			e := store.Outgoing{Event: &event.Event{ID: fmt.Sprint("b", i), Source: "/s", Type: "t", Data: make([]byte, maxBytes/8)}}
			must(t, s.PublishDelayed(t.Context(), "bad", []store.Outgoing{e}, []time.Time{time.Now().Add(time.Second)}, make([]store.Result, 1)))
		}
		park(t, s, "t", time.Second, "g")
		sub := subscribe(t, s)
		pass(15 * time.Second)
		if n := extent(t, s, "t"); n != 1 {
			t.Errorf("%d of one other has come", n)
		}
		d.last.set("bad", nil)
		pass(15 * time.Second)
		if have, left := extent(t, s, "bad"), waiting(t, s); have != n || left > 0 {
			t.Errorf("%d of %d have come, %d are not settled", have, n, left)
		}
		closeAll(t, s, sub)
	})
}

// TestFailingParkedAnew: what cannot be written for long is parked anew though it is in
// nobody's way here: with an owner before it may have filled the window. Where that
// cannot be done it stays where it is.
func TestFailingParkedAnew(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		d.last.set("bad", errDenied)
		d.last.set(s.topic(1), errDenied)
		park(t, s, "bad", 50*time.Millisecond, "b")
		sub := subscribe(t, s)
		pass(2 * maxFailing)
		if n := extent(t, s, s.topic(1)); n > 0 || waiting(t, s) != 1 {
			t.Errorf("%d were parked anew, %d wait", n, waiting(t, s))
		}
		d.last.set(s.topic(1), nil)
		pass(4 * maxRetry)
		lag, err := s.Lag(t.Context(), s.topic(0), s.topic(0))
		must(t, err)
		if n := extent(t, s, s.topic(1)); n != 1 || lag[0].Behind != 0 {
			t.Errorf("%d were parked anew, %d are where they were", n, lag[0].Behind)
		}
		d.last.set("bad", nil)
		if more := all(t, s, []string{"b"}); more > 0 {
			t.Errorf("it came %d times more", more)
		}
		closeAll(t, s, sub)
	})
}

// TestHeldBounded: a member holds no more than it may, whatever of it is due, waits for
// another try or is on its way.
func TestHeldBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{fs: vfs.NewMem()}
		s := world(t, d)
		d.last.set("t", errDenied)
		d.last.set(s.topic(1), errDenied)
		sub := &moving{held: map[string]bool{}}
		for i := range 2 * maxHeld {
			sub.add(parkedFor("t", fmt.Sprint(i), time.Now().Add(rand.N(2*time.Second))))
		}
		m := newMember(s, sub)
		began := time.Now()
		for time.Since(began) < time.Minute {
			must(t, m.fetch())
			m.release()
			if m.n > maxHeld {
				t.Fatalf("it holds %d", m.n)
			}
		}
		m.writes.Wait()
		m.collect()
		if m.n != maxHeld || sub.settled > 0 || len(sub.msgs) != maxHeld {
			t.Errorf("it holds %d, %d are settled, %d are not fetched", m.n, sub.settled, len(sub.msgs))
		}
		d.last.set("t", nil)
		for sub.settled < 2*maxHeld {
			step(t, m)
		}
		if m.n != 0 || m.bytes != 0 {
			t.Errorf("it holds %d with %d bytes of none", m.n, m.bytes)
		}
		must(t, s.Close(t.Context()))
	})
}

// TestTopicMissingForAMoment: what is due while its topic is missing, as one that is made
// anew, comes once it is there.
func TestTopicMissingForAMoment(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		d.last.set("bad", errMissing)
		park(t, s, "bad", 50*time.Millisecond, "a", "b")
		sub := subscribe(t, s)
		pass(goneAfter - time.Minute)
		d.last.set("bad", errDenied) // it is not known to be missing
		pass(4 * maxRetry)
		d.last.set("bad", errMissing)
		pass(goneAfter - time.Minute)
		d.last.set("bad", nil)
		all(t, s, []string{"a", "b"})
		closeAll(t, s, sub)
	})
}

// TestTopicGone: what is parked for a topic that was deleted holds up nothing, and is
// dropped in the end; what is no parked event at all is at once.
func TestTopicGone(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		park(t, s, "gone", 50*time.Millisecond, "a")
		must(t, s.Publish(t.Context(), s.topic(0), []store.Outgoing{{Event: &event.Event{ID: "stray", Source: "/s", Type: "t"}}}, make([]store.Result, 1)))
		park(t, s, "t", 100*time.Millisecond, "b")
		sub := subscribe(t, s)
		if e := get(t, sub); e.ID != "b" {
			t.Errorf("got %+v", e)
		}
		pass(goneAfter - time.Minute)
		if n := waiting(t, s); n != 1 {
			t.Errorf("%d wait for a topic that may come again", n)
		}
		pass(2 * time.Minute)
		if n := waiting(t, s); n > 0 {
			t.Errorf("%d wait for a topic that is gone", n)
		}
		closeAll(t, s, sub)
	})
}

// TestGone: a topic is gone where each look for long said so, and some look was taken all
// the while; what is known of topics that nobody looks for is forgotten.
func TestGone(t *testing.T) {
	bubble(t, 0, func(t *testing.T, _ *driver, s *Store) {
		look := func(after time.Duration, err error, want bool) {
			t.Helper()
			pass(after)
			if got := s.gone("x", err); got != want {
				t.Errorf("gone: %t", got)
			}
		}
		steadily := func(want bool) {
			t.Helper()
			look(0, errMissing, false)
			for range goneAfter/goneUnless - 1 {
				look(goneUnless, errMissing, false)
			}
			look(goneUnless, errMissing, want)
		}
		steadily(true)
		look(0, errMissing, true)
		for _, other := range []error{nil, errDenied, errLarge} {
			look(0, other, false)
			look(0, errMissing, false)
			look(goneUnless, other, false)
			steadily(true)
		}
		look(goneAfter, errMissing, false)
		pass(2 * goneUnless)
		if s.gone("y", errMissing); len(s.missing) != 1 {
			t.Errorf("%d topics are known of", len(s.missing))
		}
		closeAll(t, s)
	})
}
