package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/resource"
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

// acking is a stream's transport that acknowledges at once whatever is sent, and logs
// when that was.
type acking struct {
	taken
	requests chan request
	mu       sync.Mutex
	log      []time.Time
	last     int64
}

func (a *acking) SendMsg(m any) error {
	b, ok := m.(frame)
	if !ok {
		return nil
	}
	var resp discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(b, &resp); err != nil {
		return err
	}
	a.mu.Lock()
	a.log = append(a.log, time.Now())
	_, revision, _ := strings.Cut(resp.SystemVersionInfo, "/")
	a.last, _ = strconv.ParseInt(revision, 10, 64)
	a.mu.Unlock()
	a.requests <- deltaRequest{&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL, ResponseNonce: resp.Nonce}}
	return nil
}

func (a *acking) next() (request, error) {
	select {
	case r := <-a.requests:
		return r, nil
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
}

// TestPushesOfAProxy: while a thousand changes a second are made, a proxy that answers
// at once is pushed at most twenty in any second, and has the last of them a moment
// after; by its own log.
func TestPushesOfAProxy(t *testing.T) {
	w := newWorld(t)
	var history []*configstore.Snapshot
	for i := range 1500 {
		w.put(fmt.Sprint(i), fmt.Sprintf("demo/a%d", i%10))
		snap, err := w.store.Current()
		w.must(err)
		history = append(history, snap)
	}
	synctest.Test(t, func(t *testing.T) {
		src := churning{Source: fixed{}, now: latest.New(history[0])}
		p := Pace(src, 0)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- p.Run(ctx) }()
		synctest.Wait()
		s := New(Config{Source: p, Log: slog.New(slog.DiscardHandler)})
		rpc := &acking{taken: taken{ctx: ctx}, requests: make(chan request, 2)}
		rpc.requests <- deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, TypeUrl: resource.TypeURL}}
		go func() {
			ended <- s.serve(rpc, nil, rpc.next)
		}()
		for _, snap := range history[1:] {
			<-time.After(time.Millisecond)
			src.now.Store(snap)
		}
		<-time.After(PaceEvery)
		synctest.Wait()
		newest := history[len(history)-1].Revision
		for from, i := 0, 0; i < len(rpc.log); i++ {
			for rpc.log[i].Sub(rpc.log[from]) >= time.Second {
				from++
			}
			if n := i - from + 1; n > 20 {
				t.Errorf("%d pushes in the second before the one numbered %d", n, i)
			}
		}
		if n := len(rpc.log); n < 25 || rpc.last != newest {
			t.Errorf("%d pushes, the last of revision %d, want %d", n, rpc.last, newest)
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}
