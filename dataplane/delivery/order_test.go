package delivery

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
)

// newOrderedWorld is a world on a logStore, for a bubble: who made it stops it.
func newOrderedWorld(t *testing.T, change func(*snapshot.Subscription)) (*world, *logStore) {
	w := &world{T: t, ctx: context.Background()}
	st := newLogStore(64, map[string][]string{"orders": {"p0"}, "dead": {""}, names.RetryTopic(uidSub): {""}})
	w.st = st
	w.snaps = latest.New(w.snapshot(func(s *snapshot.Subscription) {
		s.Ordered = true
		if change != nil {
			change(s)
		}
	}))
	w.start()
	return w, st
}

func keyed(id, key string) *event.Event {
	return &event.Event{ID: id, Source: "/test", Type: "t", Subject: key, Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: key}}}
}

// TestRevokedWhileFetched: a partition is lost after the store gave events of it and
// before they are here. They are not delivered, and come again with the partition.
func TestRevokedWhileFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		times := 0
		st.fetched = func(h logHandle) {
			if times++; times == 1 {
				st.revoke(st.topics["orders"], h.p, 0)
				st.give(h.p)
			}
		}
		st.append("orders", 0, keyed("a1", "a"))
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		defer cancel()
		w.ctx = ctx
		m := w.join(10)
		defer m.Close()
		if d := w.next(m, 1)[0]; d.Event.ID != "a1" || m.Ack(d.ID) != 0 || times != 2 {
			t.Errorf("%s, fetched %d times", d.Event.ID, times)
		}
	})
}

// TestKeyFrom: without a partitionkey the attribute that the Topic names orders.
func TestKeyFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Sources[0].Topic.KeyFrom = "subject" })
		defer w.stop()
		for _, e := range []*event.Event{{ID: "a1", Subject: "a"}, {ID: "a2", Subject: "a"}, {ID: "b1", Subject: "b"}, {ID: "1"}, {ID: "2"}} {
			e.Source, e.Type = "/test", "t"
			st.append("orders", 0, e)
		}
		m := w.join(10)
		defer m.Close()
		synctest.Wait()
		got := w.next(m, 4)
		if ids := idsOf(got); len(ids) != 4 || ids[0] != "1" || ids[1] != "2" || ids[2] != "a1" || ids[3] != "b1" {
			t.Errorf("%v are out at once", ids)
		}
		for _, d := range got {
			m.Ack(d.ID)
		}
		if d := w.next(m, 1)[0]; d.Event.ID != "a2" {
			t.Errorf("then %s", d.Event.ID)
		}
	})
}

// TestStoredKey: what native producers wrote with a key is in order, where the event says
// none.
func TestStoredKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		st.keys = map[string]string{"a1": "a", "a2": "a", "b1": "a"}
		for _, e := range []*event.Event{{ID: "a1", Source: "/test", Type: "t"}, {ID: "a2", Source: "/test", Type: "t"}, keyed("b1", "b")} {
			st.append("orders", 0, e)
		}
		m := w.join(10)
		defer m.Close()
		synctest.Wait()
		got := w.next(m, 2)
		if ids := idsOf(got); len(ids) != 2 || ids[0] != "a1" || ids[1] != "b1" {
			t.Errorf("%v are out at once", ids)
		}
		for _, d := range got {
			m.Ack(d.ID)
		}
		if d := w.next(m, 1)[0]; d.Event.ID != "a2" {
			t.Errorf("then %s", d.Event.ID)
		}
	})
}

// TestBoundOverSources: sources that look for room at the same time bring more than
// there is, and no more than that is out.
func TestBoundOverSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.MaxInFlight = 1 })
		defer w.stop()
		var both sync.WaitGroup
		both.Add(2)
		first := st.topics["orders"].parts[0]
		var times [2]atomic.Int32
		st.fetched = func(h logHandle) {
			i := 0
			if h.p == first {
				i = 1
			}
			if times[i].Add(1) == 1 {
				both.Done()
				both.Wait()
			}
		}
		st.append("orders", 0, keyed("a", "a"))
		st.append(names.RetryTopic(uidSub), 0, keyed("b", "b"))
		m := w.join(10)
		defer m.Close()
		d := w.next(m, 1)[0]
		w.nothing(m, "one is out already")
		m.Ack(d.ID)
		w.next(m, 1)
	})
}

// TestDeadLetterOfWhatIsLost: a dead letter that cannot be written yet is not this
// proxy's any more when the partition is lost: it is written once, by who has it then.
func TestDeadLetterOfWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.DeadLetter = "later" })
		defer w.stop()
		p := st.topics["orders"].parts[0]
		st.append("orders", 0, keyed("a", "a"))
		m := w.join(10)
		defer m.Close()
		m.Reject("no", w.next(m, 1)[0].ID)
		synctest.Wait()
		st.revoke(st.topics["orders"], p, 0)
		st.give(p)
		m.Reject("no", w.next(m, 1)[0].ID)
		synctest.Wait()
		w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.Ordered, s.DeadLetter = true, "dead" }))
		<-time.After(time.Minute)
		synctest.Wait()
		if n := len(st.topics["dead"].parts[0].log); n != 1 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// TestOrderIsAskedForLater: from when a Subscription asks for order what was out is
// nobody's, and comes again, one of a key at a time; and the other way round.
func TestOrderIsAskedForLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered = false })
		defer w.stop()
		for _, id := range []string{"a1", "a2", "a3"} {
			st.append("orders", 0, keyed(id, "a"))
		}
		m := w.join(10)
		defer m.Close()
		before := w.next(m, 3)
		change := func(ordered bool) {
			w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.Ordered = ordered }))
			synctest.Wait()
		}
		change(true)
		if m.Ack(before[0].ID) != 1 {
			t.Error("what was out before can be settled")
		}
		d := w.next(m, 1)[0]
		w.nothing(m, "one of the key is out")
		if d.Event.ID != "a1" || m.Ack(d.ID) != 0 {
			t.Errorf("first comes %s", d.Event.ID)
		}
		if d := w.next(m, 1)[0]; d.Event.ID != "a2" {
			t.Errorf("then %s", d.Event.ID)
		}
		change(false)
		if ids := idsOf(w.next(m, 2)); ids[0] != "a2" || ids[1] != "a3" {
			t.Errorf("without order come %v", ids)
		}
	})
}

// TestBlockedKey: an event that fails holds up its key, and when what is behind it fills
// the window of its partition that one, however little may be out; other partitions go on.
func TestBlockedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) {
			s.Block, s.MaxInFlight, s.MaxAttempts, s.MinBackoff, s.MaxBackoff = true, 2, 1, time.Hour, time.Hour
		})
		defer w.stop()
		st.window = 8
		topic := st.topics["orders"]
		topic.parts = append(topic.parts, &logPart{name: "p1", settled: map[int]bool{}, here: true})
		for i := range 20 {
			st.append("orders", 0, keyed(fmt.Sprint("a", i), "a"))
		}
		st.append("orders", 0, keyed("late", "b"))
		for i := range 20 {
			st.append("orders", 1, keyed(fmt.Sprint("c", i), "c"))
		}
		m := w.join(10)
		defer m.Close()
		forever := w.ctx
		ctx, cancel := context.WithTimeout(forever, time.Minute) // before a0 comes again
		defer cancel()
		w.ctx = ctx
		for range 21 {
			if d := w.next(m, 1)[0]; d.Event.ID == "a0" {
				m.Nack("no", -1, d.ID)
			} else {
				m.Ack(d.ID)
			}
		}
		w.nothing(m, "the partition is full of what is blocked")
		w.ctx = forever
		for range 21 {
			d := w.next(m, 1)[0]
			m.Ack(d.ID)
		}
	})
}

// TestMuchUnsettled: what members have not settled is bounded in bytes, whatever they may
// have, and goes on as they settle it.
func TestMuchUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered = false })
		defer w.stop()
		const size, events = 3 << 20, 50
		data := make([]byte, size)
		for i := range events {
			e := keyed(fmt.Sprint("a", i), "")
			e.Data = data
			st.append("orders", 0, e)
		}
		m := w.join(1)
		defer m.Close()
		var out []Delivery
		for len(out) < maxHeld/size+1 {
			out = append(out, w.next(m, 1)...)
			m.Credit(1)
		}
		w.nothing(m, "as much is out as may be")
		for _, d := range out {
			m.Ack(d.ID)
		}
		for range events - len(out) {
			m.Ack(w.next(m, 1)[0].ID)
		}
		r := w.m.runtimes[uidSub]
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.held != 0 || r.bytes != 0 {
			t.Errorf("%d events of %d bytes are held", r.held, r.bytes)
		}
	})
}

// TestMuchUnsettledOfOthers: what all Subscriptions have is bounded in bytes. Where others
// have all of it, one goes on with a little, and with more as soon as there is room.
func TestMuchUnsettledOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Ordered = false })
		defer w.stop()
		data := make([]byte, shareHeld/2)
		for i := range 6 {
			e := keyed(fmt.Sprint("a", i), "")
			e.Data = data
			st.append("orders", 0, e)
		}
		most := int(w.m.held.most)
		w.m.held.add(most)
		m := w.join(1)
		defer m.Close()
		first := w.next(m, 1)[0]
		m.Credit(1)
		w.next(m, 1)
		m.Credit(1)
		w.nothing(m, "it has its share")
		m.Ack(first.ID)
		w.next(m, 2) // there is credit for two
		m.Credit(1)
		w.nothing(m, "it has its share again")
		got := make(chan []Delivery)
		go func() { got <- w.next(m, 1) }()
		synctest.Wait() // it waits
		w.m.held.drop(most)
		<-got
		m.Credit(1)
		w.next(m, 1)
		if n := w.m.held.bytes.Load(); n < 5*shareHeld/2 || n > 3*shareHeld {
			t.Errorf("%d bytes of five events are counted", n)
		}
		w.stop()
		if n := w.m.held.bytes.Load(); n != 0 {
			t.Errorf("%d bytes are counted when nothing is there any more", n)
		}
	})
}

// TestMuchBehind: what waits in lanes is bounded in bytes.
func TestMuchBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		const size = 4 << 20
		data := make([]byte, size)
		for i := range 40 {
			e := keyed(fmt.Sprint("a", i), "a")
			e.Data = data
			st.append("orders", 0, e)
		}
		m := w.join(2)
		defer m.Close()
		first := w.next(m, 1)[0]
		w.nothing(m, "one of the key is out")
		r := w.m.runtimes[uidSub]
		r.mu.Lock()
		if n := r.behind.bytes; n < maxBehind || n > maxBehind+2*size {
			t.Errorf("%d bytes wait", n)
		}
		r.mu.Unlock()
		m.Ack(first.ID)
		for range 39 {
			m.Ack(w.next(m, 1)[0].ID)
		}
	})
}
