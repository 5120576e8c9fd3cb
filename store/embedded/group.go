package embedded

import (
	"context"
	"encoding/binary"
	"math"
	"slices"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// group is a consumer group on one topic. Its fields are guarded by Store.mu.
//
// Every offset below floor is settled. Above it, settled has those that are,
// and owner the member of each that is out for delivery.
type group struct {
	s       *Store
	topic   *topic
	name    string
	floor   uint64
	kept    uint64 // floor in the newest state that is durable
	next    uint64 // the first that was never delivered since the store was opened
	settled map[uint64]struct{}
	owner   map[uint64]*member
	back    []uint64  // given back, sorted
	members []*member // by when they joined
	wake    chan struct{}
	dirty   bool
	hurry   bool          // and somebody waits for that to be durable
	flushed chan struct{} // closed when what is dirty now is durable
	written chan struct{} // closed when what was dirty last is
	gone    bool
	// restored is the next offset when the store was opened: what is below
	// may have been delivered before.
	restored uint64
}

// groupState is a group as it is written.
type groupState struct {
	g          *group
	floor      uint64
	key, value []byte
	done       chan struct{}
}

func newGroup(s *Store, t *topic, name string, floor uint64) *group {
	g := &group{s: s, topic: t, name: name, floor: floor, kept: floor, next: floor, settled: map[uint64]struct{}{}, owner: map[uint64]*member{},
		wake: make(chan struct{}), flushed: make(chan struct{}), written: make(chan struct{})}
	close(g.written)
	return g
}

// wakeLocked tells members that wait.
func (g *group) wakeLocked() {
	close(g.wake)
	g.wake = make(chan struct{})
}

// dirtyLocked has the committer write the group's state.
func (g *group) dirtyLocked() {
	if !g.dirty && !g.gone {
		g.dirty = true
		g.s.dirty = append(g.s.dirty, g)
	}
}

// stateLocked is what the committer writes now.
func (g *group) stateLocked() groupState {
	g.dirty, g.hurry = false, false
	g.written, g.flushed = g.flushed, make(chan struct{})
	return groupState{g: g, floor: g.floor, key: groupKey(g.topic.id, g.name), value: g.encodeLocked(), done: g.written}
}

// encodeLocked: floor, then the settled offsets above it as distances.
func (g *group) encodeLocked() []byte {
	above := make([]uint64, 0, len(g.settled))
	for o := range g.settled {
		above = append(above, o)
	}
	slices.Sort(above)
	b := binary.BigEndian.AppendUint64(nil, g.floor)
	last := g.floor
	for _, o := range above {
		b = binary.AppendUvarint(b, o-last)
		last = o
	}
	return b
}

func decodeGroup(s *Store, t *topic, name string, b []byte) (*group, error) {
	if len(b) < 8 {
		return nil, errRecord
	}
	if binary.BigEndian.Uint64(b) > math.MaxInt64 {
		return nil, errRecord
	}
	g := newGroup(s, t, name, binary.BigEndian.Uint64(b))
	last := g.floor
	g.restored = g.floor
	for b = b[8:]; len(b) > 0; {
		d, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errRecord
		}
		b = b[n:]
		if last += d; last > math.MaxInt64 {
			return nil, errRecord
		}
		if last >= g.floor { // stores of older versions have others too
			g.settled[last] = struct{}{}
			g.restored = max(g.restored, last+1)
		}
	}
	// What was delivered and not settled lies within one window.
	g.restored = max(g.restored, g.floor+uint64(s.cfg.Window))
	return g, nil
}

// keptLocked: the state with this floor is durable, which makes room.
func (g *group) keptLocked(floor uint64) {
	full := g.next >= g.limitLocked()
	if g.kept = max(g.kept, floor); full {
		g.wakeLocked()
	}
}

// limitLocked is where delivery stops: one window above what a crash goes back
// to at most.
func (g *group) limitLocked() uint64 { return max(g.kept, g.topic.low) + uint64(g.s.cfg.Window) }

// pressingLocked reports whether what is settled is to be durable before the interval is
// over: a member that closes waits for it, or it is half of a window or more, and delivery
// goes on in the other half meanwhile.
func (g *group) pressingLocked() bool {
	return g.hurry || 2*g.floor >= 2*max(g.kept, g.topic.low)+uint64(g.s.cfg.Window)
}

// advanceLocked moves floor over what is settled, and over what retention took.
func (g *group) advanceLocked() {
	if g.floor < g.topic.low {
		for o := range g.settled {
			if o < g.topic.low {
				delete(g.settled, o)
			}
		}
		g.floor = g.topic.low
		g.next = max(g.next, g.floor)
		i, _ := slices.BinarySearch(g.back, g.floor)
		g.back = g.back[i:]
	}
	for {
		if _, ok := g.settled[g.floor]; !ok {
			break
		}
		delete(g.settled, g.floor)
		g.floor++
	}
	// What was settled before a restart is not out for delivery: next may be
	// behind it.
	g.next = max(g.next, g.floor)
}

// turnLocked reports whether m may take anything: where a member wants order, all
// of the topic is that member's which joined first.
func (g *group) turnLocked(m *member) bool {
	return g.members[0] == m || !slices.ContainsFunc(g.members, func(o *member) bool { return o.ordered })
}

// takeLocked gives up to n offsets to m.
func (g *group) takeLocked(m *member, n int) []uint64 {
	g.advanceLocked()
	if !g.turnLocked(m) {
		return nil
	}
	var out []uint64
	for len(out) < n && len(g.back) > 0 {
		o := g.back[0]
		g.back = g.back[1:]
		g.owner[o] = m
		out = append(out, o)
	}
	limit := min(g.topic.next, g.limitLocked())
	for len(out) < n && g.next < limit {
		o := g.next
		g.next++
		if _, done := g.settled[o]; done {
			continue
		}
		g.owner[o] = m
		out = append(out, o)
	}
	return out
}

// member is one subscription.
type member struct {
	g       *group
	ordered bool
	closed  bool // refuses more; guarded by Store.mu
}

// handle is Message.Handle.
type handle struct {
	m      *member
	offset uint64
}

// Subscribe joins a group.
func (s *Store) Subscribe(_ context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	const op = "embedded.subscribe"
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.topicLocked(op, r.Topic)
	if err != nil {
		return nil, err
	}
	g := t.groups[r.Group]
	if g == nil {
		return nil, fault.New(fault.NotFound, op, "unknown-group", "topic %s has no group %s", r.Topic, r.Group)
	}
	m := &member{g: g, ordered: r.Ordered}
	g.members = append(g.members, m)
	return m, nil
}

// Fetch waits for messages.
func (m *member) Fetch(ctx context.Context, dst []store.Message) (int, error) {
	g, s := m.g, m.g.s
	for {
		s.mu.Lock()
		switch {
		case m.closed || s.closed:
			s.mu.Unlock()
			return 0, fault.New(fault.Unavailable, "embedded.fetch", "store-closed", "the subscription is closed")
		case g.gone:
			s.mu.Unlock()
			return 0, fault.New(fault.NotFound, "embedded.fetch", "unknown-group", "the group or its topic was deleted")
		}
		offsets := g.takeLocked(m, len(dst))
		wake, changed := g.wake, g.topic.changed
		s.mu.Unlock()
		if len(offsets) > 0 {
			n, err := m.read(offsets, dst)
			if n > 0 || err != nil {
				return n, err
			}
			continue // retention took them meanwhile
		}
		select {
		case <-wake:
		case <-changed:
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

// read reads the records of offsets into dst. What cannot be read is given back.
func (m *member) read(offsets []uint64, dst []store.Message) (int, error) {
	g, s := m.g, m.g.s
	msgs, k, err := s.readAt(g.topic, offsets, dst)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		m.giveBackLocked(offsets)
		return 0, err
	}
	if m.closed {
		m.giveBackLocked(offsets)
		return 0, fault.New(fault.Unavailable, "embedded.fetch", "store-closed", "the subscription is closed")
	}
	if k < len(offsets) {
		m.returnLocked(offsets[k:]) // they are read next
		offsets = offsets[:k]
	}
	for i := range msgs {
		o := msgs[i].Pos.Offset
		msgs[i].Redelivered = msgs[i].Redelivered || o < g.restored
		msgs[i].Handle = handle{m, o}
	}
	if len(msgs) < len(offsets) {
		// Retention has removed some: they count as settled.
		have := make(map[uint64]bool, len(msgs))
		for i := range msgs {
			have[msgs[i].Pos.Offset] = true
		}
		for _, o := range offsets {
			if !have[o] {
				delete(g.owner, o)
				if o >= g.floor {
					g.settled[o] = struct{}{}
				}
			}
		}
		g.advanceLocked()
		g.dirtyLocked()
	}
	return len(msgs), nil
}

// giveBackLocked makes offsets that m owns available to others; they may have
// been delivered.
func (m *member) giveBackLocked(offsets []uint64) {
	for _, o := range offsets {
		if m.g.owner[o] == m {
			m.g.restored = max(m.g.restored, o+1)
		}
	}
	m.returnLocked(offsets)
}

// returnLocked makes offsets that m owns available to others.
func (m *member) returnLocked(offsets []uint64) {
	g := m.g
	for _, o := range offsets {
		if g.owner[o] == m {
			delete(g.owner, o)
			g.back = append(g.back, o)
		}
	}
	slices.Sort(g.back)
	g.wakeLocked()
}

// Settle records that messages are done with.
func (m *member) Settle(msgs []*store.Message) (stale int) {
	g, s := m.g, m.g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, msg := range msgs {
		h, ok := msg.Handle.(handle)
		if !ok || h.m != m || g.owner[h.offset] != m {
			stale++
			continue
		}
		delete(g.owner, h.offset)
		if h.offset >= g.floor { // else retention took it meanwhile
			g.settled[h.offset] = struct{}{}
		}
	}
	g.advanceLocked()
	g.dirtyLocked()
	if g.pressingLocked() {
		s.poke()
	}
	return stale
}

// Holds: what a member has fetched is its own until it is settled or the member
// closed.
func (m *member) Holds(msg *store.Message) bool {
	m.g.s.mu.Lock()
	defer m.g.s.mu.Unlock()
	h, ok := msg.Handle.(handle)
	return ok && h.m == m && !m.closed && m.g.owner[h.offset] == m
}

// Close gives unsettled messages back and waits until settled ones are durable.
func (m *member) Close(ctx context.Context) error {
	g, s := m.g, m.g.s
	s.mu.Lock()
	if m.closed {
		s.mu.Unlock()
		return nil
	}
	m.closed = true
	g.members = slices.DeleteFunc(g.members, func(o *member) bool { return o == m })
	var mine []uint64
	for o, owner := range g.owner {
		if owner == m {
			mine = append(mine, o)
		}
	}
	m.giveBackLocked(mine)
	durable := g.written
	if g.dirty {
		g.hurry, durable = true, g.flushed
	}
	s.mu.Unlock()
	s.poke()
	select {
	case <-durable:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, "embedded.close", "not-flushed", ctx.Err())
	}
}
