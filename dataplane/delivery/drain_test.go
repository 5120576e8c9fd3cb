package delivery

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/store"
)

// TestDrain: the next store is read once the group has settled the one before, at other
// proxies too, and once that can be told. Then the one before is left.
func TestDrain(t *testing.T) {
	o := newMoving(t, 2, nil)
	first, a, b := o.st.(*counted), o.proxies[0], o.proxies[1]
	o.put(1, keyed("a1", "a"), keyed("a2", "a"))
	there, here := a.join(1), b.join(10)
	got := a.next(there, 1)
	o.seal(1)
	o.tell(a, o.config(cutover.Marking))
	if asked := first.asked.Load(); asked != 0 {
		t.Errorf("the store is asked %d times before there is a cut", asked)
	}
	o.put(2, keyed("a3", "a"))
	o.tell(b, o.config(cutover.Draining))
	rest := b.next(here, 1)
	here.Ack(rest[0].ID)
	o.nothing(here, "another proxy has an event of the old store")
	first.down.Store(true)
	there.Ack(got[0].ID)
	o.nothing(here, "the old store cannot tell")
	first.down.Store(false)
	if d := b.next(here, 1); d[0].Event.ID != "a3" || d[0].Position.Epoch != 2 {
		t.Errorf("got %s of epoch %d", d[0].Event.ID, d[0].Position.Epoch)
	}
	o.until("the old store is left", func() bool { return len(b.topicsRead()) == 1 && b.topicsRead()[0] == nextTopic })
	asked := first.asked.Load()
	here.Close()
	o.until("nobody reads", func() bool { return b.topicsRead() == nil })
	here = b.join(10)
	if d := b.next(here, 1); d[0].Event.ID != "a3" {
		t.Errorf("got %s", d[0].Event.ID)
	}
	if first.asked.Load() != asked {
		t.Error("the store is asked again whether it is drained")
	}
	o.tell(b, o.config(cutover.Finished))
	b.m.drains.mu.Lock()
	defer b.m.drains.mu.Unlock()
	if len(b.m.drains.done) != 0 {
		t.Error("what was drained is remembered when it is gone")
	}
}

// TestRemovedBeforeTheCut: what the old store's retention has removed is not waited for.
func TestRemovedBeforeTheCut(t *testing.T) {
	o := newMoving(t, 1, nil)
	o.put(1, keyed("a1", "a"))
	o.seal(1)
	o.put(2, keyed("a2", "a"))
	m := o.join(2)
	o.next(m, 1) // and does not settle it
	o.tell(o.world, o.config(cutover.Draining))
	o.nothing(m, "the old store has an event that is not settled")
	o.st.(*counted).kept.Store(o.cut.Offset + 1)
	if d := o.next(m, 1); d[0].Event.ID != "a2" {
		t.Errorf("got %s", d[0].Event.ID)
	}
}

// topicsRead are the topics that the Subscription has sources of, but for retries.
func (w *world) topicsRead() (out []string) {
	w.m.mu.Lock()
	r := w.m.runtimes[uidSub]
	w.m.mu.Unlock()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sources {
		if !s.retry {
			out = append(out, s.topic)
		}
	}
	return out
}

// TestGivenUp: an epoch that is given up while a proxy waits for it is waited for no more.
func TestGivenUp(t *testing.T) {
	o := newMoving(t, 1, nil)
	o.st.(*counted).down.Store(true)
	o.put(1, keyed("a1", "a"))
	o.seal(1)
	o.put(2, keyed("a2", "a"))
	o.tell(o.world, o.config(cutover.Drained))
	m := o.join(10)
	m.Ack(o.next(m, 1)[0].ID)
	o.nothing(m, "nobody can tell whether the old store is drained")
	o.tell(o.world, o.config(cutover.Finished))
	if d := o.next(m, 1); d[0].Event.ID != "a2" {
		t.Errorf("got %s", d[0].Event.ID)
	}
}

// TestBehindTheCut: what was read before the cut was known, and is behind it, is settled
// unseen where nobody has it. What a member has holds up its key until it is done with,
// well or badly, and is not repeated.
func TestBehindTheCut(t *testing.T) {
	for name, end := range map[string]func(Member, ...uint64){
		"settled":  func(m Member, ids ...uint64) { m.Ack(ids...) },
		"failed":   func(m Member, ids ...uint64) { m.Nack("no", 0, ids...) },
		"given up": func(m Member, ids ...uint64) { m.Reject("no", ids...) },
	} {
		t.Run(name, func(t *testing.T) {
			o := newMoving(t, 1, func(s *snapshot.Subscription) { s.Ordered = true })
			m := o.join(10)
			o.put(1, keyed("a1", "a"))
			o.seal(1)
			o.put(1, keyed("a2", "a"), keyed("a3", "a"))
			d := o.next(m, 1)
			m.Ack(d[0].ID)
			d = o.next(m, 1) // the marker is not delivered, cut or no cut
			if d[0].Event.ID != "a2" {
				t.Fatalf("got %s, %+v", d[0].Event.ID, d[0].Position)
			}
			o.put(1, keyed("b1", "b"), keyed("c1", "c"))
			_, err := m.Take(nil, func() {})
			o.must(err)
			o.until("all is read", func() bool { return o.heldHere() == 4 })
			o.put(2, keyed("a2", "a"), keyed("a3", "a"))
			o.tell(o.world, o.config(cutover.Draining))
			o.nothing(m, "an event of the key is out")
			// The old store may be drained before that, and is read no more then.
			o.until("what nobody has is settled", func() bool { return o.unsettled() <= 1 || !slices.Contains(o.topicsRead(), "orders") })
			end(m, d[0].ID)
			for _, want := range []string{"a2", "a3"} {
				d = o.next(m, 1)
				if d[0].Event.ID != want || d[0].Position.Epoch != 2 || d[0].Attempt != 1 {
					t.Fatalf("got %s of epoch %d, attempt %d, want %s", d[0].Event.ID, d[0].Position.Epoch, d[0].Attempt, want)
				}
				m.Ack(d[0].ID)
			}
			o.nothing(m, "all is settled")
		})
	}
}

// heldHere is how many events the proxy has.
func (w *world) heldHere() int {
	w.m.mu.Lock()
	r := w.m.runtimes[uidSub]
	w.m.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// unsettled is how much the group has not settled of the first store.
func (o *moving) unsettled() int64 {
	lag, err := o.st.(store.Admin).Lag(o.ctx, "orders", "g")
	o.must(err)
	return lag[0].Behind
}

// TestLeftBehindTheCut: what a member had of it when it left is not for others.
func TestLeftBehindTheCut(t *testing.T) {
	o := newMoving(t, 1, nil)
	o.seal(1)
	o.put(1, keyed("late", "a"))
	m := o.join(1)
	o.next(m, 1)
	o.tell(o.world, o.config(cutover.Draining))
	o.put(2, keyed("a1", "a"))
	other := o.join(10)
	if d := o.next(other, 1); d[0].Event.ID != "a1" {
		t.Errorf("got %s", d[0].Event.ID)
	}
	m.Close()
	o.nothing(other, "there is nothing but what is behind the cut")
}

// TestLagOverEpochs: what a Subscription is behind is that of all stores up to their
// cuts, and how long the next one is not read for the one before is told.
func TestLagOverEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newMoving(t, 1, nil)
		o.stop()
		reg := prometheus.NewRegistry()
		o.put(1, keyed("a1", "a"), keyed("a2", "a"))
		o.seal(1)
		o.put(1, keyed("late", "a"))
		o.put(2, keyed("a3", "a"))
		o.snaps.Store(o.config(cutover.Draining))
		o.metrics = reg
		o.start()
		defer o.stop()
		m := o.join(10)
		d := o.next(m, 2)
		for i, want := range []struct{ lag, stalled float64 }{{3, 15}, {1, 20}} {
			<-time.After(20 * time.Second)
			if got := values(t, reg, "lag_events"); got["orders"][0] != want.lag {
				t.Errorf("its lag is %v, want %v", got, want.lag)
			}
			if got := values(t, reg, "stalled_seconds_total"); got["epoch"][0] < want.stalled-0.1 || got["epoch"][0] > want.stalled+2*maxDrain.Seconds() {
				t.Errorf("%d: for %v s the next store was not read: %v", i, want.stalled, got)
			}
			m.Ack(d[0].ID, d[1].ID)
		}
		m.Ack(o.next(m, 1)[0].ID)
		<-time.After(20 * time.Second)
		if got := values(t, reg, "lag_events"); got["orders"][0] != 0 {
			t.Errorf("all is settled: %v", got)
		}
	})
}
