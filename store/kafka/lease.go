package kafka

import (
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
)

// leaseFor is how long after a member asked whether it is one it counts as one: less
// than its session, by what clocks may differ in.
func leaseFor() time.Duration { return sessionTimeout * 9 / 10 }

// bootNow is the clock of leases.
var bootNow = clock.SinceBoot

// lease is how long a member cannot be taken for dead. Once it has ended it stays so:
// what came of it must come again.
type lease struct {
	mu    sync.Mutex
	until time.Duration // 0: it has not begun
	ended bool
}

// renew has the lease last from when the member asked.
func (l *lease) renew(asked time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.look()
	l.until = max(l.until, asked+leaseFor())
}

// holds reports whether the lease lasts.
func (l *lease) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.look()
	return l.until != 0 && !l.ended
}

// over reports whether the lease has ended.
func (l *lease) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.look()
	return l.ended
}

func (l *lease) look() {
	if l.until != 0 && bootNow() >= l.until {
		l.ended = true
	}
}
