package validate

import (
	"cmp"
	"fmt"
	"slices"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store/position"
)

// Start is where a subscription begins in what start_positions do not name:
// END, BEGINNING, or, with start_at, UNSPECIFIED.
func Start(s *configv1.Subscription) configv1.Start {
	switch {
	case s.StartAt != nil:
		return configv1.Start_START_UNSPECIFIED
	case len(s.StartPositions) > 0:
		return cmp.Or(s.Start, configv1.Start_START_BEGINNING)
	}
	return cmp.Or(s.Start, configv1.Start_START_END)
}

// startAlone judges where a subscription begins.
func (c *collector) startAlone(s *configv1.Subscription) {
	if s.StartAt != nil {
		if err := s.StartAt.CheckValid(); err != nil {
			c.add("spec.start_at", "timestamp", "is no time: seconds or nanoseconds are out of range")
		}
		if s.Start != configv1.Start_START_UNSPECIFIED {
			c.add("spec.start_at", "start", "must not stand beside start: a subscription begins at one place")
		}
	}
	type partition struct {
		topic string
		epoch uint32
		name  string
	}
	first := map[partition]int{}
	for i, text := range s.StartPositions {
		field := fmt.Sprintf("spec.start_positions[%d]", i)
		tok, err := position.Parse(text)
		if err != nil {
			c.add(field, "position", "is "+err.Error())
			continue
		}
		p := partition{tok.TopicUID, tok.Epoch, tok.Pos.Partition}
		if j, twice := first[p]; twice {
			c.add(field, "unique", fmt.Sprintf("is of the same partition as spec.start_positions[%d]", j))
			continue
		}
		first[p] = i
	}
}

// startTogether judges where a subscription that is created begins, against its
// topics. Afterwards the start is history: topics may go.
func (c *collector) startTogether(o overlay, r *configv1.Resource) {
	s, ns := r.GetSubscription(), r.Metadata.Namespace
	if o.before.Resource(c.name) != nil {
		return
	}
	if created := r.Metadata.CreatedAt; s.StartAt != nil && created != nil && s.StartAt.AsTime().After(created.AsTime()) {
		c.add("spec.start_at", "future", "is later than now: where the topics will be then is not known")
	}
	for i, text := range s.StartPositions {
		tok, err := position.Parse(text)
		if err != nil {
			continue // said by startAlone
		}
		field := fmt.Sprintf("spec.start_positions[%d]", i)
		var topic *configv1.Resource
		for t := range o.find(topicUID(tok.TopicUID)) {
			if t.Metadata.Namespace == ns && readsTopic(s, t.Metadata.Name) {
				topic = t
			}
		}
		if topic == nil {
			c.add(field, "reference", "is of a topic that was deleted, or that the subscription does not read")
			continue
		}
		epochs := o.before.Resource(resource.Name(resource.TopicBinding, ns, topic.Metadata.Name)).GetTopicBinding().GetEpochs()
		// One of an epoch that was given up is as one whose events are not kept.
		if n := len(epochs); n == 0 || tok.Epoch == 0 || tok.Epoch > epochs[n-1].Number {
			c.add(field, "epoch", fmt.Sprintf("is of epoch %d of Topic %s, in which it never was", tok.Epoch, topic.Metadata.Name))
		}
	}
}

// startFixed judges that a subscription that is there begins where it did.
func (c *collector) startFixed(was, is *configv1.Subscription) {
	const message = "is fixed at creation: create another Subscription to begin elsewhere"
	switch {
	case (was.StartAt == nil) != (is.StartAt == nil) || !was.StartAt.AsTime().Equal(is.StartAt.AsTime()):
		c.add("spec.start_at", "immutable", message)
	case !slices.Equal(was.StartPositions, is.StartPositions):
		c.add("spec.start_positions", "immutable", message)
	case Start(was) != Start(is):
		c.add("spec.start", "immutable", message)
	}
}
