// Package moves carries out Migrations: it changes TopicBindings by the rules of package
// cutover. One replica is in office at a time, fenced; every replica hears what proxies
// say of topics that move (Holds), and grants them leases.
//
// All that is remembered is in etcd: the TopicBinding, and what proxies say, under
// status keys. Whoever takes office sees the rest again. What the office itself has
// measured, such as since when it knows of a phase, it measures anew.
package moves

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// Config of an Office.
type Config struct {
	Store *configstore.Store
	// Drivers and Options are provision.Config's.
	Drivers map[string]store.Driver
	Options func(*configv1.EventStore) (kind string, options any, err error)
	// Nodes are all proxies that may have configuration of a namespace, connected or not,
	// by id. What it returns was so after the call began.
	Nodes func(ctx context.Context, namespace string) ([]*roster.Node, error)
	// ElectionTTL is how long the elected replica may be out of etcd's sight, in whole
	// seconds; 10 s when 0.
	ElectionTTL time.Duration
	// Offices, if set, is told while this replica is elected.
	Offices *election.Offices
	// SinceBoot is clock.SinceBoot when nil.
	SinceBoot func() time.Duration
	// Clock dates conditions.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Office carries Migrations out while it is elected.
type Office struct {
	cfg    Config
	stores stores
	looks  sync.WaitGroup // that ask stores

	// Of this term; only the elected loop uses them.
	seen  map[string]*sighting // by topic uid
	known map[string]told      // conditions that are written, by Migration
	wrote map[string]wrote     // how far everyone is, as it was written, by Migration

	leader  prometheus.Gauge
	moving  *prometheus.GaugeVec
	changes *prometheus.CounterVec
}

// callTimeout bounds one call of a store or of etcd.
const callTimeout = 10 * time.Second

// Times between two passes while nothing changes: while publishers wait, while a move is
// under way, while one waits for the roster to begin, and else.
const (
	urgent  = 100 * time.Millisecond
	active  = 300 * time.Millisecond
	waiting = time.Second
	idle    = 30 * time.Second
)

// New makes an Office.
func New(cfg Config) *Office {
	if cfg.SinceBoot == nil {
		cfg.SinceBoot = clock.SinceBoot
	}
	if cfg.ElectionTTL == 0 {
		cfg.ElectionTTL = 10 * time.Second
	}
	o := &Office{cfg: cfg, stores: stores{drivers: cfg.Drivers, options: cfg.Options, log: cfg.Log, open: map[string]opened{}},
		leader:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_move_leader", Help: "1 while this replica is the one that carries Migrations out, else 0."}),
		moving:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weft_controlplane_moves", Help: "Topics that move, by how far they are; 0 at replicas that do not carry Migrations out."}, []string{"phase"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_move_changes_total", Help: "Times that a topic's move came to a phase, began or ended, by what it came to."}, []string{"phase"})}
	for p := range phaseNames {
		o.changes.WithLabelValues(phaseNames[p])
		if cutover.Phase(p) <= cutover.Drained {
			o.moving.WithLabelValues(phaseNames[p])
		}
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(o.leader, o.moving, o.changes)
	}
	return o
}

// phaseNames are how phases are called for people, by cutover.Phase.
var phaseNames = [...]string{"preparing", "leasing", "stopping", "marking", "draining", "drained", "finished", "withdrawn"}

// Run stands for election and, while elected, carries Migrations out until ctx ends.
func (o *Office) Run(ctx context.Context) error {
	election.Run(ctx, election.Config{Client: o.cfg.Store.Client(), Key: o.cfg.Store.StatusKey("elect/moves"), TTL: o.cfg.ElectionTTL, Offices: o.cfg.Offices, Log: o.cfg.Log}, o.term)
	return nil
}

// term is one time in office.
func (o *Office) term(ctx context.Context, term election.Term) error {
	o.seen, o.known, o.wrote = map[string]*sighting{}, nil, map[string]wrote{}
	o.leader.Set(1)
	defer func() {
		o.leader.Set(0)
		o.moving.Reset()
		o.looks.Wait()
		o.stores.keep(nil)
	}()
	for {
		snap, changed := o.cfg.Store.Snapshot()
		again := idle
		if snap != nil {
			var err error
			if again, err = o.pass(ctx, term, snap); err != nil {
				return err
			}
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		if timer.Stop(); ctx.Err() != nil {
			return nil
		}
	}
}

// change is what a TopicBinding becomes.
type change struct {
	entry *configstore.Entry
	next  *configv1.TopicBinding
	phase cutover.Phase // that it comes to
}

// pass looks at every move and Migration once, and writes what follows. again is when
// to look again.
func (o *Office) pass(ctx context.Context, term election.Term, snap *configstore.Snapshot) (again time.Duration, err error) {
	r := round{o: o, ctx: ctx, term: term, snap: snap, now: o.cfg.SinceBoot(), nodes: map[string][]*roster.Node{}, stores: map[string]bool{}, moves: map[string]bool{}}
	if o.known == nil {
		if err := r.remember(); err != nil {
			return 0, err
		}
	}
	if err := r.hear(); err != nil {
		return 0, err
	}
	var changes []change
	counts := map[cutover.Phase]int{}
	again = idle
	for res := range snap.Find(validate.Moving) {
		e := snap.Get(resource.NameOf(res))
		phase, ok := cutover.PhaseOf(e.Resource.GetTopicBinding().GetMove())
		if !ok {
			continue // of a newer version
		}
		counts[phase]++
		again = min(again, active)
		if phase == cutover.Stopping || phase == cutover.Marking {
			again = min(again, urgent)
		}
		c, err := r.step(e, phase)
		if err != nil {
			return 0, err
		}
		if c != nil {
			changes = append(changes, *c)
		}
	}
	for e := range snap.All(string(resource.Migration) + "/") {
		c, waits, err := r.beginning(e)
		if err != nil {
			return 0, err
		}
		if c != nil {
			changes = append(changes, *c)
		}
		if waits {
			again = min(again, waiting)
		}
	}
	for p := cutover.Preparing; p <= cutover.Drained; p++ {
		o.moving.WithLabelValues(phaseNames[p]).Set(float64(counts[p]))
	}
	r.forget()
	if err := r.untell(); err != nil {
		return 0, err
	}
	if len(changes) == 0 {
		return again, nil
	}
	return 0, o.commit(ctx, term, snap, changes)
}

// Most changes of one transaction.
const (
	maxChanges     = 50
	maxChangeBytes = 400 << 10
)

// commit writes the first changes, unless the configuration has changed meanwhile, and
// waits until this replica has seen that.
func (o *Office) commit(ctx context.Context, term election.Term, snap *configstore.Snapshot, changes []change) error {
	c := configstore.Change{Only: []clientv3.Cmp{term.Fence()}, Actor: "weft moves", Peer: "control plane"}
	size := 0
	for i, x := range changes {
		res := proto.Clone(x.entry.Resource).(*configv1.Resource)
		res.Spec = &configv1.Resource_TopicBinding{TopicBinding: x.next}
		if size += proto.Size(res); i > 0 && size > maxChangeBytes || i == maxChanges {
			changes = changes[:i]
			break
		}
		c.Put = append(c.Put, res)
	}
	wctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rev, err := o.cfg.Store.Commit(wctx, snap, c)
	switch {
	case errors.Is(err, configstore.ErrConflict):
		rev = snap.Revision + 1
	case err != nil:
		return err
	default:
		for _, x := range changes {
			o.changes.WithLabelValues(phaseNames[x.phase]).Inc()
			o.cfg.Log.Info("a topic's move", "binding", x.entry.Name, "phase", phaseNames[x.phase], "epochs", len(x.next.Epochs))
		}
	}
	_, err = o.cfg.Store.WaitFor(wctx, rev)
	if err != nil && ctx.Err() == nil {
		return err // the term ends where it lasts no more, or etcd is away
	}
	return nil
}

// round is one pass.
type round struct {
	o    *Office
	ctx  context.Context
	term election.Term
	snap *configstore.Snapshot
	now  time.Duration
	// said is what proxies say, by topic uid and node.
	said map[string]map[string]*discoveryv1.Held
	// fences are those that were begun, by key.
	fences map[string]bool
	// nodes are rosters, by namespace.
	nodes map[string][]*roster.Node
	// stores that are used, by uid, and topics that move.
	stores map[string]bool
	moves  map[string]bool
}

// hear reads what proxies say, and which fences were begun, after the snapshot was taken,
// and removes what is of no move of that.
func (r *round) hear() error {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	client, prefix := r.o.cfg.Store.Client(), r.o.cfg.Store.StatusKey(said)
	moves := map[string]bool{}
	for res := range r.snap.Find(validate.Moving) {
		moves[res.GetTopicBinding().GetTopicUid()] = true
	}
	resp, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	r.said = map[string]map[string]*discoveryv1.Held{}
	stale := map[string]bool{}
	for _, kv := range resp.Kvs {
		uid, node, _ := strings.Cut(string(kv.Key[len(prefix):]), "/")
		if !moves[uid] {
			stale[uid] = true
			continue
		}
		held := &discoveryv1.Held{}
		if proto.Unmarshal(kv.Value, held) != nil {
			continue // of a version that is not this one's
		}
		if r.said[uid] == nil {
			r.said[uid] = map[string]*discoveryv1.Held{}
		}
		r.said[uid][node] = held
	}
	begun := r.o.cfg.Store.StatusKey(fences)
	if resp, err = client.Get(ctx, begun, clientv3.WithPrefix(), clientv3.WithKeysOnly()); err != nil {
		return err
	}
	r.fences = map[string]bool{}
	for _, kv := range resp.Kvs {
		key := string(kv.Key[len(begun):])
		r.fences[fences+key] = true
		if uid, _, _ := strings.Cut(key, "/"); !moves[uid] {
			stale[uid] = true
		}
	}
	for uid := range stale {
		if err := r.term.Write(ctx, client, clientv3.OpDelete(prefix+uid+"/", clientv3.WithPrefix()), clientv3.OpDelete(begun+uid+"/", clientv3.WithPrefix())); err != nil {
			return err
		}
	}
	return nil
}

// roster is who may have configuration of a namespace.
func (r *round) roster(namespace string) ([]*roster.Node, error) {
	if list, ok := r.nodes[namespace]; ok {
		return list, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	list, err := r.o.cfg.Nodes(ctx, namespace)
	if err != nil {
		return nil, err
	}
	r.nodes[namespace] = list
	return list, nil
}

// step is what follows of a topic's move; nil where nothing does yet.
func (r *round) step(e *configstore.Entry, phase cutover.Phase) (*change, error) {
	b, md := e.Resource.GetTopicBinding(), e.Resource.Metadata
	m := &move{snap: r.snap, entry: e, b: b, phase: phase, now: r.now, term: r.term, words: map[string]*discoveryv1.Held{}, left: map[string]*discoveryv1.Held{}}
	m.topic = r.snap.Resource(resource.Name(resource.Topic, md.Namespace, md.Name))
	if m.topic.GetMetadata().GetUid() != b.TopicUid || len(b.Epochs) < 2 {
		return nil, nil // it goes with its topic
	}
	if mig := r.snap.Resource(resource.Name(resource.Migration, md.Namespace, md.Name)); mig.GetMetadata().GetUid() == b.Move.MigrationUid {
		m.migration = mig
	}
	r.moves[b.TopicUid] = true
	m.fencing = r.fences[m.fenceKey()]
	for _, epoch := range b.Epochs {
		r.stores[epoch.StoreUid] = true
	}
	nodes, err := r.roster(md.Namespace)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		m.nodes = append(m.nodes, n.ID)
	}
	for node, w := range r.said[b.TopicUid] {
		if _, on := slices.BinarySearch(m.nodes, node); on {
			m.words[node] = w
		} else {
			m.left[node] = w
		}
	}
	m.seen = r.o.seen[b.TopicUid]
	if m.seen == nil {
		m.seen = &sighting{look: &look{}}
		r.o.seen[b.TopicUid] = m.seen
	}
	m.seen.sight(e.Version(), phase, r.now)
	f, waits := r.o.facts(r.ctx, m)
	c := r.o.decide(m, f)
	r.o.tell(r.ctx, r.term, m, f, waits)
	return c, nil
}

// decide is what a move comes to.
func (o *Office) decide(m *move, f cutover.Facts) *change {
	next := cutover.Default.Next(m.phase, f)
	switch {
	case f.Wish == cutover.Withdraw && m.phase >= cutover.Draining && m.migration != nil && !m.b.Move.Back:
		return &change{m.entry, turnBack(m.topic, m.b), cutover.Preparing}
	case next == m.phase && next == cutover.Marking:
		if node := m.remark(); node != "" && !m.marked {
			return &change{m.entry, withPhase(m.b, cutover.Marking, node, nil, nil), cutover.Marking}
		}
		return nil
	case next == m.phase:
		return nil
	case next == cutover.Leasing && m.phase == cutover.Marking && f.Stuck && m.seen.trouble == "":
		m.seen.trouble = "no proxy has written markers within " + cutover.StuckAfter.String()
	}
	c := &change{m.entry, withPhase(m.b, next, markerOf(able(m.words), m.b.Move.Attempt+1), m.cut, m.fence), next}
	if m.phase == cutover.Preparing && next == cutover.Leasing {
		m.seen.look.mu.Lock()
		defer m.seen.look.mu.Unlock()
		c.next.Move.Partitions = m.seen.look.partitions
	}
	return c
}

// beginning is the beginning of a Migration's move; nil where it has begun, was carried
// out, or cannot begin. waits: it begins once the roster is another.
func (r *round) beginning(e *configstore.Entry) (begins *change, waits bool, err error) {
	md, spec := e.Resource.Metadata, e.Resource.GetMigration()
	b := r.snap.Get(resource.Name(resource.TopicBinding, md.Namespace, md.Name))
	topic := r.snap.Resource(resource.Name(resource.Topic, md.Namespace, md.Name))
	binding := r.snap.Resource(resource.Name(resource.TopicBinding, md.Namespace, md.Name)).GetTopicBinding()
	to := r.snap.Resource(resource.Name(resource.EventStore, md.Namespace, spec.To))
	switch {
	case binding.GetMove() != nil && binding.Move.MigrationUid == md.Uid:
		return nil, false, nil
	case topic == nil || binding.GetTopicUid() != topic.Metadata.Uid || len(binding.Epochs) == 0:
		r.o.condition(r.ctx, r.term, e.Name, notMoved("NoTopic", "Topic "+md.Name+" is not there"))
	case binding.Ended == md.Uid:
		r.o.condition(r.ctx, r.term, e.Name, ended(binding, spec))
	case binding.Move != nil:
		r.o.condition(r.ctx, r.term, e.Name, notMoved("Waiting", "another move of the topic comes to its end first"))
	case spec.Wish == configv1.Migration_WISH_ROLL_BACK:
		next := proto.Clone(binding).(*configv1.TopicBinding)
		next.Ended = md.Uid
		return &change{b, next, cutover.Withdrawn}, false, nil
	case to == nil:
		r.o.condition(r.ctx, r.term, e.Name, notMoved("NoStore", "EventStore "+spec.To+" is not there"))
	case binding.Epochs[len(binding.Epochs)-1].StoreUid == to.Metadata.Uid:
		r.o.condition(r.ctx, r.term, e.Name, notMoved("ThereAlready", "the topic is in EventStore "+spec.To+" already"))
	default:
		nodes, err := r.roster(md.Namespace)
		if err != nil {
			return nil, false, err
		}
		if old := unfit(nodes); len(old) > 0 {
			r.o.condition(r.ctx, r.term, e.Name, notMoved("OldProxies", fmt.Sprintf("nothing was changed: of %d proxies these do not know moves, as their version is older, or have not said that they do: %s. Upgrade them, or declare them dead (weft proxies declare-dead)", len(nodes), some(old))))
			return nil, true, nil
		}
		return &change{b, begin(topic, binding, md.Uid, to, spec.PhysicalName), cutover.Preparing}, false, nil
	}
	return nil, false, nil
}

// unfit are those nodes that could not use a topic that moves.
func unfit(nodes []*roster.Node) (ids []string) {
	for _, n := range nodes {
		if !n.Moves {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// forget drops what was seen of topics that do not move any more.
func (r *round) forget() {
	for uid := range r.o.seen {
		if !r.moves[uid] {
			delete(r.o.seen, uid)
		}
	}
	r.o.stores.keep(r.stores)
}
