package admin

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/provision"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// answers tell how what topics need is met.
type answers struct {
	snap     *configstore.Snapshot
	put      map[string]*configv1.Resource // EventStores that a change makes or changes
	observed func(*configstore.Entry) (store.Capabilities, bool)
}

// answers are those in a snapshot, with what put changes of it.
func (s *Service) answers(ctx context.Context, snap *configstore.Snapshot, put []*configv1.Resource) answers {
	a := answers{snap: snap, put: map[string]*configv1.Resource{}, observed: func(*configstore.Entry) (store.Capabilities, bool) { return store.Capabilities{}, false }}
	if s.cfg.Observed != nil {
		read := sync.OnceValue(func() func(*configstore.Entry) (store.Capabilities, bool) { return s.cfg.Observed(ctx) })
		a.observed = func(e *configstore.Entry) (store.Capabilities, bool) { return read()(e) }
	}
	for _, r := range put {
		if r.GetEventStore() != nil {
			a.put[r.Name] = r
		}
	}
	return a
}

// of tells for one Topic, in the store that it is written to; nothing where it states no
// needs and nobody knows its store.
func (a answers) of(r *configv1.Resource) []*adminv1.NeedAnswer {
	return a.by(r, cmp.Or(storeOf(a.snap, r), r.GetTopic().Store)) // what it moves to is the Migration's to judge
}

// storeOf names the EventStore that a Topic is written to, by its binding; "" where it has
// none.
func storeOf(snap *configstore.Snapshot, r *configv1.Resource) string {
	md := r.Metadata
	b := snap.Resource(resource.Name(resource.TopicBinding, md.Namespace, md.Name)).GetTopicBinding()
	if n := cutover.Written(b); n >= 0 && b.TopicUid == md.Uid {
		return b.Epochs[n].Store
	}
	return ""
}

// by tells how an EventStore meets what a Topic needs.
func (a answers) by(r *configv1.Resource, in string) []*adminv1.NeedAnswer {
	md := r.Metadata
	name := resource.Name(resource.EventStore, md.Namespace, in)
	e := a.snap.Get(name)
	if next := a.put[name]; next != nil {
		e = &configstore.Entry{Name: name, Resource: next} // of a version that nobody has observed
	}
	var caps store.Capabilities
	known := false
	if e != nil {
		caps, known = a.observed(e)
	}
	if !known && r.GetTopic().Needs == nil {
		return nil
	}
	var out []*adminv1.NeedAnswer
	for _, n := range store.Meet(provision.NeedsOf(r.GetTopic()), caps) {
		to := &adminv1.NeedAnswer{Need: n.Need, Means: adminv1.NeedAnswer_MEANS_UNOBSERVED, Detail: "EventStore " + in + " was not observed yet"}
		if known {
			to.Means, to.Detail = means[n.Means], n.Detail
		}
		if to.Means == adminv1.NeedAnswer_MEANS_REFUSED {
			to.Detail = "EventStore " + in + " " + to.Detail
		}
		out = append(out, to)
	}
	return out
}

var means = [...]adminv1.NeedAnswer_Means{store.MeansNone: adminv1.NeedAnswer_MEANS_REFUSED, store.MeansNative: adminv1.NeedAnswer_MEANS_NATIVE, store.MeansEmulated: adminv1.NeedAnswer_MEANS_EMULATED}

// Reasons of the condition NeedsMet.
const (
	needsNative     = "Native"
	needsEmulated   = "Emulated"
	needsRefused    = "Refused"
	needsUnobserved = "Unobserved"
)

// condition is what a Topic's status says of its needs; nil where it states none, or
// nobody knows of one that is ready.
func (a answers) condition(r *configv1.Resource, ready bool) *adminv1.Condition {
	if r.GetTopic().GetNeeds() == nil {
		return nil
	}
	c := &adminv1.Condition{Type: "NeedsMet", State: adminv1.Condition_STATE_TRUE, Reason: needsNative}
	all := a.of(r)
	has := func(m adminv1.NeedAnswer_Means) bool {
		return slices.ContainsFunc(all, func(n *adminv1.NeedAnswer) bool { return n.Means == m })
	}
	switch {
	case has(adminv1.NeedAnswer_MEANS_UNOBSERVED):
		if ready {
			return nil
		}
		c.State, c.Reason = adminv1.Condition_STATE_UNKNOWN, needsUnobserved
	case has(adminv1.NeedAnswer_MEANS_REFUSED):
		c.State, c.Reason = adminv1.Condition_STATE_FALSE, needsRefused
	case has(adminv1.NeedAnswer_MEANS_EMULATED):
		c.Reason = needsEmulated
	}
	var says []string
	for _, n := range all {
		says = append(says, strings.TrimSuffix(n.Need+": "+strings.ToLower(strings.TrimPrefix(n.Means.String(), "MEANS_"))+", "+n.Detail, ", "))
	}
	c.Message = strings.Join(says, "; ")
	return c
}

// answer adds to a plan's results how what its Topics need is met.
func (s *Service) answer(ctx context.Context, snap *configstore.Snapshot, p plan) {
	if !slices.ContainsFunc(p.put, func(r *configv1.Resource) bool { return r.GetTopic() != nil }) {
		return
	}
	a := s.answers(ctx, snap, p.change.Put)
	for _, r := range p.put {
		if r.GetTopic() == nil {
			continue
		}
		i := slices.IndexFunc(p.resp.Results, func(res *adminv1.ApplyResult) bool { return res.Name == r.Name })
		p.resp.Results[i].Needs = a.of(r)
	}
}
