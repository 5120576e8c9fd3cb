package pipeline

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// askers is a world with proxies whose store, where it is shared, has a reply topic.
type askers struct {
	*world
	ctx   context.Context
	snap  *snapshot.Snapshot
	calls *ordered
}

// ordered notes which calls of a store came, in order.
type ordered struct {
	store.Store
	mu  sync.Mutex
	log []string
}

func (o *ordered) note(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.log = append(o.log, what)
}

func (o *ordered) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	t, err := o.Store.Tail(ctx, r)
	o.note("tail " + r.Topic)
	return t, err
}

func (o *ordered) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	o.note("publish " + topic)
	return o.Store.Publish(ctx, topic, events, res)
}

func newAskers(t *testing.T, shared bool) *askers {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	a := &askers{world: newWorld(t, 0), ctx: ctx}
	a.calls = &ordered{Store: a.st.Store}
	next := *a.p.cfg.Snapshots.Get()
	spec := &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}
	if shared {
		spec = &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{}}}
		a.must(a.st.Store.(store.Admin).EnsureTopic(ctx, store.TopicSpec{Name: names.ReplyTopic(uidStore)}))
	}
	next.Stores = map[string]*snapshot.Store{uidStore: {Key: snapshot.Key{Namespace: "demo", Name: "main"}, UID: uidStore, Spec: spec}}
	rule := func(name string, action configv1.Action, who, topic string) *configv1.AccessRule {
		return &configv1.AccessRule{Name: name, Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{who}, Actions: []configv1.Action{action}, Topics: []string{topic}}
	}
	next.Rules = policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: []*configv1.AccessRule{
		rule("ask", configv1.Action_ACTION_PUBLISH, "local", ">"), rule("answer", configv1.Action_ACTION_SUBSCRIBE, "answerer", "orders")}}}}, nil)
	a.snap = &next
	return a
}

var answerer = &policy.Principal{Namespace: "demo", Name: "answerer"}

// proxy is another proxy, or one that was started again, with metrics of its own.
func (a *askers) proxy() *world {
	a.Helper()
	w, _ := a.started()
	return w
}

// started is a proxy, and how it stops.
func (a *askers) started() (w *world, stopped func()) {
	a.Helper()
	w = &world{TB: a.TB, reg: prometheus.NewRegistry()}
	w.p = New(Config{Snapshots: latest.New(a.snap), Metrics: w.reg, Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return a.calls, nil }})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.p.RunRequests(ctx) }()
	stopped = sync.OnceFunc(func() {
		stop()
		if err := <-done; err != nil {
			a.Error(err)
		}
	})
	a.Cleanup(stopped)
	return w, stopped
}

func question(id string) event.Event {
	return event.Event{ID: id, Source: "/asker", Type: "question", Data: []byte("?")}
}

// answer is the reply to a request, as its store has it.
func answer(id string, request *event.Event) event.Event {
	token, _ := event.Lookup(request.Ext, event.AttrReplyTo)
	return event.Event{ID: id, Source: "/answerer", Type: "answer", Data: []byte("!"), Ext: []event.Attr{{Name: "mood", Value: "good"}, {Name: event.AttrReplyTo, Value: token}}}
}

type asked struct {
	reply event.Event
	err   error
}

// ask asks at a proxy and gives the request as it was published.
func (a *askers) ask(w *world, id string, timeout time.Duration) (*event.Event, chan asked) {
	a.Helper()
	tail, err := a.st.Store.Tail(a.ctx, store.TailRequest{Topic: "orders", From: store.Start{End: true}})
	a.must(err)
	defer func() { a.must(tail.Close(a.ctx)) }()
	got := make(chan asked, 1)
	go func() {
		reply, err := w.p.Request(a.ctx, local, "demo", "orders", question(id), timeout)
		got <- asked{reply, err}
	}()
	var dst [1]store.Message
	_, err = tail.Next(a.ctx, dst[:])
	a.must(err)
	return &dst[0].Event, got
}

func (w *world) replies(outcome string) int {
	w.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "weft_proxy_replies_total" && m.GetLabel()[0].GetValue() == outcome {
				return int(m.GetCounter().GetValue())
			}
		}
	}
	return 0
}

// until waits until so many replies have an outcome.
func (a *askers) until(w *world, outcome string, n int) {
	a.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for w.replies(outcome) != n {
		select {
		case <-tick.C:
		case <-a.ctx.Done():
			a.Fatalf("%s is %d, not %d", outcome, w.replies(outcome), n)
		}
	}
}
