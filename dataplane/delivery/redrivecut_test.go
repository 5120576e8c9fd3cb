package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

var errUnknown = &fault.Error{Class: fault.Ambiguous, Op: "test.publish", Reason: "ambiguous"}

// TestRedriveWithoutItsCaller: what a redrive has begun to give back when its caller goes is
// given back once.
func TestRedriveWithoutItsCaller(t *testing.T) {
	w := deadWorld(t)
	w.dead("a", "b")
	h := w.hook()
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	h.publish = func(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
		if topic == names.RetryTopic(uidSub) {
			cancel()
		}
		err := h.Store.Publish(context.WithoutCancel(ctx), topic, events, res)
		if ctx.Err() == nil {
			return err
		}
		for i := range res { // they were handed over, and nobody has waited for them
			res[i].Err = errUnknown
		}
		return errUnknown
	}
	got, err := w.m.Redrive(ctx, local, Redrive{Query: DeadLetterQuery{Namespace: "demo", Subscription: "billing"}, Rate: MaxRedriveRate}, func(Redriven) {})
	if got.Redriven != 2 || !errors.Is(err, context.Canceled) && fault.ClassOf(err) != fault.Canceled {
		t.Errorf("%+v %v", got, err)
	}
	if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 2 {
		t.Errorf("the next one: %+v", got)
	}
	m := w.join(10)
	defer m.Close()
	w.next(m, 2)
	w.nothing(m, "each is given back once")
}

// TestRedriveMarkedTwice: a mark whose write had no outcome is in the topic twice. The
// redrive ends all the same.
func TestRedriveMarkedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := deadWorld(t)
		w.dead("a", "b")
		h, marks := w.hook(), 0
		h.publish = func(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
			err := h.Store.Publish(ctx, topic, events, res)
			if events[0].Type == TypeRedriven {
				if marks++; marks == 1 {
					return errUnknown
				}
			}
			return err
		}
		if got := w.redrive(Redrive{}); got.Redriven != 2 || marks != 2 {
			t.Errorf("%+v, and %d marks", got, marks)
		}
		if got := w.redrive(Redrive{}); got.Redriven != 0 || got.Already != 2 {
			t.Errorf("the next one: %+v", got)
		}
	})
}

// TestRedrivenBeforeItIsDelivered: what a member has got and settled before all of a batch
// was written is remembered as settled last.
func TestRedrivenBeforeItIsDelivered(t *testing.T) {
	w := deadWorld(t)
	w.dead("a")
	w.facts = facts.New(nil)
	h := w.hook()
	m := w.join(1)
	defer m.Close()
	h.publish = func(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
		err := h.Store.Publish(ctx, topic, events, res)
		if topic == names.RetryTopic(uidSub) {
			m.Ack(w.next(m, 1)[0].ID)
		}
		return err
	}
	if got := w.redrive(Redrive{}); got.Redriven != 1 {
		t.Errorf("%+v", got)
	}
	known, _ := w.facts.Of("/test", "a")
	if n := len(known); n != 3 || known[0].Kind != facts.Redriven || known[n-1].Kind != facts.Acked {
		t.Errorf("remembered is %+v", known)
	}
}
