package delivery

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// paceOf is the limiter of a Subscription's deliveries on this proxy, nil where
// it has no rate. It outlives the Subscription's members: one that comes again
// and again gets no more by that.
func (m *Manager) paceOf(sub *snapshot.Subscription) *rate.Limiter {
	m.paceMu.Lock()
	defer m.paceMu.Unlock()
	p := m.paces[sub.Key]
	switch {
	case sub.Rate == 0:
		delete(m.paces, sub.Key)
		return nil
	case p == nil:
		p = rate.NewLimiter(rate.Limit(sub.Rate), sub.Burst)
		m.paces[sub.Key] = p
	case p.Limit() != rate.Limit(sub.Rate) || p.Burst() != sub.Burst:
		p.SetLimit(rate.Limit(sub.Rate))
		p.SetBurst(sub.Burst)
	}
	return p
}

// readyLocked is how many events of the buffer MaxInFlight and the rate let go now:
// sources that fetch side by side may bring more than there is room for. Where the rate
// holds up members that wait, tend is told, which wakes them when it is over.
func (r *runtime) readyLocked(now time.Time) int {
	n := min(len(r.buffer), r.sub.MaxInFlight-r.flights.n)
	if r.pace != nil {
		n = min(n, int(r.pace.TokensAt(now)))
	}
	was := r.paced
	if r.paced = n == 0 && len(r.buffer) > 0 && len(r.waiters) > 0; r.paced && !was {
		r.poke()
	}
	return n
}

// paceLocked is how long tend waits, at most wait: less where members wait for
// the rate. When that is over it wakes them.
func (r *runtime) paceLocked(now time.Time, wait time.Duration) time.Duration {
	if !r.paced || r.pace == nil {
		return wait
	}
	if lack := 1 - r.pace.TokensAt(now); lack > 0 {
		return min(wait, time.Duration(lack/float64(r.pace.Limit())*float64(time.Second))+time.Microsecond)
	}
	r.dispatchLocked()
	return wait
}
