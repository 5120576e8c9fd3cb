// Package push delivers by calling: each Subscription with a push target has a
// member of the proxy itself, which posts its events as CloudEvents in binary
// mode and settles them by the answer.
//
// The answer decides: 2xx settles; 429 and 503 with Retry-After give the event
// back for that long; everything else, a redirect and 410 among it, is a failed
// attempt on the Subscription's schedule. Targets share nothing: a slow one
// holds up its own Subscription.
package push

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
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
	"github.com/weft-mesh/weft/pkg/latest"
)

// Config of a Pusher.
type Config struct {
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Join makes a member for the proxy itself.
	Join func(snapshot.Key) (delivery.Member, error)
	// Allow are networks that may be called beside the public ones.
	Allow []netip.Prefix
	// Finish bounds how long requests in flight may take once Run's context
	// has ended; 5 s when 0.
	Finish time.Duration
	// Clock compares with the date that a target asks to wait for.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Tracing trace.TracerProvider
	Log     *slog.Logger
}

// Pusher pushes.
type Pusher struct {
	cfg     Config
	tracer  trace.Tracer
	metrics metrics

	mu      sync.Mutex
	failing map[*target]Failing
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
	inFlight *prometheus.GaugeVec
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
	p := &Pusher{cfg: cfg, failing: map[*target]Failing{}, tracer: cfg.Tracing.Tracer("github.com/weft-mesh/weft/dataplane/push"), metrics: metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_push_requests_total",
			Help: "Requests to push targets, by outcome: ok, later (the target said when), refused (another status), forbidden (an address that is not called), failed (no answer)."},
			[]string{"namespace", "subscription", "outcome"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_push_in_flight", Help: "Requests to push targets that are not answered yet."}, []string{"namespace", "subscription"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_push_duration_seconds", Help: "Time until a push target has answered.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
	}}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(p.metrics.requests, p.metrics.inFlight, p.metrics.seconds)
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
	client *client
	stop   context.CancelFunc
	push   atomic.Pointer[snapshot.Push]
	log    *slog.Logger

	mu      sync.Mutex
	member  delivery.Member // nil while there is none
	granted int
	// The requests that have failed in a row: how many, and when the first did.
	failures int
	since    time.Time
}

func (p *Pusher) newTarget(s *snapshot.Subscription) *target {
	t := &target{p: p, key: s.Key, client: newClient(p.cfg.Allow, p.cfg.Clock), log: p.cfg.Log.With("subscription", s.Key.String())}
	t.push.Store(s.Push)
	return t
}

// follow takes a newer configuration, for what is sent from now on.
func (t *target) follow(push *snapshot.Push) {
	if old := t.push.Swap(push); old.URL != push.URL {
		t.judge(answer{outcome: outcomeOK}) // nothing is known of the new one
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grantLocked()
}

// judge takes note of how a request went.
func (t *target) judge(a answer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.outcome == outcomeOK {
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
	if want := t.push.Load().Concurrency; want != t.granted {
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
	defer t.client.close()
	defer t.forget()
	// Requests outlive ctx for a while.
	rctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(t.p.cfg.Finish, cancel) })()
	retry := minRejoin
	for ctx.Err() == nil {
		got, err := t.session(ctx, rctx)
		if ctx.Err() != nil {
			return
		}
		if got {
			retry = minRejoin
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
	t.mu.Lock()
	t.member, t.granted = m, 0
	t.grantLocked()
	t.mu.Unlock()
	var requests sync.WaitGroup
	defer func() {
		t.mu.Lock()
		t.member = nil
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
			requests.Go(func() { t.deliver(rctx, m, d) })
		}
		clear(dst[:n])
	}
}

// extra is what a delivery may take beside the answer, before it counts as lost.
const extra = 5 * time.Second

// deliver posts one event and settles it by the answer.
func (t *target) deliver(ctx context.Context, m delivery.Member, d delivery.Delivery) {
	push := t.push.Load()
	if need := push.Timeout + extra; need > m.AckTimeout() {
		m.Extend(need, d.ID)
	}
	ctx, span := t.span(ctx, &d)
	defer span.End()
	inFlight := t.p.metrics.inFlight.WithLabelValues(t.key.Namespace, t.key.Name)
	inFlight.Inc()
	began := time.Now()
	a := t.client.post(ctx, push, t.key, &d)
	inFlight.Dec()
	t.p.metrics.seconds.Observe(time.Since(began).Seconds())
	t.p.metrics.requests.WithLabelValues(t.key.Namespace, t.key.Name, a.outcome).Inc()
	if ctx.Err() == nil { // else it is this proxy that stops
		t.judge(a)
	}
	if a.outcome == outcomeOK {
		m.Ack(d.ID)
		return
	}
	failed(span, a.reason)
	t.log.Debug("a push failed", "attempt", d.Attempt, "reason", a.reason)
	m.Nack(a.reason, a.delay, d.ID)
}

// forget removes what is shown of the target.
func (t *target) forget() {
	t.p.fails(t, nil)
	labels := prometheus.Labels{"namespace": t.key.Namespace, "subscription": t.key.Name}
	t.p.metrics.requests.DeletePartialMatch(labels)
	t.p.metrics.inFlight.DeletePartialMatch(labels)
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
	Refused   = "refused"
	Forbidden = "forbidden"
	Failed    = "failed"
)

func failure(outcome, format string, args ...any) answer {
	return answer{outcome, fmt.Sprintf(format, args...), -1}
}
