package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// The churn: so many resources change a second, so many in one call, while so many
// proxies follow all of them.
const (
	churnRate    = 1000
	churnChanges = 20
	churnNodes   = 100
)

// pushes is what came to a fleet: when, up to which revision, by node.
type pushes struct {
	mu   sync.Mutex
	all  map[string][]push
	news chan struct{} // has a token after a push
}

type push struct {
	at       time.Time
	revision int64
}

func newPushes() *pushes { return &pushes{all: map[string][]push{}, news: make(chan struct{}, 1)} }

func (p *pushes) add(node string, revision int64) {
	p.mu.Lock()
	p.all[node] = append(p.all[node], push{time.Now(), revision})
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// converged waits until every one of so many nodes has a revision and gives when the
// last one had.
func (p *pushes) converged(ctx context.Context, nodes int, revision int64) (last time.Time, err error) {
	for {
		p.mu.Lock()
		have := 0
		for _, log := range p.all {
			// The first push that has it counts.
			if i := slices.IndexFunc(log, func(x push) bool { return x.revision >= revision }); i >= 0 {
				have++
				if log[i].at.After(last) {
					last = log[i].at
				}
			}
		}
		p.mu.Unlock()
		if have == nodes {
			return last, nil
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return last, fmt.Errorf("%d of %d proxies have revision %d: %w", have, nodes, revision, ctx.Err())
		}
	}
}

// most is the most that came to one node in a second, and all that came to one.
func (p *pushes) most() (second, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, log := range p.all {
		all = max(all, len(log))
		from := 0
		for i := range log {
			for log[i].at.Sub(log[from].at) >= time.Second {
				from++
			}
			second = max(second, i-from+1)
		}
	}
	return second, all
}

// churn measures a configuration that does not rest: how many pushes a proxy gets, what
// they cost, and how soon after the end every proxy has the last state.
func churn(ctx context.Context, r *run) error {
	s, err := r.startControl(ctx, "churn", fleetResources)
	if err != nil {
		return err
	}
	defer r.end(s)
	f := newSimulated(s)
	defer f.stop()
	f.log = newPushes()
	if err := f.connect(ctx, churnNodes, everywhere, true); err != nil {
		return err
	}
	profiled := r.profileOf(ctx, s, "churn")
	began, cpu := time.Now(), cpuOf(s.pid)
	changes, revision := 0, int64(0)
	tick := time.NewTicker(time.Second * churnChanges / churnRate)
	defer tick.Stop()
	for time.Since(began) < r.slice {
		// Whoever is late does not wait.
		if due := int(time.Since(began) * churnRate / time.Second); changes >= due {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var list []*configv1.Resource
		for i := range churnChanges {
			n := (changes + i) % fleetResources
			list = append(list, eventStore(fleetSpace(n), fmt.Sprintf("s%d", n), fmt.Sprintf("c%d", changes)))
		}
		if revision, err = s.apply(ctx, list); err != nil {
			return err
		}
		changes += churnChanges
	}
	ended := time.Now()
	took := ended.Sub(began)
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last, err := f.log.converged(wctx, churnNodes, revision)
	if err != nil {
		return err
	}
	spent := cpuOf(s.pid) - cpu
	profiled()
	second, all := f.log.most()
	r.note("%.0f changes a second for %s, %d proxies: all have the last %d ms after it (aimed at 1 s); %.2f cores of the control plane (aimed at 1); at most %d pushes to a proxy in a second, %.1f on average (aimed at 20)",
		float64(changes)/took.Seconds(), took.Round(time.Second), churnNodes, max(0, last.Sub(ended).Milliseconds()), spent.Seconds()/took.Seconds(), second, float64(all)/took.Seconds())
	return nil
}
