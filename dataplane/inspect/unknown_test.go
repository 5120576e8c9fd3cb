package inspect

import (
	"context"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

// TestWhatIsNotKnown: an event of which nobody knows whether it was kept is looked for; what
// a Subscription is past, or a member was given, is not said to be more than is known.
func TestWhatIsNotKnown(t *testing.T) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := embedded.Driver{}.Open(ctx, store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	must(err)
	defer func() { must(st.Close(context.Background())) }()
	admin := st.(store.Admin)
	must(admin.EnsureTopic(ctx, store.TopicSpec{Name: "one"}))
	put := func(id string) {
		var res [1]store.Result
		must(st.Publish(ctx, "one", []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t"}}}, res[:]))
	}
	put("past")
	must(admin.EnsureGroup(ctx, "one", "g", store.Start{End: true}))
	put("kept")
	topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: "11111111-1111-4111-8111-111111111111", Epochs: []snapshot.Epoch{{Number: 1, Physical: "one"}}}
	sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "mine"}, Topics: []string{"orders"},
		Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g"}}}
	i := world(st, topic, sub)
	failed := func(detail string) facts.Fact {
		return facts.Fact{At: 1, Kind: facts.Failed, Namespace: "demo", Topic: "orders", Detail: detail}
	}
	given := facts.Fact{At: 1, Kind: facts.Delivered, Namespace: "demo", Topic: "orders", Subscription: "mine", Attempt: 1}
	for name, tc := range map[string]struct {
		id      string
		known   []facts.Fact
		verdict string
		says    string
	}{
		"unknown, and kept":     {"kept", []facts.Fact{failed(facts.Unknown + "ambiguous")}, "waiting", ""},
		"forgotten why":         {"kept", []facts.Fact{failed("")}, "waiting", ""},
		"unknown, then refused": {"kept", []facts.Fact{failed(facts.Unknown + "ambiguous"), {At: 2, Kind: facts.Refused, Namespace: "demo", Topic: "orders", Detail: "access-denied"}}, "waiting", ""},
		"unknown, and not kept": {"none", []facts.Fact{failed(facts.Unknown + "ambiguous")}, "publish-failed", "was not found"},
		"known":                 {"kept", []facts.Fact{failed("store-busy")}, "publish-failed", "was not taken"},
		"past":                  {"past", nil, "passed", "kept for another attempt (which it waits for) or given up as a dead letter"},
		"given":                 {"kept", []facts.Fact{given}, "in-flight", "or has left"},
	} {
		a, err := i.Why(ctx, &policy.Principal{Name: policy.Local}, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: tc.id, Facts: tc.known})
		if err != nil || a.Verdict != tc.verdict || !strings.Contains(a.Message, tc.says) {
			t.Errorf("%s: %+v %v, want %s: %s", name, a, err, tc.verdict, tc.says)
		}
	}
}
