package storetest

import (
	"time"

	"github.com/weft-mesh/weft/store"
)

func (s *suite) tail() {
	st := s.open()
	topic := s.topic(st, "tail", 2)
	s.publishIDs(st, topic, ids("a", 10)...)
	end, err := st.Tail(s.ctx, store.TailRequest{Topic: topic, From: store.Start{End: true}})
	s.must("Tail", err)
	begin, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.must("Tail", err)
	s.publishIDs(st, topic, ids("b", 10)...)
	s.same("from the end", idsOf(s.collect(10, end.Next)), ids("b", 10))
	all := s.collect(20, begin.Next)
	s.same("from the beginning", idsOf(all), append(ids("a", 10), ids("b", 10)...))
	s.must("Close", end.Close(s.ctx))
	s.must("Close", begin.Close(s.ctx))
	if !s.h.Expect.Replay {
		return
	}
	var oldest time.Time
	for _, m := range all {
		if m.ID[0] == 'b' && (oldest.IsZero() || m.Stored.Before(oldest)) {
			oldest = m.Stored
		}
	}
	var want []string
	for _, m := range all {
		if !m.Stored.Before(oldest) {
			want = append(want, m.ID)
		}
	}
	byTime, err := st.Tail(s.ctx, store.TailRequest{Topic: topic, From: store.Start{At: oldest}})
	s.must("Tail", err)
	s.same("from a time", idsOf(s.collect(len(want), byTime.Next)), want)
	s.must("Close", byTime.Close(s.ctx))
}

// tailResumes reads in parts, each from the positions of the last: no gap and
// no repeat.
func (s *suite) tailResumes() {
	st := s.open()
	topic := s.topic(st, "resume", 3)
	want := ids("r", 90)
	s.publishIDs(st, topic, want...)
	after := map[string]store.Position{}
	var got []string
	for len(got) < len(want) {
		from := store.Start{}
		for _, p := range after {
			from.After = append(from.After, p)
		}
		tl, err := st.Tail(s.ctx, store.TailRequest{Topic: topic, From: from})
		s.must("Tail", err)
		for _, m := range s.collect(min(7, len(want)-len(got)), tl.Next) {
			if last, ok := after[m.Pos.Partition]; ok && !last.Less(m.Pos) {
				s.Errorf("%s at %+v comes after %+v", m.ID, m.Pos, last)
			}
			after[m.Pos.Partition] = m.Pos
			got = append(got, m.ID)
		}
		s.must("Close", tl.Close(s.ctx))
	}
	s.same("in parts", got, want)
}

// tailMark: a mark is passed once everything before it was given, and not earlier.
func (s *suite) tailMark() {
	st := s.open()
	topic := s.topic(st, "mark", 3)
	s.publishIDs(st, topic, ids("a", 20)...)
	tl, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.must("Tail", err)
	passed, err := tl.Mark(s.ctx)
	s.must("Mark", err)
	s.publishIDs(st, topic, ids("b", 20)...)
	for before, all := 0, 0; all < 40; all++ {
		if passed() != (before == 20) {
			s.Fatalf("%d of the 20 events before the mark were given, passed says %v", before, passed())
		}
		if s.collect(1, tl.Next)[0].ID[0] == 'a' {
			before++
		}
	}
	for !tl.AtEnd() && s.ctx.Err() == nil {
	}
	again, err := tl.Mark(s.ctx)
	s.must("Mark", err)
	end, err := st.Tail(s.ctx, store.TailRequest{Topic: topic, From: store.Start{End: true}})
	s.must("Tail", err)
	atEnd, err := end.Mark(s.ctx)
	s.must("Mark", err)
	if !passed() || !again() || !atEnd() {
		s.Errorf("at the end the first mark is passed: %v, one of now: %v, one of a tail that begins there: %v", passed(), again(), atEnd())
	}
	s.must("Close", tl.Close(s.ctx))
	s.must("Close", end.Close(s.ctx))
}
