package pipeline

import (
	"context"
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// late is a store that may read a call after it has not acknowledged it.
type late struct {
	store.Store
	fail bool
	kept [][]store.Outgoing
}

func (s *late) Publish(_ context.Context, _ string, events []store.Outgoing, res []store.Result) error {
	if !s.fail {
		clear(res)
		return nil
	}
	s.kept = append(s.kept, events)
	err := fault.New(fault.Ambiguous, "test", "ambiguous", "nobody knows")
	for i := range res {
		res[i] = store.Result{Err: err}
	}
	return err
}

// TestLateStore: what a store has not acknowledged it may read for ever; what it
// has, it has no more of.
func TestLateStore(t *testing.T) {
	w := newWorld(t, 0)
	s := &late{}
	w.p.cfg.Store = func(string) (store.Store, error) { return s, nil }
	batch := func(first int) []event.Event {
		in := events("t", "t", "t", "t")
		for i := range in {
			in[i].ID = fmt.Sprint(first + i)
		}
		return in
	}
	for i := range 20 {
		s.fail = i%2 == 0
		if res, err := w.publish("orders", batch(4*i)); (err != nil) != s.fail || (res[0].Err != nil) != s.fail {
			t.Fatalf("%+v %v", res, err)
		}
	}
	for n, kept := range s.kept {
		for i := range kept {
			if kept[i].Event == nil || kept[i].ID != fmt.Sprint(8*n+i) {
				t.Fatalf("of call %d, event %d is another one: %+v", n, i, kept[i].Event)
			}
		}
	}
}

// TestPublishAllocations: the pipeline takes nothing of the heap for a batch.
func TestPublishAllocations(t *testing.T) {
	w := newWorld(t, 0)
	w.p.cfg.Store = func(string) (store.Store, error) { return instant{}, nil }
	in := events("t", "t", "t", "t")
	res := make([]frontend.Result, len(in))
	if n := testing.AllocsPerRun(200, func() {
		clear(res)
		if err := w.p.Publish(context.Background(), local, "demo", "orders", in, res); err != nil {
			t.Fatal(err)
		}
	}); n > 2 { // none; the race detector empties pools
		t.Errorf("%.0f allocations for a batch", n)
	}
}

// TestForwardOfWhatTheMeshAddedTo: a Subscription forwards dead letters, also of events that
// had as many attributes as a client's may; a client's has no more.
func TestForwardOfWhatTheMeshAddedTo(t *testing.T) {
	w := newWorld(t, 0)
	e := events("x")[0]
	for n := range event.MaxAttributes + 4 {
		e.Ext = event.With(e.Ext, fmt.Sprintf("a%02d", n), "v")
	}
	if _, err := w.publish("orders", []event.Event{e}); fault.From(err).Reason != "bad-event" {
		t.Errorf("a client's: %v", err)
	}
	e.Mesh = delivery.Forwarded(1)
	w.must(w.p.Forward(context.Background(), snapshot.Key{Namespace: "demo", Name: "dead"}, "orders", &e))
	for n := range event.MaxAdded {
		e.Ext = event.With(e.Ext, fmt.Sprintf("b%02d", n), "v")
	}
	if err := w.p.Forward(context.Background(), snapshot.Key{Namespace: "demo", Name: "dead"}, "orders", &e); fault.From(err).Reason != "bad-event" {
		t.Errorf("more than the mesh adds: %v", err)
	}
}
