package nacos

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/resolver"

	"github.com/weft-mesh/weft/registry"
)

// Scheme of gRPC targets: "nacos:///SERVICE".
const Scheme = "nacos"

// Resolver finds a service's healthy instances for gRPC clients. While Nacos
// cannot be reached, or calls nobody healthy, the addresses that a client has
// stay in use.
func (r *Registry) Resolver() resolver.Builder { return builder{r} }

type builder struct{ r *Registry }

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
	f.running.Go(func() {
		known := false
		for set, err := range b.r.Watch(ctx, service) {
			endpoints := healthy(set)
			if err == nil && len(endpoints) > 0 {
				// Of bad state the client tells by failing calls.
				known = cc.UpdateState(resolver.State{Endpoints: endpoints}) == nil || known
				continue
			}
			if err == nil {
				err = errors.New("nacos: no instance of service " + service + " is healthy")
			}
			if !known {
				cc.ReportError(err)
			}
		}
	})
	return f, nil
}

func healthy(set []registry.Instance) []resolver.Endpoint {
	var out []resolver.Endpoint
	for _, i := range set {
		if i.Healthy {
			addr := net.JoinHostPort(i.Host, strconv.FormatUint(uint64(i.Ports["grpc"]), 10))
			// The instance's certificate is for its host.
			out = append(out, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr, ServerName: i.Host}}})
		}
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
