package kafka

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestTrim: what a group is done with is removed, and only that. What it has not settled it
// gets, what it has settled behind that it does not, and its place is where it was.
func TestTrim(t *testing.T) {
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	ctx := t.Context()
	topic := prepare(ctx, t, s, 2)
	group := groupOf(topic)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	res := make([]store.Result, 1)
	for i := range 8 {
		must(s.Publish(ctx, topic, one(fmt.Sprint(i), "key"), res))
	}
	of, err := strconv.Atoi(res[0].Pos.Partition)
	must(err)
	trimmed := func(want uint64) {
		t.Helper()
		for range 2 { // asking twice is asking once
			must(s.Trim(ctx, topic, group))
			x, err := s.Extents(ctx, topic)
			must(err)
			if x[of].Begin != want || x[1-of].Begin != 0 {
				t.Fatalf("partitions begin at %+v, want partition %d to at %d", x, of, want)
			}
		}
	}
	trimmed(0)
	join := func() (store.Subscription, map[string]*store.Message) {
		t.Helper()
		sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: group})
		must(err)
		return sub, map[string]*store.Message{}
	}
	fetch := func(sub store.Subscription, got map[string]*store.Message, n int) {
		t.Helper()
		for len(got) < n {
			dst := make([]store.Message, 8)
			k, err := sub.Fetch(ctx, dst)
			must(err)
			for i := range dst[:k] {
				got[dst[i].ID] = &dst[i]
			}
		}
	}
	sub, got := join()
	fetch(sub, got, 8)
	for _, id := range []string{"0", "1", "2", "4", "5"} {
		sub.Settle([]*store.Message{got[id]})
	}
	must(sub.Close(ctx))
	trimmed(3)
	lag, err := s.Lag(ctx, topic, group)
	must(err)
	if lag[of].Committed != 3 || lag[of].Behind != 5 {
		t.Errorf("the group is at %+v", lag[of])
	}
	sub, got = join()
	fetch(sub, got, 3)
	for _, id := range []string{"3", "6", "7"} {
		if m := got[id]; m == nil {
			t.Errorf("%s has not come: %v", id, got)
		} else {
			sub.Settle([]*store.Message{m})
		}
	}
	must(sub.Close(ctx))
	trimmed(8)
	if err := s.Trim(ctx, topic, "of-nobody"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("a group that is not there: %v", err)
	}
	if err := s.Trim(ctx, topic+"-not", group); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("a topic that is not there: %v", err)
	}

	// The topic is made anew, and the place of its group is of the one before.
	must(s.DeleteTopic(ctx, topic))
	must(s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 2}))
	must(s.Publish(ctx, topic, one("new", "key"), make([]store.Result, 1)))
	c, err := kgo.NewClient(kgo.SeedBrokers(s.op.Brokers...))
	must(err)
	native := kadm.NewClient(c)
	defer native.Close()
	var place kadm.Offsets
	place.AddOffset(topic, int32(of), 8, -1) //nolint:gosec // 0 or 1
	must(native.CommitAllOffsets(ctx, group, place))
	trimmed(0)
}
