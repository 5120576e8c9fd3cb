package grpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// maxDeliveries and maxDeliveryBytes bound one message to a receiver.
const (
	maxDeliveries    = 256
	maxDeliveryBytes = 1 << 20
	maxCredit        = 1 << 16
)

// Subscribe receives: as a member of a Subscription, or as a tail.
func (s *Server) Subscribe(rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]) error {
	var (
		source receiver
		leave  func()
	)
	err := s.aside(rpc.Context(), func() (err error) {
		source, leave, err = s.open(rpc.Context(), rpc)
		return err
	})
	if err != nil {
		return err
	}
	// This goroutine reads what the client says. There is one that writes only while
	// there is something to write.
	out := &outflow{rpc: rpc, log: s.cfg.Log, source: source, dst: frontend.Room(nil, 0, maxDeliveries)}
	out.going.Add(1)
	out.run = out.flow
	out.wake = func() { go out.run() }
	defer func() { // also where what the client says panics
		out.over.Store(true)
		leave()
		out.going.Wait()
	}()
	out.wake()
	err = listen(rpc, source)
	if out.over.CompareAndSwap(false, true) {
		switch _, ours := errors.AsType[*fault.Error](err); {
		case ours:
			err = toStatus(err)
		case errors.Is(err, io.EOF):
			err = nil
		default:
			source.Lost()
		}
		return err
	}
	out.going.Wait() // it has ended the listening
	if out.lost {
		source.Lost()
	}
	return out.err
}

// open joins or begins the tail that the first message asks for, and says so. leave
// must be called where there is no error; where there is one, also a defect, it was.
func (s *Server) open(ctx context.Context, rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]) (source receiver, leave func(), err error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, nil, toStatus(err)
	}
	first, err := rpc.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	open := first.GetOpen()
	if open == nil {
		return nil, nil, toStatus(fault.New(fault.Invalid, "grpc", "no-open", "the first message of the stream is open"))
	}
	credit, err := checkCredit(open.Credit)
	if err != nil {
		return nil, nil, toStatus(err)
	}
	done := false
	defer func() {
		if leave != nil && !done {
			leave()
		}
	}()
	opened := &eventsv1.SubscribeOpened{NodeId: s.cfg.NodeID}
	switch src := open.Source.(type) {
	case *eventsv1.SubscribeOpen_Subscription:
		m, err := s.cfg.Mesh.Join(ctx, who, open.Namespace, src.Subscription)
		if err != nil {
			return nil, nil, toStatus(err)
		}
		leave = m.Close
		m.Credit(credit)
		opened.AckTimeout = durationpb.New(m.AckTimeout())
		source = memberReceiver{m}
	case *eventsv1.SubscribeOpen_Tail:
		req, err := tailRequest(open.Namespace, src.Tail)
		if err != nil {
			return nil, nil, toStatus(err)
		}
		opened.Time = timestamppb.New(s.cfg.Clock.Now().Truncate(time.Millisecond)) // as stores have it; before the end is looked for
		t, err := s.cfg.Mesh.Tail(ctx, who, req)
		if err != nil {
			return nil, nil, toStatus(err)
		}
		leave = t.Close
		t.Credit(credit)
		source = tailReceiver{t}
	default:
		return nil, nil, toStatus(fault.New(fault.Invalid, "grpc", "no-source", "open names a subscription or a tail"))
	}
	if err := rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Opened{Opened: opened}}); err != nil {
		return nil, leave, err
	}
	done = true
	return source, leave, nil
}

// aside runs f on a stack of its own and waits for it. What goes deep once would leave
// the stack of a goroutine that then waits for long at twice the size, for each stream. A
// defect is f's error, as it is that of a handler.
func (s *Server) aside(ctx context.Context, f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer listener.Survive(ctx, s.cfg.Log, &err)
		err = f()
	}()
	<-done
	return err
}

// receiver is a member or a tail.
type receiver interface {
	Take(dst []delivery.Delivery, wake func()) (int, error)
	Credit(n int)
	// Lost says that the client went without having ended the stream.
	Lost()
	settle(req *eventsv1.SubscribeRequest) error
}

// outflow sends deliveries until the source or the stream has ended. While there is
// nothing to send it has no goroutine.
type outflow struct {
	rpc    grpc.ServerStream
	log    *slog.Logger
	source receiver
	run    func() // flow
	wake   func() // begins it
	dst    []delivery.Delivery
	over   atomic.Bool    // taken by who says why the stream ends: the handler or flow
	going  sync.WaitGroup // until it has ended, for the reason below
	err    error
	lost   bool // the client was gone
}

// flow sends what there is. Once Take had nothing, another one may have begun. It is not the
// handler's goroutine, which survives defects; its stack is as flat as it can be, since there
// is a new one for each time that something comes.
func (o *outflow) flow() {
	var err error
	defer func() {
		if err == nil {
			return
		}
		o.err, o.lost = err, o.rpc.Context().Err() != nil
		if o.over.CompareAndSwap(false, true) {
			finish(o.rpc.Context(), err)
		}
		o.going.Done()
	}()
	defer listener.Survive(o.rpc.Context(), o.log, &err)
	for {
		var n int
		if n, err = o.source.Take(o.dst, o.wake); err != nil {
			err = toStatus(err)
			return
		}
		if n == 0 {
			return // o is another one's
		}
		if err = send(o.rpc, o.dst[:n]); err != nil {
			return
		}
		o.dst = frontend.Room(o.dst, n, maxDeliveries)
	}
}

// finish ends a stream whose handler waits for the client to say something: then it
// receives nothing more, and what it returns is not sent any more.
func finish(ctx context.Context, err error) {
	stream := grpc.ServerTransportStreamFromContext(ctx)
	_ = stream.(interface{ WriteStatus(s *status.Status) error }).WriteStatus(status.Convert(err)) //nolint:forcetypeassert // the transport's is one
}

// send sends deliveries in messages that are not too large.
func send(rpc grpc.ServerStream, list []delivery.Delivery) error {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && (n == 0 || size+list[n].Event.Size() <= maxDeliveryBytes) {
			size += list[n].Event.Size()
			n++
		}
		if err := rpc.SendMsg(&deliveries{list[:n], size}); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// listen takes what the client says until it has ended.
func listen(rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse], source receiver) error {
	for {
		req, err := rpc.Recv()
		if err != nil {
			return err
		}
		if c := req.GetCredit(); c != nil {
			n, err := checkCredit(c.Deliveries)
			if err != nil {
				return err
			}
			source.Credit(n)
			continue
		}
		if err := source.settle(req); err != nil {
			return err
		}
	}
}

func checkCredit(n uint32) (int, error) {
	if n > maxCredit {
		return 0, fault.New(fault.Invalid, "grpc", "bad-credit", "a credit is at most %d deliveries", maxCredit)
	}
	return int(n), nil
}

type memberReceiver struct{ delivery.Member }

func (m memberReceiver) settle(req *eventsv1.SubscribeRequest) error {
	switch x := req.Message.(type) {
	case *eventsv1.SubscribeRequest_Ack:
		m.Ack(x.Ack.Ids...)
	case *eventsv1.SubscribeRequest_Nack:
		delay, err := nackDelay(x.Nack.Delay)
		if err != nil {
			return err
		}
		m.Nack(x.Nack.Reason, delay, x.Nack.Ids...)
	case *eventsv1.SubscribeRequest_Extend:
		m.Extend(x.Extend.GetAckTimeout().AsDuration(), x.Extend.Ids...)
	default:
		return fault.New(fault.Invalid, "grpc", "bad-message", "after open a client sends credit, ack, nack and extend")
	}
	return nil
}

// nackDelay is when to deliver again; negative for the schedule's.
func nackDelay(d *durationpb.Duration) (time.Duration, error) {
	delay := d.AsDuration()
	switch {
	case d == nil:
		return -1, nil
	case d.CheckValid() != nil || delay < 0 || delay > delivery.MaxNackDelay:
		return 0, fault.New(fault.Invalid, "grpc", "bad-delay", "a delay is 0s to %s", duration.Text(delivery.MaxNackDelay))
	}
	return delay, nil
}

type tailReceiver struct{ delivery.Tail }

func (tailReceiver) Lost() {} // it settles nothing

func (tailReceiver) settle(*eventsv1.SubscribeRequest) error {
	return fault.New(fault.Invalid, "grpc", "bad-message", "on a tail a client sends only credit after open")
}

var errBadTime = fault.New(fault.Invalid, "grpc", "bad-from", "the time is not valid")

// tailRequest reads what to tail.
func tailRequest(namespace string, t *eventsv1.Tail) (delivery.TailRequest, error) {
	req := delivery.TailRequest{Namespace: namespace, Topics: t.Topics, From: store.Start{End: true}, Credit: true}
	switch from := t.From.(type) {
	case *eventsv1.Tail_Beginning:
		if from.Beginning {
			req.From = store.Start{}
		}
	case *eventsv1.Tail_Time:
		if err := from.Time.CheckValid(); err != nil {
			return req, errBadTime
		}
		req.From = store.Start{At: from.Time.AsTime()}
	case *eventsv1.Tail_After:
		if len(from.After.GetTokens()) > 4096 {
			return req, fault.New(fault.Invalid, "grpc", "bad-position", "there are more than 4096 positions")
		}
		for _, text := range from.After.GetTokens() {
			tok, err := position.Parse(text)
			if err != nil {
				return req, fault.New(fault.Invalid, "grpc", "bad-position", "a position is not one that this API gave")
			}
			req.After = append(req.After, tok)
		}
		req.Resumes = from.After.GetOthers() != nil
		switch others := from.After.GetOthers().(type) {
		case *eventsv1.Positions_Beginning:
			if others.Beginning {
				req.From = store.Start{}
			}
		case *eventsv1.Positions_Time:
			if err := others.Time.CheckValid(); err != nil {
				return req, errBadTime
			}
			req.From = store.Start{At: others.Time.AsTime()}
		}
	}
	return req, nil
}
