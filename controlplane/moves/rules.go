package moves

import (
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/names"
)

// What a TopicBinding becomes; none of these changes the one that it is given.

// begin is the binding of a topic that begins to move to an EventStore, under a physical
// name of its own where called is empty.
func begin(topic *configv1.Resource, b *configv1.TopicBinding, migration string, to *configv1.Resource, called string) *configv1.TopicBinding {
	next := withEpoch(topic, b, to.Metadata.Name, to.Metadata.Uid, called)
	next.Move = &configv1.Move{MigrationUid: migration, Phase: configv1.Move_PHASE_PREPARING}
	return next
}

// turnBack is the binding of a topic whose move has been cut over, and goes back to where
// it came from.
func turnBack(topic *configv1.Resource, b *configv1.TopicBinding) *configv1.TopicBinding {
	from := b.Epochs[len(b.Epochs)-2]
	next := withEpoch(topic, b, from.Store, from.StoreUid, "")
	next.Move = &configv1.Move{MigrationUid: b.Move.MigrationUid, Phase: configv1.Move_PHASE_PREPARING, Back: true}
	return next
}

func withEpoch(topic *configv1.Resource, b *configv1.TopicBinding, store, uid, called string) *configv1.TopicBinding {
	next := proto.Clone(b).(*configv1.TopicBinding)
	next.Highest = highest(b) + 1
	if called == "" {
		called = names.Epoch(validate.PhysicalName(topic), next.Highest, b.TopicUid)
	}
	next.Epochs = append(next.Epochs, &configv1.Epoch{Number: next.Highest, Store: store, StoreUid: uid, PhysicalName: called})
	return next
}

// highest is the highest number that an epoch ever had.
func highest(b *configv1.TopicBinding) uint32 {
	return max(b.Highest, b.Epochs[len(b.Epochs)-1].Number)
}

// withPhase is the binding in the next phase of its move. node writes the markers, where
// that is Marking; cut is where the old place ends, and fence what keeps others out of it,
// where it is Draining.
func withPhase(b *configv1.TopicBinding, phase cutover.Phase, node string, cut []*configv1.Cut, fence *configv1.Fence) *configv1.TopicBinding {
	next := proto.Clone(b).(*configv1.TopicBinding)
	last := len(next.Epochs) - 1
	switch phase {
	case cutover.Withdrawn:
		next.Highest = highest(b)
		next.Epochs = next.Epochs[:last]
		if next.Move.Back { // what it would have taken back stands
			next.Move = &configv1.Move{MigrationUid: b.Move.MigrationUid, Phase: configv1.Move_PHASE_DRAINING}
			return next
		}
		next.Move, next.Ended = nil, b.Move.MigrationUid
		return next
	case cutover.Finished:
		next.Highest = highest(b)
		next.Epochs = next.Epochs[last:]
		next.Move, next.Ended = nil, b.Move.MigrationUid
		return next
	case cutover.Draining:
		if b.Move.Phase == configv1.Move_PHASE_MARKING {
			next.Epochs[last-1].Cut, next.Epochs[last-1].Fence = cut, fence
		}
	}
	next.Move.Phase, next.Move.Marker = phase.Stored(), ""
	if phase == cutover.Marking {
		next.Move.Marker, next.Move.Attempt = node, b.Move.Attempt+1
	}
	return next
}

// wishOf is what the operator wants of the move that is under way, by the Migration's
// wish; one that is not there any more is to be withdrawn.
func wishOf(m *configv1.Move, migration *configv1.Resource) cutover.Wish {
	if migration == nil {
		return cutover.Withdraw
	}
	switch migration.GetMigration().Wish {
	case configv1.Migration_WISH_PAUSE:
		return cutover.Pause
	case configv1.Migration_WISH_FINISH:
		return cutover.Finish
	case configv1.Migration_WISH_ROLL_BACK:
		if m.Back {
			return cutover.Proceed
		}
		return cutover.Withdraw
	}
	if m.Back {
		return cutover.Withdraw
	}
	return cutover.Proceed
}

// able are the nodes that can write markers, sorted.
func able(words map[string]*discoveryv1.Held) []string {
	var out []string
	for node, w := range words {
		if w.Able {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}

// markerOf is who writes the markers of an attempt: another one each time.
func markerOf(able []string, attempt uint32) string {
	if len(able) == 0 {
		return ""
	}
	return able[int(attempt)%len(able)]
}

// cutOf are the markers that were written in this Marking, of the binding's version; nil
// where there are none.
func cutOf(m *configv1.Move, version string, words map[string]*discoveryv1.Held) []*configv1.Cut {
	w := words[m.Marker]
	if m.Phase != configv1.Move_PHASE_MARKING || m.Marker == "" || w == nil || w.Version != version || w.Attempt != m.Attempt {
		return nil
	}
	return w.Cut
}
