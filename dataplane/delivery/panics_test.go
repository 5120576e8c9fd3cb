package delivery

import (
	"context"
	goruntime "runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// panics calls f, which panics, as in a call whose listener answers it.
func panics(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("it does not panic")
		}
	}()
	f()
}

// TestPanicWhileSettled: where a store panics as it is to settle an event, in a client's call,
// that event comes again, and holds up neither its key nor its place.
func TestPanicWhileSettled(t *testing.T) {
	for name, settle := range map[string]func(w *world, m Member, publish func()) []string{
		"acknowledged": func(w *world, m Member, publish func()) []string {
			publish()
			id := w.next(m, 1)[0].ID
			panics(w.T, func() { m.Ack(id) })
			return []string{"a1", "a2"}
		},
		"left out by a new filter": func(w *world, m Member, publish func()) []string {
			if n, err := m.Take(make([]Delivery, 1), func() {}); n != 0 || err != nil {
				w.Fatal(n, err)
			}
			publish()
			synctest.Wait() // it is fetched
			w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.Ordered, s.MaxInFlight, s.Filter = true, 1, mustFilter("id", "a2") }))
			synctest.Wait()
			panics(w.T, func() { _, _ = m.Take(make([]Delivery, 1), func() {}) })
			return []string{"a2"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.MaxInFlight = 1 })
				defer w.stop()
				ctx, cancel := context.WithTimeout(w.ctx, time.Hour)
				defer cancel()
				w.ctx = ctx
				broken := true
				st.settling = func() {
					if broken {
						broken = false
						panic("a defect")
					}
				}
				m := w.join(10)
				defer m.Close()
				publish := func() {
					st.append("orders", 0, keyed("a1", "a"))
					st.append("orders", 0, keyed("a2", "a"))
				}
				for _, id := range settle(w, m, publish) {
					d := w.next(m, 1)[0]
					if d.Event.ID != id || d.Attempt != 1 || m.Ack(d.ID) != 0 {
						t.Errorf("%s comes at attempt %d, want %s", d.Event.ID, d.Attempt, id)
					}
				}
				if _, unsettled := w.m.Members(uidSub); unsettled != 0 {
					t.Errorf("%d are unsettled", unsettled)
				}
			})
		})
	}
}

// TestPanicUnderLock: what panics in a client's call keeps nothing locked, and loses no event.
func TestPanicUnderLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		w.stop()
		broken := false
		w.clock = func() time.Time {
			if broken {
				panic("a defect")
			}
			return time.Now()
		}
		w.start()
		defer w.stop()
		ctx, cancel := context.WithTimeout(w.ctx, time.Hour)
		defer cancel()
		w.ctx = ctx
		m := w.join(10)
		defer m.Close()
		breaks := func(name string, f func()) {
			broken = true
			panics(t, f)
			broken = false
			r := m.(*member).r
			for n := 0; !r.mu.TryLock(); n++ { // others have it for a moment
				if n > 1e6 {
					t.Errorf("%s keeps it locked", name)
					break
				}
				goruntime.Gosched()
			}
			r.mu.Unlock()
		}
		var dst [1]Delivery
		if n, err := m.Take(dst[:], func() {}); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		st.append("orders", 0, keyed("a1", "a"))
		synctest.Wait() // it is fetched
		breaks("Take", func() { _, _ = m.Take(dst[:], func() {}) })
		d := w.next(m, 1)[0]
		breaks("Ack", func() { m.Ack(d.ID) })
		if stale := m.Ack(d.ID); stale != 0 {
			t.Error("it is not the member's any more")
		}
	})
}

// TestPanicEndsPull: a pull that panics has ended, so that its session does once its lease is
// over, and others have its place.
func TestPanicEndsPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := newWorld(t, nil), prometheus.NewRegistry()
		w.stop()
		broken := atomic.Bool{}
		w.metrics, w.clock = reg, func() time.Time {
			if broken.Load() {
				panic("a defect")
			}
			return time.Now()
		}
		w.start()
		const wait = expireEvery / 2
		time.AfterFunc(wait/2, func() { broken.Store(true) }) // while it waits
		panics(t, func() {
			_, _ = w.m.Pull(w.ctx, local, "demo", "billing", PullRequest{Max: 1, Wait: wait})
		})
		broken.Store(false)
		if n := values(t, reg, "pulls_waiting")[""][0]; n != 0 {
			t.Errorf("%v pulls are in progress", n)
		}
		<-time.After(pullLease + 2*expireEvery)
		if n := values(t, reg, "pull_sessions")[""][0]; n != 0 {
			t.Errorf("there are %v sessions", n)
		}
	})
}
