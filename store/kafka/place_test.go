package kafka

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
)

// TestPlaceKept: the place of a group without members is kept, also where brokers
// forget those of others, as they do after a week by default; here it is a minute.
func TestPlaceKept(t *testing.T) {
	servers.NeedServers(t)
	t.Parallel() // it only waits
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{Properties: []string{"offsets.retention.minutes=1", "offsets.retention.check.interval.ms=1000"}})
	s := open(t, Options{Brokers: k.Brokers}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 1)
	publishAll(ctx, t, s, topic, "a", 10)
	const member = "member"
	if err := s.EnsureGroup(ctx, topic, member, store.Start{}); err != nil {
		t.Fatal(err)
	}
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: member})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 10; {
		dst := make([]store.Message, 10)
		got, err := sub.Fetch(ctx, dst)
		if err != nil {
			t.Fatal(err)
		}
		for i := range dst[:got] {
			sub.Settle([]*store.Message{&dst[i]})
		}
		n += got
	}
	if err := sub.Close(ctx); err != nil {
		t.Fatal(err)
	}
	c, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	native := kadm.NewClient(c)
	t.Cleanup(native.Close)
	if err := native.CommitAllOffsets(ctx, "native", listed(topic, 5)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		at, err := s.committed(ctx, "test", topic, "native")
		if err != nil {
			t.Fatal(err)
		}
		if len(at) == 0 {
			break // it is forgotten
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("brokers forget nothing")
		}
	}
	for group, want := range map[string]int64{groupOf(topic): 0, member: 10} {
		if at, err := s.committed(ctx, "test", topic, group); err != nil || len(at) != 1 || at[0] != want {
			t.Errorf("the place of %s is %v, want %d: %v", group, at, want, err)
		}
	}
}
