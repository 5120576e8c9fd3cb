// Package sendqueue holds events on their way to a store that takes them in batches,
// one at a time for each partition: what comes while a batch is under way waits and goes
// together in the next. A call is answered when all of its events are, or when its
// context ends; where one of its events failed, none that was behind it is sent.
package sendqueue

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Limits bound what goes together and what waits.
type Limits struct {
	Events int // of a batch
	Bytes  int // of a batch; a larger event goes alone
	// Waiting is how many bytes wait in a queue, before a call too many.
	Waiting int
}

// Queues are all queues of a store: what is given to several of them is given whole or
// not at all. Its methods, and theirs, are safe for concurrent use.
type Queues[E any] struct {
	op     string
	limits Limits
	work   sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// New makes the queues of a store; op is what its errors name.
func New[E any](op string, l Limits) *Queues[E] { return &Queues[E]{op: op, limits: l} }

// Queue is what waits for one sender.
type Queue[E any] struct {
	all     *Queues[E]
	send    func()
	waiting []*Item[E]
	bytes   int
	busy    bool // send runs
}

// Queue makes a queue. send is run when something waits, one run at a time; it sends
// what it takes until Take has nothing.
func (a *Queues[E]) Queue(send func()) *Queue[E] { return &Queue[E]{all: a, send: send} }

// Item is one event on its way.
type Item[E any] struct {
	Event E // as the sender needs it
	Size  int
	To    *Queue[E]
	call  *Call[E]
	i     int // its place in the call
}

// Call is what was given at once.
type Call[E any] struct {
	all     *Queues[E]
	items   []Item[E]
	res     []store.Result
	left    int
	failed  map[*Queue[E]]bool // where an event failed nothing later is sent
	done    chan struct{}
	expired bool // nobody waits any more
}

// Give gives each item to its queue; when it fails, none. The items are its own then.
func (a *Queues[E]) Give(items []Item[E]) (*Call[E], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, Closed(a.op)
	}
	for i := range items {
		// All or nothing: whoever is told to come back must find nothing kept.
		if items[i].To.bytes > a.limits.Waiting {
			return nil, &fault.Error{Class: fault.Throttled, Op: a.op, Reason: "store-busy", RetryAfter: 200 * time.Millisecond, Msg: "the event store is slow; nothing more was kept"}
		}
	}
	c := &Call[E]{all: a, items: items, res: make([]store.Result, len(items)), left: len(items), done: make(chan struct{})}
	if c.left == 0 {
		close(c.done)
	}
	for i := range items {
		o := &items[i]
		o.call, o.i = c, i
		q := o.To
		q.waiting = append(q.waiting, o)
		q.bytes += o.Size
		if !q.busy {
			q.busy = true
			a.work.Go(q.send)
		}
	}
	return c, nil
}

// Load is how many bytes wait, and whether the sender has something to do.
func (q *Queue[E]) Load() (bytes int, busy bool) {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	return q.bytes, q.busy
}

// Take takes the next batch; nil, and the sender is to end, when nothing waits.
func (q *Queue[E]) Take() []*Item[E] {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	var batch []*Item[E]
	size := 0
	for len(q.waiting) > 0 && len(batch) < q.all.limits.Events {
		o := q.waiting[0]
		if len(batch) > 0 && size+o.Size > q.all.limits.Bytes {
			break
		}
		q.waiting = q.waiting[1:]
		q.bytes -= o.Size
		if o.call.failed[q] {
			o.answerLocked(store.Result{Err: q.all.afterAFailure()})
			continue
		}
		size += o.Size
		batch = append(batch, o)
	}
	if batch == nil {
		q.busy = false
		q.waiting = nil
	}
	return batch
}

// Unfailed is what of a batch that was taken may still be sent; the rest is answered.
func (q *Queue[E]) Unfailed(batch []*Item[E]) []*Item[E] {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	var rest []*Item[E]
	for _, o := range batch {
		if o.call.failed[q] {
			o.answerLocked(store.Result{Err: q.all.afterAFailure()})
		} else {
			rest = append(rest, o)
		}
	}
	return rest
}

// Sent answers a batch, whose events are in the partition from first on.
func (q *Queue[E]) Sent(batch []*Item[E], partition string, first int64) {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	for i, o := range batch {
		o.answerLocked(store.Result{Pos: store.Position{Partition: partition, Offset: uint64(first) + uint64(i)}}) //nolint:gosec // offsets are not negative
	}
}

// Failed answers a batch that was not sent, or of which nobody knows.
func (q *Queue[E]) Failed(batch []*Item[E], err error) {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	q.failedLocked(batch, err)
}

// Refuse answers what waits, which cannot be sent for err.
func (q *Queue[E]) Refuse(err error) {
	q.all.mu.Lock()
	defer q.all.mu.Unlock()
	q.failedLocked(q.waiting, err)
	q.waiting, q.bytes = nil, 0
}

func (q *Queue[E]) failedLocked(items []*Item[E], err error) {
	for _, o := range items {
		if o.call.failed == nil {
			o.call.failed = map[*Queue[E]]bool{}
		}
		o.call.failed[q] = true
		o.answerLocked(store.Result{Err: err})
	}
}

func (o *Item[E]) answerLocked(r store.Result) {
	if o.call.expired {
		return
	}
	o.call.res[o.i] = r
	if o.call.left--; o.call.left == 0 {
		close(o.call.done)
	}
}

// Wait waits until a call is answered, or ctx ends, and fills in res. The error is the
// first in it.
func (c *Call[E]) Wait(ctx context.Context, res []store.Result) error {
	select {
	case <-c.done:
	case <-ctx.Done():
		c.expire(ctx.Err())
	}
	copy(res, c.res)
	for i := range res {
		if res[i].Err != nil {
			return res[i].Err
		}
	}
	return nil
}

// Positions waits as Wait does, for where the events of a call are, by partition.
func (c *Call[E]) Positions(ctx context.Context) ([]store.Position, error) {
	res := make([]store.Result, len(c.items))
	if err := c.Wait(ctx, res); err != nil {
		return nil, err
	}
	at := make([]store.Position, len(res))
	for i := range res {
		at[i] = res[i].Pos
	}
	slices.SortFunc(at, func(a, b store.Position) int { return strings.Compare(a.Partition, b.Partition) })
	return at, nil
}

// expire ends the waiting of a call whose context has ended. What still waits was
// not handed over; what was taken may have been kept.
func (c *Call[E]) expire(err error) {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	if c.left == 0 {
		return
	}
	c.expired = true
	queues := map[*Queue[E]]bool{}
	for i := range c.items {
		queues[c.items[i].To] = true
	}
	for q := range queues {
		kept := q.waiting[:0]
		for _, o := range q.waiting {
			if o.call == c {
				c.res[o.i].Err = fault.From(err)
				q.bytes -= o.Size
			} else {
				kept = append(kept, o)
			}
		}
		clear(q.waiting[len(kept):])
		q.waiting = kept
	}
	for i := range c.res {
		if c.res[i].Err == nil && c.res[i].Pos.Partition == "" {
			c.res[i].Err = Ambiguous(c.all.op, err)
		}
	}
}

// Begin counts work that Close waits for until done is called. Once closed, none begins.
func (a *Queues[E]) Begin() (done func(), ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false
	}
	a.work.Add(1)
	return a.work.Done, true
}

// Closed reports whether Close was called.
func (a *Queues[E]) Closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// Close takes nothing more, and waits until what it has is answered and what was begun
// is done. When ctx ends it calls end, which has all that end soon. It reports whether it
// was the first to close.
func (a *Queues[E]) Close(ctx context.Context, end func()) bool {
	a.mu.Lock()
	was := a.closed
	a.closed = true
	a.mu.Unlock()
	if was {
		return false
	}
	defer context.AfterFunc(ctx, end)()
	a.work.Wait()
	return true
}

// Closed is the error of a store that is closed.
func Closed(op string) error {
	return fault.New(fault.Unavailable, op, "store-closed", "the store is closed")
}

// Ambiguous is the error of an event of which nobody knows whether it was kept, for err.
func Ambiguous(op string, err error) error {
	return &fault.Error{Class: fault.Ambiguous, Op: op, Reason: "ambiguous", Err: err, Msg: "the event store did not answer; the event may have been kept"}
}

func (a *Queues[E]) afterAFailure() error {
	return fault.New(fault.Unavailable, a.op, "after-a-failure", "an earlier event of the batch failed; this one was not published")
}
