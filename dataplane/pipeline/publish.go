// Package pipeline is the way of an event in: authorise, check, route, store.
// Publish reads as the table of contents of it.
package pipeline

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Config of a Pipeline.
type Config struct {
	// Snapshots has the configuration; never nil inside.
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Store gives the open store of an EventStore.
	Store func(uid string) (store.Store, error)
	// MaxInFlight bounds the bytes of events that wait for stores; 256 MiB
	// when 0.
	MaxInFlight int64
	// Tracing makes spans; none when nil.
	Tracing trace.TracerProvider
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Pipeline publishes. It is safe for concurrent use.
type Pipeline struct {
	cfg      Config
	inFlight atomic.Int64
	metrics  metrics
	tracer   trace.Tracer // nil without tracing
}

// MaxBatch bounds the events of one Publish.
const MaxBatch = 1000

// New makes a Pipeline.
func New(cfg Config) *Pipeline {
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 256 << 20
	}
	p := &Pipeline{cfg: cfg}
	if cfg.Tracing != nil {
		p.tracer = cfg.Tracing.Tracer("github.com/weft-mesh/weft/dataplane/pipeline")
	}
	p.metrics = newMetrics(cfg.Metrics, func() float64 { return float64(p.inFlight.Load()) })
	return p
}

// Publish takes a batch of one client for one topic to the store and waits for
// the outcome; see frontend.Mesh.
func (p *Pipeline) Publish(ctx context.Context, who *policy.Principal, namespace, name string, events []event.Event, res []frontend.Result) (err error) {
	start := time.Now()
	snap := p.cfg.Snapshots.Get()

	// Who may not publish there does not hear whether there is such a topic.
	if err := authorise(snap, who, namespace, name); err != nil {
		p.metrics.refused.WithLabelValues(namespaceLabel(snap, namespace), reason(err)).Add(float64(len(events)))
		return failAll(res, err)
	}
	t := snap.Topics[snapshot.Key{Namespace: namespace, Name: name}]
	if err := usable(t, namespace, name); err != nil {
		p.metrics.refused.WithLabelValues(namespaceLabel(snap, namespace), reason(err)).Add(float64(len(events)))
		return failAll(res, err)
	}
	ctx, span := p.begin(ctx, t, events)
	defer func() { end(span, err) }()
	m := p.metrics.of(t)
	size, err := check(t, events, res)
	p.metrics.arrived(len(events), size)
	if err != nil {
		m.failed(reason(err), len(events))
		return err
	}
	if err := p.admit(size); err != nil {
		m.failed(reason(err), len(events))
		return failAll(res, err)
	}
	defer p.inFlight.Add(-size)

	err = p.write(ctx, snap, t, events, res)
	m.done(events, res, time.Since(start))
	return err
}

// authorise decides whether who may publish to the topic.
func authorise(snap *snapshot.Snapshot, who *policy.Principal, namespace, name string) error {
	if err := names.CheckNamespace(namespace); err != nil {
		return &fault.Error{Class: fault.Invalid, Op: "authorise", Reason: "bad-name", Msg: err.Error()}
	}
	if err := names.CheckName("topic", name); err != nil {
		return &fault.Error{Class: fault.Invalid, Op: "authorise", Reason: "bad-name", Msg: err.Error()}
	}
	if d := snap.Rules.Authorize(who, policy.Publish, namespace, name); !d.Allowed {
		return &fault.Error{Class: fault.Denied, Op: "authorise", Reason: "access-denied", Msg: d.Why}
	}
	return snap.Refusal(namespace)
}

// usable tells whether a topic can take events.
func usable(t *snapshot.Topic, namespace, name string) error {
	switch {
	case t == nil:
		return fault.New(fault.NotFound, "publish", "unknown-topic", "there is no topic %s in namespace %s", name, namespace)
	case t.NotReady != "":
		return &fault.Error{Class: fault.Unavailable, Op: "publish", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + name + " is not ready: " + t.NotReady}
	}
	return nil
}

// check judges every event. Where one is wrong none is published: a batch with
// a hole would be in another order when that one comes again.
func check(t *snapshot.Topic, events []event.Event, res []frontend.Result) (size int64, err error) {
	if len(events) == 0 || len(events) > MaxBatch {
		return 0, failAll(res, fault.New(fault.Invalid, "publish", "bad-batch", "a batch has 1 to %d events, this one has %d", MaxBatch, len(events)))
	}
	for i := range events {
		n := events[i].Size()
		size += int64(n)
		if res[i].Err == nil { // it could be decoded
			res[i].Err = checkOne(t, &events[i], n)
		}
		if err == nil {
			err = res[i].Err
		}
	}
	if err != nil {
		others := fault.New(fault.Invalid, "publish", "batch-refused", "another event of the batch is wrong; nothing was published")
		for i := range res {
			if res[i].Err == nil {
				res[i].Err = others
			}
		}
	}
	return size, err
}

// checkOne judges an event of n bytes.
func checkOne(t *snapshot.Topic, e *event.Event, n int) error {
	if err := e.Validate(); err != nil {
		return &fault.Error{Class: fault.Invalid, Op: "publish", Reason: "bad-event", Msg: err.Error()}
	}
	if n > t.MaxEventBytes {
		return fault.New(fault.TooLarge, "publish", "event-too-large", "the event has %d bytes, topic %s takes %d", n, t.Name, t.MaxEventBytes)
	}
	return nil
}

// admit bounds what waits for stores.
func (p *Pipeline) admit(size int64) error {
	if n := p.inFlight.Add(size); n > p.cfg.MaxInFlight && n != size {
		p.inFlight.Add(-size)
		return &fault.Error{Class: fault.Throttled, Op: "publish", Reason: "proxy-full", RetryAfter: 200 * time.Millisecond, Msg: "the proxy waits for its stores with all that it may hold; nothing was published"}
	}
	return nil
}

// write routes each event and gives each run of events with one destination to
// its store in one call. After a run that failed nothing more is written: a key's
// order is kept.
func (p *Pipeline) write(ctx context.Context, snap *snapshot.Snapshot, t *snapshot.Topic, events []event.Event, res []frontend.Result) error {
	for len(events) > 0 {
		to, err := destination(snap, t, &events[0])
		if err != nil {
			return failAll(res, err)
		}
		n := len(events)
		if t.Route != nil {
			n = 1
			for n < len(events) {
				if next, err := destination(snap, t, &events[n]); err != nil || next != to {
					break
				}
				n++
			}
		}
		if err := p.store(ctx, snap, to, t.KeyFrom, events[:n], res[:n]); err != nil {
			_ = failAll(res[n:], fault.New(fault.Unavailable, "publish", "after-a-failure", "an earlier event of the batch failed; this one was not published"))
			return err
		}
		events, res = events[n:], res[n:]
	}
	return nil
}

// destination is the topic that keeps an event that enters t.
func destination(snap *snapshot.Snapshot, t *snapshot.Topic, e *event.Event) (*snapshot.Topic, error) {
	name, routed := t.Route.Resolve(e, e.Key(t.KeyFrom))
	if !routed || name == t.Name {
		return t, nil
	}
	to := snap.Topics[snapshot.Key{Namespace: t.Namespace, Name: name}]
	if to == nil {
		return nil, &fault.Error{Class: fault.Unavailable, Op: "route", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + name + ", to which the route of " + t.Name + " leads, is not there"}
	}
	return to, usable(to, t.Namespace, name)
}

// store writes events to one topic.
func (p *Pipeline) store(ctx context.Context, snap *snapshot.Snapshot, t *snapshot.Topic, keyFrom string, events []event.Event, res []frontend.Result) error {
	epoch := t.Last()
	st, err := p.cfg.Store(epoch.StoreUID)
	if err != nil {
		return failAll(res, err)
	}
	out := make([]store.Outgoing, len(events))
	for i := range events {
		out[i] = store.Outgoing{Event: &events[i], Key: events[i].Key(keyFrom)}
	}
	got := make([]store.Result, len(events))
	ctx, span := p.beginWrite(ctx, t, epoch.Physical, len(events))
	began := time.Now()
	err = st.Publish(ctx, epoch.Physical, out, got)
	p.metrics.stores.wrote(storeLabel(snap, epoch.StoreUID), err, time.Since(began))
	end(span, err)
	for i := range got {
		res[i] = frontend.Result{Err: got[i].Err}
		if got[i].Err == nil {
			res[i].Position = position.Token{TopicUID: t.UID, Epoch: epoch.Number, Pos: got[i].Pos}
		}
	}
	return err
}

// Write publishes into a topic for the proxy itself: no access rules, no routes.
// It borrows events. It is for dead letters, whose attributes may be larger than
// a client's.
func (p *Pipeline) Write(ctx context.Context, t *snapshot.Topic, events []event.Event) error {
	if err := usable(t, t.Namespace, t.Name); err != nil {
		return err
	}
	return p.store(ctx, p.cfg.Snapshots.Get(), t, t.KeyFrom, events, make([]frontend.Result, len(events)))
}

func failAll(res []frontend.Result, err error) error {
	for i := range res {
		res[i] = frontend.Result{Err: err}
	}
	return err
}

func reason(err error) string { return fault.From(err).Reason }

// namespaceLabel is the label for a namespace that a client named: only those of
// the configuration are labels, or anyone could make new ones.
func namespaceLabel(snap *snapshot.Snapshot, namespace string) string {
	for k := range snap.Topics {
		if k.Namespace == namespace {
			return namespace
		}
	}
	return ""
}
