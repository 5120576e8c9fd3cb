package cutover

import configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

// stored are the phases as a TopicBinding has them. Those that end a move are not in it:
// then there is none.
var stored = map[Phase]configv1.Move_Phase{
	Preparing: configv1.Move_PHASE_PREPARING,
	Leasing:   configv1.Move_PHASE_LEASING,
	Stopping:  configv1.Move_PHASE_STOPPING,
	Marking:   configv1.Move_PHASE_MARKING,
	Draining:  configv1.Move_PHASE_DRAINING,
	Drained:   configv1.Move_PHASE_DRAINED,
}

// Stored is p as a TopicBinding has it; unspecified where that has no move then.
func (p Phase) Stored() configv1.Move_Phase { return stored[p] }

// PhaseOf is how far a move is; false for none, and for a phase that is not known here.
func PhaseOf(m *configv1.Move) (Phase, bool) {
	for p, s := range stored {
		if s == m.GetPhase() {
			return p, true
		}
	}
	return 0, false
}

// Written is the place, among the epochs of a TopicBinding, of the one that is written
// to; -1 where it has none.
func Written(b *configv1.TopicBinding) int {
	n := len(b.GetEpochs()) - 1
	if m := b.GetMove(); m != nil && m.Phase < configv1.Move_PHASE_DRAINING && n > 0 {
		n--
	}
	return n
}
