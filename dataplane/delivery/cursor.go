package delivery

import (
	"context"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// tailBuffer and tailBytes are how many events, and bytes of them, are held for a
// tail that catches up, and tailBytes what one call of Next takes.
const (
	tailBuffer = 256
	tailBytes  = 1 << 20
)

// cursor is where a tail is in one topic. At the topic's end that is a place in the
// ring of the topic's feed. Elsewhere, or where it is slower than the ring, a
// reader of its own catches up: it holds a bounded number of events for the client,
// and ends once it has given everything that was stored when it looked at the ring.
// From there the ring has all that comes, and what both have is left out by its
// position.
//
// Its fields are guarded by tail.mu, but for waiting.
type cursor struct {
	t     *tail
	topic *snapshot.Topic
	gone  bool // the tail reads the topic no more
	feed  *feed

	// live: at number seq of the feed's ring; epoch is where it is, what is of
	// earlier ones it has had, and last its place in each partition, by the feed's numbers.
	live  bool
	seq   uint64
	epoch uint32
	last  []place
	// waiting: it is among the feed's waiters; guarded by feed.mu.
	waiting bool

	// Not live, or not yet: what the reader holds, and who stops it.
	queue  []Delivery
	held   int           // bytes of what is in queue
	room   chan struct{} // closed when there is less; nil while the reader does not wait
	cancel context.CancelFunc
}

// joinLocked puts the cursor at the end of what the feed has.
func (c *cursor) joinLocked(f *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.feed, c.live, c.seq, c.epoch = f, true, f.next, f.epoch
	c.last = make([]place, len(f.places))
	for i, p := range f.places {
		c.last[i] = place{p.head, p.read}
	}
}

// takeLocked gives what there is for the client, as far as dst and room, in bytes,
// reach.
func (c *cursor) takeLocked(dst []Delivery, room int) (n, size int) {
	for n < len(dst) && n < len(c.queue) && (size == 0 || size < room) {
		dst[n] = c.queue[n]
		size += dst[n].Event.Held()
		n++
	}
	if n > 0 {
		c.held -= size
		clear(c.queue[:n])
		if c.queue = c.queue[n:]; len(c.queue) == 0 {
			c.queue = nil
		}
		if c.room != nil {
			close(c.room)
			c.room = nil
		}
		return n, size
	}
	if !c.live {
		return 0, 0
	}
	f := c.feed
	f.mu.Lock()
	if c.seq < f.first {
		r := c.fallenLocked()
		f.mu.Unlock()
		// Without others at its end nobody needs the feed: what is slower than the
		// topic comes back to one when it has caught up.
		c.feed, c.live, c.last = nil, false, nil
		f.release()
		c.readLocked(r)
		return 0, 0
	}
	defer f.mu.Unlock()
	for ; c.seq < f.next && n < len(dst) && (size == 0 || size < room); c.seq++ {
		e := f.ring[c.seq%ringEvents]
		if e.token.Epoch < c.epoch {
			continue // the reader that caught up was in the next one
		}
		c.epoch = e.token.Epoch
		for len(c.last) <= e.part {
			c.last = append(c.last, place{})
		}
		at := &c.last[e.part]
		if at.known && !at.pos.Less(e.token.Pos) {
			continue // the reader that caught up had it
		}
		*at = place{e.token.Pos, true}
		dst[n] = Delivery{Topic: f.topic.Name, Position: e.token, Attempt: 1, Event: &e.event, Shared: &e.shared}
		size += e.size
		n++
	}
	if n == 0 && !c.waiting {
		c.waiting = true
		f.waiters = append(f.waiters, c)
	}
	return n, size
}

// fallenLocked is the reader with which a cursor that the ring has overtaken goes on
// from where it is. feed.mu is held.
func (c *cursor) fallenLocked() *reader {
	f := c.feed
	var begin store.Start
	if c.epoch == f.start {
		begin.At = f.since
	}
	last := make(map[string]store.Position, len(f.parts))
	for p, i := range f.parts {
		switch {
		case p.epoch != c.epoch:
		case i < len(c.last) && c.last[i].known:
			last[p.name] = c.last[i].pos
		case f.places[i].read:
			// It has had nothing of it, and wants all that the feed had.
			if at, ok := before(f.places[i].first); ok {
				last[p.name] = at
			} else if p.name == "" {
				begin = store.Start{} // the only one, from its beginning
			}
		}
	}
	epoch := snapshot.Epoch{Number: c.epoch} // of one that is given up meanwhile
	for _, e := range c.t.m.newest(c.topic, c.epoch).Epochs {
		if e.Number == c.epoch {
			epoch = e
		}
	}
	return &reader{m: c.t.m, topic: c.topic, epoch: epoch, begin: begin, last: last}
}

// readLocked starts a reader that catches up.
func (c *cursor) readLocked(r *reader) {
	c.t.m.metrics.catchUps.Inc()
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.t.m.running.Go(func() {
		defer cancel()
		var k mark
		defer k.drop()
		r.run(ctx, func() bool { return c.reach(ctx, &k, r) }, func(msgs []store.Message) bool { return c.hold(ctx, &k, r.epoch.Number, msgs) })
	})
}

// hold passes events on, as many at once as there is room for, and waits for more;
// false when ctx has ended.
func (c *cursor) hold(ctx context.Context, k *mark, epoch uint32, msgs []store.Message) bool {
	token := position.Token{TopicUID: c.topic.UID, Epoch: epoch}
	events := make([]event.Event, len(msgs)) // one allocation for all
	for i := 0; ; {
		c.t.mu.Lock()
		from := i
		for ; i < len(msgs); i++ {
			size := msgs[i].Held()
			if len(c.queue) > 0 && (len(c.queue) >= tailBuffer || c.held+size > tailBytes) {
				break
			}
			events[i], token.Pos = msgs[i].Event, msgs[i].Pos
			c.queue = append(c.queue, Delivery{Topic: c.topic.Name, Position: token, Attempt: 1, Event: &events[i]})
			c.held += size
		}
		var room chan struct{}
		if i < len(msgs) {
			if c.room == nil {
				c.room = make(chan struct{})
			}
			room = c.room
		}
		c.t.mu.Unlock()
		if i > from {
			c.t.bell.ring()
		}
		if room == nil {
			return ctx.Err() == nil
		}
		k.drop() // a client that is slow needs no feed
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}

// mark is a place in the ring of a feed, and whether a reader that catches up has given
// everything that was stored when the ring was there. The reader's goroutine has it.
type mark struct {
	f      *feed // nil where there is no mark
	seq    uint64
	up     store.Tail
	passed func() bool
}

// drop lets go of the feed.
func (k *mark) drop() {
	if k.f != nil {
		k.f.release()
		*k = mark{}
	}
}

// overtaken reports whether the ring has no more what came at the mark.
func (k *mark) overtaken() bool {
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	return k.seq < k.f.first
}

// set marks where the ring is now, and the topic's end, for a reader. It reports whether
// it could. A ring that is in a later epoch than the reader lacks what is between.
func (k *mark) set(ctx context.Context, r *reader) bool {
	f, err := r.m.feed(ctx, r.now())
	if err != nil {
		return false // the store says so to the reader too
	}
	f.mu.Lock()
	seq, ahead := f.next, f.epoch > r.epoch.Number
	f.mu.Unlock()
	if ahead {
		f.release()
		return false
	}
	passed, err := r.up.Mark(ctx)
	if err != nil {
		f.release()
		return false
	}
	*k = mark{f, seq, r.up, passed}
	return true
}

// reach joins the ring once the reader has given everything that was stored when
// the ring was looked at. It reports whether that is so.
func (c *cursor) reach(ctx context.Context, k *mark, r *reader) bool {
	if k.f != nil && (k.up != r.up || k.overtaken()) {
		k.drop()
	}
	if k.f == nil && (!r.up.AtEnd() || !k.set(ctx, r)) || !k.passed() {
		return false
	}
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if c.gone {
		return true
	}
	k.f.mu.Lock()
	defer k.f.mu.Unlock()
	c.feed, c.live, c.seq, c.epoch = k.f, true, k.seq, r.epoch.Number
	c.last = k.f.numberedLocked(c.epoch, r.last)
	*k = mark{}     // the feed is the cursor's
	c.t.bell.ring() // what the ring has by now
	return true
}

// dropLocked ends the cursor.
func (c *cursor) dropLocked() {
	c.gone, c.live = true, false
	if c.cancel != nil {
		c.cancel()
	}
	if f := c.feed; f != nil {
		c.feed = nil
		f.leave(c)
	}
}

// leave lets go of a cursor.
func (f *feed) leave(c *cursor) {
	f.mu.Lock()
	if c.waiting {
		c.waiting = false
		for i, w := range f.waiters {
			if w == c {
				last := len(f.waiters) - 1
				f.waiters[i], f.waiters[last] = f.waiters[last], nil
				f.waiters = f.waiters[:last]
				break
			}
		}
	}
	f.mu.Unlock()
	f.release()
}
