package push

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/store"
)

// forwarding is a subscription to the topic of its name that forwards to another one.
func forwarding(name, to string, change func(*snapshot.Subscription)) *snapshot.Subscription {
	return sub(name, "", func(s *snapshot.Subscription) {
		s.Push = &snapshot.Push{Version: "1", ForwardTo: to, Timeout: 10 * time.Second, Concurrency: 4}
		if change != nil {
			change(s)
		}
	})
}

// target adds a topic to the world and its configuration.
func (w *world) target(name string, change func(*snapshot.Topic)) {
	w.Helper()
	w.must(w.st.(store.Admin).EnsureTopic(w.ctx, store.TopicSpec{Name: name}))
	t := topicOf(name)
	t.MaxEventBytes = 1 << 20
	if change != nil {
		change(t)
	}
	next := *w.snaps.Get()
	next.Topics = map[snapshot.Key]*snapshot.Topic{t.Key: t}
	for k, v := range w.snaps.Get().Topics {
		if k != t.Key {
			next.Topics[k] = v
		}
	}
	w.snaps.Store(&next)
}

// read takes n events of a topic.
func (w *world) read(topic string, n int) []event.Event {
	w.Helper()
	tail, err := w.st.Tail(w.ctx, store.TailRequest{Topic: topic})
	w.must(err)
	defer func() { w.must(tail.Close(w.ctx)) }()
	var out []event.Event
	for len(out) < n {
		var dst [1]store.Message
		if _, err := tail.Next(w.ctx, dst[:]); err != nil {
			w.Fatalf("%s has %d events, not %d: %v", topic, len(out), n, err)
		}
		out = append(out, dst[0].Event)
	}
	return out
}

// metric are the values of a counter, each with its labels.
func (w *world) metric(name string) []string {
	w.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	var out []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != name {
				continue
			}
			text := map[string]string{}
			for _, l := range m.GetLabel() {
				text[l.GetName()] = l.GetValue()
			}
			out = append(out, fmt.Sprint(text["namespace"], " ", text["subscription"], " ", text["outcome"], " ", m.GetCounter().GetValue()))
		}
	}
	return out
}

// TestForward: an event arrives in the other topic as it was, is settled then, and
// nobody can join the subscription.
func TestForward(t *testing.T) {
	w := newWorld(t, nil, forwarding("orders", "copies", nil))
	w.target("copies", nil)
	sent := ev("1")
	sent.Subject, sent.Ext = "a/b", []event.Attr{{Name: "partitionkey", Value: "k"}}
	w.publish("orders", sent)
	got := w.read("copies", 1)[0]
	if got.ID != "1" || got.Source != "/test" || got.Subject != "a/b" || string(got.Data) != "data of 1" || got.Key("") != "k" || delivery.Forwards(&got) != 1 {
		t.Errorf("got %+v", got)
	}
	w.settled("orders")
	for _, m := range w.metric("weft_proxy_forwards_total") {
		if m != `demo orders ok 1` {
			t.Errorf("counted %s", m)
		}
	}
	if len(w.metric("weft_proxy_push_requests_total"))+len(w.metric("weft_proxy_push_stopped")) > 0 {
		t.Error("a forward is counted as a push")
	}
}

// TestForwardEnters: the other topic's schema, size and Route are those that a client's
// event meets, and what it refuses for good is a dead letter at once.
func TestForwardEnters(t *testing.T) {
	w := newWorld(t, nil, forwarding("orders", "copies", nil), sub("large", "http://127.0.0.1:1", nil))
	table, err := route.CompileTable(&configv1.Route{Topic: "copies", Rules: []*configv1.RouteRule{
		{Filter: &configv1.Filter{Exact: map[string]string{"subject": "large"}}, To: []*configv1.Destination{{Topic: "large"}}}}})
	w.must(err)
	numbers, err := schema.Compile(&configv1.Schema{Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: `{"type": "integer"}`}}})
	w.must(err)
	w.target("large", nil)
	w.target("copies", func(c *snapshot.Topic) { c.Route, c.Schema, c.MaxEventBytes = table, numbers, 1000 })
	number := func(id, subject, data string) *event.Event {
		return &event.Event{ID: id, Source: "/test", Type: "t", Subject: subject, DataContentType: "application/json", Data: []byte(data)}
	}
	w.publish("orders", number("1", "", "1"), number("2", "large", "2"), number("3", "", `"three"`), number("4", "", fmt.Sprintf("%2000d", 4)))
	if got := w.read("copies", 1)[0]; got.ID != "1" {
		t.Errorf("copies has %+v", got)
	}
	if got := w.read("large", 1)[0]; got.ID != "2" {
		t.Errorf("large has %+v", got)
	}
	reasons := map[string]string{}
	for _, d := range w.read("dead", 2) {
		reason, _ := event.Lookup(d.Ext, delivery.AttrDeadReason)
		attempts, _ := event.Lookup(d.Ext, delivery.AttrDeadAttempts)
		what, _, _ := strings.Cut(strings.TrimPrefix(reason, "forward to copies: "), ":")
		reasons[d.ID] = attempts + " " + what
	}
	if reasons["3"] != "1 schema-mismatch" || reasons["4"] != "1 event-too-large" {
		t.Errorf("dead letters: %q", reasons)
	}
	w.settled("orders")
}

// TestForwardAttempts: a topic that is not ready costs attempts, and in the end the
// event is a dead letter with the reason.
func TestForwardAttempts(t *testing.T) {
	w := newWorld(t, nil, forwarding("orders", "copies", nil))
	w.target("copies", func(c *snapshot.Topic) { c.NotReady = "it is new" })
	w.publish("orders", ev("1"))
	d := w.dead()
	reason, _ := event.Lookup(d.Ext, delivery.AttrDeadReason)
	if attempts, _ := event.Lookup(d.Ext, delivery.AttrDeadAttempts); attempts != "3" || reason != "forward to copies: topic-not-ready: topic copies is not ready: it is new" {
		t.Errorf("after %s attempts: %s", attempts, reason)
	}
	if f := w.pusher.Failing(); len(f) != 1 || f[0].Outcome != Failed {
		t.Errorf("failing: %v", f)
	}
}

// TestForwardQuota: a quota of the other topic, which counts what is forwarded, slows
// the forwarding down and costs no attempts.
func TestForwardQuota(t *testing.T) {
	w := newWorld(t, nil, forwarding("orders", "copies", nil))
	rules, refused := quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Principals: []string{"*"}, Per: configv1.QuotaPer_QUOTA_PER_ALL,
		Publish: &configv1.PublishQuota{EventsPerSecond: 20}}}})
	if len(refused) > 0 {
		t.Fatal(refused)
	}
	w.target("copies", func(c *snapshot.Topic) { c.Quotas = rules.Publishing("demo", "copies") })
	const n = 40 // the burst is of a second
	for i := range n {
		w.publish("orders", ev(fmt.Sprint(i)))
	}
	w.read("copies", n)
	w.settled("orders")
	if m := w.metric("weft_proxy_forwards_total"); len(m) != 1 || m[0] != fmt.Sprintf("demo orders ok %d", n) {
		t.Errorf("counted %v", m)
	}
}

// TestForwardEnds: however it came about, an event in a ring is forwarded 8 times; then
// it is a dead letter, which is known to have been forwarded as often.
func TestForwardEnds(t *testing.T) {
	w := newWorld(t, nil, forwarding("a", "b", nil), forwarding("b", "a", nil))
	w.target("a", nil)
	w.target("b", nil)
	w.publish("a", ev("1"))
	d := w.dead()
	if reason, _ := event.Lookup(d.Ext, delivery.AttrDeadReason); reason != "forward: was forwarded 8 times already, as in a ring" || delivery.Forwards(&d) != delivery.MaxForwards {
		t.Errorf("the dead letter is %+v", d)
	}
	w.settled("a")
	w.settled("b")
}

// TestForwardCountSurvivesRetries: an event that waits for another attempt in its store
// is not forgotten to have been forwarded.
func TestForwardCountSurvivesRetries(t *testing.T) {
	var calls atomic.Int32
	hops := make(chan int, 10)
	w := newWorldWith(t, Config{Forward: func(_ context.Context, _ snapshot.Key, _ string, e *event.Event) error {
		hops <- delivery.Forwards(e)
		if calls.Add(1) == 1 {
			return fault.New(fault.Unavailable, "test", "away", "it is away")
		}
		return nil
	}}, forwarding("orders", "copies", func(s *snapshot.Subscription) {
		s.MinBackoff, s.MaxBackoff = 1200*time.Millisecond, 1200*time.Millisecond
	}))
	e := ev("1")
	e.Mesh = delivery.Forwarded(3)
	w.publish("orders", e)
	for range 2 {
		select {
		case n := <-hops:
			if n != 4 {
				t.Errorf("it counts as forwarded %d times, want 4", n)
			}
		case <-w.ctx.Done():
			t.Fatal("it is not tried again")
		}
	}
	w.settled("orders")
}

// TestForwardUnsettledFirst: while the other topic's store has not acknowledged the
// event it is not settled.
func TestForwardUnsettledFirst(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	w := newWorldWith(t, Config{Forward: func(ctx context.Context, _ snapshot.Key, _ string, _ *event.Event) error {
		close(entered)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}}, forwarding("orders", "copies", nil))
	w.publish("orders", ev("1"))
	<-entered
	lag, err := w.st.(store.Admin).Lag(w.ctx, "orders", "g")
	w.must(err)
	if lag[0].Behind != 1 {
		t.Errorf("it is settled before it is kept elsewhere: %+v", lag)
	}
	close(release)
	w.settled("orders")
}

// TestForwardAsItself: quotas see a principal of the Subscription's own.
func TestForwardAsItself(t *testing.T) {
	w := newWorld(t, nil, forwarding("orders", "copies", nil))
	rules, _ := quota.Compile([]quota.Named{{Namespace: "demo", Name: "quota/demo/q", UID: "q", Spec: &configv1.Quota{Principals: []string{"somebody"}, Per: configv1.QuotaPer_QUOTA_PER_PRINCIPAL,
		Publish: &configv1.PublishQuota{InFlight: 1}}}})
	w.target("copies", func(c *snapshot.Topic) { c.Quotas = rules.Publishing("demo", "copies") })
	w.publish("orders", ev("1"))
	w.read("copies", 1)
}
