package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestLost: an event at which every client crashes is a dead letter after its attempts,
// whether others are there or the one that crashes is alone and comes back later; who
// leaves as one should has made none.
func TestLost(t *testing.T) {
	for name, tc := range map[string]struct {
		others int
		late   time.Duration
	}{"others are there": {others: 1}, "alone": {}, "alone, and back later": {late: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered, s.DeadLetter = false, "dead" })
				defer w.stop()
				st.delayed = func(*event.Event) {}
				for range tc.others {
					defer w.join(0).Close()
				}
				st.append("orders", 0, keyed("poison", ""))
				leaves := w.join(1)
				if d := w.next(leaves, 1)[0]; d.Attempt != 1 {
					t.Errorf("at first it is attempt %d", d.Attempt)
				}
				leaves.Close()
				for attempt := 1; attempt <= 3; attempt++ {
					m := w.join(1)
					if d := w.next(m, 1)[0]; d.Event.ID != "poison" || d.Attempt != attempt {
						t.Errorf("%s comes as attempt %d, not %d", d.Event.ID, d.Attempt, attempt)
					}
					m.Lost()
					m.Close()
					<-time.After(tc.late)
				}
				synctest.Wait()
				m := w.join(1)
				defer m.Close()
				w.nothing(m, "it is a dead letter")
				st.mu.Lock()
				defer st.mu.Unlock()
				if n := len(st.topics["dead"].parts[0].log); n != 1 {
					t.Errorf("there are %d dead letters", n)
				}
			})
		})
	}
}

// TestAttemptsOutliveMembers: attempts of what is repeated from memory count on for who
// joins after the last member has left, in order and in none.
func TestAttemptsOutliveMembers(t *testing.T) {
	for name, ordered := range map[string]bool{"in no order": false, "in order": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered, s.DeadLetter = ordered, "dead" })
				defer w.stop()
				st.append("orders", 0, keyed("fails", "a"))
				for attempt := 1; attempt <= 3; attempt++ {
					m := w.join(1)
					d := w.next(m, 1)[0]
					if d.Attempt != attempt {
						t.Errorf("it comes as attempt %d, not %d", d.Attempt, attempt)
					}
					m.Nack("no", 0, d.ID)
					m.Close()
					synctest.Wait()
				}
				m := w.join(1)
				defer m.Close()
				w.nothing(m, "it is a dead letter")
				w.m.tried.mu.Lock()
				defer w.m.tried.mu.Unlock()
				if n := len(w.m.tried.of); n > 0 {
					t.Errorf("%d are remembered for nobody", n)
				}
			})
		})
	}
}

// TestTriedIsBounded: of more than are remembered, the newest are.
func TestTriedIsBounded(t *testing.T) {
	var tr tried
	items := make([]*item, maxTried+2)
	for i := range items {
		items[i] = &item{src: &source{topic: "orders"}}
		items[i].msg.attempt, items[i].msg.stored.Pos.Offset = 2, uint64(i)
	}
	tr.remember("s", items)
	if len(tr.of) != maxTried || len(tr.last) != maxTried {
		t.Errorf("%d and %d are remembered", len(tr.of), len(tr.last))
	}
	for _, it := range items {
		it.msg.attempt = 1
	}
	tr.recall("another", items)
	tr.recall("s", items)
	if items[0].msg.attempt != 1 || items[1].msg.attempt != 1 || items[2].msg.attempt != 2 || items[maxTried+1].msg.attempt != 2 || len(tr.of) != 0 {
		t.Errorf("%d are still there", len(tr.of))
	}
}
