package delivery

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store/position"
)

// runtime is one Subscription on this proxy, while it has members. Events are
// pulled: a source fetches only while a member waits, so nothing piles up.
//
// An event is in one place at a time: the buffer (fetched, nobody has it), in
// flight (a member has it), waiting (it is repeated from memory when it is due),
// being written (to the retry or dead-letter topic), or behind another one of its lane.
// Everywhere it is unsettled in its store, and everywhere but in the last place it
// counts against MaxInFlight.
type runtime struct {
	m       *Manager
	uid     string
	key     snapshot.Key
	metrics subMetrics
	wake    chan struct{} // wakes tend; capacity 1
	writers sync.WaitGroup
	slots   chan struct{} // bounds writes to retry and dead-letter topics
	writing int           // of them that are under way or wait; guarded by mu
	writes  *outage.Log   // of them

	mu       sync.Mutex
	sub      *snapshot.Subscription
	members  map[*member]struct{}
	waiters  []*member // that wait in Next, longest first
	sources  map[sourceKey]*source
	buffer   []*item
	flights  flights
	held     int // items, wherever they are
	bytes    int // and of their events
	timers   timers
	lanes    map[laneKey]*lane  // of keys whose events are here, with Ordered
	behind   backlog            // of what is not the first of its lane
	suspects int                // items that are, wherever they are; see suspects.go
	stuck    map[*item]struct{} // firsts of lanes whose attempts are over
	// unwritable counts items that neither the retry nor the dead-letter topic takes.
	unwritable int
	seed       maphash.Seed // of keys and members, see sticky.go
	ring       uint64       // counted up when other members are there
	there      []*member    // those that are, as of ring thereOf
	thereOf    uint64
	pace       *rate.Limiter // of deliveries; nil without a rate
	paced      bool          // members wait for pace alone: tend wakes them
	demand     chan struct{} // closed when a source may have something to do
	over       error         // why the runtime has ended
}

// maxWriters bounds concurrent writes to retry and dead-letter topics, a
// subscription.
const maxWriters = 16

// item is one event on this proxy.
type item struct {
	src *source
	msg message
	// owner is the member that has it; nil while nobody has.
	owner *member
	lane  *lane // nil where it is in no order, and once it has left it
	// unwritable is that neither the retry nor the dead-letter topic takes it.
	unwritable bool
	id         uint64
	given      time.Time  // when the owner got it
	told       facts.Ref  // that it did
	span       trace.Span // of the delivery in flight; nil without tracing
	// due is when it times out (in flight) or is repeated (waiting), while it is
	// among the timers.
	due        time.Time
	slot       int   // its place among them, see timers
	prev, next *item // its neighbours in their list
}

func newRuntime(m *Manager, sub *snapshot.Subscription) *runtime {
	writes := outage.New(m.cfg.Log.With("subscription", sub.Key), "events that failed cannot be written away; trying again", "events that failed are written away again")
	return &runtime{m: m, writes: writes, uid: sub.UID, key: sub.Key, sub: sub, metrics: m.metrics.of(sub.Namespace, sub.Name), wake: make(chan struct{}, 1),
		slots: make(chan struct{}, maxWriters), members: map[*member]struct{}{}, sources: map[sourceKey]*source{}, lanes: map[laneKey]*lane{}, stuck: map[*item]struct{}{}, seed: maphash.MakeSeed(), demand: make(chan struct{})}
}

// add makes mem a member.
func (r *runtime) add(mem *member) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.members) >= MaxMembers {
		return false
	}
	r.members[mem] = struct{}{}
	mem.cameLocked()
	r.metrics.members.Inc()
	return true
}

// retire ends a runtime that has no members, and writes nothing away. It reports whether
// it ended.
func (r *runtime) retire() bool {
	r.mu.Lock()
	n := len(r.members) + r.writing
	if n == 0 {
		r.m.tried.remember(r.uid, r.buffer)
		r.m.tried.remember(r.uid, r.timers.others)
	}
	r.mu.Unlock()
	if n == 0 {
		r.end(errDraining)
	}
	return n == 0
}

// end stops everything; members get err.
func (r *runtime) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		return
	}
	r.over = err
	r.m.held.drop(r.bytes)
	for mem := range r.members {
		mem.failLocked(err)
	}
	for k, s := range r.sources {
		s.cancel()
		delete(r.sources, k)
	}
	r.buffer, r.timers = nil, timers{}
	r.closeLanesLocked()
	r.metrics.inFlight.Sub(float64(r.flights.n))
	r.metrics.members.Sub(float64(len(r.members))) // who has not left yet is none any more
	r.metrics.oldest.Set(0)
	r.metrics.unwritable.Sub(float64(r.unwritable))
	for it := range r.flights.all() {
		it.end(outcomeReturned)
	}
	r.flights = flights{}
	r.demandLocked()
	r.poke()
}

func (r *runtime) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// demandLocked wakes sources that wait to fetch.
func (r *runtime) demandLocked() {
	close(r.demand)
	r.demand = make(chan struct{})
}

// follow brings the runtime up to a configuration.
func (r *runtime) follow(snap *snapshot.Snapshot, now time.Time) {
	sub := snap.Subscriptions[r.key]
	if sub == nil || sub.UID != r.uid {
		r.m.mu.Lock()
		if r.m.runtimes[r.uid] == r {
			delete(r.m.runtimes, r.uid)
		}
		r.m.mu.Unlock()
		r.end(fault.New(fault.NotFound, "delivery", "unknown-subscription", "Subscription %s was deleted", r.key.Name))
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		return
	}
	r.sub = sub
	for mem := range r.members {
		mem.checkLocked(snap, now)
	}
	r.sourcesLocked()
	r.pace = r.m.paceOf(sub)
	r.demandLocked() // there may be more room, or a higher rate
	r.dispatchLocked()
	r.poke()
}

// sourcesLocked starts and stops sources, so that there are those that are read now.
func (r *runtime) sourcesLocked() {
	want := map[sourceKey]*source{}
	for i := range r.sub.Sources {
		src := &r.sub.Sources[i]
		retry := &source{topic: src.RetryTopic, group: src.RetryGroup, retry: true, storeUID: src.Epoch.StoreUID, retryTopic: src.RetryTopic}
		want[retry.key()] = retry
		if r.turnLocked(src) {
			s := &source{name: src.Topic.Name, of: src.Topic, token: tokenOf(src), topic: src.Epoch.Physical, group: src.Group, ordered: r.sub.Ordered,
				storeUID: src.Epoch.StoreUID, retryTopic: src.RetryTopic}
			want[s.key()] = s
		}
	}
	for k, s := range r.sources {
		switch w := want[k]; {
		case w == nil || s.moved():
			s.drained = r.m.drains.has(s.drainKey())
			s.cancel()
			delete(r.sources, k)
			r.forgetLocked(s.lost)
		default:
			r.cutLocked(s, w.of)
		}
	}
	for k, s := range want {
		if r.sources[k] == nil {
			s.r = r
			ctx, cancel := context.WithCancel(context.Background())
			s.cancel = cancel
			r.sources[k] = s
			r.m.running.Go(func() { s.run(ctx) })
		}
	}
}

func tokenOf(src *snapshot.Source) position.Token {
	return position.Token{TopicUID: src.Topic.UID, Epoch: src.Epoch.Number}
}

// forgetLocked drops what is lost: of a source that has ended, or of a partition that
// it has lost. These events come again, here or elsewhere.
func (r *runtime) forgetLocked(lost func(*item) bool) {
	kept := r.buffer[:0]
	for _, it := range r.buffer {
		if lost(it) {
			r.dropLocked(it)
		} else {
			kept = append(kept, it)
		}
	}
	clear(r.buffer[len(kept):])
	r.buffer = kept
	for it := range r.flights.all() {
		if lost(it) {
			r.flights.drop(it)
			r.timers.drop(it)
			it.end(outcomeReturned)
			r.dropLocked(it)
			r.metrics.inFlight.Dec()
			it.owner.landedLocked(it)
			it.owner.bell.ring()
			it.owner = nil
		}
	}
	for _, it := range slices.Clone(r.timers.others) {
		if lost(it) { // it waited for another attempt
			r.timers.drop(it)
			r.dropLocked(it)
		}
	}
	r.forgetLanesLocked(lost)
	r.demandLocked()
	r.dispatchLocked()
}

// wantedLocked is how many events a source may fetch now.
func (r *runtime) wantedLocked() int {
	if r.crowdedLocked() {
		return 0
	}
	room := 0
	for _, w := range r.waiters {
		room += w.roomLocked()
	}
	offered := r.offeredLocked()
	n := min(room-offered, r.sub.MaxInFlight-(r.held-r.behind.events))
	if r.pace != nil {
		n = min(n, r.pace.Burst()-offered) // the rest is for other proxies
	}
	return n
}

// heldLocked counts an item.
func (r *runtime) heldLocked(it *item) {
	r.held++
	r.bytes += it.msg.stored.Held()
	r.m.held.add(it.msg.stored.Held())
	if it.msg.suspect {
		r.suspects++
	}
}

// dropLocked forgets an item.
func (r *runtime) dropLocked(it *item) {
	r.held--
	r.bytes -= it.msg.stored.Held()
	if r.over == nil {
		r.m.held.drop(it.msg.stored.Held())
		if it.unwritable {
			r.unwritable--
			r.metrics.unwritable.Dec()
		}
	}
	if it.msg.suspect {
		r.suspects--
	}
}

// offer takes what a source fetched.
func (r *runtime) offer(s *source, items []*item) {
	if past := r.offered(s, items); len(past) > 0 {
		s.settle(past)
	}
}

// offered is offer, and gives what does not count: the cut has come meanwhile.
func (r *runtime) offered(s *source, items []*item) (past []*item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil || r.sources[s.key()] != s {
		return nil // the source gives them back
	}
	for _, it := range items {
		if it.pastLocked() {
			past = append(past, it)
			continue
		}
		if s.holds(it) { // else it comes again
			r.heldLocked(it)
			r.enterLocked(it)
		}
	}
	r.dispatchLocked()
	return past
}

// dispatchLocked wakes waiting members while there is something for them.
func (r *runtime) dispatchLocked() {
	n := r.readyLocked(time.Now())
	if r.sub.Ordered {
		r.wakeOwnersLocked(n)
		return
	}
	for len(r.waiters) > 0 && n > 0 {
		w := r.waiters[0]
		r.waiters = r.waiters[1:]
		w.waiting = false
		if r.suspects == 0 { // else it may have to leave them to others
			n -= max(w.roomLocked(), 1)
		}
		w.bell.ring()
	}
}

// takeLocked gives mem up to n events of the buffer. While others wait, it takes
// its share and leaves them theirs.
func (r *runtime) takeLocked(mem *member, dst []Delivery) int {
	n := min(len(dst), mem.roomLocked(), len(r.buffer))
	if others := len(r.waiters); others > 0 {
		n = min(n, max(1, (len(r.buffer)+others)/(others+1)))
	}
	now := time.Now()
	if n = min(n, r.readyLocked(now)); n <= 0 {
		return 0
	}
	at, wall := r.m.cfg.Facts.Now(), r.m.cfg.Clock.Now()
	items := r.pickLocked(mem, n)
	if n = len(items); n == 0 {
		return 0
	}
	size := 0
	for i, it := range items {
		size += it.msg.stored.Size()
		r.flights.add(it)
		it.owner, it.given = mem, now
		it.begin(r, now)
		r.timers.add(it, now.Add(r.sub.AckTimeout))
		mem.gotLocked(it)
		if age, ok := it.age(wall); ok && it.msg.attempt == 1 {
			r.metrics.latency.Observe(age)
		}
		it.told = r.remember(at, facts.Delivered, &it.msg, "")
		dst[i] = Delivery{ID: it.id, Topic: it.msg.topic, Position: it.msg.token, Attempt: it.msg.attempt, Event: &it.msg.stored.Event, judged: it.msg.judged}
	}
	clear(items)
	if len(r.buffer) == 0 {
		r.buffer = nil
	}
	if r.pace != nil {
		r.pace.AllowN(now, n)
	}
	r.metrics.delivered.Add(float64(n))
	r.metrics.bytes.Add(float64(size))
	r.metrics.inFlight.Add(float64(n))
	r.poke()
	r.dispatchLocked()
	return n
}

// landLocked ends an item's flight with an outcome; nil where id is not mem's.
func (r *runtime) landLocked(mem *member, id uint64, outcome string) *item {
	it := r.takeOutLocked(mem, id, outcome)
	if it != nil {
		r.metrics.inFlight.Dec()
	}
	return it
}

// takeOutLocked is landLocked for many: who calls it counts what is in flight.
func (r *runtime) takeOutLocked(mem *member, id uint64, outcome string) *item {
	it := r.flights.of(id)
	if it == nil || it.owner != mem {
		r.metrics.stale.Inc()
		return nil
	}
	r.flights.drop(it)
	r.timers.drop(it)
	it.end(outcome)
	it.owner = nil
	mem.landedLocked(it)
	return it
}

// settle settles items in their stores, a topic after the other: mostly there is one. Where a
// store panics, which the proxy survives in a client's call, what it was not told of, or may
// not have taken, is given out again: nobody has it, and it holds up its key.
func (r *runtime) settle(items []*item) {
	done := 0
	defer func() { r.settled(items[:done], items[done:]) }()
	for done < len(items) {
		s, rest := items[done].src, items[done:]
		n := slices.IndexFunc(rest, func(it *item) bool { return it.src != s })
		if n < 0 {
			n = len(rest)
		}
		s.settle(rest[:n])
		done += n
	}
}

// settled is the end of settle: some are settled, the others are not.
func (r *runtime) settled(done, others []*item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, it := range others {
		switch {
		case r.goneLocked(it):
		case it.pastLocked():
			r.passLocked(it)
		default:
			r.buffer = append(r.buffer, it)
		}
	}
	r.doneLocked(done...)
}

// doneLocked drops items that are settled in their store; those after them in their
// lanes are next.
func (r *runtime) doneLocked(items ...*item) {
	for _, it := range items {
		r.dropLocked(it)
		r.leaveLocked(it)
	}
	r.demandLocked()
	r.dispatchLocked()
}

// tend fires what is due: time-outs and repeats.
func (r *runtime) tend() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, over := r.fire(time.Now())
		if over {
			r.writers.Wait()
			return
		}
		timer.Reset(next)
		select {
		case <-timer.C:
		case <-r.wake:
		}
	}
}

// fire handles what is due at now and tells how long to wait for the next.
func (r *runtime) fire(now time.Time) (next time.Duration, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil {
		return 0, true
	}
	for it := r.timers.first(); it != nil; it = r.timers.first() {
		if wait := it.due.Sub(now); wait > 0 {
			return r.paceLocked(now, r.absentLocked(now, wait)), false
		}
		if owner := it.owner; owner != nil {
			r.landLocked(owner, it.id, outcomeTimeout)
			r.metrics.timedOut.Inc()
			r.remember(r.m.cfg.Facts.Now(), facts.TimedOut, &it.msg, "")
			owner.doubtLocked()
			owner.bell.ring()
			r.failedLocked(it, "the delivery was not settled within the ack time-out", -1, causeTimeout)
			r.dispatchLocked()
			continue
		}
		r.timers.drop(it)
		if it.lane == nil {
			r.enterLocked(it) // it may have come too early to be in one
		} else {
			r.buffer = append(r.buffer, it)
		}
		r.dispatchLocked()
	}
	return r.paceLocked(now, r.absentLocked(now, time.Hour)), false
}
