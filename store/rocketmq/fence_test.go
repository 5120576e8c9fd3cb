package rocketmq

import (
	"context"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestFence: in a fence a topic can be read and marked, and whoever asks where it is is
// told not to write; brokers take what comes all the same, of clients that have asked
// before. Provisioning leaves the fence standing, with more queues too, and any store of
// the mesh removes it. What an administrator has made read only stays so.
func TestFence(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	name := servers.SharedRocketMQ(t)
	s, topic := prepare(ctx, t, name, 2)
	other := func() *Store {
		s := open(t, name, testWindow)
		t.Cleanup(func() {
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	publish := func(s *Store, id string) error {
		return s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t"}}}, make([]store.Result, 1))
	}
	allowed := func(want int) {
		t.Helper()
		r, err := s.c.route(ctx, topic, true)
		must(err)
		if r.perms["broker-a"] != want {
			t.Errorf("a topic of permissions %d, want %d", r.perms["broker-a"], want)
		}
	}
	stale := other()
	must(publish(stale, "before"))
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceAdvisory {
		t.Fatalf("%v, %v", how, err)
	}
	if err := publish(other(), "refused"); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("who asks in the fence is told %v", err)
	}
	// Were it refused, the fence would be an enforced one.
	if err := publish(stale, "stale"); err != nil {
		t.Errorf("who has asked before is told %v", err)
	}
	stale.c.doubt(topic)
	if err := publish(stale, "refused"); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("who asks again is told %v", err)
	}
	if all, err := sealed(ctx, s, topic); err != nil || len(all) != 2 {
		t.Errorf("in the fence are marked %q, %v", all, err)
	}
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceAdvisory {
		t.Errorf("once more: %v, %v", how, err)
	}
	for _, queues := range []int{2, 3} {
		must(s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: queues}))
		allowed(permFence)
	}
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	must(err)
	for n := 0; n < 4; { // two events, two markers
		dst := make([]store.Message, 4)
		got, err := sub.Fetch(ctx, dst)
		must(err)
		for i := range got {
			sub.Settle([]*store.Message{&dst[i]})
		}
		n += got
	}
	must(sub.Close(ctx))
	must(other().Unfence(ctx, topic))
	allowed(permRead | permWrite)
	must(publish(other(), "after"))
	must(s.Unfence(ctx, topic))

	restrict(ctx, t, s, topic, 3, 3, permRead)
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceAdvisory {
		t.Errorf("of a topic that is read only: %v, %v", how, err)
	}
	must(s.Unfence(ctx, topic))
	allowed(permRead)
	if _, err := s.Fence(ctx, topic+"-none"); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("of no topic: %v", err)
	}
	must(s.Unfence(ctx, topic+"-none"))
}
