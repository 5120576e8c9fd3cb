package moves

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// lookEvery is the time between two looks at the stores of a move.
const lookEvery = time.Second

// lateness is by how much a store may deliver late what it holds back. Where the mesh does
// so in its place (store/delay) that is up to 13 s for an event whose topic has just failed,
// and been put behind others.
const lateness = 20 * time.Second

// look is what stores say of one move; one goroutine at a time asks them, so that a
// store that does not answer holds up no other move.
type look struct {
	mu      sync.Mutex
	running bool
	looked  bool
	ended   time.Duration // when the last one was done; since boot
	// partitions are those of the epoch with number measured; unmeasured is why they are
	// not known.
	partitions []string
	measured   uint32
	unmeasured string
	// behind is why something is not read to its end; "" where it was. parts is how far.
	behind map[item]string
	parts  map[item][]*adminv1.MovePartition
	// quiet is since when nothing has come to a retry topic, all of which was read, as all
	// else that its Subscription had there.
	quiet map[item]quiet

	// followed is what came behind the cuts of epochs of shared stores, by their numbers;
	// nil before a look.
	followed map[uint32]*trail
}

// item is what somebody has to have read before a topic's place can be given up.
type item struct {
	subscription string
	epoch        uint32
	store        string // the EventStore's canonical name
	topic, group string // as they are in the store
	// retry: the topic has a subscription's events between attempts, of which each shows
	// there once in so long; else the topic is read up to its cut.
	retry  bool
	hidden time.Duration
	local  bool
}

// readers are the Subscriptions that read a topic.
func readers(snap *configstore.Snapshot, topic *configv1.Resource) []*configv1.Resource {
	var out []*configv1.Resource
	for r := range validate.Users(snap, topic) {
		if s := r.GetSubscription(); s != nil && slices.ContainsFunc(s.Topics, func(p string) bool { return names.Match(p, topic.Metadata.Name) }) {
			out = append(out, r)
		}
	}
	return out
}

// sources are where a Subscription reads; none where that is not settled.
func sources(snap *configstore.Snapshot, sub *configv1.Resource) []*configv1.SubscriptionSource {
	adm := snap.Resource(resource.Name(resource.SubscriptionAdmission, sub.Metadata.Namespace, sub.Metadata.Name)).GetSubscriptionAdmission()
	if adm.GetSubscriptionUid() != sub.Metadata.Uid {
		return nil
	}
	return adm.Sources
}

// defaultBackoff is a Subscription's longest delay where it names none.
const defaultBackoff = 5 * time.Minute

// items are what has to be read before all epochs but the last can be given up, and the
// Subscriptions of which that is not known yet.
func items(snap *configstore.Snapshot, topic *configv1.Resource, b *configv1.TopicBinding) (all []item, unknown []string) {
	epochs := map[uint32]*configv1.Epoch{}
	for _, e := range b.Epochs[:len(b.Epochs)-1] {
		epochs[e.Number] = e
	}
	ns := topic.Metadata.Namespace
	for _, sub := range readers(snap, topic) {
		known := false
		name := resource.NameOf(sub)
		list := sources(snap, sub)
		for _, src := range list {
			if src.TopicUid != b.TopicUid {
				continue
			}
			known = true
			e := epochs[src.Epoch]
			if e == nil {
				continue
			}
			at := item{subscription: name, epoch: e.Number, store: resource.Name(resource.EventStore, ns, e.Store), topic: e.PhysicalName, group: src.PhysicalGroup}
			at.local = snap.Resource(at.store).GetEventStore().GetEmbedded() != nil
			all = append(all, at)
			// What waits for another attempt is read on where the subscription stays
			// in that store.
			if src.RetryTopic == "" || at.local || staysIn(snap, ns, list, e.StoreUid) {
				continue
			}
			at.topic, at.group, at.retry = src.RetryTopic, src.RetryGroup, true
			retry, backoff := sub.GetSubscription().GetRetry(), defaultBackoff
			if d := retry.GetMaxBackoff(); d != nil {
				backoff = d.AsDuration()
			}
			at.hidden = cutover.Hidden(max(backoff, retry.GetMinBackoff().AsDuration())) // as proxies have it
			at.epoch = 0                                                                 // of all epochs in that store
			if !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
		if !known {
			unknown = append(unknown, name)
		}
	}
	return all, unknown
}

// staysIn reports whether a Subscription goes on reading in a store: a topic of it is
// written to there. One that is left there may be given up too, perhaps in the same moment.
func staysIn(snap *configstore.Snapshot, ns string, list []*configv1.SubscriptionSource, store string) bool {
	return slices.ContainsFunc(list, func(src *configv1.SubscriptionSource) bool {
		b := snap.Resource(resource.Name(resource.TopicBinding, ns, src.Topic)).GetTopicBinding()
		at := cutover.Written(b)
		return b.GetTopicUid() == src.TopicUid && at >= 0 && b.Epochs[at].Number == src.Epoch && b.Epochs[at].StoreUid == store
	})
}

// look lets work look, unless something does, or did a moment ago.
func (o *Office) look(l *look, now time.Duration, work func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running || l.looked && now-l.ended < lookEvery {
		return
	}
	l.running, l.looked = true, true
	o.looks.Go(func() {
		work()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running, l.ended = false, o.cfg.SinceBoot()
	})
}

// drain looks whether items of remote stores were read.
func (o *Office) drain(ctx context.Context, l *look, snap *configstore.Snapshot, b *configv1.TopicBinding, all []item) {
	ends := map[item]uint64{} // of retry topics
	for _, at := range all {
		l.mu.Lock()
		why, looked := l.behind[at]
		l.mu.Unlock()
		if at.local || looked && why == "" && !at.retry {
			continue // what was read stays so
		}
		end, parts, why := o.behind(ctx, snap, b, at)
		l.mu.Lock()
		if l.behind == nil {
			l.behind, l.parts, l.quiet = map[item]string{}, map[item][]*adminv1.MovePartition{}, map[item]quiet{}
		}
		l.behind[at] = why
		if parts != nil {
			l.parts[at] = parts
		}
		if at.retry {
			ends[at] = end
		}
		l.mu.Unlock()
	}
	l.calm(all, ends, o.cfg.SinceBoot())
	o.holding(ctx, l, snap)
}

// calm keeps since when retry topics are quiet, after a look at where they end. One is not
// while its Subscription has more to read in that store, of which each event may fail yet.
func (l *look) calm(all []item, ends map[item]uint64, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at, end := range ends {
		reads := slices.ContainsFunc(all, func(other item) bool {
			return other.subscription == at.subscription && other.store == at.store && l.behind[other] != ""
		})
		if q, was := l.quiet[at]; reads {
			delete(l.quiet, at)
		} else if !was || q.end != end {
			l.quiet[at] = quiet{since: now, end: end}
		}
	}
}

// measure looks which partitions an epoch has, and lifts a fence around the one that
// comes after it.
func (o *Office) measure(ctx context.Context, l *look, snap *configstore.Snapshot, ns string, e, next *configv1.Epoch) {
	list, why := o.partitions(ctx, snap.Get(resource.Name(resource.EventStore, ns, e.Store)), e.PhysicalName)
	if n := len(list); n > maxCut { // no proxy could say where they end
		why = fmt.Sprintf("%s has %d, and a topic that moves has at most %d", e.PhysicalName, n, maxCut)
	} else if why == "" {
		if left := o.lift(ctx, snap.Get(resource.Name(resource.EventStore, ns, next.Store)), next.PhysicalName); left != "" {
			why = "and a fence around " + next.PhysicalName + " of EventStore " + next.Store + " is lifted: " + left
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partitions, l.measured, l.unmeasured = list, e.Number, why
}

// partitions are those of a physical topic, or why they are not known; none of a store
// that is inside a proxy, or does not tell.
func (o *Office) partitions(ctx context.Context, se *configstore.Entry, physical string) (list []string, why string) {
	if se == nil || se.Resource.GetEventStore().GetEmbedded() != nil {
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := o.stores.get(ctx, se)
	if err != nil {
		return nil, "its store cannot be opened: " + err.Error()
	}
	m, ok := st.(store.Measurer)
	if !ok {
		return nil, ""
	}
	extents, err := m.Extents(ctx, physical)
	if err != nil {
		return nil, err.Error()
	}
	for _, x := range extents {
		list = append(list, x.Partition)
	}
	return list, ""
}

// behind is why an item was not read to its end, and how far its partitions were; end is
// the sum of where its topic's partitions end.
func (o *Office) behind(ctx context.Context, snap *configstore.Snapshot, b *configv1.TopicBinding, at item) (end uint64, parts []*adminv1.MovePartition, why string) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	se := snap.Get(at.store)
	if se == nil {
		return 0, nil, "its store is not there"
	}
	admin, err := o.stores.admin(ctx, se)
	if err != nil {
		return 0, nil, err.Error()
	}
	lag, err := admin.Lag(ctx, at.topic, at.group)
	if err != nil {
		if fault.ClassOf(err) == fault.NotFound && at.retry {
			return 0, nil, "" // never made: nothing was retried
		}
		return 0, nil, "group " + at.group + " of " + at.topic + ": " + err.Error()
	}
	if at.retry {
		for _, p := range lag {
			end += p.End
			parts = append(parts, &adminv1.MovePartition{Partition: p.Partition, End: p.End, Settled: min(p.Committed, p.End)})
			if p.Committed < p.End {
				why = cmp.Or(why, "events wait for another attempt")
			}
		}
		return end, parts, why
	}
	cut := cutBefore(b, at.epoch)
	for _, c := range cut {
		part := &adminv1.MovePartition{Partition: c.Partition, End: c.Offset}
		if i := slices.IndexFunc(lag, func(p store.PartitionLag) bool { return p.Partition == c.Partition }); i >= 0 {
			part.Settled = min(lag[i].Committed, c.Offset)
		}
		parts = append(parts, part)
	}
	return 0, parts, short(lag, cut)
}

// cutBefore is where an epoch ends.
func cutBefore(b *configv1.TopicBinding, number uint32) []*configv1.Cut {
	for _, e := range b.Epochs {
		if e.Number == number {
			return e.Cut
		}
	}
	return nil
}

// short is what a group has not read before a cut; "" where it has read all.
func short(lag []store.PartitionLag, cut []*configv1.Cut) string {
	if len(cut) == 0 {
		return "it has no cut"
	}
	var left []string
	for _, c := range cut {
		i := slices.IndexFunc(lag, func(p store.PartitionLag) bool { return p.Partition == c.Partition })
		if i < 0 {
			left = append(left, fmt.Sprintf("partition %q is not there", c.Partition))
		} else if lag[i].Committed < c.Offset {
			left = append(left, fmt.Sprintf("partition %q is %d behind", c.Partition, c.Offset-lag[i].Committed))
		}
	}
	return some(left)
}

// some names the first few of a list.
func some(list []string) string {
	const few = 5
	if len(list) <= few {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:few], ", "), len(list)-few)
}
