package ackwindow

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestCommits: what is settled is committed once an interval, at once where half of a
// window waits, and after a failure not before the interval is over, which doubles up to 2 s
// as long as they fail.
func TestCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 20 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		c := NewCommits()
		var mu sync.Mutex
		var at []time.Duration
		var waits, fails atomic.Bool // half of a window; commits
		began := time.Now()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.Run(ctx, interval, waits.Load, func() bool {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(began))
				return !fails.Load()
			})
		}()
		// said tells when commits were since the last time, in ms.
		said := func(want ...int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(at) != len(want) {
				t.Fatalf("commits at %v, want %v", at, want)
			}
			for i, ms := range want {
				if at[i] != time.Duration(ms)*time.Millisecond {
					t.Errorf("commits at %v, want %v", at, want)
				}
			}
			at = nil
		}
		after := func(ms int) {
			<-time.After(time.Duration(ms) * time.Millisecond)
			synctest.Wait()
		}
		after(5)
		said()
		c.Settled(false)
		said(5)
		after(1)
		c.Settled(false)
		after(100) // to 106
		said(25)
		c.Settled(false)
		after(1)
		waits.Store(true)
		c.Settled(true)
		said(106, 107)
		// It was with what was committed.
		waits.Store(false)
		c.Settled(true)
		after(10)
		said()
		after(90) // to 207
		said(127)
		fails.Store(true)
		c.Settled(false)
		after(1)
		waits.Store(true)
		for range 10 {
			c.Settled(true)
			after(1) // to 218
		}
		said(207)
		after(10)
		said(227)
		after(3639) // to 3867
		said(267, 347, 507, 827, 1467, 2747)
		after(5000) // to 8867
		said(4747, 6747, 8747)
		fails.Store(false)
		waits.Store(false)
		after(2000) // to 10867
		said(10747)
		fails.Store(true)
		c.Settled(false)
		after(40) // to 10907
		said(10867, 10887)
		fails.Store(false)
		after(100) // to 11007
		said(10927)
		cancel()
		<-ended
	})
}

// TestHalf: half of the window is what is settled and not durable, whatever was delivered.
func TestHalf(t *testing.T) {
	w := New(4, 0)
	for i := range int64(4) {
		w.Deliver(i)
	}
	for n, half := range []bool{false, true, true, true} {
		if w.Done(uint64(n)); w.Half() != half {
			t.Errorf("%d of 4 are settled: %v", n+1, w.Half())
		}
	}
	w.Kept(3)
	if w.Half() {
		t.Error("what is durable counts")
	}
}
