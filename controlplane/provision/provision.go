// Package provision makes real what the configuration says: physical topics,
// and consumer groups with their start durably fixed. What it has made it writes
// down as admissions, which proxies wait for.
//
// One replica does it at a time, elected through etcd; every step converges, so
// that another one may go on at any point.
package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// Config of a Provisioner.
type Config struct {
	Store *configstore.Store
	// Drivers by kind; kinds without one stay pending.
	Drivers map[string]store.Driver
	// Options turns an EventStore into a driver's kind and options, with the
	// credentials for administration.
	Options func(*configv1.EventStore) (kind string, options any, err error)
	// Every is the time between passes while nothing changes; 30 s when 0.
	Every time.Duration
	// TrimEvery is the time after which stores remove anew what retries and delays of the
	// mesh are done with; 1 h when 0.
	TrimEvery time.Duration
	// ElectionTTL is how long the elected replica may be out of etcd's sight,
	// in whole seconds; 10 s when 0.
	ElectionTTL time.Duration
	// Offices, if set, is told while this replica is elected.
	Offices *election.Offices
	// Clock dates conditions.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Provisioner reconciles stores with the configuration.
type Provisioner struct {
	remembered bool      // in this time in office: known has all that is written
	groups     time.Time // when it was looked last whether all groups are there; zero: not in this time in office
	trimmed    time.Time // when stores last removed what retries and delays are done with; zero: likewise

	cfg Config

	mu    sync.Mutex         // while stores are reached side by side; else only the elected loop uses these
	open  map[string]*opened // by EventStore uid
	known map[string]string  // condition keys and what was written last

	leader prometheus.Gauge
	passes *prometheus.CounterVec
}

type opened struct {
	name    string // of the EventStore
	version string
	st      store.Store
	err     error
	caps    store.Capabilities
	told    string // what was written of caps, in this time in office
	// rest is for how long, until next, it is not asked again: it did not answer in time,
	// which holds up everybody.
	rest time.Duration
	next time.Time
	// kept is why it does not remove what retries and delays are done with; "" where it does.
	kept string
}

// conditions is where the status keys of conditions begin.
const conditions = "condition/"

// callTimeout bounds one call of a store or of etcd.
const callTimeout = 10 * time.Second

// reachAtOnce bounds the stores that are reached side by side: those that do not answer
// hold up the others.
const reachAtOnce = 32

// New makes a Provisioner.
func New(cfg Config) *Provisioner {
	if cfg.Every == 0 {
		cfg.Every = 30 * time.Second
	}
	if cfg.TrimEvery == 0 {
		cfg.TrimEvery = time.Hour
	}
	if cfg.ElectionTTL == 0 {
		cfg.ElectionTTL = 10 * time.Second
	}
	p := &Provisioner{cfg: cfg, open: map[string]*opened{}, known: map[string]string{},
		leader: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_provision_leader", Help: "1 while this replica is the one that provisions stores, else 0."}),
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_provision_passes_total", Help: "Times that stores were brought up to the configuration: complete, incomplete (tried again soon), conflict (another change came first) or failed."}, []string{"outcome"})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(p.leader, p.passes)
	}
	return p
}

// Run stands for election and, while elected, reconciles until ctx ends.
func (p *Provisioner) Run(ctx context.Context) error {
	election.Run(ctx, election.Config{Client: p.cfg.Store.Client(), Key: p.cfg.Store.StatusKey("elect/provision"), TTL: p.cfg.ElectionTTL, Offices: p.cfg.Offices, Log: p.cfg.Log}, p.term)
	return nil
}

// term is one time in office.
func (p *Provisioner) term(ctx context.Context, term election.Term) error {
	defer p.closeAll()
	p.leader.Set(1)
	defer p.leader.Set(0)
	retry := time.Second
	for {
		snap, changed := p.cfg.Store.Snapshot()
		again := p.cfg.Every
		began := time.Now()
		if snap != nil {
			complete, err := p.pass(ctx, term, snap)
			p.passes.WithLabelValues(outcome(complete, err)).Inc()
			switch {
			case errors.Is(err, configstore.ErrConflict):
				again = 0
			case err != nil:
				return err
			case !complete:
				again, retry = retry, min(2*retry, p.cfg.Every)
			default:
				retry = time.Second
			}
		}
		if again == 0 {
			// Someone wrote meanwhile: look once this replica has seen it.
			again = time.Second
		}
		rest := min(11*time.Since(began), maxRest) // from the pass's beginning
		wait(ctx, again, changed)
		if wait(ctx, rest-time.Since(began), nil); ctx.Err() != nil {
			return nil
		}
	}
}

// maxRest bounds the rest after a pass, which is ten times as long as the pass: a
// pass looks at everything, and changes may come faster than that.
const maxRest = time.Second

func outcome(complete bool, err error) string {
	switch {
	case errors.Is(err, configstore.ErrConflict):
		return "conflict"
	case err != nil:
		return "failed"
	case !complete:
		return "incomplete"
	}
	return "complete"
}

func wait(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-ctx.Done():
	}
}

// pass looks at everything once. complete is false where something could not be
// done and is worth trying again soon.
func (p *Provisioner) pass(ctx context.Context, term election.Term, snap *configstore.Snapshot) (complete bool, err error) {
	r := round{p: p, term: term, snap: snap, topics: map[string]*topicState{}, large: map[string]bool{}, groups: time.Since(p.groups) >= p.cfg.Every}
	if r.groups {
		p.groups = time.Now()
		if p.groups.Sub(p.trimmed) >= p.cfg.TrimEvery {
			p.trimmed, r.trims = p.groups, map[string]bool{}
		}
	}
	if err := p.forget(ctx, term, snap); err != nil {
		return false, err
	}
	var stores errgroup.Group
	var again atomic.Bool
	stores.SetLimit(reachAtOnce)
	for e := range snap.All(string(resource.EventStore) + "/") {
		stores.Go(func() error {
			if !p.reach(ctx, term, e, r.trims != nil) {
				again.Store(true)
			}
			return nil
		})
	}
	_ = stores.Wait()
	for e := range snap.All(string(resource.Topic) + "/") {
		r.topic(ctx, e)
	}
	for e := range snap.All(string(resource.Subscription) + "/") {
		r.subscription(ctx, e)
	}
	// Groups are fixed before their topics are admitted.
	r.admitTopics(ctx)
	if err := r.commit(ctx); err != nil {
		return false, err
	}
	r.taken(ctx)
	return !again.Load() && !r.pending, nil
}

// forget closes the stores whose EventStores are gone, and removes what was written
// of them.
func (p *Provisioner) forget(ctx context.Context, term election.Term, snap *configstore.Snapshot) error {
	if !p.remembered {
		if err := p.remember(ctx); err != nil {
			return err
		}
	}
	for uid, o := range p.open {
		if e := snap.Get(o.name); e == nil || e.Resource.Metadata.Uid != uid {
			if o.st != nil {
				p.close(o)
			}
			delete(p.open, uid)
		}
	}
	for name := range p.known {
		if snap.Get(name) != nil {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		err := term.Write(cctx, p.cfg.Store.Client(), clientv3.OpDelete(p.cfg.Store.StatusKey(conditions+name)), clientv3.OpDelete(p.cfg.Store.StatusKey(observations+name)))
		cancel()
		if err != nil {
			return err
		}
		delete(p.known, name)
	}
	return nil
}

// remember reads which conditions are written, by whoever was elected before.
func (p *Provisioner) remember(ctx context.Context) error {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	prefix := p.cfg.Store.StatusKey(conditions)
	resp, err := p.cfg.Store.Client().Get(cctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	clear(p.known)
	for _, kv := range resp.Kvs {
		p.known[string(kv.Key[len(prefix):])] = "" // is not what is written next
	}
	p.remembered = true
	return nil
}

// reach opens and probes a store, makes the topics that are its own, and records what it saw.
// With trims what its own topics are done with is removed. false is that it is worth trying
// again soon.
func (p *Provisioner) reach(ctx context.Context, term election.Term, e *configstore.Entry, trims bool) bool {
	spec, uid := e.Resource.GetEventStore(), e.Resource.Metadata.Uid
	if spec.GetEmbedded() != nil {
		return true
	}
	p.mu.Lock()
	o := p.open[uid]
	p.mu.Unlock()
	if o == nil || o.version != e.Version() {
		if o != nil && o.st != nil {
			p.close(o)
		}
		o = &opened{name: e.Name, version: e.Version()}
		p.mu.Lock()
		p.open[uid] = o
		p.mu.Unlock()
	}
	if time.Now().Before(o.next) {
		return false
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if o.st == nil {
		o.st, o.err = p.connect(cctx, e)
	}
	if o.st != nil {
		o.caps, o.err = o.st.Probe(cctx)
	}
	if o.err != nil && cctx.Err() != nil {
		o.rest = min(max(2*o.rest, time.Second), p.cfg.Every)
		o.next = time.Now().Add(o.rest)
	} else {
		o.rest = 0
	}
	c := &adminv1.Condition{Type: "Reachable", State: adminv1.Condition_STATE_TRUE, Reason: "Probed",
		Message: fmt.Sprintf("%s %s, durability %s", o.caps.Product, o.caps.Version, o.caps.Durability)}
	if o.caps.DelayEmulated {
		c.Message += ", delay by the mesh at one more write of each delayed event"
	}
	again := o.err != nil
	if o.err == nil {
		p.observe(ctx, term, e, o)
		var missing string
		if missing, again = p.ownTopics(ctx, e, o.st, o.caps); missing != "" {
			c.Message += "; " + missing
		}
		if trims {
			o.kept = ""
			if missing == "" {
				p.trimOwn(ctx, e, o)
			}
		}
		if o.kept != "" {
			c.Message += "; " + o.kept
		}
	} else {
		c.State, c.Reason, c.Message = adminv1.Condition_STATE_FALSE, cmp.Or(store.Why(o.err), "Unreachable"), o.err.Error()
	}
	p.condition(ctx, term, e.Name, c)
	return !again
}

func (p *Provisioner) connect(ctx context.Context, e *configstore.Entry) (store.Store, error) {
	kind, options, err := p.cfg.Options(e.Resource.GetEventStore())
	if err != nil {
		return nil, err
	}
	d := p.cfg.Drivers[kind]
	if d == nil {
		return nil, fmt.Errorf("this control plane has no driver for %s", kind)
	}
	return d.Open(ctx, store.Config{Name: e.Namespace + "/" + e.Resource.Metadata.Name, UID: e.Resource.Metadata.Uid, ClientID: "weft-provisioner-" + e.Resource.Metadata.Uid, Options: options, Log: p.cfg.Log})
}

func (p *Provisioner) close(o *opened) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := o.st.Close(ctx); err != nil {
		p.cfg.Log.Warn("closing a store", "error", err)
	}
}

func (p *Provisioner) closeAll() {
	for uid, o := range p.open {
		if o.st != nil {
			p.close(o)
		}
		delete(p.open, uid)
	}
	p.remembered, p.groups, p.trimmed = false, time.Time{}, time.Time{}
}

// condition writes a condition under its own key, when it changed. Failing is
// no harm: the next pass writes it.
func (p *Provisioner) condition(ctx context.Context, term election.Term, name string, c *adminv1.Condition) {
	same := c.State.String() + c.Reason + c.Message
	p.mu.Lock()
	known := p.known[name]
	p.mu.Unlock()
	if known == same {
		return
	}
	c.Since = timestamppb.New(p.cfg.Clock.Now())
	b, err := protojson.Marshal(c)
	if err != nil {
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := term.Write(cctx, p.cfg.Store.Client(), clientv3.OpPut(p.cfg.Store.StatusKey(conditions+name), string(b))); err == nil {
		p.mu.Lock()
		p.known[name] = same
		p.mu.Unlock()
	}
}

// Conditions reads what provisioners wrote. Without etcd it gives nothing.
func Conditions(s *configstore.Store) func(context.Context) (map[string][]*adminv1.Condition, error) {
	return func(ctx context.Context) (map[string][]*adminv1.Condition, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		prefix := s.StatusKey(conditions)
		out := map[string][]*adminv1.Condition{}
		resp, err := s.Client().Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable())
		if err != nil {
			return out, nil //nolint:nilerr // status describes; without etcd it is unknown
		}
		for _, kv := range resp.Kvs {
			c := &adminv1.Condition{}
			if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(kv.Value, c) == nil {
				name := string(kv.Key[len(prefix):])
				out[name] = append(out[name], c)
			}
		}
		return out, nil
	}
}

// round is one pass.
type round struct {
	p       *Provisioner
	term    election.Term
	snap    *configstore.Snapshot
	topics  map[string]*topicState
	groups  bool            // it looks whether groups that were made are there
	trims   map[string]bool // retry topics of stores that were asked to remove what is done with; nil: none is to be
	put     []decision
	large   map[string]bool // those whose admissions are too large, by name
	pending bool
}

// ensureTopic makes a topic or, with verify, only looks whether it is there.
func ensureTopic(ctx context.Context, admin store.Admin, verify bool, spec store.TopicSpec) error {
	if !verify {
		return admin.EnsureTopic(ctx, spec)
	}
	ok, err := admin.TopicExists(ctx, spec.Name)
	if err == nil && !ok {
		err = errors.New("it is not there, and the EventStore's provisioning is verify")
	}
	return err
}
