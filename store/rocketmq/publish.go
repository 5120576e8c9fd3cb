package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// Limits of one request.
const (
	maxBatchEvents = 256
	maxBatchBytes  = 1 << 20
	// sendTimeout bounds a request to a broker; after it nobody knows.
	sendTimeout = 10 * time.Second
	// lanes is how many senders a queue has at most. Events with a key have the
	// first one, or they would lose their order.
	lanes = 4
	// ownRequest is from how many events on a call without keys does not wait for
	// the answer to another one: fewer are worth going together.
	ownRequest = 32
)

var limits = sendqueue.Limits{Events: maxBatchEvents, Bytes: maxBatchBytes, Waiting: 32 << 20}

type senderKey struct {
	topic string
	queue queue
	lane  int
}

// sender sends to one queue.
type sender struct {
	senderKey
	*sendqueue.Queue[encoded]
}

// encoded is an event as brokers take it.
type encoded struct {
	addr       string // of the broker, when it was given to its sender; "" where that was away
	properties string
	body       []byte
}

// outgoing is one event on its way.
type outgoing = sendqueue.Item[encoded]

// fill is what e becomes, due at a time if that is not zero.
func fill(o *outgoing, e *event.Event, due time.Time) {
	o.Event.properties, o.Event.body = encode(e, due)
	o.Size = len(o.Event.properties) + len(o.Event.body) + 32
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
	all := make([]outgoing, len(events))
	for i := range events {
		o := &all[i]
		if fill(o, events[i].Event, time.Time{}); o.Size > maxMessage {
			return fail(tooLarge(op, o))
		}
	}
	for tried := []string(nil); ; {
		q, ok := s.keyless(r, tried)
		if !ok {
			return res[0].Err
		}
		c, err := s.hand(r, topic, events, all, q)
		if err != nil {
			return fail(err)
		}
		if err := c.Wait(ctx, res); err == nil || ctx.Err() != nil || !mayGoElsewhere(events, res) {
			return err
		}
		tried = append(tried, q.broker)
		again := make([]outgoing, len(all)) // those before are the first call's
		for i := range again {
			again[i].Event, again[i].Size = all[i].Event, all[i].Size
		}
		all = again
	}
}

// keyless is the queue for a call's events without a key: the next one, of a broker that
// was not tried for them.
func (s *Store) keyless(r *route, tried []string) (queue, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn++
	for i := range r.write {
		if q := r.write[(s.turn+i)%len(r.write)]; !slices.Contains(tried, q.broker) {
			return q, true
		}
	}
	return queue{}, false
}

// mayGoElsewhere reports whether all of a call, whose events have no key, was surely not
// kept, since the broker was not reached or takes nothing: another one may take it.
func mayGoElsewhere(events []store.Outgoing, res []store.Result) bool {
	for i := range events {
		if events[i].Key != "" || res[i].Err == nil || fault.ClassOf(res[i].Err) != fault.Unavailable {
			return false
		}
	}
	return elsewhere(res[0].Err)
}

// elsewhere reports whether a broker was not reached, or takes nothing.
func elsewhere(err error) bool {
	f := fault.From(err)
	return f.Class == fault.Unavailable && (f.Reason == "store-unreachable" || f.Reason == "store-refused")
}

func tooLarge(op string, o *outgoing) error {
	return fault.New(fault.TooLarge, op, "event-too-large", "the event has %d bytes, the store takes %d", o.Size, maxMessage)
}

// hand chooses a queue for each event, q for those without a key, and gives it to its
// sender.
func (s *Store) hand(r *route, topic string, events []store.Outgoing, all []outgoing, q queue) (*sendqueue.Call[encoded], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keyless := s.laneLocked(senderKey{topic: topic, queue: q}, len(all))
	for i := range all {
		to := keyless
		if k := events[i].Key; k != "" {
			h := fnv.New32a()
			_, _ = h.Write([]byte(k))
			to = senderKey{topic: topic, queue: r.keyed[int(h.Sum32()%uint32(len(r.keyed)))]} //nolint:gosec // a topic has few queues
		}
		s.addressLocked(&all[i], r, to)
	}
	return s.out.Give(all)
}

// addressLocked sets whose sender an event goes to.
func (s *Store) addressLocked(o *outgoing, r *route, to senderKey) {
	o.Event.addr = r.brokers[to.queue.broker]
	sn := s.senders[to]
	if sn == nil {
		sn = &sender{senderKey: to}
		sn.Queue = s.out.Queue(func() { s.send(sn) })
		s.senders[to] = sn
	}
	o.To = sn.Queue
}

// laneLocked is where a call of n events without keys goes: to a sender that has
// nothing to do, where the call is worth a request of its own, else to that of the
// queue for which least waits. All events of a call go together, in their order.
func (s *Store) laneLocked(key senderKey, n int) senderKey {
	if n < ownRequest {
		return key
	}
	best, least := key, 0
	for ; key.lane < lanes; key.lane++ {
		sn := s.senders[key]
		if sn == nil {
			return key
		}
		bytes, busy := sn.Load()
		if !busy {
			return key
		}
		if key.lane == 0 || bytes < least {
			best, least = key, bytes
		}
	}
	return best
}

func ambiguous(err error) error { return sendqueue.Ambiguous("rocketmq.publish", err) }

// send sends what waits until nothing does.
func (s *Store) send(sn *sender) {
	addr := ""
	for {
		batch := sn.Take()
		if batch == nil {
			s.drop(sn)
			return
		}
		if addr == "" {
			addr = batch[0].Event.addr
		}
		if addr == "" {
			sn.Failed(batch, unavailable(fmt.Errorf("broker %s, which has the queue of these keys, is away", sn.queue.broker)))
			continue
		}
		first, err := s.request(s.life, sn.senderKey, addr, batch)
		if err == nil {
			sn.Sent(batch, sn.queue.name(), first)
			continue
		}
		sn.Failed(batch, err)
		// The broker may be elsewhere now; under load there is no later call
		// that would look.
		s.c.doubt(sn.topic)
		if r, err := s.c.route(s.life, sn.topic, false); err == nil && r.brokers[sn.queue.broker] != "" {
			addr = r.brokers[sn.queue.broker]
		}
	}
}

// drop forgets a sender that has nothing to do: topics come and go. Whoever gives it
// something holds mu until that is in its queue.
func (s *Store) drop(sn *sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, busy := sn.Load(); !busy && s.senders[sn.senderKey] == sn {
		delete(s.senders, sn.senderKey)
	}
}

// noDefault is the topic whose settings a broker would take to make a topic that
// it does not have. There is none of this name, so that a topic which was deleted
// stays so, however brokers are set.
const noDefault = "weft-makes-no-topic-by-sending"

// request sends a batch; first is the offset of its first event.
func (s *Store) request(ctx context.Context, key senderKey, addr string, batch []*outgoing) (first int64, err error) {
	fields := map[string]string{"a": "weft", "b": key.topic, "c": noDefault, "d": "4", "e": strconv.Itoa(key.queue.id), "f": "0",
		"g": strconv.FormatInt(s.op.Clock.Now().UnixMilli(), 10), "h": "0", "j": "0", "k": "false", "m": "false", "n": key.queue.broker}
	code, body := reqSend, batch[0].Event.body
	if len(batch) == 1 {
		fields["i"] = batch[0].Event.properties
	} else {
		size := 0
		for _, o := range batch {
			size += o.Size
		}
		code, body = reqSendBatch, make([]byte, 0, size)
		fields["i"], fields["m"] = "", "true"
		for _, o := range batch {
			body = appendBatch(body, o.Event.properties, o.Event.body)
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
			return fail(fault.New(fault.Invalid, op, "delay", "the delay is longer than %s", duration.Text(maxDelay)))
		}
	}
	r, err := s.c.route(ctx, topic, false)
	if err != nil {
		return fail(err)
	}
	if len(r.write) == 0 {
		return fail(unavailable(errors.New("no broker takes events of the topic")))
	}
	done, ok := s.out.Begin()
	if !ok {
		return fail(sendqueue.Closed(op))
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	var g errgroup.Group
	g.SetLimit(maxDelaying)
	for i := range events {
		g.Go(func() error {
			o := outgoing{}
			if fill(&o, events[i].Event, due[i]); o.Size > maxMessage {
				res[i].Err = tooLarge(op, &o)
				return res[i].Err
			}
			for tried := []string(nil); ; {
				q, ok := s.keyless(r, tried)
				if !ok {
					return res[i].Err
				}
				_, err := s.request(ctx, senderKey{topic: topic, queue: q}, r.brokers[q.broker], []*outgoing{&o})
				if err != nil && ctx.Err() != nil && fault.ClassOf(err) == fault.Unavailable {
					err = fault.From(ctx.Err()) // it was not sent
				}
				if res[i] = (store.Result{Err: err}); err == nil || !elsewhere(err) {
					return err
				}
				s.c.doubt(topic)
				tried = append(tried, q.broker)
			}
		})
	}
	return g.Wait()
}
