package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// PublisherOptions change a Publisher. The zero value is its defaults.
type PublisherOptions struct {
	// InFlight bounds the bytes of events without an answer, on the wire or
	// waiting for it; Publish waits beyond it. 8 MiB when 0.
	InFlight int
}

// Limits of one message of the stream.
const (
	maxMessageEvents = 1000
	maxMessageBytes  = 1 << 20
)

// errPublisherClosed is what Publish gives after Close.
var errPublisherClosed = errors.New("client: the publisher is closed")

// Publisher publishes events of one topic over one stream, as many at once as
// InFlight lets: events of one ordering key keep the order in which Publish was
// called. It is safe for concurrent use.
//
// When the connection is lost it connects again and repeats what has no answer,
// with the same source and id, so an event may be kept twice. An event that was
// refused, or that the store could not take, is not repeated: its Result says
// so, and the caller decides.
type Publisher struct {
	c                *Client
	namespace, topic string
	inFlight         int
	life             context.Context // ends when Close gives up
	end              context.CancelFunc
	ended            chan struct{} // closed when the goroutines have ended
	more             chan struct{} // there is something to send; capacity 1

	mu     sync.Mutex
	queue  []*pending // not sent on the stream of now
	sent   []*pending // sent, without an answer, in the order of their sequences
	bytes  int
	room   chan struct{} // closed when there is more room; nil while nobody waits
	closed bool
}

// pending is an event without an answer.
type pending struct {
	wire *cev1.CloudEvent
	size int
	done func(Result)
}

// Publisher opens a publisher, which connects when it is first used. Close it.
func (c *Client) Publisher(namespace, topic string, o PublisherOptions) *Publisher {
	if o.InFlight == 0 {
		o.InFlight = 8 << 20
	}
	p := &Publisher{c: c, namespace: namespace, topic: topic, inFlight: o.InFlight, ended: make(chan struct{}), more: make(chan struct{}, 1)}
	p.life, p.end = context.WithCancel(context.Background())
	go p.run()
	return p
}

// Publish takes an event, which must not be changed afterwards. done is called
// once, when the store has it or it is known that it will not; it must not
// block. Publish waits while as much is in flight as may be, until ctx ends; the
// error is why the event was not taken, and then done is not called.
func (p *Publisher) Publish(ctx context.Context, e event.Event, done func(Result)) error {
	if err := e.Validate(); err != nil {
		return &Error{Code: codes.InvalidArgument, Reason: "bad-event", Message: err.Error()}
	}
	ev, err := wire(&e)
	if err != nil {
		return err
	}
	x := &pending{ev, proto.Size(ev), done}
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return errPublisherClosed
		}
		if p.bytes == 0 || p.bytes+x.size <= p.inFlight {
			p.queue = append(p.queue, x)
			p.bytes += x.size
			p.mu.Unlock()
			p.poke()
			return nil
		}
		room := p.roomLocked()
		p.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Flush waits until everything that was published before has its answer.
func (p *Publisher) Flush(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.bytes == 0 {
			p.mu.Unlock()
			return nil
		}
		room := p.roomLocked()
		p.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close takes no more events, waits until those in flight have their answers or
// ctx ends, and gives those that have none then the reason "ambiguous".
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.end()
	<-p.ended
	return err
}

func (p *Publisher) roomLocked() <-chan struct{} {
	if p.room == nil {
		p.room = make(chan struct{})
	}
	return p.room
}

func (p *Publisher) poke() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// run keeps a stream while there is something to publish.
func (p *Publisher) run() {
	defer close(p.ended)
	retry := minRetry
	for p.life.Err() == nil {
		select {
		case <-p.more:
			p.poke() // for the stream
		case <-p.life.Done():
			continue
		}
		err := p.stream(func() { retry = minRetry })
		if p.life.Err() != nil {
			break
		}
		switch e := toError(err); code(e) {
		case codes.PermissionDenied, codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition, codes.Unauthenticated, codes.Unimplemented:
			p.fail(e)
			continue
		}
		p.again()
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-p.life.Done():
			timer.Stop()
		}
		retry = min(2*retry, maxRetry)
	}
	p.fail(&Error{Code: codes.Unavailable, Reason: "ambiguous", Message: "the publisher was closed before the answer came; the event may have been kept"})
}

// again puts what was sent before what was not.
func (p *Publisher) again() {
	p.mu.Lock()
	p.queue = slices.Concat(p.sent, p.queue)
	p.sent = nil
	n := len(p.queue)
	p.mu.Unlock()
	if n > 0 {
		p.poke()
	}
}

// fail answers everything.
func (p *Publisher) fail(err error) {
	p.mu.Lock()
	all := slices.Concat(p.sent, p.queue)
	p.sent, p.queue = nil, nil
	p.mu.Unlock()
	for _, x := range all {
		p.answer(x, Result{Err: err})
	}
}

// answer tells who published x, and makes room.
func (p *Publisher) answer(x *pending, r Result) {
	if x.done != nil {
		x.done(r)
	}
	p.mu.Lock()
	p.bytes -= x.size
	if p.room != nil {
		close(p.room)
		p.room = nil
	}
	p.mu.Unlock()
}

// stream publishes over one stream until that ends.
func (p *Publisher) stream(good func()) error {
	ctx, cancel := context.WithCancel(p.life)
	defer cancel()
	rpc, err := p.c.rpc.PublishStream(ctx)
	if err != nil {
		return err
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		p.send(ctx, rpc)
	}()
	err = p.receive(rpc, good)
	cancel()
	<-sent
	return err
}

// send sends what is published until the stream ends; why it ended the receiver
// hears.
func (p *Publisher) send(ctx context.Context, rpc grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) {
	req := &eventsv1.PublishStreamRequest{Namespace: p.namespace, Topic: p.topic}
	for {
		select {
		case <-p.more:
		case <-ctx.Done():
			return
		}
		for {
			p.mu.Lock()
			n, size := 0, 0
			for n < len(p.queue) && n < maxMessageEvents && (n == 0 || size+p.queue[n].size <= maxMessageBytes) {
				size += p.queue[n].size
				n++
			}
			if n == 0 {
				p.queue = nil
				p.mu.Unlock()
				break
			}
			for _, x := range p.queue[:n] {
				req.Events = append(req.Events, x.wire)
			}
			p.sent = append(p.sent, p.queue[:n]...)
			p.queue = p.queue[n:]
			p.mu.Unlock()
			if rpc.Send(req) != nil {
				return
			}
			req.Reset()
		}
	}
}

// receive takes results until the stream ends.
func (p *Publisher) receive(rpc grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse], good func()) error {
	next := uint64(1)
	for {
		resp, err := rpc.Recv()
		if err != nil {
			return err
		}
		good()
		n := int(resp.Count)
		p.mu.Lock()
		if resp.FirstSequence != next || n > len(p.sent) {
			p.mu.Unlock()
			return &Error{Code: codes.Internal, Reason: "bad-answer", Message: "the proxy answered for events that were not sent"}
		}
		answered := p.sent[:n:n]
		p.sent = p.sent[n:]
		p.mu.Unlock()
		failed := map[uint64]error{}
		for _, f := range resp.Failed {
			failed[f.Sequence] = fromWire(f.Error)
		}
		for i, x := range answered {
			r := Result{Err: failed[next+uint64(i)]} //nolint:gosec // not negative
			if i < len(resp.Positions) {
				r.Position = resp.Positions[i]
			}
			p.answer(x, r)
		}
		next += uint64(n) //nolint:gosec // likewise
	}
}
