package storetest

import (
	"math"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// begins wants a new group that begins at from to get want, and nothing else.
func (s *suite) begins(st store.Store, topic, group string, from store.Start, want []string) {
	s.Helper()
	s.group(st, topic, topic+group, from)
	s.got(st, topic, group, want)
}

// got wants a group that is there to get want, and nothing else.
func (s *suite) got(st store.Store, topic, group string, want []string) {
	s.Helper()
	sub := s.subscribe(st, topic, topic+group)
	defer s.closeSub(sub)
	if len(want) > 0 {
		got := s.fetch(sub, len(want))
		s.same(group, idsOf(got), want)
		sub.Settle(got)
	}
	s.nothing(sub, group)
}

// read reads the first n events of a topic.
func (s *suite) read(st store.Store, topic string, n int) []*store.Message {
	s.Helper()
	tl, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.must("Tail", err)
	defer func() { s.must("Close", tl.Close(s.ctx)) }()
	return s.collect(n, tl.Next)
}

// groupStartAt begins groups at times: of an event in the midst, before and after all.
func (s *suite) groupStartAt() {
	st := s.open()
	topic := s.topic(st, "start-at", 2)
	s.publishIDs(st, topic, ids("a", 10)...)
	s.publishIDs(st, topic, ids("b", 10)...)
	all := s.read(st, topic, 20)
	var mid, last time.Time
	for _, m := range all {
		if m.ID[0] == 'b' && (mid.IsZero() || m.Stored.Before(mid)) {
			mid = m.Stored
		}
		if m.Stored.After(last) {
			last = m.Stored
		}
	}
	var want []string
	for _, m := range all {
		if !m.Stored.Before(mid) {
			want = append(want, m.ID)
		}
	}
	s.begins(st, topic, "mid", store.Start{At: mid}, want)
	s.begins(st, topic, "before", store.Start{At: last.Add(-24 * time.Hour)}, idsOf(all))
	s.group(st, topic, topic+"later", store.Start{At: last.Add(time.Second)})
	s.publishIDs(st, topic, "c")
	s.got(st, topic, "later", []string{"c"})
}

// groupStartAfter begins groups after a position of one partition: the others begin
// where the rest of Start says.
func (s *suite) groupStartAfter() {
	st := s.open()
	topic := s.topic(st, "start-after", 2)
	s.publishIDs(st, topic, ids("a", 20)...)
	all := s.read(st, topic, 20)
	after := all[0].Pos // of a partition with another event, where there are two
	var same, others []string
	for _, m := range all {
		switch {
		case m.Pos.Partition != after.Partition:
			others = append(others, m.ID)
		case after.Less(m.Pos):
			same = append(same, m.ID)
		}
	}
	s.begins(st, topic, "beginning", store.Start{After: []store.Position{after}}, append(same, others...))
	s.begins(st, topic, "end", store.Start{End: true, After: []store.Position{after}}, same)
	lasts := map[string]store.Position{}
	for _, m := range all {
		if p, ok := lasts[m.Pos.Partition]; !ok || p.Less(m.Pos) {
			lasts[m.Pos.Partition] = m.Pos
		}
	}
	from := store.Start{}
	for _, p := range lasts {
		from.After = append(from.After, p)
	}
	s.group(st, topic, topic+"all", from)
	s.publishIDs(st, topic, "new")
	s.got(st, topic, "all", []string{"new"})
}

// groupStartRefused: a position that the topic does not have makes no group.
func (s *suite) groupStartRefused() {
	st := s.open()
	topic := s.topic(st, "start-refused", 2)
	s.publishIDs(st, topic, ids("a", 4)...)
	at := s.read(st, topic, 4)[0].Pos
	elsewhere, beyond, far := at, at, at
	elsewhere.Partition += "-none"
	beyond.Offset += 1000
	far.Offset = math.MaxUint64
	for what, p := range map[string]store.Position{"another partition": elsewhere, "beyond the end": beyond, "no offset": far} {
		s.class(what, admin(st).EnsureGroup(s.ctx, topic, groupOf(topic), store.Start{After: []store.Position{p}}), fault.Precondition)
	}
	// Nothing is left of it.
	s.group(st, topic, groupOf(topic), store.Start{})
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	sub.Settle(s.fetch(sub, 4))
	// A group that is there is left where it is, whatever is asked.
	s.group(st, topic, groupOf(topic), store.Start{After: []store.Position{beyond}})
}
