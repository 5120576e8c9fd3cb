package ackwindow

import (
	"testing"

	"pgregory.net/rapid"
)

// TestModel compares the window with a list: no commit covers an unsettled
// message, and it is the highest one that does not; what is settled beyond it is
// known; only what is durably committed makes room.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 20).Draw(t, "size")
		start := int64(rapid.IntRange(0, 5).Draw(t, "start"))
		w := New(size, start)
		type msg struct {
			offset int64
			n      uint64
			done   bool
		}
		var model []msg
		next := start
		kept := 0 // of model
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "deliver") && w.Room() > 0 {
				next += int64(rapid.IntRange(0, 3).Draw(t, "hole"))
				model = append(model, msg{offset: next, n: w.Deliver(next)})
				next++
			} else if len(model) > 0 {
				i := rapid.IntRange(0, len(model)-1).Draw(t, "which")
				if got := w.Done(model[i].n); got == model[i].done {
					t.Fatalf("Done(%d) = %v, settled before: %v", model[i].n, got, model[i].done)
				}
				model[i].done = true
			}
			want := start
			if len(model) > 0 {
				want = model[len(model)-1].offset + 1
			}
			settled := 0
			for settled < len(model) && model[settled].done {
				settled++
			}
			if settled < len(model) {
				want = model[settled].offset
			}
			if w.Commit() != want {
				t.Fatalf("Commit() = %d, want %d", w.Commit(), want)
			}
			if w.Room() != size-(len(model)-kept) {
				t.Fatalf("Room() = %d, want %d", w.Room(), size-(len(model)-kept))
			}
			beyond := map[int64]bool{}
			for first, last := range w.Beyond {
				for at := first; at <= last; at++ {
					beyond[at] = true
				}
			}
			for i, m := range model {
				if beyond[m.offset] != (m.done && i > settled) {
					t.Fatalf("Beyond() has offset %d: %v", m.offset, beyond[m.offset])
				}
			}
			if rapid.Bool().Draw(t, "committed") {
				w.Kept(want)
				kept = settled
			}
		}
	})
}

// TestQuiet: a window takes as much as what is not durably committed, and no more than its
// size; a proxy has one for each partition.
func TestQuiet(t *testing.T) {
	w := New(4096, 0)
	for i := range int64(8 * 4096) {
		w.Done(w.Deliver(i))
		w.Kept(i + 1)
	}
	if n := len(w.ring); n > firstRing {
		t.Errorf("where one is under way at a time it has room for %d", n)
	}
	for i := range int64(4096) {
		w.Deliver(8*4096 + i)
	}
	if n := len(w.ring); n != 4096 {
		t.Errorf("a window of 4096 that is full has room for %d", n)
	}
}

func BenchmarkWindow(b *testing.B) {
	w := New(4096, 0)
	b.ReportAllocs()
	var offset int64
	for b.Loop() {
		n := w.Deliver(offset)
		offset++
		w.Done(n)
		w.Kept(w.Commit())
	}
}
