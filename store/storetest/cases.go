package storetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

func (s *suite) capabilities() {
	got, err := s.open().Probe(s.ctx)
	s.must("Probe", err)
	if got.MaxEventBytes < 1<<20 || got.RedeliveryWindow <= 0 || got.CommitInterval <= 0 || got.Product == "" {
		s.Errorf("incomplete: %+v", got)
	}
	want := s.h.Expect
	got.Product, got.Version, got.MaxEventBytes, got.RedeliveryWindow, got.CommitInterval = want.Product, want.Version, want.MaxEventBytes, want.RedeliveryWindow, want.CommitInterval
	if got != want {
		s.Errorf("got %+v, want %+v", got, want)
	}
}

func (s *suite) roundTrip() {
	st := s.open()
	topic := s.topic(st, "round", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	events := map[string]*event.Event{}
	for _, e := range []event.Event{
		{ID: "plain", Source: "/s", Type: "t", Data: []byte("x")},
		{ID: "empty", Source: "/s", Type: "t"},
		{ID: "zeros", Source: "/s", Type: "t", Data: make([]byte, 300)},
		{ID: "full", Source: "urn:x:1", Type: "com.example.t", Subject: "a/b/c", Time: "2026-01-02T03:04:05.123456789Z",
			DataContentType: "application/json", DataSchema: "https://example.com/s", Data: []byte(`{"a":"b"}`),
			Ext:  []event.Attr{{Name: "partitionkey", Value: "k"}, {Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},
			Mesh: []event.Attr{{Name: "retry-attempt", Value: "3"}, {Name: "retry-reason", Value: "it failed"}}},
		{ID: "unicode-žluť-🐎", Source: "/ž", Type: "t", Subject: "Ω 漢字", Ext: []event.Attr{{Name: "x", Value: "ä ö ü"}}, Data: []byte("žluť")},
		{ID: "spaces and %41 = & ; , \" '", Source: "/s?a=b&c=d", Type: "t", Data: []byte("x")},
		{ID: "long", Source: "/s", Type: "t", Subject: strings.Repeat("s", event.MaxAttributeValue), Ext: []event.Attr{{Name: "a", Value: strings.Repeat("v", event.MaxAttributeValue)}}},
		{ID: "big", Source: "/s", Type: "t", Data: big},
	} {
		events[e.ID] = &e
	}
	many := &event.Event{ID: "many", Source: "/s", Type: "t", Data: []byte("x")}
	for i := range event.MaxAttributes {
		many.Ext = append(many.Ext, event.Attr{Name: fmt.Sprintf("attr%02d", i), Value: fmt.Sprint(i)})
	}
	events["many"] = many
	for _, e := range events {
		if err := e.Validate(); err != nil {
			s.Fatalf("the suite's own event: %v", err)
		}
		s.publish(st, topic, store.Outgoing{Event: e})
	}
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	for _, m := range s.fetch(sub, len(events)) {
		want := events[m.ID]
		if want == nil {
			s.Errorf("got an event %q that was not published", m.ID)
			continue
		}
		got := m.Event
		if len(got.Data) == 0 {
			got.Data = nil
		}
		if !reflect.DeepEqual(got, *want) {
			got.Data, want.Data = got.Data[:min(len(got.Data), 40)], want.Data[:min(len(want.Data), 40)]
			s.Errorf("%s: got %+v, want %+v", m.ID, got, *want)
		}
		if m.Stored.IsZero() || time.Since(m.Stored) > time.Hour {
			s.Errorf("%s: stored at %v", m.ID, m.Stored)
		}
		sub.Settle([]*store.Message{m})
	}
}

func (s *suite) order() {
	st := s.open()
	topic := s.topic(st, "order", 4)
	s.group(st, topic, groupOf(topic), store.Start{})
	const keys, each = 8, 40
	var wg sync.WaitGroup
	for k := range keys {
		wg.Go(func() {
			key := fmt.Sprintf("key-%d", k)
			for i := 0; i < each; i += 4 {
				var batch []store.Outgoing
				for j := range 4 {
					batch = append(batch, ev(fmt.Sprintf("%s/%04d", key, i+j), key))
				}
				if err := st.Publish(s.ctx, topic, batch, make([]store.Result, len(batch))); err != nil {
					s.Errorf("Publish: %v", err)
				}
			}
		})
	}
	wg.Wait()
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	last := map[string]string{}
	for _, m := range s.fetch(sub, keys*each) {
		key, seq, _ := strings.Cut(m.ID, "/")
		if seq <= last[key] {
			s.Errorf("%s: %s came after %s", key, seq, last[key])
		}
		last[key] = seq
		sub.Settle([]*store.Message{m})
	}
}

func (s *suite) batch() {
	st := s.open()
	topic := s.topic(st, "batch", 4)
	s.group(st, topic, groupOf(topic), store.Start{})
	want := ids("b", 200)
	pos := s.publishIDs(st, topic, want...)
	seen := map[store.Position]bool{}
	for _, p := range pos {
		if seen[p] {
			s.Errorf("two events have the position %+v", p)
		}
		seen[p] = true
	}
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	got := s.fetch(sub, len(want))
	s.same("fetched", idsOf(got), want)
	for _, m := range got {
		i := slices.Index(want, m.ID)
		if pos[i] != m.Pos {
			s.Errorf("%s was published at %+v and fetched at %+v", m.ID, pos[i], m.Pos)
		}
		sub.Settle([]*store.Message{m})
	}
}

func (s *suite) tooLarge() {
	st := s.open()
	topic := s.topic(st, "large", 1)
	caps, err := st.Probe(s.ctx)
	s.must("Probe", err)
	e := ev("large", "")
	e.Data = make([]byte, caps.MaxEventBytes+1)
	res := make([]store.Result, 1)
	s.class("Publish of an event that is too large", st.Publish(s.ctx, topic, []store.Outgoing{e}, res), fault.TooLarge)
	s.class("its result", res[0].Err, fault.TooLarge)
	s.publishIDs(st, topic, "small")
}

func (s *suite) unknownTopic() {
	st := s.open()
	topic := s.h.Topic(s.T, "nowhere")
	res := make([]store.Result, 1)
	s.class("Publish", st.Publish(s.ctx, topic, []store.Outgoing{ev("x", "")}, res), fault.NotFound)
	s.class("its result", res[0].Err, fault.NotFound)
	_, err := st.Tail(s.ctx, store.TailRequest{Topic: topic})
	s.class("Tail", err, fault.NotFound)
	if ok, err := admin(st).TopicExists(s.ctx, topic); ok || err != nil {
		s.Errorf("TopicExists: %v, %v", ok, err)
	}
}

func (s *suite) publishCanceled() {
	st := s.open()
	topic := s.topic(st, "canceled", 1)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	res := make([]store.Result, 1)
	s.class("Publish with a context that ended", st.Publish(ctx, topic, []store.Outgoing{ev("x", "")}, res), fault.Canceled, fault.Ambiguous)
	s.class("its result", res[0].Err, fault.Canceled, fault.Ambiguous)
}

func (s *suite) hand() {
	st := s.open()
	h, ok := st.(store.Hander)
	if ok != s.h.Hander {
		s.Error("the store implements Hander, but is not expected to, or the other way round")
	}
	if !ok {
		return
	}
	topic := s.topic(st, "hand", 2)
	const calls, each = 20, 3
	hand := func(call int) func(context.Context, []store.Result) error {
		events := make([]store.Outgoing, each)
		for i := range events {
			events[i] = ev(fmt.Sprint(call, "-", i), "k")
		}
		wait, err := h.Hand(s.ctx, topic, events)
		s.must("Hand", err)
		return wait
	}
	var waits [calls]func(context.Context, []store.Result) error
	for i := range waits {
		waits[i] = hand(i)
	}
	var got [calls][]store.Result
	for i := range slices.Backward(waits[:]) { // whoever waits first
		got[i] = make([]store.Result, each)
		s.must("wait", waits[i](s.ctx, got[i]))
	}
	all := slices.Concat(got[:]...)
	for i, r := range all[1:] {
		if before := all[i].Pos; r.Pos.Partition != before.Partition || !before.Less(r.Pos) {
			s.Errorf("event %d is at %v, the one before at %v", i+1, r.Pos, before)
		}
	}

	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	wait, err := h.Hand(ctx, topic, []store.Outgoing{ev("never", "k")})
	if s.class("Hand with a context that ended", err, fault.Canceled); wait != nil {
		s.Error("what was not handed over is waited for")
	}
	res := make([]store.Result, each)
	if err := hand(calls)(ctx, res); err != nil {
		s.class("waiting with a context that ended", err, fault.Canceled, fault.Ambiguous)
	}
	wait, err = h.Hand(s.ctx, s.h.Topic(s.T, "nowhere"), []store.Outgoing{ev("x", "")})
	if s.class("Hand to no topic", err, fault.NotFound); wait != nil {
		s.Error("what was not handed over is waited for")
	}
}

func (s *suite) settleAnyOrder() {
	st := s.open()
	topic := s.topic(st, "any", 2)
	s.group(st, topic, groupOf(topic), store.Start{})
	want := ids("s", 60)
	s.publishIDs(st, topic, want...)
	sub := s.subscribe(st, topic, groupOf(topic))
	msgs := s.fetch(sub, len(want))
	rand.Shuffle(len(msgs), func(i, j int) { msgs[i], msgs[j] = msgs[j], msgs[i] })
	for _, m := range msgs {
		if stale := sub.Settle([]*store.Message{m}); stale != 0 {
			s.Errorf("%s is stale", m.ID)
		}
	}
	s.closeSub(sub)
	st = s.open()
	s.publishIDs(st, topic, "after")
	sub = s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	if got := idsOf(s.fetch(sub, 1)); got[0] != "after" {
		s.Errorf("%s was settled and comes again", got[0])
	}
}

func (s *suite) unsettledComesAgain() {
	st := s.open()
	topic := s.topic(st, "again", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	want := ids("u", 20)
	s.publishIDs(st, topic, want...)
	sub := s.subscribe(st, topic, groupOf(topic))
	msgs := s.fetch(sub, len(want))
	// Every third is settled: those below the oldest unsettled one stay so,
	// all others may come again and those unsettled must.
	must := map[string]bool{}
	for i, m := range msgs {
		if i%3 == 0 {
			sub.Settle([]*store.Message{m})
		} else {
			must[m.ID] = true
		}
	}
	s.closeSub(sub)
	st = s.open()
	sub = s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for n := 0; len(must) > 0 && n < 2*len(want); n++ {
		var dst [1]store.Message
		if _, err := sub.Fetch(ctx, dst[:]); err != nil {
			s.Fatalf("Fetch: %v; missing %v", err, must)
		}
		if dst[0].ID == msgs[0].ID {
			s.Errorf("%s was settled below everything unsettled and comes again", dst[0].ID)
		}
		if must[dst[0].ID] && !dst[0].Redelivered {
			s.Errorf("%s comes again and is not marked so", dst[0].ID)
		}
		delete(must, dst[0].ID)
		sub.Settle([]*store.Message{&dst[0]})
	}
	if len(must) > 0 {
		s.Errorf("unsettled and never seen again: %v", must)
	}
}

func (s *suite) window() {
	const window = 16
	st := s.openWindow(window)
	topic := s.topic(st, "window", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	s.publishIDs(st, topic, ids("w", 3*window)...)
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	msgs := s.fetch(sub, window)
	s.nothing(sub, "the window is full")
	// What is settled above the lowest unsettled one makes no room.
	sub.Settle(msgs[1:])
	s.nothing(sub, "the lowest is unsettled")
	sub.Settle(msgs[:1])
	sub.Settle(s.fetch(sub, window))
	sub.Settle(s.fetch(sub, window))
}

func (s *suite) halfWindow() {
	const window = 16
	st := s.openWindow(window)
	topic := s.topic(st, "half", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	all := ids("h", 10*window)
	s.publishIDs(st, topic, all...)
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	var got []string
	for range all {
		one := s.fetch(sub, 1)
		got = append(got, idsOf(one)...)
		sub.Settle(one)
	}
	s.same("they come", got, all)
}

func (s *suite) staleSettle() {
	st := s.open()
	topic := s.topic(st, "stale", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	s.publishIDs(st, topic, "a", "b")
	sub := s.subscribe(st, topic, groupOf(topic))
	msgs := s.fetch(sub, 2)
	if stale := sub.Settle(msgs[:1]); stale != 0 {
		s.Errorf("%d stale", stale)
	}
	if stale := sub.Settle(msgs[:1]); stale != 1 {
		s.Errorf("settled twice: %d stale", stale)
	}
	s.closeSub(sub)
	if stale := sub.Settle(msgs[1:]); stale != 1 {
		s.Errorf("settled after Close: %d stale", stale)
	}
	st = s.open()
	sub = s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	if got := idsOf(s.fetch(sub, 1)); got[0] != "b" {
		s.Errorf("got %v, want b, which was never settled", got)
	}
}

func (s *suite) delay() {
	st := s.open()
	d, ok := st.(store.Delayer)
	if !ok || s.h.Expect.Delay == 0 {
		if ok != (s.h.Expect.Delay > 0) {
			s.Error("the store implements Delayer, but is not expected to delay, or the other way round")
		}
		return
	}
	topic := s.topic(st, "delay", 1)
	s.group(st, topic, groupOf(topic), store.Start{})
	due := time.Now().Add(1500 * time.Millisecond)
	events := []store.Outgoing{ev("late", ""), ev("later", "")}
	res := make([]store.Result, 2)
	s.must("PublishDelayed", d.PublishDelayed(s.ctx, topic, events, []time.Time{due, due.Add(2500 * time.Millisecond)}, res))
	s.publishIDs(st, topic, "now")
	sub := s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	for _, want := range []string{"now", "late", "later"} {
		m := s.fetch(sub, 1)[0]
		if m.ID != want {
			s.Errorf("got %s, want %s", m.ID, want)
		}
		if want == "late" && time.Now().Before(due) {
			s.Errorf("%s came %s early", m.ID, time.Until(due))
		}
		sub.Settle([]*store.Message{m})
	}
	if err := d.PublishDelayed(s.ctx, topic, events[:1], []time.Time{time.Now().Add(s.h.Expect.Delay + 48*time.Hour)}, res[:1]); err == nil {
		s.Error("a delay beyond what the store has is accepted")
	}
}

// hammer settles at random while members come and go, and checks the promise:
// what was acknowledged is delivered, and what was settled before a clean end,
// below everything unsettled, is not delivered after it.
func (s *suite) hammer() {
	seed := uint64(time.Now().UnixNano())
	s.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	st := s.openWindow(64)
	topic := s.topic(st, "hammer", 3)
	s.group(st, topic, groupOf(topic), store.Start{})
	settled, partitions := map[string]bool{}, map[string]bool{}
	published := 0
	total := 600
	for round := 0; len(settled) < total; round++ {
		if round > 200 {
			s.Fatalf("%d of %d settled after %d rounds", len(settled), total, round)
		}
		if published < total {
			n := min(1+rnd.IntN(80), total-published)
			for _, pos := range s.publishIDs(st, topic, ids(fmt.Sprintf("h%d-", published), n)...) {
				partitions[pos.Partition] = true
			}
			published += n
		}
		sub := s.subscribe(st, topic, groupOf(topic))
		var held []*store.Message
		for len(settled)+len(held) < published && rnd.IntN(20) > 0 {
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			dst := make([]store.Message, 1+rnd.IntN(16))
			n, err := sub.Fetch(ctx, dst)
			cancel()
			if err != nil {
				break // the window is full, or its end was reached
			}
			for i := range dst[:n] {
				held = append(held, &dst[i])
			}
			rnd.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
			k := rnd.IntN(len(held) + 1)
			sub.Settle(held[:k])
			for _, m := range held[:k] {
				settled[m.ID] = true
			}
			held = held[k:]
		}
		s.closeSub(sub)
	}
	// Everything is settled, but what lay above something unsettled when a member
	// left comes once more: up to a mark in every partition.
	marks := map[string]bool{}
	for i := 0; len(partitions) > 0; i++ {
		id := fmt.Sprintf("mark-%d", i)
		marks[id] = true
		delete(partitions, s.publishIDs(st, topic, id)[0].Partition)
	}
	sub := s.subscribe(st, topic, groupOf(topic))
	for len(marks) > 0 {
		m := s.fetch(sub, 1)
		delete(marks, m[0].ID)
		sub.Settle(m)
	}
	s.closeSub(sub)
	s.publishIDs(st, topic, "last")
	sub = s.subscribe(st, topic, groupOf(topic))
	defer s.closeSub(sub)
	if got := idsOf(s.fetch(sub, 1)); got[0] != "last" {
		s.Errorf("%s was settled and comes again", got[0])
	}
}
