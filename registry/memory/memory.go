// Package memory is a registry in the memory of one process, for a mesh on one
// machine. As Nacos does, it asks each instance's health port for /readyz.
package memory

import (
	"context"
	"iter"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/registry"
)

// Times of the health check.
const (
	checkEvery   = time.Second
	checkTimeout = 500 * time.Millisecond
	// maxChecks bounds checks at once.
	maxChecks = 16
)

// Registry implements registry.Registry.
type Registry struct {
	http *http.Client
	life context.Context // ends at Close
	end  context.CancelFunc
	work sync.WaitGroup // the checker and the watches

	mu       sync.Mutex
	services map[string]map[string]registry.Instance // by service and id
	changed  chan struct{}                           // closed when anything has changed
	fresh    chan struct{}                           // wakes the checker; capacity 1
}

var _ registry.Registry = (*Registry)(nil)

// New makes a Registry, which checks its instances until Close.
func New() *Registry {
	r := &Registry{http: &http.Client{Timeout: checkTimeout, Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}},
		services: map[string]map[string]registry.Instance{}, changed: make(chan struct{}), fresh: make(chan struct{}, 1)}
	r.life, r.end = context.WithCancel(context.Background())
	r.work.Go(r.check)
	return r
}

// Close ends the checks and every watch.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock() // a watch that begins is waited for, or does not begin
	r.end()
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { r.work.Wait(); close(done) }()
	select {
	case <-done:
		r.http.CloseIdleConnections()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// changedLocked wakes every watch.
func (r *Registry) changedLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Reconcile makes the service consist of want; see registry.Registry.
func (r *Registry) Reconcile(_ context.Context, service string, want []registry.Instance) error {
	next, wrong := registry.Registrable(want)
	for id, i := range next {
		i.Ports, i.Namespaces, i.Healthy = maps.Clone(i.Ports), slices.Clone(i.Namespaces), false
		next[id] = i
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.services[service]
	for _, i := range want {
		if was, ok := old[i.ID]; ok && next[i.ID].ID == "" {
			next[i.ID] = was // what cannot be registered stays as it was
		}
	}
	if len(next) == 0 && len(old) > 0 {
		last := slices.Min(slices.Collect(maps.Keys(old)))
		next[last] = old[last]
	}
	for id, i := range next {
		if was, ok := old[id]; ok && was.Host == i.Host && was.Ports["health"] == i.Ports["health"] {
			i.Healthy = was.Healthy
			next[id] = i
		}
	}
	r.services[service] = next
	r.changedLocked()
	select {
	case r.fresh <- struct{}{}:
	default:
	}
	return wrong
}

// Watch yields the sets of a service; see registry.Registry.
func (r *Registry) Watch(ctx context.Context, service string) iter.Seq2[[]registry.Instance, error] {
	return func(yield func([]registry.Instance, error) bool) {
		r.mu.Lock()
		if r.life.Err() != nil {
			r.mu.Unlock()
			return
		}
		r.work.Add(1)
		r.mu.Unlock()
		defer r.work.Done()
		for ctx.Err() == nil && r.life.Err() == nil {
			r.mu.Lock()
			set, changed := slices.Collect(maps.Values(r.services[service])), r.changed
			r.mu.Unlock()
			slices.SortFunc(set, func(a, b registry.Instance) int { return strings.Compare(a.ID, b.ID) })
			if !yield(set, nil) {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			case <-r.life.Done():
			}
		}
	}
}

// check asks every instance again and again whether it is ready.
func (r *Registry) check() {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.fresh:
		case <-r.life.Done():
			return
		}
		r.mu.Lock()
		var all []registry.Instance
		var of []string
		for service, set := range r.services {
			for _, i := range set {
				all, of = append(all, i), append(of, service)
			}
		}
		r.mu.Unlock()
		var wg sync.WaitGroup
		slots := make(chan struct{}, maxChecks)
		for n, i := range all {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				r.saw(of[n], i, r.ready(i))
			})
		}
		wg.Wait()
	}
}

func (r *Registry) ready(i registry.Instance) bool {
	url := "http://" + net.JoinHostPort(i.Host, strconv.FormatUint(uint64(i.Ports["health"]), 10)) + "/readyz"
	req, err := http.NewRequestWithContext(r.life, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// saw records what a check of i found, unless i is elsewhere by now.
func (r *Registry) saw(service string, i registry.Instance, healthy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, ok := r.services[service][i.ID]
	if !ok || now.Host != i.Host || now.Ports["health"] != i.Ports["health"] || now.Healthy == healthy {
		return
	}
	now.Healthy = healthy
	r.services[service][i.ID] = now
	r.changedLocked()
}
