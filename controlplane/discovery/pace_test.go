package discovery

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/latest"
)

// churning is a Source that the test changes.
type churning struct {
	Source
	now *latest.Value[*configstore.Snapshot]
}

func (c churning) Snapshot() (*configstore.Snapshot, <-chan struct{}) { return c.now.Load() }

// TestPace: a thousand changes a second for a minute are told at most twenty times
// a second, the first at once, and the last is told a moment after.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		src := churning{now: latest.New[*configstore.Snapshot](nil)}
		p := Pace(src, 0)
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		var told, last atomic.Int64
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for {
				snap, changed := p.Snapshot()
				if snap != nil && snap.Revision != last.Load() {
					if snap.Revision < last.Load() {
						t.Errorf("%d is told after %d", snap.Revision, last.Load())
					}
					told.Add(1)
					last.Store(snap.Revision)
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
		change := func(revision int64) { src.now.Store(configstore.Empty("1-x", revision)) }
		<-time.After(time.Hour)
		change(1)
		synctest.Wait()
		if told.Load() != 1 || last.Load() != 1 {
			t.Errorf("after a rest: told %d times, last %d", told.Load(), last.Load())
		}
		const seconds = 60
		for i := range int64(seconds * 1000) {
			<-time.After(time.Millisecond)
			change(2 + i)
		}
		synctest.Wait()
		if n := told.Load(); n > 1+seconds*20 || n < seconds*19 {
			t.Errorf("told %d times in %d s", n, seconds)
		}
		<-time.After(PaceEvery)
		synctest.Wait()
		if last.Load() != 1+seconds*1000 {
			t.Errorf("the last that is told is %d", last.Load())
		}
		if snap, err := p.WaitFor(ctx, last.Load()); err != nil || snap.Revision != last.Load() {
			t.Error(snap, err)
		}
		cancel()
		<-watched
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := p.WaitFor(ctx, last.Load()+1); err == nil {
			t.Error("it does not wait")
		}
	})
}

// TestPaceCatchUp: who comes new waits for what is known, and is not shown less.
func TestPaceCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := churning{now: latest.New(configstore.Empty("1-x", 1))}
		p := Pace(src, 0)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		synctest.Wait()
		src.now.Store(configstore.Empty("1-x", 2))
		p.catchUp(ctx)
		if snap, _ := p.Snapshot(); snap.Revision != 2 {
			t.Errorf("who comes new is shown revision %d", snap.Revision)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
