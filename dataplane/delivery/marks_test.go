package delivery

import (
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// TestMarks: places that were redriven are told from others, by partition and epoch; they
// take a word where 64 of them lie together, and there is a bound on those.
func TestMarks(t *testing.T) {
	at := func(epoch uint32, partition string, offset, minor uint64) position.Token {
		return position.Token{TopicUID: "t", Epoch: epoch, Pos: store.Position{Partition: partition, Offset: offset, Minor: minor}}
	}
	var m marks
	if m.has(at(1, "a", 0, 0)) {
		t.Error("nothing was redriven")
	}
	for n := range uint64(64000) {
		if err := m.add(at(1, "a", n, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.add(at(1, "b", 3, 7)); err != nil || m.words != 1001 {
		t.Errorf("%d words, %v", m.words, err)
	}
	for at, want := range map[position.Token]bool{at(1, "a", 63999, 0): true, at(1, "a", 64000, 0): false, at(2, "a", 1, 0): false, at(1, "b", 3, 7): true, at(1, "b", 3, 0): false, at(1, "b", 1, 7): false} {
		if m.has(at) != want {
			t.Errorf("%v: %v", at, !want)
		}
	}
	var err error
	for n := uint64(0); err == nil && n <= maxMarkWords; n++ {
		err = m.add(at(1, "c", n*64, 0))
	}
	if fault.From(err).Reason != "too-many-marks" || m.words != maxMarkWords+1 {
		t.Errorf("%d words, %v", m.words, err)
	}
}

// TestNumbers: what was added is there until it is removed, and nothing is kept of that.
func TestNumbers(t *testing.T) {
	s := numbers{}
	for _, n := range []uint64{0, 63, 64, 1 << 63} {
		s.add(n)
	}
	s.remove(64)
	s.remove(65)
	if !s.has(0) || !s.has(63) || s.has(64) || s.has(1) || !s.has(1<<63) {
		t.Errorf("%v", s)
	}
	s.remove(0)
	s.remove(63)
	if s.remove(1 << 63); len(s) != 0 {
		t.Errorf("%v is left", s)
	}
}
