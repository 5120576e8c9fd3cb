// Package fleet registers the proxies of the mesh in a registry, so that clients
// find them there.
//
// Every replica writes down which proxies are connected to it; one, elected
// through etcd, makes the registry say so. A proxy that is not connected stays
// registered, for it may serve without a control plane: the registry's own check
// tells whether it lives. Only one that is long gone and dead is taken out.
package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/registry"
)

// Config of a Fleet.
type Config struct {
	// Etcd holds the records, under the keys that StatusKey makes.
	Etcd      *clientv3.Client
	StatusKey func(name string) string
	// Proxies are those that are connected to this replica.
	Proxies func() []*adminv1.ProxyStatus
	// Registry and the Service in it. The fleet does not close it.
	Registry registry.Registry
	Service  string
	// Every is the time between two looks; 2 s when 0.
	Every time.Duration
	// Grace is how long after its election a replica removes nobody: a replica
	// that knows too little does no harm; 30 s when 0.
	Grace time.Duration
	// Forget is for how long a replica in office must not have heard of a proxy,
	// and found it dead, before it takes it out; 10 min when 0.
	Forget time.Duration
	// ElectionTTL is how long the elected replica may be out of etcd's sight,
	// in whole seconds; 10 s when 0.
	ElectionTTL time.Duration
	// Offices, if set, is told while this replica is elected.
	Offices *election.Offices
	// Clock dates records; nothing is decided by it.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Fleet registers proxies.
type Fleet struct {
	cfg     Config
	written map[string]written // by node id; the recorder's own
	heard   map[string]heard   // by node id; the elected loop's own
	trouble trouble

	registeredProxies prometheus.Gauge
	failures          prometheus.Counter
}

// record is what is kept of one proxy.
type record struct {
	// Instance has no Host where the proxy does not want to be found any more.
	Instance registry.Instance `json:"instance"`
	// Seen is when it was last known to be connected, by the clock of the
	// replica that wrote it: for people.
	Seen time.Time `json:"seen"`
	// revision is the record's in etcd: it moves while the proxy is connected.
	revision int64
}

// written is what this replica wrote down, and when.
type written struct {
	record
	at time.Time
}

// heard is when the elected replica has first seen a record at its revision.
// Clocks of other replicas, and jumps of its own, do not matter.
type heard struct {
	revision int64
	at       time.Time
}

// Times of calls.
const (
	etcdTimeout     = 5 * time.Second
	registryTimeout = 30 * time.Second
)

// New makes a Fleet.
func New(cfg Config) *Fleet {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.Every, 2 * time.Second}, {&cfg.Grace, 30 * time.Second}, {&cfg.Forget, 10 * time.Minute}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	f := &Fleet{cfg: cfg, written: map[string]written{}, heard: map[string]heard{},
		registeredProxies: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_registered_proxies", Help: "Proxies in the registry, at the replica that registers; 0 at the others."}),
		failures:          prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_registry_failures_total", Help: "Times that the registry could not be brought up to date."})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(f.registeredProxies, f.failures)
	}
	return f
}

// Run registers until ctx ends. What fails is tried again.
func (f *Fleet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		log := outage.New(f.cfg.Log, "connected proxies cannot be written down", "connected proxies can be written down again")
		for ctx.Err() == nil {
			if err := f.record(ctx); ctx.Err() == nil {
				log.Is(err)
			}
			wait(ctx, f.cfg.Every)
		}
		return nil
	})
	g.Go(func() error {
		election.Run(ctx, election.Config{Client: f.cfg.Etcd, Key: f.cfg.StatusKey("elect/fleet"), TTL: f.cfg.ElectionTTL, Offices: f.cfg.Offices, Log: f.cfg.Log}, f.term)
		return nil
	})
	return g.Wait()
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// refresh is how old Seen may become while a proxy is connected.
func (f *Fleet) refresh() time.Duration { return min(30*time.Second, f.cfg.Forget/4) }

const keys = "instance/"

// record writes down who is connected here. Of who does not want to be found it does where
// it did before, or another replica: else the registry's check would find that it lives.
func (f *Fleet) record(ctx context.Context) error {
	var before map[string]record // read once it is asked for
	for _, p := range f.cfg.Proxies() {
		i := p.GetInfo()
		now := time.Now()
		r := record{Seen: f.cfg.Clock.Now(), Instance: registry.Instance{ID: p.NodeId}}
		if i.GetAdvertiseHost() != "" {
			r.Instance = registry.Instance{ID: p.NodeId, Host: i.AdvertiseHost, Ports: i.Ports, Zone: i.Zone, Weight: i.Weight, Version: i.Version, Namespaces: i.Namespaces}
		}
		if old, ok := f.written[p.NodeId]; ok && now.Sub(old.at) < f.refresh() && reflect.DeepEqual(old.Instance, r.Instance) {
			continue
		}
		if r.Instance.Host == "" {
			if before == nil {
				cctx, cancel := context.WithTimeout(ctx, etcdTimeout)
				var err error
				before, err = f.records(cctx)
				if cancel(); err != nil {
					return err
				}
			}
			if before[p.NodeId].Instance.Host == "" {
				f.written[p.NodeId] = written{r, now}
				continue
			}
		}
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		cctx, cancel := context.WithTimeout(ctx, etcdTimeout)
		_, err = f.cfg.Etcd.Put(cctx, f.cfg.StatusKey(keys+url.PathEscape(p.NodeId)), string(b))
		cancel()
		if err != nil {
			return err
		}
		f.written[p.NodeId] = written{r, now}
	}
	// Who is connected is written down again before that.
	maps.DeleteFunc(f.written, func(_ string, w written) bool { return time.Since(w.at) > 4*f.refresh() })
	return nil
}

// term is one time in office.
func (f *Fleet) term(ctx context.Context, term election.Term) error {
	defer f.registeredProxies.Set(0)
	defer f.trouble.set(nil, time.Time{})
	clear(f.heard)
	log := outage.New(f.cfg.Log, "the registry cannot be brought up to date; trying again", "the registry is up to date again")
	elected := time.Now()
	for ctx.Err() == nil {
		err := f.pass(ctx, term, time.Now(), time.Since(elected) < f.cfg.Grace)
		f.trouble.set(err, f.cfg.Clock.Now())
		if ctx.Err() == nil {
			log.Is(err)
			if err != nil {
				f.failures.Inc()
			}
		}
		wait(ctx, f.cfg.Every)
	}
	return nil
}

// pass makes the registry say what is written down. In the grace nobody is
// removed who is there, and who is alive is not for want of a record: etcd may have
// lost it.
func (f *Fleet) pass(ctx context.Context, term election.Term, now time.Time, grace bool) error {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	there, err := f.registered(ctx)
	if err != nil {
		return err
	}
	records, err := f.records(ctx)
	if err != nil {
		return err
	}
	latest := latestAt(records)
	want := map[string]registry.Instance{}
	for id, i := range there {
		_, known := records[id]
		if at, ok := latest[i.Address()]; (!ok || at == id) && (grace || !known && i.Healthy) {
			want[id] = i
		}
	}
	for id, r := range records {
		if f.silent(id, r.revision, now) > f.cfg.Forget && !there[id].Healthy && !grace {
			if err := term.Write(ctx, f.cfg.Etcd, clientv3.OpDelete(f.cfg.StatusKey(keys+url.PathEscape(id)))); err != nil {
				return err
			}
			delete(f.heard, id)
			f.cfg.Log.Info("a proxy is gone for good", "node", id)
			continue
		}
		if latest[r.Instance.Address()] == id {
			want[id] = r.Instance
		}
	}
	list := make([]registry.Instance, 0, len(want))
	for _, i := range want {
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b registry.Instance) int { return strings.Compare(a.ID, b.ID) })
	if err := f.cfg.Registry.Reconcile(ctx, f.cfg.Service, list); err != nil {
		return err
	}
	f.registeredProxies.Set(float64(len(list)))
	return nil
}

// latestAt gives for each address who was written down there last: a proxy whose data
// folder was lost comes back there under another id, and the old one would pass
// for alive as long as the new one is. Who does not want to be found is at none.
func latestAt(records map[string]record) map[string]string {
	out := map[string]string{}
	for id, r := range records {
		if r.Instance.Host == "" {
			continue
		}
		at := r.Instance.Address()
		if other, ok := out[at]; !ok || r.revision > records[other].revision {
			out[at] = id
		}
	}
	return out
}

// silent is for how long this replica, in office, has not heard of a proxy.
func (f *Fleet) silent(id string, revision int64, now time.Time) time.Duration {
	h := f.heard[id]
	if h.revision != revision {
		h = heard{revision, now}
		f.heard[id] = h
	}
	return now.Sub(h.at)
}

// registered is what the registry says now.
func (f *Fleet) registered(ctx context.Context) (map[string]registry.Instance, error) {
	out := map[string]registry.Instance{}
	for set, err := range f.cfg.Registry.Watch(ctx, f.cfg.Service) {
		if err != nil {
			return nil, err
		}
		for _, i := range set {
			out[i.ID] = i
		}
		return out, nil
	}
	return nil, fmt.Errorf("the registry did not answer: %w", context.Cause(ctx))
}

// records are all proxies that any replica has written down.
func (f *Fleet) records(ctx context.Context) (map[string]record, error) {
	prefix := f.cfg.StatusKey(keys)
	resp, err := f.cfg.Etcd.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	out := map[string]record{}
	for _, kv := range resp.Kvs {
		var r record
		if err := json.Unmarshal(kv.Value, &r); err != nil || r.Instance.ID == "" {
			f.cfg.Log.Error("a record of a proxy cannot be read", "key", string(kv.Key))
			continue
		}
		r.revision = kv.ModRevision
		out[r.Instance.ID] = r
	}
	return out, nil
}
