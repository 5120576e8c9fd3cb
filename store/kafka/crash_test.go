package kafka

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
)

func listed(topic string, at int64) kadm.Offsets {
	var o kadm.Offsets
	o.Add(kadm.Offset{Topic: topic, Partition: 0, At: at, LeaderEpoch: -1})
	return o
}

// place puts a group elsewhere in the topic's first partition.
func place(ctx context.Context, s *Store, topic, group string, at int64) error {
	return s.adm.CommitAllOffsets(ctx, group, listed(topic, at))
}

// Environment of a child process that is a member of a group: see TestMemberProcess.
const (
	envBroker = "WEFT_TEST_MEMBER_BROKER"
	envTopic  = "WEFT_TEST_MEMBER_TOPIC"
)

// quick has members be missed soon after their death; the broker must allow it.
func quick() { sessionTimeout, heartbeatEvery = time.Second, 250*time.Millisecond }

// TestMemberProcess is not a test of its own: TestMemberCrashes runs it as another
// process. It settles all but the first event of each partition, and prints what it
// got and what it settled.
func TestMemberProcess(t *testing.T) {
	if os.Getenv(envBroker) == "" {
		return // this process is not the child
	}
	quick()
	topic := os.Getenv(envTopic)
	sub, err := open(t, Options{Brokers: []string{os.Getenv(envBroker)}}, 0).Subscribe(t.Context(), store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	held := map[string]bool{}
	dst := make([]store.Message, 8)
	for {
		n, err := sub.Fetch(t.Context(), dst)
		if err != nil {
			return
		}
		for i := range dst[:n] {
			m := &dst[i]
			if !held[m.Pos.Partition] {
				held[m.Pos.Partition] = true
				fmt.Fprintln(os.Stdout, "held", m.ID)
				continue
			}
			sub.Settle([]*store.Message{m})
			fmt.Fprintln(os.Stdout, "settled", m.ID)
		}
	}
}

// TestMemberCrashes: a member is killed (-9) twenty times, each time with one event
// of each partition unsettled for ever and all later ones settled. Nothing is lost,
// and nothing comes again of what it had settled and the group had kept.
func TestMemberCrashes(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{Properties: []string{"group.min.session.timeout.ms=500"}})
	s := open(t, Options{Brokers: k.Brokers}, 0)
	shut(t, s.Close)
	const partitions, lives, each = 2, 20, 30
	topic := prepare(ctx, t, s, partitions)
	settled, held := map[string]bool{}, map[string]bool{}
	for life := range lives {
		publishAll(ctx, t, s, topic, fmt.Sprintf("l%02d-", life), each)
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMemberProcess$", "-test.timeout="+servers.StartTimeout.String())
		cmd.Env = append(os.Environ(), envBroker+"="+k.Brokers[0], envTopic+"="+topic)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		clear(held)
		for lines := bufio.NewScanner(out); len(settled)+len(held) < each*(life+1) && lines.Scan(); {
			id, isHeld := strings.CutPrefix(lines.Text(), "held ")
			id, isSettled := strings.CutPrefix(id, "settled ")
			if settled[id] {
				t.Fatalf("life %d: %s was settled, and comes again", life, id)
			}
			if isHeld {
				held[id] = true
			}
			if isSettled {
				settled[id] = true
			}
		}
		kept(ctx, t, s, topic, len(settled))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if ctx.Err() != nil {
			t.Fatalf("life %d: %d are settled and %d held, of %d", life, len(settled), len(held), each*(life+1))
		}
	}
	if len(held) != partitions || len(settled) != lives*each-partitions {
		t.Errorf("%d are settled and %d held, of %d", len(settled), len(held), lives*each)
	}
	// One who settles them too gets these alone, and leaves nothing behind.
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	fctx, stop := context.WithCancel(ctx)
	got := newTally()
	var work sync.WaitGroup
	work.Go(func() { consume(fctx, sub, got.add) })
	kept(ctx, t, s, topic, lives*each)
	stop()
	work.Wait()
	for id := range got.count {
		if !held[id] {
			t.Errorf("%s was settled, and comes again", id)
		}
	}
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
}

// kept waits until the group's commits say that n events are settled.
func kept(ctx context.Context, t *testing.T, s *Store, topic string, n int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		have, err := s.adm.FetchOffsets(ctx, groupOf(topic))
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		have.Each(func(o kadm.OffsetResponse) {
			got += int(o.At)
			for _, r := range decodeDone(o.Metadata, o.At) {
				got += int(r.last - r.first + 1)
			}
		})
		if got == n {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the group's commits have %d settled, want %d", got, n)
		}
	}
}
