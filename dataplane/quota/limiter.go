package quota

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Limits of a quota, as they stand in metrics and refusals.
const (
	limitEvents      = "events"
	limitBytes       = "bytes"
	limitInFlight    = "in_flight"
	limitConnections = "connections"
)

// Limiter has what was used. It is safe for concurrent use.
type Limiter struct {
	start   time.Time // times are counted from here, by the monotonic clock
	seed    maphash.Seed
	shards  [shards]shard
	open    sessions
	metrics metrics
}

// Bounds of what is kept: the use of one key in one entry. What is not used any
// more is forgotten, which changes nothing.
const (
	shards   = 64
	minSweep = 64   // entries of a shard, above which it is swept
	maxShard = 4096 // and the most that it has
)

type shard struct {
	mu      sync.Mutex
	entries map[key]*entry
	sweep   int // at how many entries it is swept next
}

// entry is the use of one key. Each time is when a rate would be used up no more
// (a generic cell rate algorithm): it knows of no rate, so that a changed Quota
// goes on with it.
type entry struct {
	events, bytes time.Duration
	inFlight      int64
}

func (e *entry) idle(now time.Duration) bool {
	return e.inFlight == 0 && max(e.events, e.bytes) <= now
}

// New makes a Limiter, whose metrics are registered with reg unless it is nil. now gives the
// Quotas of the configuration, which may be nil: the metrics are of those.
func New(reg prometheus.Registerer, now func() *Rules) *Limiter {
	l := &Limiter{start: time.Now(), seed: maphash.MakeSeed(), open: newSessions()}
	for i := range l.shards {
		l.shards[i] = shard{entries: map[key]*entry{}, sweep: minSweep}
	}
	l.metrics = newMetrics(reg, l, now)
	return l
}

func (l *Limiter) now() time.Duration { return time.Since(l.start) }

// with calls f with the entry of a key, under the lock of its shard; false where
// there is no room for another one.
func (l *Limiter) with(k key, now time.Duration, f func(*entry)) bool {
	e, s := l.lock(k, now)
	if e == nil {
		return false
	}
	f(e)
	s.mu.Unlock()
	return true
}

// lock finds the entry of a key and leaves its shard locked; nil, and nothing
// locked, where there is no room for another one.
func (l *Limiter) lock(k key, now time.Duration) (*entry, *shard) {
	s := &l.shards[maphash.Comparable(l.seed, k)%shards]
	s.mu.Lock()
	e := s.entries[k]
	if e != nil {
		return e, s
	}
	if len(s.entries) >= s.sweep {
		for k, e := range s.entries {
			if e.idle(now) {
				delete(s.entries, k)
			}
		}
		s.sweep = min(max(2*len(s.entries), minSweep), maxShard)
	}
	if len(s.entries) >= maxShard {
		s.mu.Unlock()
		return nil, nil
	}
	e = &entry{}
	s.entries[k] = e
	return e, s
}

// held is how many entries there are.
func (l *Limiter) held() int {
	n := 0
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += len(s.entries)
		s.mu.Unlock()
	}
	return n
}

// Held is a publish that counts as in flight.
type Held struct {
	l      *Limiter
	rules  []*Rule
	who    *policy.Principal
	topic  string
	events int64
	// uncounted are the shadowed ones that had no room to count it.
	uncounted []*Rule
}

// Publish takes events, of size bytes, of one publish to a topic from what rules,
// which are Rules.Publishing of the topic, leave. The error is Throttled, with
// when to try again, or TooLarge where it can never pass; then nothing was taken.
// Else Release follows.
func (l *Limiter) Publish(rules []*Rule, who *policy.Principal, topic string, events int, size int64) (Held, error) {
	if len(rules) == 0 {
		return Held{}, nil
	}
	now := l.now()
	h := Held{l: l, rules: rules, who: who, topic: topic, events: int64(events)}
	for i, r := range rules {
		if !r.selects(who) {
			continue
		}
		err := l.take(r, r.key(who, topic), now, int64(events), size)
		switch {
		case err == nil:
			continue
		case r.shadow: // it has no room to count, and refuses nothing
			h.uncounted = append(h.uncounted, r)
			continue
		}
		for _, before := range rules[:i] {
			if before.selects(who) {
				l.undo(before, before.key(who, topic), now, int64(events), size)
			}
		}
		return Held{}, err
	}
	return h, nil
}

// take takes from one quota; where it is shadowed, what does not pass is counted
// and takes nothing but its place in flight, and the error can only be errFull.
func (l *Limiter) take(r *Rule, k key, now time.Duration, events, size int64) error {
	costEvents, costBytes := r.publish.costs(events, size)
	e, s := l.lock(k, now)
	if e == nil {
		return errFull
	}
	limit, wait := "", time.Duration(0)
	switch eventsTo, bytesTo := max(e.events, now)+costEvents, max(e.bytes, now)+costBytes; {
	case costEvents > 0 && eventsTo-now > r.burst:
		limit, wait = limitEvents, eventsTo-now-r.burst
	case costBytes > 0 && bytesTo-now > r.burst:
		limit, wait = limitBytes, bytesTo-now-r.burst
	case r.inFlight > 0 && e.inFlight+events > r.inFlight:
		limit, wait = limitInFlight, retryCount
	}
	if limit == "" || r.shadow {
		if r.inFlight > 0 {
			e.inFlight += events
		}
	}
	if limit == "" {
		if costEvents > 0 {
			e.events = max(e.events, now) + costEvents
		}
		if costBytes > 0 {
			e.bytes = max(e.bytes, now) + costBytes
		}
	}
	s.mu.Unlock()
	if limit == "" {
		return nil
	}
	l.metrics.over(r, limit)
	if r.shadow {
		return nil
	}
	return r.refusal(limit, wait, events, size, costEvents, costBytes)
}

// undo gives back what take took, since another quota refused. That one was not
// shadowed, so neither is this one, which has taken all then.
func (l *Limiter) undo(r *Rule, k key, now time.Duration, events, size int64) {
	costEvents, costBytes := r.publish.costs(events, size)
	l.with(k, now, func(e *entry) {
		e.events, e.bytes = e.events-costEvents, e.bytes-costBytes
		if r.inFlight > 0 {
			e.inFlight -= events
		}
	})
}

// costs are the times for which events and bytes use the rates up; 0 where there
// is no bound.
func (r rates) costs(events, size int64) (time.Duration, time.Duration) {
	var e, b time.Duration
	if r.events > 0 {
		e = cost(events, r.events)
	}
	if r.bytes > 0 {
		b = cost(size, r.bytes)
	}
	return e, b
}

// Release ends a publish that was in flight. The zero Held has nothing to end.
func (h Held) Release() {
	for _, r := range h.rules {
		if r.inFlight > 0 && r.selects(h.who) && !slices.Contains(h.uncounted, r) {
			h.l.with(r.key(h.who, h.topic), h.l.now(), func(e *entry) { e.inFlight -= h.events })
		}
	}
}

// retryCount is when to try again what waits for others to end.
const retryCount = 200 * time.Millisecond

// errFull: there are too many principals or topics that quotas are counted for.
var errFull = &fault.Error{Class: fault.Throttled, Op: "quota", Reason: "proxy-full", RetryAfter: time.Second,
	Msg: "the proxy counts the quotas of as many clients as it may; nothing was published"}

// Exceeded and TooMuch are the reasons of refusals: try again later, and never.
const (
	Exceeded = "quota-exceeded"
	TooMuch  = "quota-batch"
)

func (r *Rule) refusal(limit string, wait time.Duration, events, size int64, costEvents, costBytes time.Duration) error {
	never := func(n int64, unit string, rate int64) error {
		return fault.New(fault.TooLarge, "quota", TooMuch, "%d %s at once can never pass Quota %s: it lets at most %d through at once; send smaller batches",
			n, unit, r.name, int64(float64(rate)*r.burst.Seconds()))
	}
	var what string
	switch limit {
	case limitEvents:
		if costEvents > r.burst {
			return never(events, "events", r.publish.events)
		}
		what = several(r.publish.events, "event") + " a second to be published"
	case limitBytes:
		if costBytes > r.burst {
			return never(size, "bytes", r.publish.bytes)
		}
		what = several(r.publish.bytes, "byte") + " a second to be published"
	case limitInFlight:
		if events > r.inFlight {
			return fault.New(fault.TooLarge, "quota", TooMuch, "%d events at once can never pass Quota %s: %d may be in flight; send smaller batches", events, r.name, r.inFlight)
		}
		what = several(r.inFlight, "event") + " in flight"
	}
	return &fault.Error{Class: fault.Throttled, Op: "quota", Reason: Exceeded, RetryAfter: wait,
		Msg: fmt.Sprintf("Quota %s allows %s for %s; nothing was published", r.name, what, r.whose())}
}

// several is a number of things.
func several(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}
