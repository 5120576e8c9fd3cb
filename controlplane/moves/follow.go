package moves

import (
	"context"
	"fmt"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// trail is what came to one epoch behind its cut, past the mesh, which proxies bring into
// the topic.
type trail struct {
	store string // the EventStore's name
	// why it is not known, and whether proxies follow it at all: where others provision the
	// store, that is theirs to say.
	why   string
	apart bool
	lag   []store.PartitionLag
	// ends are where its partitions ended when the look began that came first after the
	// operator had wished that the epoch is given up.
	ends map[string]uint64
}

// follow looks what came to epochs behind their cuts. finish is that they are to be given up.
func (o *Office) follow(ctx context.Context, l *look, snap *configstore.Snapshot, ns string, b *configv1.TopicBinding, finish bool) {
	found := map[uint32]*trail{}
	for _, e := range b.Epochs[:len(b.Epochs)-1] {
		se := snap.Get(resource.Name(resource.EventStore, ns, e.Store))
		if len(e.Cut) == 0 || se == nil || se.Resource.GetEventStore().GetEmbedded() != nil {
			continue
		}
		x := &trail{store: e.Store}
		found[e.Number] = x
		lag, err := o.lag(ctx, se, e.PhysicalName, names.FollowGroup(b.TopicUid, e.Number))
		switch {
		case err == nil:
			x.lag = lag
		case fault.ClassOf(err) != fault.NotFound:
			x.why = err.Error()
		case se.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY:
			x.apart = true
		default:
			x.why = "the group that follows them is made"
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, x := range found {
		if was := l.followed[n]; finish && was != nil && was.ends != nil {
			x.ends = was.ends
		} else if finish && x.lag != nil {
			x.ends = map[string]uint64{}
			for _, p := range x.lag {
				x.ends[p.Partition] = p.End
			}
		}
	}
	l.followed = found
}

// lag is how far a group is, by the store itself.
func (o *Office) lag(ctx context.Context, se *configstore.Entry, topic, group string) ([]store.PartitionLag, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	admin, err := o.stores.admin(ctx, se)
	if err != nil {
		return nil, err
	}
	return admin.Lag(ctx, topic, group)
}

// beyond is where what is behind a cut begins: behind its marker, or with the beginning of
// a partition that came later.
func beyond(b *configv1.TopicBinding, epoch uint32, partition string) uint64 {
	for _, c := range cutBefore(b, epoch) {
		if c.Partition == partition {
			return c.Offset + 1
		}
	}
	return 0
}

// unforwarded is what was behind a cut when the operator wished that the epoch is given
// up, and is not in the topic yet.
func (m *move) unforwarded() (waits []string) {
	l := m.seen.look
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range m.b.Epochs[:len(m.b.Epochs)-1] {
		x := l.followed[e.Number]
		switch {
		case x == nil && l.followed != nil, x != nil && x.apart:
			continue
		case x == nil:
			waits = append(waits, "what native producers wrote to EventStore "+e.Store+" is looked at")
			continue
		case x.ends == nil:
			waits = append(waits, strings.TrimSuffix("what native producers wrote to EventStore "+e.Store+" is counted: "+x.why, ": "))
			continue
		}
		var left uint64
		for _, p := range x.lag {
			from := beyond(m.b, e.Number, p.Partition)
			if from > 0 && e.Fence.GetState() == configv1.Fence_STATE_ENFORCED {
				from-- // the cut may be where the fence found the end, and no marker
			}
			if at := max(p.Committed, from); at < x.ends[p.Partition] {
				left += x.ends[p.Partition] - at
			}
		}
		if x.lag == nil || left > 0 {
			waits = append(waits, strings.TrimSuffix(fmt.Sprintf("%d of what native producers wrote to EventStore %s are not in the topic yet: %s", left, e.Store, x.why), ": "))
		}
	}
	return waits
}

// natives tells what native producers wrote behind cuts; "" for nothing.
func (m *move) natives() string {
	l := m.seen.look
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, e := range m.b.Epochs[:len(m.b.Epochs)-1] {
		x := l.followed[e.Number]
		if x == nil {
			continue
		}
		var wrote, left uint64
		for _, p := range x.lag {
			from := beyond(m.b, e.Number, p.Partition)
			wrote += max(p.End, from) - from
			left += p.End - min(max(p.Committed, from), p.End)
		}
		switch {
		case x.apart:
			all = append(all, fmt.Sprintf("what native producers write to EventStore %s is not read: its provisioning is verify, and there is no group %s", e.Store, names.FollowGroup(m.b.TopicUid, e.Number)))
		case wrote > 0:
			all = append(all, fmt.Sprintf("native producers wrote %d messages to EventStore %s behind its end, of which %d are not in the topic yet", wrote, e.Store, left))
		}
	}
	return strings.Join(all, "; ")
}
