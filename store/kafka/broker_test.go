package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// groupOf is a group of a topic's own.
func groupOf(topic string) string { return topic + "-g" }

// prepare makes a topic and a group of it.
func prepare(ctx context.Context, t *testing.T, s *Store, partitions int) (topic string) {
	t.Helper()
	topic = names.Physical(servers.Namespace(t), "own"+uuid.NewString()[:4])
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	err := s.EnsureGroup(ctx, topic, groupOf(topic), store.Start{})
	for err != nil && fault.ClassOf(err) == fault.Unavailable && ctx.Err() == nil { // of a cluster that has just started
		err = s.EnsureGroup(ctx, topic, groupOf(topic), store.Start{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return topic
}

func start(ctx context.Context, t *testing.T, o servers.KafkaOptions) *servers.Kafka {
	t.Helper()
	k, err := servers.StartKafka(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// shut closes what was opened, after the test's own context.
func shut(t *testing.T, close func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := close(ctx); err != nil {
			t.Error(err)
		}
	})
}

func one(id, key string) []store.Outgoing {
	return []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t"}, Key: key}}
}

// publishAll publishes n events with keys, each again until it is acknowledged.
func publishAll(ctx context.Context, t *testing.T, s *Store, topic, prefix string, n int) {
	for i := 0; i < n; {
		err := s.Publish(ctx, topic, one(fmt.Sprintf("%s%05d", prefix, i), fmt.Sprint(i%40)), make([]store.Result, 1))
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

func (y *tally) have() (different, repeats int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, k := range y.count {
		repeats += k - 1
	}
	return len(y.count), repeats
}

// wait waits for n different events.
func (y *tally) wait(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for {
		have, _ := y.have()
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

// TestBrokerKilled: the broker is killed (-9) while events flow, is away, hangs, and
// comes back. What was acknowledged is delivered; meanwhile publishers are told so,
// and whether their event may have been kept.
func TestBrokerKilled(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	k := start(ctx, t, servers.KafkaOptions{})
	s := open(t, Options{Brokers: k.Brokers}, 64)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 4)
	const each = 500
	all := newTally()
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, sub.Close)
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { consume(fctx, sub, all.add) })
	t.Cleanup(func() { stop(); work.Wait() })

	work.Go(func() { publishAll(ctx, t, s, topic, "a", each) })
	all.wait(ctx, t, each/2)
	if err := k.Nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	// What was in flight may have been kept; what comes now cannot be.
	for sure := false; !sure && ctx.Err() == nil; {
		err := s.Publish(ctx, topic, one("away", ""), make([]store.Result, 1))
		if err == nil {
			t.Fatal("an event was kept by nobody")
		}
		sure = fault.ClassOf(err) == fault.Unavailable && store.Why(err) == "Unreachable"
	}
	other := open(t, Options{Brokers: k.Brokers}, 64)
	shut(t, other.Close)
	for what, err := range map[string]error{"Check": other.Check(ctx), "Publish": other.Publish(ctx, topic, one("away", ""), make([]store.Result, 1)),
		"Lag": second(s.Lag(ctx, topic, groupOf(topic))), "Probe": second(other.Probe(ctx)), "Tail": second(other.Tail(ctx, store.TailRequest{Topic: topic}))} {
		if fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "Unreachable" {
			t.Errorf("%s, without the broker: %v", what, err)
		}
	}
	if err := k.Nodes[0].Start(ctx); err != nil {
		t.Fatal(err)
	}
	all.wait(ctx, t, each)

	if err := k.Nodes[0].Pause(); err != nil {
		t.Fatal(err)
	}
	res := make([]store.Result, 1)
	briefly := func(id string) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return s.Publish(ctx, topic, one(id, "k"), res)
	}
	for err = nil; err == nil; err = briefly("hangs") { // its threads may go on for a moment
	}
	if fault.ClassOf(err) != fault.Ambiguous || fault.ClassOf(res[0].Err) != fault.Ambiguous {
		t.Errorf("while the broker hangs: %v", err)
	}
	// It waits behind the one of which nobody knows: it is not sent.
	if err := briefly("waits"); err == nil || fault.ClassOf(err) != fault.Canceled {
		t.Errorf("behind an event that hangs: %v", err)
	}
	if err := k.Nodes[0].Resume(); err != nil {
		t.Fatal(err)
	}
	publishAll(ctx, t, s, topic, "b", each)
	all.wait(ctx, t, 2*each)
	all.mu.Lock()
	if all.count["waits"] > 0 {
		t.Error("an event of which the publisher was told that it was not sent has come")
	}
	all.mu.Unlock()
	behind := int64(-1)
	for behind != 0 && ctx.Err() == nil {
		lag, err := s.Lag(ctx, topic, groupOf(topic))
		if err != nil {
			t.Fatal(err)
		}
		behind = 0
		for _, l := range lag {
			behind += l.Behind
		}
	}
	if behind != 0 {
		t.Errorf("the group stays %d behind", behind)
	}
	_, repeats := all.have()
	t.Logf("%d repeated", repeats)
}

func second[T any](_ T, err error) error { return err }

// TestHanging: a server that takes connections and never answers, and one that closes
// them at once, are unreachable; nobody asks them again and again.
func TestHanging(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){"silent": func(net.Conn) {}, "closing": func(c net.Conn) { _ = c.Close() }} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var connections atomic.Int64
			var work sync.WaitGroup
			work.Go(func() {
				var open []net.Conn
				for {
					c, err := l.Accept()
					if err != nil {
						break
					}
					connections.Add(1)
					open = append(open, c)
					answer(c)
				}
				for _, c := range open {
					_ = c.Close()
				}
			})
			t.Cleanup(func() { _ = l.Close(); work.Wait() })
			s := open(t, Options{Brokers: []string{l.Addr().String()}}, 0)
			shut(t, s.Close)
			ctx := t.Context()
			var ask sync.WaitGroup
			for what, f := range map[string]func() error{
				"Check":   func() error { return s.Check(ctx) },
				"Publish": func() error { return s.Publish(ctx, "t", one("x", ""), make([]store.Result, 1)) },
				"Subscribe": func() error {
					return second(s.Subscribe(ctx, store.SubscribeRequest{Topic: "t", Group: "g"}))
				},
				"TopicExists": func() error { return second(s.TopicExists(ctx, "t")) },
			} {
				ask.Go(func() {
					if err := f(); fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "Unreachable" {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			ask.Wait()
			if n := connections.Load(); n == 0 || n > 100 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestTopicUnderneath: a topic that is deleted and made again while it is written and
// read: publishers and readers are told that it is not there; then publishers go on, and
// who reads it again gets what is new.
func TestTopicUnderneath(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 2)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	other := open(t, s.op, 0) // who does it behind the store's back
	shut(t, other.Close)
	grouped, tailed := newTally(), newTally()
	fctx, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	t.Cleanup(func() { stop(); work.Wait() })
	// Whoever reads begins anew when it is told that there is no such topic.
	closing := func(close func(context.Context) error) {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_ = close(cctx) // of a topic that is gone nothing can be committed
	}
	joined, tailing := make(chan struct{}), make(chan struct{})
	work.Go(func() {
		for first := true; fctx.Err() == nil; first = false {
			sub, err := s.Subscribe(fctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
			if err != nil {
				continue
			}
			if first {
				close(joined)
			}
			consume(fctx, sub, grouped.add)
			closing(sub.Close)
		}
	})
	work.Go(func() {
		dst := make([]store.Message, 16)
		for first := true; fctx.Err() == nil; first = false {
			tail, err := s.Tail(fctx, store.TailRequest{Topic: topic})
			if err != nil {
				continue
			}
			if first {
				close(tailing)
			}
			for err = nil; fctx.Err() == nil && (err == nil || fault.ClassOf(err) == fault.Unavailable); {
				var n int
				n, err = tail.Next(fctx, dst)
				for i := range dst[:n] {
					tailed.add(dst[i].ID)
				}
			}
			closing(tail.Close)
		}
	})
	<-joined
	<-tailing
	publishAll(ctx, t, s, topic, "a", 100)
	grouped.wait(ctx, t, 100)
	tailed.wait(ctx, t, 100)
	must(other.DeleteTopic(ctx, topic))
	if err := s.Publish(ctx, topic, one("gone", "k"), make([]store.Result, 1)); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("to a topic that was deleted: %v", err)
	}
	must(other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 2}))
	// As long as a member of before is there, which has not been told yet, brokers let
	// nobody else say where the group is.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for err := other.EnsureGroup(ctx, topic, groupOf(topic), store.Start{}); err != nil; err = other.EnsureGroup(ctx, topic, groupOf(topic), store.Start{}) {
		if fault.ClassOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
		<-tick.C
	}
	// Its offsets begin anew; those that the store knows go on.
	publishAll(ctx, t, s, topic, "b", 50)
	grouped.wait(ctx, t, 150)
	tailed.wait(ctx, t, 150)
}

// TestOutOfRange: a group whose place is beyond what is left begins with what there
// is: retention removed it, or the topic came back from a backup.
func TestOutOfRange(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 1)
	publishAll(ctx, t, s, topic, "a", 20)
	if _, err := s.adm.DeleteRecords(ctx, listed(topic, 10)); err != nil {
		t.Fatal(err)
	}
	for what, from := range map[string]int64{"before what is left": 2, "beyond the end": 1000} {
		group := groupOf(topic) + fmt.Sprint(from)
		if err := s.EnsureGroup(ctx, topic, group, store.Start{}); err != nil {
			t.Fatal(err)
		}
		if err := place(ctx, s, topic, group, from); err != nil {
			t.Fatal(err)
		}
		if lag, err := s.Lag(ctx, topic, group); err != nil || lag[0].Committed != 10 || lag[0].Behind != 10 {
			t.Errorf("%s: the lag is %+v, %v", what, lag, err)
		}
		sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: group})
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]store.Message, 1)
		n, err := sub.Fetch(ctx, dst)
		if err != nil || n != 1 || dst[0].Pos.Offset != 10 {
			t.Errorf("%s: it begins at %+v, %v", what, dst[0].Pos, err)
		}
		if err := sub.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := ctx.Err(); err != nil {
		t.Error(errors.Join(errors.New("it took too long"), err))
	}
}
