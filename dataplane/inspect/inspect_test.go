package inspect

import (
	"context"
	"errors"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// TestOnlyWhatMayBeSeen: facts of topics and Subscriptions that the caller may not read
// are left out, and so is where a Route led to; who may not be a member of a
// Subscription hears nothing of it, not even whether it exists.
func TestOnlyWhatMayBeSeen(t *testing.T) {
	ring := facts.New(nil)
	e := &event.Event{ID: "1", Source: "/s"}
	at := position.Token{TopicUID: "11111111-1111-4111-8111-111111111111"}
	for _, f := range []facts.Fact{
		{Kind: facts.Stored, Namespace: "demo", Topic: "open", Kept: "closed", Position: at},
		{Kind: facts.Stored, Namespace: "demo", Topic: "closed", Position: at},
		{Kind: facts.Stored, Namespace: "other", Topic: "open", Position: at},
		{Kind: facts.Acked, Namespace: "demo", Topic: "open", Subscription: "mine", Attempt: 1},
		{Kind: facts.Acked, Namespace: "demo", Topic: "open", Subscription: "theirs", Attempt: 1},
	} {
		ring.Add(e, &f)
	}
	rules := policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
		{Name: "r", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME},
			Topics: []string{"open"}, Subscriptions: []string{"mine", "gone"}}}}}}, nil)
	snap := &snapshot.Snapshot{Rules: rules, Subscriptions: map[snapshot.Key]*snapshot.Subscription{
		{Namespace: "demo", Name: "mine"}:   {Key: snapshot.Key{Namespace: "demo", Name: "mine"}},
		{Namespace: "demo", Name: "theirs"}: {Key: snapshot.Key{Namespace: "demo", Name: "theirs"}}}}
	i := New(Config{Snapshots: latest.New(snap), Facts: ring, NodeID: "p", Members: func(string) (int, int) { return 0, 0 },
		Store: func(string) (store.Store, error) { return nil, errors.New("not wanted") }})
	who := &policy.Principal{Name: policy.Local}
	got, err := i.Trace(context.Background(), who, "demo", "/s", "1")
	if err != nil || len(got.Facts) != 2 || got.Facts[0].Topic != "open" || got.Facts[0].Kept != "" || got.Facts[0].Position.TopicUID != "" || got.Facts[1].Subscription != "mine" {
		t.Errorf("%+v %v", got, err)
	}
	if a, err := i.Why(context.Background(), who, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: "1"}); err != nil || a.Verdict != "acked" {
		t.Errorf("%+v %v", a, err)
	}
	for sub, want := range map[string]fault.Class{"theirs": fault.Denied, "no-such": fault.Denied, "gone": fault.NotFound, "a..b": fault.Invalid} {
		if a, err := i.Why(context.Background(), who, Question{Namespace: "demo", Subscription: sub, Source: "/s", ID: "1"}); err == nil || fault.ClassOf(err) != want {
			t.Errorf("of %s: %+v %v", sub, a, err)
		}
	}
	// What is brought along is judged too.
	lie := facts.Fact{Kind: facts.Stored, Topic: "closed", Position: at}
	if a, err := i.Why(context.Background(), who, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: "2", Facts: []facts.Fact{lie}}); err != nil || a.Verdict != "not-found" {
		t.Errorf("%+v %v", a, err)
	}
}
