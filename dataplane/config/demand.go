package config

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Name is what is used: a Topic or a Subscription.
type Name struct {
	Kind            resource.Kind
	Namespace, Name string
}

// String is the canonical name.
func (n Name) String() string { return resource.Name(n.Kind, n.Namespace, n.Name) }

// ParseName reads a canonical name of what can be used.
func ParseName(s string) (Name, error) {
	kind, ns, name, err := resource.Split(s)
	if err == nil && kind != resource.Topic && kind != resource.Subscription {
		err = fault.New(fault.Invalid, "config", "bad-name", "%s is neither a topic nor a subscription", s)
	}
	return Name{kind, ns, name}, err
}

// Demand makes a client follow, of the namespaces that it is about, what governs
// them and what is used. The zero value of a field is its default.
type Demand struct {
	// Preload is used from the start, and always.
	Preload []Name
	// Idle is how long a name that nobody uses is followed; 1 h.
	Idle time.Duration
	// Max bounds the names used; 1,000. What they need comes on top.
	Max int
	// Wait bounds how long a call waits for a name, and MaxWaiting how many do;
	// 5 s and 1,000.
	Wait       time.Duration
	MaxWaiting int
}

// maxNames bounds the names of a subscription; a control plane takes 10,000.
const maxNames = 9000

// demand is what is used, by calls of any goroutine. The client's goroutine takes
// it from here to the control plane, and tells here what has come.
type demand struct {
	cfg Demand
	// changed has capacity 1: there is something new to ask for.
	changed chan struct{}
	// preloaded is closed once all of Preload is known.
	preloaded chan struct{}
	calls     *prometheus.CounterVec

	mu      sync.Mutex
	uses    map[Name]*use
	waiting int
}

// use is one name that is used; guarded by demand.mu, but for known.
type use struct {
	last    time.Time
	pins    int
	waiting int
	preload bool
	absent  bool // it is known not to be there
	// known is closed once the name is in force with all that it needs, or known
	// not to be there, or given up with err.
	known chan struct{}
	done  bool // known is closed
	err   error
}

// newDemand makes a demand, or only its metrics, where there is no configuration for
// it.
func newDemand(wanted *Demand, reg prometheus.Registerer) *demand {
	var cfg Demand
	if wanted != nil {
		cfg = *wanted
	}
	cfg.Idle = cmp.Or(cfg.Idle, time.Hour)
	cfg.Max = cmp.Or(cfg.Max, 1000)
	cfg.Wait = cmp.Or(cfg.Wait, 5*time.Second)
	cfg.MaxWaiting = cmp.Or(cfg.MaxWaiting, 1000)
	d := &demand{cfg: cfg, changed: make(chan struct{}, 1), preloaded: make(chan struct{}), uses: map[Name]*use{},
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_on_demand_misses_total",
			Help: "On demand: calls for a name that was not here, by outcome: arrived, absent, or the reason of the refusal."}, []string{"outcome"})}
	for _, outcome := range []string{"arrived", "absent"} {
		d.calls.WithLabelValues(outcome)
	}
	for _, n := range cfg.Preload {
		d.uses[n] = &use{preload: true, known: make(chan struct{})}
	}
	d.settled()
	if reg != nil {
		held := func(state string, is func(*use) bool) prometheus.Collector {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_on_demand_names", ConstLabels: prometheus.Labels{"state": state},
				Help: "On demand: topics and Subscriptions that are followed since they are used, by state: there, absent, or asked."}, func() float64 { return d.count(is) })
		}
		reg.MustRegister(d.calls, held("there", func(u *use) bool { return u.done && !u.absent }), held("absent", func(u *use) bool { return u.done && u.absent }),
			held("asked", func(u *use) bool { return !u.done }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_on_demand_waiting", Help: "On demand: calls that wait for a name."}, func() float64 {
				d.mu.Lock()
				defer d.mu.Unlock()
				return float64(d.waiting)
			}))
	}
	if wanted == nil {
		return nil
	}
	return d
}

func (d *demand) count(is func(*use) bool) float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, u := range d.uses {
		if is(u) {
			n++
		}
	}
	return float64(n)
}

// wake tells the client's goroutine.
func (d *demand) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// Use says that a call uses a name, and waits until it is in force or known not to
// be there: both are nil, and the snapshot tells which. One that the caller finds in
// force is waited for where nobody has used it: then it may be dropped just now. An
// error is Unavailable, and says why it is not known whether there is such a name, or
// that there is no room for it. A client that follows everything returns nil.
func (c *Client) Use(ctx context.Context, n Name, inForce bool) error {
	d := c.demand
	if d == nil || len(c.cfg.Info.GetNamespaces()) > 0 && !slices.Contains(c.cfg.Info.GetNamespaces(), n.Namespace) {
		return nil
	}
	d.mu.Lock()
	if d.uses[n] == nil && !inForce && c.alone() {
		d.mu.Unlock()
		return d.missed(unreachable(n))
	}
	u, err := d.use(n)
	// Without a control plane nothing is dropped.
	if err != nil || u.done || inForce && (c.contact.Load() != nil || d.waiting >= d.cfg.MaxWaiting) {
		d.mu.Unlock()
		if inForce {
			return nil // it serves, whether there is room to remember so
		}
		return d.missed(err)
	}
	if d.waiting >= d.cfg.MaxWaiting {
		d.mu.Unlock()
		return d.missed(unknown("too-many-waiting", "%d calls wait for their configuration already", d.cfg.MaxWaiting))
	}
	d.waiting++
	u.waiting++
	d.mu.Unlock()
	err = c.awaitName(ctx, n, u)
	d.mu.Lock()
	d.waiting--
	u.waiting--
	if c.contact.Load() != nil && u.waiting == 0 && !u.done && u.pins == 0 && !u.preload && d.uses[n] == u {
		delete(d.uses, n) // there is nobody to ask: it takes no place from others
	}
	if inForce && ctx.Err() == nil {
		err = nil // it serves until it is given up
	}
	if err == nil {
		err = u.err
	}
	outcome := "arrived"
	if u.absent {
		outcome = "absent"
	}
	d.mu.Unlock()
	if err == nil && !inForce {
		d.calls.WithLabelValues(outcome).Inc()
	}
	return d.missed(err)
}

// missed counts a call that is refused.
func (d *demand) missed(err error) error {
	if err != nil {
		d.calls.WithLabelValues(fault.From(err).Reason).Inc()
	}
	return err
}

func unknown(reason, format string, args ...any) error {
	f := fault.New(fault.Unavailable, "configuration", reason, format, args...)
	f.RetryAfter = time.Second
	return f
}

// alone reports whether no control plane was followed for as long as a call waits.
func (c *Client) alone() bool {
	at := c.contact.Load()
	return at != nil && time.Since(*at) > c.demand.cfg.Wait
}

func unreachable(n Name) error {
	return unknown("control-plane-unreachable", "whether there is a %s %s in namespace %s is not known on this proxy, and it reaches no control plane", n.Kind, n.Name, n.Namespace)
}

// awaitName waits for what is not known yet.
func (c *Client) awaitName(ctx context.Context, n Name, u *use) error {
	wait := c.demand.cfg.Wait
	if c.alone() {
		return unreachable(n)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-u.known:
		return nil
	case <-ctx.Done():
		return fault.From(ctx.Err())
	case <-timer.C:
	}
	if c.contact.Load() != nil {
		return unreachable(n)
	}
	return unknown("configuration-pending", "the control plane has not told within %v whether there is a %s %s in namespace %s", wait, n.Kind, n.Name, n.Namespace)
}

// Pin keeps a name in use until release is called.
func (c *Client) Pin(n Name) (release func()) {
	d := c.demand
	if d == nil {
		return func() {}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	u, err := d.use(n)
	if err != nil {
		return func() {}
	}
	u.pins++
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		u.pins--
		u.last = time.Now()
	})
}

// Preloaded is closed once each name to preload is in force, or known not to be
// there; at once on a client that follows everything.
func (c *Client) Preloaded() <-chan struct{} {
	if c.demand == nil {
		return closed
	}
	return c.demand.preloaded
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// use is the use of a name, a new one if need be; the caller has mu.
func (d *demand) use(n Name) (*use, error) {
	u := d.uses[n]
	if u == nil {
		if len(d.uses) >= d.cfg.Max && !d.evict() {
			return nil, unknown("too-many-names", "%d topics and subscriptions are in use on this proxy, which is the most", d.cfg.Max)
		}
		u = &use{known: make(chan struct{})}
		d.uses[n] = u
		d.wake()
	}
	u.last = time.Now()
	return u, nil
}

// evict makes room for one name: of those that nobody holds, what is not there
// first, then what was not used for longest; the caller has mu.
func (d *demand) evict() bool {
	var worst Name
	var w *use
	for n, u := range d.uses {
		if u.pins > 0 || u.preload || !u.done {
			continue
		}
		if w == nil || u.absent && !w.absent || u.absent == w.absent && u.last.Before(w.last) {
			worst, w = n, u
		}
	}
	if w == nil {
		return false
	}
	delete(d.uses, worst)
	d.wake()
	return true
}

// expire drops what nobody has used for long.
func (d *demand) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, u := range d.uses {
		if u.pins == 0 && !u.preload && u.done && time.Since(u.last) > d.cfg.Idle {
			delete(d.uses, n)
		}
	}
}

// list is what is used: what is held first, then the newest.
func (d *demand) list() []Name {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := func(u *use) int {
		if u.pins > 0 || u.preload {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(d.uses), func(a, b Name) int {
		x, y := d.uses[a], d.uses[b]
		return cmp.Or(held(x)-held(y), y.last.Compare(x.last), strings.Compare(a.String(), b.String()))
	})
}

// giveUp drops names for which there is no room.
func (d *demand) giveUp(list []Name) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range list {
		if u := d.uses[n]; u != nil && !u.preload {
			delete(d.uses, n)
			u.end(unknown("too-many-names", "what is in use on this proxy needs more than %d resources, which is the most", maxNames))
		}
	}
}

// end is called with mu held.
func (u *use) end(err error) {
	if !u.done {
		u.done, u.err = true, err
		close(u.known)
	}
}

// settled closes preloaded where all of it is known; the caller has mu, or nobody
// else has d.
func (d *demand) settled() {
	for _, u := range d.uses {
		if u.preload && !u.done {
			return
		}
	}
	select {
	case <-d.preloaded:
	default:
		close(d.preloaded)
	}
}

// What follows is of the client's goroutine.

// held reports whether it is known what there is under a name.
func (m *memory) held(name string) bool { return m.names[name] || configfile.Covers(m.scope, name) }

// there reports whether something exists under a name, also where it is not in
// force.
func (m *memory) there(name string) bool {
	return m.resources[name] != nil || slices.ContainsFunc(m.withheld, func(w *configv1.Withheld) bool { return w.Name == name })
}

// routed are the topics that the routes of each topic lead to, by canonical name.
func (m *memory) routed() map[string][]Name {
	out := map[string][]Name{}
	for name, k := range m.resources {
		r := k.good.Resource.GetRoute()
		if r == nil {
			continue
		}
		_, ns, _, err := resource.Split(name)
		if err != nil {
			continue
		}
		from := resource.Name(resource.Topic, ns, r.Topic)
		for _, rule := range r.Rules {
			for _, to := range rule.To {
				out[from] = append(out[from], Name{resource.Topic, ns, to.Topic})
			}
		}
	}
	return out
}

// needs are the names of the resources that a name is served with, as far as can be
// told from what is here.
func (m *memory) needs(n Name, routed map[string][]Name) map[string]bool {
	out := map[string]bool{}
	var topic func(ns, name string)
	topic = func(ns, name string) {
		own := resource.Name(resource.Topic, ns, name)
		if out[own] {
			return
		}
		binding := resource.Name(resource.TopicBinding, ns, name)
		out[own], out[binding], out[resource.Name(resource.TopicAdmission, ns, name)] = true, true, true
		if k := m.resources[binding]; k != nil {
			for _, e := range k.good.Resource.GetTopicBinding().GetEpochs() {
				out[resource.Name(resource.EventStore, ns, e.Store)] = true
			}
		}
		for _, to := range routed[own] {
			topic(ns, to.Name)
		}
	}
	if n.Kind == resource.Topic {
		topic(n.Namespace, n.Name)
		return out
	}
	own, admission := n.String(), resource.Name(resource.SubscriptionAdmission, n.Namespace, n.Name)
	out[own], out[admission] = true, true
	if k := m.resources[own]; k != nil {
		sub := k.good.Resource.GetSubscription()
		for _, t := range sub.GetTopics() {
			if !names.IsPattern(t) {
				topic(n.Namespace, t)
			}
		}
		if t := sub.GetDeadLetterTopic(); t != "" {
			topic(n.Namespace, t)
		}
	}
	if k := m.resources[admission]; k != nil {
		for _, src := range k.good.Resource.GetSubscriptionAdmission().GetSources() {
			topic(n.Namespace, src.Topic)
		}
	}
	return out
}

// subscription is what a stream has asked for beside the client's scope.
type subscription struct {
	// asked are the names, and whether they were answered; sum is of the names.
	asked map[string]bool
	sum   resource.Digest
}

func (s *subscription) add(name string, answered bool) {
	s.asked[name] = answered
	s.sum = s.sum.Add(resource.DigestOf(name, "", nil))
}

func (s *subscription) remove(name string) {
	delete(s.asked, name)
	s.sum = s.sum.Sub(resource.DigestOf(name, "", nil))
}

// is reports whether a manifest is of this subscription.
func (s *subscription) is(man *configv1.Manifest) bool {
	if len(man.Names) == 0 {
		return len(s.asked) == 0
	}
	return string(man.Names) == string(s.sum.Bytes())
}

// first is what a stream begins with: with a resume token what that is of, else
// what is wanted.
func (c *Client) first(resumes bool) *subscription {
	s := &subscription{asked: map[string]bool{}}
	if c.demand == nil {
		return s
	}
	if resumes {
		for name := range c.mem.names {
			s.add(name, true)
		}
		return s
	}
	for name := range c.wanted() {
		s.add(name, false)
	}
	return s
}

// wanted are the names of all that is used, with what they need.
func (c *Client) wanted() map[string]bool {
	routed := c.mem.routed()
	all := map[string]bool{}
	var none []Name
	for _, n := range c.demand.list() {
		needs := c.mem.needs(n, routed)
		maps.DeleteFunc(needs, func(name string, _ bool) bool { return all[name] })
		if len(all)+len(needs) > maxNames {
			none = append(none, n)
			continue
		}
		maps.Copy(all, needs)
	}
	c.demand.giveUp(none)
	return all
}

// ask makes the stream's subscription what is used by now, and tells those who wait
// for what is here already.
func (c *Client) ask(ctx context.Context, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, s *subscription) error {
	if c.demand == nil {
		return nil
	}
	defer c.settle()
	c.demand.expire()
	want := c.wanted()
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL}
	for name := range want {
		if _, asked := s.asked[name]; !asked {
			s.add(name, false)
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		}
	}
	dropped := false
	for name := range s.asked {
		if want[name] {
			continue
		}
		s.remove(name)
		req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
		delete(c.mem.names, name)
		if c.mem.resources[name] != nil {
			c.mem.remove(name)
			dropped = true
		}
	}
	if dropped {
		c.applyLive(ctx)
		c.keep()
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	slices.Sort(req.ResourceNamesSubscribe)
	slices.Sort(req.ResourceNamesUnsubscribe)
	return rpc.Send(req)
}

// mine leaves of a delta what the stream still asks for.
func (c *Client) mine(s *subscription, d staged, man *configv1.Manifest) staged {
	if c.demand == nil {
		return d
	}
	other := func(name string) bool {
		_, asked := s.asked[name]
		return !asked && !configfile.Covers(c.scope, name)
	}
	d.put = slices.DeleteFunc(d.put, func(o offer) bool { return other(o.name) })
	d.removed = slices.DeleteFunc(d.removed, other)
	man.Withheld = slices.DeleteFunc(man.Withheld, func(w *configv1.Withheld) bool { return other(w.Name) })
	return d
}

// answered notes which names a delta, that was applied, has answered, and returns
// whether its digests are of what is here.
func (c *Client) answered(s *subscription, d staged, man *configv1.Manifest) (comparable bool) {
	same := s.is(man)
	if man.Complete {
		c.mem.scope, c.mem.names = c.scope, map[string]bool{}
	}
	answer := func(name string) {
		if _, asked := s.asked[name]; asked {
			s.asked[name], c.mem.names[name] = true, true
		}
	}
	for _, o := range d.put {
		answer(o.name)
	}
	for _, name := range d.removed {
		answer(name)
	}
	for _, w := range man.Withheld {
		answer(w.Name)
	}
	comparable = same
	for name, answered := range s.asked {
		if man.Complete && same {
			answer(name)
		} else if !answered {
			comparable = false
		}
	}
	return comparable
}

// settle tells those who wait what is known by what is in force.
func (c *Client) settle() {
	d := c.demand
	if d == nil {
		return
	}
	routed := c.mem.routed()
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, u := range d.uses {
		there := c.mem.there(n.String())
		// What was not there when this was kept may be there by now.
		if !there && !c.confirmed {
			continue
		}
		if u.done {
			u.absent = !there
			continue
		}
		whole := true
		for name := range c.mem.needs(n, routed) {
			whole = whole && c.mem.held(name)
		}
		if whole {
			u.absent = !there
			u.end(nil)
		}
	}
	d.settled()
}

// adopt takes up what was used when the configuration was kept.
func (c *Client) adopt() {
	d := c.demand
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range c.mem.names {
		if n, err := ParseName(name); err == nil && c.mem.there(name) && len(d.uses) < d.cfg.Max && d.uses[n] == nil {
			d.uses[n] = &use{last: time.Now(), known: make(chan struct{})}
		}
	}
}
