package rocketmq

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Times and limits of consuming.
const (
	heartbeatEvery = 5 * time.Second
	// pullWait is how long a broker holds a pull that finds nothing.
	pullWait = 15 * time.Second
	// pullMost is how many messages one pull asks for.
	pullMost = 64
	// hasty is before when an answer with nothing is none of a broker that has waited.
	hasty = 100 * time.Millisecond
	// prefetch and prefetchBytes are how many messages of a queue, and bytes of
	// them, wait here before no more are pulled.
	prefetch      = 128
	prefetchBytes = 4 << 20
	minRetry      = 50 * time.Millisecond
	maxRetry      = 2 * time.Second
)

// subscription is one member of a group. It has connections of its own, since
// brokers know one member of a group by its connection.
type subscription struct {
	s      *Store
	c      *cluster
	topic  string
	group  string
	client string
	life   context.Context
	end    context.CancelFunc
	work   sync.WaitGroup
	moved  chan struct{} // the members have changed; capacity 1

	ordered bool // queues are read only while they are locked
	revoked func(partition string)

	// Of membership, and of Close after it.
	locked map[queue]string        // what brokers, by address, may have locked for it
	waits  map[queue]time.Duration // since when, of bootNow, it waits for queues that others have locked
	met    meeting

	mu     sync.Mutex
	owned  map[queue]*ownership
	order  []*ownership  // owned, in the order in which Fetch looks
	wake   chan struct{} // closed when there may be something to fetch
	failed error         // why nothing can be fetched; nil while all is well
	closed bool
}

// ownership is one queue while it is this member's. A message's handle points
// to it, so that what is settled after the queue has gone counts for nothing.
type ownership struct {
	q       queue
	addr    string
	cancel  context.CancelFunc
	work    sync.WaitGroup // its puller, and what commits it
	commits *ackwindow.Commits
	commit  sync.Mutex // held while it is committed, so that no commit overtakes another

	// Guarded by subscription.mu.
	window    *ackwindow.Window
	buffer    []store.Message
	revoked   bool
	committed int64
	again     int64         // below it messages may have been delivered before
	room      chan struct{} // closed when the buffer got shorter
	back      bool          // its log has gone back: what was delivered is of another one
	lock      lock          // zero where it was taken without one
	lost      bool          // another member has locked it since
}

// meeting is who was there to divide what queues.
type meeting struct {
	queues  []queue
	members []string
}

type handle struct {
	o *ownership
	n uint64
}

// Subscribe joins a group.
func (s *Store) Subscribe(ctx context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	if err := s.groupExists(ctx, r.Topic, r.Group); err != nil {
		return nil, err
	}
	if s.out.Closed() {
		return nil, sendqueue.Closed("rocketmq.subscribe")
	}
	x := s.member(r)
	x.work.Go(x.membership)
	return x, nil
}

// member is a member of a group that has not said so to anybody yet.
func (s *Store) member(r store.SubscribeRequest) *subscription {
	s.mu.Lock()
	s.members++
	n := s.members
	s.mu.Unlock()
	x := &subscription{s: s, topic: r.Topic, group: r.Group, client: fmt.Sprintf("%s@%d-%08x", s.cfg.ClientID, n, rand.Uint32()),
		ordered: r.Ordered, revoked: r.Revoked, locked: map[queue]string{}, waits: map[queue]time.Duration{}, moved: make(chan struct{}, 1), owned: map[queue]*ownership{}, wake: make(chan struct{})}
	x.c = newCluster(s.op, s.c.sign, func() { poke(x.moved) })
	x.life, x.end = context.WithCancel(context.Background())
	return x
}

// groupExists checks that a group has its start: without one brokers would choose
// it, and a group that nobody made would be made.
func (s *Store) groupExists(ctx context.Context, topic, group string) error {
	r, err := s.c.route(ctx, topic, false)
	if err != nil {
		return err
	}
	for _, q := range r.read {
		if _, ok, err := s.c.committed(ctx, r.brokers[q.broker], topic, group, q); err != nil || ok {
			return err
		}
	}
	return fault.New(fault.NotFound, "rocketmq.subscribe", "unknown-group", "topic %s has no group %s", topic, group)
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

// pull fetches a queue's messages into its buffer until ctx ends.
func (x *subscription) pull(ctx context.Context, o *ownership, next int64) {
	p := puller{c: x.c, addr: o.addr, topic: x.topic, group: x.group, q: o.q, next: next}
	retry := minRetry
	for ctx.Err() == nil {
		x.mu.Lock()
		full, room := enoughBuffered(o.buffer), o.room
		x.mu.Unlock()
		if full {
			select {
			case <-room:
			case <-ctx.Done():
				return
			}
			continue
		}
		asked := p.next
		msgs, err := p.pull(ctx)
		if err == nil && p.next < asked {
			// The log has gone back; what it has may be other messages.
			x.mu.Lock()
			o.back = true
			x.mu.Unlock()
			poke(x.moved)
			return
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			x.s.cfg.Log.Debug("a queue cannot be read; trying again", "topic", x.topic, "queue", o.q.name(), "error", err)
			if store.Why(err) == "AccessDenied" {
				x.mu.Lock()
				x.failed = err
				x.wakeLocked()
				x.mu.Unlock()
			}
			pause(ctx, &retry)
			continue
		}
		x.mu.Lock()
		if !o.revoked {
			if len(msgs) == 0 && len(o.buffer) == 0 {
				o.window.Skip(p.next)
				o.commits.Settled(false)
			}
			o.buffer = append(o.buffer, msgs...)
			x.wakeLocked()
		}
		x.mu.Unlock()
		p.pace(ctx, &retry)
	}
}

// enoughBuffered reports whether no more is pulled before some is fetched.
func enoughBuffered(buffer []store.Message) bool {
	size := 0
	for i := range buffer {
		size += buffer[i].Held()
	}
	return len(buffer) >= prefetch || size >= prefetchBytes
}

func pause(ctx context.Context, retry *time.Duration) {
	timer := time.NewTimer(*retry/2 + rand.N(*retry))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	*retry = min(2**retry, maxRetry)
}

// puller reads one queue.
type puller struct {
	c            *cluster
	addr         string
	topic, group string
	q            queue
	next         int64
	end          int64 // where the queue ended at the last answer
	hasty        bool  // that had nothing, and was not waited for
}

// System flags of a pull: wait for messages, and the subscription is in the
// request.
const pullFlags = 2 | 4

// pull waits for messages, at most pullWait; there may be none.
func (p *puller) pull(ctx context.Context) ([]store.Message, error) {
	cctx, cancel := context.WithTimeout(ctx, pullWait+callTimeout)
	defer cancel()
	asked, from := time.Now(), p.next
	cmd, err := p.c.call(cctx, p.addr, reqPull, map[string]string{"consumerGroup": p.group, "topic": p.topic, "queueId": strconv.Itoa(p.q.id),
		"queueOffset": strconv.FormatInt(p.next, 10), "maxMsgNums": strconv.Itoa(pullMost), "sysFlag": strconv.Itoa(pullFlags), "commitOffset": "0",
		"suspendTimeoutMillis": strconv.FormatInt(pullWait.Milliseconds(), 10), "subscription": "*", "subVersion": "1", "expressionType": "TAG", "bname": p.q.broker}, nil)
	if err != nil {
		return nil, unavailable(err)
	}
	switch cmd.Code {
	case resOK, resPullNotFound, resPullRetry, resPullMoved:
	default:
		return nil, answered(cmd)
	}
	next, err := cmd.Int("nextBeginOffset")
	if err != nil {
		return nil, unavailable(err)
	}
	end, err := cmd.Int("maxOffset")
	if err != nil {
		return nil, unavailable(err)
	}
	var out []store.Message
	if cmd.Code == resOK {
		var rest bool
		if out, rest, err = p.decode(cmd.Body); err != nil {
			return nil, unavailable(err)
		}
		if rest {
			next = int64(out[len(out)-1].Pos.Offset) + 1 //nolint:gosec // below 2^63
		}
	}
	p.next, p.end, p.hasty = next, end, len(out) == 0 && next <= from && time.Since(asked) < hasty
	return out, nil
}

// pace comes after an answer: a broker that does not wait until there is something would
// else be asked as fast as it answers.
func (p *puller) pace(ctx context.Context, retry *time.Duration) {
	if p.hasty {
		pause(ctx, retry)
	} else {
		*retry = minRetry
	}
}

// decode takes the messages of an answer until it has prefetchBytes of them. Then it leaves
// the rest to the next pull: an answer is small, what it inflates to need not be.
func (p *puller) decode(body []byte) (out []store.Message, rest bool, err error) {
	size := 0
	err = decodeMessages(body, func(m *message) bool {
		if m.offset < p.next {
			return true
		}
		e := decode(m, p.topic, p.q.name())
		out = append(out, store.Message{Event: e, Pos: store.Position{Partition: p.q.name(), Offset: uint64(m.offset)}, Stored: m.stored, StoredKey: m.storedKey(&e)}) //nolint:gosec // not negative
		size += e.Held()
		rest = size >= prefetchBytes
		return !rest
	})
	return out, rest, err
}

// Fetch waits for messages.
func (x *subscription) Fetch(ctx context.Context, dst []store.Message) (int, error) {
	for {
		x.mu.Lock()
		if x.closed {
			x.mu.Unlock()
			return 0, fault.New(fault.Unavailable, "rocketmq.fetch", "store-closed", "the subscription is closed")
		}
		if err := x.failed; err != nil {
			if store.Why(err) == "AccessDenied" {
				x.failed = nil // said once for each try
			}
			x.mu.Unlock()
			return 0, err
		}
		n := x.fetchLocked(dst)
		wake := x.wake
		x.mu.Unlock()
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

// fetchLocked fills dst from the buffers, each queue as far as its window goes.
func (x *subscription) fetchLocked(dst []store.Message) int {
	n := 0
	for _, o := range x.order {
		if !x.holdsLocked(o) {
			continue // it is dropped or renewed soon
		}
		k := min(len(dst)-n, len(o.buffer), o.window.Room())
		for i := range k {
			m := o.buffer[i]
			offset := int64(m.Pos.Offset) //nolint:gosec // below 2^63
			m.Handle = handle{o, o.window.Deliver(offset)}
			m.Redelivered = offset < o.again
			dst[n] = m
			n++
		}
		if k > 0 {
			o.buffer = slices.Delete(o.buffer, 0, k)
			close(o.room)
			o.room = make(chan struct{})
		}
	}
	if len(x.order) > 1 {
		// The next call begins with another queue.
		x.order = append(x.order[1:], x.order[0])
	}
	return n
}

// Settle records that messages are done with.
func (x *subscription) Settle(msgs []*store.Message) (stale int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range msgs {
		h, ok := m.Handle.(handle)
		if !ok || h.o.revoked || !h.o.window.Done(h.n) {
			stale++
			continue
		}
		h.o.commits.Settled(h.o.window.Half())
	}
	return stale
}

// commits commits what is settled of a queue until ctx ends. Each queue has it to itself:
// where one's broker is away the others go on.
func (x *subscription) commits(ctx context.Context, o *ownership) {
	half := func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return o.window.Half() && !o.back
	}
	o.commits.Run(ctx, commitInterval, half, func() bool { return x.commitOne(x.life, o) })
}

// commitOne commits a queue's offset if it changed; false where that failed.
func (x *subscription) commitOne(ctx context.Context, o *ownership) bool {
	o.commit.Lock()
	defer o.commit.Unlock()
	x.mu.Lock()
	at := o.window.Commit()
	same := at == o.committed || o.back
	doubted := o.lockLostLocked()
	x.mu.Unlock()
	if same {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	passed, err := false, error(nil)
	if doubted {
		// Brokers take a lower place, too: another member's must not go back.
		var there int64
		there, _, passed, err = x.c.place(ctx, o.addr, x.topic, x.group, o.q)
		passed = passed && there >= at
	}
	if err == nil && !passed {
		err = x.c.commit(ctx, o.addr, x.topic, x.group, o.q, at)
	}
	if err != nil {
		x.s.cfg.Log.Debug("an offset cannot be committed; trying again", "topic", x.topic, "queue", o.q.name(), "error", err)
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	o.committed = max(o.committed, at)
	full := o.window.Room() == 0
	o.window.Kept(at)
	if full {
		x.wakeLocked()
	}
	return true
}

// Close leaves the group: what is settled is committed, the rest is another's.
func (x *subscription) Close(ctx context.Context) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return nil
	}
	x.closed = true
	var mine []*ownership
	for _, o := range x.owned {
		mine = append(mine, o)
	}
	for _, o := range mine {
		x.dropLocked(o)
	}
	x.wakeLocked()
	x.mu.Unlock()
	x.end()
	x.work.Wait()
	// What membership took meanwhile goes too.
	x.mu.Lock()
	for _, o := range x.owned {
		mine = append(mine, o)
	}
	for _, o := range mine {
		if !o.revoked {
			x.dropLocked(o)
		}
	}
	x.mu.Unlock()
	var g errgroup.Group
	for _, o := range mine {
		g.Go(func() error {
			o.work.Wait()
			if !x.commitOne(ctx, o) {
				return fault.New(fault.Unavailable, "rocketmq.close", "not-flushed", "what was settled last could not be committed; it comes again")
			}
			return nil
		})
	}
	err := g.Wait()
	x.unlock(ctx, func(queue) bool { return false })
	if r, rerr := x.c.route(ctx, x.topic, false); rerr == nil {
		for _, addr := range r.brokers {
			// Brokers notice the lost connection too, only later.
			_, _ = x.c.ask(ctx, addr, reqUnregister, map[string]string{"clientID": x.client, "consumerGroup": x.group}, nil)
		}
	}
	x.c.close()
	return err
}
