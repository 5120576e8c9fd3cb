package delivery

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"time"
)

// With Ordered the events of a key go to one member while it is there, whatever others
// are ready: the one that comes first for that key (rendezvous hashing), so that a
// member that leaves gives its keys to all others, one that comes takes a share from
// each, and all other keys stay where they are. Nothing is kept of a key without events.
//
// So that who is slow holds up nobody else, a member that waits gets events of others'
// keys where nothing more can be read before they are out.

// absence is how long a member may neither wait for events nor settle any: after that
// it is not there until it does.
const absence = 5 * time.Second

// home is where the events of a key go.
type home struct {
	key   uint64 // its hash
	owner *member
	ring  uint64 // of the runtime, when owner was found
}

func (r *runtime) homeOf(k laneKey) home { return home{key: maphash.Comparable(r.seed, k)} }

// ownerLocked is the member that an item is for; nil is any.
func (r *runtime) ownerLocked(it *item) *member {
	if it.lane == nil {
		return nil
	}
	h := &it.lane.home
	if h.ring == r.ring {
		return h.owner
	}
	h.owner, h.ring = nil, r.ring
	best := uint64(0)
	for _, m := range r.thereLocked() {
		if w := mix(h.key ^ m.place); h.owner == nil || w > best {
			h.owner, best = m, w
		}
	}
	return h.owner
}

// thereLocked are the members that are there.
func (r *runtime) thereLocked() []*member {
	if r.thereOf != r.ring {
		clear(r.there)
		r.there, r.thereOf = r.there[:0], r.ring
		for m := range r.members {
			if !m.away && m.probe == nil {
				r.there = append(r.there, m)
			}
		}
	}
	return r.there
}

// mix spreads what differs in few bits (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// forLocked reports whether a member may have an item. full is fullLocked.
func (r *runtime) forLocked(it *item, mem *member, full bool) bool {
	o := r.ownerLocked(it)
	return full || o == nil || o == mem
}

// fullLocked reports whether nothing is read before something is settled.
func (r *runtime) fullLocked() bool {
	return r.held-r.behind.events >= r.sub.MaxInFlight || r.crowdedLocked()
}

// offeredLocked is how much of the buffer those who wait may have.
func (r *runtime) offeredLocked() int {
	if !r.sub.Ordered && r.suspects == 0 {
		return len(r.buffer)
	}
	n := 0
	for _, it := range r.buffer {
		if o := r.ownerLocked(it); !it.msg.suspect && (o == nil || o.waiting) {
			n++
		}
	}
	return n
}

// wakeOwnersLocked is dispatchLocked with Ordered: up to n items may go out now.
func (r *runtime) wakeOwnersLocked(n int) {
	full, absent := r.fullLocked(), false
	for i := 0; i < len(r.buffer) && n > 0 && len(r.waiters) > 0; i++ {
		w := r.waiters[0]
		if o := r.ownerLocked(r.buffer[i]); o != nil && o.waiting {
			w = o
		} else if o != nil && !full {
			absent = true
			continue
		}
		if r.buffer[i].msg.suspect && w.singled > 0 {
			j := slices.IndexFunc(r.waiters, func(w *member) bool { return w.singled == 0 && r.forLocked(r.buffer[i], w, full) })
			if j < 0 {
				continue
			}
			w = r.waiters[j]
		}
		w.unwaitLocked()
		w.bell.ring()
		n--
	}
	if absent {
		r.poke() // tend sees when it has been so for long
	}
}

// cameLocked: a member is there from now on.
func (m *member) cameLocked() {
	m.place, m.seen = rand.Uint64(), time.Now()
	m.r.ring++
}

// seenLocked: a member was heard of.
func (m *member) seenLocked() {
	if !m.r.sub.Ordered {
		return
	}
	m.seen = time.Now()
	if m.away {
		m.away = false
		m.r.ring++
	}
}

// absentLocked finds the members that are not there any more, while events wait for one,
// and tells how long until the next may be, at most wait.
func (r *runtime) absentLocked(now time.Time, wait time.Duration) time.Duration {
	if !r.sub.Ordered || len(r.buffer) == 0 {
		return wait
	}
	was := r.ring
	for _, m := range r.thereLocked() {
		if m.waiting {
			continue
		}
		if left := absence - now.Sub(m.seen); left > 0 {
			wait = min(wait, left)
		} else {
			m.away = true
			r.ring++
		}
	}
	if r.ring != was {
		r.demandLocked()
		r.dispatchLocked()
	}
	return wait
}
