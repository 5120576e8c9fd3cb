// Package facts remembers what happened to events lately, so that people can ask.
//
// A Ring is bounded: 65,536 facts of 72 bytes, and the names that they need. It is
// divided by the hash of an event's source and id, so that what happened to one event
// is in one place, and so that those who write seldom meet. Writing allocates nothing
// once the names are known.
package facts

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// Kind is what happened.
type Kind uint8

// The kinds, in the order of the protocol's.
const (
	Refused Kind = iota + 1
	Failed
	Stored
	Filtered
	Delivered
	Acked
	Nacked
	TimedOut
	Retried
	DeadLettered
	Redriven
)

// Fact is one thing that happened to an event.
type Fact struct {
	// At in Unix nanoseconds, by the proxy's clock.
	At        int64
	Kind      Kind
	Namespace string
	// Topic that it was published to; with a Subscription, the one that keeps it.
	Topic string
	// Kept is the topic that keeps what was stored, where that is another one.
	Kept         string
	Subscription string
	// Position is where it is kept; its TopicUID is "" where that is not known.
	Position position.Token
	Attempt  int
	// Detail is for people. MaxDetail bytes of it are kept, for a while.
	Detail string
}

// Sizes of a Ring.
const (
	shards     = 8
	perShard   = 8192
	maxNames   = 16384 // of a shard
	texts      = 256   // details of a shard
	MaxDetail  = 200
	mixedPrime = 0x9e3779b97f4a7c15
)

// Ring remembers. A nil Ring remembers nothing. It is safe for concurrent use.
type Ring struct {
	seed   maphash.Seed
	clock  clock.Clock
	began  int64
	shards [shards]shard
}

// record is a Fact as it is kept: no pointers, so that the collector has nothing to
// look at. Names are indexes of the shard's table.
type record struct {
	hash, offset, minor                                  uint64
	at                                                   int64
	namespace, topic, kept, subscription, uid, partition uint32
	text, epoch                                          uint32
	attempt                                              uint16
	kind                                                 Kind
}

type shard struct {
	mu      sync.Mutex
	next    int // where the next one goes
	full    bool
	records []record
	ids     map[string]uint32
	names   []string
	texts   [texts]string
	text    uint32 // of the newest, counted from 1
	// last is what each of a record's names was before: mostly it is so again.
	last [6]struct {
		name string
		id   uint32
	}
	_ [64]byte
}

// New makes a Ring.
func New(c clock.Clock) *Ring {
	r := &Ring{seed: maphash.MakeSeed(), clock: c, began: c.Now().UnixNano()}
	for i := range r.shards {
		s := &r.shards[i]
		s.records = make([]record, perShard) // not touched, and so no memory, until it is used
		s.reset()
	}
	return r
}

func (s *shard) reset() {
	s.ids, s.names, s.next, s.full = map[string]uint32{"": 0}, []string{""}, 0, false
	clear(s.last[:])
}

// Now is the time for Fact.At, read once for several facts.
func (r *Ring) Now() int64 {
	if r == nil {
		return 0
	}
	return r.clock.Now().UnixNano()
}

func (r *Ring) hash(source, id string) uint64 {
	return maphash.String(r.seed, source)*mixedPrime ^ maphash.String(r.seed, id)
}

// Add remembers a fact about e. It borrows both.
func (r *Ring) Add(e *event.Event, f *Fact) {
	if r == nil {
		return
	}
	h := r.hash(e.Source, e.ID)
	s := &r.shards[h%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) > maxNames {
		s.reset() // topics that have come and gone; begin again
	}
	rec := record{hash: h, at: f.At, kind: f.Kind, attempt: uint16(min(f.Attempt, 1<<16-1)), offset: f.Position.Pos.Offset, minor: f.Position.Pos.Minor, epoch: f.Position.Epoch, //nolint:gosec // bounded
		namespace: s.id(0, f.Namespace), topic: s.id(1, f.Topic), kept: s.id(2, f.Kept), subscription: s.id(3, f.Subscription), uid: s.id(4, f.Position.TopicUID), partition: s.id(5, f.Position.Pos.Partition)}
	if f.Detail != "" {
		rec.text = s.keep(f.Detail)
	}
	s.records[s.next] = rec
	if s.next++; s.next == perShard {
		s.next, s.full = 0, true
	}
}

// id is the index of a name, the which-th of a record.
func (s *shard) id(which int, name string) uint32 {
	last := &s.last[which]
	if name == last.name {
		return last.id
	}
	if id, ok := s.ids[name]; ok {
		last.name, last.id = s.names[id], id
		return id
	}
	name = strings.Clone(name)
	id := uint32(len(s.names)) //nolint:gosec // bounded by maxNames and a few
	s.ids[name], s.names = id, append(s.names, name)
	last.name, last.id = name, id
	return id
}

// keep remembers a text until texts others have come.
func (s *shard) keep(text string) uint32 {
	text = strings.ToValidUTF8(text[:min(len(text), MaxDetail)], "")
	if s.text == 0 || s.texts[s.text%texts] != text {
		s.text++
		s.texts[s.text%texts] = strings.Clone(text)
	}
	return s.text
}

// Of are the facts about an event, oldest first, and since when nothing about it was
// forgotten.
func (r *Ring) Of(source, id string) (facts []Fact, since time.Time) {
	if r == nil {
		return nil, time.Time{}
	}
	h := r.hash(source, id)
	s := &r.shards[h%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	from, n, oldest := 0, s.next, r.began
	if s.full {
		from, n, oldest = s.next, perShard, s.records[s.next].at
	}
	for i := range n {
		rec := &s.records[(from+i)%perShard]
		if rec.hash != h {
			continue
		}
		f := Fact{At: rec.at, Kind: rec.kind, Namespace: s.names[rec.namespace], Topic: s.names[rec.topic], Kept: s.names[rec.kept], Subscription: s.names[rec.subscription], Attempt: int(rec.attempt)}
		f.Position.TopicUID, f.Position.Epoch = s.names[rec.uid], rec.epoch
		f.Position.Pos.Partition, f.Position.Pos.Offset, f.Position.Pos.Minor = s.names[rec.partition], rec.offset, rec.minor
		if rec.text != 0 && s.text-rec.text < texts {
			f.Detail = s.texts[rec.text%texts]
		}
		facts = append(facts, f)
	}
	return facts, time.Unix(0, oldest)
}
