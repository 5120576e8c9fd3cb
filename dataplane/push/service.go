package push

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// Services finds the instances of services that are pushed to.
type Services interface {
	// Endpoints yields the instances that may be called, first as they are and then
	// on each change. With an error the set is the last known one, and it goes on. It
	// ends when ctx does.
	Endpoints(ctx context.Context, group, name string, clusters []string) iter.Seq2[[]Endpoint, error]
}

// Endpoint is where an instance of a service is.
type Endpoint struct {
	// Addr is "host:port".
	Addr string
	// Weight is its share of the requests relative to others', above 0.
	Weight float64
}

// balancer shares the requests of one target among the instances of its service, by
// smooth weighted round robin. One that does not answer is passed over for a while,
// unless none is left. It is safe for concurrent use.
type balancer struct {
	service *snapshot.Service
	stop    context.CancelFunc
	told    chan struct{} // closed once the registry has said which instances there are, or where there is none to say it

	mu        sync.Mutex
	instances []*instance
}

type instance struct {
	Endpoint
	current  float64 // of the round robin
	failures int     // in a row
	avoided  time.Time
}

// Times for which an instance that does not answer is passed over: the first one,
// which doubles, and the longest.
const (
	minAvoid = time.Second
	maxAvoid = 30 * time.Second
)

// newBalancer begins to follow a service, until stop.
func newBalancer(found Services, s *snapshot.Service, log *slog.Logger) *balancer {
	b := &balancer{service: s, stop: func() {}, told: make(chan struct{})}
	if found == nil {
		close(b.told)
		return b
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	log = log.With("service", s.Name, "group", s.Group)
	go func() {
		away, told := false, false
		for set, err := range found.Endpoints(ctx, s.Group, s.Name, s.Clusters) {
			if err != nil {
				away = true
				log.Warn("the registry cannot be asked; the instances last known are called", "error", err)
				continue
			}
			if away {
				away = false
				log.Info("the registry answers again")
			}
			b.set(set)
			if !told {
				told = true
				close(b.told)
			}
		}
	}()
	return b
}

// isTold reports whether it is known which instances there are. b may be nil.
func (b *balancer) isTold() bool {
	if b == nil {
		return true
	}
	select {
	case <-b.told:
		return true
	default:
		return false
	}
}

// found waits until the registry has said where the instances are of the service that the
// target is, if it is one: without that no event has been tried. It reports whether it is
// known; not once ctx has ended, or where the configuration has changed.
func (t *target) found(ctx context.Context) bool {
	for again := minAsk; ; again = min(2*again, maxRejoin) {
		c := t.push.Load()
		if c.balancer.isTold() {
			return true
		}
		timer := time.NewTimer(again)
		select {
		case <-c.balancer.told:
			t.judge(answer{outcome: outcomeOK}) // nothing else is known of it
		case <-timer.C:
			t.judge(failure(Failed, "the registry has not said yet which instances of service %s there are; its events wait", c.Service.Name))
		case <-t.changed:
			timer.Stop()
			return false
		case <-ctx.Done():
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}

// set takes a newer set. An empty one, as a registry gives that has lost its data,
// leaves the last in force: to call instances that are gone costs an attempt, not to
// call those that are there costs all.
func (b *balancer) set(list []Endpoint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(list) == 0 {
		return
	}
	next := make([]*instance, len(list))
	for i, e := range list {
		next[i] = &instance{Endpoint: e}
		if k := slices.IndexFunc(b.instances, func(in *instance) bool { return in.Addr == e.Addr }); k >= 0 {
			next[i] = b.instances[k]
			next[i].Weight = e.Weight
		}
	}
	b.instances = next
}

// pick gives the address that the next request goes to; "" without any.
func (b *balancer) pick(now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if best := pick(b.instances, func(in *instance) bool { return !now.Before(in.avoided) }); best != nil {
		return best.Addr
	}
	if best := pick(b.instances, func(*instance) bool { return true }); best != nil {
		return best.Addr
	}
	return ""
}

func pick(list []*instance, may func(*instance) bool) (best *instance) {
	total := 0.0
	for _, in := range list {
		if !may(in) {
			continue
		}
		in.current += in.Weight
		total += in.Weight
		if best == nil || in.current > best.current {
			best = in
		}
	}
	if best != nil {
		best.current -= total
	}
	return best
}

// judge takes note of whether an instance answered.
func (b *balancer) judge(addr string, answered bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, in := range b.instances {
		if in.Addr != addr {
			continue
		}
		if answered {
			in.failures, in.avoided = 0, time.Time{}
			return
		}
		if now.Before(in.avoided) {
			return // it was called before that was known, or for want of another
		}
		in.avoided = now.Add(min(minAvoid<<min(in.failures, 5), maxAvoid))
		in.failures++
	}
}
