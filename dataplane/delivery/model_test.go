package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
)

// model is delivery in no order, and what it must be.
type model struct {
	w       *world
	st      *logStore
	sub     *snapshot.Subscription
	players []*player
	events  map[string]*fate
	past    []*hold // deliveries, the finished too
	err     error
}

// player is a member, with what it has granted.
type player struct {
	Member
	credit, out int
	doubted     bool
	probe       *hold
}

// hold is a delivery that a member got.
type hold struct {
	by    *player
	id    uint64
	of    *fate
	until time.Time // when it times out
}

// fate is what became of an event.
type fate struct {
	out                   *hold // nil while nobody has it
	failed                int   // attempts
	suspect               bool  // a member that had it was lost
	loose                 bool  // the proxy started again, and may have forgotten some of them
	acked, rejected, dead bool
}

// TestModel: members join, leave, grant credit, settle, fail, extend and time out, and
// the proxy starts again, while events are published. Nothing is lost. One member at a
// time has an event, within its credit, and nobody once it is settled; attempts are
// counted, over parking too; only what is rejected or exhausted is a dead letter. A member of
// which a delivery has timed out gets one at a time until it settles one, and one of those
// that were with a member which was lost.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := 1 + evenly(250).Draw(rt, "number")
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{evenly(16).Draw(rt, "op"), evenly(64).Draw(rt, "a"), evenly(64).Draw(rt, "b")}
		}), n, n).Draw(rt, "steps")
		park, dead, inFlight := rapid.Bool().Draw(rt, "park"), rapid.Bool().Draw(rt, "dead"), rapid.IntRange(1, 16).Draw(rt, "max_in_flight")
		var err error
		synctest.Test(t, func(t *testing.T) {
			err = runModel(t, steps, func(s *snapshot.Subscription) {
				s.MaxInFlight, s.MaxAttempts = inFlight, 3
				s.MinBackoff, s.MaxBackoff = 100*time.Millisecond, 200*time.Millisecond
				if park {
					s.MinBackoff, s.MaxBackoff = 2*time.Second, 4*time.Second // longer than inMemory
				}
				if dead {
					s.DeadLetter = "dead"
				}
			})
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func runModel(t *testing.T, steps []step, change func(*snapshot.Subscription)) error {
	o := &model{w: &world{T: t, ctx: context.Background()}, events: map[string]*fate{}}
	o.st = newLogStore(64, map[string][]string{"orders": {"p0", "p1"}, "dead": {""}, names.RetryTopic(uidSub): {""}})
	o.st.delayed = func(*event.Event) {}
	o.w.st = o.st
	o.w.snaps = latest.New(o.w.snapshot(change))
	o.sub = o.w.snaps.Get().Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}]
	o.w.start()
	for _, s := range steps {
		o.do(s)
		o.look()
		if o.err != nil {
			break
		}
	}
	if o.err == nil {
		o.finish()
	}
	for _, m := range o.players {
		m.Close()
	}
	o.w.stop()
	return o.err
}

func (o *model) wrong(format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format, args...)
	}
}

func (o *model) do(s step) {
	var m *player
	if len(o.players) > 0 {
		m = o.players[s.a%len(o.players)]
	}
	switch {
	case s.op <= 2:
		for range 1 + s.b%4 {
			id := fmt.Sprintf("e%d", len(o.events))
			o.events[id] = &fate{}
			o.st.append("orders", s.a%2, &event.Event{ID: id, Source: "/test", Type: "t"})
		}
	case s.op == 3 && len(o.players) < 3, m == nil:
		o.join(s.b % 5)
	case s.op == 3 && s.b%2 == 0:
		if s.b%4 == 0 {
			m.Lost()
			alone := m.out == 1
			for _, f := range o.events {
				if f.out != nil && f.out.by == m {
					o.land(f.out, alone || f.suspect)
					f.suspect = true
				}
			}
		}
		m.Close()
		o.gone(m)
	case s.op == 4:
		m.Credit(s.b % 5)
		m.credit += s.b % 5
	case s.op <= 8:
		o.take(m, 1+s.b%4)
	case s.op <= 13 && len(o.past) > 0:
		o.settle(o.past[len(o.past)-1-s.a%min(len(o.past), 32)], s.b)
	case s.op == 14:
		<-time.After(time.Duration(s.b) * 2 * time.Second)
	case s.op == 15 && s.b < 8:
		for _, m := range slices.Clone(o.players) {
			m.Close()
			o.gone(m)
		}
		o.w.stop()
		o.w.start()
		for _, f := range o.events {
			f.loose = true
		}
	}
}

func (o *model) join(credit int) *player {
	m := &player{Member: o.w.join(credit), credit: credit}
	o.players = append(o.players, m)
	return m
}

// gone: what a member has, others get; no attempt has failed.
func (o *model) gone(m *player) {
	o.players = slices.DeleteFunc(o.players, func(x *player) bool { return x == m })
	for _, f := range o.events {
		if f.out != nil && f.out.by == m {
			f.out = nil
		}
	}
}

// take has a member take up to n, and checks each.
func (o *model) take(m *player, n int) (got int) {
	ctx, cancel := context.WithTimeout(o.w.ctx, time.Millisecond)
	defer cancel()
	dst := make([]Delivery, n)
	got, err := m.Next(ctx, dst)
	if err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		o.wrong("Next: %v", err)
	}
	o.look()
	for _, d := range dst[:got] {
		f := o.events[d.Event.ID]
		switch {
		case f.out != nil:
			o.wrong("%s is delivered while it is out", d.Event.ID)
		case f.acked, f.dead:
			o.wrong("%s is delivered again: %+v", d.Event.ID, *f)
		case d.Attempt > f.failed+1, d.Attempt < f.failed+1 && !f.loose:
			o.wrong("%s comes as attempt %d; %d have failed", d.Event.ID, d.Attempt, f.failed)
		}
		f.failed = d.Attempt - 1
		if f.suspect && !f.loose && slices.ContainsFunc(slices.Collect(maps.Values(o.events)), func(x *fate) bool { return x.suspect && !x.loose && x.out != nil && x.out.by == m }) {
			o.wrong("%s is not singled out", d.Event.ID)
		}
		if m.doubted && m.probe != nil {
			o.wrong("who lets deliveries time out gets more than one")
		}
		f.out = &hold{by: m, id: d.ID, of: f, until: time.Now().Add(o.sub.AckTimeout)}
		o.past = append(o.past, f.out)
		if m.doubted {
			m.probe = f.out
		}
		if m.out++; m.out > m.credit {
			o.wrong("a member has %d events, its credit is %d", m.out, m.credit)
		}
	}
	return got
}

// settle ends a delivery, or extends it; one that has ended before is stale.
func (o *model) settle(h *hold, how int) {
	live := h.of.out == h
	var stale int
	switch how % 6 {
	case 0:
		stale = h.by.Nack("no", time.Duration(how%3-1)*time.Second, h.id)
	case 1:
		stale = h.by.Reject("never", h.id)
		h.of.rejected = h.of.rejected || live
	case 2:
		stale = h.by.Extend(2*time.Minute, h.id)
	default:
		stale = h.by.Ack(h.id)
	}
	switch {
	case live != (stale == 0):
		o.wrong("settling: %d are stale, it is out: %v", stale, live)
	case !live:
		return
	case how%6 == 2:
		h.until = time.Now().Add(2 * time.Minute)
	default:
		h.of.acked = how%6 > 2
		o.land(h, !h.of.acked)
	}
	h.by.doubted, h.by.probe = false, nil
}

func (o *model) land(h *hold, failed bool) {
	h.of.out = nil
	h.by.out--
	if h.by.probe == h {
		h.by.probe = nil
	}
	if failed {
		h.of.failed++
	}
}

// look ends what has timed out, notes what was dead-lettered, and counts what is here.
func (o *model) look() {
	synctest.Wait()
	out := 0
	for _, f := range o.events {
		if f.out != nil && !time.Now().Before(f.out.until) {
			f.out.by.doubted = true
			o.land(f.out, true)
		}
		if f.out != nil {
			out++
		}
	}
	o.w.m.mu.Lock()
	r, held := o.w.m.runtimes[uidSub], 0
	o.w.m.mu.Unlock()
	if r != nil {
		r.mu.Lock()
		held = r.held
		r.mu.Unlock()
	}
	// Two sources, the topic and the retries, look for room side by side.
	if out > o.sub.MaxInFlight || held > 2*o.sub.MaxInFlight {
		o.wrong("%d events are here, %d are out, %d may be", held, out, o.sub.MaxInFlight)
	}
	o.st.mu.Lock()
	defer o.st.mu.Unlock()
	for _, e := range o.st.topics["dead"].parts[0].log {
		if f := o.events[e.ID]; !f.dead {
			f.dead = true
			if !f.rejected && f.failed < o.sub.MaxAttempts {
				o.wrong("%s is a dead letter after %d attempts", e.ID, f.failed)
			}
		}
	}
}

// finish takes and settles everything: nothing is lost.
func (o *model) finish() {
	o.join(1000)
	for rounds := 0; o.err == nil; rounds++ {
		for _, m := range o.players {
			for o.take(m, 64) > 0 && o.err == nil {
			}
		}
		left := map[string]fate{}
		for id, f := range o.events {
			if f.out != nil {
				o.settle(f.out, 5)
			}
			if !f.acked && !f.dead {
				left[id] = *f
			}
		}
		switch {
		case len(left) == 0:
			return
		case rounds > 3*len(o.events)+100:
			o.wrong("%v are lost", slices.Sorted(maps.Keys(left)))
		}
		<-time.After(time.Second)
		o.look()
	}
}
