package snapshot

import (
	"testing"

	"github.com/weft-mesh/weft/pkg/cutover"
)

// TestWriting: a topic that moves is written to in the epoch before the last until the
// cut, and then in the last, whatever number it has.
func TestWriting(t *testing.T) {
	topic := &Topic{Epochs: []Epoch{{Number: 1}, {Number: 4}}}
	if got := topic.Writing(); got != (cutover.Writing{Epoch: 4}) {
		t.Errorf("it does not move: %+v", got)
	}
	for phase, want := range map[cutover.Phase]cutover.Writing{
		cutover.Preparing: {Epoch: 1},
		cutover.Leasing:   {Epoch: 1, Leased: true},
		cutover.Stopping:  {Epoch: 1, Leased: true, Closed: true},
		cutover.Marking:   {Epoch: 1, Leased: true, Closed: true},
		cutover.Draining:  {Epoch: 4},
		cutover.Drained:   {Epoch: 4},
	} {
		topic.Move = &Move{Phase: phase}
		if got := topic.Writing(); got != want {
			t.Errorf("phase %d: %+v, want %+v", phase, got, want)
		}
		if got := topic.Written().Number; got != want.Epoch {
			t.Errorf("phase %d: epoch %d is written to, want %d", phase, got, want.Epoch)
		}
	}
}
