package delivery

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/position"
)

// runtime is one Subscription on this proxy, while it has members. Events are
// pulled: a source fetches only while a member waits, so nothing piles up.
//
// An event is in one place at a time: the buffer (fetched, nobody has it), in
// flight (a member has it), waiting (it is repeated from memory when it is due),
// or being written (to the retry or dead-letter topic). Everywhere it is
// unsettled in its store, and counts against MaxInFlight.
type runtime struct {
	m       *Manager
	uid     string
	key     snapshot.Key
	metrics subMetrics
	wake    chan struct{} // wakes tend; capacity 1
	writers sync.WaitGroup
	slots   chan struct{} // bounds writes to retry and dead-letter topics

	mu      sync.Mutex
	sub     *snapshot.Subscription
	members map[*member]struct{}
	waiters []*member // that wait in Next, longest first
	sources map[sourceKey]*source
	buffer  []*item
	flights map[uint64]*item
	held    int // items, wherever they are
	lastID  uint64
	timers  timers
	demand  chan struct{} // closed when a source may have something to do
	over    error         // why the runtime has ended
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
	id    uint64
	given time.Time  // when the owner got it
	span  trace.Span // of the delivery in flight; nil without tracing
	// due is when it times out (in flight) or is repeated (waiting), while it is
	// among the timers.
	due  time.Time
	slot int // its place there, counted from 1; 0 while it is not there
}

func newRuntime(m *Manager, sub *snapshot.Subscription) *runtime {
	return &runtime{m: m, uid: sub.UID, key: sub.Key, sub: sub, metrics: m.metrics.of(sub.Namespace, sub.Name), wake: make(chan struct{}, 1),
		slots: make(chan struct{}, maxWriters), members: map[*member]struct{}{}, sources: map[sourceKey]*source{}, flights: map[uint64]*item{}, demand: make(chan struct{})}
}

// add makes mem a member.
func (r *runtime) add(mem *member) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.members) >= MaxMembers {
		return false
	}
	r.members[mem] = struct{}{}
	r.metrics.members.Set(float64(len(r.members)))
	return true
}

// retire ends a runtime that has no members. It reports whether it ended.
func (r *runtime) retire() bool {
	r.mu.Lock()
	n := len(r.members)
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
	for mem := range r.members {
		mem.failLocked(err)
	}
	for k, s := range r.sources {
		s.cancel()
		delete(r.sources, k)
	}
	r.buffer, r.timers = nil, nil
	r.metrics.inFlight.Sub(float64(len(r.flights)))
	for _, it := range r.flights {
		it.end(outcomeReturned)
	}
	clear(r.flights)
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
	want := map[sourceKey]*source{}
	for i := range sub.Sources {
		src := &sub.Sources[i]
		for _, s := range []*source{{name: src.Topic.Name, token: tokenOf(src), topic: src.Epoch.Physical, group: src.Group},
			{topic: src.RetryTopic, group: src.RetryGroup, retry: true}} {
			s.storeUID = src.Epoch.StoreUID
			s.retryTopic = src.RetryTopic
			want[s.key()] = s
		}
	}
	for k, s := range r.sources {
		if want[k] == nil || s.moved() {
			s.cancel()
			delete(r.sources, k)
			r.forgetLocked(s)
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

// expire judges again the members whose credentials have expired.
func (r *runtime) expire(snap *snapshot.Snapshot, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for mem := range r.members {
		if mem.who != nil && mem.who.Expired(now) {
			mem.checkLocked(snap, now)
		}
	}
}

func tokenOf(src *snapshot.Source) position.Token {
	return position.Token{TopicUID: src.Topic.UID, Epoch: src.Epoch.Number}
}

// forgetLocked drops what came from a source that has ended: its events come
// again.
func (r *runtime) forgetLocked(s *source) {
	kept := r.buffer[:0]
	for _, it := range r.buffer {
		if it.src == s {
			r.held--
		} else {
			kept = append(kept, it)
		}
	}
	clear(r.buffer[len(kept):])
	r.buffer = kept
	for id, it := range r.flights {
		if it.src == s {
			delete(r.flights, id)
			r.timers.drop(it)
			it.end(outcomeReturned)
			r.held--
			r.metrics.inFlight.Dec()
			it.owner.out--
			it.owner.pokeLocked()
			it.owner = nil
		}
	}
	for _, it := range slices.Clone(r.timers) {
		if it.src == s { // it waited for another attempt
			r.timers.drop(it)
			r.held--
		}
	}
	r.demandLocked()
}

// wantedLocked is how many events a source may fetch now.
func (r *runtime) wantedLocked() int {
	room := 0
	for _, w := range r.waiters {
		room += w.roomLocked()
	}
	return min(room-len(r.buffer), r.sub.MaxInFlight-r.held)
}

// offer takes what a source fetched.
func (r *runtime) offer(s *source, msgs []message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over != nil || r.sources[s.key()] != s {
		return // the source gives them back
	}
	for _, m := range msgs {
		r.held++
		r.buffer = append(r.buffer, &item{src: s, msg: m})
	}
	r.dispatchLocked()
}

// dispatchLocked wakes waiting members while there is something for them.
func (r *runtime) dispatchLocked() {
	n := len(r.buffer)
	for len(r.waiters) > 0 && n > 0 {
		w := r.waiters[0]
		r.waiters = r.waiters[1:]
		w.waiting = false
		n -= max(w.roomLocked(), 1)
		w.pokeLocked()
	}
}

// takeLocked gives mem up to n events of the buffer. While others wait, it takes
// its share and leaves them theirs.
func (r *runtime) takeLocked(mem *member, dst []Delivery) int {
	n := min(len(dst), mem.roomLocked(), len(r.buffer))
	if others := len(r.waiters); others > 0 {
		n = min(n, max(1, (len(r.buffer)+others)/(others+1)))
	}
	if n <= 0 {
		return 0
	}
	now := time.Now()
	size := 0
	for i, it := range r.buffer[:n] {
		size += it.msg.stored.Size()
		r.lastID++
		it.id, it.owner, it.given = r.lastID, mem, now
		it.begin(r, now)
		r.flights[it.id] = it
		r.timers.set(it, now.Add(r.sub.AckTimeout))
		mem.out++
		dst[i] = Delivery{ID: it.id, Topic: it.msg.topic, Position: it.msg.token, Attempt: it.msg.attempt, Event: &it.msg.stored.Event}
	}
	clear(r.buffer[:n])
	if r.buffer = r.buffer[n:]; len(r.buffer) == 0 {
		r.buffer = nil
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
	it := r.flights[id]
	if it == nil || it.owner != mem {
		r.metrics.stale.Inc()
		return nil
	}
	delete(r.flights, id)
	r.timers.drop(it)
	it.end(outcome)
	it.owner = nil
	mem.out--
	r.metrics.inFlight.Dec()
	return it
}

// doneLocked drops items that are settled in their store.
func (r *runtime) doneLocked(n int) {
	r.held -= n
	r.demandLocked()
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
	for len(r.timers) > 0 {
		it := r.timers[0]
		if wait := it.due.Sub(now); wait > 0 {
			return wait, false
		}
		if owner := it.owner; owner != nil {
			r.landLocked(owner, it.id, outcomeTimeout)
			r.metrics.timedOut.Inc()
			owner.pokeLocked()
			r.failedLocked(it, "the delivery was not settled within the ack time-out", -1)
			continue
		}
		r.timers.drop(it)
		r.buffer = append(r.buffer, it)
		r.dispatchLocked()
	}
	return time.Hour, false
}

// timers is a heap by time. An item is in it once and is taken out when it is
// settled, so that it keeps no event that is done with.
type timers []*item

// set puts it in, or moves it, to be due then.
func (t *timers) set(it *item, due time.Time) {
	if it.due = due; it.slot == 0 {
		heap.Push(t, it)
	} else {
		heap.Fix(t, it.slot-1)
	}
}

// drop takes it out, if it is in.
func (t *timers) drop(it *item) {
	if it.slot != 0 {
		heap.Remove(t, it.slot-1)
	}
}

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].due.Before(t[j].due) }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].slot, t[j].slot = i+1, j+1
}

func (t *timers) Push(x any) {
	it := x.(*item)
	*t = append(*t, it)
	it.slot = len(*t)
}

func (t *timers) Pop() any {
	last := len(*t) - 1
	it := (*t)[last]
	(*t)[last] = nil
	*t = (*t)[:last]
	it.slot = 0
	return it
}
