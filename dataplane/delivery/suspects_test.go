package delivery

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestDoubted: a member that lets deliveries time out has one at a time, and others get
// everything else, until it settles one.
func TestDoubted(t *testing.T) {
	for name, ordered := range map[string]bool{"in no order": false, "in order": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered = ordered })
				defer w.stop()
				for i := range 8 {
					st.append("orders", 0, keyed(fmt.Sprint("e", i), fmt.Sprint("k", i)))
				}
				hangs := w.join(4)
				defer hangs.Close()
				w.next(hangs, 4)
				for range 3 {
					<-time.After(time.Minute + time.Second)
					w.next(hangs, 1)
					w.nothing(hangs, "it has settled nothing")
				}
				reads := w.join(8)
				defer reads.Close()
				for _, d := range w.next(reads, 7) {
					reads.Ack(d.ID)
				}
				<-time.After(time.Minute + time.Second)
				d := w.next(hangs, 1)[0]
				hangs.Ack(d.ID)
				reads.Credit(-8)
				for i := range 4 {
					st.append("orders", 0, keyed(fmt.Sprint("f", i), ""))
				}
				ctx, cancel := context.WithTimeout(w.ctx, time.Minute/2) // before one times out
				defer cancel()
				w.ctx = ctx
				w.next(hangs, 4)
			})
		})
	}
}

// TestSuspects: an event that crashes every client which gets it is a dead letter after one
// crash more than it has attempts, and those that were beside it are not counted for it,
// whether others are there or the one that crashes is alone and comes back.
func TestSuspects(t *testing.T) {
	for name, others := range map[string]int{"others are there": 1, "alone": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered, s.DeadLetter = false, "dead" })
				defer w.stop()
				st.delayed = func(*event.Event) {}
				for range others {
					defer w.join(0).Close()
				}
				for i := range 9 {
					st.append("orders", 0, keyed(fmt.Sprint("e", i), ""))
				}
				st.append("orders", 0, keyed("poison", ""))
				crashes, done := 0, map[string]bool{}
				life := func() (crashed bool) {
					m := w.join(10)
					defer m.Close()
					for {
						ctx, cancel := context.WithTimeout(w.ctx, time.Minute/2)
						var dst [10]Delivery
						synctest.Wait() // all that it may have is there
						n, err := m.Next(ctx, dst[:])
						cancel()
						if err != nil {
							return false
						}
						for _, d := range dst[:n] {
							if d.Event.ID == "poison" {
								m.Lost()
								return true
							}
						}
						for _, d := range dst[:n] {
							if done[d.Event.ID] = true; d.Attempt != 1 {
								t.Errorf("%s comes as attempt %d", d.Event.ID, d.Attempt)
							}
							m.Ack(d.ID)
						}
					}
				}
				for life() {
					crashes++
				}
				st.mu.Lock()
				defer st.mu.Unlock()
				if log := st.topics["dead"].parts[0].log; crashes != 4 || len(done) != 9 || len(log) != 1 || log[0].ID != "poison" {
					t.Errorf("after %d crashes there are %d dead letters, and %d events are done", crashes, len(log), len(done))
				}
			})
		})
	}
}

// TestSuspectForOther: what a member may not have beside its suspect comes to one that
// waits behind it.
func TestSuspectForOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered = false })
		defer w.stop()
		has, waits := w.join(0), w.join(0)
		defer has.Close()
		defer waits.Close()
		crash := func(id string) (lose func()) {
			st.append("orders", 0, keyed(id, ""))
			m := w.join(1)
			w.next(m, 1)
			return func() { m.Lost(); m.Close() }
		}
		crash("e0")()
		has.Credit(5)
		w.next(has, 1)
		lose := crash("e1")
		ctx, cancel := context.WithCancel(w.ctx)
		var got atomic.Int32
		var both sync.WaitGroup
		for _, m := range []Member{has, waits} {
			both.Go(func() {
				var dst [5]Delivery
				if n, err := m.Next(ctx, dst[:]); err == nil && n == 1 && dst[0].Event.ID == "e1" && m == waits {
					got.Add(1)
				}
			})
			synctest.Wait()
		}
		waits.Credit(5)
		synctest.Wait()
		lose()
		synctest.Wait()
		cancel()
		both.Wait()
		if got.Load() != 1 {
			t.Error("it has not come")
		}
	})
}
