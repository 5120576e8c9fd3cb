package delivery

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// A topic that has moved is read one epoch after the other. A later one is read once
// the group has settled the earlier ones up to their cuts: in all partitions, whoever of
// the group has them, so that neither a key is overtaken nor an event left behind. Only
// the store can tell, and it is asked while that lasts.
//
// What is at or behind a cut was never acknowledged to its publisher, and is settled
// unseen. Some of it may have been read before the cut was known here. What nobody has
// is dropped then; what a member has stays with it and holds up its key, so that one of a
// key is out at a time, as ever, and settled or failed it does not come again. That
// inverts nothing. All that was acknowledged before it was published lies before the cut
// of its partition, and was given out before it. Of nothing was it said that it comes
// after it: its publisher has no answer, and publishes it again, which makes it come twice,
// or goes on without. Either way what follows of the key is in the next epoch, and here
// behind it in its lane.

// drainKey is one epoch of a topic for one Subscription.
type drainKey struct {
	sub, topic string // uids
	epoch      uint32
}

// drains remembers what a group has settled up to the cut, which stays so. The zero
// value is ready. Its mutex is taken after that of a runtime.
type drains struct {
	mu   sync.Mutex
	done map[drainKey]struct{}
}

func (d *drains) has(k drainKey) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.done[k]
	return ok
}

func (d *drains) add(k drainKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = map[drainKey]struct{}{}
	}
	d.done[k] = struct{}{}
}

// keep forgets what a configuration does not have.
func (d *drains) keep(snap *snapshot.Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.done) == 0 {
		return
	}
	there := map[drainKey]struct{}{}
	for _, sub := range snap.Subscriptions {
		for i := range sub.Sources {
			there[drainOf(sub.UID, &sub.Sources[i])] = struct{}{}
		}
	}
	maps.DeleteFunc(d.done, func(k drainKey, _ struct{}) bool { _, ok := there[k]; return !ok })
}

func drainOf(sub string, src *snapshot.Source) drainKey {
	return drainKey{sub, src.Topic.UID, src.Epoch.Number}
}

func (s *source) drainKey() drainKey { return drainKey{s.r.uid, s.token.TopicUID, s.token.Epoch} }

// earlier are the sources of the epochs before one of a topic, the oldest first.
func earlier(sub *snapshot.Subscription, topicUID string, epoch uint32) []*snapshot.Source {
	var out []*snapshot.Source
	for i := range sub.Sources {
		if src := &sub.Sources[i]; src.Topic.UID == topicUID && src.Epoch.Number < epoch {
			out = append(out, src)
		}
	}
	slices.SortStableFunc(out, func(a, b *snapshot.Source) int { return cmp.Compare(a.Epoch.Number, b.Epoch.Number) })
	return out
}

// turnLocked reports whether an epoch is read, or will be once those before it are
// settled. Before these have a cut it is not, nor once it is drained.
func (r *runtime) turnLocked(src *snapshot.Source) bool {
	t := src.Topic
	if len(t.Epochs) < 2 {
		return true
	}
	for _, e := range earlier(r.sub, t.UID, src.Epoch.Number) {
		if t.Cuts[e.Epoch.Number] == nil {
			return false
		}
	}
	return t.Cuts[src.Epoch.Number] == nil || !r.m.drains.has(drainOf(r.uid, src))
}

// How long is between two questions to a store whether an epoch is drained.
const (
	minDrain = 100 * time.Millisecond
	maxDrain = time.Second
)

// turn waits until the group has settled the earlier epochs of the topic. It is false
// when ctx has ended.
func (s *source) turn(ctx context.Context, log *outage.Log) bool {
	r, pause := s.r, minDrain
	for {
		r.mu.Lock()
		sub, one := r.sub, s.of == nil || len(s.of.Epochs) < 2
		r.mu.Unlock()
		if one {
			return ctx.Err() == nil
		}
		open, err := s.undrained(ctx, sub)
		why := reading
		if open {
			why = stallEpoch
		}
		r.mu.Lock()
		if why != s.stalled {
			s.stallLocked(why)
		}
		if !open && r.over == nil {
			r.sourcesLocked() // those that are drained are read no more
		}
		r.mu.Unlock()
		if !open {
			return ctx.Err() == nil
		}
		if err != nil && ctx.Err() == nil {
			r.metrics.storeErrors.Inc()
			log.Is(err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			r.mu.Lock()
			s.stallLocked(reading)
			r.mu.Unlock()
			return false
		}
		pause = min(2*pause, maxDrain)
	}
}

// undrained reports whether an earlier epoch has more for the group. One of which that
// cannot be told has; the error says why.
func (s *source) undrained(ctx context.Context, sub *snapshot.Subscription) (bool, error) {
	for _, src := range earlier(sub, s.token.TopicUID, s.token.Epoch) {
		k := drainOf(sub.UID, src)
		if s.r.m.drains.has(k) {
			continue
		}
		if src.Topic.Cuts[src.Epoch.Number] == nil {
			return true, nil
		}
		lag, err := s.r.m.lagOf(ctx, src)
		if err != nil || !src.Settled(lag) {
			return true, err
		}
		s.r.m.drains.add(k)
	}
	return false, nil
}

// lagOf is how far a source's group is.
func (m *Manager) lagOf(ctx context.Context, src *snapshot.Source) ([]store.PartitionLag, error) {
	st, err := m.cfg.Store(src.Epoch.StoreUID)
	if err != nil {
		return nil, err
	}
	admin, ok := st.(store.Admin)
	if !ok {
		return nil, errNoLag
	}
	ctx, cancel := context.WithTimeout(ctx, lagTimeout)
	defer cancel()
	return admin.Lag(ctx, src.Epoch.Physical, src.Group)
}

var errNoLag = errors.New("the store cannot tell how far a group is")

// cutLocked has a source go by the newest configuration of its Topic. Where that has a
// cut, what is behind it and nobody has is settled.
func (r *runtime) cutLocked(s *source, of *snapshot.Topic) {
	if s.retry {
		return
	}
	had := s.of.Cuts[s.token.Epoch] != nil
	if s.of = of; had || of.Cuts[s.token.Epoch] == nil {
		return
	}
	past := map[*item]struct{}{}
	r.forgetLocked(func(it *item) bool {
		if it.src != s || it.owner != nil || !it.pastLocked() {
			return false
		}
		past[it] = struct{}{}
		return true
	})
	if len(past) > 0 {
		r.writers.Go(func() { s.settle(slices.Collect(maps.Keys(past))) })
	}
}

// pastLocked reports whether an item does not count: it is behind the cut of its epoch,
// or its epoch is drained.
func (it *item) pastLocked() bool {
	s := it.src
	return s.drained || s.of != nil && s.of.Past(s.token.Epoch, it.msg.stored.Pos)
}

// passLocked settles an item that does not count and that nobody has any more.
func (r *runtime) passLocked(it *item) {
	r.write(it, func(context.Context, *snapshot.Subscription) error { return nil }, nil)
}
