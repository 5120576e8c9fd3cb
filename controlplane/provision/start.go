package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// subscription fixes where a subscription begins in each topic that it reads.
func (r *round) subscription(ctx context.Context, e *configstore.Entry) {
	md, spec := e.Resource.Metadata, e.Resource.GetSubscription()
	old := r.snap.Resource(resource.Name(resource.SubscriptionAdmission, md.Namespace, md.Name)).GetSubscriptionAdmission()
	if old.GetSubscriptionUid() != md.Uid {
		old = nil
	}
	adm := &configv1.SubscriptionAdmission{SubscriptionUid: md.Uid}
	saw := []string{e.Name}
	for te := range r.snap.All(string(resource.Topic) + "/" + md.Namespace + "/") {
		if !reads(spec, te.Resource.Metadata.Name) {
			continue
		}
		t := r.topics[te.Name]
		saw = append(saw, t.saw...)
		var fixed []*configv1.SubscriptionSource // by epoch
		for _, src := range old.GetSources() {
			if src.TopicUid == te.Resource.Metadata.Uid {
				fixed = append(fixed, src)
			}
		}
		if err := r.sources(ctx, adm, e, t, fixed); err != nil {
			adm.Reasons = append(adm.Reasons, "topic "+te.Resource.Metadata.Name+": "+err.Error())
		}
	}
	if len(adm.Sources) == 0 && len(adm.Reasons) == 0 {
		adm.Reasons = []string{"no topic matches"}
	}
	if !proto.Equal(old, adm) {
		r.write(md, &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: adm}}, saw)
	}
}

// sources adds to adm where a subscription reads a topic: what was fixed and is of an
// epoch that is kept, as it is, and what can be fixed now. The error is why something
// could not be.
//
// Epochs are fixed in their order, so that nobody reads one before those that come first
// for it; but one whose store is gone is not waited for.
func (r *round) sources(ctx context.Context, adm *configv1.SubscriptionAdmission, e *configstore.Entry, t *topicState, fixed []*configv1.SubscriptionSource) (first error) {
	if len(t.epochs) == 0 && len(fixed) > 0 {
		adm.Sources = append(adm.Sources, fixed...)
		return nil
	}
	if len(t.epochs) == 0 {
		return errors.New(t.reason)
	}
	begins, err := starts(e, t, fixed)
	if err != nil {
		for _, es := range t.epochs {
			es.lacks = cmp.Or(es.lacks, e.Resource.Metadata.Name+": "+err.Error())
		}
	}
	for _, es := range t.epochs {
		if i := slices.IndexFunc(fixed, func(s *configv1.SubscriptionSource) bool { return s.Epoch == es.Number }); i >= 0 {
			adm.Sources = append(adm.Sources, fixed[i])
			r.again(ctx, e, es, fixed[i])
			continue
		}
		i := slices.IndexFunc(begins, func(b position.Begin) bool { return b.Epoch == es.Number })
		if i < 0 {
			continue
		}
		why := err
		if why == nil {
			why = r.source(ctx, adm, e, t, es, begins[i].Beginning)
		}
		if why == nil {
			continue
		}
		first = cmp.Or(first, why)
		es.lacks = cmp.Or(es.lacks, e.Resource.Metadata.Name+": "+why.Error())
		if !es.gone {
			err = why
		}
	}
	return cmp.Or(first, err)
}

// starts tells which epochs a subscription reads of those that are not fixed, and how it
// begins in each. Whoever has begun reads what comes later from its beginning.
func starts(e *configstore.Entry, t *topicState, fixed []*configv1.SubscriptionSource) (out []position.Begin, err error) {
	md, spec := e.Resource.Metadata, e.Resource.GetSubscription()
	if len(fixed) > 0 {
		for _, es := range t.epochs {
			if es.Number > fixed[len(fixed)-1].Epoch {
				out = append(out, position.Begin{Epoch: es.Number, Beginning: true})
			}
		}
		return out, nil
	}
	var epochs []uint32
	for _, es := range t.epochs {
		epochs = append(epochs, es.Number)
	}
	later := t.entry.Resource.Metadata.CreatedAt.AsTime().After(md.CreatedAt.AsTime())
	return position.Starts(later || validate.Start(spec) == configv1.Start_START_BEGINNING, spec.StartAt, spec.StartPositions,
		t.entry.Resource.Metadata.Uid, epochs, t.written().Number)
}

// source fixes where a subscription begins in one epoch of a topic, and adds it to adm.
func (r *round) source(ctx context.Context, adm *configv1.SubscriptionAdmission, e *configstore.Entry, t *topicState, es *epochState, beginning bool) error {
	if es.reason != "" {
		return errors.New(es.reason)
	}
	sub, topic := e.Resource.Metadata.Uid, t.entry.Resource.Metadata
	src := &configv1.SubscriptionSource{Topic: topic.Name, TopicUid: topic.Uid, Epoch: es.Number, PhysicalGroup: names.GroupOf(sub, topic.Uid, es.Number),
		RetryTopic: names.RetryTopic(sub), RetryGroup: names.RetryGroup(sub), AtProxy: es.local, FromBeginning: beginning}
	if !es.local {
		if err := fixStart(ctx, es, src, e.Resource.GetSubscription()); err != nil {
			r.pending = true
			return err
		}
	}
	adm.Sources = append(adm.Sources, src)
	return nil
}

// again makes groups of a source that was fixed once more where the store has lost them:
// a broker of RocketMQ that crashes forgets a group that was made within the last seconds.
// They begin where they did; of one that began at the end nobody knows any more where that
// was, so it begins with what was published since its Subscription was made.
func (r *round) again(ctx context.Context, e *configstore.Entry, es *epochState, src *configv1.SubscriptionSource) {
	if !r.groups || es.admin == nil || es.verify {
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := es.admin.Lag(cctx, es.PhysicalName, src.PhysicalGroup)
	_, rerr := es.admin.Lag(cctx, src.RetryTopic, src.RetryGroup)
	lost := func(err error) bool { return err != nil && fault.ClassOf(err) == fault.NotFound }
	if !lost(err) && !lost(rerr) {
		if in := es.StoreUid + "/" + src.RetryTopic; r.trims != nil && rerr == nil && !r.trims[in] {
			r.trims[in] = true
			r.p.trim(ctx, r.p.open[es.StoreUid], src.RetryTopic, src.RetryGroup)
		}
		return
	}
	spec := e.Resource.GetSubscription()
	if spec.StartAt == nil {
		spec = proto.CloneOf(spec)
		spec.StartAt = e.Resource.Metadata.CreatedAt
	}
	if err := fixStart(ctx, es, src, spec); err != nil {
		r.pending = true
		r.p.cfg.Log.Warn("a group that the store has lost cannot be made again", "subscription", e.Name, "topic", es.PhysicalName, "group", src.PhysicalGroup, "error", err)
		return
	}
	r.p.cfg.Log.Warn("the store had lost a group; it was made again and begins at its start", "subscription", e.Name, "topic", es.PhysicalName, "group", src.PhysicalGroup)
}

// fixStart makes the group of one source with its start, and the subscription's
// retry topic in that store.
func fixStart(ctx context.Context, es *epochState, src *configv1.SubscriptionSource, spec *configv1.Subscription) error {
	from, err := position.Start(src.FromBeginning, spec.StartAt, spec.StartPositions, src.TopicUid, src.Epoch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := ensureGroup(ctx, es.admin, es.verify, es.PhysicalName, src.PhysicalGroup, from); err != nil {
		if len(from.After) > 0 && fault.ClassOf(err) == fault.Precondition {
			return fmt.Errorf("spec.start_positions: %w", err)
		}
		return fmt.Errorf("group: %w", err)
	}
	if err := ensureTopic(ctx, es.admin, es.verify, store.TopicSpec{Name: src.RetryTopic, Partitions: 4}); err != nil {
		return fmt.Errorf("retry topic %s: %w", src.RetryTopic, err)
	}
	if err := ensureGroup(ctx, es.admin, es.verify, src.RetryTopic, src.RetryGroup, store.Start{}); err != nil {
		return fmt.Errorf("retry group: %w", err)
	}
	return nil
}

// ensureGroup makes a group with its start or, with verify, only looks whether
// somebody did.
func ensureGroup(ctx context.Context, admin store.Admin, verify bool, topic, group string, from store.Start) error {
	if !verify {
		return admin.EnsureGroup(ctx, topic, group, from)
	}
	_, err := admin.Lag(ctx, topic, group)
	if err != nil && fault.ClassOf(err) == fault.NotFound {
		err = fmt.Errorf("%s has no offset in %s, and the EventStore's provisioning is verify", group, topic)
	}
	return err
}
