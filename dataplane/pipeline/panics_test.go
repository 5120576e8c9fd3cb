package pipeline

import (
	"context"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/store"
)

// broken is a store with a defect, which shows at once or in the second half.
type broken struct{ store.Store }

func (broken) Publish(context.Context, string, []store.Outgoing, []store.Result) error {
	panic("in one")
}

type brokenHander struct {
	broken
	late bool
}

func (b brokenHander) Hand(context.Context, string, []store.Outgoing) (func(context.Context, []store.Result) error, error) {
	if !b.late {
		panic("at once")
	}
	return func(context.Context, []store.Result) error { panic("late") }, nil
}

// TestPanics: a publish that panics, whose call a listener answers, has taken nothing from
// others once it is over: no bytes in flight, no place of a Quota, and no span is open.
func TestPanics(t *testing.T) {
	const size = 20 // of the events of one call, more or less
	for what, st := range map[string]store.Store{"in one": broken{}, "at once": brokenHander{}, "late": brokenHander{late: true}} {
		w := newWorld(t, size)
		spans := tracetest.NewSpanRecorder()
		w.p.tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("")
		w.p.cfg.Store = func(string) (store.Store, error) { return st, nil }
		snap := w.p.cfg.Snapshots.Get()
		q, refused := quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q",
			Spec: &configv1.Quota{Topics: []string{"orders"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL, Publish: &configv1.PublishQuota{InFlight: 1}}}})
		if len(refused) > 0 {
			t.Fatal(refused)
		}
		snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}].Quotas = q.Publishing("demo", "orders")
		func() {
			defer func() {
				if p := recover(); p != what {
					t.Errorf("%s: panics with %v", what, p)
				}
			}()
			_, _ = w.publish("orders", events("x"))
		}()
		if n := len(spans.Started()); n != 2 || len(spans.Ended()) != n {
			t.Errorf("%s: of %d spans %d have ended", what, n, len(spans.Ended()))
		}
		for _, s := range spans.Ended() {
			if s.Status().Description != "internal" {
				t.Errorf("%s: span %s ends with %+v", what, s.Name(), s.Status())
			}
		}
		w.p.cfg.Store = func(string) (store.Store, error) { return w.st, nil }
		if _, err := w.publish("orders", events("x")); err != nil {
			t.Errorf("%s: the next one: %v", what, err)
		}
		if n, _ := w.metric("weft_proxy_publish_in_flight_bytes"); n != 0 {
			t.Errorf("%s: %v bytes are in flight", what, n)
		}
	}
}

// TestPanicBeforeRequest: a request that panics while it waits to hear replies gives its
// room back.
func TestPanicBeforeRequest(t *testing.T) {
	w := newWorld(t, 0)
	w.p.replies.tails.open = nil // to write there panics
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it does not panic")
			}
		}()
		_, _ = w.p.Request(context.Background(), local, "demo", "orders", events("x")[0], time.Second)
	}()
	if n, _ := w.metric("weft_proxy_publish_in_flight_bytes"); n != 0 {
		t.Errorf("%v bytes are in flight", n)
	}
}
