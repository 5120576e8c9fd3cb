package delivery

import (
	"context"
	"slices"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Bounds of pulling.
const (
	// MaxPull is the most events of one answer, MaxPullWait the longest wait for
	// the first of them, and MaxSettle the most deliveries settled by one call.
	MaxPull     = 1000
	MaxPullWait = time.Minute
	MaxSettle   = 1000
	// DefaultPull and DefaultPullWait are what a client gets that does not say.
	DefaultPull     = 1
	DefaultPullWait = 10 * time.Second
	// maxPullBytes is what an answer has of events, in bytes, but for one event.
	maxPullBytes = 2 << 20
	// maxPullSessions and maxPullCalls bound the clients that pull from this proxy,
	// and their calls that wait.
	maxPullSessions = 10000
	maxPullCalls    = 10000
	// pullLease is how long a client that does not call is still a member. Its
	// share of the store's partitions is nobody else's until then.
	pullLease = 30 * time.Second
)

// PullRequest says what a client wants.
type PullRequest struct {
	// Max is the most events, 1 to MaxPull.
	Max int
	// Wait is the longest wait for the first one, 0 to MaxPullWait. Events are
	// fetched while somebody waits, so without a wait there is rarely anything.
	Wait time.Duration
}

// Pulled is what a client gets.
type Pulled struct {
	Deliveries []Delivery
	// Handles name the deliveries for Settle, one each.
	Handles []string
	// AckTimeout is within when they are to be settled.
	AckTimeout time.Duration

	mem *member
}

// Return gives the deliveries to whoever is next, without counting an attempt: the client
// did not get them.
func (p *Pulled) Return() {
	if p.mem != nil {
		p.mem.giveBack(idsOfDeliveries(p.Deliveries)...)
	}
}

// Settlement says what became of deliveries. All handles together are at most
// MaxSettle.
type Settlement struct {
	// Ack are done.
	Ack []string
	// Nack failed and Extend take longer, as Member has it.
	Nack   []Nack
	Extend []Extension
}

// Len is how many deliveries it is about.
func (x *Settlement) Len() int {
	n := len(x.Ack)
	for i := range x.Nack {
		n += len(x.Nack[i].Handles)
	}
	for i := range x.Extend {
		n += len(x.Extend[i].Handles)
	}
	return n
}

// Nack gives deliveries back for another attempt.
type Nack struct {
	Handles []string
	Reason  string
	// Delay is negative for the Subscription's schedule.
	Delay time.Duration
}

// Extension restarts the ack time-out of deliveries.
type Extension struct {
	Handles []string
	// Timeout is 0 for the Subscription's.
	Timeout time.Duration
}

// Unsettled is a delivery that could not be settled, and why.
type Unsettled struct {
	Handle string
	Err    error
}

// pullSession is a principal that pulls a Subscription: one member, shared by
// its calls. No connection tells when it leaves; a lease does.
type pullSession struct {
	key  pullKey
	tag  handleTag
	mem  *member
	turn chan struct{} // capacity 1: whose call may wait in mem.Next

	// Guarded by Manager.mu.
	calls int       // in progress
	last  time.Time // when one ended last
}

// pullKey is who pulls what. Handles of others name nothing here.
type pullKey struct{ who, sub string }

// Pull takes events of a Subscription for a client that asks for them call by
// call. They are the principal's until it settles them or their ack time-out
// passes. It waits until there is an event, and gives none when the wait is over.
func (m *Manager) Pull(ctx context.Context, who *policy.Principal, namespace, name string, r PullRequest) (Pulled, error) {
	const op = "delivery.pull"
	if r.Max < 1 || r.Max > MaxPull || r.Wait < 0 || r.Wait > MaxPullWait {
		return Pulled{}, fault.New(fault.Invalid, op, "bad-pull", "a pull is for 1 to %d events and waits 0s to %s", MaxPull, duration.Text(MaxPullWait))
	}
	key := snapshot.Key{Namespace: namespace, Name: name}
	if who.Expires != 0 { // it waits for nothing that it may not have any more
		r.Wait = max(0, min(r.Wait, time.Unix(0, who.Expires).Sub(m.cfg.Clock.Now())))
	}
	wait, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	for {
		p, over, err := m.pull(wait, who, key, r.Max)
		switch {
		case err != nil:
			return Pulled{}, err
		case over:
			// Whether that is for the caller, the next one tells.
		case ctx.Err() != nil: // nobody is there for them
			p.Return()
			return Pulled{}, fault.From(ctx.Err())
		default:
			return p, nil
		}
	}
}

// pull is one call of a session; over is that the session has ended meanwhile.
func (m *Manager) pull(wait context.Context, who *policy.Principal, key snapshot.Key, most int) (_ Pulled, over bool, _ error) {
	s, err := m.enter(who, key)
	if err != nil {
		return Pulled{}, false, err
	}
	defer m.leave(s)
	got, err := s.pull(wait, most)
	if err != nil && wait.Err() == nil {
		return Pulled{}, true, nil
	}
	// It may have waited long: who may not have the events gets none.
	if _, err := m.judge(m.cfg.Snapshots.Get(), who, key); err != nil {
		s.mem.giveBack(idsOfDeliveries(got)...)
		return Pulled{}, false, err
	}
	return Pulled{Deliveries: got, AckTimeout: s.mem.AckTimeout(), Handles: s.handles(m.cfg.NodeID, got), mem: s.mem}, false, nil
}

// enter begins a call of a session that is there or begins.
func (m *Manager) enter(who *policy.Principal, key snapshot.Key) (*pullSession, error) {
	const op = "delivery.pull"
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := m.cfg.Snapshots.Get()
	who, err := m.judge(snap, who, key)
	if err != nil {
		return nil, err
	}
	if m.pullCalls >= maxPullCalls {
		return nil, fault.New(fault.Throttled, op, "too-many-pulls", "%d pulls wait on this proxy", maxPullCalls)
	}
	var s *pullSession
	if sub := snap.Subscriptions[key]; sub != nil {
		s = m.pulls[pullKey{who.String(), sub.UID}]
	}
	if s != nil && !s.mem.renew(who) {
		m.forgetPull(s)
		s = nil
	}
	if s == nil {
		if len(m.pulls) >= maxPullSessions {
			return nil, fault.New(fault.Throttled, op, "too-many-pulls", "%d clients pull from this proxy", maxPullSessions)
		}
		mem, err := m.joinLocked(snap, who, key, true)
		if err != nil {
			return nil, err
		}
		s = &pullSession{key: pullKey{who.String(), mem.r.uid}, tag: newHandleTag(), mem: mem, turn: make(chan struct{}, 1)}
		m.pulls[s.key] = s
		m.metrics.pullSessions.Inc()
	}
	s.calls++
	m.pullCalls++
	m.metrics.pullsWaiting.Inc()
	return s, nil
}

// leave ends a call.
func (m *Manager) leave(s *pullSession) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.calls--
	s.last = time.Now()
	m.pullCalls--
	m.metrics.pullsWaiting.Dec()
}

// forgetPull forgets a session, whose member has ended or does now. Manager.mu is
// held.
func (m *Manager) forgetPull(s *pullSession) {
	if m.pulls[s.key] == s {
		delete(m.pulls, s.key)
		m.metrics.pullSessions.Dec()
	}
}

// judge is the principal by a configuration, if it may pull by that.
func (m *Manager) judge(snap *snapshot.Snapshot, who *policy.Principal, key snapshot.Key) (*policy.Principal, error) {
	who, err := refreshed(snap, who, m.cfg.Clock.Now())
	if err != nil {
		return nil, err
	}
	return who, mayConsume(snap, who, key.Namespace, key.Name)
}

// expirePulls ends the sessions whose lease is over: nobody has called for a
// while, and nothing is out.
func (m *Manager) expirePulls() {
	var over []*pullSession
	m.mu.Lock()
	for _, s := range m.pulls {
		if s.calls == 0 && time.Since(s.last) >= pullLease && s.mem.idle() {
			m.forgetPull(s)
			over = append(over, s)
		}
	}
	m.mu.Unlock()
	for _, s := range over {
		s.mem.Close()
	}
}

// pull takes what one call gets. Calls of one session wait in turns.
func (s *pullSession) pull(ctx context.Context, most int) ([]Delivery, error) {
	select {
	case s.turn <- struct{}{}:
	default:
		select {
		case s.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, fault.From(ctx.Err())
		}
	}
	defer func() { <-s.turn }()
	// A call that waits has no memory for what may never come.
	s.mem.setRoom(most)
	defer s.mem.setRoom(0)
	var first [1]Delivery
	if _, err := s.mem.Next(ctx, first[:]); err != nil {
		return nil, err
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	got := make([]Delivery, most)
	got[0] = first[0]
	n, _ := s.mem.Next(now, got[1:]) // what is there already, if anything
	got = got[:1+n]
	size, fit := 0, 0
	for fit < len(got) && (fit == 0 || size+got[fit].Event.Size() <= maxPullBytes) {
		size += got[fit].Event.Size()
		fit++
	}
	s.mem.giveBack(idsOfDeliveries(got[fit:])...)
	return slices.Clip(got[:fit]), nil
}

// Settle settles what Pull gave to the same principal from the same
// Subscription. The error is of the call as a whole; what could not be settled by
// itself is in unsettled.
func (m *Manager) Settle(_ context.Context, who *policy.Principal, namespace, name string, x Settlement) (unsettled []Unsettled, err error) {
	const op = "delivery.settle"
	n := x.Len()
	if n == 0 || n > MaxSettle {
		return nil, fault.New(fault.Invalid, op, "bad-settlement", "one call settles 1 to %d deliveries, this one has %d", MaxSettle, n)
	}
	snap := m.cfg.Snapshots.Get()
	if _, err := m.judge(snap, who, snapshot.Key{Namespace: namespace, Name: name}); err != nil {
		return nil, err
	}
	sub := snap.Subscriptions[snapshot.Key{Namespace: namespace, Name: name}]
	if sub == nil {
		return nil, unknownSubscription(namespace, name)
	}
	m.mu.Lock()
	s := m.pulls[pullKey{who.String(), sub.UID}]
	m.mu.Unlock()
	// each does f with those of handles that are of this session.
	each := func(handles []string, f func(mem *member, ids []uint64) (stale []uint64)) {
		ids, of := make([]uint64, 0, len(handles)), make(map[uint64]string, len(handles))
		for _, text := range handles {
			h, herr := parseHandle(text)
			switch {
			case herr != nil:
				unsettled = append(unsettled, Unsettled{text, herr})
			case h.node != m.cfg.NodeID:
				unsettled = append(unsettled, Unsettled{text, elsewhere(h.node)})
			case s == nil || h.tag != s.tag:
				unsettled = append(unsettled, Unsettled{text, errOver})
			default:
				if _, twice := of[h.id]; !twice {
					ids = append(ids, h.id)
				}
				of[h.id] = text
			}
		}
		if len(ids) == 0 {
			return
		}
		for _, id := range f(s.mem, ids) {
			unsettled = append(unsettled, Unsettled{of[id], errOver})
		}
	}
	each(x.Ack, (*member).ack)
	for _, k := range x.Nack {
		each(k.Handles, func(mem *member, ids []uint64) []uint64 { return mem.nack(k.Reason, k.Delay, causeFailed, ids) })
	}
	for _, e := range x.Extend {
		each(e.Handles, func(mem *member, ids []uint64) []uint64 { return mem.extend(e.Timeout, ids) })
	}
	return unsettled, nil
}

func idsOfDeliveries(ds []Delivery) []uint64 {
	out := make([]uint64, len(ds))
	for i := range ds {
		out[i] = ds[i].ID
	}
	return out
}

// Of members that pull.

// renew lets the member go on as who is now; false where it has ended.
func (m *member) renew(who *policy.Principal) bool {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	if m.err != nil {
		return false
	}
	m.who = who
	return true
}

// setRoom sets how many more deliveries it may get.
func (m *member) setRoom(n int) {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	m.credit = min(m.out+n, maxCredit)
}

// idle reports whether nothing of the member is out, or it has ended.
func (m *member) idle() bool {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	return m.out == 0 || m.err != nil
}

// giveBack gives deliveries to whoever is next, without counting an attempt.
func (m *member) giveBack(ids ...uint64) {
	if len(ids) == 0 {
		return
	}
	r := m.r
	r.mu.Lock()
	defer r.mu.Unlock()
	var back []*item
	for _, id := range ids {
		switch it := r.landLocked(m, id, outcomeReturned); {
		case it == nil:
		case it.pastLocked():
			r.passLocked(it)
		default:
			back = append(back, it)
		}
	}
	r.buffer = slices.Insert(r.buffer, 0, back...)
	r.dispatchLocked()
}
