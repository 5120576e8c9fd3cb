package inspect

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

const shortUID = "11111111-1111-4111-8111-111111111111"

// whyOf asks about an event of topic orders of a store, and gives the answer with all that
// was found.
func whyOf(t *testing.T, st store.Store, known ...facts.Fact) (verdict, says string) {
	topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: shortUID, Epochs: []snapshot.Epoch{{Number: 1, Physical: "one"}}}
	sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "mine"}, Topics: []string{"orders"},
		Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g"}}}
	i := world(st, topic, sub)
	a, err := i.Why(t.Context(), &policy.Principal{Name: policy.Local}, Question{Namespace: "demo", Subscription: "mine", Source: "/s", ID: "e", Facts: known})
	if err != nil {
		t.Fatal(err)
	}
	says = a.Message + "\n"
	for _, f := range a.Findings {
		says += f.Detail + "\n"
	}
	return a.Verdict, says
}

// busy is a store whose topics have more events than are searched, all at once.
type busy struct {
	endless
	at time.Time
}

func (b busy) Tail(context.Context, store.TailRequest) (store.Tail, error) { return b, nil }
func (b busy) Next(_ context.Context, dst []store.Message) (int, error) {
	for i := range dst {
		dst[i] = store.Message{Event: event.Event{ID: "other", Source: "/s", Type: "t"}, Stored: b.at}
	}
	return len(dst), nil
}

// TestSearchedInPart: where not all of a topic was searched for an event that nobody knows,
// the answer says so, and how far it was.
func TestSearchedInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for what, tc := range map[string]struct {
			st   store.Store
			says []string
		}{
			"many events": {busy{at: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)}, []string{"topic orders was searched no further than over 100096 events, to what was stored at 2026-07-01T12:00:00Z", "Not all of them was searched"}},
			"slow events": {endless{}, []string{"topic orders was searched no further than over ", "Not all of them was searched"}},
			"none":        {bounds{begin: 1, end: 1}, []string{"it was not found in the topics that Subscription mine reads. Are source and id right?", "not among the last events"}},
		} {
			verdict, says := whyOf(t, tc.st)
			for _, want := range tc.says {
				if verdict != "not-found" || !strings.Contains(says, want) {
					t.Errorf("%s: %s: %s, want %s", what, verdict, says, want)
				}
			}
		}
	})
}

// slow is a store that takes its time to give the first event.
type slow struct{ bounds }

type slowTail struct {
	endless
	came chan struct{}
}

func (slow) Tail(context.Context, store.TailRequest) (store.Tail, error) {
	t := slowTail{came: make(chan struct{})}
	time.AfterFunc(3*searchIdle, func() { close(t.came) })
	return t, nil
}

func (t slowTail) Next(ctx context.Context, dst []store.Message) (int, error) {
	select {
	case <-t.came:
		dst[0] = store.Message{Event: event.Event{ID: "e", Source: "/s", Type: "t"}, Pos: store.Position{Offset: 4}}
		return 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestSlowStore: a topic that gives nothing for a while is not taken for one that has no more.
func TestSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if verdict, says := whyOf(t, slow{bounds{begin: 1, end: 5}}); verdict != "waiting" || !strings.Contains(says, "was found in topic orders") {
			t.Errorf("%s: %s", verdict, says)
		}
	})
}

// bounds is a store whose topics have events that are not given, and a group that has
// settled nothing.
type bounds struct {
	store.Store
	store.Admin
	begin, end uint64
}

func (b bounds) Tail(context.Context, store.TailRequest) (store.Tail, error) { return silence{}, nil }
func (b bounds) Extents(context.Context, string) ([]store.Extent, error) {
	return []store.Extent{{Begin: b.begin, End: b.end}}, nil
}
func (b bounds) Lag(context.Context, string, string) ([]store.PartitionLag, error) {
	return []store.PartitionLag{{Committed: b.begin, End: b.end, Behind: int64(b.end - b.begin)}}, nil
}

// silence is a tail that has nothing.
type silence struct{ endless }

func (silence) Next(ctx context.Context, _ []store.Message) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
func (silence) Mark(context.Context) (func() bool, error) { return func() bool { return true }, nil }

// TestRemovedByRetention: of an event that its topic does not have any more is said that
// retention has removed it, and not that it was delivered.
func TestRemovedByRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := facts.Fact{At: 1, Kind: facts.Stored, Namespace: "demo", Topic: "orders", Position: position.Token{TopicUID: shortUID, Epoch: 1, Pos: store.Position{Offset: 4}}}
		for _, tc := range []struct {
			begin         uint64
			verdict, says string
		}{
			{5, "passed", "the retention of topic orders has removed it, before it was delivered or"},
			{4, "waiting", "has not come to it"},
		} {
			verdict, says := whyOf(t, bounds{begin: tc.begin, end: 9}, stored)
			if verdict != tc.verdict || !strings.Contains(says, tc.says) {
				t.Errorf("of a topic that begins at %d: %s: %s", tc.begin, verdict, says)
			}
		}
	})
}
