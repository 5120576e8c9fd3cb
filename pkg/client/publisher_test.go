package client

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// slow is a proxy that answers a message when it is told to.
type slow struct {
	eventsv1.UnimplementedEventServiceServer
	messages chan *eventsv1.PublishStreamRequest
	answers  chan struct{}
}

func (s *slow) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	next := uint64(1)
	read := make(chan int, 1000)
	go func() {
		defer close(read)
		for {
			req, err := rpc.Recv()
			if err != nil {
				return
			}
			read <- len(req.Events)
			s.messages <- req
		}
	}()
	for range s.answers {
		n, ok := <-read
		if !ok {
			return nil
		}
		if err := rpc.Send(&eventsv1.PublishStreamResponse{FirstSequence: next, Count: uint32(n)}); err != nil {
			return err
		}
		next += uint64(n)
	}
	return nil
}

// clientOf makes a client of a proxy.
func clientOf(t *testing.T, proxy eventsv1.EventServiceServer, with ...func(*Config)) *Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	eventsv1.RegisterEventServiceServer(server, proxy)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	cfg := Config{Addresses: []string{l.Addr().String()}}
	for _, w := range with {
		w(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestPublisherGathers: what is published while three messages are unanswered goes together
// in one, which is full before another follows; what is little beside what is unanswered
// does so before.
func TestPublisherGathers(t *testing.T) {
	proxy := &slow{messages: make(chan *eventsv1.PublishStreamRequest, 1000), answers: make(chan struct{}, 1000)}
	c := clientOf(t, proxy)
	defer close(proxy.answers)
	p := c.Publisher("demo", "orders", PublisherOptions{OmitPositions: true})
	published, received := 0, 0
	publish := func(n int) {
		for range n {
			published++
			if _, err := p.Publish(t.Context(), event.Event{ID: fmt.Sprint(published), Source: "/s", Type: "t", Data: make([]byte, 2000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	expect := func(n int) {
		t.Helper()
		req := <-proxy.messages
		if len(req.Events) != n || !req.OmitPositions {
			t.Fatalf("a message has %d events, %d expected; without positions: %v", len(req.Events), n, req.OmitPositions)
		}
		for _, e := range req.Events {
			if received++; e.Id != fmt.Sprint(received) {
				t.Fatalf("event %s comes as the %d.", e.Id, received)
			}
		}
	}
	// gathers waits until the publisher has looked at what there is, and sent nothing.
	gathers := func() {
		t.Helper()
		for range 100 {
			p.poke()
			for len(p.more) > 0 {
				runtime.Gosched()
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.list) - p.sent; n == 0 {
			t.Fatal("nothing waits")
		}
	}
	publish(1)
	expect(1)
	for range 2 {
		publish(1)
		expect(1) // a second and a third one wait for nothing
	}
	for range 100 {
		publish(1)
		for len(p.more) > 0 { // until it has looked
			runtime.Gosched()
		}
	}
	proxy.answers <- struct{}{}
	expect(100)
	publish(maxSend + 10)
	expect(maxSend) // a full one does not either
	for range 3 {
		proxy.answers <- struct{}{}
	}
	gathers() // 256 are unanswered
	publish(maxSend/2 - 11)
	gathers()
	publish(1)
	expect(maxSend / 2)
	for range 10 {
		proxy.answers <- struct{}{}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// failing is a proxy whose stream fails for one event, and which answers others.
type failing struct {
	eventsv1.UnimplementedEventServiceServer
	id string
}

func (f *failing) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	for next := uint64(1); ; {
		req, err := rpc.Recv()
		if err != nil {
			return err
		}
		for _, e := range req.Events {
			if e.Id == f.id {
				return status.Error(codes.Internal, "a defect")
			}
		}
		if err := rpc.Send(&eventsv1.PublishStreamResponse{FirstSequence: next, Count: uint32(len(req.Events))}); err != nil {
			return err
		}
		next += uint64(len(req.Events))
	}
}

// TestPublisherGoesOn: an event for which streams fail again and again has an error in the
// end, and no other has.
func TestPublisherGoesOn(t *testing.T) {
	const n, bad = 40, 23
	c := clientOf(t, &failing{id: fmt.Sprint(bad)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only guards against hanging
	defer cancel()
	p := c.Publisher("demo", "orders", PublisherOptions{})
	var all []*Pending
	for i := range n {
		q, err := p.Publish(ctx, event.Event{ID: fmt.Sprint(i), Source: "/s", Type: "t"})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, q)
	}
	for i, q := range all {
		if _, err := q.Wait(ctx); i == bad && code(err) != codes.Internal || i != bad && err != nil {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}
