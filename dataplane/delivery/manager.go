package delivery

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

// Config of a Manager.
type Config struct {
	// Snapshots has the configuration; never nil inside.
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Store gives the open store of an EventStore.
	Store func(uid string) (store.Store, error)
	// Write publishes into a topic, past policy and routes: dead letters.
	Write func(ctx context.Context, t *snapshot.Topic, events []event.Event) error
	// Clock tells when credentials end and parked events are due.
	Clock clock.Clock
	// Tracing makes spans; none when nil.
	Tracing trace.TracerProvider
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Manager delivers. Run must run; the other methods are safe for concurrent
// use.
type Manager struct {
	cfg     Config
	metrics *metrics
	tracer  trace.Tracer // nil without tracing

	mu       sync.Mutex
	runtimes map[string]*runtime       // by Subscription uid
	counted  map[snapshot.Key]struct{} // that have metrics
	tails    map[*tail]struct{}
	draining bool
	running  sync.WaitGroup
}

// New makes a Manager.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg, metrics: newMetrics(cfg.Metrics), runtimes: map[string]*runtime{}, counted: map[snapshot.Key]struct{}{}, tails: map[*tail]struct{}{}}
	if cfg.Tracing != nil {
		m.tracer = cfg.Tracing.Tracer("github.com/weft-mesh/weft/dataplane/delivery")
	}
	return m
}

// MaxMembers bounds the members of one subscription on one proxy, and the tails
// of one proxy.
const (
	MaxMembers = 10000
	MaxTails   = 10000
)

// Run follows the configuration until ctx ends, and then closes everything:
// unsettled events go back to their stores.
func (m *Manager) Run(ctx context.Context) error {
	expire := time.NewTicker(expireEvery)
	defer expire.Stop()
	for {
		_, replaced := m.cfg.Snapshots.Load()
		m.follow()
		for changed := false; !changed; {
			select {
			case <-replaced:
				changed = true
			case <-expire.C:
				m.expire(m.cfg.Clock.Now())
			case <-ctx.Done():
				m.Drain()
				m.running.Wait()
				return nil
			}
		}
	}
}

// expireEvery is how often members and tails are looked at for credentials that
// have expired: by the clock on the wall, which may jump.
const expireEvery = time.Second

// expire judges again whoever's credentials have expired by their own date.
func (m *Manager) expire(now time.Time) {
	m.mu.Lock()
	snap := m.cfg.Snapshots.Get()
	rs := slices.Collect(maps.Values(m.runtimes))
	for t := range m.tails {
		if t.expired(now) {
			t.check(snap, now)
		}
	}
	m.mu.Unlock()
	for _, r := range rs {
		r.expire(snap, now)
	}
}

// Drain ends every member and tail with Unavailable and refuses new ones.
func (m *Manager) Drain() {
	m.mu.Lock()
	m.draining = true
	rs := slices.Collect(maps.Values(m.runtimes))
	for t := range m.tails {
		t.fail(errDraining)
	}
	m.mu.Unlock()
	for _, r := range rs {
		r.end(errDraining)
	}
}

var errDraining = fault.New(fault.Unavailable, "delivery", "draining", "the proxy is shutting down; connect again")

// follow brings every runtime and tail up to the configuration. What joins
// meanwhile has seen this one or a newer one, since both look under mu.
func (m *Manager) follow() {
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	snap := m.cfg.Snapshots.Get()
	rs := slices.Collect(maps.Values(m.runtimes))
	for t := range m.tails {
		t.check(snap, now)
	}
	m.mu.Unlock()
	for _, r := range rs {
		r.follow(snap, now)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.counted {
		if snap.Subscriptions[key] == nil {
			m.metrics.forget(key.Namespace, key.Name)
			delete(m.counted, key)
		}
	}
}

// Join makes the client a member of a Subscription.
func (m *Manager) Join(_ context.Context, who *policy.Principal, namespace, name string) (Member, error) {
	return m.join(who, snapshot.Key{Namespace: namespace, Name: name})
}

// JoinPush makes a member for the proxy itself, which delivers by calling.
func (m *Manager) JoinPush(key snapshot.Key) (Member, error) {
	return m.join(nil, key)
}

func (m *Manager) join(who *policy.Principal, key snapshot.Key) (Member, error) {
	const op = "delivery.join"
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := m.cfg.Snapshots.Get() // under mu, or rules that come now would miss the member
	if err := mayConsume(snap, who, key.Namespace, key.Name); err != nil {
		return nil, err
	}
	sub := snap.Subscriptions[key]
	switch {
	case sub == nil:
		return nil, fault.New(fault.NotFound, op, "unknown-subscription", "there is no Subscription %s in namespace %s", key.Name, key.Namespace)
	case sub.Push != nil && who != nil:
		return nil, fault.New(fault.Precondition, op, "push-subscription", "Subscription %s is delivered by push; nobody can join it", key.Name)
	}
	if m.draining {
		return nil, errDraining
	}
	r := m.runtimes[sub.UID]
	if r == nil {
		r = newRuntime(m, sub)
		m.runtimes[sub.UID] = r
		m.counted[sub.Key] = struct{}{}
		m.running.Go(r.tend)
	}
	mem := &member{r: r, who: who, ready: make(chan struct{}, 1)}
	if !r.add(mem) {
		return nil, fault.New(fault.Throttled, op, "too-many-members", "the subscription has %d members on this proxy", MaxMembers)
	}
	r.follow(snap, m.cfg.Clock.Now())
	return mem, nil
}

// left removes a runtime without members.
func (m *Manager) left(r *runtime) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runtimes[r.uid] == r && r.retire() {
		delete(m.runtimes, r.uid)
	}
}

// mayConsume checks what joining a Subscription needs: Consume on it, and
// Subscribe on each topic that it reads.
func mayConsume(snap *snapshot.Snapshot, who *policy.Principal, namespace, name string) error {
	if who == nil {
		return snap.Refusal(namespace) // the proxy itself
	}
	if d := snap.Rules.Authorize(who, policy.Consume, namespace, name); !d.Allowed {
		return denied(d)
	}
	if err := snap.Refusal(namespace); err != nil {
		return err
	}
	if sub := snap.Subscriptions[snapshot.Key{Namespace: namespace, Name: name}]; sub != nil {
		for _, s := range sub.Sources {
			if d := snap.Rules.Authorize(who, policy.Subscribe, namespace, s.Topic.Name); !d.Allowed {
				return denied(d)
			}
		}
	}
	return nil
}

func denied(d policy.Decision) error {
	return &fault.Error{Class: fault.Denied, Op: "authorise", Reason: "access-denied", Msg: d.Why}
}

// refreshed judges a principal by a newer configuration.
func refreshed(snap *snapshot.Snapshot, who *policy.Principal, now time.Time) (*policy.Principal, error) {
	if who == nil {
		return nil, nil
	}
	p, ok := snap.Identities.Refresh(who, now)
	if !ok {
		return nil, fault.New(fault.Unauthenticated, "authenticate", "credentials-revoked", "the credentials of this connection are not valid any more")
	}
	return p, nil
}
