package delivery

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

// member implements Member. Its fields are guarded by runtime.mu.
type member struct {
	r       *runtime
	who     *policy.Principal
	credit  int
	out     int // deliveries it has
	waiting bool
	err     error
	ready   chan struct{} // capacity 1
}

// maxCredit bounds what a member may have.
const maxCredit = 1 << 16

func (m *member) roomLocked() int { return m.credit - m.out }

func (m *member) pokeLocked() {
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

func (m *member) failLocked(err error) {
	if m.err == nil {
		m.err = err
	}
	m.pokeLocked()
}

// checkLocked judges the member by a newer configuration.
func (m *member) checkLocked(snap *snapshot.Snapshot, now time.Time) {
	who, err := refreshed(snap, m.who, now)
	if err == nil {
		m.who = who
		err = mayConsume(snap, who, m.r.key.Namespace, m.r.key.Name)
	}
	if err != nil {
		m.failLocked(err)
		m.leaveLocked(err)
	}
}

// Credit grants n more deliveries.
func (m *member) Credit(n int) {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	m.credit = max(0, min(m.credit+n, maxCredit))
	m.pokeLocked()
}

// Next waits for deliveries.
func (m *member) Next(ctx context.Context, dst []Delivery) (int, error) {
	r := m.r
	for {
		r.mu.Lock()
		if m.err != nil {
			err := m.err
			r.mu.Unlock()
			return 0, err
		}
		if n := r.takeLocked(m, dst); n > 0 {
			m.unwaitLocked()
			r.mu.Unlock()
			return n, nil
		}
		if m.roomLocked() > 0 && !m.waiting {
			m.waiting = true
			r.waiters = append(r.waiters, m)
			r.demandLocked()
		}
		r.mu.Unlock()
		select {
		case <-m.ready:
		case <-ctx.Done():
			r.mu.Lock()
			m.unwaitLocked()
			r.dispatchLocked() // what it was woken for is another's
			r.mu.Unlock()
			return 0, fault.From(ctx.Err())
		}
	}
}

func (m *member) unwaitLocked() {
	if !m.waiting {
		return
	}
	m.waiting = false
	for i, w := range m.r.waiters {
		if w == m {
			m.r.waiters = append(m.r.waiters[:i], m.r.waiters[i+1:]...)
			return
		}
	}
}

// Ack settles.
func (m *member) Ack(ids ...uint64) (stale int) {
	r := m.r
	r.mu.Lock()
	bySource := map[*source][]*item{}
	n, now := 0, time.Now()
	for _, id := range ids {
		if it := r.landLocked(m, id, outcomeAck); it != nil {
			r.metrics.settleSeconds.Observe(now.Sub(it.given).Seconds())
			bySource[it.src] = append(bySource[it.src], it)
			n++
		}
	}
	m.pokeLocked()
	r.mu.Unlock()
	for s, items := range bySource {
		s.settle(items)
	}
	r.mu.Lock()
	r.doneLocked(n)
	r.mu.Unlock()
	r.metrics.settled.Add(float64(n))
	return len(ids) - n
}

// Nack gives back for another attempt.
func (m *member) Nack(reason string, delay time.Duration, ids ...uint64) (stale int) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		it := r.landLocked(m, id, outcomeNack)
		if it == nil {
			stale++
			continue
		}
		r.metrics.nacked.Inc()
		r.failedLocked(it, reason, delay)
	}
	m.pokeLocked()
	return stale
}

// maxExtend bounds an extension.
const maxExtend = time.Hour

// Extend restarts the ack time-out.
func (m *member) Extend(d time.Duration, ids ...uint64) (stale int) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if d <= 0 {
		d = r.sub.AckTimeout
	}
	now := time.Now()
	for _, id := range ids {
		it := r.flights[id]
		if it == nil || it.owner != m {
			stale++
			r.metrics.stale.Inc()
			continue
		}
		r.timers.set(it, now.Add(min(d, maxExtend)))
	}
	r.poke()
	return stale
}

// AckTimeout is the Subscription's.
func (m *member) AckTimeout() time.Duration {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	return m.r.sub.AckTimeout
}

// Close leaves.
func (m *member) Close() {
	m.r.mu.Lock()
	m.leaveLocked(fault.New(fault.Canceled, "delivery", "closed", "the member has left"))
	m.r.mu.Unlock()
	m.r.m.left(m.r)
}

// leaveLocked gives what the member has to others, without counting an attempt.
func (m *member) leaveLocked(err error) {
	r := m.r
	if _, in := r.members[m]; !in {
		return
	}
	delete(r.members, m)
	m.unwaitLocked()
	m.failLocked(err)
	for id, it := range r.flights {
		if it.owner == m {
			r.landLocked(m, id, outcomeReturned)
			r.buffer = append(r.buffer, it)
		}
	}
	r.metrics.members.Set(float64(len(r.members)))
	r.dispatchLocked()
}
