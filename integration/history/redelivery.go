package history

import "fmt"

// Place is where a receipt came from.
type Place struct {
	// Owner is one life of the proxy that delivered it.
	Owner string
	// Partition and Offset are the event's place in its topic.
	Partition string
	Offset    uint64
}

// ReceiveAt is Receive, and records where the event came from.
func (l *Log) ReceiveAt(id string, data []byte, at Place) int {
	n := l.Receive(id, data)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.places = append(l.places, at)
	return n
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
	// Bound is the most repeats that the promise allows: for each change the
	// window, or all that the last owner had delivered where that is less.
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
		count int            // receipts in the term
		seen  map[uint64]int // the term of the last receipt of each offset
		high  uint64
	}
	var r Redelivery
	violation := func(format string, args ...any) {
		if len(r.Violations) < 5 {
			r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
		}
	}
	parts := map[string]*partition{}
	for _, at := range l.places {
		p := parts[at.Partition]
		if p == nil {
			p = &partition{owner: at.Owner, seen: map[uint64]int{}, high: at.Offset}
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
			if term == p.term {
				violation("%d of partition %s came twice from %s", at.Offset, at.Partition, at.Owner)
			}
		}
		p.seen[at.Offset] = p.term
		p.high = max(p.high, at.Offset)
		depth := int(p.high-at.Offset) + 1 //nolint:gosec // small
		if depth > window {
			violation("%d of partition %s came after %d: that is %d deep, the window is %d", at.Offset, at.Partition, p.high, depth, window)
		}
		r.Depth = max(r.Depth, depth)
	}
	if r.Repeats > r.Bound {
		violation("%d repeats, the bound is %d", r.Repeats, r.Bound)
	}
	return r
}
