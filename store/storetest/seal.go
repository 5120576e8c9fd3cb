package storetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// mark makes the event that a Seal writes: such that no client can send.
func mark(id string) *event.Event {
	return &event.Event{ID: id, Source: "/suite", Type: "t", Mesh: []event.Attr{{Name: "cut", Value: id}}}
}

// sealed seals a topic, and wants a position of each of its partitions, in order.
func (s *suite) sealed(st store.Store, topic, id string, partitions []string) map[string]store.Position {
	s.Helper()
	at, err := st.(store.Sealer).Seal(s.ctx, topic, mark(id))
	s.must("Seal", err)
	var got []string
	out := map[string]store.Position{}
	for _, p := range at {
		got = append(got, p.Partition)
		out[p.Partition] = p
	}
	if !slices.Equal(got, partitions) {
		s.Fatalf("%s was written into %q, want %q", id, got, partitions)
	}
	return out
}

// partitions are those of a topic, sorted, as a store says that has just looked.
func (s *suite) partitions(st store.Store, topic string) []string {
	s.Helper()
	parts, err := st.(store.Measurer).Extents(s.ctx, topic)
	s.must("Extents", err)
	var out []string
	for _, p := range parts {
		out = append(out, p.Partition)
	}
	slices.Sort(out)
	return out
}

// busy publishes to a topic until its end is called, each event again until it is
// kept; acknowledged is what was so far.
type busy struct {
	end  func()
	grew chan struct{} // capacity 1
	mu   sync.Mutex
	acks map[string]store.Position
}

func (b *busy) acknowledged() map[string]store.Position {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.acks)
}

func (s *suite) busily(st store.Store, topic string, publishers int) *busy {
	ctx, cancel := context.WithCancel(s.ctx)
	b := &busy{grew: make(chan struct{}, 1), acks: map[string]store.Position{}}
	var work sync.WaitGroup
	for k := range publishers {
		work.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("%d-%05d", k, i)
				key := ""
				if k%2 == 0 {
					key = fmt.Sprint("key", k, i%7)
				}
				res := make([]store.Result, 1)
				if err := st.Publish(s.ctx, topic, []store.Outgoing{ev(id, key)}, res); err != nil {
					s.Errorf("Publish: %v", err)
					return
				}
				b.mu.Lock()
				b.acks[id] = res[0].Pos
				b.mu.Unlock()
				select {
				case b.grew <- struct{}{}:
				default:
				}
			}
		})
	}
	b.end = func() { cancel(); work.Wait() }
	return b
}

// reach waits until n events are acknowledged.
func (s *suite) reach(b *busy, n int) {
	s.Helper()
	for len(b.acknowledged()) < n {
		select {
		case <-b.grew:
		case <-s.ctx.Done():
			s.Fatalf("%d of %d events are acknowledged", len(b.acknowledged()), n)
		}
	}
}

// seal seals a topic twice while others publish. What was acknowledged before lies
// before the marker in its partition, each partition has one marker of each, where it was
// said to be, and what is published afterwards lies behind.
func (s *suite) seal() {
	st := s.open()
	topic := s.topic(st, "seal", 3)
	partitions := s.partitions(st, topic)
	b := s.busily(st, topic, 4)
	s.reach(b, 60)
	before1 := b.acknowledged()
	first := s.sealed(st, topic, "first", partitions)
	s.reach(b, len(before1)+60)
	before2 := b.acknowledged()
	second := s.sealed(st, topic, "second", partitions)
	b.end()
	after := s.publishIDs(st, topic, ids("after", 40)...)

	want := b.acknowledged()
	for i, p := range after {
		want[ids("after", 40)[i]] = p
		if !second[p.Partition].Less(p) {
			s.Errorf("what was published afterwards is at %+v, the marker at %+v", p, second[p.Partition])
		}
	}
	for name, of := range map[string]struct{ acked, at map[string]store.Position }{"first": {before1, first}, "second": {before2, second}} {
		for id, p := range of.acked {
			if !p.Less(of.at[p.Partition]) {
				s.Errorf("%s was acknowledged before and lies at %+v, the %s marker at %+v", id, p, name, of.at[p.Partition])
			}
		}
	}
	s.holds(st, topic, want, map[string]map[string]store.Position{"first": first, "second": second})
}

// holds wants that a topic has these events and these markers, each once, where they
// were said to be, and nothing else.
func (s *suite) holds(st store.Store, topic string, events map[string]store.Position, markers map[string]map[string]store.Position) {
	s.Helper()
	left := map[string]bool{}
	for id, p := range events {
		left[fmt.Sprintf("%s at %+v", id, p)] = true
	}
	for id, at := range markers {
		for _, p := range at {
			left[fmt.Sprintf("%s at %+v", id, p)] = true
		}
	}
	tl, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.must("Tail", err)
	defer func() { s.must("Close", tl.Close(s.ctx)) }()
	for _, m := range s.collect(len(left), tl.Next) {
		if name := fmt.Sprintf("%s at %+v", m.ID, m.Pos); !left[name] {
			s.Errorf("%s was not written", name)
		} else {
			delete(left, name)
		}
		if cut, ok := event.Lookup(m.Mesh, "cut"); ok != (markers[m.ID] != nil) || ok && cut != m.ID {
			s.Errorf("%s came as %+v", m.ID, m.Event)
		}
	}
	for name := range left {
		s.Errorf("missing: %s", name)
	}
	passed, err := tl.Mark(s.ctx)
	s.must("Mark", err)
	if !passed() {
		s.Errorf("there is more than %d events and %d markers", len(events), len(markers))
	}
}

// sealGrown: partitions that others have added are sealed too, also by a store that has
// published to those that were there.
func (s *suite) sealGrown() {
	st := s.open()
	topic := s.topic(st, "seal-grown", 2)
	s.publishIDs(st, topic, ids("a", 10)...)
	had := s.partitions(st, topic)
	s.sealed(st, topic, "first", had)
	if s.h.Exclusive {
		return // nobody else could
	}
	other := s.open()
	s.must("EnsureTopic", admin(other).EnsureTopic(s.ctx, store.TopicSpec{Name: topic, Partitions: 5}))
	have := s.partitions(other, topic)
	if len(have) <= len(had) {
		s.Fatalf("the topic has %q and had %q", have, had)
	}
	s.sealed(st, topic, "second", have)
}

// sealFails: it says what Publish says, and no position.
func (s *suite) sealFails() {
	st := s.open()
	at, err := st.(store.Sealer).Seal(s.ctx, s.h.Topic(s.T, "nowhere"), mark("x"))
	s.class("Seal of a topic that is not there", err, fault.NotFound)
	topic := s.topic(st, "seal-fails", 2)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	late, err := st.(store.Sealer).Seal(ctx, topic, mark("x"))
	s.class("Seal with a context that ended", err, fault.Canceled, fault.Ambiguous)
	if len(at) > 0 || len(late) > 0 {
		s.Errorf("an error with positions: %v, %v", at, late)
	}
}
