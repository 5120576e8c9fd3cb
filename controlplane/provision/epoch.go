package provision

import (
	"cmp"
	"context"
	"fmt"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// topicState is what a round found out about a topic.
type topicState struct {
	entry   *configstore.Entry
	binding *configv1.TopicBinding
	epochs  []*epochState // as they are in the binding
	// reason is why the topic may not be used; "" when it may.
	reason string
	saw    []string // names on which all this depends
}

// epochState is what a round found out about one epoch of a topic.
type epochState struct {
	*configv1.Epoch
	local  bool
	admin  store.Admin // nil for a local one, and where it cannot be used
	verify bool        // admin only looks
	// reason is why the epoch cannot be used now, and word the same in a word; "" when
	// it can. gone: it never can, since its EventStore is not there.
	reason, word string
	gone         bool
	// lacks is what the first Subscription says whose group is not fixed; "" for none.
	lacks string
}

func (e *epochState) cannot(word, format string, args ...any) {
	e.word, e.reason = word, fmt.Sprintf(format, args...)
}

// written is the epoch that is written to.
func (t *topicState) written() *epochState { return t.epochs[cutover.Written(t.binding)] }

// target is the epoch that is being prepared, to which nothing was written yet; nil for
// none.
func (t *topicState) target() *epochState {
	n := len(t.epochs) - 1
	if t.binding.GetMove().GetPhase() != configv1.Move_PHASE_PREPARING || n == 0 {
		return nil
	}
	return t.epochs[n]
}

// topic makes, or looks at, every epoch of a topic. One that cannot be used does not
// hold up the others.
func (r *round) topic(ctx context.Context, e *configstore.Entry) {
	md := e.Resource.Metadata
	binding := resource.Name(resource.TopicBinding, md.Namespace, md.Name)
	t := &topicState{entry: e, binding: r.snap.Resource(binding).GetTopicBinding(), saw: []string{e.Name, binding}}
	r.topics[e.Name] = t
	if t.binding.GetTopicUid() != md.Uid || len(t.binding.Epochs) == 0 {
		t.reason = "it has no binding"
		return
	}
	for _, be := range t.binding.Epochs {
		t.epochs = append(t.epochs, &epochState{Epoch: be})
		t.saw = append(t.saw, resource.Name(resource.EventStore, md.Namespace, be.Store))
	}
	for _, es := range t.epochs {
		r.epoch(ctx, t, es)
		r.follow(ctx, t, es)
	}
	t.reason = t.written().reason
}

func (r *round) epoch(ctx context.Context, t *topicState, es *epochState) {
	md, spec := t.entry.Resource.Metadata, t.entry.Resource.GetTopic()
	se := r.snap.Get(resource.Name(resource.EventStore, md.Namespace, es.Store))
	if se == nil || se.Resource.Metadata.Uid != es.StoreUid {
		es.gone = true
		es.cannot("StoreMissing", "EventStore %s is not there", es.Store)
		return
	}
	if se.Resource.GetEventStore().GetEmbedded() != nil {
		es.local = true
		if es.Number >= t.written().Number {
			r.p.lackingLocal(se, spec, es)
		}
		return
	}
	o := r.p.open[es.StoreUid]
	if o == nil || o.err != nil {
		r.pending = true
		es.cannot("StoreUnreachable", "EventStore %s cannot be reached", es.Store)
		if o != nil {
			es.reason += ": " + o.err.Error()
		}
		return
	}
	admin, ok := o.st.(store.Admin)
	if !ok {
		es.cannot("StoreLacksAdministration", "EventStore %s cannot be administered", es.Store)
		return
	}
	if es.Number >= t.written().Number {
		lacking(spec, es, o.caps)
	}
	if es == t.target() && es.reason == "" {
		r.unfit(t, es, o.caps)
	}
	if es.reason != "" {
		r.pending = true
		return
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	es.verify = se.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY
	if es == t.target() {
		if err := empty(cctx, o.st, admin, es.PhysicalName); err != nil {
			r.pending = true
			es.cannot("TopicNotEmpty", "topic %s: %v", es.PhysicalName, err)
			return
		}
	}
	want := store.TopicSpec{Name: es.PhysicalName, Partitions: cmp.Or(int(spec.Partitions), 8), MaxAge: spec.GetRetention().GetMaxAge().AsDuration(),
		MaxBytes: int64(spec.GetRetention().GetMaxBytes())} //nolint:gosec // validated
	if err := ensureTopic(cctx, admin, es.verify, want); err != nil {
		r.pending = true
		es.cannot("TopicNotMade", "topic %s: %v", es.PhysicalName, err)
		return
	}
	if !es.verify && r.fresh(t) {
		if err := store.Unfence(cctx, o.st, es.PhysicalName); err != nil {
			r.pending = true
			es.cannot("TopicFenced", "a fence around topic %s: %v", es.PhysicalName, err)
			return
		}
	}
	es.admin = admin
}

// fresh reports whether a topic was never admitted: what it adopts may be what another one
// has left, with a fence around it.
func (r *round) fresh(t *topicState) bool {
	md := t.entry.Resource.Metadata
	adm := r.snap.Resource(resource.Name(resource.TopicAdmission, md.Namespace, md.Name)).GetTopicAdmission()
	return t.binding.Move == nil && (adm.GetTopicUid() != md.Uid || !adm.GetAdmitted())
}

// defaultMaxBackoff is that of a Subscription that names none.
const defaultMaxBackoff = 5 * time.Minute

// unfit says what a topic that is in use, or one of its Subscriptions, needs of the
// store that it is to move to, and does not get there.
func (r *round) unfit(t *topicState, es *epochState, caps store.Capabilities) {
	md, spec := t.entry.Resource.Metadata, t.entry.Resource.GetTopic()
	if spec.Retention != nil && !caps.TopicRetention {
		es.cannot("StoreLacksRetention", "has a retention of its own, EventStore %s keeps events by one setting for all topics", es.Store)
		return
	}
	for e := range r.snap.All(string(resource.Subscription) + "/" + md.Namespace + "/") {
		s := e.Resource.GetSubscription()
		if !reads(s, md.Name) {
			continue
		}
		longest := defaultMaxBackoff
		if s.Retry.GetMaxBackoff() != nil {
			longest = s.Retry.MaxBackoff.AsDuration()
		}
		if longest > caps.Delay {
			es.cannot("StoreLacksDelay", "Subscription %s waits up to %s before it tries again, EventStore %s holds events back for at most %s", e.Resource.Metadata.Name, longest, es.Store, caps.Delay)
			return
		}
	}
}

// empty reports what is in a topic of a store, which must not have anything, or not be
// there.
func empty(ctx context.Context, st store.Store, admin store.Admin, physical string) error {
	if there, err := admin.TopicExists(ctx, physical); err != nil || !there {
		return err
	}
	m, ok := st.(store.Measurer)
	if !ok {
		return fmt.Errorf("it is there, and the store cannot tell whether it is empty")
	}
	extents, err := m.Extents(ctx, physical)
	if err != nil {
		return err
	}
	for _, x := range extents {
		if x.End > x.Begin {
			return fmt.Errorf("it has events that are not this topic's: %d in partition %q", x.End-x.Begin, x.Partition)
		}
	}
	return nil
}

// follow makes the group that reads what comes to an epoch behind its cut, from there on,
// and from the beginning of partitions that came after it. While it cannot be made proxies
// do not follow, and the move does not end. Where others provision the store it is theirs to
// make, and may be anywhere before the cut.
func (r *round) follow(ctx context.Context, t *topicState, es *epochState) {
	if len(es.Cut) == 0 || es.admin == nil || es.verify {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var from store.Start
	for _, c := range es.Cut {
		if c.Offset > 0 { // what is at the cut may be somebody's
			from.After = append(from.After, store.Position{Partition: c.Partition, Offset: c.Offset - 1})
		}
	}
	if err := es.admin.EnsureGroup(ctx, es.PhysicalName, names.FollowGroup(t.binding.TopicUid, es.Number), from); err != nil {
		r.pending = true
		r.p.cfg.Log.Warn("the group that follows native producers cannot be made; trying again", "topic", t.entry.Name, "epoch", es.Number, "error", err)
	}
}
