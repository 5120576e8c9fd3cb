package storetest

import (
	"slices"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

func (s *suite) lag() {
	st := s.open()
	topic := s.topic(st, "lag", 2)
	s.group(st, topic, groupOf(topic), store.Start{})
	behind := func() (n int64) {
		parts, err := admin(st).Lag(s.ctx, topic, groupOf(topic))
		s.must("Lag", err)
		for _, p := range parts {
			n += p.Behind
		}
		return n
	}
	if n := behind(); n != 0 {
		s.Errorf("behind %d at the start", n)
	}
	s.publishIDs(st, topic, ids("l", 10)...)
	n := behind()
	for ; n < 10 && s.ctx.Err() == nil; n = behind() { // a store may index what it has acknowledged a moment later
	}
	if n != 10 {
		s.Errorf("behind %d, want 10", n)
	}
	sub := s.subscribe(st, topic, groupOf(topic))
	sub.Settle(s.fetch(sub, 10))
	s.closeSub(sub)
	if n := behind(); n != 0 {
		s.Errorf("behind %d after all were settled", n)
	}
}

func (s *suite) extents() {
	st := s.open()
	topic := s.topic(st, "extents", 2)
	within := func() (n uint64) {
		parts, err := st.(store.Measurer).Extents(s.ctx, topic)
		s.must("Extents", err)
		for _, p := range parts {
			n += p.End - p.Begin
		}
		return n
	}
	if n := within(); n != 0 {
		s.Errorf("an empty topic has %d", n)
	}
	s.publishIDs(st, topic, ids("x", 10)...)
	n := within()
	for ; n < 10 && s.ctx.Err() == nil; n = within() { // a store may index what it has acknowledged a moment later
	}
	if n != 10 {
		s.Errorf("it has %d, want 10", n)
	}
	parts, err := st.(store.Measurer).Extents(s.ctx, topic)
	s.must("Extents", err)
	tl, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.must("Tail", err)
	for _, m := range s.collect(10, tl.Next) {
		if !slices.ContainsFunc(parts, func(x store.Extent) bool {
			return x.Partition == m.Pos.Partition && x.Begin <= m.Pos.Offset && m.Pos.Offset < x.End
		}) {
			s.Errorf("%+v is not within %+v", m.Pos, parts)
		}
	}
	s.must("Close", tl.Close(s.ctx))
	if _, err := st.(store.Measurer).Extents(s.ctx, topic+"-none"); fault.ClassOf(err) != fault.NotFound {
		s.Errorf("a topic that is not there: %v", err)
	}
}

// empty: extents tell whether a topic is empty, and whether anything was ever in it.
func (s *suite) empty() {
	st := s.open()
	topic := s.topic(st, "empty", 2)
	for _, round := range []string{"made", "made again"} {
		parts, err := st.(store.Measurer).Extents(s.ctx, topic)
		s.must("Extents", err)
		if len(parts) == 0 {
			s.Errorf("%s: it has no partition", round)
		}
		for _, p := range parts {
			if p.Begin != 0 || p.End != 0 {
				s.Errorf("%s: a fresh topic reaches from %d to %d in %q", round, p.Begin, p.End, p.Partition)
			}
		}
		at := s.publishIDs(st, topic, "one")[0]
		for found := false; !found; { // a store may index what it has acknowledged a moment later
			parts, err := st.(store.Measurer).Extents(s.ctx, topic)
			s.must("Extents", err)
			found = slices.ContainsFunc(parts, func(x store.Extent) bool { return x.Partition == at.Partition && x.Begin < x.End })
		}
		s.must("DeleteTopic", admin(st).DeleteTopic(s.ctx, topic))
		s.must("EnsureTopic", admin(st).EnsureTopic(s.ctx, store.TopicSpec{Name: topic, Partitions: 2}))
	}
}

func (s *suite) adminConverges() {
	st := s.open()
	topic := s.topic(st, "admin", 2)
	a := admin(st)
	for range 2 {
		s.must("EnsureTopic", a.EnsureTopic(s.ctx, store.TopicSpec{Name: topic, Partitions: 2}))
	}
	s.must("EnsureTopic", a.EnsureTopic(s.ctx, store.TopicSpec{Name: topic, Partitions: 4}))
	if ok, err := a.TopicExists(s.ctx, topic); !ok || err != nil {
		s.Errorf("TopicExists: %v, %v", ok, err)
	}
	s.group(st, topic, groupOf(topic), store.Start{})
	s.publishIDs(st, topic, ids("a", 20)...)
	sub := s.subscribe(st, topic, groupOf(topic))
	sub.Settle(s.fetch(sub, 20))
	s.closeSub(sub)
	for range 2 {
		s.must("DeleteGroup", a.DeleteGroup(s.ctx, topic, groupOf(topic)))
	}
	for range 2 {
		s.must("DeleteTopic", a.DeleteTopic(s.ctx, topic))
	}
	if ok, err := a.TopicExists(s.ctx, topic); ok || err != nil {
		s.Errorf("TopicExists after DeleteTopic: %v, %v", ok, err)
	}
}
