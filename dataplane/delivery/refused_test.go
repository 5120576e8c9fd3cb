package delivery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// refusing is a store that gives what is parked in it to whoever takes what a topic refuses,
// as package delay does once it is due.
type refusing struct {
	store.Store
	store.Admin
	refused chan *event.Event
}

func (s *refusing) PublishDelayed(_ context.Context, _ string, events []store.Outgoing, _ []time.Time, _ []store.Result) error {
	s.refused <- events[0].Event
	return nil
}

// TestRefused: what a retry topic does not take is a dead letter of its Subscription, as it
// was when its last attempt failed, also at a proxy without members, and can be redriven.
// Where it is of nobody, or cannot be written, that is said, so that it is kept.
func TestRefused(t *testing.T) {
	w, reg := newWorld(t, func(s *snapshot.Subscription) {
		s.DeadLetter, s.MaxAttempts, s.MinBackoff, s.MaxBackoff = "dead", 9, time.Hour, time.Hour
	}), prometheus.NewRegistry()
	w.stop()
	plain := w.st
	st := &refusing{plain, plain.(store.Admin), make(chan *event.Event, 1)}
	w.st = st
	w.start()
	m := w.join(1)
	w.publish("a")
	m.Nack("no room", -1, w.next(m, 1)[0].ID)
	e := <-st.refused
	w.settled()
	m.Close()
	w.stop()
	w.st, w.metrics = plain, reg
	w.start() // another proxy, which never had a member

	tooLarge := &fault.Error{Class: fault.TooLarge, Op: "test.publish", Reason: "event-too-large", Msg: "the event is larger than the event store takes", Err: errors.New("a secret")}
	topic, none := names.RetryTopic(uidSub), DeadLetterQuery{Topic: "dead"}
	for what, try := range map[string]func() error{
		"of a topic of no Subscription": func() error { return w.m.Refused(w.ctx, names.RetryTopic(uidDead), e, tooLarge) },
		"without a dead-letter topic": func() error {
			was := w.snaps.Get()
			defer w.snaps.Store(was)
			w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "" }))
			return w.m.Refused(w.ctx, topic, e, tooLarge)
		},
		"that cannot be written": func() error {
			ctx, cancel := context.WithCancel(w.ctx)
			cancel()
			return w.m.Refused(ctx, topic, e, tooLarge)
		},
	} {
		if err := try(); err == nil || len(w.letters(none)) > 0 {
			t.Errorf("%s: %v; dead letters: %v", what, err, w.letters(none))
		}
	}
	w.must(w.m.Refused(w.ctx, topic, e, tooLarge))
	sum, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, func(l *DeadLetter) error {
		if l.Subscription != "billing" || l.Topic != "orders" || l.Attempts != 1 || l.TopicPosition == "" || l.Time.IsZero() || l.NotRedrivable != "" || len(l.Event.Ext) != 0 || string(l.Event.Data) != "data of a" {
			t.Errorf("%+v", l)
		}
		if !strings.Contains(l.Reason, tooLarge.Msg) || !strings.HasSuffix(l.Reason, ": no room") || strings.Contains(l.Reason, "secret") {
			t.Errorf("the reason is %q", l.Reason)
		}
		return nil
	})
	if w.must(err); sum.Matched != 1 {
		t.Errorf("%+v", sum)
	}
	for cause, v := range values(t, reg, "dead_letters_total") {
		if want := map[string]float64{"refused": 1}[cause]; v[0] != want {
			t.Errorf("%v dead letters count as %s, want %v", v[0], cause, want)
		}
	}
	if got := w.redrive(Redrive{}); got.Redriven != 1 || got.Refused != 0 {
		t.Errorf("redriven: %+v", got)
	}
	m = w.join(1)
	defer m.Close()
	if d := w.next(m, 1)[0]; d.Event.ID != "a" || d.Attempt != 1 {
		t.Errorf("it comes as %s at attempt %d", d.Event.ID, d.Attempt)
	}
}

// refusingAtOnce is a store that does not take what is to be parked while there is a reason,
// after the first few: those it shows at once.
type refusingAtOnce struct {
	store.Store
	store.Admin
	store.Measurer
	shows atomic.Int64
	why   atomic.Pointer[fault.Error]
	asked chan struct{}
}

func (s *refusingAtOnce) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, _ []time.Time, res []store.Result) error {
	if s.shows.Add(-1) >= 0 {
		return s.Publish(ctx, topic, events, res)
	}
	select {
	case s.asked <- struct{}{}:
	default:
	}
	if why := s.why.Load(); why != nil {
		return why
	}
	return nil
}

// TestRefusedParking: what the retry topic does not take is a dead letter at once, the first
// time and when it has shown before it is due; but not while the store cannot be reached, nor
// where the Subscription has no topic for it. Then it is tried again, of which one line is logged.
func TestRefusedParking(t *testing.T) {
	tooLarge := fault.New(fault.TooLarge, "test.publish", "event-too-large", "the event is larger than the event store takes")
	for name, c := range map[string]struct {
		why   *fault.Error
		shows int64
	}{
		"at first":                   {tooLarge, 0},
		"once it has shown":          {tooLarge, 1},
		"while it cannot be reached": {fault.New(fault.Unavailable, "test.publish", "store-unreachable", "away"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, reg := newWorld(t, func(s *snapshot.Subscription) {
				s.DeadLetter, s.MaxAttempts, s.MinBackoff, s.MaxBackoff = "dead", 9, time.Hour, time.Hour
			}), prometheus.NewRegistry()
			w.stop()
			st := &refusingAtOnce{Store: w.st, Admin: w.st.(store.Admin), Measurer: w.st.(store.Measurer), asked: make(chan struct{}, 1)}
			st.shows.Store(c.shows)
			st.why.Store(c.why)
			var log bytes.Buffer
			w.st, w.metrics, w.log = st, reg, slog.New(slog.NewTextHandler(&log, nil))
			w.start()
			m := w.join(8)
			defer m.Close()
			w.publish("a")
			m.Nack("no room", 2*time.Hour, w.next(m, 1)[0].ID)
			none := DeadLetterQuery{Topic: "dead"}
			if c.why != tooLarge {
				ctx, cancel := context.WithTimeout(w.ctx, patience)
				defer cancel()
				for range 2 {
					select {
					case <-st.asked:
					case <-ctx.Done():
						t.Fatalf("it is not tried again; dead letters: %v", w.letters(none))
					}
				}
				if n := w.behind(); n != 1 || len(w.letters(none)) > 0 {
					t.Errorf("%d are not settled; dead letters: %v", n, w.letters(none))
				}
				st.why.Store(nil)
				w.settled()
				m.Close()
				w.stop()
				if text := log.String(); strings.Count(text, "cannot be written away") != 1 || strings.Count(text, "are written away again") != 1 {
					t.Errorf("logged was\n%s", text)
				}
				return
			}
			w.settled()
			for began := time.Now(); len(w.letters(none)) == 0; {
				w.nothing(m, "what is parked") // it is read while a member waits
				if time.Since(began) > patience {
					t.Fatal("it is no dead letter")
				}
			}
			sum, err := w.m.DeadLetters(w.ctx, local, DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, func(l *DeadLetter) error {
				if l.Topic != "orders" || l.Attempts != 1 || l.TopicPosition == "" || len(l.Event.Ext) != 0 || string(l.Event.Data) != "data of a" ||
					!strings.Contains(l.Reason, tooLarge.Msg) || !strings.HasSuffix(l.Reason, ": no room") {
					t.Errorf("%+v", l)
				}
				return nil
			})
			if w.must(err); sum.Matched != 1 {
				t.Errorf("%+v", sum)
			}
			if got := values(t, reg, "dead_letters_total")["refused"]; got[0] != 1 {
				t.Errorf("%v dead letters count as refused", got[0])
			}
		})
	}
}

// TestRefusedForgotten: what was counted of a Subscription without members goes with it.
func TestRefusedForgotten(t *testing.T) {
	w, reg := measured(t, func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
	w.must(w.m.Refused(w.ctx, names.RetryTopic(uidSub), &event.Event{ID: "a", Source: "/test", Type: "t"}, fault.New(fault.Invalid, "test", "store-refused", "no")))
	if got := values(t, reg, "dead_letters_total")["refused"]; got[0] != 1 {
		t.Errorf("%v dead letters are counted", got[0])
	}
	gone := w.snapshot(nil)
	gone.Subscriptions = nil
	w.snaps.Store(gone)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for len(values(t, reg, "dead_letters_total")) > 0 {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatal("the Subscription is gone, and its series are there")
		}
	}
}
