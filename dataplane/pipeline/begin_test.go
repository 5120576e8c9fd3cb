package pipeline

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/moves"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// handing is a troubled store that publishes in two halves: the second one begins when
// the test waits.
type handing struct {
	*troubled
	handed []string // the topics
	refuse error    // by Hand
}

func (h *handing) Hand(_ context.Context, topic string, events []store.Outgoing) (func(context.Context, []store.Result) error, error) {
	if h.refuse != nil {
		return nil, h.refuse
	}
	h.handed = append(h.handed, topic)
	return func(ctx context.Context, res []store.Result) error { return h.Publish(ctx, topic, events, res) }, nil
}

// newHanding has a world whose store publishes in two halves.
func newHanding(t *testing.T, maxInFlight int64) (*world, *handing) {
	w := newWorld(t, maxInFlight)
	h := &handing{troubled: w.st}
	w.p.cfg.Store = func(string) (store.Store, error) { return h, nil }
	return w, h
}

func (w *world) begin(topic string, in []event.Event) ([]frontend.Result, func(context.Context) error, error) {
	res := make([]frontend.Result, len(in))
	wait, err := w.p.Begin(context.Background(), local, "demo", topic, in, res)
	return res, wait, err
}

// TestBegin: with a store that can, a publish is handed over and waited for; until it is
// answered its room is taken, and nothing is acknowledged.
func TestBegin(t *testing.T) {
	in := events("x", "y")
	size := int64(in[0].Size() + in[1].Size())
	w, h := newHanding(t, size)
	res, wait, err := w.begin("orders", in)
	w.must(err)
	if wait == nil || !slices.Equal(h.handed, []string{"orders"}) || w.st.calls != 0 || res[0].Position.String() != "" {
		t.Fatalf("handed over: %v, %d calls, %+v", h.handed, w.st.calls, res)
	}
	if _, wait, err := w.begin("orders", in); wait != nil || fault.From(err).Reason != "proxy-full" {
		t.Errorf("without room: %v", err)
	}
	if n, _ := w.metric("weft_proxy_publish_events_total"); n != 0 {
		t.Errorf("%v events count before they are kept", n)
	}
	w.must(wait(context.Background()))
	if w.kept("orders", 2) != "0x 1y" || !res[0].Position.Pos.Less(res[1].Position.Pos) || res[1].Position.Epoch != 1 {
		t.Errorf("%+v", res)
	}
	// What fails late, or at once, leaves nothing behind.
	down := fault.New(fault.Unavailable, "test", "down", "the store is down")
	w.st.fail["orders"] = down
	res, wait, err = w.begin("orders", in)
	w.must(err)
	if err := wait(context.Background()); !errors.Is(err, down) || res[0].Err == nil || res[1].Err == nil {
		t.Errorf("a store that fails: %v, %+v", err, res)
	}
	h.refuse = down
	if res, wait, err = w.begin("orders", in); wait != nil || !errors.Is(err, down) || res[0].Err == nil || res[1].Err == nil {
		t.Errorf("a store that takes nothing: %v, %+v", err, res)
	}
	for name, want := range map[string]float64{"weft_proxy_publish_events_total": 2, "weft_proxy_publish_errors_total": 6, "weft_proxy_publish_in_flight_bytes": 0} {
		if got, _ := w.metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// TestBeginWhole: what a store does in one, or a refusal, leaves nothing to wait for.
func TestBeginWhole(t *testing.T) {
	w := newWorld(t, 0)
	res, wait, err := w.begin("orders", events("x"))
	w.must(err)
	if wait != nil || res[0].Position.String() == "" || w.kept("orders", 1) != "0x" {
		t.Errorf("%+v", res)
	}
	for topic, reason := range map[string]string{"secret": "access-denied", "nowhere": "unknown-topic", "waiting": "topic-not-ready"} {
		if res, wait, err := w.begin(topic, events("x")); wait != nil || fault.From(err).Reason != reason || res[0].Err == nil {
			t.Errorf("%s: %v", topic, err)
		}
	}
}

// TestBeginRoute: of a batch that goes to several topics only the last part is not waited
// for; where one before fails the rest is not handed over.
func TestBeginRoute(t *testing.T) {
	w, h := newHanding(t, 0)
	res, wait, err := w.begin("routed", events("x", "a", "a"))
	w.must(err)
	if wait == nil || !slices.Equal(h.handed, []string{"audit"}) || res[0].Position.String() == "" || res[1].Position.String() != "" {
		t.Fatalf("handed over: %v, %+v", h.handed, res)
	}
	w.must(wait(context.Background()))
	if got := w.kept("routed", 1) + ", " + w.kept("audit", 2); got != "0x, 1a 2a" {
		t.Error(got)
	}
	w.st.fail["routed"] = errors.New("broken")
	if res, wait, err := w.begin("routed", events("x", "a")); wait != nil || err == nil || fault.From(res[1].Err).Reason != "after-a-failure" || len(h.handed) != 1 {
		t.Errorf("after a failure: %v, handed over %v, %+v", err, h.handed, res)
	}
}

// TestBeginMoved: what a topic has moved away from meanwhile is not acknowledged.
func TestBeginMoved(t *testing.T) {
	w, _ := newHanding(t, 0)
	res, wait, err := w.begin("orders", events("x"))
	w.must(err)
	now := *w.p.cfg.Snapshots.Get()
	now.Topics = map[snapshot.Key]*snapshot.Topic{}
	w.p.cfg.Snapshots.Store(&now)
	if err := wait(context.Background()); fault.ClassOf(err) != fault.Ambiguous || fault.From(res[0].Err).Reason != "moved-meanwhile" {
		t.Errorf("%v, %+v", err, res)
	}
}

// moving is a store that answers when a topic has moved: with an error, or none, for each event.
type moving struct {
	store.Store
	moved func()
	errs  []error
}

func (m moving) Publish(_ context.Context, _ string, _ []store.Outgoing, res []store.Result) (first error) {
	m.moved()
	for i, err := range m.errs {
		res[i] = store.Result{Err: err}
		if first == nil {
			first = err
		}
	}
	return first
}

// TestMovedUnkept: where a topic has moved meanwhile, what its store has not acknowledged fails
// with what that said, and is not counted among what the move left unknown.
func TestMovedUnkept(t *testing.T) {
	down, unknown := fault.New(fault.Unavailable, "test", "down", "the store is down"), fault.New(fault.Ambiguous, "test", "no-answer", "nobody knows")
	for name, tc := range map[string]struct {
		errs    []error
		reasons string
		late    float64
	}{
		"all":     {[]error{nil, nil}, "moved-meanwhile moved-meanwhile", 1},
		"some":    {[]error{nil, down}, "moved-meanwhile down", 1},
		"none":    {[]error{down, down}, "down down", 0},
		"unknown": {[]error{unknown, down}, "no-answer down", 0},
	} {
		w := newWorld(t, 0)
		snaps := w.p.cfg.Snapshots
		st := moving{w.st, func() {
			now := *snaps.Get()
			now.Topics = map[snapshot.Key]*snapshot.Topic{}
			snaps.Store(&now)
		}, tc.errs}
		w.p.cfg.Store = func(string) (store.Store, error) { return st, nil }
		w.p.cfg.Moves = moves.New(moves.Config{Snapshots: snaps, Store: w.p.cfg.Store, Metrics: w.reg})
		res, err := w.publish("orders", events("x", "y"))
		if got := reason(res[0].Err) + " " + reason(res[1].Err); got != tc.reasons || err == nil {
			t.Errorf("%s: %v, %s, want %s", name, err, got, tc.reasons)
		}
		if late, _ := w.metric("weft_proxy_move_ambiguous_total"); late != tc.late {
			t.Errorf("%s: %v count, want %v", name, late, tc.late)
		}
	}
}

// TestLostTopic: whoever publishes to a topic that its store has lost is told to try again.
func TestLostTopic(t *testing.T) {
	w, _ := newHanding(t, 0)
	w.st.fail["orders"] = fault.New(fault.NotFound, "test", "unknown-topic", "the store has no topic orders")
	lost := func(when string, res []frontend.Result, err error) {
		t.Helper()
		for _, err := range []error{err, res[0].Err} {
			if f := fault.From(err); f.Class != fault.Unavailable || f.Reason != "topic-not-ready" || f.RetryAfter <= 0 || f.Msg != "topic orders is not ready: the store has no topic orders" {
				t.Errorf("%s: %+v", when, f)
			}
		}
	}
	res, err := w.publish("orders", events("x"))
	lost("in one", res, err)
	res, wait, err := w.begin("orders", events("x"))
	w.must(err)
	err = wait(context.Background())
	lost("in two halves", res, err)
	if _, err := w.publish("nowhere", events("x")); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("a topic that there is not: %v", err)
	}
}
