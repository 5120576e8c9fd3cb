package delivery

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// ringEvents and ringBytes are how many events of a topic, and bytes of them, are
// kept for the tails that are at its end. A tail that is slower reads by itself.
const (
	ringEvents = 1024
	ringBytes  = 4 << 20
)

// feed is the one reader of a topic for all tails of this proxy that are at its
// end. What it reads goes into a ring; a tail has a cursor in it, and nothing
// else. Events are shared and never modified.
//
// A feed begins at the end of its topic, with the first tail that wants it, and
// ends with the last. Where the topic moves it goes on in the next epoch. Its mutex is taken after that of a tail.
type feed struct {
	m      *Manager
	topic  *snapshot.Topic
	start  uint32    // the epoch in which it began
	since  time.Time // when it began
	cancel context.CancelFunc
	opened chan struct{} // closed once where it begins is fixed, or err is set
	err    error

	users int // guarded by Manager.feedMu

	mu      sync.Mutex
	ring    []*entry // by number, modulo its length
	first   uint64   // the number of the oldest event in the ring
	next    uint64   // and of the next one that comes
	bytes   int
	epoch   uint32       // of the newest event; start without one
	parts   map[part]int // the numbers of partitions
	places  []partition  // by number
	waiters []*cursor
}

// partition is where a feed is in one partition.
type partition struct {
	// read: it had an event of it. head is the newest one, first the oldest.
	read        bool
	head, first store.Position
}

// part names a partition: epochs may have some of one name.
type part struct {
	epoch uint32
	name  string
}

// entry is one event in the ring.
type entry struct {
	event  event.Event
	token  position.Token
	part   int
	size   int
	shared Shared
}

// Shared has encodings of an event that goes to many tails: what the first of them
// encodes is there for the others.
type Shared struct {
	forms [forms]atomic.Pointer[[]byte]
}

// Form is one of the encodings. Each belongs to one protocol, which says what it is.
type Form int

// The forms.
const (
	FormJSON  Form = iota // of server-sent events
	FormProto             // of the gRPC stream
	forms
)

// Encoded gives the encoding, which nobody may modify.
func (s *Shared) Encoded(f Form, encode func() []byte) []byte {
	if b := s.forms[f].Load(); b != nil {
		return *b
	}
	b := encode()
	s.forms[f].Store(&b)
	return b
}

// now is where what begins now begins, as stores have time: in milliseconds.
func now() time.Time { return time.Now().Truncate(time.Millisecond) }

// feed gives the feed of a topic to one more user, once its start is fixed. The
// user releases it.
func (m *Manager) feed(ctx context.Context, topic *snapshot.Topic) (*feed, error) {
	m.feedMu.Lock()
	f := m.feeds[topic.UID]
	if f == nil {
		epoch := topic.Written().Number
		f = &feed{m: m, topic: topic, start: epoch, epoch: epoch, since: now(), opened: make(chan struct{}), ring: make([]*entry, ringEvents), parts: map[part]int{}}
		var fctx context.Context
		fctx, f.cancel = context.WithCancel(context.Background())
		m.feeds[topic.UID] = f
		m.metrics.feeds.Inc()
		m.running.Go(func() { f.run(fctx) })
	}
	f.users++
	m.feedMu.Unlock()
	select {
	case <-f.opened:
		if f.err != nil {
			f.release()
			return nil, f.err
		}
		return f, nil
	case <-ctx.Done():
		f.release()
		return nil, fault.From(ctx.Err())
	}
}

// release gives a user's part in the feed up.
func (f *feed) release() {
	f.m.feedMu.Lock()
	defer f.m.feedMu.Unlock()
	if f.users--; f.users == 0 {
		f.forgetLocked()
	}
}

// forgetLocked ends the feed: who wants the topic from now on gets another one.
func (f *feed) forgetLocked() {
	if f.m.feeds[f.topic.UID] == f {
		delete(f.m.feeds, f.topic.UID)
		f.m.metrics.feeds.Dec()
		f.cancel()
	}
}

// run reads the topic until ctx ends.
func (f *feed) run(ctx context.Context) {
	epoch := f.topic.Written()
	st, err := f.m.cfg.Store(epoch.StoreUID)
	var up store.Tail
	if err == nil {
		up, err = st.Tail(ctx, store.TailRequest{Topic: epoch.Physical, From: store.Start{End: true}, Own: true})
	}
	if err != nil {
		f.err = err
		f.m.feedMu.Lock()
		f.forgetLocked()
		f.m.feedMu.Unlock()
		close(f.opened)
		return
	}
	close(f.opened)
	r := reader{m: f.m, topic: f.topic, epoch: epoch, begin: store.Start{At: f.since}, last: map[string]store.Position{}, st: st, up: up, own: true}
	r.run(ctx, nil, func(msgs []store.Message) bool {
		f.add(r.epoch.Number, msgs)
		return true
	})
}

// add puts events of an epoch into the ring, and wakes who waits for them.
func (f *feed) add(epoch uint32, msgs []store.Message) {
	token := position.Token{TopicUID: f.topic.UID, Epoch: epoch}
	f.mu.Lock()
	f.epoch = epoch
	for i := range msgs {
		token.Pos = msgs[i].Pos
		e := &entry{event: msgs[i].Event, token: token, size: msgs[i].Held(), part: f.numberLocked(part{epoch, msgs[i].Pos.Partition})}
		p := &f.places[e.part]
		if !p.read {
			p.read, p.first = true, msgs[i].Pos
		}
		p.head = msgs[i].Pos
		for f.first < f.next && (f.next-f.first == ringEvents || f.bytes+e.size > ringBytes) {
			old := &f.ring[f.first%ringEvents]
			f.bytes -= (*old).size
			*old = nil
			f.first++
		}
		f.ring[f.next%ringEvents] = e
		f.next++
		f.bytes += e.size
	}
	waiters := f.waiters
	f.waiters = nil
	for _, c := range waiters {
		c.waiting = false
	}
	f.mu.Unlock()
	for _, c := range waiters {
		c.t.bell.ring()
	}
}

// before is the place just before a position: what begins after it begins there.
// Before the first of all there is none.
func before(p store.Position) (store.Position, bool) {
	switch {
	case p.Minor > 0:
		p.Minor--
	case p.Offset > 0:
		p.Offset, p.Minor = p.Offset-1, math.MaxUint64
	default:
		return p, false
	}
	return p, true
}

// place is where a cursor is in one partition.
type place struct {
	pos   store.Position
	known bool
}

// numberLocked is the number of a partition.
func (f *feed) numberLocked(p part) int {
	n, known := f.parts[p]
	if !known {
		n = len(f.places)
		f.parts[p] = n
		f.places = append(f.places, partition{})
	}
	return n
}

// numberedLocked gives the places of positions of an epoch by the feed's numbers of
// partitions.
func (f *feed) numberedLocked(epoch uint32, last map[string]store.Position) []place {
	for p := range last {
		f.numberLocked(part{epoch, p})
	}
	out := make([]place, len(f.places))
	for p, pos := range last {
		out[f.parts[part{epoch, p}]] = place{pos, true}
	}
	return out
}
