package delay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// readers is how often the group of a class was joined, and by how many it is read now.
func (p *plain) readers(class int) (joined, now int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	group := names.DelayTopic("u", class)
	return p.joins[group], p.joins[group] - p.left[group]
}

// TestReadOnDemand: a class whose events wait for long is read from when something waits in
// it until nothing does; what is parked in it comes on time, by whomever it was parked and
// whoever else reads it.
func TestReadOnDemand(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		sub := subscribe(t, s)
		on := func(class, want int) {
			t.Helper()
			synctest.Wait()
			if _, now := d.last.readers(class); now != want {
				t.Errorf("class %d is read by %d, not %d", class, now, want)
			}
		}
		for round := range 2 {
			pass(time.Minute)
			for class := range classes {
				on(class, map[bool]int{true: 1}[class < 2])
			}
			for class, delay := range classes[:4] { // hours take long here too
				began := time.Now()
				delay = max(delay, Precision)
				park(t, s, "t", delay, ids("a", 2)...)
				pass(delay / 4)
				on(class, 1)
				pass(time.Until(began.Add(delay - time.Millisecond)))
				get(t, sub)
				if took := time.Since(began); took < delay || took > delay+Precision {
					t.Errorf("what waits for %s came after %s", delay, took)
				}
				get(t, sub)
			}
			if joined, _ := d.last.readers(2); joined != round+1 {
				t.Errorf("the group of a class was joined %d times for what was parked at %d times", joined, round+1)
			}
		}
		closeAll(t, s, sub)
	})
}

// TestStaysForWhatWaits: who has nothing, as another member has the partition, stays while
// something waits there, and takes it over when the other one ends.
func TestStaysForWhatWaits(t *testing.T) {
	bubble(t, 0, func(t *testing.T, d *driver, s *Store) {
		topic := names.DelayTopic("u", 2)
		other, err := s.inner.Subscribe(t.Context(), store.SubscribeRequest{Topic: topic, Group: topic})
		must(t, err)
		began := time.Now()
		park(t, s, "t", classes[2], "a")
		held := make([]store.Message, 1)
		if n, err := other.Fetch(t.Context(), held); err != nil || n != 1 {
			t.Fatalf("%d events, %v", n, err)
		}
		sub := subscribe(t, s)
		pass(5 * lookEvery)
		if _, now := d.last.readers(2); now != 2 {
			t.Errorf("what another member holds is waited for by %d", now-1)
		}
		must(t, other.Close(context.Background()))
		pass(time.Until(began.Add(classes[2] - time.Millisecond)))
		get(t, sub)
		if took := time.Since(began); took > classes[2]+Precision {
			t.Errorf("it came after %s", took)
		}
		closeAll(t, s, sub)
	})
}
