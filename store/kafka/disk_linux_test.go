package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestBrokerCannotWrite: the broker can write no more, as where its disk is full: its
// files may not grow. Publishers are told that it is not kept, or that nobody knows;
// Kafka gives up the folder, which was its only one, and ends. When it is started again
// with room, the same publishers and members go on, and nothing acknowledged is lost.
func TestBrokerCannotWrite(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{})
	node := k.Nodes[0]
	s := open(t, Options{Brokers: k.Brokers}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	must(err)
	shut(t, sub.Close)
	came := newTally()
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { consume(fctx, sub, came.add) })
	t.Cleanup(func() { stop(); work.Wait() })

	var kept []string
	publish := func() error {
		id := fmt.Sprintf("e%05d", len(kept))
		e := store.Outgoing{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: make([]byte, 256<<10)}}
		err := s.Publish(ctx, topic, []store.Outgoing{e}, make([]store.Result, 1))
		if err == nil {
			kept = append(kept, id)
		}
		return err
	}
	must(publish())
	var limit unix.Rlimit
	must(unix.Prlimit(node.PID(), unix.RLIMIT_FSIZE, nil, &limit))
	must(unix.Prlimit(node.PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4 << 20, Max: limit.Max}, nil))
	told := map[fault.Class]int{}
	for told[fault.Unavailable] == 0 {
		err := publish()
		if err == nil {
			if len(kept) > 20 {
				t.Fatalf("%d events were kept", len(kept))
			}
			continue
		}
		class := fault.ClassOf(err)
		if told[class]++; class != fault.Unavailable && class != fault.Ambiguous || !fault.Retryable(err) {
			t.Fatalf("to a broker that cannot write: %v", err)
		}
	}
	select {
	case <-node.Done():
	case <-ctx.Done():
		t.Fatal("the broker lives")
	}
	if err := s.Check(ctx); store.Why(err) != "Unreachable" {
		t.Errorf("Check: %v", err)
	}
	before := len(kept)
	must(node.Start(ctx))
	for len(kept) < before+10 {
		if err := publish(); err != nil && !fault.Retryable(err) {
			t.Fatal(err)
		}
	}
	came.wait(ctx, t, len(kept))
	came.mu.Lock()
	defer came.mu.Unlock()
	for _, id := range kept {
		if came.count[id] == 0 {
			t.Errorf("%s was acknowledged and never came", id)
		}
	}
	t.Logf("%d were kept before, %d after; publishers were told %v", before, len(kept)-before, told)
}
