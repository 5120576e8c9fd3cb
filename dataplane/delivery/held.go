package delivery

import (
	"maps"
	"slices"
	"sync/atomic"
)

// Bytes of events of one Subscription that may be here before its sources fetch no more:
// unsettled ones outside lanes, those that wait in lanes, and what each may have in any
// case, whatever others have.
const (
	maxHeld   = 64 << 20
	maxBehind = 64 << 20
	shareHeld = 1 << 20
)

// held counts the bytes of events that are here, of all Subscriptions.
type held struct {
	most  int64
	bytes atomic.Int64
	short atomic.Bool // somebody was refused room
}

func (h *held) add(size int) { h.bytes.Add(int64(size)) }

func (h *held) drop(size int) { h.bytes.Add(-int64(size)) }

// full reports whether all there may be is here. Whoever is told so asks again as it
// settles something of its own, or when there is room (makeRoom).
func (h *held) full() bool {
	if h.bytes.Load() < h.most {
		return false
	}
	h.short.Store(true)
	return true
}

// crowdedLocked reports whether so much of the Subscription is here that its sources fetch
// no more before something is settled: of its own, or of all Subscriptions.
func (r *runtime) crowdedLocked() bool {
	return r.bytes-r.behind.bytes >= maxHeld || r.behind.bytes >= maxBehind || r.bytes >= shareHeld && r.m.held.full()
}

// makeRoom has every Subscription fetch again where one was refused room and there is some.
func (m *Manager) makeRoom() {
	if m.held.bytes.Load() >= m.held.most || !m.held.short.CompareAndSwap(true, false) {
		return
	}
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.runtimes))
	m.mu.Unlock()
	for _, r := range all {
		r.mu.Lock()
		r.demandLocked()
		r.mu.Unlock()
	}
}
