package moves

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestRules: whatever takes how long, and stands still when, what was acknowledged is
// where readers find it, in its order.
func TestRules(t *testing.T) {
	seeds := uint64(300)
	if testing.Short() {
		seeds = 100
	}
	all := map[string]int{}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			for how, n := range run(t, seed) {
				all[how] += n
			}
		})
		if t.Failed() {
			return
		}
	}
	for _, how := range []string{"kept in 1", "kept in 2", "ambiguous", "refused", "cut over"} {
		if all[how] < 10 {
			t.Errorf("%q happens %d times: %v", how, all[how], all)
		}
	}
}

// run is one history.
func run(t *testing.T, seed uint64) map[string]int {
	ctx, cancel := context.WithCancel(t.Context())
	w := newMesh(ctx, seed, 2)
	var parts sync.WaitGroup
	for _, p := range w.proxies {
		parts.Go(func() { p.m.Run(ctx, conn{w, p}) })
		parts.Go(func() { w.hear(p) })
	}
	parts.Go(w.stand)
	parts.Go(w.office)
	for i := range 4 {
		parts.Go(func() { w.publish(fmt.Sprint("client ", i)) })
	}
	_ = sleep(ctx, 3*time.Minute)
	cancel()
	parts.Wait()
	synctest.Wait()

	if w.cut >= 0 {
		w.ends["cut over"]++
	}
	for name, kept := range w.acked {
		last := spot{}
		for _, at := range kept {
			if at.epoch == 1 && w.cut >= 0 && at.at >= w.cut {
				t.Errorf("seed %d: %s: %q is acknowledged and lies at %d, behind the cut at %d", seed, name, w.logs[1][at.at], at.at, w.cut)
			}
			if at.epoch < last.epoch || at.epoch == last.epoch && at.at < last.at {
				t.Errorf("seed %d: %s: %+v is acknowledged after %+v", seed, name, at, last)
			}
			last = at
		}
	}
	return w.ends
}
