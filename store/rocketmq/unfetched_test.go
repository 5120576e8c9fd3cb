package rocketmq

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// TestUnfetchedIsNotCommitted: what a member has pulled but nobody has fetched is
// not settled, also after a pull that found nothing more, which moves the
// puller's place but not the group's.
func TestUnfetchedIsNotCommitted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := open(t, servers.SharedRocketMQ(t), 0)
	defer func() {
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	topic := names.Physical(servers.Namespace(t), "unfetched"+uuid.NewString()[:4])
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureGroup(ctx, topic, groupOf(topic), store.Start{}); err != nil {
		t.Fatal(err)
	}
	res := make([]store.Result, 1)
	if err := s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: "a", Source: "/s", Type: "t"}}}, res); err != nil {
		t.Fatal(err)
	}
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	x := sub.(*subscription)

	// Wait until the event is buffered, and then until the next pull has found
	// nothing for sure: brokers look at the pulls that they hold every 5 s.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var since time.Time
	for since.IsZero() || time.Since(since) < pullWait+callTimeout+2*time.Second {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the event was never pulled")
		}
		x.mu.Lock()
		for _, o := range x.order {
			if len(o.buffer) > 0 && since.IsZero() {
				since = time.Now()
			}
			if at := o.window.Commit(); at != 0 {
				x.mu.Unlock()
				t.Fatalf("the group would commit %d; nothing was fetched, let alone settled", at)
			}
		}
		x.mu.Unlock()
	}
	if err := sub.Close(ctx); err != nil {
		t.Fatal(err)
	}
	lag, err := s.Lag(ctx, topic, groupOf(topic))
	if err != nil {
		t.Fatal(err)
	}
	if lag[0].Behind != 1 {
		t.Errorf("the group is behind %d events after a member left that fetched nothing, want 1", lag[0].Behind)
	}
}
