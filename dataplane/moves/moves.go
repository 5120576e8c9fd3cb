// Package moves is a proxy's part in the move of a topic from one store to another:
// while it moves it is written to under leases alone, and what is acknowledged is judged
// again when the store has acknowledged it. The rules are those of package cutover.
//
// It costs nothing where no topic moves: a look whether the configuration is still the
// same.
package moves

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

// Config of a Manager.
type Config struct {
	// Snapshots has the configuration in force; never nil inside.
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Kept is what a restart would begin with, and a channel that is closed once that is
	// another; see config.Client. What is in force when nil.
	Kept func() (config.Kept, <-chan struct{})
	// Store gives the open store of an EventStore.
	Store func(uid string) (store.Store, error)
	// NodeID is the proxy's.
	NodeID string
	// Pin has a topic in the configuration until release is called, where that has only
	// what is used; nil where it has everything. The control plane is asked for others
	// that move.
	Pin func(config.Name) (release func())
	// Terms are those of the control plane; cutover.Default when zero.
	Terms cutover.Terms
	// Patience bounds how long a write waits until it may begin; 5 s when 0.
	Patience time.Duration
	// Now counts while the machine sleeps; clock.SinceBoot when nil.
	Now     func() time.Duration
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Manager holds leases and knows which writes are on their way under them. Its methods
// are safe for concurrent use.
type Manager struct {
	cfg     Config
	metrics *metrics
	poke    chan struct{} // has the stream say what is new; capacity 1

	mu      sync.Mutex
	moves   map[string]*move // by topic uid; of topics that move, or have writes on their way
	granted chan struct{}    // closed when a lease has come
}

// move is one topic that moves.
type move struct {
	lease  cutover.Lease
	writes int // on their way that began under a lease
	seal   seal
}

// New makes a Manager.
func New(cfg Config) *Manager {
	if cfg.Terms == (cutover.Terms{}) {
		cfg.Terms = cutover.Default
	}
	cfg.Patience = cmp.Or(cfg.Patience, 5*time.Second)
	if cfg.Now == nil {
		cfg.Now = clock.SinceBoot
	}
	if cfg.Kept == nil {
		cfg.Kept = func() (config.Kept, <-chan struct{}) {
			s := cfg.Snapshots.Get()
			return config.Kept{Lineage: s.Lineage, Revision: s.Revision}, nil
		}
	}
	m := &Manager{cfg: cfg, poke: make(chan struct{}, 1), moves: map[string]*move{}, granted: make(chan struct{})}
	m.metrics = newMetrics(cfg.Metrics, m.leases)
	return m
}

// Write is one write to a topic, from before it is handed to the store until the store
// has answered. End must follow.
type Write struct {
	// Epoch is where it goes.
	Epoch snapshot.Epoch
	// Leaving: the topic moves away from there; see cutover.Placed.
	Leaving bool
	m       *Manager
	snap    *snapshot.Snapshot // by which it began
	key     snapshot.Key
	uid     string
	under   *move // under a lease of it; nil without
}

// Begin waits until t, which is of snap, may be written to, and tells where. While a
// topic moves that may be some time: Unavailable where it is longer than a client should
// wait here, Canceled where ctx ended.
func (m *Manager) Begin(ctx context.Context, snap *snapshot.Snapshot, t *snapshot.Topic) (Write, error) {
	w := Write{Epoch: t.Written(), Leaving: leaving(t), m: m, snap: snap, key: t.Key, uid: t.UID}
	if !t.Writing().Leased && m.cfg.Snapshots.Get() == snap {
		return w, nil
	}
	var patience <-chan time.Time
	for {
		replaced, granted, err := m.begin(&w)
		if replaced == nil {
			return w, err
		}
		if patience == nil {
			began := time.Now()
			defer func() { m.metrics.waited.Observe(time.Since(began).Seconds()) }()
			timer := time.NewTimer(m.cfg.Patience)
			defer timer.Stop()
			patience = timer.C
			m.say()
		}
		select {
		case <-replaced:
		case <-granted:
		case <-patience:
			return w, &fault.Error{Class: fault.Unavailable, Op: "move", Reason: "topic-moving", RetryAfter: time.Second,
				Msg: "topic " + t.Name + " moves to another store and cannot be written to at the moment; nothing was published"}
		case <-ctx.Done():
			return w, fault.From(ctx.Err())
		}
	}
}

func leaving(t *snapshot.Topic) bool { return t.Move != nil && t.Move.Phase < cutover.Draining }

// begin begins w, if it may by the configuration in force; else it tells what to wait
// for.
func (m *Manager) begin(w *Write) (replaced, granted <-chan struct{}, err error) {
	at := m.cfg.Now() // a call of the kernel: others need not wait for it
	m.mu.Lock()
	defer m.mu.Unlock()
	now, replaced := m.cfg.Snapshots.Load()
	t := now.Topics[w.key]
	if t == nil || t.UID != w.uid {
		return nil, nil, &fault.Error{Class: fault.Unavailable, Op: "move", Reason: "topic-not-ready", RetryAfter: time.Second,
			Msg: "topic " + w.key.Name + " is not on this proxy any more; nothing was published"}
	}
	w.snap, w.Epoch, w.Leaving = now, t.Written(), leaving(t)
	writing := t.Writing()
	if !writing.Leased {
		return nil, nil, nil
	}
	mv := m.moveLocked(w.uid)
	if !writing.MayBegin(mv.lease, at) {
		return replaced, m.granted, nil
	}
	mv.writes++
	w.under = mv
	return nil, nil, nil
}

// End judges what the store has answered to the write, which is err: nil only where what
// was written may be acknowledged.
func (w *Write) End(err error) error {
	if w.under == nil && (err != nil || w.m.cfg.Snapshots.Get() == w.snap) {
		return err
	}
	may := err == nil && w.judge()
	w.m.mu.Lock()
	if mv := w.under; mv != nil {
		// Only once none may begin: else it is idle after each write of one publisher.
		if mv.writes--; mv.writes == 0 && w.m.stopping(w.key) {
			w.m.say()
		}
	}
	w.m.mu.Unlock()
	if err != nil || may {
		return err
	}
	w.m.metrics.late.Inc()
	return &fault.Error{Class: fault.Ambiguous, Op: "move", Reason: "moved-meanwhile",
		Msg: "topic " + w.key.Name + " has moved to another store while this was written; it may or may not be read"}
}

// judge reports whether what was written may be acknowledged. A lease that has not come
// yet, or not again, is waited for: where it is granted, nothing was cut meanwhile.
func (w *Write) judge() bool {
	var patience <-chan time.Time
	for {
		// The store has acknowledged before now.
		at := w.m.cfg.Now()
		w.m.mu.Lock()
		_, replaced := w.m.cfg.Snapshots.Load()
		may, wait := w.mayLocked(at)
		granted := w.m.granted
		w.m.mu.Unlock()
		if !wait {
			return may
		}
		if patience == nil {
			timer := time.NewTimer(w.m.cfg.Patience)
			defer timer.Stop()
			patience = timer.C
			w.m.say()
		}
		select {
		case <-replaced:
		case <-granted:
		case <-patience:
			return false
		}
	}
}

// mayLocked reports whether what was written may be acknowledged, by the configuration
// in force, or whether a lease is waited for. at is when the store had acknowledged.
//
// What began without a lease is not among the writes on their way: that the proxy is
// idle may have been said meanwhile. So it may not where the move has come to Stopping.
func (w *Write) mayLocked(at time.Duration) (may, wait bool) {
	t := w.m.cfg.Snapshots.Get().Topics[w.key]
	if t == nil || t.UID != w.uid {
		return false, false // deleted, or not used here any more: then where it is nobody tells
	}
	writing := t.Writing()
	if writing.Closed && w.under == nil {
		return false, false
	}
	var lease cutover.Lease
	if mv := w.m.moves[w.uid]; mv != nil {
		lease = mv.lease
	}
	may = writing.MayAcknowledge(w.Epoch.Number, lease, at)
	return may, !may && writing.Leased && !writing.Closed && writing.Epoch == w.Epoch.Number
}

func (m *Manager) moveLocked(uid string) *move {
	mv := m.moves[uid]
	if mv == nil {
		mv = &move{}
		m.moves[uid] = mv
	}
	return mv
}

// grant notes leases for topics, by uid, that were asked for at asked.
func (m *Manager) grant(epochs map[string]uint32, asked time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, epoch := range epochs {
		m.moveLocked(uid).lease = m.cfg.Terms.Lease(epoch, asked)
	}
	if len(epochs) > 0 {
		close(m.granted)
		m.granted = make(chan struct{})
	}
}

// leases is how many have not ended.
func (m *Manager) leases() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, mv := range m.moves {
		if m.cfg.Now() < mv.lease.Until {
			n++
		}
	}
	return float64(n)
}

// stopping reports whether the control plane waits for the end of writes to a topic.
func (m *Manager) stopping(key snapshot.Key) bool {
	t := m.cfg.Snapshots.Get().Topics[key]
	return t != nil && t.Move != nil && t.Move.Phase == cutover.Stopping
}

// say has the stream say what is new.
func (m *Manager) say() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}
