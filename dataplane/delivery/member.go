package delivery

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

// member implements Member. Its fields are guarded by runtime.mu.
type member struct {
	r   *runtime
	who *policy.Principal
	// pulls: who is the last that has called. What was pulled stays the caller's when what
	// it was pulled with ends: each call is judged by itself, and the next shows newer.
	pulls   bool
	credit  int
	out     int // deliveries it has
	singled int // of them that are singled out, 0 or 1; see suspects.go
	doubted bool
	probe   *item // what it has while it is doubted
	waiting bool
	place   uint64    // among the members, see sticky.go
	seen    time.Time // when it was heard of last, with Ordered
	away    bool      // that is long ago
	err     error
	bell    bell
	ear     *ear // of Next, whose own it is
}

// maxCredit bounds what a member may have.
const maxCredit = 1 << 16

// roomLocked is how many more deliveries it may get.
func (m *member) roomLocked() int {
	switch room := m.credit - m.out; {
	case !m.doubted:
		return room
	case m.probe == nil:
		return min(room, 1)
	default:
		return 0
	}
}

func (m *member) failLocked(err error) {
	if m.err == nil {
		m.err = err
	}
	m.bell.ring()
}

// checkLocked judges the member by a newer configuration.
func (m *member) checkLocked(snap *snapshot.Snapshot, now time.Time) {
	who, err := m.who, error(nil)
	if !m.pulls || !who.Expired(now) {
		who, err = refreshed(snap, who, now)
	}
	if err == nil {
		m.who = who
		err = mayConsume(snap, who, m.r.key.Namespace, m.r.key.Name)
	}
	if err == nil {
		err = mayJoin(m.r.sub, who) // it may have become one that the mesh delivers
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
	m.bell.ring()
}

// Next waits for deliveries.
func (m *member) Next(ctx context.Context, dst []Delivery) (int, error) {
	if m.ear == nil {
		m.ear = newEar()
	}
	for {
		if n, err := m.Take(dst, m.ear.wake); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-m.ear.heard:
		case <-ctx.Done():
			m.r.mu.Lock()
			m.seenLocked()
			m.unwaitLocked()
			m.r.dispatchLocked() // what it was woken for is another's
			m.r.mu.Unlock()
			return 0, fault.From(ctx.Err())
		}
	}
}

// Take gives deliveries.
func (m *member) Take(dst []Delivery, wake func()) (int, error) {
	for {
		n, sub, err := m.take(dst)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			if n = m.prepare(sub, dst[:n]); n > 0 {
				return n, nil
			}
		} else if m.bell.listen(wake) {
			return 0, nil
		}
	}
}

// take gives what there is, as it was fetched, and the Subscription as it is then. Where
// there is nothing the member waits.
func (m *member) take(dst []Delivery) (int, *snapshot.Subscription, error) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.err != nil {
		return 0, nil, m.err
	}
	m.seenLocked()
	n := r.takeLocked(m, dst)
	if n > 0 {
		m.unwaitLocked()
	} else if m.roomLocked() > 0 && !m.waiting {
		m.waiting = true
		r.waiters = append(r.waiters, m)
		r.demandLocked()
		r.readyLocked(time.Now())
	}
	return n, r.sub, nil
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
func (m *member) Ack(ids ...uint64) (stale int) { return len(m.ack(ids)) }

// ack settles and gives the ids that were stale.
func (m *member) ack(ids []uint64) (stale []uint64) {
	landed, stale := m.land(ids)
	m.r.settle(landed)
	m.r.metrics.settled.Add(float64(len(landed)))
	return stale
}

// land ends the flights of what is acknowledged.
func (m *member) land(ids []uint64) (landed []*item, stale []uint64) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	landed = make([]*item, 0, len(ids))
	now, at, wall := time.Now(), r.m.cfg.Facts.Now(), r.m.cfg.Clock.Now()
	for _, id := range ids {
		if it := r.takeOutLocked(m, id, outcomeAck); it != nil {
			r.metrics.settleSeconds.Observe(now.Sub(it.given).Seconds())
			if age, ok := it.age(wall); ok {
				r.metrics.endToEnd.Observe(age)
			}
			if !r.m.cfg.Facts.Acked(it.told, at) {
				r.remember(at, facts.Acked, &it.msg, "")
			}
			landed = append(landed, it)
			m.settlesLocked()
		} else {
			stale = append(stale, id)
		}
	}
	m.seenLocked()
	r.metrics.inFlight.Sub(float64(len(landed)))
	if !m.waiting { // else it is called when there is something
		m.bell.ring()
	}
	return landed, stale
}

// Nack gives back for another attempt.
func (m *member) Nack(reason string, delay time.Duration, ids ...uint64) (stale int) {
	return len(m.nack(reason, delay, causeFailed, ids))
}

// Reject gives up.
func (m *member) Reject(reason string, ids ...uint64) (stale int) {
	return len(m.nack(reason, -1, causeRejected, ids))
}

// nack gives back for another attempt, or, where why is the last, for none.
func (m *member) nack(reason string, delay time.Duration, why cause, ids []uint64) (stale []uint64) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		it := r.landLocked(m, id, outcomeNack)
		if it == nil {
			stale = append(stale, id)
			continue
		}
		m.settlesLocked()
		r.metrics.nacked.Inc()
		r.remember(r.m.cfg.Facts.Now(), facts.Nacked, &it.msg, reason)
		r.failedLocked(it, reason, delay, why)
	}
	m.seenLocked()
	m.bell.ring()
	r.dispatchLocked()
	return stale
}

// lostReason is why an attempt failed whose member went without a word.
const lostReason = "the client's connection ended before the delivery was settled"

// Lost counts attempts, of what may be to blame alone: see suspects.go. Where nobody is
// left here who would know of them, the retry topic does; of what is in order nothing is
// parked, and the Manager remembers them.
func (m *member) Lost() {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	alone := m.out == 1
	for it := range r.flights.all() {
		if it.owner != m {
			continue
		}
		r.landLocked(m, it.id, outcomeLost)
		if !alone && !it.msg.suspect {
			it.msg.attempt-- // this one does not count
		}
		r.suspectLocked(it)
		delay := time.Duration(0)
		switch {
		case it.msg.attempt >= r.sub.MaxAttempts:
			delay = -1 // the schedule's, as after every last one
		case len(r.members) == 1:
			delay = max(backoff(r.sub, it.msg.attempt), inMemory+time.Millisecond)
		}
		r.failedLocked(it, lostReason, delay, causeLost)
	}
	r.dispatchLocked()
}

// MaxExtend bounds an extension, and MaxNackDelay the delay of a Nack that a client
// asks for.
const (
	MaxExtend    = time.Hour
	MaxNackDelay = 24 * time.Hour
)

// Extend restarts the ack time-out.
func (m *member) Extend(d time.Duration, ids ...uint64) (stale int) { return len(m.extend(d, ids)) }

func (m *member) extend(d time.Duration, ids []uint64) (stale []uint64) {
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if d <= 0 {
		d = r.sub.AckTimeout
	}
	now := time.Now()
	for _, id := range ids {
		it := r.flights.of(id)
		if it == nil || it.owner != m {
			stale = append(stale, id)
			r.metrics.stale.Inc()
			continue
		}
		m.settlesLocked()
		r.timers.set(it, now.Add(min(d, MaxExtend)))
	}
	m.seenLocked()
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
	r.ring++
	m.unwaitLocked()
	m.failLocked(err)
	for it := range r.flights.all() {
		if it.owner == m {
			if r.landLocked(m, it.id, outcomeReturned); it.pastLocked() {
				r.passLocked(it)
				continue
			}
			r.buffer = append(r.buffer, it)
		}
	}
	if r.over == nil {
		r.metrics.members.Dec()
	}
	r.dispatchLocked()
}
