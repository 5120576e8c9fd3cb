package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestCutWaits: a topic moves, and is finished, while events of it wait for everything that
// one may wait for: another attempt, also one that is later than the schedule of its
// Subscription knows, a member that goes without a word, its turn by key, a reply, and
// somebody who gives dead letters back. All of them come, none before its time or its turn.
func TestCutWaits(t *testing.T) {
	t.Parallel()
	for _, way := range [][2]string{{"rocketmq", "kafka"}, {"kafka", "rocketmq"}} {
		t.Run(way[0]+" to "+way[1], func(t *testing.T) {
			stores := storesYAML(map[string]string{
				"rocketmq": fmt.Sprintf("rocketmq: {name_servers: [%q]}", servers.SharedRocketMQ(t)),
				"kafka":    fmt.Sprintf("kafka: {brokers: [%q]}", servers.SharedKafka(t))})
			t.Parallel()
			cutWaits(t, stores, way[0], way[1])
		})
	}
}

const (
	// waitSchedule is the delay of the schedule that events wait by, with a jitter of a
	// tenth, and waitLong the one that a member asks for.
	waitSchedule = 3 * time.Second
	waitLong     = 20 * time.Second
	// waitsEach is how many events wait for one thing, or two, and waitKeys how many keys
	// have some that wait for their turn.
	waitsEach = 40
	waitKeys  = 5
)

// waits is what events wait for.
type waits struct {
	*mesh
	admin     adminv1.AdminServiceClient
	cl, cl2   *client.Client // of two proxies
	cut, gone chan struct{}  // closed once publishers write to the new store, and once the second proxy is killed
	mended    atomic.Bool    // nothing becomes a dead letter any more
	reading   sync.WaitGroup

	mu     sync.Mutex
	failed map[string]time.Time // when an event is due, at the earliest
	held   map[string]bool      // events that members have
	done   map[string]int       // how often an event was settled
	last   map[string]int       // the last number of a key that was settled
	wrong  []string
}

func cutWaits(t *testing.T, stores, from, to string) {
	m := newMesh(t, servers.SharedEtcd(t))
	keyFile, identity := m.key("shop")
	p1, p2 := m.proxy("p1"), m.proxy("p2")
	subscription := func(name, kind, more string) string {
		y := subscriptionYAML(name, "orders", "filter: {exact: {type: "+kind+"}}, "+more)
		return strings.Replace(y, "ack_timeout: 60s", "ack_timeout: 5m", 1)
	}
	const fast = "min_backoff: 10ms, max_backoff: 100ms"
	m.apply(stores + strings.ReplaceAll(topicYAML("orders", "dead"), "store: main", "store: "+from) +
		subscription("retrying", "retry", fmt.Sprintf("retry: {max_attempts: 20, min_backoff: %s, max_backoff: %[1]s}", waitSchedule)) +
		subscription("dying", "dead", "dead_letter_topic: dead, retry: {max_attempts: 2, "+fast+"}") +
		subscription("holding", "hold", "retry: {max_attempts: 20, "+fast+"}") +
		subscription("ordered", "turn", "ordering: by_key, on_exhausted: block, retry: {max_attempts: 20, "+fast+"}") +
		subscription("answering", "ask", "retry: {max_attempts: 20, "+fast+"}") +
		policyYAML("shop") + identity)
	m.settled(2)
	w := &waits{mesh: m, admin: m.adminOf(&replica{admin: m.admin}), cl: m.client(keyFile, p1), cl2: m.client(keyFile, p2), cut: make(chan struct{}), gone: make(chan struct{}),
		failed: map[string]time.Time{}, held: map[string]bool{}, done: map[string]int{}, last: map[string]int{}}
	ctx, stop := context.WithCancel(m.ctx)
	release := sync.OnceFunc(func() { close(w.cut) })
	vanish := sync.OnceFunc(func() { close(w.gone) })
	t.Cleanup(func() { w.told(); stop(); release(); vanish(); w.reading.Wait() })
	w.member(ctx, w.cl, "retrying", w.retry)
	w.member(ctx, w.cl, "dying", w.die)
	w.member(ctx, w.cl, "ordered", w.turn)
	w.member(ctx, w.cl2, "answering", w.answer)
	going, leave := context.WithCancel(ctx)
	w.member(going, w.cl2, "holding", w.holdHalf)

	for _, kind := range []string{"retry", "long", "dead", "hold"} {
		w.publish(kind, 0, waitsEach)
	}
	w.turns(1, 8)
	var asking errgroup.Group
	for i := range waitsEach / 4 {
		asking.Go(func() error {
			q := event.Event{ID: fmt.Sprint("ask-", i), Source: published, Type: "ask", Data: []byte("question")}
			reply, err := w.cl.Request(m.ctx, m.ns, "orders", q, 2*time.Minute)
			if err == nil && reply.ID != replyTo(q).ID {
				err = fmt.Errorf("the reply to %s is %+v", q.ID, reply)
			}
			return err
		})
	}
	dlq := func(args ...string) string {
		t.Helper()
		out, err := m.weft("", append([]string{"dlq", args[0], "--proxy", p1.grpc, "--api-key-file", keyFile, "-n", m.ns, "-s", "dying"}, args[1:]...)...)
		m.must(err)
		return out
	}
	// dead waits until so many events are dead letters, and gives how many there are of
	// them: one may have become one twice.
	dead := func(want int) (all uint64) {
		m.Helper()
		m.await(fmt.Sprintf("%d dead letters", want), func() error {
			ids := map[string]bool{}
			sum, err := w.cl.DeadLetters(m.ctx, m.ns, client.DeadLetterFilter{Subscription: "dying"}, client.ListOptions{}, func(l client.DeadLetter) error {
				ids[l.Event.ID] = true
				return nil
			})
			if err == nil && len(ids) != want {
				err = fmt.Errorf("there are %d, of %+v", len(ids), sum)
			}
			all = sum.Matched
			return err
		})
		return all
	}
	w.await("everything to wait", w.allWait)
	dead(waitsEach / 2)

	for _, topic := range []string{"orders", "dead"} {
		_, err := m.administer("", "migrate", topic, "--to", to, "--yes", "-n", m.ns)
		m.must(err)
	}
	w.phase("orders", configv1.Move_PHASE_DRAINING)
	w.phase("dead", configv1.Move_PHASE_DRAINING)
	_, err := m.administer("", "migrate", "finish", "orders", "--yes", "-n", m.ns)
	m.must(err)
	release()
	for _, kind := range []string{"retry", "dead", "hold"} {
		w.publish(kind, waitsEach, waitsEach+4)
	}
	w.turns(9, 12)
	m.must(asking.Wait())
	m.must(p2.Kill())
	vanish()
	leave()
	p2.start()
	w.member(ctx, w.cl, "holding", w.take)
	dead(waitsEach + 4)

	w.phase("orders", configv1.Move_PHASE_UNSPECIFIED)
	if left := w.left("retry", "long", "hold", "turn"); len(left) > 0 {
		t.Fatalf("the old store was given up before these came: %v", left)
	}
	w.mended.Store(true)
	all := dead(waitsEach + 4)
	if out := dlq("list"); !strings.Contains(out, fmt.Sprintf("%d dead letters", all)) {
		t.Errorf("of %d dead letters the list says %s", all, out)
	}
	if out := dlq("redrive", "--rate", "1000/s"); !strings.Contains(out, fmt.Sprintf("%d redriven\n", all)) {
		t.Errorf("of %d dead letters the redrive says %s", all, out)
	}
	w.await("all dead letters", func() error {
		if left := w.left("dead"); len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wrong := range w.wrong {
		t.Error(wrong)
	}
}

// member joins a Subscription until ctx ends.
func (w *waits) member(ctx context.Context, cl *client.Client, name string, h func(client.Delivery) error) {
	w.reading.Go(func() {
		err := cl.Subscribe(ctx, w.ns, name, func(_ context.Context, d client.Delivery) error { return h(d) }, client.SubscribeOptions{})
		if !errors.Is(err, context.Canceled) {
			w.Errorf("a member of %s ended with %v", name, err)
		}
	})
}

// publish publishes events of one kind: from the first number up to one before the second.
func (w *waits) publish(kind string, from, to int) {
	w.Helper()
	for i := from; i < to; i++ {
		typ := kind
		if kind == "long" {
			typ = "retry"
		}
		w.one(event.Event{ID: fmt.Sprintf("%s-%d", kind, i), Source: published, Type: typ, Data: []byte(kind)})
	}
}

// turns publishes events of all keys, with all the numbers.
func (w *waits) turns(from, to int) {
	w.Helper()
	for n := from; n <= to; n++ {
		for k := range waitKeys {
			w.one(event.Event{ID: fmt.Sprintf("turn-%d/%d", k, n), Source: published, Type: "turn", Ext: event.With(nil, event.AttrPartitionKey, strconv.Itoa(k))})
		}
	}
}

// one publishes an event, again where a store is busy.
func (w *waits) one(e event.Event) {
	w.Helper()
	w.await("the publish of "+e.ID, func() error {
		_, err := w.cl.Publish(w.ctx, w.ns, "orders", e)
		return err
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[e.ID] += 0
}

// hold has a delivery until a channel is closed.
func (w *waits) hold(d client.Delivery, until chan struct{}) {
	w.mu.Lock()
	w.held[d.Event.ID] = true
	w.mu.Unlock()
	<-until
}

func (w *waits) settle(d client.Delivery) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[d.Event.ID]++
	return nil
}

// late is an error that gives back a delivery, which is due again after so long.
func (w *waits) late(d client.Delivery, after time.Duration, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed[d.Event.ID] = time.Now().Add(after)
	return err
}

// number is that of an event.
func number(d client.Delivery) int {
	_, no, _ := strings.Cut(d.Event.ID, "-")
	n, _ := strconv.Atoi(no)
	return n
}

// isCut reports whether publishers write to the new store.
func (w *waits) isCut() bool {
	select {
	case <-w.cut:
		return true
	default:
		return false
	}
}

// retry gives events back: some each time before the cut, others once for longer than the
// schedule, before the cut and behind it.
func (w *waits) retry(d client.Delivery) error {
	w.mu.Lock()
	due, failed := w.failed[d.Event.ID]
	if early := time.Until(due); failed && early > 0 {
		w.wrong = append(w.wrong, fmt.Sprintf("%s came %s before it was due, at attempt %d", d.Event.ID, early, d.Attempt))
	}
	w.mu.Unlock()
	switch long := strings.HasPrefix(d.Event.ID, "long"); {
	case long && !failed:
		if number(d)%2 == 0 {
			w.hold(d, w.cut)
		}
		return w.late(d, waitLong, &client.Retry{Delay: waitLong, Reason: "not for long"})
	case !long && !w.isCut():
		return w.late(d, waitSchedule*9/10, errors.New("not yet"))
	}
	return w.settle(d)
}

// die lets all events become dead letters: half of them once the topic is cut.
func (w *waits) die(d client.Delivery) error {
	if w.mended.Load() {
		return w.settle(d)
	}
	if number(d)%2 == 0 {
		w.hold(d, w.cut)
	}
	return errors.New("it is dying")
}

// holdHalf settles every other event, and has the rest until its proxy is gone.
func (w *waits) holdHalf(d client.Delivery) error {
	if number(d)%2 == 0 {
		w.hold(d, w.gone)
		return client.ErrUnsettled
	}
	return w.settle(d)
}

func (w *waits) take(d client.Delivery) error { return w.settle(d) }

// turn has the fourth of each key until the topic is cut, and then fails once.
func (w *waits) turn(d client.Delivery) error {
	key, no, _ := strings.Cut(d.Event.ID, "/")
	n, _ := strconv.Atoi(no)
	w.mu.Lock()
	if n > w.last[key]+1 {
		w.wrong = append(w.wrong, fmt.Sprintf("%s came when %d was the last one that was settled", d.Event.ID, w.last[key]))
	}
	first := n == 4 && !w.held[d.Event.ID]
	w.mu.Unlock()
	if first {
		w.hold(d, w.cut)
		return errors.New("once more")
	}
	w.mu.Lock()
	w.last[key] = max(w.last[key], n)
	w.mu.Unlock()
	return w.settle(d)
}

// answer replies once the topic is cut.
func (w *waits) answer(d client.Delivery) error {
	w.hold(d, w.cut)
	return w.cl2.Reply(w.ctx, w.ns, d.Event, replyTo(d.Event))
}

// allWait is nil once each event that is published is where it is to wait.
func (w *waits) allWait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var not []string
	is := func(id string, waits bool) {
		if !waits {
			not = append(not, id)
		}
	}
	for i := range waitsEach {
		odd := i%2 == 1
		id := func(kind string) string { return fmt.Sprintf("%s-%d", kind, i) }
		is(id("retry"), !w.failed[id("retry")].IsZero())
		is(id("long"), odd && !w.failed[id("long")].IsZero() || w.held[id("long")])
		is(id("dead"), odd || w.held[id("dead")])
		is(id("hold"), odd && w.done[id("hold")] > 0 || w.held[id("hold")])
		is(id("ask"), i >= waitsEach/4 || w.held[id("ask")])
	}
	for k := range waitKeys {
		is(fmt.Sprintf("turn-%d/4", k), w.held[fmt.Sprintf("turn-%d/4", k)])
	}
	if len(not) > 0 {
		return fmt.Errorf("these do not: %v", not)
	}
	return nil
}

// left are events of some kinds that nobody has settled.
func (w *waits) left(kinds ...string) (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range w.done {
		if kind, _, _ := strings.Cut(id, "-"); n == 0 && slices.Contains(kinds, kind) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// phase waits until the move of a topic is at a phase, or behind it; PHASE_UNSPECIFIED is
// the end.
func (w *waits) phase(topic string, want configv1.Move_Phase) {
	w.Helper()
	w.await("the move of "+topic+" to be at "+want.String(), func() error {
		resp, err := w.admin.Get(w.ctx, &adminv1.GetRequest{Name: "topicbinding/" + w.ns + "/" + topic})
		if err != nil {
			return err
		}
		b := resp.Resource.GetTopicBinding()
		if b.GetMove() == nil && b.GetEnded() == "" || b.GetMove() != nil && (want == configv1.Move_PHASE_UNSPECIFIED || b.Move.Phase < want) {
			return fmt.Errorf("it is at %s", b.GetMove().GetPhase())
		}
		return nil
	})
	w.Logf("%s: %s is at %s", time.Now().Format(time.TimeOnly+".000"), topic, want)
}

// told logs what still waits, once the test has failed.
func (w *waits) told() {
	if !w.Failed() {
		return
	}
	w.Logf("nobody has settled %v", w.left("retry", "long", "dead", "hold", "turn"))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	late := *w.mesh
	late.ctx = ctx
	for _, topic := range []string{"orders", "dead"} {
		out, err := late.administer("", "migrate", "status", topic, "-n", w.ns)
		w.Logf("%s %v", out, err)
	}
}
