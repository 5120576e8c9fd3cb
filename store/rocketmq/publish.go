package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// Limits of one request.
const (
	maxBatchEvents = 256
	maxBatchBytes  = 1 << 20
	// sendTimeout bounds a request to a broker; after it nobody knows.
	sendTimeout = 10 * time.Second
	// maxWaiting bounds what waits for one queue, in bytes.
	maxWaiting = 32 << 20
)

type senderKey struct {
	topic string
	queue queue
}

// sender sends to one queue, one request at a time; what comes meanwhile goes
// together in the next.
type sender struct {
	waiting []*outgoing
	bytes   int
	busy    bool
}

// outgoing is one event on its way.
type outgoing struct {
	properties string
	body       []byte
	call       *call
	i          int // its place in the call
}

func (o *outgoing) size() int { return len(o.properties) + len(o.body) + 32 }

// call is one Publish. Its fields are guarded by Store.mu.
type call struct {
	ctx     context.Context
	res     []store.Result
	left    int
	failed  map[queue]bool // where an event failed nothing later is sent
	done    chan struct{}
	expired bool // nobody waits any more
}

// Publish writes events; see store.Store.
func (s *Store) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	const op = "rocketmq.publish"
	fail := func(err error) error {
		for i := range res {
			res[i] = store.Result{Err: err}
		}
		return err
	}
	if err := ctx.Err(); err != nil {
		return fail(fault.From(err))
	}
	r, err := s.c.route(ctx, topic, false)
	if err != nil {
		return fail(err)
	}
	if len(r.write) == 0 {
		return fail(&fault.Error{Class: fault.Unavailable, Op: op, Reason: "store-unreachable", RetryAfter: time.Second, Msg: "no broker takes events of the topic now"})
	}
	out, all := make([]*outgoing, len(events)), make([]outgoing, len(events))
	c := &call{ctx: ctx, res: make([]store.Result, len(events)), left: len(events), failed: map[queue]bool{}, done: make(chan struct{})}
	for i := range events {
		o := &all[i]
		o.call, o.i = c, i
		if o.properties, o.body = encode(events[i].Event, time.Time{}); o.size() > maxMessage {
			return fail(fault.New(fault.TooLarge, op, "event-too-large", "the event has %d bytes, the store takes %d", o.size(), maxMessage))
		}
		out[i] = o
	}
	if err := s.hand(r, topic, events, out); err != nil {
		return fail(err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		s.expire(c)
	}
	copy(res, c.res)
	for i := range res {
		if res[i].Err != nil {
			return res[i].Err
		}
	}
	return nil
}

// hand gives each event to its queue's sender.
func (s *Store) hand(r *route, topic string, events []store.Outgoing, out []*outgoing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Unavailable, "rocketmq.publish", "store-closed", "the store is closed")
	}
	s.turn++
	keyless := r.write[s.turn%len(r.write)]
	to := make([]queue, len(out))
	for i := range out {
		to[i] = keyless
		if k := events[i].Key; k != "" {
			h := fnv.New32a()
			_, _ = h.Write([]byte(k))
			to[i] = r.write[int(h.Sum32()%uint32(len(r.write)))] //nolint:gosec // a topic has few queues
		}
		// All or nothing: whoever is told to come back must find nothing kept.
		if sn := s.senders[senderKey{topic, to[i]}]; sn != nil && sn.bytes > maxWaiting {
			return &fault.Error{Class: fault.Throttled, Op: "rocketmq.publish", Reason: "store-busy", RetryAfter: 200 * time.Millisecond, Msg: "the event store is slow; nothing more was kept"}
		}
	}
	for i, o := range out {
		q := to[i]
		key := senderKey{topic, q}
		sn := s.senders[key]
		if sn == nil {
			sn = &sender{}
			s.senders[key] = sn
		}
		sn.waiting = append(sn.waiting, o)
		sn.bytes += o.size()
		if !sn.busy {
			sn.busy = true
			s.work.Go(func() { s.send(key, sn, r.brokers[q.broker]) })
		}
	}
	return nil
}

// expire ends the waiting of a call whose context has ended. What is still in a
// queue was not handed over; what was sent may have been kept.
func (s *Store) expire(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.left == 0 {
		return
	}
	c.expired = true
	sent := make([]bool, len(c.res))
	for i := range sent {
		sent[i] = true
	}
	for _, sn := range s.senders {
		kept := sn.waiting[:0]
		for _, o := range sn.waiting {
			if o.call == c {
				sent[o.i] = false
				sn.bytes -= o.size()
			} else {
				kept = append(kept, o)
			}
		}
		clear(sn.waiting[len(kept):])
		sn.waiting = kept
	}
	for i := range c.res {
		switch {
		case c.res[i].Err != nil || c.res[i].Pos.Partition != "":
		case sent[i]:
			c.res[i].Err = ambiguous(c.ctx.Err())
		default:
			c.res[i].Err = fault.From(c.ctx.Err())
		}
	}
}

func ambiguous(err error) error {
	return &fault.Error{Class: fault.Ambiguous, Op: "rocketmq.publish", Reason: "ambiguous", Err: err, Msg: "the event store did not answer; the event may have been kept"}
}

// send sends what waits until nothing does.
func (s *Store) send(key senderKey, sn *sender, addr string) {
	for {
		batch := s.take(key, sn)
		if batch == nil {
			return
		}
		first, err := s.request(s.life, key, addr, batch)
		s.finish(key.queue, batch, first, err)
		if err != nil {
			// The broker may be elsewhere now; under load there is no later call
			// that would look.
			s.c.doubt(key.topic)
			if r, err := s.c.route(s.life, key.topic, false); err == nil && r.brokers[key.queue.broker] != "" {
				addr = r.brokers[key.queue.broker]
			}
		}
	}
}

// take takes the next batch; nil, and the sender is idle, when nothing waits.
func (s *Store) take(key senderKey, sn *sender) []*outgoing {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []*outgoing
	size := 0
	for len(sn.waiting) > 0 && len(batch) < maxBatchEvents {
		o := sn.waiting[0]
		if len(batch) > 0 && size+o.size() > maxBatchBytes {
			break
		}
		sn.waiting = sn.waiting[1:]
		sn.bytes -= o.size()
		if o.call.failed[key.queue] {
			s.resultLocked(o, store.Result{Err: fault.New(fault.Unavailable, "rocketmq.publish", "after-a-failure", "an earlier event of the batch failed; this one was not published")})
			continue
		}
		size += o.size()
		batch = append(batch, o)
	}
	if batch == nil {
		sn.busy = false
		sn.waiting = nil
	}
	return batch
}

// noDefault is the topic whose settings a broker would take to make a topic that
// it does not have. There is none of this name, so that a topic which was deleted
// stays so, however brokers are set.
const noDefault = "weft-makes-no-topic-by-sending"

// request sends a batch; first is the offset of its first event.
func (s *Store) request(ctx context.Context, key senderKey, addr string, batch []*outgoing) (first int64, err error) {
	fields := map[string]string{"a": "weft", "b": key.topic, "c": noDefault, "d": "4", "e": strconv.Itoa(key.queue.id), "f": "0",
		"g": strconv.FormatInt(s.op.Clock.Now().UnixMilli(), 10), "h": "0", "j": "0", "k": "false", "m": "false", "n": key.queue.broker}
	code, body := reqSend, batch[0].body
	if len(batch) == 1 {
		fields["i"] = batch[0].properties
	} else {
		size := 0
		for _, o := range batch {
			size += o.size()
		}
		code, body = reqSendBatch, make([]byte, 0, size)
		fields["i"], fields["m"] = "", "true"
		for _, o := range batch {
			body = appendBatch(body, o.properties, o.body)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	cmd, err := s.c.call(ctx, addr, code, fields, body)
	return sent(cmd, err)
}

// sent judges the answer to a send: only one code says that the event is kept.
func sent(cmd *remoting.Command, err error) (int64, error) {
	switch {
	case err != nil && notSent(err):
		return 0, unavailable(err)
	case err != nil:
		return 0, ambiguous(err)
	case cmd.Code == resOK:
		n, err := cmd.Int("queueOffset")
		if err != nil {
			return 0, ambiguous(err)
		}
		return n, nil
	}
	if denied(cmd) {
		return 0, answered(cmd)
	}
	switch cmd.Code {
	case resNotSupported, resBusy, resIllegal, resNotAvailable, resNoPermission, resNoTopic, resFlowControl:
		return 0, answered(cmd) // it was refused before it was kept
	}
	// The disk or the slave did not answer the broker in time, it failed while it
	// wrote, or it says something that this version does not know.
	return 0, ambiguous(fmt.Errorf("code %d: %.200s", cmd.Code, cmd.Remark))
}

// finish answers the calls of a batch.
func (s *Store) finish(q queue, batch []*outgoing, first int64, err error) {
	partition := q.name()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range batch {
		if err != nil {
			o.call.failed[q] = true
			s.resultLocked(o, store.Result{Err: err})
			continue
		}
		s.resultLocked(o, store.Result{Pos: store.Position{Partition: partition, Offset: uint64(first) + uint64(i)}}) //nolint:gosec // offsets are not negative
	}
}

func (s *Store) resultLocked(o *outgoing, r store.Result) {
	if o.call.expired {
		return
	}
	o.call.res[o.i] = r
	if o.call.left--; o.call.left == 0 {
		close(o.call.done)
	}
}

// maxDelaying bounds concurrent requests of one PublishDelayed.
const maxDelaying = 8

// PublishDelayed writes events that brokers hold back until they are due; see
// store.Delayer. Brokers take such events one by one.
func (s *Store) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	const op = "rocketmq.publish-delayed"
	fail := func(err error) error {
		for i := range res {
			res[i] = store.Result{Err: err}
		}
		return err
	}
	for _, d := range due {
		if d.Sub(s.op.Clock.Now()) > maxDelay {
			return fail(fault.New(fault.Invalid, op, "delay", "the delay is longer than %s", maxDelay))
		}
	}
	r, err := s.c.route(ctx, topic, false)
	if err != nil {
		return fail(err)
	}
	if len(r.write) == 0 {
		return fail(unavailable(errors.New("no broker takes events of the topic")))
	}
	s.mu.Lock()
	s.turn++
	turn := s.turn
	if s.closed {
		s.mu.Unlock()
		return fail(fault.New(fault.Unavailable, op, "store-closed", "the store is closed"))
	}
	s.work.Add(1)
	s.mu.Unlock()
	defer s.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	var g errgroup.Group
	g.SetLimit(maxDelaying)
	for i := range events {
		g.Go(func() error {
			q := r.write[(turn+i)%len(r.write)]
			o := outgoing{}
			o.properties, o.body = encode(events[i].Event, due[i])
			if o.size() > maxMessage {
				res[i].Err = fault.New(fault.TooLarge, op, "event-too-large", "the event has %d bytes, the store takes %d", o.size(), maxMessage)
				return res[i].Err
			}
			_, err := s.request(ctx, senderKey{topic, q}, r.brokers[q.broker], []*outgoing{&o})
			if err != nil && ctx.Err() != nil && fault.ClassOf(err) == fault.Unavailable {
				err = fault.From(ctx.Err()) // it was not sent
			}
			res[i] = store.Result{Err: err}
			return err
		})
	}
	return g.Wait()
}
