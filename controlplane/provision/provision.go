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
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
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
	remembered bool // in this time in office: known has all that is written

	cfg   Config
	open  map[string]*opened // by EventStore uid; only the elected loop uses it
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
}

// conditions is where the status keys of conditions begin.
const conditions = "condition/"

// callTimeout bounds one call of a store or of etcd.
const callTimeout = 10 * time.Second

// New makes a Provisioner.
func New(cfg Config) *Provisioner {
	if cfg.Every == 0 {
		cfg.Every = 30 * time.Second
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
	complete = true
	r := round{p: p, term: term, snap: snap, topics: map[string]topicState{}}
	if err := p.forget(ctx, term, snap); err != nil {
		return false, err
	}
	for e := range snap.All(string(resource.EventStore) + "/") {
		if !p.reach(ctx, term, e) {
			complete = false
		}
	}
	for e := range snap.All(string(resource.Topic) + "/") {
		r.topic(ctx, e)
	}
	for e := range snap.All(string(resource.Subscription) + "/") {
		r.subscription(ctx, e)
	}
	// Groups are fixed before their topics are admitted.
	r.admitTopics(ctx)
	for len(r.put) > 0 {
		n := min(len(r.put), configstore.MaxWrites)
		rev, err := p.cfg.Store.Commit(ctx, snap, configstore.Change{Put: r.put[:n], Only: []clientv3.Cmp{term.Fence()}, Actor: "weft provisioner", Peer: "control plane"})
		if err != nil {
			return false, err
		}
		if r.put = r.put[n:]; len(r.put) > 0 {
			if snap, err = p.cfg.Store.WaitFor(ctx, rev); err != nil {
				return false, err
			}
		}
	}
	return complete && !r.pending, nil
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
		err := term.Write(cctx, p.cfg.Store.Client(), clientv3.OpDelete(p.cfg.Store.StatusKey(conditions+name)))
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

// reach opens and probes a store and records what it saw.
func (p *Provisioner) reach(ctx context.Context, term election.Term, e *configstore.Entry) bool {
	spec, uid := e.Resource.GetEventStore(), e.Resource.Metadata.Uid
	if spec.GetEmbedded() != nil {
		return true
	}
	o := p.open[uid]
	if o == nil || o.version != e.Version() {
		if o != nil && o.st != nil {
			p.close(o)
		}
		o = &opened{name: e.Name, version: e.Version()}
		p.open[uid] = o
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if o.st == nil {
		o.st, o.err = p.connect(cctx, e)
	}
	if o.st != nil {
		o.caps, o.err = o.st.Probe(cctx)
	}
	c := &adminv1.Condition{Type: "Reachable", State: adminv1.Condition_STATE_TRUE, Reason: "Probed",
		Message: fmt.Sprintf("%s %s, durability %s", o.caps.Product, o.caps.Version, durabilityName(o.caps.Durability))}
	if o.err != nil {
		c.State, c.Reason, c.Message = adminv1.Condition_STATE_FALSE, cmp.Or(store.Why(o.err), "Unreachable"), o.err.Error()
	}
	p.condition(ctx, term, e.Name, c)
	return o.err == nil
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
	return d.Open(ctx, store.Config{Name: e.Namespace + "/" + e.Resource.Metadata.Name, ClientID: "weft-provisioner-" + e.Resource.Metadata.Uid, Options: options, Log: p.cfg.Log})
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
	p.remembered = false
}

// condition writes a condition under its own key, when it changed. Failing is
// no harm: the next pass writes it.
func (p *Provisioner) condition(ctx context.Context, term election.Term, name string, c *adminv1.Condition) {
	same := c.State.String() + c.Reason + c.Message
	if p.known[name] == same {
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
		p.known[name] = same
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

// topicState is what a round found out about a topic.
type topicState struct {
	entry   *configstore.Entry
	binding *configv1.TopicBinding
	local   bool
	admin   store.Admin // nil for a local one
	verify  bool        // admin only looks
	reasons []string
}

// round is one pass.
type round struct {
	p       *Provisioner
	term    election.Term
	snap    *configstore.Snapshot
	topics  map[string]topicState
	put     []*configv1.Resource
	pending bool
}

func (r *round) topic(ctx context.Context, e *configstore.Entry) {
	md, spec := e.Resource.Metadata, e.Resource.GetTopic()
	t := topicState{entry: e, binding: r.snap.Resource(resource.Name(resource.TopicBinding, md.Namespace, md.Name)).GetTopicBinding()}
	defer func() { r.topics[e.Name] = t }()
	if t.binding.GetTopicUid() != md.Uid || len(t.binding.Epochs) == 0 {
		t.reasons = []string{"it has no binding"}
		return
	}
	last := t.binding.Epochs[len(t.binding.Epochs)-1]
	se := r.snap.Get(resource.Name(resource.EventStore, md.Namespace, last.Store))
	if se == nil || se.Resource.Metadata.Uid != last.StoreUid {
		t.reasons = []string{"EventStore " + last.Store + " is not there"}
		return
	}
	if se.Resource.GetEventStore().GetEmbedded() != nil {
		t.local = true
		return
	}
	o := r.p.open[last.StoreUid]
	if o == nil || o.err != nil {
		r.pending = true
		t.reasons = []string{"EventStore " + last.Store + " cannot be reached"}
		if o != nil {
			t.reasons[0] += ": " + o.err.Error()
		}
		return
	}
	admin, ok := o.st.(store.Admin)
	if !ok {
		t.reasons = []string{"EventStore " + last.Store + " cannot be administered"}
		return
	}
	if want := store.Durability(spec.Needs.GetDurability()); want > o.caps.Durability {
		t.reasons = []string{fmt.Sprintf("needs durability %s, EventStore %s was observed to give %s", durabilityName(want), last.Store, durabilityName(o.caps.Durability))}
		r.pending = true
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	t.verify = se.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY
	if err := ensureTopic(cctx, admin, t.verify, store.TopicSpec{Name: last.PhysicalName, Partitions: cmp.Or(int(spec.Partitions), 8)}); err != nil {
		r.pending = true
		t.reasons = []string{"topic " + last.PhysicalName + ": " + err.Error()}
		return
	}
	t.admin = admin
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

// ensureGroup makes a group with its start or, with verify, only looks whether
// somebody did.
func ensureGroup(ctx context.Context, admin store.Admin, verify bool, topic, group string, from store.Start) error {
	if !verify {
		return admin.EnsureGroup(ctx, topic, group, from)
	}
	_, err := admin.Lag(ctx, topic, group)
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		err = fmt.Errorf("%s has no offset in %s, and the EventStore's provisioning is verify", group, topic)
	}
	return err
}

func durabilityName(d store.Durability) string {
	return [...]string{"unknown", "process", "disk", "replicated"}[min(d, store.DurabilityReplicated)]
}

// admitTopics writes the admissions that changed.
func (r *round) admitTopics(ctx context.Context) {
	for _, t := range r.topics {
		md := t.entry.Resource.Metadata
		adm := &configv1.TopicAdmission{TopicUid: md.Uid, Admitted: len(t.reasons) == 0, Reasons: t.reasons, AtProxy: t.local}
		old := r.snap.Resource(resource.Name(resource.TopicAdmission, md.Namespace, md.Name)).GetTopicAdmission()
		if old.GetTopicUid() == md.Uid && old.Admitted && !adm.Admitted {
			// What was admitted stays so: a store that is down for a while, or
			// gives less than it did, is a condition, not a reason to stop its
			// topics.
			r.p.condition(ctx, r.term, t.entry.Name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_FALSE,
				Reason: "AsAdmittedNoLonger", Message: strings.Join(t.reasons, "; ")})
			continue
		}
		if _, told := r.p.known[t.entry.Name]; told && adm.Admitted {
			r.p.condition(ctx, r.term, t.entry.Name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_TRUE, Reason: "AsAdmitted"})
		}
		if !proto.Equal(old, adm) {
			r.write(md, &configv1.Resource{Spec: &configv1.Resource_TopicAdmission{TopicAdmission: adm}})
		}
	}
}

func (r *round) write(md *configv1.Metadata, res *configv1.Resource) {
	res.Metadata = &configv1.Metadata{Namespace: md.Namespace, Name: md.Name}
	res.Name = resource.NameOf(res)
	r.put = append(r.put, res)
}

func (r *round) subscription(ctx context.Context, e *configstore.Entry) {
	md, spec := e.Resource.Metadata, e.Resource.GetSubscription()
	old := r.snap.Resource(resource.Name(resource.SubscriptionAdmission, md.Namespace, md.Name)).GetSubscriptionAdmission()
	if old.GetSubscriptionUid() != md.Uid {
		old = nil
	}
	adm := &configv1.SubscriptionAdmission{SubscriptionUid: md.Uid}
	for te := range r.snap.All(string(resource.Topic) + "/" + md.Namespace + "/") {
		if !slices.ContainsFunc(spec.Topics, func(p string) bool { return names.Match(p, te.Resource.Metadata.Name) }) {
			continue
		}
		t := r.topics[te.Name]
		uid := te.Resource.Metadata.Uid
		if i := slices.IndexFunc(old.GetSources(), func(s *configv1.SubscriptionSource) bool { return s.TopicUid == uid }); i >= 0 {
			adm.Sources = append(adm.Sources, old.Sources[i])
			continue
		}
		if len(t.reasons) > 0 {
			adm.Reasons = append(adm.Reasons, "topic "+te.Resource.Metadata.Name+": "+t.reasons[0])
			continue
		}
		later := te.Resource.Metadata.CreatedAt.AsTime().After(md.CreatedAt.AsTime())
		src := &configv1.SubscriptionSource{Topic: te.Resource.Metadata.Name, TopicUid: uid,
			Epoch: t.binding.Epochs[len(t.binding.Epochs)-1].Number, PhysicalGroup: names.Group(md.Uid, uid),
			RetryTopic: names.RetryTopic(md.Uid), RetryGroup: names.RetryGroup(md.Uid), AtProxy: t.local,
			FromBeginning: later || spec.Start == configv1.Start_START_BEGINNING}
		if !t.local {
			if err := fixStart(ctx, t, src); err != nil {
				r.pending = true
				adm.Reasons = append(adm.Reasons, "topic "+src.Topic+": "+err.Error())
				continue
			}
		}
		adm.Sources = append(adm.Sources, src)
	}
	if len(adm.Sources) == 0 && len(adm.Reasons) == 0 {
		adm.Reasons = []string{"no topic matches"}
	}
	if !proto.Equal(old, adm) {
		r.write(md, &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: adm}})
	}
}

// fixStart makes the group of one source with its start, and the subscription's
// retry topic in that store.
func fixStart(ctx context.Context, t topicState, src *configv1.SubscriptionSource) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	physical := t.binding.Epochs[len(t.binding.Epochs)-1].PhysicalName
	if err := ensureGroup(ctx, t.admin, t.verify, physical, src.PhysicalGroup, store.Start{End: !src.FromBeginning}); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if err := ensureTopic(ctx, t.admin, t.verify, store.TopicSpec{Name: src.RetryTopic, Partitions: 4}); err != nil {
		return fmt.Errorf("retry topic %s: %w", src.RetryTopic, err)
	}
	if err := ensureGroup(ctx, t.admin, t.verify, src.RetryTopic, src.RetryGroup, store.Start{}); err != nil {
		return fmt.Errorf("retry group: %w", err)
	}
	return nil
}
