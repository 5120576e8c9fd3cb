package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// TestBlocked: keys are told to be blocked, and which event failed first, from its last
// attempt on until it is settled or its partition is lost.
func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Block, s.MaxAttempts = true, 2 })
		defer w.stop()
		for _, id := range []string{"a", "b"} {
			st.append("orders", 0, keyed(id+"1", id))
			st.append("orders", 0, keyed(id+"2", id))
		}
		m := w.join(10)
		defer m.Close()
		told := func(keys int, first string) {
			t.Helper()
			synctest.Wait()
			got := w.m.Blocked()
			switch {
			case keys == 0 && len(got) == 0:
			case len(got) != 1 || got[0].Keys != keys || got[0].Subscription.Name != "billing" || got[0].Topic != "orders" || got[0].Position.String() != first || got[0].Since.IsZero():
				t.Errorf("%+v, not %d keys, first at %s", got, keys, first)
			}
		}
		at := map[string]string{}
		fail := func(n int) (ids map[string]uint64) {
			ids = map[string]uint64{}
			for _, d := range w.next(m, n) {
				ids[d.Event.ID], at[d.Event.ID] = d.ID, d.Position.String()
			}
			for _, id := range []string{"b1", "a1"} { // b1 fails first
				if ids[id] != 0 {
					m.Nack("no", -1, ids[id])
					<-time.After(2 * time.Second)
				}
			}
			return ids
		}
		fail(2)
		told(0, "")
		fail(2)
		told(2, at["b1"])
		for _, d := range w.next(m, 2) {
			if d.Event.ID == "b1" {
				m.Ack(d.ID)
				told(1, at["a1"])
			}
		}
		orders := st.topics["orders"]
		st.revoke(orders, orders.parts[0], 0)
		told(0, "")
	})
}

// TestAhead: what a key waits for is told, with what became of it so far, while it is the
// first of its key here.
func TestAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.Block, s.MaxAttempts = true, 2 })
		defer w.stop()
		for _, id := range []string{"a1", "a2"} {
			st.append("orders", 0, keyed(id, "a"))
		}
		if _, there := w.m.Ahead(uidSub, "orders", "a"); there {
			t.Error("without members")
		}
		m := w.join(10)
		defer m.Close()
		told := func(id string, failed int, blocked, out, again bool) {
			t.Helper()
			synctest.Wait()
			if a, there := w.m.Ahead(uidSub, "orders", "a"); !there || a.ID != id || a.Source != "/test" || a.Failed != failed || a.Blocked != blocked || a.Out != out || a.Again.IsZero() == again {
				t.Errorf("%+v", a)
			}
		}
		for failed := range 3 {
			d := w.next(m, 1)[0]
			told("a1", failed, failed == 2, true, false)
			if failed == 2 {
				m.Ack(d.ID)
				break
			}
			m.Nack("no", time.Second, d.ID)
			told("a1", failed+1, failed == 1, false, true)
		}
		told("a2", 0, false, false, false)
		m.Ack(w.next(m, 1)[0].ID)
		if _, there := w.m.Ahead(uidSub, "orders", "a"); there {
			t.Error("all are settled")
		}
	})
}
