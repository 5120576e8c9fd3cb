// Package facts remembers what happened to events lately, so that people can ask.
//
// A Ring is bounded: 65,536 facts of 72 bytes, and the names that they need. That a
// delivery was acknowledged is kept with the delivery. The ring is
// divided by the hash of an event's source and id, so that what happened to one event
// is in one place, and so that those who write seldom meet. Writing allocates nothing
// once the names are known.
package facts

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
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

// Unknown begins the detail of a publish that Failed and may have been kept all the same.
const Unknown = "the outcome is unknown: "

// MayBeKept reports whether f is of a publish that failed and may have been kept: also where
// its detail is forgotten.
func (f *Fact) MayBeKept() bool {
	return f.Kind == Failed && (f.Detail == "" || strings.HasPrefix(f.Detail, Unknown))
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
	shards [shards]shard
}

// record is a Fact as it is kept: no pointers, so that the collector has nothing to
// look at. Names are indexes of the shard's table.
type record struct {
	hash, offset, minor uint64
	at                  int64
	named
	text, epoch uint32
	acked       uint32 // how long after at, in ackedUnit and counted from 1; 0: it was not
	attempt     uint16
	kind        Kind
}

// ackedUnit is what a record can tell of when a delivery was acknowledged; half a day of
// it is the most.
const ackedUnit = 10 * time.Microsecond

// Ref is a fact that was added, for Acked.
type Ref uint64 // the shard, and above it which of its facts, counted from 1

type shard struct {
	mu      sync.Mutex
	n       uint64 // facts that were added; the last is at (n-1)%perShard
	from    uint64 // those that were forgotten when names were
	since   int64  // nothing was forgotten after that, but what the ring has no room for
	records []record
	ids     map[string]uint32
	names   []string
	texts   [texts]string
	text    uint32 // of the newest, counted from 1
	// last are the names of the record before: mostly they are so again.
	last struct {
		named
		Fact // of which it has the names alone
	}
	_ [64]byte
}

// named are the names of a fact, as indexes of a shard's table.
type named struct{ namespace, topic, kept, subscription, uid, partition uint32 }

// New makes a Ring.
func New(c clock.Clock) *Ring {
	r := &Ring{seed: maphash.MakeSeed(), clock: c}
	began := c.Now().UnixNano()
	for i := range r.shards {
		s := &r.shards[i]
		s.records = make([]record, perShard) // not touched, and so no memory, until it is used
		s.reset(began)
	}
	return r
}

// reset forgets all, which was before at.
func (s *shard) reset(at int64) {
	s.ids, s.names, s.from, s.since = map[string]uint32{"": 0}, []string{""}, s.n, at
	s.last.named, s.last.Fact = named{}, Fact{}
}

// oldest is the first fact that is not forgotten, counted from 0.
func (s *shard) oldest() uint64 {
	if s.n-s.from > perShard {
		return s.n - perShard
	}
	return s.from
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
func (r *Ring) Add(e *event.Event, f *Fact) Ref {
	if r == nil {
		return 0
	}
	h := r.hash(e.Source, e.ID)
	s := &r.shards[h%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) > maxNames {
		s.reset(f.At) // topics that have come and gone; begin again
	}
	rec := &s.records[s.n%perShard]
	*rec = record{hash: h, at: f.At, kind: f.Kind, attempt: uint16(min(f.Attempt, 1<<16-1)), offset: f.Position.Pos.Offset, minor: f.Position.Pos.Minor, epoch: f.Position.Epoch, named: *s.look(f)} //nolint:gosec // bounded
	if f.Detail != "" {
		rec.text = s.keep(f.Detail)
	}
	s.n++
	return Ref(s.n*shards + h%shards)
}

// Acked remembers that the delivery that ref is of was acknowledged at a time of Now. It
// reports whether it could: not of one that was forgotten, or was acknowledged after half
// a day.
func (r *Ring) Acked(ref Ref, at int64) bool {
	if r == nil || ref == 0 {
		return r == nil
	}
	s, nth := &r.shards[ref%shards], uint64(ref/shards)-1
	s.mu.Lock()
	defer s.mu.Unlock()
	if nth < s.oldest() {
		return false
	}
	rec := &s.records[nth%perShard]
	after := max(at-rec.at, 0)/int64(ackedUnit) + 1
	if after > math.MaxUint32 {
		return false
	}
	rec.acked = uint32(after)
	return true
}

// look gives the indexes of a fact's names.
func (s *shard) look(f *Fact) *named {
	l := &s.last
	if f.Namespace != l.Namespace {
		l.Namespace, l.named.namespace = s.id(f.Namespace)
	}
	if f.Topic != l.Topic {
		l.Topic, l.named.topic = s.id(f.Topic)
	}
	if f.Kept != l.Kept {
		l.Kept, l.named.kept = s.id(f.Kept)
	}
	if f.Subscription != l.Subscription {
		l.Subscription, l.named.subscription = s.id(f.Subscription)
	}
	if f.Position.TopicUID != l.Position.TopicUID {
		l.Position.TopicUID, l.uid = s.id(f.Position.TopicUID)
	}
	if f.Position.Pos.Partition != l.Position.Pos.Partition {
		l.Position.Pos.Partition, l.partition = s.id(f.Position.Pos.Partition)
	}
	return &l.named
}

// id gives a name as the table has it, and its index there.
func (s *shard) id(name string) (string, uint32) {
	if id, ok := s.ids[name]; ok {
		return s.names[id], id
	}
	name = strings.Clone(name)
	id := uint32(len(s.names)) //nolint:gosec // bounded by maxNames and a few
	s.ids[name], s.names = id, append(s.names, name)
	return name, id
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
	from, oldest := s.oldest(), s.since
	if from > s.from {
		oldest = s.records[from%perShard].at
	}
	for nth := from; nth < s.n; nth++ {
		rec := &s.records[nth%perShard]
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
		if rec.acked != 0 {
			f.At, f.Kind = rec.at+int64(rec.acked-1)*int64(ackedUnit), Acked
			facts = append(facts, f)
		}
	}
	slices.SortStableFunc(facts, func(a, b Fact) int { return cmp.Compare(a.At, b.At) })
	return facts, time.Unix(0, oldest)
}
