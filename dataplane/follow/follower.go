package follow

import (
	"context"
	"log/slog"
	"slices"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// follower follows one place.
type follower struct {
	m *Manager
	place
	log           *slog.Logger
	reads, writes *outage.Log
	forwarded     int
	// writing, of capacity 1, is full while a batch is on its way: who loses a partition
	// meanwhile waits, so that nothing of it comes behind what the next member writes.
	writing chan struct{}
}

// member joins the group and forwards what it gets until something fails.
func (f *follower) member(ctx context.Context, good func()) error {
	st, err := f.m.cfg.Store(f.epoch.StoreUID)
	if err != nil {
		return err
	}
	sub, err := st.Subscribe(ctx, store.SubscribeRequest{Topic: f.epoch.Physical, Group: names.FollowGroup(f.uid, f.epoch.Number), Ordered: true,
		Revoked: func(string) {
			f.writing <- struct{}{}
			<-f.writing
		}})
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := sub.Close(cctx); err != nil {
			f.log.Warn("the group that follows native producers could not be left cleanly; some events may be forwarded again", "error", err)
		}
	}()
	for {
		msgs := make([]store.Message, maxFetch)
		n, err := sub.Fetch(ctx, msgs)
		if err != nil {
			return err
		}
		good()
		left := make([]*store.Message, n)
		for i := range left {
			left[i] = &msgs[i]
		}
		// Stores refuse all of a call for one event in it: of what was refused together fewer
		// go together, until one goes alone.
		most, retry := maxFetch, minRetry
		for len(left) > 0 {
			some := left[:min(most, len(left))]
			again, err := f.forward(ctx, sub, some)
			left = slices.Concat(again, left[len(some):])
			switch {
			case len(again) == 0:
				most = min(2*most, maxFetch)
			case most > 1 && fault.Untakeable(err):
				most = max(len(some)/2, 1)
			default:
				f.writes.Is(err)
				if wait(ctx, retry); ctx.Err() != nil {
					return ctx.Err()
				}
				retry = min(2*retry, maxRetry)
			}
		}
		f.writes.Is(nil)
	}
}

// forward publishes what counts of msgs, settles what is done with and gives what is not.
func (f *follower) forward(ctx context.Context, sub store.Subscription, msgs []*store.Message) (left []*store.Message, err error) {
	f.writing <- struct{}{}
	defer func() { <-f.writing }()
	t := f.m.cfg.Snapshots.Get().Topics[f.topic]
	if t == nil || t.UID != f.uid || t.Cuts[f.epoch.Number] == nil {
		return msgs, fault.New(fault.Unavailable, "follow", "topic-not-ready", "the topic is not on this proxy any more")
	}
	var done []*store.Message
	var events []event.Event
	for _, msg := range msgs {
		switch {
		case !sub.Holds(msg): // it comes again, to whoever has the partition now
		case f.counts(t, msg):
			left, events = append(left, msg), append(events, msg.Event)
			e := &events[len(events)-1]
			if e.Mesh = nil; msg.StoredKey != "" && e.Key(t.KeyFrom) == "" {
				e.Ext = event.With(e.Ext, event.AttrPartitionKey, msg.StoredKey)
			}
		default:
			done = append(done, msg)
		}
	}
	sub.Settle(done)
	if len(events) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	res := make([]frontend.Result, len(events))
	err = f.m.cfg.Write(ctx, t, events, res)
	wrote, n := left, 0
	left, done = nil, nil
	for i, msg := range wrote {
		switch {
		case res[i].Err == nil:
			n++
		case len(wrote) == 1 && fault.Untakeable(res[i].Err):
			f.m.events.WithLabelValues(refused).Inc()
			f.log.Error("an event of a native producer is not what the topic's store takes; it stays where it is", "partition", msg.Pos.Partition, "offset", msg.Pos.Offset, "error", res[i].Err)
		default:
			left = append(left, msg)
			continue
		}
		done = append(done, msg)
	}
	sub.Settle(done)
	if n > 0 && f.forwarded == 0 {
		f.log.Warn("a native producer writes where a topic was before it moved; what it writes is brought into the topic until the move is finished")
	}
	f.forwarded += n
	f.m.events.WithLabelValues(forwarded).Add(float64(n))
	return left, err
}

// counts reports whether a message is one that a native producer wrote behind the cut.
func (f *follower) counts(t *snapshot.Topic, msg *store.Message) bool {
	if !t.Past(f.epoch.Number, msg.Pos) || cutover.IsMarker(&msg.Event) {
		return false
	}
	if cutover.PlacedIn(&msg.Event, f.uid, f.epoch.Number) {
		f.m.events.WithLabelValues(late).Inc()
		return false
	}
	return true
}
