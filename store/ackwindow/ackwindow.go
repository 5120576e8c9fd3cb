// Package ackwindow turns single acknowledgements into the one offset of a
// partition that stores with classic consumer groups keep: everything below it
// is settled. Between what is durably committed and what was delivered last
// there is never more than the window: that is what a crash may repeat.
package ackwindow

// Window is the state of one partition under one ownership. It is not safe for
// concurrent use.
//
// Messages are numbered by the order in which they were delivered, not by
// offset: offsets may have holes, numbers do not, so every operation is an
// index into a ring.
type Window struct {
	ring []slot // length is a power of two; it grows with what is not durably committed
	kept uint64 // number of the oldest message that is not durably committed
	head uint64 // number of the oldest message that is not settled
	tail uint64 // number of the next one
	next int64  // what to commit when everything is settled
	cap  uint64
}

type slot struct {
	offset int64
	done   bool
}

// firstRing is how much a window has room for before it grows: most partitions are quiet,
// and there are many of them.
const firstRing = 8

// New makes a window for at most size messages, from offset on.
func New(size int, offset int64) *Window {
	n := 1
	for n < min(size, firstRing) {
		n *= 2
	}
	return &Window{ring: make([]slot, n), next: offset, cap: uint64(max(size, 1))}
}

// Room is how many more messages may be delivered.
func (w *Window) Room() int { return int(w.cap - (w.tail - w.kept)) } //nolint:gosec // at most cap

// Deliver tracks the message at offset, which is higher than all before, and
// returns its number. There must be room.
func (w *Window) Deliver(offset int64) uint64 {
	n := w.tail
	if n-w.kept == uint64(len(w.ring)) {
		w.grow()
	}
	w.ring[n&uint64(len(w.ring)-1)] = slot{offset: offset}
	w.tail++
	w.next = offset + 1
	return n
}

// grow makes room for twice as many.
func (w *Window) grow() {
	ring := make([]slot, 2*len(w.ring))
	for n := w.kept; n < w.tail; n++ {
		ring[n&uint64(len(ring)-1)] = w.at(n)
	}
	w.ring = ring
}

// Skip says that everything below offset has nothing to deliver.
func (w *Window) Skip(offset int64) { w.next = max(w.next, offset) }

// Done settles the message with a number; false where it was settled before or
// never delivered.
func (w *Window) Done(n uint64) bool {
	if n < w.head || n >= w.tail {
		return false
	}
	s := &w.ring[n&uint64(len(w.ring)-1)]
	if s.done {
		return false
	}
	s.done = true
	for w.head < w.tail && w.ring[w.head&uint64(len(w.ring)-1)].done {
		w.head++
	}
	return true
}

// Kept says that the commit of offset, which Commit gave, is durable: what is
// below it makes room.
func (w *Window) Kept(offset int64) {
	for w.kept < w.head && w.ring[w.kept&uint64(len(w.ring)-1)].offset < offset {
		w.kept++
	}
}

// Half reports whether half of the window or more is settled, and not durable.
func (w *Window) Half() bool { return 2*(w.head-w.kept) >= w.cap }

// Commit is the offset below which everything is settled.
func (w *Window) Commit() int64 {
	if w.head == w.tail {
		return w.next
	}
	return w.ring[w.head&uint64(len(w.ring)-1)].offset
}

// Beyond gives what is settled above Commit: for each run of settled messages that
// were delivered one after the other, the offsets of its first and last one.
func (w *Window) Beyond(yield func(first, last int64) bool) {
	for n := w.head; n < w.tail; n++ {
		first := w.at(n)
		if !first.done {
			continue
		}
		last := first
		for n+1 < w.tail && w.at(n+1).done {
			n++
			last = w.at(n)
		}
		if !yield(first.offset, last.offset) {
			return
		}
	}
}

func (w *Window) at(n uint64) slot { return w.ring[n&uint64(len(w.ring)-1)] }
