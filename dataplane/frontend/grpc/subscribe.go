package grpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/fault"
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
	ctx, cancel := context.WithCancel(rpc.Context())
	defer cancel()
	who, err := s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	first, err := rpc.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return toStatus(fault.New(fault.Invalid, "grpc", "no-open", "the first message of the stream is open"))
	}
	credit, err := checkCredit(open.Credit)
	if err != nil {
		return toStatus(err)
	}
	opened := &eventsv1.SubscribeOpened{NodeId: s.cfg.NodeID}
	var source receiver
	switch src := open.Source.(type) {
	case *eventsv1.SubscribeOpen_Subscription:
		m, err := s.cfg.Mesh.Join(ctx, who, open.Namespace, src.Subscription)
		if err != nil {
			return toStatus(err)
		}
		defer m.Close()
		m.Credit(credit)
		opened.AckTimeout = durationpb.New(m.AckTimeout())
		source = memberReceiver{m}
	case *eventsv1.SubscribeOpen_Tail:
		req, err := tailRequest(open.Namespace, src.Tail)
		if err != nil {
			return toStatus(err)
		}
		t, err := s.cfg.Mesh.Tail(ctx, who, req)
		if err != nil {
			return toStatus(err)
		}
		defer t.Close()
		r := &tailReceiver{t: t, granted: make(chan struct{}, 1)}
		r.Credit(credit)
		source = r
	default:
		return toStatus(fault.New(fault.Invalid, "grpc", "no-source", "open names a subscription or a tail"))
	}
	if err := rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	// One goroutine reads what the client says, this one writes.
	said := make(chan error, 1)
	go func() {
		said <- listen(rpc, source)
		cancel()
	}()
	err = write(ctx, rpc, source)
	select {
	case serr := <-said:
		if serr == nil || errors.Is(serr, io.EOF) {
			return nil
		}
		if _, ours := errors.AsType[*fault.Error](serr); ours {
			return toStatus(serr)
		}
		return serr
	default:
		return err
	}
}

// receiver is a member or a tail.
type receiver interface {
	Next(ctx context.Context, dst []delivery.Delivery) (int, error)
	Credit(n int)
	settle(req *eventsv1.SubscribeRequest) error
}

// write sends deliveries until the stream ends.
func write(ctx context.Context, rpc grpc.ServerStream, source receiver) error {
	dst := make([]delivery.Delivery, maxDeliveries)
	for {
		n, err := source.Next(ctx, dst)
		if err != nil {
			return toStatus(err)
		}
		for from := 0; from < n; {
			to, size := from, 0
			for to < n && (to == from || size+dst[to].Event.Size() <= maxDeliveryBytes) {
				size += dst[to].Event.Size()
				to++
			}
			if err := rpc.SendMsg(&deliveries{dst[from:to]}); err != nil {
				return err
			}
			from = to
		}
		clear(dst[:n])
	}
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
		delay := x.Nack.GetDelay().AsDuration()
		if x.Nack.Delay == nil {
			delay = -1
		} else if delay < 0 || delay > maxNackDelay {
			return fault.New(fault.Invalid, "grpc", "bad-delay", "a delay is 0 to %s", maxNackDelay)
		}
		m.Nack(x.Nack.Reason, delay, x.Nack.Ids...)
	case *eventsv1.SubscribeRequest_Extend:
		m.Extend(x.Extend.GetAckTimeout().AsDuration(), x.Extend.Ids...)
	default:
		return fault.New(fault.Invalid, "grpc", "bad-message", "after open a client sends credit, ack, nack and extend")
	}
	return nil
}

// maxNackDelay bounds the delay that a client may ask for.
const maxNackDelay = 24 * time.Hour

// tailReceiver counts the credit of a tail, where nothing is settled.
type tailReceiver struct {
	t       delivery.Tail
	granted chan struct{} // capacity 1

	mu     sync.Mutex
	credit int
}

func (r *tailReceiver) Credit(n int) {
	r.mu.Lock()
	r.credit = min(r.credit+n, maxCredit)
	r.mu.Unlock()
	select {
	case r.granted <- struct{}{}:
	default:
	}
}

func (r *tailReceiver) Next(ctx context.Context, dst []delivery.Delivery) (int, error) {
	for {
		r.mu.Lock()
		room := min(r.credit, len(dst))
		r.mu.Unlock()
		if room > 0 {
			n, err := r.t.Next(ctx, dst[:room])
			r.mu.Lock()
			r.credit -= n
			r.mu.Unlock()
			return n, err
		}
		// Without credit the tail may still end.
		select {
		case <-r.granted:
		case <-r.t.Ended():
			_, err := r.t.Next(ctx, dst)
			return 0, err
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

func (r *tailReceiver) settle(*eventsv1.SubscribeRequest) error {
	return fault.New(fault.Invalid, "grpc", "bad-message", "on a tail a client sends only credit after open")
}

// tailRequest reads what to tail.
func tailRequest(namespace string, t *eventsv1.Tail) (delivery.TailRequest, error) {
	req := delivery.TailRequest{Namespace: namespace, Topics: t.Topics, From: store.Start{End: true}}
	switch from := t.From.(type) {
	case *eventsv1.Tail_Beginning:
		if from.Beginning {
			req.From = store.Start{}
		}
	case *eventsv1.Tail_Time:
		if err := from.Time.CheckValid(); err != nil {
			return req, fault.New(fault.Invalid, "grpc", "bad-from", "the time is not valid")
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
	}
	return req, nil
}
