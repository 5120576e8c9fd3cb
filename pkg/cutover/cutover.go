// Package cutover has the rules by which a topic moves from one store to another
// while it is used, so that nothing acknowledged is lost and the order of a key
// holds. They are pure functions, which both planes decide by; the tests explore
// everything that can happen to small systems that follow them.
//
// A topic is written to in one place at a time: an epoch, which is a physical topic of
// one store that is never written to again once the topic has left it. A move to the
// next epoch goes through phases, which are kept in etcd (TopicBinding.move) and change
// only there:
//
//   - Preparing: the new place is made and checked.
//   - Leasing: whoever has heard of it writes under a lease. The phase lasts until
//     everybody has heard who could write without one.
//   - Stopping: no lease is granted and no write begins any more. The phase lasts until
//     everybody has said that none is on its way, or the last lease has ended.
//   - Marking: a marker is written into every partition of the old place. What is
//     behind it was not acknowledged. Where the markers are is written down together
//     with the next phase: that, and not the marker, is the cut. So there is a way back
//     until then. Where the store can keep others than the mesh from writing there, it
//     does before, and the cut is behind what they have written.
//   - Draining: the new place is written to, without leases. Readers take the old place
//     up to the cut first.
//
// Three things make that safe. A lease is granted by who reads Leasing in etcd, and not
// in a copy, while the request waits, and it counts from when the request was made: so it
// has ended one TTL after Stopping was written, however long an answer takes. It is asked
// for again when the store has acknowledged, so that a process which was stopped
// meanwhile does not acknowledge what came too late: that is ambiguous. And what a
// configuration allows is judged then too, since a write may outlive it.
package cutover

import "time"

// minHidden bounds how often an event that waits long is written again.
const minHidden = 10 * time.Second

// Hidden is for how long, at most, an event that waits for another attempt is nowhere to
// be seen in its store, where it is held back: the longest delay of its Subscription's
// schedule, jitter included. One that waits longer, as its member asked for, shows after
// that and is held back again. So a place has none left where none came for so long.
func Hidden(maxBackoff time.Duration) time.Duration {
	return max(maxBackoff+maxBackoff/10, minHidden)
}

// Phase is how far a move is.
type Phase uint8

// Phases, in their order. Withdrawn may follow any before Draining.
const (
	Preparing Phase = iota
	Leasing
	Stopping
	Marking
	Draining
	Drained
	Finished
	Withdrawn
)

// Wish is what the operator wants of a move.
type Wish uint8

const (
	// Proceed goes on up to Drained.
	Proceed Wish = iota
	// Pause goes no further while publishers can still write to the old place, and
	// lets them write there again. From Draining on there is nothing to pause.
	Pause
	// Withdraw ends a move that has not come to Draining. Later the way back is
	// another move.
	Withdraw
	// Finish gives up the old place, once it is drained.
	Finish
)

// Facts are what whoever is in office has seen.
type Facts struct {
	Wish Wish
	// Ready: the new place is there, with the groups of all readers, and can do what
	// the topic needs.
	Ready bool
	// Heard: every proxy that could write to the old place has this Leasing in force,
	// and finds it after a restart too; or it can write no more.
	Heard bool
	// Waited is for how long whoever is in office has itself known of this Stopping, by
	// a clock that counts while the machine sleeps.
	Waited time.Duration
	// Idle: every proxy that could hold a lease has said that it has this Stopping in
	// force and no write on its way.
	Idle bool
	// Marked: the store has acknowledged a marker in every partition of the old place,
	// each of them written in this Marking, and keeps others out of it or does not.
	Marked bool
	// Stuck: there are no markers, and publishers have waited long enough.
	Stuck bool
	// Drained: every reader has settled the old place up to its markers.
	Drained bool
}

// Terms are how long leases are. Both planes must have the same.
type Terms struct {
	// TTL is how long a lease lasts.
	TTL time.Duration
	// Margin is how far clocks of two machines may be apart after TTL.
	Margin time.Duration
}

// Next is the phase that follows p, or p.
func (t Terms) Next(p Phase, f Facts) Phase {
	switch {
	case f.Wish == Withdraw && p < Draining:
		return Withdrawn
	case f.Wish == Pause && (p == Stopping || p == Marking),
		p == Marking && f.Stuck && !f.Marked:
		return Leasing
	case f.Wish == Pause && p < Draining:
		return p
	case p == Preparing && f.Ready,
		p == Leasing && f.Heard,
		p == Stopping && (f.Idle || f.Waited >= t.TTL+t.Margin),
		p == Marking && f.Marked,
		p == Draining && f.Drained,
		p == Drained && f.Wish == Finish:
		return p + 1
	}
	return p
}

// Grants reports whether a lease may be granted in phase p, which was read in etcd
// since the lease was asked for.
func Grants(p Phase) bool { return p == Leasing }

// Writing is where a topic is written to, as a configuration says it.
type Writing struct {
	// Epoch of the place, as in a TopicBinding.
	Epoch uint32
	// Leased: only under a lease.
	Leased bool
	// Closed: nothing may begin. What is on its way may still be acknowledged.
	Closed bool
}

// Writing is what configurations say in phase p of a move away from epoch old.
func (p Phase) Writing(old uint32) Writing {
	switch p {
	case Leasing:
		return Writing{Epoch: old, Leased: true}
	case Stopping, Marking:
		return Writing{Epoch: old, Leased: true, Closed: true}
	case Draining, Drained, Finished:
		return Writing{Epoch: old + 1}
	}
	return Writing{Epoch: old}
}

// Default are the terms of production. A publisher that meets the cut waits for TTL and
// Margin only where a proxy cannot say that it is idle.
var Default = Terms{TTL: 5 * time.Second, Margin: time.Second}

// StuckAfter is how long a Marking lasts at most, and how long the Leasing does that
// follows one which was stuck.
const (
	StuckAfter = 10 * time.Second
	RetryAfter = 30 * time.Second
)

// Lease allows to write to one epoch for a while. Times are of the holder's clock,
// which counts while the machine sleeps and the process is stopped, as CLOCK_BOOTTIME
// does.
type Lease struct {
	Epoch uint32
	Until time.Duration
}

// Lease is what was granted to a request that was made at asked.
func (t Terms) Lease(epoch uint32, asked time.Duration) Lease {
	return Lease{Epoch: epoch, Until: asked + t.TTL}
}

// MayBegin reports whether, with this configuration and lease, a write may begin now.
func (w Writing) MayBegin(l Lease, now time.Duration) bool {
	return !w.Closed && w.MayAcknowledge(w.Epoch, l, now)
}

// MayAcknowledge reports whether, with this configuration and lease, a write to an epoch
// that the store has acknowledged may be acknowledged now. Where it may not, its outcome
// is ambiguous.
func (w Writing) MayAcknowledge(epoch uint32, l Lease, now time.Duration) bool {
	return w.Epoch == epoch && (!w.Leased || l.Epoch == epoch && now < l.Until)
}
