package moves

import (
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// TestNatives: what native producers write behind the cut is told, and holds up the end of
// the move until it is in the topic; not what they write once the end is wished.
func TestNatives(t *testing.T) {
	w := newWorld(t)
	w.office()
	w.to(drained)
	follow := names.FollowGroup("topic", 1)
	w.publish("uid-a", "ns_t", "native")
	w.toldIn(drained, "native producers wrote 1 messages to EventStore a behind its end, of which 1 are not in the topic yet")
	w.wish(finish)
	w.within(20*lookEvery, "it waits for what native producers wrote", func() bool {
		return strings.Contains(w.told(), "1 of what native producers wrote to EventStore a are not in the topic yet")
	})
	w.jump.Add(int64(lateness) * 10)
	w.publish("uid-a", "ns_t", "after")
	w.toldIn(drained, "native producers wrote 2 messages")
	w.phase(drained)
	w.read("uid-a", "ns_t", follow, 3) // with what is before the cut, and its marker
	w.within(20*lookEvery, "the end", func() bool { return w.binding().Move == nil })
}

// TestUnmadeGroup: a move does not end while nobody can have followed native producers,
// but where those who provision the store chose so.
func TestUnmadeGroup(t *testing.T) {
	w := newWorld(t)
	w.office()
	w.to(drained)
	w.must(w.where["uid-a"].(store.Admin).DeleteGroup(w.ctx, "ns_t", names.FollowGroup("topic", 1)))
	w.wish(finish)
	w.jump.Add(int64(lateness) * 10)
	w.toldIn(drained, "the group that follows them is made")
	w.put(meta("a", "uid-a"), &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Provisioning: configv1.Provisioning_PROVISIONING_VERIFY,
		Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"a"}}}}}})
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
}

// TestAtTheCut: what somebody writes where the fence found the end of the old place holds up
// the end of the move until it is followed. Where there is no fence the marker is there.
func TestAtTheCut(t *testing.T) {
	for _, tc := range []struct {
		fence     configv1.Fence_State
		committed uint64
		waits     bool
	}{
		{configv1.Fence_STATE_ENFORCED, 4, true},
		{configv1.Fence_STATE_ENFORCED, 5, false},
		{configv1.Fence_STATE_ADVISORY, 4, false},
		{configv1.Fence_STATE_NONE, 4, false},
	} {
		m := &move{b: &configv1.TopicBinding{Epochs: []*configv1.Epoch{{Number: 1, Store: "a", Cut: []*configv1.Cut{{Partition: "0", Offset: 4}}, Fence: &configv1.Fence{State: tc.fence}}, {Number: 2}}},
			seen: &sighting{look: &look{followed: map[uint32]*trail{1: {store: "a", lag: []store.PartitionLag{{Partition: "0", Committed: tc.committed, End: 5}}, ends: map[string]uint64{"0": 5}}}}}}
		if waits := m.unforwarded(); (len(waits) > 0) != tc.waits {
			t.Errorf("%+v: %q", tc, waits)
		}
	}
}
