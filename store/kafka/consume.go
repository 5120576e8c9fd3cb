package kafka

import (
	"context"
	"slices"
	"sync"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// How many messages of a partition, and bytes of them, wait here.
const (
	// few is up to how many the client is asked for more. What it has fetched of any
	// partition comes then, as much as fetchBytes of each: brokers take batches of up to a
	// MiB, and send but one an answer where that is all that there is room for.
	few        = 256
	fetchBytes = 2 << 20
	// maxBuffered and maxBufferedBytes are from when on a partition is not fetched any
	// more, which makes the client drop what it has of it: so many wait only where
	// others go on.
	maxBuffered      = 16384
	maxBufferedBytes = 4 << 20
)

// subscription is one member of a group, for as long as a session lasts: after it
// another member takes its place.
type subscription struct {
	s       *Store
	topic   string
	group   string
	ordered bool
	revoked func(partition string)
	life    context.Context
	end     context.CancelFunc
	work    sync.WaitGroup
	commits *ackwindow.Commits

	mu     sync.Mutex
	now    *session // nil between two
	owned  map[int32]*ownership
	order  []*ownership  // owned, in the order in which Fetch looks
	wake   chan struct{} // closed when there may be something to fetch
	failed error         // what Fetch says next
	closed bool
}

// ownership is one partition while it is this member's. A message's handle points to
// it, so that what is settled after the partition has gone counts for nothing.
type ownership struct {
	x         *session
	partition int32

	// Guarded by subscription.mu.
	window    *ackwindow.Window
	buffer    []store.Message
	bytes     int   // of buffer
	end       int64 // nothing below it comes after what is in buffer; -1 before the first
	paused    bool  // no more is fetched; session.steer has the client know
	done      []run // settled by an owner before, and not committed
	committed int64
	dirty     bool // something was settled since the commit
	dropped   bool
	left      bool // it was committed since: another member may commit for it now
}

type handle struct {
	o *ownership
	n uint64
}

// Subscribe joins a group.
func (s *Store) Subscribe(ctx context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	const op = "kafka.subscribe"
	if _, err := s.topic(ctx, r.Topic, false); err != nil {
		return nil, err
	}
	at, err := s.committed(ctx, op, r.Topic, r.Group)
	if err != nil {
		return nil, err
	}
	if len(at) == 0 {
		// Without one brokers would choose its start, and make it.
		return nil, unknownGroup(op, r.Topic, r.Group)
	}
	if s.out.Closed() {
		return nil, sendqueue.Closed(op)
	}
	x := &subscription{s: s, topic: r.Topic, group: r.Group, ordered: r.Ordered, revoked: r.Revoked, commits: ackwindow.NewCommits(), owned: map[int32]*ownership{}, wake: make(chan struct{})}
	x.life, x.end = context.WithCancel(context.Background())
	first, err := x.join()
	if err != nil {
		x.end()
		return nil, err
	}
	x.work.Go(func() { x.sessions(first) })
	x.work.Go(func() { x.commits.Run(x.life, commitInterval, x.half, x.commit) })
	return x, nil
}

func unknownGroup(op, topic, group string) error {
	return fault.New(fault.NotFound, op, "unknown-group", "topic %s has no group %s", topic, group)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (x *subscription) wakeLocked() {
	close(x.wake)
	x.wake = make(chan struct{})
}

// Fetch waits for messages.
func (x *subscription) Fetch(ctx context.Context, dst []store.Message) (int, error) {
	for {
		x.mu.Lock()
		if x.closed {
			x.mu.Unlock()
			return 0, fault.New(fault.Unavailable, "kafka.fetch", "store-closed", "the subscription is closed")
		}
		if err := x.failed; err != nil {
			x.failed = nil
			x.mu.Unlock()
			return 0, err
		}
		n, more := x.fetchLocked(dst)
		wake, now := x.wake, x.now
		x.mu.Unlock()
		if len(more) > 0 && now != nil {
			now.steer(more)
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

// fetchLocked fills dst from the buffers, each partition as far as its window goes.
// Of more fetching is to go on.
func (x *subscription) fetchLocked(dst []store.Message) (n int, more []int32) {
	for _, o := range x.order {
		if !x.holdsLocked(o) {
			continue // its session ends soon
		}
		k := 0
		for ; k < len(o.buffer) && n < len(dst) && o.window.Room() > 0; k++ {
			m := &o.buffer[k]
			offset := int64(m.Pos.Offset) //nolint:gosec // below 2^63
			at := o.window.Deliver(offset)
			o.bytes -= m.Held()
			if o.finished(offset) {
				o.window.Done(at)
				o.dirty = true
				x.commits.Settled(o.window.Half())
				continue
			}
			m.Handle = handle{o, at}
			// Who had the partition before may have delivered as many.
			m.Redelivered = at < uint64(x.s.cfg.Window) //nolint:gosec // not negative
			dst[n] = *m
			n++
		}
		clear(o.buffer[:k])
		o.buffer = o.buffer[k:]
		if len(o.buffer) == 0 {
			o.window.Skip(o.end)
		}
		if o.wantsMore() {
			if o.paused {
				o.paused = false
				more = append(more, o.partition)
			}
			poke(o.x.hungry)
		}
	}
	if len(x.order) > 1 {
		// The next call begins with another partition.
		x.order = append(x.order[1:], x.order[0])
	}
	return n, more
}

// wantsMore reports whether what is here will soon be gone.
func (o *ownership) wantsMore() bool {
	return len(o.buffer) <= few && o.bytes <= maxBufferedBytes/4
}

// finished reports whether an owner before has settled what is at offset. Offsets
// are asked in order.
func (o *ownership) finished(offset int64) bool {
	for len(o.done) > 0 && o.done[0].last < offset {
		o.done = o.done[1:]
	}
	return len(o.done) > 0 && o.done[0].first <= offset
}

// Settle records that messages are done with.
func (x *subscription) Settle(msgs []*store.Message) (stale int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	half := false
	for _, m := range msgs {
		h, ok := m.Handle.(handle)
		if !ok || h.o.dropped || !h.o.window.Done(h.n) {
			stale++
			continue
		}
		h.o.dirty = true
		half = half || h.o.window.Half()
	}
	x.commits.Settled(half)
	return stale
}

// Holds reports whether a message is still this member's to deliver.
func (x *subscription) Holds(m *store.Message) bool {
	h, ok := m.Handle.(handle)
	x.mu.Lock()
	defer x.mu.Unlock()
	return ok && x.holdsLocked(h.o)
}

// holdsLocked reports whether nobody else can have the partition.
func (x *subscription) holdsLocked(o *ownership) bool {
	return !o.dropped && (!x.ordered || o.x.lease.holds())
}

// half reports whether half of a partition's window waits to be durable.
func (x *subscription) half() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.owned {
		if o.window.Half() {
			return true
		}
	}
	return false
}

// commit makes settled messages durable; false where that is worth another try.
func (x *subscription) commit() bool {
	x.mu.Lock()
	now := x.now
	x.mu.Unlock()
	return now == nil || now.commit(x.life, x.dirty())
}

func (x *subscription) dirty() (dirty []*ownership) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.owned {
		if o.dirty || o.window.Commit() != o.committed {
			dirty = append(dirty, o)
		}
	}
	return dirty
}

// dropLocked takes a partition away; from here on nothing of it is delivered or
// settled.
func (x *subscription) dropLocked(o *ownership) {
	o.dropped, o.buffer, o.bytes = true, nil, 0
	delete(x.owned, o.partition)
	x.order = slices.DeleteFunc(x.order, func(p *ownership) bool { return p == o })
}

// giveUp drops partitions and tells of it whoever delivers from them.
func (x *subscription) giveUp(it func(*ownership) bool) (gone []*ownership) {
	x.mu.Lock()
	for _, o := range x.owned {
		if it(o) {
			gone = append(gone, o)
		}
	}
	for _, o := range gone {
		x.dropLocked(o)
	}
	tell := x.ordered && x.revoked != nil && !x.closed
	x.mu.Unlock()
	for _, o := range gone {
		if tell {
			x.revoked(partitionName(o.partition))
		}
	}
	return gone
}

// fail has Fetch say what went wrong, where time does not mend it.
func (x *subscription) fail(err error) {
	x.s.cfg.Log.Debug("a group cannot be read; trying again", "topic", x.topic, "group", x.group, "error", err)
	if fault.ClassOf(err) != fault.NotFound && store.Why(err) != "AccessDenied" && store.Why(err) != "SecretMissing" {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failed = err
	x.wakeLocked()
}

// Close leaves the group: what is settled is committed, the rest is another's.
func (x *subscription) Close(ctx context.Context) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return nil
	}
	x.closed = true
	now := x.now
	x.wakeLocked()
	x.mu.Unlock()
	gone := x.giveUp(func(*ownership) bool { return true })
	var err error
	if now != nil && !now.commit(ctx, gone) {
		err = fault.New(fault.Unavailable, "kafka.close", "not-flushed", "what was settled last could not be committed; it comes again")
	}
	if now != nil {
		now.leave(ctx)
	}
	x.end()
	x.work.Wait()
	return err
}
