package delivery

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/weft-mesh/weft/dataplane/denied"
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/moves"
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
	// Moves says where a topic that moves is written to; see pipeline.Config.
	Moves *moves.Manager
	// Denied remembers topics that stores deny; nil remembers nothing.
	Denied *denied.Log
	// NodeID is of this proxy, in the names of deliveries that are pulled.
	NodeID string
	// Facts remembers what becomes of events; nil remembers nothing.
	Facts *facts.Ring
	// MaxHeld is how many bytes of events may be unsettled here, of all Subscriptions,
	// before each has but a little; 1 GiB when 0.
	MaxHeld int64
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
	runtimes map[string]*runtime            // by Subscription uid
	counted  map[snapshot.Key]struct{}      // that have metrics
	paceMu   sync.Mutex                     // taken after mu and that of a runtime
	paces    map[snapshot.Key]*rate.Limiter // of those with a rate
	tails    map[*tail]struct{}
	pulls    map[pullKey]*pullSession
	// pullCalls are the pulls in progress.
	pullCalls int
	scans     map[string]int      // of dead-letter topics, by principal
	redriving map[string]struct{} // by Subscription uid
	lagging   map[lagKey]bool     // that have a series; sample's
	draining  bool
	tried     tried
	drains    drains
	turns     readers
	held      held
	running   sync.WaitGroup

	feedMu sync.Mutex       // taken after mu and that of a tail
	feeds  map[string]*feed // by Topic uid
}

// New makes a Manager.
func New(cfg Config) *Manager {
	if cfg.Moves == nil {
		cfg.Moves = moves.New(moves.Config{Snapshots: cfg.Snapshots, Store: cfg.Store, Log: cfg.Log})
	}
	m := &Manager{cfg: cfg, held: held{most: cmp.Or(cfg.MaxHeld, 1<<30)}, metrics: newMetrics(cfg.Metrics), runtimes: map[string]*runtime{}, counted: map[snapshot.Key]struct{}{}, paces: map[snapshot.Key]*rate.Limiter{}, tails: map[*tail]struct{}{}, pulls: map[pullKey]*pullSession{}, scans: map[string]int{}, redriving: map[string]struct{}{}, feeds: map[string]*feed{}}
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
	if m.cfg.Metrics != nil {
		m.running.Go(func() { m.sample(ctx) })
	}
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
				m.expirePulls()
				m.makeRoom()
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

// expire judges again the members whose credentials have expired.
func (r *runtime) expire(snap *snapshot.Snapshot, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for mem := range r.members {
		if mem.who != nil && mem.who.Expired(now) && !mem.pulls {
			mem.checkLocked(snap, now)
		}
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
	m.drains.keep(snap)
	m.turns.follow(snap)
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.counted {
		if snap.Subscriptions[key] == nil {
			m.metrics.forget(key.Namespace, key.Name)
			delete(m.counted, key)
			m.paceMu.Lock()
			delete(m.paces, key)
			m.paceMu.Unlock()
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
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := m.cfg.Snapshots.Get() // under mu, or rules that come now would miss the member
	mem, err := m.joinLocked(snap, who, key, false)
	if err != nil {
		return nil, err
	}
	return mem, nil
}

// joinLocked makes a member, maybe of one who pulls, by snap, which was loaded while mu was held.
func (m *Manager) joinLocked(snap *snapshot.Snapshot, who *policy.Principal, key snapshot.Key, pulls bool) (*member, error) {
	const op = "delivery.join"
	if err := mayConsume(snap, who, key.Namespace, key.Name); err != nil {
		return nil, err
	}
	sub := snap.Subscriptions[key]
	if sub == nil {
		return nil, unknownSubscription(key.Namespace, key.Name)
	}
	if err := mayJoin(sub, who); err != nil {
		return nil, err
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
	mem := &member{r: r, who: who, pulls: pulls}
	if !r.add(mem) {
		return nil, fault.New(fault.Throttled, op, "too-many-members", "the subscription has %d members on this proxy", MaxMembers)
	}
	r.follow(snap, m.cfg.Clock.Now())
	return mem, nil
}

// mayJoin is why a client is no member of a Subscription that the mesh delivers by itself.
func mayJoin(sub *snapshot.Subscription, who *policy.Principal) error {
	const op = "delivery.join"
	switch {
	case sub.Push == nil || who == nil:
		return nil
	case sub.Push.ForwardTo != "":
		return fault.New(fault.Precondition, op, "forward-subscription", "Subscription %s is delivered into topic %s; nobody can join it", sub.Name, sub.Push.ForwardTo)
	}
	return fault.New(fault.Precondition, op, "push-subscription", "Subscription %s is delivered by push; nobody can join it", sub.Name)
}

func unknownSubscription(namespace, name string) error {
	return fault.New(fault.NotFound, "delivery.join", "unknown-subscription", "there is no Subscription %s in namespace %s", name, namespace)
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
	if err := may(snap, who, policy.Consume, namespace, name); err != nil {
		return err
	}
	if err := snap.Refusal(namespace); err != nil {
		return err
	}
	if sub := snap.Subscriptions[snapshot.Key{Namespace: namespace, Name: name}]; sub != nil {
		for _, s := range sub.Sources {
			if err := may(snap, who, policy.Subscribe, namespace, s.Topic.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// may is nil where the rules allow it whatever the event. Events of a subscription
// are settled by whoever gets them: who may read only some would lose the others for
// those who may.
func may(snap *snapshot.Snapshot, who *policy.Principal, a policy.Action, namespace, name string) error {
	grant := snap.Rules.Grant(who, a, namespace, name)
	if d := grant.Always(); !d.Allowed {
		return grant.Refuse(d)
	}
	return nil
}

// refreshed judges a principal by a newer configuration.
func refreshed(snap *snapshot.Snapshot, who *policy.Principal, now time.Time) (*policy.Principal, error) {
	if who == nil {
		return nil, nil
	}
	return snap.Identities.Refresh(who, now)
}
