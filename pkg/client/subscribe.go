package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// Delivery is one event that was received. It shares memory with those that came in one
// message with it, at most 256 or about 1 MiB: who keeps few of many for long keeps
// Event.Clone, and strings.Clone of Position.
type Delivery struct {
	Topic    string
	Position string
	// Attempt is 1 at first.
	Attempt int
	Event   event.Event

	extend func(time.Duration)
}

// Extend asks for more time: the Subscription's ack time-out begins again and is
// by, or as it was where by is 0. Only the Handler that has the delivery may call
// it. Of a tail's events nothing times out.
func (d Delivery) Extend(by time.Duration) {
	if d.extend != nil {
		d.extend(by)
	}
}

// Handler takes one delivery. nil settles it; an error gives it back for
// another attempt, on the Subscription's schedule or, for a *Retry, after
// the Delay that it has. Its text is kept with the event. ErrUnsettled does neither.
type Handler func(ctx context.Context, d Delivery) error

// ErrUnsettled is what a Handler of Subscribe returns, wrapped or not, to leave the
// delivery as it is: it counts as unsettled, and goes to others at the same attempt once
// Subscribe ends, or at the next one when its ack time-out is over.
var ErrUnsettled = errors.New("client: the delivery is left unsettled")

// AtOnce is the Delay of a Retry that waits for nothing.
const AtOnce time.Duration = -1

// Retry asks for another attempt.
type Retry struct {
	// Delay is when, at most 24 h; the Subscription's schedule when 0. AtOnce is at once.
	Delay time.Duration
	// Reason is why; it changes nothing about when.
	Reason string
}

func (r *Retry) Error() string { return r.Reason }

// delay is Delay as it is sent: nothing is the schedule.
func (r *Retry) delay() *durationpb.Duration {
	switch r.Delay {
	case 0:
		return nil
	case AtOnce:
		return durationpb.New(0)
	}
	return durationpb.New(r.Delay)
}

// SubscribeOptions change Subscribe. The zero value is its defaults.
type SubscribeOptions struct {
	// Credit is how many deliveries may be unsettled, and so how many Handlers
	// run at once; 64 when 0.
	Credit int
	// Connected is called each time the subscription is open.
	Connected func()
}

// Retry times of a stream.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second
)

// Subscribe is a member of a Subscription until ctx ends or the client is closed: it calls h for each
// delivery, up to Credit at a time, and settles. It reconnects by itself; an
// error is returned where trying again cannot help (denied, deleted, credentials
// that are refused). Credentials that end while it is open are asked for again:
// a token that was renewed by then is shown. Handlers that run when the connection is lost
// go on beside those of the next one, and count against Credit; what they return is lost,
// and their deliveries come again, to whoever is next. Handlers that run when ctx ends are
// waited for, and their deliveries settled.
func (c *Client) Subscribe(ctx context.Context, namespace, subscription string, h Handler, o SubscribeOptions) error {
	if o.Credit == 0 {
		o.Credit = 64
	}
	return c.subscribe(ctx, namespace, subscription, h, o)
}

// again runs f until ctx ends, the client is closed or f fails for good.
func (c *Client) again(ctx context.Context, f func(good func()) error) error {
	retry := minRetry
	for {
		err := f(func() { retry = minRetry })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch e := toError(err); code(e) {
		case codes.Unauthenticated:
			// What was shown has ended; there may be another by now.
			if e, ok := errors.AsType[*Error](e); !ok || e.Reason != "credentials-revoked" {
				return e
			}
		case codes.PermissionDenied, codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
			return e
		}
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-c.closed:
			timer.Stop()
			return errClientClosed
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		retry = min(2*retry, maxRetry)
	}
}

func code(err error) codes.Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return codes.Unknown
}

// receive reads a stream to its end, and lends f each delivery.
func receive(rpc grpc.ClientStream, f func(*delivered), opened func(*eventsv1.SubscribeOpened)) error {
	resp := &received{}
	for {
		if err := rpc.RecvMsg(resp); err != nil {
			return err
		}
		if resp.opened != nil {
			opened(resp.opened)
		}
		for i := range resp.list {
			f(&resp.list[i])
		}
		clear(resp.list) // they hold on to the message
		resp.opened, resp.list = nil, resp.list[:0]
	}
}

func handle(ctx context.Context, h Handler, d *delivered, extend func(time.Duration)) error {
	if d.err != nil {
		return d.err
	}
	d.extend = extend
	return h(ctx, d.Delivery)
}

func extension(id uint64, by time.Duration) *eventsv1.SubscribeRequest {
	x := &eventsv1.Extend{Ids: []uint64{id}}
	if by > 0 {
		x.AckTimeout = durationpb.New(by)
	}
	return &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Extend{Extend: x}}
}

// settlement is what a handler said: a delivery is done with, or more.
type settlement struct {
	id   uint64
	more *eventsv1.SubscribeRequest
}

// answer settles a delivery by what its handler said.
func answer(id uint64, err error) settlement {
	if err == nil {
		return settlement{id: id}
	}
	n := &eventsv1.Nack{Ids: []uint64{id}, Reason: reason(err.Error())}
	if r, ok := errors.AsType[*Retry](err); ok {
		n.Delay = r.delay()
	}
	return settlement{more: &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Nack{Nack: n}}}
}

// maxReason is how much is told of why a delivery failed, in bytes.
const maxReason = 1024

// reason is text as it may be sent: an error may quote what is no text, or a whole event.
func reason(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxReason)], "\uFFFD")
}

// maxSettled bounds what is sent together.
const maxSettled = 1024

// sendSettled sends x and what waits with it, all that is done with in one message. What
// was said before a delivery was done with goes before that.
func sendSettled(send func(*eventsv1.SubscribeRequest) error, x settlement, waiting <-chan settlement) error {
	var done []uint64
	for n, ok := 1, true; ok; n++ {
		if x.more == nil {
			done = append(done, x.id)
		} else if err := send(x.more); err != nil {
			return err
		}
		if n == maxSettled {
			break
		}
		select {
		case x, ok = <-waiting:
		default:
			ok = false
		}
	}
	if len(done) == 0 {
		return nil
	}
	return send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: done}}})
}

// TailOptions say where a tail begins. The zero value is the end.
type TailOptions struct {
	Beginning bool
	Since     time.Time
	// After are position tokens, one for each partition; those without one begin as the
	// other fields say.
	After []string
	// Connected is called each time the tail is open.
	Connected func()
}

// tailCredit is how many events a tail is granted at once. What came and f has not taken
// is one message, and what the transport has room for.
const tailCredit = 1024

// Tail calls f for each event of topics (names or patterns), in order for each
// partition, until ctx ends, the client is closed or f returns an error. It reconnects by itself and
// goes on behind the last event that f took, or, in a partition of which that had none,
// where it began. While f runs nothing is read: after 20 s of
// that a proxy may close the connection.
func (c *Client) Tail(ctx context.Context, namespace string, topics []string, o TailOptions, f func(Delivery) error) error {
	var last places
	for _, t := range o.After {
		last.add(t)
	}
	var end *timestamppb.Timestamp // when the first stream was opened, by its proxy's clock
	var stopped error
	err := c.again(ctx, func(good func()) error {
		sctx, cancel := context.WithCancel(ctx)
		defer cancel()
		rpc, err := c.rpc.Subscribe(sctx)
		if err != nil {
			return err
		}
		open := &eventsv1.SubscribeOpen{Namespace: namespace, Source: &eventsv1.SubscribeOpen_Tail{Tail: tailFrom(topics, o, last.tokens(), end)}, Credit: tailCredit}
		if err := rpc.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil {
			_, err = rpc.Recv()
			return err
		}
		taken := 0
		err = receive(rpc, func(d *delivered) {
			if stopped != nil {
				return
			}
			err := d.err
			if err == nil {
				err = f(d.Delivery)
			}
			if err != nil {
				stopped = err
				cancel()
				return
			}
			last.add(d.Position)
			if taken++; taken == tailCredit/2 {
				taken = 0
				_ = rpc.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: tailCredit / 2}}})
			}
		}, func(opened *eventsv1.SubscribeOpened) {
			if end == nil {
				end = opened.Time
			}
			good()
			if o.Connected != nil {
				o.Connected()
			}
		})
		if stopped != nil {
			return status.Error(codes.InvalidArgument, "stopped") // ends the loop
		}
		return err
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// tailFrom is where a tail begins, or goes on that has begun: end is nil before. What it
// has seen nothing of goes on where it began.
func tailFrom(topics []string, o TailOptions, last []string, end *timestamppb.Timestamp) *eventsv1.Tail {
	t := &eventsv1.Tail{Topics: topics}
	after := &eventsv1.Positions{Tokens: last}
	switch {
	case o.Beginning:
		t.From = &eventsv1.Tail_Beginning{Beginning: true}
		after.Others = &eventsv1.Positions_Beginning{Beginning: true}
	case !o.Since.IsZero():
		since := timestamppb.New(o.Since)
		t.From = &eventsv1.Tail_Time{Time: since}
		after.Others = &eventsv1.Positions_Time{Time: since}
	case end != nil:
		after.Others = &eventsv1.Positions_Time{Time: end}
	}
	if len(last) > 0 || t.From == nil && end != nil {
		t.From = &eventsv1.Tail_After{After: after}
	}
	return t
}
