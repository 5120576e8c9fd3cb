package rocketmq

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// TestBrokerCannotWrite: the broker can write no more, as where its disk is full: it gets
// no new segment. Publishers are told that it is not kept, or that nobody knows, and
// members go on with what there is. When there is room, publishers go on by themselves,
// and nothing acknowledged is lost.
func TestBrokerCannotWrite(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	r, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{Broker: []string{"mappedFileSizeCommitLog=8388608"}})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	t.Cleanup(func() { must(r.Stop()) })
	s, topic := prepare(ctx, t, r.NameServer, 1)
	shut(t, s.Close)
	f := follow(ctx, t, s, topic)
	var kept []string
	publish := func() error {
		id := fmt.Sprintf("e%05d", len(kept))
		e := store.Outgoing{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: make([]byte, 1<<20)}}
		err := s.Publish(ctx, topic, []store.Outgoing{e}, make([]store.Result, 1))
		if err == nil {
			kept = append(kept, id)
		}
		return err
	}
	must(publish())
	var limit unix.Rlimit
	must(unix.Prlimit(r.Broker.PID(), unix.RLIMIT_FSIZE, nil, &limit))
	must(unix.Prlimit(r.Broker.PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 4 << 20, Max: limit.Max}, nil))
	told := map[fault.Class]int{}
	for refused := 0; refused < 5; {
		err := publish()
		if err == nil {
			if len(kept) > 100 {
				t.Fatalf("%d events were kept", len(kept))
			}
			continue
		}
		refused++
		class := fault.ClassOf(err)
		if told[class]++; class != fault.Unavailable && class != fault.Ambiguous || !fault.Retryable(err) {
			t.Fatalf("to a broker that cannot write: %v", err)
		}
	}
	f.wait(ctx, t, len(kept))
	must(unix.Prlimit(r.Broker.PID(), unix.RLIMIT_FSIZE, &limit, nil))
	before := len(kept)
	for len(kept) < before+10 {
		if err := publish(); err != nil && !fault.Retryable(err) {
			t.Fatal(err)
		}
	}
	f.wait(ctx, t, len(kept))
	f.group.mu.Lock()
	defer f.group.mu.Unlock()
	for _, id := range kept {
		if f.group.count[id] == 0 {
			t.Errorf("%s was acknowledged and never came", id)
		}
	}
	t.Logf("%d were kept before, %d after; publishers were told %v", before, len(kept)-before, told)
}
