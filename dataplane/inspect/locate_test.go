package inspect

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// endless is a store whose topics have an event every half a second, for ever.
type endless struct{ store.Store }

func (endless) Tail(context.Context, store.TailRequest) (store.Tail, error) { return endless{}, nil }
func (endless) Next(ctx context.Context, dst []store.Message) (int, error) {
	select {
	case <-time.After(time.Second / 2):
		dst[0] = store.Message{Event: event.Event{ID: "other", Source: "/s", Type: "t"}}
		return 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
func (endless) AtEnd() bool { return false }
func (endless) Mark(context.Context) (func() bool, error) {
	return func() bool { return false }, nil
}
func (endless) Close(context.Context) error { return nil }

// TestSearchEnds: an event that does not exist is looked for no longer where a Subscription
// reads many topics, and the answer says that not all were searched.
func TestSearchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: "11111111-1111-4111-8111-111111111111", Epochs: []snapshot.Epoch{{Number: 1, Physical: "one"}}}
		sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "mine"}, Topics: []string{"orders"}}
		for range 60 {
			sub.Sources = append(sub.Sources, snapshot.Source{Topic: topic, Epoch: topic.Epochs[0], Group: "g"})
		}
		i := world(endless{}, topic, sub)
		began := time.Now()
		a, err := i.Why(t.Context(), &policy.Principal{Name: policy.Local}, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: "none"})
		if err != nil || a.Verdict != "not-found" {
			t.Fatalf("%+v %v", a, err)
		}
		if took := time.Since(began); took != searchTime {
			t.Errorf("it took %v of the bubble", took)
		}
		said := ""
		for _, f := range a.Findings {
			said += f.Detail + "\n"
		}
		if !strings.Contains(said, "no time to look") {
			t.Errorf("it says %s", said)
		}
	})
}

// TestWhatAKeyWaitsFor: of an event of an ordered Subscription whose key is held up is said
// by which event, and what became of that; not where that one comes behind it.
func TestWhatAKeyWaitsFor(t *testing.T) {
	again := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	at := func(offset uint64) position.Token {
		return position.Token{Epoch: 1, Pos: store.Position{Offset: offset}}
	}
	topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, KeyFrom: "subject"}
	for name, tc := range map[string]struct {
		first delivery.Ahead
		want  string
	}{
		"blocked":     {delivery.Ahead{Position: at(1), Failed: 3, Blocked: true, Again: again}, "its key waits for a1 (source /s), which has failed 3 times, blocks it until somebody settles it, and is tried again at 2026-07-01T12:00:00Z"},
		"failed once": {delivery.Ahead{Position: at(1), Failed: 1, Again: again}, "its key waits for a1 (source /s), which has failed once, and is tried again at 2026-07-01T12:00:00Z"},
		"out":         {delivery.Ahead{Position: at(1), Out: true}, "its key waits for a1 (source /s), which is with a member now"},
		"not yet out": {delivery.Ahead{Position: at(1)}, "its key waits for a1 (source /s), which waits for a member"},
		"itself":      {delivery.Ahead{Position: at(2), Out: true}, ""},
		"behind it":   {delivery.Ahead{Position: at(3), Out: true}, ""},
	} {
		tc.first.Source, tc.first.ID = "/s", "a1"
		a := &asking{sub: &snapshot.Subscription{UID: "u", Ordered: true}, event: &event.Event{ID: "a2", Source: "/s", Type: "t", Subject: "a"}, pos: at(2),
			i: New(Config{Ahead: func(uid, topic, key string) (delivery.Ahead, bool) {
				return tc.first, uid == "u" && topic == "orders" && key == "a"
			}})}
		if got := a.ahead(topic); got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestSearchesOfOne: who searches as much as it may leaves room for others.
func TestSearchesOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: "11111111-1111-4111-8111-111111111111", Epochs: []snapshot.Epoch{{Number: 1, Physical: "one"}}}
		sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "mine"}, Topics: []string{"orders"}, Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g"}}}
		i := world(endless{}, topic, sub)
		next := *i.cfg.Snapshots.Get()
		next.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
			{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"*"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME},
				Topics: []string{"orders"}, Subscriptions: []string{"mine"}}}}}}, nil)
		i.cfg.Snapshots.Store(&next)
		ask := func(name string) error {
			_, err := i.Why(t.Context(), &policy.Principal{Namespace: "demo", Name: name}, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: "none"})
			return err
		}
		var searching sync.WaitGroup
		begin := func(name string) {
			searching.Go(func() {
				if err := ask(name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
			synctest.Wait()
		}
		refused := func(name, why string) {
			if f := fault.From(ask(name)); f == nil || f.Reason != "too-many-scans" || !strings.Contains(f.Msg, why) {
				t.Errorf("%s: %v", name, f)
			}
		}
		for range 2 { // what has ended counts no more
			begin("greedy")
			begin("greedy")
			refused("greedy", "for demo/greedy")
			begin("other")
			begin("third")
			refused("fourth", "for others")
			searching.Wait()
		}
	})
}
