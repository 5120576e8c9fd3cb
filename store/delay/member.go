package delay

import (
	"cmp"
	"container/heap"
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// follow is a member of a class's group until it cannot be read or, but for one that is
// always read, nothing waits there any more. What cannot be written is no reason to leave:
// others would be read again, and what is behind them never.
func (s *Store) follow(topic string, always bool, good func()) error {
	sub, err := s.inner.Subscribe(s.life, store.SubscribeRequest{Topic: topic, Group: topic})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), closeTimeout)
		defer cancel()
		if err := sub.Close(ctx); err != nil {
			s.cfg.Log.Warn("a group could not be left cleanly; some delayed events may come twice", "group", topic, "error", err)
		}
	}()
	m := newMember(s, sub)
	m.stays = always
	defer m.writes.Wait()
	for used := time.Now(); ; {
		if err := m.fetch(); err != nil {
			return err
		}
		good()
		m.release()
		switch {
		case m.n > 0:
			used = time.Now()
		case !always && time.Since(used) >= lookEvery:
			// Another member may hold what waits; one that ends leaves it to this one.
			if waits, err := s.waits(topic); err != nil || !waits {
				return err
			}
			used = time.Now()
		}
	}
}

// member holds what is parked until it is where it belongs. One goroutine fetches and
// releases; a write has one of its own, and no two of a lane are under way.
type member struct {
	s     *Store
	sub   store.Subscription
	held  byDue           // what is not due
	lanes map[lane]*queue // what is due, and who has failed lately
	stays bool            // also where nothing waits
	// n and bytes are of all that is here, on its way included; next is the number of the
	// next message.
	n, bytes int
	next     uint64

	writes sync.WaitGroup
	mu     sync.Mutex
	ended  []outcome
	wake   context.CancelFunc // of fetch
}

func newMember(s *Store, sub store.Subscription) *member {
	return &member{s: s, sub: sub, lanes: map[lane]*queue{}, wake: func() {}}
}

// parked is a message that waits.
type parked struct {
	msg   *store.Message
	to    string // the topic where it belongs
	due   time.Time
	n     uint64    // how many came before it
	since time.Time // when it could not be written first
	alone bool      // its topic has refused it for what it is
	why   error     // with alone, what the topic has just said
}

// lane is what is written together, and waits for the same.
type lane struct {
	kind  kind
	topic string
}

// kind is what is done with a message.
type kind uint8

const (
	written  kind = iota // to the topic where it belongs
	referred             // to somebody else, where the topic does not take it
	reparked             // behind others
)

// queue is of a lane.
type queue struct {
	due   []parked
	busy  bool          // a write is under way
	retry time.Duration // the pause after the next failure
	again time.Time     // not before
	since time.Time     // when it failed first; zero where it has not lately
	log   *outage.Log   // then
}

// outcome is of a write.
type outcome struct {
	lane
	took, left []parked
	err        error
}

// fetch waits until something is due, or comes, or a write has ended.
func (m *member) fetch() error {
	if m.full() {
		m.forget()
	}
	ctx, cancel := context.WithCancel(m.s.life)
	defer cancel()
	if d, ok := m.until(); ok {
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	m.mu.Lock()
	if m.wake = cancel; len(m.ended) > 0 {
		cancel()
	}
	m.mu.Unlock()
	if m.full() {
		<-ctx.Done()
		return m.s.life.Err()
	}
	msgs := make([]store.Message, min(maxFetch, maxHeld-m.n))
	n, err := m.sub.Fetch(ctx, msgs)
	if err != nil && ctx.Err() != nil {
		return m.s.life.Err() // there is something to do
	}
	for i := range msgs[:n] {
		p := parked{msg: &msgs[i], n: m.next}
		p.to, _ = event.Lookup(p.msg.Mesh, headerTopic)
		at, _ := event.Lookup(p.msg.Mesh, headerDue)
		if v, err := strconv.ParseInt(at, 10, 64); err == nil {
			p.due = time.Unix(0, v)
		}
		heap.Push(&m.held, p)
		m.next++
		m.n++
		m.bytes += p.msg.Held()
	}
	return err
}

// until is how long nothing is to be done, as long as the clock goes on as it does.
func (m *member) until() (d time.Duration, ok bool) {
	if len(m.held) > 0 {
		d, ok = min(m.held[0].due.Sub(m.s.clock.Now()), lookAgain), true
	}
	if m.n == 0 && !m.stays {
		d, ok = lookEvery, true
	}
	for _, q := range m.lanes {
		if in := time.Until(q.again); !q.busy && len(q.due) > 0 && (!ok || in < d) {
			d, ok = in, true
		}
	}
	return max(d, 0), ok
}

func (m *member) full() bool { return m.n >= maxHeld || m.bytes >= maxBytes }

// forget drops what came from partitions that this member has lost: it comes again, to
// whoever has them now.
func (m *member) forget() {
	m.held = m.ours(m.held)
	heap.Init(&m.held)
	for _, q := range m.lanes {
		q.due = m.ours(q.due)
	}
}

// ours are those that are still this member's to write.
func (m *member) ours(all []parked) []parked {
	return slices.DeleteFunc(all, func(p parked) bool {
		lost := !m.sub.Holds(p.msg)
		if lost {
			m.n--
			m.bytes -= p.msg.Held()
		}
		return lost
	})
}

// release has what is due written where it belongs.
func (m *member) release() {
	m.collect()
	now := m.s.clock.Now()
	for len(m.held) > 0 && !m.held[0].due.After(now) {
		m.put(heap.Pop(&m.held).(parked))
	}
	for l, q := range m.lanes {
		if !q.busy && len(q.due) > 0 && time.Until(q.again) <= 0 {
			m.start(l, q)
		}
		if !q.busy && len(q.due) == 0 && (q.log == nil || time.Since(q.again) > goneUnless) {
			delete(m.lanes, l)
		}
	}
}

// put puts a message that is due into its lane.
func (m *member) put(p parked) {
	l := lane{written, p.to}
	if p.alone {
		l.kind = referred
	}
	m.queue(l).due = append(m.queue(l).due, p)
}

func (m *member) queue(l lane) *queue {
	q := m.lanes[l]
	if q == nil {
		q = &queue{retry: minRetry}
		m.lanes[l] = q
	}
	return q
}

// start begins a write. Of those that are tried one by one it has some.
func (m *member) start(l lane, q *queue) {
	q.due = m.ours(q.due)
	n := len(q.due)
	if l.kind == referred {
		n = min(n, maxFetch)
	}
	if n == 0 {
		return
	}
	took := slices.Clone(q.due[:n])
	q.due, q.busy = slices.Delete(q.due, 0, n), true
	m.writes.Go(func() {
		o := outcome{lane: l, took: took}
		switch l.kind {
		case written:
			o.left, o.err = m.write(l.topic, took)
		case referred:
			o.left, o.err = m.refer(l.topic, took)
		case reparked:
			o.left, o.err = m.park(took)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ended = append(m.ended, o)
		m.wake()
	})
}

// collect takes back what writes have left.
func (m *member) collect() {
	m.mu.Lock()
	ended := m.ended
	m.ended = nil
	m.mu.Unlock()
	for _, o := range ended {
		q := m.queue(o.lane)
		q.busy = false
		m.tell(o.lane, q, o.err)
		for _, p := range o.took {
			m.n--
			m.bytes -= p.msg.Held()
		}
		for _, p := range o.left {
			m.n++
			m.bytes += p.msg.Held()
		}
		// Whether it is full is asked with all of them.
		for _, p := range o.left {
			if p.since.IsZero() {
				p.since = time.Now()
			}
			if o.kind != reparked && o.err != nil && m.inTheWay(p, q) {
				l := lane{reparked, m.s.topic(1)}
				m.queue(l).due = append(m.queue(l).due, p)
				continue
			}
			m.put(p)
		}
	}
}

// tell counts how a write of a lane went.
func (m *member) tell(l lane, q *queue, err error) {
	if err == nil {
		if q.log != nil {
			q.log.Is(nil)
		}
		*q = queue{due: q.due, retry: minRetry}
		return
	}
	q.again = time.Now().Add(q.retry/2 + rand.N(q.retry))
	q.retry = min(2*q.retry, maxRetry)
	if q.log == nil {
		q.since = time.Now()
		q.log = outage.New(m.s.cfg.Log.With("topic", l.topic), l.kind.failing(), "delayed events are written again")
	}
	if m.s.life.Err() == nil {
		q.log.Is(err)
	}
}

func (k kind) failing() string {
	switch k {
	case referred:
		return "delayed events are refused by their topic and go nowhere else; trying again"
	case reparked:
		return "delayed events that cannot be written cannot be put behind others; trying again"
	}
	return "delayed events cannot be written to their topic; trying again"
}

// inTheWay reports whether a message of a lane that fails keeps others from being read, or
// soon will: the store delivers no more than a window behind it.
func (m *member) inTheWay(p parked, q *queue) bool {
	half := uint64(min(cmp.Or(m.s.cfg.Window, maxHeld), maxHeld) / 2) //nolint:gosec // not negative
	return time.Since(p.since) >= maxFailing || time.Since(q.since) >= minFailing && (m.full() || m.next-p.n >= half)
}

// byDue is a heap, the first that is due first.
type byDue []parked

func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byDue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byDue) Push(x any)        { *h = append(*h, x.(parked)) }
func (h *byDue) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = parked{}
	*h = old[:len(old)-1]
	return last
}
