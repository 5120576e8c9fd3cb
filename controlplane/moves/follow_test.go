package moves

import (
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
	w.toldIn(drained, "1 of what native producers wrote to EventStore a are not in the topic yet")
	w.jump.Add(int64(lateness) * 10)
	w.publish("uid-a", "ns_t", "after")
	w.toldIn(drained, "native producers wrote 2 messages")
	w.phase(drained)
	w.read("uid-a", "ns_t", follow, 3) // with what is before the cut, and its marker
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
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
