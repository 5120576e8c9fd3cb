package rocketmq

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// Environment of a child process that is a member of a group: see
// TestMemberProcess.
const (
	envNames = "WEFT_TEST_MEMBER_NAMES"
	envTopic = "WEFT_TEST_MEMBER_TOPIC"
)

const testWindow = 32

// TestMemberProcess is not a test of its own: TestMemberKilled runs it as another
// process. It prints the id of each event after it has settled it.
func TestMemberProcess(t *testing.T) {
	if os.Getenv(envNames) == "" {
		return // this process is not the child
	}
	sub, err := open(t, os.Getenv(envNames), testWindow).Subscribe(t.Context(), store.SubscribeRequest{Topic: os.Getenv(envTopic), Group: groupOf(os.Getenv(envTopic))})
	if err != nil {
		t.Fatal(err)
	}
	consume(t.Context(), sub, func(id string) { fmt.Fprintln(os.Stdout, "settled", id) })
}

// consume settles whatever comes until ctx ends.
func consume(ctx context.Context, sub store.Subscription, settled func(id string)) {
	dst := make([]store.Message, 8)
	for {
		n, err := sub.Fetch(ctx, dst)
		if err != nil && fault.ClassOf(err) != fault.Unavailable {
			return
		}
		for i := range dst[:n] {
			sub.Settle([]*store.Message{&dst[i]})
			settled(dst[i].ID)
		}
	}
}

// tally counts what was settled.
type tally struct {
	mu    sync.Mutex
	count map[string]int
	grew  chan struct{} // capacity 1
}

func newTally() *tally { return &tally{count: map[string]int{}, grew: make(chan struct{}, 1)} }

func (y *tally) add(id string) {
	y.mu.Lock()
	y.count[id]++
	y.mu.Unlock()
	poke(y.grew)
}

// repeats is how often events came beyond the first time.
func (y *tally) repeats() (n int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, k := range y.count {
		n += k - 1
	}
	return n
}

// wait waits for n different events.
func (y *tally) wait(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for {
		y.mu.Lock()
		have := len(y.count)
		y.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-y.grew:
		case <-ctx.Done():
			t.Fatalf("%d of %d events were settled", have, n)
		}
	}
}

// groupOf is a group of a topic's own: members of one group must not read
// different topics, and brokers know groups by their name alone.
func groupOf(topic string) string { return topic + "-g" }

func prepare(ctx context.Context, t *testing.T, nameServer string, queues int) (*Store, string) {
	t.Helper()
	s := open(t, nameServer, testWindow)
	return s, ensure(ctx, t, s, queues)
}

// ensure makes a topic with its group.
func ensure(ctx context.Context, t *testing.T, s *Store, queues int) (topic string) {
	t.Helper()
	topic = names.Physical(servers.Namespace(t), "own"+uuid.NewString()[:4])
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: queues})
		if err == nil {
			break
		}
		// A broker that has just started is not known to the name server yet.
		if fault.ClassOf(err) != fault.Unavailable || ctx.Err() != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if err := s.EnsureGroup(ctx, topic, groupOf(topic), store.Start{}); err != nil {
		t.Fatal(err)
	}
	return topic
}

// publishAll publishes n events with keys, again until each is acknowledged.
func publishAll(ctx context.Context, t *testing.T, s *Store, topic, prefix string, n int) {
	t.Helper()
	for i := 0; i < n; {
		e := store.Outgoing{Event: &event.Event{ID: fmt.Sprintf("%s%05d", prefix, i), Source: "/s", Type: "t"}, Key: fmt.Sprint(i % 40)}
		err := s.Publish(ctx, topic, []store.Outgoing{e}, make([]store.Result, 1))
		switch {
		case err == nil:
			i++
		case ctx.Err() != nil:
			return
		case !fault.Retryable(err):
			t.Errorf("Publish: %v", err)
			return
		}
	}
}

// TestMemberKilled: a member in another process is killed (-9) while events flow.
// Its queues go to the one that is left; nothing is lost, and no more is repeated
// than a window for each queue.
func TestMemberKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	nameServer := servers.SharedRocketMQ(t)
	const queues = 4
	s, topic := prepare(ctx, t, nameServer, queues)
	all, childs := newTally(), newTally()

	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMemberProcess$", "-test.timeout="+servers.StartTimeout.String())
	cmd.Env = append(os.Environ(), envNames+"="+nameServer, envTopic+"="+topic)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "settled "); ok {
				all.add(id)
				childs.add(id)
			}
		}
	})
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	work.Go(func() { consume(fctx, sub, all.add) })
	// Events flow until the other process has had its share, however late it came.
	killed, published := make(chan struct{}), make(chan int, 1)
	work.Go(func() {
		n := 0
		for over := false; !over || n < 2000; n += 100 {
			publishAll(ctx, t, s, topic, fmt.Sprint("e", n, "-"), 100)
			select {
			case <-killed:
				over = true
			case <-ctx.Done():
				return
			default:
			}
		}
		published <- n
	})

	childs.wait(ctx, t, 100)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	close(killed)
	var total int
	select {
	case total = <-published:
	case <-ctx.Done():
		t.Fatal("not all was published")
	}
	all.wait(ctx, t, total)
	// What the killed process had settled and not committed comes once more.
	for behind := int64(1); behind > 0; {
		lag, err := s.Lag(ctx, topic, groupOf(topic))
		if err != nil {
			t.Fatal(err)
		}
		behind = 0
		for _, l := range lag {
			behind += l.Behind
		}
	}
	stop()
	work.Wait()
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
	// Queues move twice: when the second member comes and when one is killed.
	if n := all.repeats(); n > 2*queues*testWindow {
		t.Errorf("%d events were repeated, the most is %d", n, 2*queues*testWindow)
	} else {
		t.Logf("%d events, %d of them in the process that was killed; %d repeated", total, len(childs.count), n)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestPlaceOfAnother: another member that had the queue for a moment, as it may while a
// broker that has started does not know all members yet, has left its own place behind. The
// owner puts the group's place right, though nothing more is settled.
func TestPlaceOfAnother(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, topic := prepare(ctx, t, servers.SharedRocketMQ(t), 1)
	shut(t, s.Close)
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, sub.Close)
	all := newTally()
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { consume(fctx, sub, all.add) })
	t.Cleanup(func() { stop(); work.Wait() })
	const n = 20
	publishAll(ctx, t, s, topic, "a", n)
	all.wait(ctx, t, n)
	r, err := s.c.route(ctx, topic, false)
	if err != nil {
		t.Fatal(err)
	}
	q := r.read[0]
	place := func() int64 {
		at, _, err := s.c.committed(ctx, r.brokers[q.broker], topic, groupOf(topic), q)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for place() != n {
		<-tick.C
	}
	if err := s.c.commit(ctx, r.brokers[q.broker], topic, groupOf(topic), q, n/2); err != nil {
		t.Fatal(err)
	}
	if _, err := sub.(*subscription).rebalance(ctx); err != nil {
		t.Fatal(err)
	}
	if at := place(); at != n {
		t.Errorf("the group is at %d of %d", at, n)
	}
}

func second[T any](_ T, err error) error { return err }

// TestBrokerKilled: the broker is killed (-9) and started again while events flow.
// What was acknowledged is delivered, and the group's place is durable again
// though nothing more is settled.
func TestBrokerKilled(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	r, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}()
	const before, total = 500, 1000
	s, topic := prepare(ctx, t, r.NameServer, 4)
	all := newTally()
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	var work sync.WaitGroup
	work.Go(func() { consume(fctx, sub, all.add) })
	publishAll(ctx, t, s, topic, "a", before)
	all.wait(ctx, t, before)

	if err := r.Broker.Kill(); err != nil {
		t.Fatal(err)
	}
	// The name server forgets the topic with its one broker: it is away, not gone.
	for err = nil; err == nil && ctx.Err() == nil; {
		_, err = s.c.masters(ctx)
	}
	for what, err := range map[string]error{"a lookup": second(s.c.route(ctx, topic, true)), "a publish": s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: "away", Source: "/s", Type: "t"}}}, make([]store.Result, 1)),
		"a member": second(sub.(*subscription).rebalance(ctx)), "another member": second(s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)}))} {
		if fault.ClassOf(err) != fault.Unavailable {
			t.Errorf("%s, without the broker: %v", what, err)
		}
	}
	if err := r.Broker.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// The broker has forgotten the commits of its last seconds. Nothing is
	// settled now; the member commits them again by itself.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(6 * heartbeatEvery)
	defer deadline.Stop()
	for behind := int64(-1); behind != 0; {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("the group stays %d behind", behind)
		}
		lag, err := s.Lag(ctx, topic, groupOf(topic))
		if err != nil {
			continue // it is not reachable yet
		}
		behind = 0
		for _, l := range lag {
			behind += l.Behind
		}
	}
	publishAll(ctx, t, s, topic, "b", total-before)
	all.wait(ctx, t, total)
	stop()
	work.Wait()
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("%d repeated", all.repeats())
}

// TestKnownToOneBroker: a member that one broker does not know any more, as where it has
// just come back, keeps its share: another one does.
func TestKnownToOneBroker(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mq, _ := twoBrokers(ctx, t)
	s, topic := prepare(ctx, t, mq.NameServer, 2)
	shut(t, s.Close)
	group := groupOf(topic)
	must(s.EnsureGroup(ctx, topic, group, store.Start{}))
	// They say that they live when they are told to, and not by themselves.
	var both []*subscription
	var ids []string
	for range 2 {
		x := s.member(store.SubscribeRequest{Topic: topic, Group: group})
		shut(t, x.Close)
		both, ids = append(both, x), append(ids, x.client)
	}
	slices.Sort(ids)
	r, err := s.c.route(ctx, topic, true)
	must(err)
	for _, forgets := range []string{"broker-a", "broker-b"} {
		_, _, err := both[1].meet(ctx, r)
		must(err)
		_, err = both[1].c.ask(ctx, r.brokers[forgets], reqUnregister, map[string]string{"clientID": both[1].client, "consumerGroup": group}, nil)
		must(err)
		members, alive, err := both[0].meet(ctx, r)
		must(err)
		if !slices.Equal(members, ids) || len(alive) != 2 {
			t.Errorf("where %s has forgotten a member they are %q of %q, by %v", forgets, members, ids, alive)
		}
	}
}
