package delivery

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// taken is when deliveries came, counted from start, to members that settle
// each at once.
func (w *world) taken(n int, members ...Member) []time.Duration {
	w.Helper()
	start, came := time.Now(), make(chan time.Duration, 100)
	ctx, cancel := context.WithCancel(w.ctx)
	var ends sync.WaitGroup
	defer func() { cancel(); ends.Wait() }()
	for _, m := range members {
		ends.Go(func() {
			dst := make([]Delivery, 4)
			for {
				k, err := m.Next(ctx, dst)
				if err != nil {
					return
				}
				for _, d := range dst[:k] {
					came <- time.Since(start)
					m.Ack(d.ID)
				}
			}
		})
	}
	var out []time.Duration
	for range n {
		out = append(out, <-came)
	}
	return out
}

// paced checks that burst deliveries come at once and then one in each gap: not
// sooner, and not later either.
func paced(t *testing.T, came []time.Duration, burst int, gap time.Duration) {
	t.Helper()
	for i, at := range came {
		want := time.Duration(max(0, i+1-burst)) * gap
		if at < want || at > want+gap/10 {
			t.Errorf("delivery %d came after %v, want %v", i+1, at, want)
		}
	}
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(s *snapshot.Subscription) { s.Rate, s.Burst = 10, 3 })
		a, b := w.join(100), w.join(100)
		defer a.Close()
		defer b.Close()
		w.publish(ids(20)...)
		paced(t, w.taken(20, a, b), 3, 100*time.Millisecond)
	})
}

// Repeated deliveries are deliveries.
func TestRateOfRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(s *snapshot.Subscription) { s.Rate, s.Burst, s.MaxAttempts = 1, 1, 100 })
		m := w.join(1)
		defer m.Close()
		w.publish("a")
		start := time.Now()
		for range 5 {
			m.Nack("no", 0, w.next(m, 1)[0].ID)
			m.Credit(1)
		}
		if took := time.Since(start); took < 4*time.Second || took > 4100*time.Millisecond {
			t.Errorf("5 attempts took %v, want 4 s", took)
		}
	})
}

// Who comes again gets no other burst.
func TestRateOutlivesMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(s *snapshot.Subscription) { s.Rate, s.Burst = 10, 5 })
		w.publish(ids(10)...)
		m := w.join(100)
		paced(t, w.taken(5, m), 5, 100*time.Millisecond)
		m.Close()
		m = w.join(100)
		defer m.Close()
		paced(t, w.taken(5, m), 0, 100*time.Millisecond)
	})
}

// Another rate holds for those that wait already.
func TestRateChanges(t *testing.T) {
	for rate, latest := range map[float64]time.Duration{10: 1400 * time.Millisecond, 0: 1100 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(s *snapshot.Subscription) { s.Rate, s.Burst = 1.0/3600, 1 })
			m := w.join(100)
			defer m.Close()
			w.publish(ids(10)...)
			paced(t, w.taken(1, m), 1, time.Hour)
			time.AfterFunc(time.Second, func() {
				w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.Rate, s.Burst = rate, 1 }))
			})
			if came := w.taken(3, m); came[0] < time.Second || came[2] > latest {
				t.Errorf("with a rate of %v they came after %v", rate, came)
			}
		})
	}
}
