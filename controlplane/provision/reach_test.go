package provision

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// hanging is a driver whose servers take connections and say nothing, until so many are
// asked at once; then they are refused.
type hanging struct {
	store.Driver
	until int32
	asked *atomic.Int32
	all   chan struct{}
}

func (h hanging) Open(ctx context.Context, _ store.Config) (store.Store, error) {
	if h.asked.Add(1) == h.until {
		close(h.all)
	}
	select {
	case <-h.all:
		return nil, fault.New(fault.Unavailable, "open", "Refused", "it is refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestReachSideBySide: stores that do not answer are waited for together.
func TestReachSideBySide(t *testing.T) {
	h := hanging{until: 3, asked: &atomic.Int32{}, all: make(chan struct{})}
	w := newWorld(t, h)
	var list []*configv1.Resource
	for i := range h.until {
		list = append(list, kafka("shop", fmt.Sprintf("dead-%d", i)))
	}
	w.put(list...)
	w.pass()
	for _, o := range w.p.open {
		if fault.ClassOf(o.err) != fault.Unavailable {
			t.Errorf("%s: %v", o.name, o.err)
		}
	}
}

// TestReachRests: a store that did not answer in time is not waited for again at once, but
// when it was changed; one that answers, whatever it says, is asked each time.
func TestReachRests(t *testing.T) {
	h := hanging{until: 3, asked: &atomic.Int32{}, all: make(chan struct{})}
	w := newWorld(t, h)
	es := kafka("shop", "main")
	w.put(es)
	late, cancel := context.WithCancel(w.ctx)
	cancel()
	reach := func(ctx context.Context, asked int32) {
		t.Helper()
		snap, err := w.store.Current()
		w.must(err)
		if w.p.reach(ctx, w.term, snap.Get(es.Name), false) {
			t.Error("it is reached")
		}
		if got := h.asked.Load(); got != asked {
			t.Errorf("it was asked %d times, want %d", got, asked)
		}
	}
	o := func() *opened { return w.p.open[es.Metadata.Uid] }
	reach(late, 1)
	reach(late, 1)
	first := o().rest
	o().next = time.Time{}
	reach(late, 2)
	if o().rest <= first || first == 0 {
		t.Errorf("it rests for %v, then for %v", first, o().rest)
	}
	reach(w.ctx, 2)
	es.Metadata.Labels = map[string]string{"changed": "yes"}
	w.put(es)
	reach(w.ctx, 3)
	reach(w.ctx, 4)
}
