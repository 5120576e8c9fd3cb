package client

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// handlers are those that run of one Subscribe: of the stream that is open, and of those
// before it, which may go on for long. It is safe for concurrent use.
type handlers struct {
	most int

	mu      sync.Mutex
	changed sync.Cond // with mu: one has ended, or the Subscribe is to
	running int
	now     *stream // that is open; nil between two
}

// stream is one stream of a Subscribe.
type stream struct {
	running int // handlers; guarded by handlers.mu

	settle chan settlement // to who sends; a stream has one sender
	last   chan struct{}   // closed when nothing more comes
	gone   chan struct{}   // closed when nothing more is sent
}

// say has x sent, unless the stream is over.
func (s *stream) say(x settlement) {
	select {
	case s.settle <- x:
	case <-s.gone:
	}
}

// send sends what is said until there is no more, or the stream is over.
func (s *stream) send(send func(*eventsv1.SubscribeRequest) error) {
	defer close(s.gone)
	for {
		var x settlement
		select {
		case x = <-s.settle:
		case <-s.last:
			select {
			case x = <-s.settle:
			default:
				return
			}
		}
		runtime.Gosched() // handlers that are about to end have their say with it
		if sendSettled(send, x, s.settle) != nil {
			return // the deliveries come again
		}
	}
}

// begin makes s the stream that is open, once there is room for a handler, and gives how
// many there is room for. s is granted more as those that run now end.
func (h *handlers) begin(ctx context.Context, s *stream) (credit int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.running == h.most && ctx.Err() == nil {
		h.changed.Wait()
	}
	h.now = s
	return h.most - h.running
}

// over is told that a stream has ended.
func (h *handlers) over() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = nil
}

// start waits until there is room for a handler of s; false where ctx has ended.
func (h *handlers) start(ctx context.Context, s *stream) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.running == h.most && ctx.Err() == nil {
		h.changed.Wait()
	}
	if ctx.Err() != nil {
		return false
	}
	h.running++
	s.running++
	return true
}

// end is told that a handler of s has ended. Another stream, of which it took one, is
// granted that.
func (h *handlers) end(s *stream) {
	h.mu.Lock()
	h.running--
	s.running--
	now := h.now
	h.changed.Broadcast()
	h.mu.Unlock()
	if now != nil && now != s {
		now.say(settlement{more: &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: 1}}}})
	}
}

// wait waits until no handler runs, of s or, where s is nil, of any.
func (h *handlers) wait(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s != nil && s.running > 0 || s == nil && h.running > 0 {
		h.changed.Wait()
	}
}

func (c *Client) subscribe(ctx context.Context, namespace, subscription string, h Handler, o SubscribeOptions) error {
	hs := &handlers{most: o.Credit}
	hs.changed.L = &hs.mu
	stop := context.AfterFunc(ctx, func() {
		hs.mu.Lock()
		defer hs.mu.Unlock()
		hs.changed.Broadcast()
	})
	defer stop()
	defer hs.wait(nil)
	return c.again(ctx, func(good func()) error {
		return c.member(ctx, namespace, subscription, h, o, hs, good)
	})
}

// member runs one stream.
func (c *Client) member(ctx context.Context, namespace, subscription string, h Handler, o SubscribeOptions, hs *handlers, good func()) error {
	s := &stream{settle: make(chan settlement, o.Credit), last: make(chan struct{}), gone: make(chan struct{})}
	credit := hs.begin(ctx, s)
	defer hs.over()
	// The stream outlives ctx for as long as handlers need to settle.
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Until there is a stream nothing is to be settled, and no proxy may ever answer.
	opened := context.AfterFunc(ctx, cancel)
	rpc, err := c.rpc.Subscribe(sctx)
	opened()
	if err != nil {
		return err
	}
	if err := rpc.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{
		Namespace: namespace, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: subscription}, Credit: uint32(credit)}}}); err != nil { //nolint:gosec // small
		_, err = rpc.Recv()
		return err
	}
	go s.send(rpc.Send)
	stop := context.AfterFunc(ctx, func() {
		hs.wait(s)
		close(s.last)
		<-s.gone
		_ = rpc.CloseSend()
	})
	err = receive(rpc, func(lent *delivered) {
		d := *lent
		if !hs.start(ctx, s) {
			return
		}
		go func() {
			defer hs.end(s)
			err := handle(ctx, h, &d, func(by time.Duration) { s.say(settlement{more: extension(d.id, by)}) })
			if !errors.Is(err, ErrUnsettled) {
				s.say(answer(d.id, err))
			}
		}()
	}, func(*eventsv1.SubscribeOpened) {
		good()
		if o.Connected != nil {
			o.Connected()
		}
	})
	if stop() {
		close(s.last) // the stream ended first: what its handlers say is lost
	}
	<-s.gone
	return err
}
