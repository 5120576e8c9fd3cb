package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// PublisherOptions change a Publisher. The zero value is its defaults.
type PublisherOptions struct {
	// MaxPending bounds the events that were handed over and not answered yet;
	// 1,024 when 0. Publish waits where there are as many.
	MaxPending int
	// OmitPositions spares the proxy to make position tokens: Wait gives "".
	OmitPositions bool
}

// Publisher publishes events of one topic over a stream, without waiting for one
// before the next. It reconnects by itself: events whose answer was lost with a
// connection are published again, in their order, with the same source and id.
// Its methods are safe for concurrent use.
type Publisher struct {
	c      *Client
	head   encoded // what each message begins with
	cancel context.CancelFunc
	room   chan struct{} // one element for each event in list
	more   chan struct{} // capacity 1: there is something to send
	over   chan struct{} // closed with err

	mu       sync.Mutex
	list     []*Pending // unanswered, in order
	sent     int        // how many of them the stream has
	messages []int      // how many of those each message has that is not answered
	closed   bool
	err      error
}

// Pending is an event that was handed over.
type Pending struct {
	event    mem.Buffer    // encoded; nil once it is answered
	failures int           // of streams that may be for it
	answered chan struct{} // closed with the rest
	position string
	err      error
}

// Done is closed once the outcome is known.
func (p *Pending) Done() <-chan struct{} { return p.answered }

// Wait waits for the outcome: the position token, or why the event was not kept.
func (p *Pending) Wait(ctx context.Context) (position string, err error) {
	select {
	case <-p.answered:
		return p.position, p.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// maxSend and maxSendBytes bound one message: proxies take 1,000 events and
// 8 MiB.
const (
	maxSend      = 256
	maxSendBytes = 1 << 20
	// ahead is how many messages are unanswered when only full ones follow: a proxy has
	// two at a time with the store, and what waits for it is better sent together.
	ahead = 3
)

// Publisher starts one. Close ends it.
func (c *Client) Publisher(namespace, topic string, o PublisherOptions) *Publisher {
	if o.MaxPending <= 0 {
		o.MaxPending = 1024
	}
	head := request(namespace, topic)
	if o.OmitPositions {
		head = append(head, omitPositions)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Publisher{c: c, head: slices.Clip(head), cancel: cancel, room: make(chan struct{}, o.MaxPending), more: make(chan struct{}, 1), over: make(chan struct{})}
	go func() {
		err := c.again(ctx, func(good func()) error {
			err := p.stream(ctx, good)
			p.suspect(err)
			return err
		})
		p.end(err)
	}()
	return p
}

// Publish hands an event over. It waits only while too many are unanswered. The
// error is of the Publisher as a whole, of ctx, or of an event that no proxy takes; then
// nothing was handed over.
func (p *Publisher) Publish(ctx context.Context, e event.Event) (*Pending, error) {
	if err := e.Validate(); err != nil {
		return nil, &Error{Code: codes.InvalidArgument, Reason: "bad-event", Message: err.Error()}
	}
	select {
	case p.room <- struct{}{}:
	case <-p.over:
		return nil, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	q := &Pending{event: encode(&e, p.c.pool), answered: make(chan struct{})}
	if err := append(p.head, q.event).fits(); err != nil {
		q.event.Free()
		<-p.room
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.err != nil {
		<-p.room
		if p.err != nil {
			return nil, p.err
		}
		return nil, errClosed
	}
	p.list = append(p.list, q)
	p.poke()
	return q, nil
}

var errClosed = errors.New("client: the publisher is closed")

func (p *Publisher) poke() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// Close takes no more events, waits until all are answered, and ends. Where ctx
// ends first, or the Publisher failed, the error says so; events that are
// unanswered then may have been kept.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	list := slices.Clone(p.list)
	p.mu.Unlock()
	var err error
	for _, q := range list {
		select {
		case <-q.answered:
		case <-ctx.Done():
			err = fmt.Errorf("client: events are unanswered: %w", ctx.Err())
		}
	}
	p.cancel()
	<-p.over
	if err == nil && !errors.Is(p.err, context.Canceled) {
		err = p.err
	}
	return err
}

// end fails what is unanswered.
func (p *Publisher) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	for _, q := range p.list {
		q.event.Free()
		q.event, q.err = nil, err
		close(q.answered)
		<-p.room
	}
	p.list = nil
	close(p.over)
}

// stream runs one stream: it sends what is unanswered, again and in order, and
// then what comes.
func (p *Publisher) stream(ctx context.Context, good func()) error {
	ctx, cancel := context.WithCancel(ctx)
	rpc, err := p.c.rpc.PublishStream(ctx)
	if err != nil {
		cancel()
		return err
	}
	p.mu.Lock()
	p.sent, p.messages = 0, nil
	p.mu.Unlock()
	p.poke()
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() { p.send(ctx, rpc) })
	next := uint64(1)
	for {
		resp, err := rpc.Recv()
		if err != nil {
			return err
		}
		if resp.FirstSequence != next {
			return fmt.Errorf("client: the proxy answers for event %d of the stream, %d is next", resp.FirstSequence, next)
		}
		next += uint64(resp.Count)
		if err := p.answer(resp); err != nil {
			return err
		}
		good()
	}
}

// maxFailures is how many streams may fail for one event.
const maxFailures = 5

// suspect gives an event its error for which streams fail again and again, though it was
// sent alone: nothing behind it would ever be published. A connection that is lost, and a
// proxy that takes nothing at the moment, are for none.
func (p *Publisher) suspect(err error) {
	e, ok := errors.AsType[*Error](toError(err))
	if !ok || e.Code != codes.Internal && (e.Code != codes.ResourceExhausted || e.Reason != "") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent == 0 {
		return
	}
	q := p.list[0]
	if q.failures == 0 {
		for _, q := range p.list[:p.sent] { // it may be any of them
			q.failures = 1
		}
		return
	}
	if q.failures++; q.failures == maxFailures {
		q.event.Free()
		q.event, q.err = nil, e
		close(q.answered)
		<-p.room
		p.list, p.sent = p.list[1:], 0
	}
}

// send sends until the stream fails or ctx ends.
func (p *Publisher) send(ctx context.Context, rpc grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) {
	for {
		runtime.Gosched() // who has just been answered may have more
		p.mu.Lock()
		rest := p.list[p.sent:]
		n, full := inMessage(rest)
		if len(p.list) > 0 && p.list[0].failures > 0 {
			n, full = 1-p.sent, true // alone: what fails then is for it
		}
		// What is little beside what is unanswered goes together with what comes until then.
		if !full && (len(p.messages) >= ahead || n < p.sent/2) {
			n = 0
		}
		var req encoded
		if n > 0 {
			req = append(make(encoded, 0, len(p.head)+n), p.head...)
			p.messages = append(p.messages, n)
		}
		for _, q := range rest[:n] {
			q.event.Ref() // gRPC frees what it has sent
			req = append(req, q.event)
		}
		p.sent += n
		p.mu.Unlock()
		if n > 0 {
			if rpc.SendMsg(req) != nil {
				return // Recv says why
			}
			continue
		}
		select {
		case <-p.more:
		case <-ctx.Done():
			return
		}
	}
}

// inMessage is how many of the first events go in one message; one always does. full:
// there is no room for more.
func inMessage(list []*Pending) (n int, full bool) {
	bytes := 0
	for i, q := range list {
		if bytes += q.event.Len(); i == maxSend || i > 0 && bytes > maxSendBytes {
			return i, true
		}
	}
	return len(list), len(list) == maxSend || bytes >= maxSendBytes
}

// answer settles the oldest events by what the proxy says of them.
func (p *Publisher) answer(resp *eventsv1.PublishStreamResponse) error {
	failed := map[uint64]error{}
	for _, f := range resp.Failed {
		failed[f.Sequence] = fromWire(f.Error)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := int(resp.Count)
	if n > p.sent {
		return fmt.Errorf("client: the proxy answers for %d events, %d were sent", n, p.sent)
	}
	for i, q := range p.list[:n] {
		q.err = failed[resp.FirstSequence+uint64(i)] //nolint:gosec // an index
		if q.err == nil && i < len(resp.Positions) {
			q.position = resp.Positions[i]
		}
		q.event.Free()
		q.event = nil
		close(q.answered)
		<-p.room
	}
	clear(p.list[:n])
	p.list, p.sent = p.list[n:], p.sent-n
	for n > 0 && n >= p.messages[0] {
		n, p.messages = n-p.messages[0], p.messages[1:]
	}
	if n > 0 {
		p.messages[0] -= n
	}
	p.poke()
	return nil
}
