package delivery

import (
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/position"
)

// marks are the places of a dead-letter topic that were redriven. They take little where
// they lie close together: a word for up to 64 offsets of a partition.
type marks struct {
	of    map[position.Token]numbers // by partition: a token without its offset
	words int
}

// maxMarkWords bounds the words of one reading of a topic, about 40 MiB.
const maxMarkWords = 1 << 20

// add adds a place. The error is that there are too many, far from each other.
func (m *marks) add(at position.Token) error {
	n := at.Pos.Offset
	at.Pos.Offset = 0
	in := m.of[at]
	if in == nil {
		if m.of == nil {
			m.of = map[position.Token]numbers{}
		}
		in = numbers{}
		m.of[at] = in
	}
	was := len(in)
	in.add(n)
	if m.words += len(in) - was; m.words > maxMarkWords {
		return fault.New(fault.Precondition, "delivery.dead-letters", "too-many-marks", "more than %d places of the dead-letter topic were redriven, far from each other: a proxy keeps no more in mind", maxMarkWords)
	}
	return nil
}

func (m *marks) has(at position.Token) bool {
	n := at.Pos.Offset
	at.Pos.Offset = 0
	return m.of[at].has(n)
}

// numbers is a set, by 64 that follow each other.
type numbers map[uint64]uint64

func (s numbers) add(n uint64)      { s[n/64] |= 1 << (n % 64) }
func (s numbers) has(n uint64) bool { return s[n/64]&(1<<(n%64)) != 0 }

func (s numbers) remove(n uint64) {
	if s[n/64] &^= 1 << (n % 64); s[n/64] == 0 {
		delete(s, n/64)
	}
}
