package delivery

import (
	"math/rand/v2"
	"testing"
)

// TestFlights: each delivery is found by its id as long as it is out, and by no other,
// however long others stay; ids rise.
func TestFlights(t *testing.T) {
	var f flights
	out := map[uint64]*item{}
	var done []uint64
	last := uint64(0)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	for step := range 100_000 {
		// There are few for a while, and then many.
		most := 8 << (step / 10_000)
		if n := len(out); n > 0 && random.IntN(2*most) < n {
			for id, it := range out { // any of them
				f.drop(it)
				delete(out, id)
				done = append(done, id)
				break
			}
		} else {
			it := &item{}
			if f.add(it); it.id <= last {
				t.Fatalf("id %d comes after %d", it.id, last)
			}
			last = it.id
			out[it.id] = it
		}
		if step%97 > 0 {
			continue
		}
		n := 0
		for it := range f.all() {
			if n++; out[it.id] != it {
				t.Fatalf("step %d: %d is not out", step, it.id)
			}
		}
		if n != len(out) || f.n != n {
			t.Fatalf("step %d: %d are out, %d counted, of %d", step, n, f.n, len(out))
		}
		for id, it := range out {
			if f.of(id) != it {
				t.Fatalf("step %d: %d is not found", step, id)
			}
		}
		for _, id := range append(done[max(0, len(done)-1000):], 0, last+1, 1<<63) {
			if f.of(id) != nil {
				t.Fatalf("step %d: %d is found, and not out", step, id)
			}
		}
	}
}

// TestFlightsPassByThoseThatStay: ids go on past those that are out for long.
func TestFlightsPassByThoseThatStay(t *testing.T) {
	var f flights
	stay := make([]*item, 100)
	for i := range stay {
		stay[i] = &item{}
		f.add(stay[i])
	}
	places := len(f.table)
	for range 10 * places {
		it := &item{}
		f.add(it)
		f.drop(it)
	}
	for _, it := range stay {
		if f.of(it.id) != it {
			t.Errorf("%d is not found", it.id)
		}
	}
	if len(f.table) != places || f.n != len(stay) {
		t.Errorf("%d places, %d of them taken", len(f.table), f.n)
	}
}
