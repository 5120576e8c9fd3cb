package config

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/pkg/fault"
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

// evict makes room for one name: of what is not there, though somebody waits for it
// to come, and of what nobody holds, that first, then what was not used for longest;
// the caller has mu.
func (d *demand) evict() bool {
	var worst Name
	var w *use
	for n, u := range d.uses {
		if u.pins > 0 && !u.absent || u.preload || !u.done {
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
