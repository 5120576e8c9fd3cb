package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

const stickyKeys = 40

// sticky are members that take and settle at once, and who got which key.
type sticky struct {
	w    *world
	st   *logStore
	mu   sync.Mutex
	got  map[string]map[Member]int
	sent int
	data []byte // of each event
}

func newSticky(w *world, st *logStore) *sticky {
	return &sticky{w: w, st: st, got: map[string]map[Member]int{}}
}

// member joins one, which works until it is closed.
func (s *sticky) member() Member {
	s.w.Helper()
	m := s.w.join(4)
	go func() {
		var dst [4]Delivery
		for {
			n, err := m.Next(context.Background(), dst[:])
			if err != nil {
				if f := (*fault.Error)(nil); !errors.As(err, &f) || f.Class != fault.Canceled {
					s.w.Errorf("Next: %v", err)
				}
				return
			}
			for _, d := range dst[:n] {
				s.take(m, d)
				m.Ack(d.ID)
			}
		}
	}()
	return m
}

func (s *sticky) take(m Member, d Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := d.Event.Key("")
	if s.got[key] == nil {
		s.got[key] = map[Member]int{}
	}
	s.got[key][m]++
}

// round publishes an event of each key, and gives who got them since the round before.
func (s *sticky) round() map[string]map[Member]int {
	for k := range stickyKeys {
		s.sent++
		e := keyed(fmt.Sprint(s.sent), fmt.Sprint("k", k))
		e.Data = s.data
		s.st.append("orders", 0, e)
	}
	synctest.Wait()
	return s.drain()
}

// homes gives the member that each key went to in some rounds; it must be one.
func (s *sticky) homes(rounds int) map[string]Member {
	s.w.Helper()
	all := map[string]Member{}
	for range rounds {
		got := s.round()
		if len(got) != stickyKeys {
			s.w.Fatalf("events of %d keys of %d came", len(got), stickyKeys)
		}
		for key, by := range got {
			for m := range by {
				if was := all[key]; was != nil && was != m {
					s.w.Errorf("key %s came to another member", key)
				}
				all[key] = m
			}
		}
	}
	return all
}

func has(homes map[string]Member, m Member) bool {
	for _, x := range homes {
		if x == m {
			return true
		}
	}
	return false
}

// TestSticky: the events of a key come to one member. One that leaves gives its keys to
// others, one that comes gets a share, and all other keys stay where they are.
func TestSticky(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		s := newSticky(w, st)
		a, b, c := s.member(), s.member(), s.member()
		before := s.homes(20)
		if !has(before, a) || !has(before, b) || !has(before, c) {
			t.Error("a member got no key")
		}
		b.Close()
		after := s.homes(20)
		for key, m := range after {
			if before[key] != b && before[key] != m {
				t.Errorf("key %s moved though its member stayed", key)
			}
		}
		if !has(after, a) || !has(after, c) || has(after, b) {
			t.Error("the keys of who left are not at the others")
		}
		d := s.member()
		last := s.homes(20)
		for key, m := range last {
			if m != d && m != after[key] {
				t.Errorf("key %s moved between members that stayed", key)
			}
		}
		if !has(last, d) {
			t.Error("who came got no key")
		}
		for _, m := range []Member{a, c, d} {
			m.Close()
		}
	})
}

// TestStickySlow: who is slow, and has taken what it may, holds up nobody else, although
// more keys are its than there is room for: what it does not take while others wait is
// theirs, and the rest when it is not heard of any more.
func TestStickySlow(t *testing.T) {
	const room = 8
	t.Run("by number", func(t *testing.T) { stickySlow(t, room, room, nil) })
	t.Run("by bytes", func(t *testing.T) { stickySlow(t, room, 1024, make([]byte, maxHeld/room)) })
}

func stickySlow(t *testing.T, room, inFlight int, data []byte) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.MaxInFlight = inFlight })
		defer w.stop()
		slow := w.join(2)
		defer slow.Close()
		s := newSticky(w, st)
		s.data = data
		ctx, enough := context.WithCancel(w.ctx)
		first := make(chan int)
		go func() { // what it takes, up to two; others may be faster
			taken := 0
			for {
				var dst [2]Delivery
				n, err := slow.Next(ctx, dst[:])
				if taken += n; err != nil {
					first <- taken
					return
				}
			}
		}()
		synctest.Wait()
		quick := s.member()
		defer quick.Close()
		got := len(s.round())
		enough()
		if got < stickyKeys-room {
			t.Errorf("of %d keys %d came to who is quick, at once", stickyKeys, got)
		}
		<-time.After(absence + time.Millisecond)
		synctest.Wait()
		if got += len(s.drain()) + <-first; got != stickyKeys {
			t.Errorf("events of %d keys of %d came", got, stickyKeys)
		}
	})
}

// TestStickyAbsent: keys wait for a member that does not ask, but not for long; when it
// asks again they are its.
func TestStickyAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, nil)
		defer w.stop()
		s := newSticky(w, st)
		quick, idle := s.member(), w.join(stickyKeys)
		defer quick.Close()
		defer idle.Close()
		early := s.round()
		if len(early) == 0 || len(early) == stickyKeys {
			t.Fatalf("%d keys are of one of two members", len(early))
		}
		<-time.After(absence - time.Millisecond)
		if got := s.drain(); len(got) != 0 {
			t.Errorf("%v did not wait", got)
		}
		<-time.After(2 * time.Millisecond)
		synctest.Wait()
		if got := s.drain(); len(early)+len(got) != stickyKeys {
			t.Errorf("of a member that does not ask %d keys came to another, want %d", len(got), stickyKeys-len(early))
		}
		ctx, cancel := context.WithCancel(w.ctx)
		asked := make(chan []Delivery)
		go func() {
			var dst [stickyKeys]Delivery
			var all []Delivery
			for {
				n, err := idle.Next(ctx, dst[:])
				if all = append(all, dst[:n]...); err != nil {
					asked <- all
					return
				}
			}
		}()
		synctest.Wait()
		again := s.round()
		cancel()
		its := <-asked
		if len(its) != stickyKeys-len(early) || !maps.EqualFunc(again, early, func(a, b map[Member]int) bool { return len(a) == len(b) }) {
			t.Errorf("who asks again has %d, and the other %d keys, had %d", len(its), len(again), len(early))
		}
		for _, d := range its {
			idle.Ack(d.ID)
		}
		synctest.Wait()
		st.append("orders", 0, keyed("alone", its[0].Event.Key(""))) // nothing else happens
		<-time.After(absence + time.Millisecond)
		synctest.Wait()
		if got := s.drain(); len(got) != 1 {
			t.Errorf("an event of who asks no more came to %v", got)
		}
	})
}

// drain gives who got what since the last look.
func (s *sticky) drain() map[string]map[Member]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got = map[string]map[Member]int{}
	return got
}
