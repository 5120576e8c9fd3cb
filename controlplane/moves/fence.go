package moves

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

// A topic's old place gets a fence once its markers are written: they could not be any
// more. The cut is where the place ends then, so that what others than the mesh wrote
// until the fence stood is read. Where there is none, the markers are the cut.
//
// A fence that is begun stands in etcd first. Until the topic has left the place it is
// lifted again wherever the phase has the place written to, by whoever is in office, and a
// move is withdrawn after that only. Behind the cut it stays for good: no topic comes back
// to a place, but for one that is given its name, and is prepared; there it is lifted.

// Times of fences.
const (
	// fenceTimeout bounds one attempt to put one up, or to lift it.
	fenceTimeout = 3 * time.Second
	// fenceAfter is how long publishers wait for it beside the markers.
	fenceAfter = 5 * time.Second
	// fenceRetry is the time between two attempts.
	fenceRetry = 500 * time.Millisecond
	// settles is the time between two looks at where a place ends in its fence, which
	// have to agree: a broker may be at work on what came before the fence.
	settles = 200 * time.Millisecond
)

// fence is what this office has done with the fence of a move's old place, in this term;
// one goroutine at a time does.
type fence struct {
	mu      sync.Mutex
	running bool
	// version of the binding for which it is put up, and since when, and when the last
	// attempt ended; since boot.
	version      string
	began, ended time.Duration
	// begun is the status key of the fence that an attempt was made to put up, and none to
	// lift it has succeeded since. It may not be written yet.
	begun   string
	state   *configv1.Fence // nil: not yet
	ends    []store.Extent
	trouble string
	// tried is when it was lifted last, and unlifted why that failed.
	tried    time.Duration
	unlifted string
}

// fences is where the status keys of fences begin that are put up, or stand: then come
// the topic's uid and the epoch.
const fences = "fence/"

func (m *move) fenceKey() string { return fmt.Sprintf("%s%s/%d", fences, m.b.TopicUid, m.old().Number) }

// fenced is the cut of the old place in its fence, of which cut are the markers, and how
// well that holds; no cut and why while it is being put up.
func (o *Office) fenced(ctx context.Context, m *move, cut []*configv1.Cut) ([]*configv1.Cut, *configv1.Fence, string) {
	e := m.old()
	se := m.snap.Get(resource.Name(resource.EventStore, m.topic.Metadata.Namespace, e.Store))
	if se != nil && se.Resource.GetEventStore().GetEmbedded() != nil {
		return cut, nil, "" // nobody else can write there
	}
	none := func(why string) *configv1.Fence {
		return &configv1.Fence{State: configv1.Fence_STATE_NONE, Reason: names.Text(why, maxReason)}
	}
	if se == nil {
		return cut, none("EventStore " + e.Store + " is not there"), ""
	}
	if se.Resource.GetEventStore().Provisioning == configv1.Provisioning_PROVISIONING_VERIFY {
		return cut, none("the provisioning of EventStore " + e.Store + " is verify"), ""
	}
	f, version := &m.seen.fence, m.entry.Version()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.version != version {
		f.version, f.began, f.ended, f.state, f.ends, f.trouble = version, m.now, 0, nil, nil, ""
	}
	switch {
	case f.state != nil:
		return behind(cut, f.ends), f.state, ""
	case m.now-f.began >= fenceAfter:
		return cut, none("it could not be put up in time: " + f.trouble), ""
	}
	if !f.running && (f.ended == 0 || m.now-f.ended >= fenceRetry) {
		f.running, f.begun = true, m.fenceKey()
		o.looks.Go(func() {
			state, ends, err := o.putUp(ctx, m.term, m.fenceKey(), se, e.PhysicalName)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.running, f.ended = false, o.cfg.SinceBoot()
			switch {
			case f.version != version:
			case err == nil:
				f.state, f.ends = state, ends
			case store.Silent(err):
				f.trouble = err.Error()
			default:
				f.state = none(err.Error())
			}
		})
	}
	why := "EventStore " + e.Store + " puts up a fence around what the topic leaves"
	if f.trouble != "" {
		why += ": " + f.trouble
	}
	return nil, nil, why
}

// maxReason bounds what is told of a fence.
const maxReason = 512

// putUp puts up a fence around a physical topic, under a status key, and tells how well
// it holds and where the topic ends.
func (o *Office) putUp(ctx context.Context, term election.Term, key string, se *configstore.Entry, physical string) (*configv1.Fence, []store.Extent, error) {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	st, err := o.stores.get(ctx, se)
	if err != nil {
		return nil, nil, err
	}
	f, can := st.(store.Fencer)
	measure, tells := st.(store.Measurer)
	if !can || !tells {
		return nil, nil, store.NoFence(physical, "a store of this kind has none")
	}
	client, key := o.cfg.Store.Client(), o.cfg.Store.StatusKey(key)
	if err := term.Write(ctx, client, clientv3.OpPut(key, "")); err != nil {
		return nil, nil, fault.Wrap(fault.Unavailable, "move.fence", "not-seen", err)
	}
	how, err := f.Fence(ctx, physical)
	if err != nil {
		return nil, nil, err
	}
	// It may have taken until another office has lifted it.
	if there, err := client.Get(ctx, key, clientv3.WithCountOnly()); err != nil || there.Count == 0 {
		if err == nil {
			err = errors.Join(errors.New("another office has lifted it"), f.Unfence(ctx, physical))
		}
		return nil, nil, fault.Wrap(fault.Unavailable, "move.fence", "not-seen", err)
	}
	if how == store.FenceAdvisory { // who writes on does so behind any cut
		return &configv1.Fence{State: configv1.Fence_STATE_ADVISORY, Reason: "its servers take what clients write that have not asked again where the topic is"}, nil, nil
	}
	ends, err := measure.Extents(ctx, physical)
	for err == nil {
		timer := time.NewTimer(settles)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, fault.From(ctx.Err())
		}
		var again []store.Extent
		if again, err = measure.Extents(ctx, physical); slices.EqualFunc(ends, again, func(a, b store.Extent) bool { return a.Partition == b.Partition && a.End == b.End }) {
			break
		}
		ends = again
	}
	return &configv1.Fence{State: configv1.Fence_STATE_ENFORCED}, ends, err
}

// behind is the cut where partitions end, of those that have more behind their marker, or
// came later; in the others it is the marker, which nobody has to read.
func behind(cut []*configv1.Cut, ends []store.Extent) []*configv1.Cut {
	var out []*configv1.Cut
	for _, c := range cut {
		i := slices.IndexFunc(ends, func(x store.Extent) bool { return x.Partition == c.Partition })
		if i >= 0 && ends[i].End > c.Offset+1 {
			c = &configv1.Cut{Partition: c.Partition, Offset: ends[i].End}
		}
		out = append(out, c)
	}
	for _, x := range ends {
		if x.End > x.Begin && !slices.ContainsFunc(cut, func(c *configv1.Cut) bool { return c.Partition == x.Partition }) {
			out = append(out, &configv1.Cut{Partition: x.Partition, Offset: x.End})
		}
	}
	return out
}

// standing is why a fence may stand around the old place, which is written to; "" where
// none does.
func (o *Office) standing(ctx context.Context, m *move) string {
	f := &m.seen.fence
	f.mu.Lock()
	defer f.mu.Unlock()
	if !m.fencing && f.begun != m.fenceKey() || m.phase >= cutover.Draining {
		return "" // never begun, or to stay
	}
	e := m.old()
	se := m.snap.Get(resource.Name(resource.EventStore, m.topic.Metadata.Namespace, e.Store))
	if m.phase == cutover.Leasing && !f.running && (f.tried == 0 || m.now-f.tried >= fenceRetry) {
		f.running = true
		o.looks.Go(func() {
			why := o.lift(ctx, se, e.PhysicalName)
			if why == "" {
				if err := m.term.Write(ctx, o.cfg.Store.Client(), clientv3.OpDelete(o.cfg.Store.StatusKey(m.fenceKey()))); err != nil {
					why = err.Error()
				}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			f.running, f.tried, f.unlifted = false, o.cfg.SinceBoot(), why
			if why == "" {
				f.begun = ""
			}
		})
	}
	return strings.TrimSuffix("the fence around what the topic has in EventStore "+e.Store+" is lifted: "+f.unlifted, ": ")
}

// lift removes the mesh's fence around a physical topic, and tells why it may still
// stand.
func (o *Office) lift(ctx context.Context, se *configstore.Entry, physical string) (why string) {
	if se == nil || se.Resource.GetEventStore().GetEmbedded() != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	st, err := o.stores.get(ctx, se)
	if err != nil {
		return "its store cannot be opened: " + err.Error()
	}
	if err := store.Unfence(ctx, st, physical); err != nil {
		return err.Error()
	}
	return ""
}
