package delivery

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/store"
)

// hooked is a store of which a test makes some otherwise.
type hooked struct {
	store.Store
	store.Admin
	store.Measurer
	publish func(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error
	extents func(ctx context.Context, topic string) ([]store.Extent, error)
	tail    func(store.Tail) store.Tail
}

func (h *hooked) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	if h.publish != nil {
		return h.publish(ctx, topic, events, res)
	}
	return h.Store.Publish(ctx, topic, events, res)
}

func (h *hooked) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	return h.Store.(store.Delayer).PublishDelayed(ctx, topic, events, due, res)
}

func (h *hooked) Extents(ctx context.Context, topic string) ([]store.Extent, error) {
	if h.extents != nil {
		return h.extents(ctx, topic)
	}
	return h.Measurer.Extents(ctx, topic)
}

func (h *hooked) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	t, err := h.Store.Tail(ctx, r)
	if err == nil && h.tail != nil {
		t = h.tail(t)
	}
	return t, err
}

// hook has the world use a store that a test makes otherwise.
func (w *world) hook() *hooked {
	w.stop()
	h := &hooked{Store: w.st, Admin: w.st.(store.Admin), Measurer: w.st.(store.Measurer)}
	w.st = h
	w.start()
	return h
}

// TestRedriveIntoEmptyEpoch: where the dead-letter topic has moved, and nothing has come to
// its new store, a redrive waits until its marks are seen there: a store may show them later.
func TestRedriveIntoEmptyEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := deadWorld(t)
		w.dead("a", "b")
		w.must(w.st.(store.Admin).EnsureTopic(w.ctx, store.TopicSpec{Name: "dead2"}))
		s := w.snapshot(func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
		dead := s.Topics[snapshot.Key{Namespace: "demo", Name: "dead"}]
		dead.Epochs = append(dead.Epochs, snapshot.Epoch{Number: 2, StoreUID: uidStore, Physical: "dead2"})
		w.snaps.Store(s)
		h := w.hook()
		var shown sync.WaitGroup
		defer shown.Wait()
		h.publish = func(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
			if topic != "dead2" {
				return h.Store.Publish(ctx, topic, events, res)
			}
			e := *events[0].Event
			shown.Go(func() {
				<-time.After(100 * time.Millisecond)
				var res [1]store.Result
				if err := h.Store.Publish(w.ctx, topic, []store.Outgoing{{Event: &e}}, res[:]); err != nil {
					t.Error(err)
				}
			})
			return nil
		}
		if got := w.redrive(Redrive{}); got.Redriven != 2 {
			t.Errorf("%+v", got)
		}
		if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 2 {
			t.Errorf("at once after it: %+v", got)
		}
	})
}

// closing is a tail whose topic ends with what is no event, as the end of a transaction in
// Kafka is: it is passed, and not given.
type closing struct {
	store.Tail
	past bool
}

func (c *closing) Next(ctx context.Context, dst []store.Message) (int, error) {
	n, err := c.Tail.Next(ctx, dst)
	c.past = err != nil
	return n, err
}

func (c *closing) Mark(ctx context.Context) (func() bool, error) {
	passed, err := c.Tail.Mark(ctx)
	return func() bool { return passed() && c.past }, err
}

// TestDeadLettersBeforeATransactionsEnd: dead letters are listed and given back where the
// last that the store has in the topic is not given.
func TestDeadLettersBeforeATransactionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := deadWorld(t)
		w.dead("a", "b")
		h := w.hook()
		h.extents = func(ctx context.Context, topic string) ([]store.Extent, error) {
			all, err := h.Measurer.Extents(ctx, topic)
			for i := range all {
				all[i].End++
			}
			return all, err
		}
		h.tail = func(t store.Tail) store.Tail { return &closing{Tail: t} }
		if got := w.letters(DeadLetterQuery{Subscription: "billing"}); len(got) != 2 {
			t.Errorf("%v are listed", got)
		}
		if got := w.redrive(Redrive{}); got.Redriven != 2 {
			t.Errorf("%+v", got)
		}
		if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 2 {
			t.Errorf("the next one: %+v", got)
		}
	})
}
