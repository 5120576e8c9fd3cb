package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// decision is an admission to be written, and the names of the resources, there or
// missing, that it was decided by.
type decision struct {
	admission *configv1.Resource
	saw       []string
}

// admitTopics writes the admissions that changed, and how far targets are prepared.
func (r *round) admitTopics(ctx context.Context) {
	for _, t := range r.topics {
		md := t.entry.Resource.Metadata
		old := r.snap.Resource(resource.Name(resource.TopicAdmission, md.Namespace, md.Name)).GetTopicAdmission()
		if old.GetTopicUid() != md.Uid {
			old = nil
		}
		adm := &configv1.TopicAdmission{TopicUid: md.Uid, Admitted: t.reason == ""}
		if len(t.epochs) > 1 { // else it says nothing, and proxies that do not know the field are sent the rest
			adm.Epochs = r.ready(t, old)
		}
		if t.reason != "" {
			adm.Reasons = []string{t.reason}
		}
		if len(t.epochs) > 0 {
			adm.AtProxy = t.written().local
		}
		switch _, told := r.p.known[t.entry.Name]; {
		case old.GetAdmitted() && !adm.Admitted:
			// What was admitted stays so: a store that is down for a while, or
			// gives less than it did, is a condition, not a reason to stop its
			// topics.
			r.p.condition(ctx, r.term, t.entry.Name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_FALSE,
				Reason: "AsAdmittedNoLonger", Message: t.reason})
			adm.Admitted, adm.Reasons, adm.AtProxy = true, nil, old.AtProxy
		case told && adm.Admitted:
			r.p.condition(ctx, r.term, t.entry.Name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_TRUE, Reason: "AsAdmitted"})
		}
		r.prepared(ctx, t, adm)
		if !proto.Equal(old, adm) {
			r.write(md, &configv1.Resource{Spec: &configv1.Resource_TopicAdmission{TopicAdmission: adm}}, t.saw)
		}
	}
}

// ready are the epochs that can be used, with the groups of all Subscriptions. One that
// was ready stays so, but for one that is only being prepared.
func (r *round) ready(t *topicState, old *configv1.TopicAdmission) (epochs []uint32) {
	for _, es := range t.epochs {
		if es.reason == "" && es.lacks == "" || es != t.target() && slices.Contains(old.GetEpochs(), es.Number) {
			epochs = append(epochs, es.Number)
		}
	}
	return epochs
}

// prepared tells, at the Migration, whether the epoch that a topic moves to is ready,
// and why not.
func (r *round) prepared(ctx context.Context, t *topicState, adm *configv1.TopicAdmission) {
	if t.binding.GetMove() == nil || len(t.epochs) < 2 {
		return
	}
	md, es := t.entry.Resource.Metadata, t.epochs[len(t.epochs)-1]
	name := resource.Name(resource.Migration, md.Namespace, md.Name)
	if r.snap.Resource(name).GetMetadata().GetUid() != t.binding.Move.MigrationUid {
		return
	}
	c := &adminv1.Condition{Type: "Prepared", State: adminv1.Condition_STATE_TRUE, Reason: "Prepared", Message: fmt.Sprintf("topic %s of EventStore %s has the groups of all Subscriptions", es.PhysicalName, es.Store)}
	switch {
	case slices.Contains(adm.Epochs, es.Number):
	case es.reason != "":
		c.State, c.Reason, c.Message = adminv1.Condition_STATE_FALSE, es.word, es.reason
	default:
		c.State, c.Reason, c.Message = adminv1.Condition_STATE_FALSE, "GroupsMissing", "Subscription "+es.lacks
	}
	r.p.condition(ctx, r.term, name, c)
}

func (r *round) write(md *configv1.Metadata, res *configv1.Resource, saw []string) {
	res.Metadata = &configv1.Metadata{Namespace: md.Namespace, Name: md.Name}
	res.Name = resource.NameOf(res)
	r.put = append(r.put, decision{res, saw})
}

// commit writes what was decided. Where the configuration has changed since it was
// looked at, which it may do all the time, what still holds is written on top of the
// changes; the rest is for the next pass. ErrConflict: not all was written.
func (r *round) commit(ctx context.Context) error {
	at := r.snap
	for len(r.put) > 0 {
		n := r.fitting(at)
		change := configstore.Change{Only: []clientv3.Cmp{r.term.Fence()}, Actor: "weft provisioner", Peer: "control plane"}
		for _, d := range r.put[:n] {
			change.Put = append(change.Put, d.admission)
		}
		rev, err := r.p.cfg.Store.Commit(ctx, at, change)
		switch {
		case err == nil:
			r.put = r.put[n:]
		case errors.Is(err, configstore.ErrConflict):
			rev = at.Revision + 1
		case fault.ClassOf(err) == fault.TooLarge: // it is one alone
			r.tooLarge(ctx, err)
			r.put = r.put[1:]
			continue
		default:
			return err
		}
		if len(r.put) == 0 {
			return nil
		}
		wctx, cancel := context.WithTimeout(ctx, callTimeout)
		at, err = r.p.cfg.Store.WaitFor(wctx, rev)
		cancel()
		if err != nil {
			return err
		}
		if !r.rebase(at) {
			return configstore.ErrConflict
		}
	}
	return nil
}

// Most of one transaction: every admission may take a Quarantine away, and its audit record
// has what was and what comes.
const (
	maxPuts     = configstore.MaxWrites / 2
	maxPutBytes = configstore.MaxWriteBytes
)

// fitting is how many of the decisions go into one transaction: at least one.
func (r *round) fitting(at *configstore.Snapshot) int {
	size := 0
	for i, d := range r.put {
		size += 2 * proto.Size(d.admission)
		if old := at.Get(d.admission.Name); old != nil {
			size += len(old.Bytes)
		}
		if i > 0 && size > maxPutBytes || i == maxPuts {
			return i
		}
	}
	return len(r.put)
}

// tooLarge tells of the first decision that no transaction takes it: what was admitted
// before stays so, and the others go on.
func (r *round) tooLarge(ctx context.Context, err error) {
	md, kind := r.put[0].admission.Metadata, resource.Subscription
	if r.put[0].admission.GetTopicAdmission() != nil {
		kind = resource.Topic
	}
	name := resource.Name(kind, md.Namespace, md.Name)
	r.large[name] = true
	r.p.cfg.Log.Error("an admission is too large to be written; the others are", "of", name, "error", err)
	r.p.condition(ctx, r.term, name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_FALSE, Reason: "TooLarge",
		Message: "its admission, which grows with each topic, is too large: " + err.Error()})
}

// taken tells of Subscriptions whose admission was too large that it is not any more.
func (r *round) taken(ctx context.Context) {
	for name := range r.p.known {
		if strings.HasPrefix(name, string(resource.Subscription)+"/") && !r.large[name] {
			r.p.condition(ctx, r.term, name, &adminv1.Condition{Type: "Provisioned", State: adminv1.Condition_STATE_TRUE, Reason: "AsAdmitted"})
		}
	}
}

// rebase keeps, of what is left to write, the decisions that hold at a later
// snapshot; it reports whether there is one that can be compared.
//
// A topic is admitted after the groups of all that subscribe to it are fixed: it
// waits with a Subscription that came meanwhile, and with one whose admission waits.
func (r *round) rebase(at *configstore.Snapshot) bool {
	since, ok := at.Since(r.snap.Revision)
	if !ok || at.Lineage != r.snap.Lineage {
		return false
	}
	changed := map[string]bool{}
	var waiting []*configv1.Resource // Subscriptions
	for _, name := range since {
		changed[name] = true
		if res := at.Resource(name); res.GetSubscription() != nil {
			waiting = append(waiting, res)
		}
	}
	kept := r.put[:0]
	for _, d := range r.put { // Subscriptions' come first
		md := d.admission.Metadata
		holds := !slices.ContainsFunc(d.saw, func(name string) bool { return changed[name] })
		switch {
		case d.admission.GetTopicAdmission() != nil:
			holds = holds && !slices.ContainsFunc(waiting, func(s *configv1.Resource) bool {
				return s.Metadata.Namespace == md.Namespace && reads(s.GetSubscription(), md.Name)
			})
		case !holds:
			if s := at.Resource(resource.Name(resource.Subscription, md.Namespace, md.Name)); s != nil {
				waiting = append(waiting, s)
			}
		}
		if holds {
			kept = append(kept, d)
		} else {
			r.pending = true
		}
	}
	r.put = kept
	return true
}

// reads tells whether a Subscription reads a topic of its namespace.
func reads(s *configv1.Subscription, topic string) bool {
	return slices.ContainsFunc(s.Topics, func(pattern string) bool { return names.Match(pattern, topic) })
}
