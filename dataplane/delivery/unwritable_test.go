package delivery

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// choosy is a store that does not take what it refuses, of what is published or parked.
type choosy struct {
	store.Store
	store.Admin
	store.Measurer
	refuse atomic.Pointer[func(topic string, e *event.Event) error]
}

func (s *choosy) refused(topic string, events []store.Outgoing) error {
	if refuse := s.refuse.Load(); refuse != nil {
		return (*refuse)(topic, events[0].Event)
	}
	return nil
}

func (s *choosy) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	if err := s.refused(topic, events); err != nil {
		return err
	}
	return s.Store.Publish(ctx, topic, events, res)
}

func (s *choosy) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	if err := s.refused(topic, events); err != nil {
		return err
	}
	return s.Store.(store.Delayer).PublishDelayed(ctx, topic, events, due, res)
}

// newChoosy is a world with metrics, whose store refuses as refuse says.
func newChoosy(t *testing.T, change func(*snapshot.Subscription), refuse func(topic string, e *event.Event) error) (*world, *choosy, *prometheus.Registry, *bytes.Buffer) {
	w, reg := newWorld(t, change), prometheus.NewRegistry()
	w.stop()
	st := &choosy{Store: w.st, Admin: w.st.(store.Admin), Measurer: w.st.(store.Measurer)}
	st.refuse.Store(&refuse)
	var log bytes.Buffer
	w.st, w.metrics, w.log = st, reg, slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Hour) // most of them in a bubble
	t.Cleanup(cancel)
	w.ctx = ctx
	w.start()
	return w, st, reg, &log
}

var errTooLarge = fault.New(fault.TooLarge, "test.publish", "event-too-large", "the event is larger than the event store takes")

func (w *world) rejected(m Member, ids ...string) {
	w.Helper()
	w.publish(ids...)
	for _, d := range w.next(m, len(ids)) {
		m.Reject("no "+d.Event.ID, d.ID)
	}
}

// unwritable checks how many events are told to be taken nowhere, and how many are not
// settled.
func (w *world) unwritable(reg *prometheus.Registry, want int) {
	w.Helper()
	synctest.Wait()
	if got := values(w.T, reg, "unwritable_events")[""][0]; int(got) != want || w.behind() < int64(want) {
		w.Errorf("%v events are taken nowhere, want %d; %d are not settled", got, want, w.behind())
	}
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("L", i)
	}
	return out
}

// TestUnwritable: what its dead-letter topic never takes is lost to nobody and holds up no
// other event: it is given out again at the longest backoff, until it is settled or taken.
// One line is logged.
func TestUnwritable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := atomic.Int64{}
		w, st, reg, log := newChoosy(t, func(s *snapshot.Subscription) { s.DeadLetter, s.MaxBackoff = "dead", time.Minute }, func(topic string, e *event.Event) error {
			if topic != "dead" || !strings.HasPrefix(e.ID, "L") {
				return nil
			}
			tries.Add(1)
			return errTooLarge
		})
		m := w.join(10 * maxWriters)
		w.rejected(m, many(2*maxWriters)...)
		w.unwritable(reg, 2*maxWriters)
		w.rejected(m, "small")
		synctest.Wait()
		if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 1 || got[0] != "small" {
			t.Errorf("dead letters are %v, want the small one", got)
		}
		if n := tries.Load(); n != 4*maxWriters {
			t.Errorf("%d writes of what is never taken, want two of each", n)
		}
		w.unwritable(reg, 2*maxWriters)
		began := time.Now()
		for i, d := range w.next(m, 2*maxWriters) {
			if d.Attempt != 2 {
				t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
			}
			if i%2 == 0 {
				m.Ack(d.ID)
			} else {
				m.Reject("no", d.ID)
			}
		}
		if took := time.Since(began); took < 50*time.Second || took > 70*time.Second {
			t.Errorf("they come after %s", took)
		}
		w.unwritable(reg, maxWriters)
		st.refuse.Store(nil) // the topic takes them from now on
		for _, d := range w.next(m, maxWriters) {
			m.Reject("no", d.ID)
		}
		w.settled()
		w.unwritable(reg, 0)
		if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 1+maxWriters {
			t.Errorf("dead letters are %v", got)
		}
		m.Close()
		w.stop()
		if n := strings.Count(log.String(), "is kept and given out again"); n != 1 {
			t.Errorf("%d lines are logged:\n%s", n, log)
		}
	})
}

// TestUnwritableLeaves: the last member may leave, and the proxy stop, while an event waits
// that no topic takes: it comes again to who joins next, and counts no more meanwhile.
func TestUnwritableLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, reg, _ := newChoosy(t, func(s *snapshot.Subscription) { s.DeadLetter, s.MaxBackoff = "dead", time.Hour }, func(topic string, _ *event.Event) error {
			if topic == "dead" {
				return errTooLarge
			}
			return nil
		})
		m := w.join(1)
		w.rejected(m, "L")
		w.unwritable(reg, 1)
		began := time.Now()
		m.Close()
		w.unwritable(reg, 0)
		m = w.join(1)
		if d := w.next(m, 1)[0]; d.Event.ID != "L" || d.Attempt != 2 {
			t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
		} else {
			m.Reject("no", d.ID)
		}
		w.unwritable(reg, 1)
		w.stop()
		if took := time.Since(began); took > time.Minute {
			t.Errorf("it took %s to leave, come and stop", took)
		}
	})
}

// TestWritersTakeTurns: an event that cannot be written away leaves room for others between
// its tries.
func TestWritersTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st, reg, _ := newChoosy(t, func(s *snapshot.Subscription) { s.DeadLetter = "dead" }, func(topic string, e *event.Event) error {
			if topic == "dead" && strings.HasPrefix(e.ID, "L") {
				return fault.New(fault.Unavailable, "test.publish", "store-unreachable", "away")
			}
			return nil
		})
		m := w.join(10 * maxWriters)
		defer m.Close()
		w.rejected(m, many(2*maxWriters)...)
		synctest.Wait()
		w.rejected(m, "small")
		synctest.Wait()
		if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 1 || got[0] != "small" {
			t.Errorf("dead letters are %v, want the small one", got)
		}
		w.unwritable(reg, 0)
		st.refuse.Store(nil)
		w.settled()
		if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 1+2*maxWriters {
			t.Errorf("dead letters are %v", got)
		}
	})
}

// TestBareDeadLetter: where the reason is too much for the dead-letter topic the event is
// there without it, and can be redriven.
func TestBareDeadLetter(t *testing.T) {
	w, _, _, _ := newChoosy(t, func(s *snapshot.Subscription) { s.DeadLetter = "dead" }, func(topic string, e *event.Event) error {
		for _, name := range []string{AttrDeadReason, AttrDeadPosition, AttrDeadAttempts} {
			if _, ok := event.Lookup(e.Ext, name); ok && topic == "dead" {
				return errTooLarge
			}
		}
		return nil
	})
	m := w.join(1)
	// It has been a dead letter before, of another Subscription.
	was := &event.Event{ID: "a", Source: "/test", Type: "t", Ext: []event.Attr{{Name: AttrDeadReason, Value: "another"}, {Name: AttrDeadSubscription, Value: "other"}}}
	w.must(w.st.Publish(w.ctx, "orders", []store.Outgoing{{Event: was}}, make([]store.Result, 1)))
	m.Reject("no", w.next(m, 1)[0].ID)
	w.settled()
	m.Close()
	sum, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, func(l *DeadLetter) error {
		if l.Subscription != "billing" || l.Topic != "orders" || l.Reason != "" || l.TopicPosition != "" || l.Attempts != 0 || l.Time.IsZero() || l.NotRedrivable != "" {
			t.Errorf("%+v", l)
		}
		return nil
	})
	if w.must(err); sum.Matched != 1 {
		t.Errorf("%+v", sum)
	}
	if got := w.redrive(Redrive{}); got.Redriven != 1 {
		t.Errorf("redriven: %+v", got)
	}
	m = w.join(1)
	defer m.Close()
	if d := w.next(m, 1)[0]; d.Event.ID != "a" || d.Attempt != 1 {
		t.Errorf("it comes as %s at attempt %d", d.Event.ID, d.Attempt)
	}
}

// TestUnwritableParking: what the retry topic does not take, with the reason or without it,
// and cannot be a dead letter, waits in memory as long as it would have waited there.
func TestUnwritableParking(t *testing.T) {
	reasoned := func(e *event.Event) bool { _, ok := event.Lookup(e.Mesh, headerReason); return ok }
	for name, c := range map[string]struct {
		dead   string
		refuse func(topic string, e *event.Event, seen int64) bool
		kept   int
	}{
		"without a dead-letter topic": {"", func(string, *event.Event, int64) bool { return true }, 1},
		"nor as a dead letter":        {"dead", func(string, *event.Event, int64) bool { return true }, 1},
		"with its reason":             {"dead", func(_ string, e *event.Event, _ int64) bool { return reasoned(e) }, 0},
		"once it has shown":           {"", func(_ string, _ *event.Event, seen int64) bool { return seen > 1 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := atomic.Int64{}
				w, _, reg, _ := newChoosy(t, func(s *snapshot.Subscription) {
					s.DeadLetter, s.MaxAttempts, s.MinBackoff, s.MaxBackoff = c.dead, 9, time.Minute, time.Minute
				}, func(topic string, e *event.Event) error {
					if topic != "orders" && c.refuse(topic, e, seen.Add(1)) {
						return errTooLarge
					}
					return nil
				})
				m := w.join(8)
				defer m.Close()
				w.publish("a")
				w.seen(m, "a", 1, 2*time.Hour)
				w.unwritable(reg, c.kept)
				began := time.Now()
				w.seen(m, "a", 2, -1)
				if took := time.Since(began); took < 2*time.Hour-time.Second || took > 2*time.Hour+time.Minute {
					t.Errorf("it comes after %s", took)
				}
				if got := w.letters(DeadLetterQuery{Topic: "dead"}); len(got) != 0 {
					t.Errorf("dead letters are %v", got)
				}
			})
		})
	}
}

// seen takes an event and gives it back.
func (w *world) seen(m Member, id string, attempt int, delay time.Duration) {
	w.Helper()
	d := w.next(m, 1)[0]
	if d.Event.ID != id || d.Attempt != attempt {
		w.Errorf("%s comes at attempt %d, want %s at %d", d.Event.ID, d.Attempt, id, attempt)
	}
	m.Nack("no room", delay, d.ID)
}

// TestUnwritableInOrder: an event that no topic takes holds up its key, alone, which is told
// of, until it is settled; and where its partition is lost while it is written it is not
// given out from here.
func TestUnwritableInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.DeadLetter, s.MaxBackoff = "dead", time.Minute })
		defer w.stop()
		ctx, cancel := context.WithTimeout(w.ctx, time.Hour)
		defer cancel()
		w.ctx = ctx
		orders, lose := st.topics["orders"], false
		st.refuse = func(*event.Event) error {
			if lose {
				st.revoke(orders, orders.parts[0], 0)
			}
			return errTooLarge
		}
		for _, id := range []string{"a1", "a2", "b1"} {
			st.append("orders", 0, keyed(id, id[:1]))
		}
		m := w.join(10)
		defer m.Close()
		for _, d := range w.next(m, 2) {
			if d.Event.ID == "b1" {
				m.Ack(d.ID)
			} else {
				m.Reject("no", d.ID)
			}
		}
		synctest.Wait()
		if b := w.m.Blocked(); len(b) != 1 || b[0].Keys != 1 || b[0].Topic != "orders" {
			t.Errorf("blocked are %+v", b)
		}
		d := w.next(m, 1)[0]
		if d.Event.ID != "a1" || d.Attempt != 2 {
			t.Errorf("%s comes at attempt %d, want a1 again", d.Event.ID, d.Attempt)
		}
		m.Ack(d.ID)
		if d = w.next(m, 1)[0]; d.Event.ID != "a2" || len(w.m.Blocked()) != 0 {
			t.Errorf("%s comes, and blocked are %+v", d.Event.ID, w.m.Blocked())
		}
		lose = true
		m.Reject("no", d.ID)
		short, cancel := context.WithTimeout(w.ctx, 10*time.Minute)
		defer cancel()
		var dst [1]Delivery
		if n, _ := m.Next(short, dst[:]); n > 0 {
			t.Errorf("%s comes, of a partition that is another proxy's", dst[0].Event.ID)
		}
		st.give(orders.parts[0])
		if d = w.next(m, 1)[0]; d.Event.ID != "a2" || d.Attempt != 1 {
			t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
		}
	})
}

// TestUnwritableEarly: what has shown before it is due and cannot be held back again waits for
// its turn in its key once it is.
func TestUnwritableEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		ctx, cancel := context.WithTimeout(w.ctx, time.Hour)
		defer cancel()
		w.ctx = ctx
		st.refuse = func(*event.Event) error { return errTooLarge }
		early := keyed("a0", "a")
		early.Mesh = []event.Attr{{Name: headerAttempt, Value: "1"}, {Name: headerDue, Value: strconv.FormatInt(time.Now().Add(time.Minute).UnixNano(), 10)}, {Name: headerTopic, Value: "orders"}}
		st.append(names.RetryTopic(uidSub), 0, early)
		st.append("orders", 0, keyed("a1", "a"))
		m := w.join(10)
		defer m.Close()
		began, d := time.Now(), w.next(m, 1)[0]
		if d.Event.ID != "a1" {
			t.Errorf("%s comes, before it is due", d.Event.ID)
		}
		m.Extend(30*time.Minute, d.ID)
		short, cancel := context.WithTimeout(w.ctx, 10*time.Minute)
		defer cancel()
		var dst [1]Delivery
		if n, _ := m.Next(short, dst[:]); n > 0 {
			t.Errorf("%s comes beside another one of its key", dst[0].Event.ID)
		}
		m.Ack(d.ID)
		if d = w.next(m, 1)[0]; d.Event.ID != "a0" || d.Attempt != 2 || time.Since(began) < time.Minute {
			t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
		}
	})
}

// TestDeadLetterTopicRemoved: what waits to become a dead letter, since the topic for that cannot
// be written to, is given out again once the Subscription has none any more, as without one: it
// holds up neither its key nor the others.
func TestDeadLetterTopicRemoved(t *testing.T) {
	for name, away := range map[string]struct {
		notReady string
		err      error
	}{
		"it is not ready":   {notReady: "no store is there for it"},
		"its store is away": {err: fault.New(fault.Unavailable, "test.publish", "store-unreachable", "away")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, nil)
				defer w.stop()
				ctx, cancel := context.WithTimeout(w.ctx, time.Hour)
				defer cancel()
				w.ctx = ctx
				st.refuse = func(*event.Event) error { return away.err }
				change := func(s *snapshot.Subscription) { s.Ordered, s.MaxInFlight, s.MaxAttempts = true, 1, 1 }
				snap := w.snapshot(func(s *snapshot.Subscription) { change(s); s.DeadLetter = "dead" })
				snap.Topics[snapshot.Key{Namespace: "demo", Name: "dead"}].NotReady = away.notReady
				w.snaps.Store(snap)
				for _, id := range []string{"a1", "a2"} {
					st.append("orders", 0, keyed(id, "a"))
				}
				m := w.join(10)
				defer m.Close()
				w.seen(m, "a1", 1, -1)
				<-time.After(time.Minute)
				w.snaps.Store(w.snapshot(change))
				w.seen(m, "a1", 2, -1)
				d := w.next(m, 1)[0]
				if d.Event.ID != "a1" || d.Attempt != 3 {
					t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
				}
				m.Ack(d.ID)
				if d = w.next(m, 1)[0]; d.Event.ID != "a2" || d.Attempt != 1 {
					t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
				}
			})
		})
	}
}
