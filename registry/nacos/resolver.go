package nacos

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/weft-mesh/weft/registry"
)

// Scheme of gRPC targets: "nacos:///SERVICE".
const Scheme = "nacos"

// Choice is which instances a client uses.
type Choice struct {
	// Namespace of the mesh: only instances that serve it are used; "" uses all.
	Namespace string
	// Zone: while one of its instances is healthy, no other zone's is used; ""
	// has no preference.
	Zone string
}

// Resolver finds a service's healthy instances for gRPC clients. While Nacos
// cannot be reached, or calls nobody healthy, the addresses that a client has
// stay in use; a set that takes away more than half of them at once, as Nacos
// gives after it lost its data, is believed after 10 s. New addresses are used at
// once, and a gRPC client passes over those that do not answer.
func (r *Registry) Resolver(c Choice) resolver.Builder { return builder{r.Watch, c} }

type builder struct {
	watch  func(ctx context.Context, service string) iter.Seq2[[]registry.Instance, error]
	choice Choice
}

// Scheme is "nacos".
func (builder) Scheme() string { return Scheme }

// Build begins to follow the service that the target names.
func (b builder) Build(t resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service := strings.TrimPrefix(t.URL.Path, "/")
	if service == "" || strings.Contains(service, "/") {
		return nil, errors.New("nacos: the target must be nacos:///SERVICE")
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{cancel: cancel}
	type look struct {
		set []registry.Instance
		err error
	}
	looks := make(chan look)
	f.running.Go(func() {
		defer close(looks)
		for set, err := range b.watch(ctx, service) {
			select {
			case looks <- look{set, err}:
			case <-ctx.Done():
			}
		}
	})
	f.running.Go(func() {
		a := addresses{choice: b.choice}
		var last []registry.Instance
		again := time.NewTimer(0)
		again.Stop()
		defer again.Stop()
		for {
			select {
			case l, ok := <-looks:
				if !ok {
					return
				}
				if l.err != nil {
					if len(a.using) == 0 {
						cc.ReportError(l.err)
					}
					continue
				}
				last = l.set
			case <-again.C:
			}
			use, wait := a.choose(time.Now(), last)
			if len(use) == 0 {
				if len(a.using) == 0 {
					cc.ReportError(b.choice.nobody(service, last))
				}
				continue
			}
			if wait > 0 {
				again.Reset(wait)
			}
			// Of bad state the client tells by failing calls.
			_ = cc.UpdateState(resolver.State{Endpoints: endpoints(use)})
		}
	})
	return f, nil
}

// doubt is how long a set that takes much away is doubted.
const doubt = 10 * time.Second

// addresses are those of one client.
type addresses struct {
	choice Choice
	// using was chosen last without doubt, since is when doubt began.
	using []registry.Instance
	since time.Time
}

// choose gives the instances to use from now on; none means to keep what is in
// use. After wait, if it is not 0, it wants to be asked again.
func (a *addresses) choose(now time.Time, set []registry.Instance) (use []registry.Instance, wait time.Duration) {
	good := a.choice.of(set)
	if len(good) == 0 {
		return nil, 0
	}
	var lost []registry.Instance
	for _, i := range a.using {
		if !slices.ContainsFunc(good, func(g registry.Instance) bool { return g.Address() == i.Address() }) {
			lost = append(lost, i)
		}
	}
	if 2*len(lost) > len(a.using) {
		if a.since.IsZero() {
			a.since = now
		}
		if wait = doubt - now.Sub(a.since); wait > 0 {
			return append(good, lost...), wait
		}
	}
	a.using, a.since = good, time.Time{}
	return good, 0
}

// of gives those of set that are healthy and chosen.
func (c Choice) of(set []registry.Instance) []registry.Instance {
	var near, far []registry.Instance
	for _, i := range set {
		switch {
		case !i.Healthy || i.Ports["grpc"] == 0 || !c.served(i):
		case c.Zone != "" && i.Zone == c.Zone:
			near = append(near, i)
		default:
			far = append(far, i)
		}
	}
	if len(near) > 0 {
		return near
	}
	return far
}

func (c Choice) served(i registry.Instance) bool {
	return c.Namespace == "" || len(i.Namespaces) == 0 || slices.Contains(i.Namespaces, c.Namespace)
}

// nobody says why there is nobody to use.
func (c Choice) nobody(service string, set []registry.Instance) error {
	if len(set) == 0 {
		return fmt.Errorf("nacos: service %s has no instances: is it the name of a mesh, in this group and namespace of Nacos?", service)
	}
	for _, i := range set {
		if c.served(i) {
			return fmt.Errorf("nacos: none of the %d instances of service %s is healthy", len(set), service)
		}
	}
	return fmt.Errorf("nacos: none of the %d instances of service %s serves namespace %s", len(set), service, c.Namespace)
}

func endpoints(set []registry.Instance) []resolver.Endpoint {
	out := make([]resolver.Endpoint, 0, len(set))
	for _, i := range set {
		// The instance's certificate is for its host.
		out = append(out, resolver.Endpoint{Addresses: []resolver.Address{{Addr: i.Address(), ServerName: i.Host}}})
	}
	return out
}

// follower follows for one client.
type follower struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// ResolveNow does nothing: the watch is never far behind.
func (*follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close ends it.
func (f *follower) Close() {
	f.cancel()
	f.running.Wait()
}
