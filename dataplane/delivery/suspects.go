package delivery

// One event may crash every client that gets it. Nobody tells which one it was of those
// that a client had, so that when a member is lost all of them are suspects, and a member
// has one suspect at a time from then on, beside what else it gets. A loss counts as an
// attempt of the suspect alone, or of an event that the member had alone: an event that
// crashes its clients is a dead letter after at most one crash more than it has attempts,
// and those that were beside it are not counted for it.

// suspectLocked: a member that had the item was lost.
func (r *runtime) suspectLocked(it *item) {
	if !it.msg.suspect {
		it.msg.suspect = true
		r.suspects++
	}
}

// A member of which a delivery has timed out is doubted until it settles something: its
// process may hang while its connection is still read. It gets one event at a time until
// then, or whatever times out at it would be followed by as much again.

// doubtLocked: a delivery of the member has timed out.
func (m *member) doubtLocked() { m.doubted = true }

// settlesLocked: the member has settled a delivery, or asked for more time.
func (m *member) settlesLocked() {
	m.doubted = false
	m.probeLocked(nil)
}

// gotLocked: the member gets an item.
func (m *member) gotLocked(it *item) {
	m.out++
	if it.msg.suspect {
		m.singled++
	}
	if m.doubted {
		m.probeLocked(it)
	}
}

// landedLocked: the member has an item no more.
func (m *member) landedLocked(it *item) {
	m.out--
	if it.msg.suspect {
		m.singled--
	}
	if m.probe == it {
		m.probeLocked(nil)
	}
}

// probeLocked: who has a probe is not there for the keys of others.
func (m *member) probeLocked(it *item) {
	if m.probe != it {
		m.probe = it
		m.r.ring++
	}
}
