package inspect

import (
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/position"
)

// TestWhyOverEpochs: of a topic that has moved is explained by the store that the event
// is in. What is behind the cut was not taken, whether or not it was published again.
func TestWhyOverEpochs(t *testing.T) {
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
	const uid = "11111111-1111-4111-8111-111111111111"
	put := func(epoch uint32, topic, id string) position.Token {
		var res [1]store.Result
		must(st.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t"}}}, res[:]))
		return position.Token{TopicUID: uid, Epoch: epoch, Pos: res[0].Pos}
	}
	for _, topic := range []string{"one", "two"} {
		must(admin.EnsureTopic(ctx, store.TopicSpec{Name: topic}))
	}
	must(admin.EnsureGroup(ctx, "two", "g", store.Start{}))
	early := put(1, "one", "early")
	cut := put(1, "one", "marker")
	late := put(1, "one", "late")
	put(1, "one", "again")
	put(2, "two", "again")
	topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: uid, Epochs: []snapshot.Epoch{{Number: 1, Physical: "one"}, {Number: 2, Physical: "two"}},
		Cuts: map[uint32]map[string]store.Position{1: {"": cut.Pos}}}
	sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "mine"}, Topics: []string{"orders"},
		Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[1], Group: "g"}}}
	i := world(st, topic, sub)
	who := &policy.Principal{Name: policy.Local}
	for id, tc := range map[string]struct {
		at   position.Token
		want string
	}{"early": {early, "passed"}, "late": {late, "publish-failed"}, "again": {position.Token{}, "waiting"}} {
		q := Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: id}
		if tc.at.TopicUID != "" {
			q.Facts = []facts.Fact{{Kind: facts.Stored, Namespace: "demo", Topic: "orders", Position: tc.at}}
		}
		if a, err := i.Why(ctx, who, q); err != nil || a.Verdict != tc.want {
			t.Errorf("%s: %+v %v, want %s", id, a, err, tc.want)
		}
	}
}
