package history

import (
	"fmt"
	"slices"
	"time"
)

// Place is where a receipt came from.
type Place struct {
	// Owner is one life of the proxy that delivered it.
	Owner string
	// Partition and Offset are the event's place in its topic.
	Partition string
	Offset    uint64
}

// spot is a receipt that has a place.
type spot struct {
	Place
	id   string
	when time.Duration // since the log began
}

// disturbance is when receipts may repeat though no partition changes hands.
type disturbance struct {
	before int // how many receipts came earlier
	when   time.Duration
	back   time.Duration
}

// ReceiveAt is Receive, and records where the event came from.
func (l *Log) ReceiveAt(id string, data []byte, at Place) int {
	n := l.Receive(id, data)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.places = append(l.places, spot{at, id, time.Since(l.began)})
	return n
}

// Disturb records that partitions may be read again from what was settled last, also by
// who had them: something stood still, was killed or started again, or members
// come to a group one after the other. The store may have
// forgotten what was settled within back before.
func (l *Log) Disturb(back time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disturbed = append(l.disturbed, disturbance{len(l.places), time.Since(l.began), back})
}

// Copies are events that came from more places than their publisher's attempts explain:
// the one that was acknowledged, and those of which nobody knows what has become.
func (l *Log) Copies() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := map[string][]Place{}
	for _, s := range l.places {
		p := Place{Partition: s.Partition, Offset: s.Offset} // whoever delivered it
		if !slices.Contains(at[s.id], p) {
			at[s.id] = append(at[s.id], p)
		}
	}
	var out []string
	for id, places := range at {
		if s := l.published[id]; s != nil && len(places) > 1+s.unknown {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// From is how many receipts came from an owner, and of which partitions.
func (l *Log) From(owner string) (receipts int, partitions []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[string]bool{}
	for _, p := range l.places {
		if p.Owner != owner {
			continue
		}
		if receipts++; !seen[p.Partition] {
			seen[p.Partition] = true
			partitions = append(partitions, p.Partition)
		}
	}
	return receipts, partitions
}

// Redelivery is what receipts tell of repeats. Events that their publisher
// repeated are at two places and are no repeats here.
type Redelivery struct {
	// Repeats are receipts of a place from which the event had come before.
	Repeats int
	// Changes are how often a partition changed hands: its proxy was killed,
	// or gave it to another.
	Changes int
	// Bound is the most repeats that the promise allows: for each change and each
	// disturbance the window, or all that was delivered since the last where that is
	// less; and what the store may have forgotten.
	Bound int
	// Depth is the farthest that a receipt lay behind the highest of its
	// partition, itself counted. What is not durably settled and what was
	// delivered last are within one window, so this is too.
	Depth int
	// Violations are the broken promises; empty when all were kept.
	Violations []string
}

// String is the judgement in one line.
func (r Redelivery) String() string {
	return fmt.Sprintf("%d repeats, the bound is %d: partitions changed hands %d times; the farthest repeat was %d deep", r.Repeats, r.Bound, r.Changes, r.Depth)
}

// Redelivery judges the receipts that have a place by a window, in events of a
// partition.
func (l *Log) Redelivery(window int) Redelivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A term is the time for which a partition is one owner's.
	type partition struct {
		owner string
		term  int
		count int            // receipts in the term, or since it was disturbed
		seen  map[uint64]int // the term of the last receipt of each offset
		high  uint64
		loose bool // it was disturbed: its owner may have it again
		slack int  // by how much the store may have gone back
	}
	var r Redelivery
	violation := func(format string, args ...any) {
		if len(r.Violations) < 5 {
			r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
		}
	}
	parts := map[string]*partition{}
	disturb := func(d disturbance) {
		recent := map[string]int{}
		for i := d.before - 1; i >= 0 && d.when-l.places[i].when < d.back; i-- {
			recent[l.places[i].Partition]++
		}
		for name, p := range parts {
			r.Bound += max(min(window, p.count), recent[name])
			p.count, p.loose, p.slack = 0, true, max(p.slack, recent[name])
		}
	}
	disturbed, loose := l.disturbed, false
	for i, at := range l.places {
		for ; len(disturbed) > 0 && disturbed[0].before <= i; disturbed = disturbed[1:] {
			disturb(disturbed[0])
			loose = true
		}
		p := parts[at.Partition]
		if p == nil {
			p = &partition{owner: at.Owner, seen: map[uint64]int{}, high: at.Offset, loose: loose}
			parts[at.Partition] = p
		}
		if p.owner != at.Owner {
			r.Changes++
			r.Bound += min(window, p.count)
			p.owner, p.count = at.Owner, 0
			p.term++
		}
		p.count++
		if term, again := p.seen[at.Offset]; again {
			r.Repeats++
			if term == p.term && !p.loose {
				violation("%d of partition %s came twice from %s", at.Offset, at.Partition, at.Owner)
			}
		}
		p.seen[at.Offset] = p.term
		p.high = max(p.high, at.Offset)
		depth := int(p.high-at.Offset) + 1 //nolint:gosec // small
		if depth > window+p.slack {
			violation("%d of partition %s came after %d: that is %d deep, the window is %d", at.Offset, at.Partition, p.high, depth, window+p.slack)
		}
		r.Depth = max(r.Depth, depth)
	}
	if r.Repeats > r.Bound {
		violation("%d repeats, the bound is %d", r.Repeats, r.Bound)
	}
	return r
}
