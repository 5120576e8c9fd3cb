// Package push delivers by calling: each Subscription with a push target has a
// member of the proxy itself, which posts its events as CloudEvents in binary
// mode and settles them by the answer. One that forwards has such a member too,
// which publishes them to another topic (forward.go).
//
// The answer decides: 2xx settles; 429 and 503 with Retry-After give the event
// back for that long; 410 stops the pushing; everything else, a redirect among
// it, is a failed attempt on the Subscription's schedule, unless the Subscription
// says what that status means. A CloudEvent that answers a request is the reply to it
// (reply.go). Targets share nothing: a slow one holds up its own
// Subscription.
package push

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/labels"
	"github.com/weft-mesh/weft/pkg/latest"
)

// Config of a Pusher.
type Config struct {
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Join makes a member for the proxy itself.
	Join func(snapshot.Key) (delivery.Member, error)
	// Forward publishes an event of a Subscription to another topic of its
	// namespace; see pipeline.Pipeline.
	Forward func(ctx context.Context, subscription snapshot.Key, topic string, e *event.Event) error
	// Reply takes the reply to a request that a Subscription's target has answered, or
	// why it cannot be read; see pipeline.Pipeline.
	Reply func(ctx context.Context, subscription snapshot.Key, e event.Event, wrong error) error
	// Allow are networks that may be called beside the public ones.
	Allow []netip.Prefix
	// Secrets is the folder with a folder of secrets for each namespace; none when
	// empty.
	Secrets string
	// Services finds services that are targets; nil where there is no registry: their
	// requests fail.
	Services Services
	// Finish bounds how long requests in flight may take once Run's context
	// has ended; 5 s when 0.
	Finish time.Duration
	// Clock compares with the date that a target asks to wait for.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Tracing trace.TracerProvider
	Log     *slog.Logger

	// Of tests; the system's when nil.
	resolver *net.Resolver
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
}

// Pusher pushes.
type Pusher struct {
	cfg     Config
	tracer  trace.Tracer
	metrics metrics
	names   *labels.Names

	mu      sync.Mutex
	failing map[*target]Failing
	named   map[snapshot.Key]int // targets, by the name that their series have
}

// Failing is a target that requests fail at, failingAfter or more in a row.
type Failing struct {
	Subscription snapshot.Key
	// Outcome of the last one, as the metric has it, and why, for people.
	Outcome, Why string
	// Since is when the first failed.
	Since time.Time
}

// failingAfter is how many requests must fail in a row.
const failingAfter = 3

// Failing gives the targets that fail, by their Subscriptions.
func (p *Pusher) Failing() []Failing {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.failing), func(a, b Failing) int {
		return strings.Compare(a.Subscription.String(), b.Subscription.String())
	})
}

type metrics struct {
	requests *prometheus.CounterVec
	forwards *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
	stopped  *prometheus.GaugeVec
	unusable *prometheus.GaugeVec
	seconds  prometheus.Histogram
}

// New makes a Pusher.
func New(cfg Config) *Pusher {
	if cfg.Finish == 0 {
		cfg.Finish = 5 * time.Second
	}
	if cfg.Tracing == nil {
		cfg.Tracing = noop.NewTracerProvider()
	}
	p := &Pusher{cfg: cfg, failing: map[*target]Failing{}, named: map[snapshot.Key]int{}, tracer: cfg.Tracing.Tracer("github.com/weft-mesh/weft/dataplane/push"), metrics: metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_push_requests_total",
			Help: "Requests to push targets, by outcome: ok, later (the target said when), rejected (no repetition would change it), gone (it is called no more), refused (another status), forbidden (an address that is not called), failed (no answer), untrusted (one of both sides does not accept the other's certificate), no-consent (it was asked and does not want events)."},
			[]string{"namespace", "subscription", "outcome"}),
		forwards: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_forwards_total",
			Help: "Events of Subscriptions that forward, by outcome: ok, later (the topic's quota, or a store that is full, did not let it through in time), rejected (no repetition would change it), failed."},
			[]string{"namespace", "subscription", "outcome"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_push_in_flight", Help: "Requests to push targets that are not answered yet."}, []string{"namespace", "subscription"}),
		stopped:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_push_stopped", Help: "1 while a push target is not called, since it has said that it is gone (410); else 0."}, []string{"namespace", "subscription"}),
		unusable: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_push_tls_files_unusable", Help: "1 while the TLS files of a push target cannot be used as they were when it was called last; what they had before stays in force. Else 0."}, []string{"namespace", "subscription"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_push_duration_seconds", Help: "Time until a push target has answered.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
	}}
	p.names = labels.New(cfg.Metrics, "push target", nil)
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(p.metrics.requests, p.metrics.forwards, p.metrics.inFlight, p.metrics.stopped, p.metrics.unusable, p.metrics.seconds)
	}
	return p
}

// Run pushes what the configuration says until ctx ends; then it finishes what
// is in flight and returns.
func (p *Pusher) Run(ctx context.Context) error {
	targets := map[string]*target{} // by Subscription uid
	var running sync.WaitGroup
	defer running.Wait()
	for {
		snap, replaced := p.cfg.Snapshots.Load()
		want := map[string]*snapshot.Subscription{}
		for _, s := range snap.Subscriptions {
			if s.Push != nil {
				want[s.UID] = s
			}
		}
		for uid, t := range targets {
			if want[uid] == nil {
				t.stop()
				delete(targets, uid)
			}
		}
		for uid, s := range want {
			t := targets[uid]
			if t == nil {
				t = p.newTarget(s)
				targets[uid] = t
				tctx, stop := context.WithCancel(ctx)
				t.stop = stop
				running.Go(func() { defer stop(); t.run(tctx) })
			}
			t.follow(s.Push)
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return nil
		}
	}
}

// target is one Subscription that is pushed.
type target struct {
	p      *Pusher
	key    snapshot.Key
	labels [2]string // of its metrics
	client *client
	stop   context.CancelFunc
	push   atomic.Pointer[called]
	log    *slog.Logger

	mu      sync.Mutex
	member  delivery.Member // nil while there is none
	granted int
	// consent is the target's, and next when a request may be made by it.
	consent consent
	next    time.Time
	// The requests that have failed in a row: how many, and when the first did.
	failures int
	since    time.Time
	// gone is the configuration that the target was called with when it said that
	// it is gone; nil while it is called. end ends the session, changed wakes run.
	gone    *snapshot.Push
	end     context.CancelFunc
	changed chan struct{} // capacity 1
}

// called is how a target is called: both are of one configuration, or what one says of
// secrets would hold for the address of another.
type called struct {
	*snapshot.Push
	balancer *balancer // nil where the target is a URL
}

func (p *Pusher) newTarget(s *snapshot.Subscription) *target {
	t := &target{p: p, key: s.Key, client: newClient(&p.cfg, s.Key.Namespace), changed: make(chan struct{}, 1), log: p.cfg.Log.With("subscription", s.Key.String())}
	if p.cfg.dial != nil {
		t.client.transport.DialContext = p.cfg.dial
	}
	p.mu.Lock()
	p.named[s.Key]++
	t.labels[0], t.labels[1] = p.names.Of(s.Key.Namespace, s.Key.Name)
	p.mu.Unlock()
	t.balance(s.Push)
	if s.Push.ForwardTo == "" {
		t.stoppedMetric().Set(0)
		t.client.tls.log, t.client.tls.unusable = t.log, p.metrics.unusable.WithLabelValues(t.labels[:]...)
	}
	return t
}

// follow takes a newer configuration, for what is sent from now on.
func (t *target) follow(push *snapshot.Push) {
	old := t.push.Load()
	moved := t.balance(push)
	if old.URL != push.URL || old.ForwardTo != push.ForwardTo || !reflect.DeepEqual(old.Service, push.Service) {
		t.judge(answer{outcome: outcomeOK}) // nothing is known of the new one
	}
	if old.Version != push.Version {
		t.client.secrets.forget()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if push.Origin == "" {
		t.consent = consent{}
	}
	t.grantLocked()
	if moved || old.Origin != push.Origin || !t.consent.covers(push) {
		if t.end != nil {
			t.end() // until the registry, or the target, is asked; what waits for its turn goes back
		}
		if moved || old.Version != push.Version { // else what changes elsewhere has it asked again
			t.wake()
		}
	}
	if t.gone != nil && t.gone.Version != push.Version {
		t.log.Info("the Subscription was changed: its push target is called again")
		t.gone, t.failures = nil, 0
		t.stoppedMetric().Set(0)
		t.p.fails(t, nil)
		t.wake()
	}
}

// wake tells run that something has changed.
func (t *target) wake() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// balance calls the target as push says, and follows the service that it names, if it
// does. It is called by one goroutine at a time, and reports whether it is
// another service, or none any more.
func (t *target) balance(push *snapshot.Push) bool {
	var old *balancer
	if c := t.push.Load(); c != nil {
		old = c.balancer
	}
	b := old
	switch {
	case push.Service == nil:
		b = nil
	case old == nil || !reflect.DeepEqual(old.service, push.Service):
		b = newBalancer(t.p.cfg.Services, push.Service, t.log)
	}
	t.push.Store(&called{push, b})
	if old != nil && old != b {
		old.stop()
	}
	return b != old
}

// close ends what the target is called with.
func (t *target) close() {
	if b := t.push.Load().balancer; b != nil {
		b.stop()
	}
	t.client.close()
}

// stopAt ends the session: the target, called as push says, has said that it is
// gone. What is not settled then goes back. It reports whether it stopped: not
// where the configuration has changed meanwhile.
func (t *target) stopAt(push *snapshot.Push, reason string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone != nil {
		return true
	}
	if t.push.Load().Version != push.Version {
		return false
	}
	t.gone = push
	t.log.Warn("a push target is gone: it is called no more until its Subscription is changed or this proxy starts anew", "reason", reason)
	t.stoppedMetric().Set(1)
	t.p.fails(t, &Failing{t.key, Gone, reason, t.p.cfg.Clock.Now()})
	if t.end != nil {
		t.end()
	}
	return true
}

func (t *target) stoppedMetric() prometheus.Gauge {
	return t.p.metrics.stopped.WithLabelValues(t.labels[:]...)
}

// called waits until the target is to be called. It reports whether it is; not
// once ctx has ended.
func (t *target) called(ctx context.Context) bool {
	for {
		t.mu.Lock()
		gone := t.gone != nil
		t.mu.Unlock()
		if !gone || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
		}
	}
}

// judge takes note of how a request went.
func (t *target) judge(a answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone != nil {
		return // what is still under way tells nothing new
	}
	if a.outcome == outcomeOK || a.outcome == Rejected {
		if t.failures >= failingAfter {
			t.log.Info("a push target works again", "failures", t.failures)
			t.p.fails(t, nil)
		}
		t.failures = 0
		return
	}
	if t.failures++; t.failures == 1 {
		t.since = t.p.cfg.Clock.Now()
	}
	if t.failures >= failingAfter {
		if t.failures == failingAfter {
			t.log.Warn("a push target fails", "reason", a.reason)
		}
		t.p.fails(t, &Failing{t.key, a.outcome, a.reason, t.since})
	}
}

// fails keeps what is known of a target that fails; nil is nothing.
func (p *Pusher) fails(t *target, f *Failing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f == nil {
		delete(p.failing, t)
	} else {
		p.failing[t] = *f
	}
}

// grantLocked makes the member's credit the target's concurrency.
func (t *target) grantLocked() {
	if t.member == nil {
		return
	}
	if want := t.consent.most(t.push.Load().Concurrency); want != t.granted {
		t.member.Credit(want - t.granted)
		t.granted = want
	}
}

// Retry times of joining.
const (
	minRejoin = 100 * time.Millisecond
	maxRejoin = 10 * time.Second
)

// run pushes until ctx ends.
func (t *target) run(ctx context.Context) {
	defer t.close()
	defer t.forget()
	// Requests outlive ctx for a while.
	rctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(t.p.cfg.Finish, cancel) })()
	retry := minRejoin
	for t.called(ctx) {
		if !t.found(ctx) || !t.consented(ctx) {
			continue
		}
		got, err := t.session(ctx, rctx)
		if ctx.Err() != nil {
			return
		}
		if got {
			retry = minRejoin
		}
		t.mu.Lock()
		c := t.push.Load()
		again := t.gone != nil || !t.consent.covers(c.Push) || !c.balancer.isTold()
		t.mu.Unlock()
		if again {
			continue
		}
		t.log.Warn("pushing stopped; joining again", "error", err)
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRejoin)
	}
}

// fetch is how many deliveries are taken at a time.
const fetch = 16

// session is one membership: it ends with an error of the member, or ctx, and
// when every request is answered. got is whether anything was delivered.
func (t *target) session(ctx, rctx context.Context) (got bool, _ error) {
	m, err := t.p.cfg.Join(t.key)
	if err != nil {
		return false, err
	}
	defer m.Close()
	ctx, end := context.WithCancel(ctx)
	defer end()
	t.mu.Lock()
	t.member, t.granted, t.end = m, 0, end
	t.grantLocked()
	if c := t.push.Load(); !c.balancer.isTold() || !t.consent.covers(c.Push) {
		end() // it has become another one since that was asked
	}
	t.mu.Unlock()
	var requests sync.WaitGroup
	defer func() {
		t.mu.Lock()
		t.member, t.end = nil, nil
		t.mu.Unlock()
		requests.Wait()
	}()
	var dst [fetch]delivery.Delivery
	for {
		// Credit bounds the goroutines: each has one delivery.
		n, err := m.Next(ctx, dst[:])
		if err != nil {
			return got, err
		}
		got = true
		for _, d := range dst[:n] {
			requests.Go(func() { t.deliver(ctx, rctx, m, d) })
		}
		clear(dst[:n])
	}
}

// extra is what a delivery may take beside the answer, before it counts as lost.
const extra = 5 * time.Second

// deliver posts one event, when its turn comes in session, and settles it by the
// answer.
func (t *target) deliver(session, ctx context.Context, m delivery.Member, d delivery.Delivery) {
	push := t.push.Load()
	if !push.balancer.isTold() {
		return // the session ends, and it goes back with it
	}
	need := push.Timeout + extra
	if push.Origin != "" {
		need += time.Minute // see consent.most
	}
	if need > m.AckTimeout() {
		m.Extend(need, d.ID)
	}
	if !t.turn(session, push.Push) || push.Origin != "" && m.Extend(need, d.ID) > 0 {
		return // it goes back with the session; or it is not this proxy's any more
	}
	ctx, span := t.span(ctx, &d)
	defer span.End()
	a := t.attempt(ctx, push, &d)
	stopping := ctx.Err() != nil // of this proxy: nobody knows what the target would have done
	if !stopping {
		t.judge(a)
	}
	if a.outcome == outcomeOK {
		m.Ack(d.ID)
		return
	}
	failed(span, a.reason)
	if stopping {
		return // it goes back with the session, and no attempt counts
	}
	t.log.Debug("a push failed", "attempt", d.Attempt, "reason", a.reason)
	switch a.outcome {
	case Gone:
		if !t.stopAt(push.Push, a.reason) { // else it goes back with the session, too
			m.Nack(a.reason, a.delay, d.ID)
		}
	case Rejected:
		m.Reject(a.reason, d.ID)
	default:
		m.Nack(a.reason, a.delay, d.ID)
	}
}

// attempt posts or forwards one event.
func (t *target) attempt(ctx context.Context, push *called, d *delivery.Delivery) answer {
	if push.ForwardTo != "" {
		a := t.p.forward(ctx, push.Push, t.key, d)
		t.p.metrics.forwards.WithLabelValues(t.labels[0], t.labels[1], a.outcome).Inc()
		return a
	}
	inFlight := t.p.metrics.inFlight.WithLabelValues(t.labels[:]...)
	inFlight.Inc()
	began := time.Now()
	a, r := t.client.post(ctx, push.Push, push.balancer, t.key, d)
	inFlight.Dec()
	t.p.metrics.seconds.Observe(time.Since(began).Seconds())
	t.p.metrics.requests.WithLabelValues(t.labels[0], t.labels[1], a.outcome).Inc()
	if r != nil && a.outcome == outcomeOK {
		t.pass(ctx, r, d)
	}
	return a
}

// forget removes what is shown of the target; the series once no other target has them: its
// Subscription may have been deleted and made again while its last requests were answered.
func (t *target) forget() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	delete(t.p.failing, t)
	if t.p.named[t.key]--; t.p.named[t.key] > 0 {
		return
	}
	delete(t.p.named, t.key)
	if !t.p.names.Forget(t.key.Namespace, t.key.Name) {
		return
	}
	labels := prometheus.Labels{"namespace": t.key.Namespace, "subscription": t.key.Name}
	t.p.metrics.requests.DeletePartialMatch(labels)
	t.p.metrics.forwards.DeletePartialMatch(labels)
	t.p.metrics.inFlight.DeletePartialMatch(labels)
	t.p.metrics.stopped.DeletePartialMatch(labels)
	t.p.metrics.unusable.DeletePartialMatch(labels)
}

// answer is what came of one request.
type answer struct {
	outcome string
	reason  string        // for the dead letter; "" when ok
	delay   time.Duration // until the next attempt; negative is the schedule
}

// Outcomes, as the metric has them; those that are not ok.
const (
	outcomeOK = "ok"
	Later     = "later"
	Rejected  = "rejected"
	Gone      = "gone"
	Refused   = "refused"
	Forbidden = "forbidden"
	Failed    = "failed"
	Untrusted = "untrusted"
	NoConsent = "no-consent"
)

func failure(outcome, format string, args ...any) answer {
	return answer{outcome, fmt.Sprintf(format, args...), -1}
}
