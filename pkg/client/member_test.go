package client

import (
	"context"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// losing is a proxy whose first stream delivers one event and is lost. It tells what it
// hears on the others.
type losing struct {
	eventsv1.UnimplementedEventServiceServer
	streams atomic.Int32
	lose    chan struct{}
	heard   chan *eventsv1.SubscribeRequest
	left    chan struct{} // for each of the others that has ended
}

func newLosing() *losing {
	return &losing{lose: make(chan struct{}), heard: make(chan *eventsv1.SubscribeRequest, 100), left: make(chan struct{}, 100)}
}

func (l *losing) Subscribe(rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]) error {
	n := l.streams.Add(1)
	for {
		req, err := rpc.Recv()
		if err != nil {
			l.left <- struct{}{}
			return nil //nolint:nilerr // the client has ended it
		}
		if n > 1 {
			l.heard <- req
		}
		if req.GetOpen() != nil {
			_ = rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Opened{Opened: &eventsv1.SubscribeOpened{}}})
			_ = rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Deliveries{Deliveries: &eventsv1.Deliveries{Deliveries: []*eventsv1.Delivery{
				{Id: uint64(n), Topic: "orders", Attempt: 1, Event: &cev1.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}}}}}})
		}
		if n == 1 {
			<-l.lose
			return status.Error(codes.Unavailable, "it is lost")
		}
	}
}

// hold has a Subscribe whose first handler goes on until ends, and loses its connection. over
// counts handlers that have ended.
func (l *losing) hold(t *testing.T, c *Client, credit int) (cancel func(), ends chan struct{}, ended chan error, over *atomic.Int32) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ends, ended, over = make(chan struct{}), make(chan error, 1), &atomic.Int32{}
	handed := make(chan struct{})
	var n atomic.Int32
	go func() {
		ended <- c.Subscribe(ctx, "demo", "billing", func(context.Context, Delivery) error {
			defer over.Add(1)
			if n.Add(1) == 1 {
				close(handed)
				<-ends
			}
			return nil
		}, SubscribeOptions{Credit: credit})
	}()
	<-handed
	close(l.lose)
	return cancel, ends, ended, over
}

// TestHandlersOfALostStream: a handler that goes on when its connection is lost keeps the
// client out of nothing but its own place, which the next connection has once it ends. What
// it returns is said nowhere.
func TestHandlersOfALostStream(t *testing.T) {
	for _, credit := range []int{2, 1} {
		proxy := newLosing()
		c := clientOf(t, proxy)
		cancel, ends, ended, over := proxy.hold(t, c, credit)
		if credit == 2 {
			if got := (<-proxy.heard).GetOpen(); got.GetCredit() != 1 {
				t.Errorf("while one of two runs it asks for %v", got)
			}
			if got := (<-proxy.heard).GetAck(); len(got.GetIds()) != 1 || got.Ids[0] != 2 {
				t.Errorf("of what comes beside it says %v", got)
			}
			close(ends)
			if got := (<-proxy.heard).GetCredit(); got.GetDeliveries() != 1 {
				t.Errorf("when it has ended it asks for %v", got)
			}
		} else {
			// It has no room for any.
			close(ends)
			if got := (<-proxy.heard).GetOpen(); got.GetCredit() != 1 || over.Load() == 0 {
				t.Errorf("after %d have ended it asks for %v", over.Load(), got)
			}
			if got := (<-proxy.heard).GetAck(); len(got.GetIds()) != 1 || got.Ids[0] != 2 {
				t.Errorf("then it says %v", got)
			}
		}
		cancel()
		<-ended
		if len(proxy.heard) > 0 {
			t.Errorf("it says %v too", <-proxy.heard)
		}
	}
}

// TestHandlersAreWaitedFor: Subscribe ends once those of a stream that was lost have, too.
func TestHandlersAreWaitedFor(t *testing.T) {
	proxy := newLosing()
	c := clientOf(t, proxy)
	cancel, ends, ended, over := proxy.hold(t, c, 2)
	for range 2 {
		<-proxy.heard // open, and what it says of the delivery
	}
	cancel()
	<-proxy.left
	for range 100 { // by then it would have ended
		_, _ = c.Publish(t.Context(), "demo", "orders", event.Event{ID: "1", Source: "/s", Type: "t"})
	}
	select {
	case err := <-ended:
		t.Fatalf("%v, while a handler runs", err)
	default:
	}
	close(ends)
	if <-ended; over.Load() != 2 {
		t.Error("it has ended before its handler")
	}
}
