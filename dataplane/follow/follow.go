// Package follow brings what native producers write to a place that a topic has left into
// the topic. Proxies stop writing there at the cut; whoever writes past the mesh goes on, and
// nobody reads it. So, as long as the place is kept, what comes to it behind the cut is
// published to where the topic is now, and settled once the store there has acknowledged it:
// at least once, in order by key.
//
// The proxies that have the topic are members of one group, which the control plane has made
// at the cut. A partition is one member's at a time, which has one batch on its way. What it
// reads lies behind all of its key that counts before the cut, as what it publishes lies
// behind that for whoever reads the topic.
//
// What proxies themselves wrote too late is left where it is; see cutover.Placed.
package follow

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// Config of a Manager.
type Config struct {
	// Snapshots has the configuration in force; never nil inside.
	Snapshots *latest.Value[*snapshot.Snapshot]
	// Store gives the open store of an EventStore.
	Store func(uid string) (store.Store, error)
	// Write publishes into a topic, past policy and routes, as the native producer did, and
	// tells what has become of each event.
	Write   func(ctx context.Context, t *snapshot.Topic, events []event.Event, res []frontend.Result) error
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Manager follows native producers. Run must run.
type Manager struct {
	cfg    Config
	events *prometheus.CounterVec
}

// What has become of an event behind a cut.
const (
	forwarded = "forwarded"
	late      = "late"
	refused   = "refused"
)

// New makes a Manager.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg, events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_move_followed_total", Help: "Events behind the end of a store that a topic has left, by what became of them: forwarded (a native producer wrote it; the topic has it now), late (a proxy wrote it and told its publisher that the outcome is unknown; it does not count), or refused (the topic's store cannot take it; it stays in the old one, and the log says where)."}, []string{"outcome"})}
	for _, outcome := range []string{forwarded, late, refused} {
		m.events.WithLabelValues(outcome)
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(m.events)
	}
	return m
}

// place is an epoch that a topic has left.
type place struct {
	topic snapshot.Key
	uid   string
	epoch snapshot.Epoch
}

// places are those of a configuration. A store that is inside a proxy has no native
// producers.
func places(snap *snapshot.Snapshot) map[place]bool {
	out := map[place]bool{}
	for _, t := range snap.Topics {
		for _, e := range t.Epochs {
			if t.Cuts[e.Number] != nil && !e.Local {
				out[place{t.Key, t.UID, e}] = true
			}
		}
	}
	return out
}

// Run follows the configuration until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	stops := map[place]context.CancelFunc{}
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	for {
		snap, replaced := m.cfg.Snapshots.Load()
		there := places(snap)
		for p, stop := range stops {
			if !there[p] {
				stop()
				delete(stops, p)
			}
		}
		for p := range there {
			if stops[p] == nil {
				pctx, stop := context.WithCancel(ctx)
				stops[p] = stop
				running.Go(func() { m.follow(pctx, p) })
			}
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return nil
		}
	}
}

// Times between two attempts, and the bounds on writing a batch and on leaving a group.
const (
	minRetry     = 50 * time.Millisecond
	maxRetry     = 2 * time.Second
	writeTimeout = 10 * time.Second
	closeTimeout = 5 * time.Second
	// maxFetch is how many events are forwarded at once.
	maxFetch = 256
)

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// follow follows one place until ctx ends.
func (m *Manager) follow(ctx context.Context, p place) {
	log := m.cfg.Log.With("topic", p.topic, "epoch", p.epoch.Number)
	f := &follower{m: m, place: p, log: log, writing: make(chan struct{}, 1),
		reads:  outage.New(log, "what native producers write where a topic was cannot be read; trying again", "what native producers write where a topic was is read again"),
		writes: outage.New(log, "what native producers wrote where a topic was cannot be brought into it; trying again", "what native producers write is brought into the topic again")}
	retry := minRetry
	for ctx.Err() == nil {
		err := f.member(ctx, func() { retry = minRetry; f.reads.Is(nil) })
		if ctx.Err() != nil {
			break
		}
		if fault.ClassOf(err) != fault.NotFound { // the group is not made yet
			f.reads.Is(err)
		}
		wait(ctx, retry)
		retry = min(2*retry, maxRetry)
	}
	if f.forwarded > 0 {
		log.Info("what native producers wrote where a topic was is followed here no more", "forwarded", f.forwarded)
	}
}
