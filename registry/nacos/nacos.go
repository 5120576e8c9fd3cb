// Package nacos announces and finds instances in Nacos 3, over its HTTP API.
//
// Instances are persistent: they outlive whoever registered them, and Nacos
// itself finds out whether they live, by asking their health port for /readyz.
// An instance is in the cluster "health-<port>", since Nacos has one health port
// for a cluster.
package nacos

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/registry"
)

// Config of a Registry.
type Config struct {
	// URL of the server's HTTP API with its context path:
	// "http://127.0.0.1:8848/nacos".
	URL string
	// Credentials are asked for at each log-in; nil for a server without
	// authentication. The user needs access to the admin API.
	Credentials func() (user, password string, err error)
	// TLS gives the configuration of a connection to a server with https, which
	// takes it; nil trusts the system's authorities.
	TLS func() *tls.Config
	// Namespace is the id of Nacos's namespace, which must exist there; "public"
	// when empty. (It has nothing to do with namespaces of the mesh.)
	Namespace string
	// Group of the services; DEFAULT_GROUP when empty.
	Group string
	// Poll is the time between two looks of a watch; 1 s when 0.
	Poll time.Duration
}

// Registry implements registry.Registry.
type Registry struct {
	cfg    Config
	client *client

	life    context.Context // ends at Close
	end     context.CancelFunc
	passing sync.Mutex // serialises Reconcile
	mu      sync.Mutex // orders the begin of a watch and Close
	watches sync.WaitGroup
}

var _ registry.Registry = (*Registry)(nil)

// callTimeout bounds one call of Nacos, maxCalls how many run at once.
const (
	callTimeout = 5 * time.Second
	maxCalls    = 16
)

// New makes a Registry; it connects when it is used.
func New(cfg Config) (*Registry, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("nacos: the URL must be like http://host:8848/nacos, without user information")
	}
	if cfg.Group == "" {
		cfg.Group = "DEFAULT_GROUP"
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Namespace == "" {
		cfg.Namespace = "public"
	}
	r := &Registry{cfg: cfg, client: newClient(&cfg)}
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close ends every watch.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock()
	r.end()
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { r.watches.Wait(); close(done) }()
	select {
	case <-done:
		r.client.http.CloseIdleConnections()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checker is how Nacos finds out whether an instance lives.
type checker struct {
	Type     string `json:"type"`
	Path     string `json:"path"`
	Headers  string `json:"headers"`
	Expected int    `json:"expectedResponseCode"`
}

func wantedChecker() checker { return checker{"HTTP", "/readyz", "", http.StatusOK} }

// service is a service as Nacos shows it.
type service struct {
	Clusters map[string]struct {
		Checker      checker `json:"healthChecker"`
		Port         uint32  `json:"healthyCheckPort"`
		InstancePort bool    `json:"useInstancePortForCheck"`
	} `json:"clusterMap"`
	Ephemeral bool `json:"ephemeral"`
}

// entry is an instance as Nacos shows it.
type entry struct {
	IP       string            `json:"ip"`
	Port     uint32            `json:"port"`
	Weight   float64           `json:"weight"`
	Healthy  bool              `json:"healthy"`
	Enabled  bool              `json:"enabled"`
	Cluster  string            `json:"clusterName"`
	Metadata map[string]string `json:"metadata"`
}

func (r *Registry) params(name string, more ...string) url.Values {
	v := url.Values{"serviceName": {name}, "groupName": {r.cfg.Group}}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return v
}

const clusterPrefix = "health-"

// Keys of an instance's metadata; docs/nacos.md says what they are.
const (
	keyID         = "weft-id"
	keyVersion    = "weft-version"
	keyZone       = "weft-zone"
	keyNamespaces = "weft-namespaces"
	keyPort       = "weft-port-" // with the protocol's name
)

// maxMetadata is how many bytes of metadata Nacos takes.
const maxMetadata = 1024

// size is how Nacos counts e's metadata.
func (e *entry) size() (n int) {
	for k, v := range e.Metadata {
		n += len(k) + len(v)
	}
	return n
}

// entryOf is how an instance that passes Check stands in Nacos.
func entryOf(i registry.Instance) entry {
	e := entry{IP: i.Host, Port: i.Ports["grpc"], Weight: float64(i.Weight), Cluster: clusterPrefix + strconv.FormatUint(uint64(i.Ports["health"]), 10),
		Metadata: map[string]string{keyID: i.ID, keyVersion: i.Version, keyZone: i.Zone, keyNamespaces: strings.Join(i.Namespaces, ",")}}
	if i.Weight == 0 {
		e.Weight = 100
	}
	for name, port := range i.Ports {
		e.Metadata[keyPort+name] = strconv.FormatUint(uint64(port), 10)
	}
	return e
}

// maxWeight is the largest weight of Nacos.
const maxWeight = 10000

// instance is the reverse; ok is false for what is not ours.
func (e *entry) instance() (registry.Instance, bool) {
	i := registry.Instance{ID: e.Metadata[keyID], Host: e.IP, Zone: e.Metadata[keyZone], Version: e.Metadata[keyVersion],
		Weight: uint32(min(max(0, e.Weight), maxWeight)), Healthy: e.Healthy && e.Enabled, Ports: map[string]uint32{}}
	for k, v := range e.Metadata {
		if name, ok := strings.CutPrefix(k, keyPort); ok {
			if p, err := strconv.ParseUint(v, 10, 16); err == nil {
				i.Ports[name] = uint32(p)
			}
		}
	}
	if ns := e.Metadata[keyNamespaces]; ns != "" {
		i.Namespaces = strings.Split(ns, ",")
	}
	return i, i.ID != ""
}

// same reports whether e says what o says, health apart.
func (e *entry) same(o *entry) bool {
	if e.Weight != o.Weight || len(e.Metadata) != len(o.Metadata) {
		return false
	}
	for k, v := range e.Metadata {
		if got, ok := o.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// place is where Nacos keeps an instance.
type place struct {
	cluster, ip string
	port        uint32
}

func (e *entry) place() place { return place{e.Cluster, e.IP, e.Port} }

// read gives the service and the instances in our clusters; nil without the
// service.
func (r *Registry) read(ctx context.Context, name string) (*service, map[place]*entry, error) {
	s := &service{}
	if err := r.client.call(ctx, http.MethodGet, "/v3/admin/ns/service", r.params(name), s); err != nil {
		if hasCode(err, codeServiceMissing) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	out := map[place]*entry{}
	var mu sync.Mutex
	g := r.calls()
	for cluster := range s.Clusters {
		if !strings.HasPrefix(cluster, clusterPrefix) {
			continue
		}
		g.Go(func() error {
			var list []entry
			err := r.client.call(ctx, http.MethodGet, "/v3/admin/ns/instance/list", r.params(name, "clusterName", cluster), &list)
			if e, ok := errors.AsType[*apiError](err); ok && e.status == http.StatusNotFound && e.code != 0 {
				return nil // a checker without instances
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range list {
				e.Cluster = cluster
				out[e.place()] = &e
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return s, out, nil
}

// Reconcile makes the service consist of want; see registry.Registry. ctx bounds
// it; what could not be read back is an error, and the next call goes on.
func (r *Registry) Reconcile(ctx context.Context, name string, want []registry.Instance) error {
	r.passing.Lock()
	defer r.passing.Unlock()
	good, wrong := registry.Registrable(want)
	w := wanted{entries: map[place]*entry{}, kept: map[string]bool{}, written: map[place]*writes{}}
	for _, i := range want {
		g, ok := good[i.ID]
		if !ok {
			w.kept[i.ID] = true
			continue
		}
		e := entryOf(g)
		if n := e.size(); n > maxMetadata {
			wrong = errors.Join(wrong, fmt.Errorf("instance %q has %d bytes of metadata, Nacos takes %d: it serves too many namespaces to name them", i.ID, n, maxMetadata))
			w.kept[i.ID] = true
			continue
		}
		w.entries[e.place()] = &e
	}
	for {
		changed, err := r.pass(ctx, name, &w)
		if err != nil {
			return errors.Join(wrong, err)
		}
		if !changed {
			return wrong // what could be registered was read back
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("nacos: service %s was written, but not read back: %w", name, ctx.Err())
		}
	}
}

// wanted is how a service is to be.
type wanted struct {
	entries map[place]*entry
	kept    map[string]bool // ids of those that stay as they are
	written map[place]*writes
}

// writes is how often passes wrote an entry, and when last.
type writes struct {
	times int
	last  time.Time
}

// showsWithin is how long Nacos may take to show what was written before it is
// written again: it answers a write before every list has it.
const showsWithin = 2 * time.Second

// due notes that what differs at p is written now, for which time; or tells that it is
// not due: it was written just now, and may not be shown yet.
func (w *wanted) due(p place) (times int, due bool) {
	now := w.written[p]
	if now == nil {
		now = &writes{}
		w.written[p] = now
	} else if time.Since(now.last) < showsWithin {
		return now.times, false
	}
	now.times++
	now.last = time.Now()
	return now.times, true
}

// pass looks once and writes what differs.
func (r *Registry) pass(ctx context.Context, name string, w *wanted) (changed bool, err error) {
	s, have, err := r.read(ctx, name)
	if err != nil {
		return false, err
	}
	if s == nil {
		if len(w.entries) == 0 {
			return false, nil
		}
		// Nobody dead is to pass for alive because many are dead.
		err := r.client.call(ctx, http.MethodPost, "/v3/admin/ns/service", r.params(name, "ephemeral", "false", "protectThreshold", "0"), nil)
		if err != nil && !hasCode(err, codeServiceExists) {
			return false, err
		}
		s, changed = &service{}, true
	}
	if s.Ephemeral {
		return false, fmt.Errorf("nacos: service %s is one of ephemeral instances: choose another name", name)
	}
	// Checkers first: an instance without one would be asked over TCP.
	for cluster, port := range clusters(w.entries) {
		if c, ok := s.Clusters[cluster]; ok && c.Checker == wantedChecker() && c.Port == port && !c.InstancePort {
			continue
		}
		b, err := json.Marshal(wantedChecker())
		if err != nil {
			return false, err
		}
		if err := r.client.call(ctx, http.MethodPut, "/v3/admin/ns/cluster", r.params(name, "clusterName", cluster, "checkPort", strconv.FormatUint(uint64(port), 10),
			"useInstancePort4Check", "false", "healthChecker", string(b)), nil); err != nil {
			return false, err
		}
		changed = true
	}
	g := r.calls()
	for p, e := range w.entries {
		old := have[p]
		if old != nil && e.same(old) {
			continue
		}
		changed = true
		times, due := w.due(p)
		if !due {
			continue
		}
		method := http.MethodPost
		if old != nil && times > 2 {
			// It was written and is not so: somebody changed it in Nacos's
			// console, which prevails over all registrations, but not over
			// another such change. (Once may be too early to see it.)
			method = http.MethodPut
		}
		g.Go(func() error { return r.write(ctx, method, name, e, old) })
	}
	if err := g.Wait(); err != nil {
		return false, err
	}
	return r.remove(ctx, name, w, have, changed)
}

// remove removes who is gone, once those who stay are there; the last one of a
// service stands until another comes, or Nacos would forget the checker.
func (r *Registry) remove(ctx context.Context, name string, w *wanted, have map[place]*entry, changed bool) (bool, error) {
	if len(w.entries) > 0 && changed {
		return changed, nil // not read back yet
	}
	g := r.calls()
	left := len(have)
	for p, e := range have {
		if id := e.Metadata[keyID]; id == "" || w.entries[p] != nil || w.kept[id] || left == 1 {
			continue // not ours, or to stay
		}
		left--
		changed = true
		if _, due := w.due(p); due {
			g.Go(func() error { return r.write(ctx, http.MethodDelete, name, e, nil) })
		}
	}
	return changed, g.Wait()
}

// calls runs calls side by side.
func (r *Registry) calls() *errgroup.Group {
	g := &errgroup.Group{}
	g.SetLimit(maxCalls)
	return g
}

func clusters(entries map[place]*entry) map[string]uint32 {
	out := map[string]uint32{}
	for p := range entries {
		if port, err := strconv.ParseUint(strings.TrimPrefix(p.cluster, clusterPrefix), 10, 16); err == nil {
			out[p.cluster] = uint32(port)
		}
	}
	return out
}

// write registers, changes or removes e. Of old, which is there now, the health
// is carried over, and that an operator disabled it; who is new has to show its
// health.
func (r *Registry) write(ctx context.Context, method, name string, e, old *entry) error {
	v := r.params(name, "clusterName", e.Cluster, "ip", e.IP, "port", strconv.FormatUint(uint64(e.Port), 10), "ephemeral", "false")
	if method != http.MethodDelete {
		b, err := json.Marshal(e.Metadata)
		if err != nil {
			return err
		}
		v.Set("metadata", string(b))
		v.Set("weight", strconv.FormatFloat(e.Weight, 'f', -1, 64))
		v.Set("healthy", strconv.FormatBool(old != nil && old.Healthy))
		v.Set("enabled", strconv.FormatBool(old == nil || old.Enabled))
	}
	return r.client.call(ctx, method, "/v3/admin/ns/instance", v, nil)
}

// Watch yields the instances of a service; see registry.Registry. It asks Nacos
// every Config.Poll or so.
func (r *Registry) Watch(ctx context.Context, name string) iter.Seq2[[]registry.Instance, error] {
	return poll(ctx, r, func(ctx context.Context) ([]registry.Instance, error) { return r.list(ctx, name) }, equal)
}

// poll looks every Config.Poll or so, and yields what has changed.
func poll[T any](ctx context.Context, r *Registry, look func(context.Context) ([]T, error), equal func(a, b T) bool) iter.Seq2[[]T, error] {
	return func(yield func([]T, error) bool) {
		r.mu.Lock()
		if r.life.Err() != nil {
			r.mu.Unlock()
			return
		}
		r.watches.Add(1)
		r.mu.Unlock()
		defer r.watches.Done()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(r.life, cancel)()
		var last []T
		first, failing := true, false
		for ctx.Err() == nil {
			now, err := look(ctx)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if !failing && !yield(last, err) {
					return
				}
				failing = true
			case first || failing || !slices.EqualFunc(now, last, equal):
				last, first, failing = now, false, false
				if !yield(now, nil) {
					return
				}
			}
			timer := time.NewTimer(r.cfg.Poll*3/4 + rand.N(r.cfg.Poll/2+1))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
	}
}

// list gives the instances, sorted by id.
func (r *Registry) list(ctx context.Context, name string) ([]registry.Instance, error) {
	_, have, err := r.read(ctx, name)
	if err != nil {
		return nil, err
	}
	out := make([]registry.Instance, 0, len(have))
	for _, e := range have {
		if i, ours := e.instance(); ours {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b registry.Instance) int {
		return strings.Compare(a.ID+" "+a.Host, b.ID+" "+b.Host)
	})
	return out, nil
}

func equal(a, b registry.Instance) bool {
	x, y := entryOf(a), entryOf(b)
	return x.place() == y.place() && x.same(&y) && a.Healthy == b.Healthy
}
