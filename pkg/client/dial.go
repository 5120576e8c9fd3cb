package client

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/weft-mesh/weft/pkg/unixaddr"
)

// spread is over how long those come back who lost their connections together.
const spread = 2 * minRetry

// dialer connects to proxies, and to nobody between. The first connection to an address
// is made at once. Each later one waits, which gRPC would make in the instant that one
// is lost: thousands lose theirs in the same.
type dialer struct {
	// allowed is nil where an address may be connected to.
	allowed func(addr string) error
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)

	mu    sync.Mutex
	known map[string]struct{}
}

// options are those of a connection that d makes, again and again.
func (d *dialer) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(d.connect),
		// gRPC's own longest wait is two minutes: too long for a proxy that is back.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 10 * time.Second,
			Backoff: backoff.Config{BaseDelay: minRetry, Multiplier: 2, Jitter: 0.5, MaxDelay: maxRetry}})}
}

func (d *dialer) connect(ctx context.Context, addr string) (net.Conn, error) {
	if err := d.allowed(addr); err != nil {
		return nil, err
	}
	if d.again(addr) {
		timer := time.NewTimer(rand.N(spread))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	network := "tcp"
	if path, err := unixaddr.Path(addr); err == nil {
		network, addr = "unix", path
	}
	return d.dial(ctx, network, addr)
}

// again reports whether addr was connected to before.
func (d *dialer) again(addr string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.known[addr]
	d.known[addr] = struct{}{}
	return ok
}
