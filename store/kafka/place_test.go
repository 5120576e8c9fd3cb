package kafka

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
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

// TestSettledGoesBack: where the log is shorter than what a group has settled, as after the
// restore of an old backup, that says nothing of what is written there anew: all of it comes,
// also what has the offsets that were settled above the group's place.
func TestSettledGoesBack(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 1)
	publishAll(ctx, t, s, topic, "a", 5)
	before := listed(topic, 10)
	before[topic][0] = kadm.Offset{Topic: topic, At: 10, LeaderEpoch: -1, Metadata: encodeDone(ackwindow.New(8, 10), 10, []run{{12, 14}})}
	if err := s.adm.CommitAllOffsets(ctx, groupOf(topic), before); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	// read settles what comes but for the first, and has it durable.
	read := func(n int) {
		t.Helper()
		sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]store.Message, 32)
		for held := false; len(got) < n; {
			k, err := sub.Fetch(ctx, dst)
			if err != nil {
				t.Fatalf("%d of %d events came: %v", len(got), n, err)
			}
			for i := range dst[:k] {
				got[dst[i].ID] = true
				if held {
					sub.Settle([]*store.Message{&dst[i]})
				}
				held = true
			}
		}
		if err := sub.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	read(5)
	publishAll(ctx, t, s, topic, "b", 15)
	ctx, cancel = context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	read(20)
	if len(got) != 20 || !got[fmt.Sprintf("b%05d", 8)] {
		t.Errorf("%d events came", len(got))
	}
}
