// Package pipeline is the way of an event in: authorise, check, quota, schema, route, store.
// Publish reads as the table of contents of it.
package pipeline

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/denied"
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/moves"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/cutover"
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
	// Moves says where a topic that moves is written to, and judges what was written; one
	// without leases when nil.
	Moves *moves.Manager
	// Denied remembers topics that stores deny; nil remembers nothing.
	Denied *denied.Log
	// Quotas has what was used of them; one of its own when nil.
	Quotas *quota.Limiter
	// Incarnation is of this run of the proxy, a UUID: replies to its requests find
	// it by that. A new one when empty.
	Incarnation string
	// Clock tells until when requests wait.
	Clock clock.Clock
	// Facts remembers what becomes of events; nil remembers nothing.
	Facts *facts.Ring
	// Tracing makes spans; none when nil.
	Tracing trace.TracerProvider
	Metrics prometheus.Registerer
	// Log is told why stores do not take events; nothing is when nil.
	Log *slog.Logger
}

// Pipeline publishes. It is safe for concurrent use.
type Pipeline struct {
	cfg      Config
	inFlight atomic.Int64
	metrics  *metrics
	storeLog *storeLog
	replies  *replies
	tracer   trace.Tracer // nil without tracing
}

// MaxBatch bounds the events of one Publish.
const MaxBatch = 1000

// New makes a Pipeline.
func New(cfg Config) *Pipeline {
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 256 << 20
	}
	if cfg.Moves == nil {
		cfg.Moves = moves.New(moves.Config{Snapshots: cfg.Snapshots, Store: cfg.Store, Log: cfg.Log})
	}
	if cfg.Quotas == nil {
		cfg.Quotas = quota.New(cfg.Metrics, func() *quota.Rules { return cfg.Snapshots.Get().Quotas })
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pipeline{cfg: cfg, storeLog: newStoreLog(cfg.Log)}
	if cfg.Tracing != nil {
		p.tracer = cfg.Tracing.Tracer("github.com/weft-mesh/weft/dataplane/pipeline")
	}
	p.replies = newReplies(&p.cfg)
	p.metrics = newMetrics(cfg.Metrics, func() float64 { return float64(p.inFlight.Load()) }, cfg.Snapshots.Get)
	return p
}

// RunRequests waits until ctx ends, and then ends what requests have begun.
func (p *Pipeline) RunRequests(ctx context.Context) error {
	<-ctx.Done()
	p.EndRequests()
	p.replies.tails.close()
	return nil
}

// EndRequests ends the requests that wait for replies, and refuses new ones.
func (p *Pipeline) EndRequests() { p.replies.endAll() }

// Publish takes a batch of one client for one topic to the store and waits for
// the outcome; see frontend.Mesh.
func (p *Pipeline) Publish(ctx context.Context, who *policy.Principal, namespace, name string, events []event.Event, res []frontend.Result) error {
	wait, err := p.Begin(ctx, who, namespace, name, events, res)
	if wait != nil {
		return wait(ctx)
	}
	return err
}

// Begin is the first half of Publish; see frontend.Mesh.
func (p *Pipeline) Begin(ctx context.Context, who *policy.Principal, namespace, name string, events []event.Event, res []frontend.Result) (wait func(context.Context) error, err error) {
	snap, k := p.cfg.Snapshots.Get(), snapshot.Key{Namespace: namespace, Name: name}
	// Who may not publish there does not hear whether there is such a topic.
	if err := p.authorised(snap, who, namespace, name, events, res); err != nil {
		p.remember(snap, k, events, res)
		return nil, err
	}
	b, err := p.begin(ctx, snap, who, k, events, res)
	if b == nil {
		p.remember(snap, k, events, res)
		return nil, err
	}
	return func(ctx context.Context) error {
		err := p.finish(ctx, b)
		p.remember(snap, k, events, res)
		return err
	}, nil
}

// Forward publishes one event of a Subscription to a topic of its namespace, which
// whoever applied the Subscription had the right to. Everything else is as with a
// client's event: quotas count it for a principal of the Subscription's own. It
// borrows the event, as Publish does.
func (p *Pipeline) Forward(ctx context.Context, subscription snapshot.Key, topic string, e *event.Event) error {
	snap := p.cfg.Snapshots.Get()
	k := snapshot.Key{Namespace: subscription.Namespace, Name: topic}
	events, res := []event.Event{*e}, make([]frontend.Result, 1)
	defer p.remember(snap, k, events, res)
	if err := snap.Refusal(k.Namespace); err != nil {
		return failAll(res, err)
	}
	// No Quota can name it: a name there has no colon.
	who := &policy.Principal{Namespace: subscription.Namespace, Name: "subscription:" + subscription.Name}
	return p.enter(ctx, snap, who, k, events, res)
}

// publishing is a Publish that has begun.
type publishing struct {
	metrics *topicMetrics
	events  []event.Event
	res     []frontend.Result
	size    int64
	room    int64 // of the bytes in flight
	held    quota.Held
	span    trace.Span
	start   time.Time
	last    writing // of its last events; the others are written
}

// enter takes events of who, who may publish them to topic k, to the store.
func (p *Pipeline) enter(ctx context.Context, snap *snapshot.Snapshot, who *policy.Principal, k snapshot.Key, events []event.Event, res []frontend.Result) error {
	b, err := p.begin(ctx, snap, who, k, events, res)
	if b != nil {
		return p.finish(ctx, b)
	}
	return err
}

// begin is the first half of enter, where the store can do that, and finish the other one.
// Where it gives nil all is done.
func (p *Pipeline) begin(ctx context.Context, snap *snapshot.Snapshot, who *policy.Principal, k snapshot.Key, events []event.Event, res []frontend.Result) (begun *publishing, err error) {
	now := publishing{events: events, res: res, start: time.Now()}
	t := snap.Topics[k]
	if err := usable(t, k.Namespace, k.Name); err != nil {
		p.metrics.refused.Add(len(events), [2]string{namespaceLabel(snap, k.Namespace)}, reason(err))
		return nil, failAll(res, err)
	}
	ctx, now.span = p.beginPublish(ctx, t, events)
	now.metrics = p.metrics.of(t)
	outcome := errDefect // until there is another one
	defer func() {
		if begun == nil {
			p.giveBack(&now, outcome)
		}
	}()
	if err := p.let(&now, t, who); err != nil {
		outcome = err
		now.metrics.failed(reason(err), len(events))
		return nil, err
	}
	if now.last, err = p.write(ctx, snap, t, events, res); now.last.wait != nil {
		waiting := now // what is done at once takes nothing of the heap
		return &waiting, nil
	}
	outcome = err
	now.done()
	return nil, err
}

// let judges events, and takes what they need of quotas and of the room that there is.
func (p *Pipeline) let(b *publishing, t *snapshot.Topic, who *policy.Principal) (err error) {
	b.size, err = check(t, b.events, b.res)
	p.metrics.arrived(len(b.events), b.size)
	if err != nil {
		return err
	}
	if b.held, err = p.cfg.Quotas.Publish(t.Quotas, who, t.Name, len(b.events), b.size); err != nil {
		return failAll(b.res, err)
	}
	if err := p.conform(t, b.events, b.res); err != nil {
		return err
	}
	if err := p.admit(b.size); err != nil {
		return failAll(b.res, err)
	}
	b.room = b.size
	return nil
}

// finish waits for the outcome of what has begun.
func (p *Pipeline) finish(ctx context.Context, b *publishing) error {
	outcome := errDefect // until there is another one
	defer func() { p.giveBack(b, outcome) }()
	outcome = p.settle(ctx, &b.last)
	b.done()
	return outcome
}

// done counts what has become of a publish.
func (b *publishing) done() {
	b.metrics.done(b.events, b.size, b.res, time.Since(b.start))
}

// errDefect is the outcome of what has panicked: a listener answers the call, and what it
// had taken of the proxy is given back.
var errDefect error = fault.New(fault.Internal, "publish", "internal", "the publish has failed by a defect")

// giveBack ends a publish, whose outcome is err: what it has taken is there for others.
func (p *Pipeline) giveBack(b *publishing, err error) {
	p.inFlight.Add(-b.room)
	b.held.Release()
	end(b.span, err)
}

// authorised is authorise, counted.
func (p *Pipeline) authorised(snap *snapshot.Snapshot, who *policy.Principal, namespace, name string, events []event.Event, res []frontend.Result) error {
	err := authorise(snap, who, namespace, name, events, res)
	if err != nil {
		p.metrics.refused.Add(len(events), [2]string{namespaceLabel(snap, namespace)}, reason(err))
	}
	return err
}

// authorise decides whether who may publish to the topic: at all and, where rules
// look at them, each of the events. Where one is refused none is published.
func authorise(snap *snapshot.Snapshot, who *policy.Principal, namespace, name string, events []event.Event, res []frontend.Result) error {
	if err := names.CheckNamespace(namespace); err != nil {
		return failAll(res, &fault.Error{Class: fault.Invalid, Op: "authorise", Reason: "bad-name", Msg: err.Error()})
	}
	if err := names.CheckName("topic", name); err != nil {
		return failAll(res, &fault.Error{Class: fault.Invalid, Op: "authorise", Reason: "bad-name", Msg: err.Error()})
	}
	grant := snap.Rules.Grant(who, policy.Publish, namespace, name)
	if !grant.Ever() || !grant.PerEvent() {
		if d := grant.Always(); !d.Allowed {
			return failAll(res, grant.Refuse(d))
		}
	} else if err := authoriseEach(&grant, events, res); err != nil {
		return err
	}
	if err := snap.Refusal(namespace); err != nil {
		return failAll(res, err)
	}
	return nil
}

// authoriseEach decides for each event. One that is wrong by itself is not judged:
// it is refused for that.
func authoriseEach(grant *policy.Grant, events []event.Event, res []frontend.Result) error {
	var first error
	for i := range events {
		if res[i].Err != nil || events[i].Validate() != nil {
			continue
		}
		if d := grant.For(&events[i]); !d.Allowed {
			res[i].Err = grant.Refuse(d)
			if first == nil {
				first = res[i].Err
			}
		}
	}
	if first != nil {
		refuseOthers(res)
	}
	return first
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
		refuseOthers(res)
	}
	return size, err
}

// BatchRefused is the reason of the refusal of an event for another one of its batch.
const BatchRefused = "batch-refused"

// refuseOthers refuses the events of a batch that are right.
func refuseOthers(res []frontend.Result) {
	others := fault.New(fault.Invalid, "publish", BatchRefused, "another event of the batch is wrong; nothing was published")
	for i := range res {
		if res[i].Err == nil {
			res[i].Err = others
		}
	}
}

// conform judges the data of every event by the topic's schema.
func (p *Pipeline) conform(t *snapshot.Topic, events []event.Event, res []frontend.Result) (err error) {
	if t.Unjudged != "" {
		return failAll(res, &fault.Error{Class: fault.Unavailable, Op: "schema", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + t.Name + " is not ready: " + t.Unjudged})
	}
	if t.Schema == nil {
		return nil
	}
	for i := range events {
		why := t.Schema.Check(&events[i])
		if why == nil {
			continue
		}
		p.metrics.mismatched(t)
		if t.Schema.Shadowed {
			continue
		}
		res[i].Err = &fault.Error{Class: fault.Invalid, Op: "schema", Reason: "schema-mismatch", Msg: why.Error()}
		if err == nil {
			err = res[i].Err
		}
	}
	if err != nil {
		refuseOthers(res)
	}
	return err
}

// checkOne judges an event of n bytes.
func checkOne(t *snapshot.Topic, e *event.Event, n int) error {
	err := e.Validate()
	if err != nil && delivery.Forwards(e) > 0 {
		err = e.Conforms() // it comes from a store, with what the mesh has added
	}
	if err != nil {
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
// order is kept. The last run may only have begun: then it has a wait.
func (p *Pipeline) write(ctx context.Context, snap *snapshot.Snapshot, t *snapshot.Topic, events []event.Event, res []frontend.Result) (last writing, err error) {
	for len(events) > 0 {
		to, err := p.destination(snap, t, &events[0])
		if err != nil {
			return last, failAll(res, err)
		}
		n := len(events)
		if t.Route != nil {
			n = 1
			for n < len(events) {
				if next, err := p.destination(snap, t, &events[n]); err != nil || next != to {
					break
				}
				n++
			}
		}
		w, err := p.hand(ctx, snap, to, t.KeyFrom, events[:n], res[:n], n == len(events))
		if w.wait != nil {
			return w, nil
		}
		if err != nil {
			_ = failAll(res[n:], fault.New(fault.Unavailable, "publish", "after-a-failure", "an earlier event of the batch failed; this one was not published"))
			return last, err
		}
		events, res = events[n:], res[n:]
	}
	return last, nil
}

// destination is the topic that keeps an event that enters t.
func (p *Pipeline) destination(snap *snapshot.Snapshot, t *snapshot.Topic, e *event.Event) (*snapshot.Topic, error) {
	name, routed := t.Route.Resolve(e, e.Key(t.KeyFrom), func(error) { p.metrics.unjudgedBy(t) })
	if !routed || name == t.Name {
		return t, nil
	}
	to := snap.Topics[snapshot.Key{Namespace: t.Namespace, Name: name}]
	if to == nil {
		return nil, &fault.Error{Class: fault.Unavailable, Op: "route", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + name + ", to which the route of " + t.Name + " leads, is not there"}
	}
	return to, usable(to, t.Namespace, name)
}

// writing is a call of a store that has begun.
type writing struct {
	call  *call
	snap  *snapshot.Snapshot
	topic *snapshot.Topic
	under moves.Write
	res   []frontend.Result
	span  trace.Span
	began time.Time
	wait  func(context.Context, []store.Result) error // nil: nothing is to be waited for
}

// hand gives events to the store of one topic. With halves, where that can publish so, there
// is a wait, and settle is the rest; else err is what became of them.
func (p *Pipeline) hand(ctx context.Context, snap *snapshot.Snapshot, t *snapshot.Topic, keyFrom string, events []event.Event, res []frontend.Result, halves bool) (w writing, err error) {
	w = writing{snap: snap, topic: t, res: res}
	if w.under, err = p.cfg.Moves.Begin(ctx, snap, t); err != nil {
		return w, failAll(res, err)
	}
	epoch := w.under.Epoch
	st, err := p.cfg.Store(epoch.StoreUID)
	if err != nil {
		return w, failAll(res, w.under.End(err))
	}
	if w.under.Leaving {
		events = cutover.Placed(events, t.UID, epoch.Number)
	}
	w.call = newCall(len(events))
	out, got := w.call.out, w.call.got
	for i := range events {
		out[i] = store.Outgoing{Event: &events[i], Key: events[i].Key(keyFrom)}
	}
	ctx, w.span = p.beginWrite(ctx, t, epoch.Physical, len(events))
	w.began = time.Now()
	over := false
	defer w.abandon(&over)
	if h, ok := st.(store.Hander); ok && halves {
		if w.wait, err = h.Hand(ctx, epoch.Physical, out); err == nil {
			over = true
			return w, nil
		}
		for i := range got {
			got[i] = store.Result{Err: err}
		}
	} else {
		err = st.Publish(ctx, epoch.Physical, out, got)
	}
	over = true
	return w, p.written(&w, err)
}

// settle waits for what becomes of events that a store was given.
func (p *Pipeline) settle(ctx context.Context, w *writing) error {
	over := false
	defer w.abandon(&over)
	err := w.wait(ctx, w.call.got)
	over = true
	return p.written(w, err)
}

// abandon ends what is not over though its function is: the store has panicked. A move waits
// for every write.
func (w *writing) abandon(over *bool) {
	if !*over {
		_ = w.under.End(errDefect)
		end(w.span, errDefect)
	}
}

// written tells the results of a call, whose outcome is err.
func (p *Pipeline) written(w *writing, err error) error {
	epoch, t := w.under.Epoch, w.topic
	var in snapshot.Key // none of a store that is not there any more
	if s := w.snap.Stores[epoch.StoreUID]; s != nil {
		in = s.Key
	}
	p.metrics.stores.wrote(in, err, time.Since(w.began))
	p.storeLog.is(in, err)
	p.cfg.Denied.Is(t.UID, epoch.StoreUID, denied.Publish, err)
	late := w.under.End(w.call.unkept(err)) // a move has nothing to say of what no store has acknowledged
	if err == nil {
		err = late
	}
	err = lost(t, err)
	end(w.span, err)
	res := w.res
	for i, got := range w.call.got {
		res[i] = frontend.Result{Err: lost(t, got.Err)}
		if got.Err == nil {
			res[i] = frontend.Result{Err: late, Position: position.Token{TopicUID: t.UID, Epoch: epoch.Number, Pos: got.Pos}}
		}
	}
	if err == nil {
		w.call.release()
	}
	return err
}

// lost is the error of a store that does not have a topic which there is: somebody deleted
// it underneath, or the store was restored from before. A client has named no wrong topic,
// and may try again.
func lost(t *snapshot.Topic, err error) error {
	if err == nil || fault.ClassOf(err) != fault.NotFound {
		return err
	}
	f := fault.From(err)
	return &fault.Error{Class: fault.Unavailable, Op: f.Op, Reason: "topic-not-ready", RetryAfter: time.Second, Err: f.Err, Msg: "topic " + t.Name + " is not ready: " + f.Msg}
}

// Write publishes into a topic for the proxy itself: no access rules, no quotas, no routes.
// It borrows events. It is for dead letters, whose attributes may be larger than
// a client's. The topic may be of an older configuration: it is written to where it is now.
func (p *Pipeline) Write(ctx context.Context, t *snapshot.Topic, events []event.Event) error {
	return p.WriteEach(ctx, t, events, make([]frontend.Result, len(events)))
}

// WriteEach is Write, and tells what has become of each event. It is for what somebody has
// written to the topic past the mesh already.
func (p *Pipeline) WriteEach(ctx context.Context, t *snapshot.Topic, events []event.Event, res []frontend.Result) error {
	snap := p.cfg.Snapshots.Get()
	now := snap.Topics[t.Key]
	if now == nil || now.UID != t.UID {
		return failAll(res, &fault.Error{Class: fault.Unavailable, Op: "publish", Reason: "topic-not-ready", RetryAfter: time.Second, Msg: "topic " + t.Name + " is not on this proxy any more"})
	}
	if err := usable(now, t.Namespace, t.Name); err != nil {
		return failAll(res, err)
	}
	_, err := p.hand(ctx, snap, now, now.KeyFrom, events, res, false)
	return err
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
	if len(snap.Namespace(namespace)) == 0 {
		return ""
	}
	return namespace
}
