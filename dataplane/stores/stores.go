// Package stores keeps the stores of the configuration open: it opens, prepares,
// replaces and closes them as EventStores come, change and go, so that calls
// find an open store by one lock-free look-up.
//
// A store that cannot be opened is that store's trouble alone: it is tried
// again until it works, and calls to its topics are answered Unavailable.
package stores

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Config of a Manager.
type Config struct {
	// Drivers by kind.
	Drivers map[string]store.Driver
	// Options turns an EventStore into a driver's kind and options.
	Options func(*configv1.EventStore) (kind string, options any, err error)
	// ClientID is the proxy's incarnation.
	ClientID string
	// Dir is where stores on this machine keep their data, one folder each.
	Dir string
	// ApplyWait bounds how long Apply waits for stores; 5 s when 0.
	ApplyWait time.Duration
	// OpenTimeout bounds one attempt to open or prepare a store; 10 s when 0.
	OpenTimeout time.Duration
	// Grace is how long a store that was replaced or removed stays open for
	// those who still hold it; 10 s when 0.
	Grace time.Duration
	// CheckEvery is the time between looks at whether an open store's server is
	// there and takes the credentials (store.Checker); 5 s when 0.
	CheckEvery time.Duration
	// Window is store.Config.Window.
	Window int
	// Refused is store.Config.Refused.
	Refused func(ctx context.Context, topic string, e *event.Event, why error) error
	// Prepared is called, if set, when a store that Apply did not wait for is
	// prepared: Apply's answer would be another one now.
	Prepared func()
	Metrics  prometheus.Registerer
	Log      *slog.Logger
}

// Retry times of a store that cannot be opened or prepared.
const (
	minRetry = 200 * time.Millisecond
	maxRetry = 15 * time.Second
)

// Manager keeps stores open. Apply is called by one goroutine at a time; Get and
// Status by any.
type Manager struct {
	cfg Config
	// open is replaced as a whole under mu and read without it.
	open atomic.Pointer[map[string]entry]

	mu      sync.Mutex
	keepers map[string]*keeper
	closed  bool
	closing context.Context // bounds closing once life has ended

	life    context.Context // ends at Close
	end     context.CancelFunc
	running sync.WaitGroup
	metrics managerMetrics
}

type entry struct {
	st  store.Store
	err error // why st is nil
}

type managerMetrics struct {
	open     *prometheus.GaugeVec
	failures *prometheus.CounterVec
}

// New makes a Manager without stores.
func New(cfg Config) *Manager {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.ApplyWait, 5 * time.Second}, {&cfg.OpenTimeout, 10 * time.Second}, {&cfg.Grace, 10 * time.Second}, {&cfg.CheckEvery, 5 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	m := &Manager{cfg: cfg, keepers: map[string]*keeper{}, metrics: managerMetrics{
		open:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_proxy_store_open", Help: "1 where the store is open, else 0."}, []string{"store"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_store_failures_total", Help: "Failed attempts to open a store, or to make its topics and groups."}, []string{"store"}),
	}}
	m.open.Store(&map[string]entry{})
	m.life, m.end = context.WithCancel(context.Background())
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(m.metrics.open, m.metrics.failures)
	}
	return m
}

// Get gives the open store of an EventStore's uid. It may be used for the
// operation at hand; whoever holds it longer asks again when the configuration
// changes. Without one the error is Unavailable. It does not lock.
func (m *Manager) Get(uid string) (store.Store, error) {
	e, ok := (*m.open.Load())[uid]
	switch {
	case e.st != nil:
		return e.st, nil
	case ok:
		return nil, e.err
	}
	return nil, &fault.Error{Class: fault.Unavailable, Op: "stores", Reason: "store-not-open", Msg: "the event store is not open on this proxy", RetryAfter: time.Second}
}

// set replaces what Get answers for a uid; the zero entry removes it.
func (m *Manager) set(uid string, e entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setLocked(uid, e)
}

func (m *Manager) setLocked(uid string, e entry) {
	next := maps.Clone(*m.open.Load())
	if next[uid] = e; e == (entry{}) {
		delete(next, uid)
	}
	m.open.Store(&next)
}

// Apply opens what s has and is not open, makes the topics and groups that this
// proxy makes itself, and closes, after the grace, what s has no more. It waits
// for that as long as Config.ApplyWait and ctx allow, and goes on by itself
// after that.
//
// s is not published yet: topics and sources in open stores that are not made
// yet are marked in it. A new topic is usable only when its groups have their
// start, so that no subscription misses an event of it.
func (m *Manager) Apply(ctx context.Context, s *snapshot.Snapshot) {
	want := wanted(s)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.ApplyWait)
	defer cancel()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	for uid, k := range m.keepers {
		if s.Stores[uid] == nil {
			k.retire()
		}
	}
	for uid, st := range s.Stores {
		k, isNew := m.keepers[uid], false
		if k == nil {
			k, isNew = newKeeper(m, st), true
			m.keepers[uid] = k
		}
		k.want(st, want[uid])
		if isNew { // it has its first wish
			m.running.Go(k.run)
		}
	}
	keepers := maps.Clone(m.keepers)
	m.mu.Unlock()
	for uid := range s.Stores {
		keepers[uid].await(ctx)
	}
	mark(s, keepers)
}

// A Status describes one store, for people.
type Status struct {
	Store string `json:"store"`
	UID   string `json:"uid"`
	// Open: calls reach the store.
	Open bool `json:"open"`
	// Problem is what does not work; "" when all does. Never has a secret in it.
	Problem string `json:"problem,omitempty"`
	// Reason is the Problem in one word: SecretMissing, AccessDenied,
	// Unreachable, NotOpen or NotPrepared.
	Reason string `json:"reason,omitempty"`
	// Since is when Open or Problem changed last.
	Since time.Time `json:"since"`
}

// Status of every store, sorted by name.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	keepers := slices.Collect(maps.Values(m.keepers))
	m.mu.Unlock()
	out := make([]Status, 0, len(keepers))
	for _, k := range keepers {
		out = append(out, k.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Store, b.Store) })
	return out
}

// Close closes every store, without the grace, and returns when that is done or
// ctx has ended; then the error says so. Nothing may use the stores any more.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	if !m.closed {
		m.closed, m.closing = true, ctx
		m.end()
	}
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { m.running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stores are not closed yet: %w", context.Cause(ctx))
	}
}
