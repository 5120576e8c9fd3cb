package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

// bareCommand, as the first argument, makes this program the transports without a
// proxy behind them: net/http that reads a body and answers, and grpc-go with the
// generated code of the same service. They check nothing and keep nothing.
const bareCommand = "bare-transport"

// bare is that process.
type bare struct {
	http, grpc, ops string
	process         *servers.Process
	conn            *grpc.ClientConn
}

func (r *run) startBare(ctx context.Context) (_ *bare, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bare{}
	if err := addresses(&b.http, &b.grpc, &b.ops); err != nil {
		return nil, err
	}
	b.process = &servers.Process{Name: "bare transports", Log: filepath.Join(r.dir, "bare.log"), Ready: answers("http://" + b.http + "/"), Args: []string{self, bareCommand, b.http, b.grpc}}
	if err := b.process.Start(ctx); err != nil {
		return nil, err
	}
	if b.conn, err = dial(b.grpc); err != nil {
		return nil, errors.Join(err, b.process.Stop())
	}
	return b, nil
}

func (b *bare) stop() error { return errors.Join(b.conn.Close(), b.process.Stop()) }

// answer is a position token as the proxy gives them.
const answer = "AQ0ZIb6ZIEbAn1YPqf4iM7EBgICAgAEA"

// serveBare is the process: args are the addresses for HTTP and for gRPC.
func serveBare(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("it takes two addresses")
	}
	defer proxycmd.Ballast()() // as the proxy has it
	onHTTP, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	onGRPC, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	overHTTP := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:gosec // no limits: it is bare
		if _, err := io.ReadAll(r.Body); err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"position":"`+answer+`"}`+"\n")
	})}
	overGRPC := grpc.NewServer(grpc.ReadBufferSize(64<<10), grpc.WriteBufferSize(64<<10))
	eventsv1.RegisterEventServiceServer(overGRPC, bareService{})
	ended := make(chan error, 2)
	go func() { ended <- overHTTP.Serve(onHTTP) }()
	go func() { ended <- overGRPC.Serve(onGRPC) }()
	select {
	case err := <-ended:
		return fmt.Errorf("a server ended: %w", err)
	case <-ctx.Done():
	}
	overGRPC.Stop()
	err = overHTTP.Close()
	<-ended
	<-ended
	return err
}

type bareService struct {
	eventsv1.UnimplementedEventServiceServer
}

func (bareService) Publish(context.Context, *eventsv1.PublishRequest) (*eventsv1.PublishResponse, error) {
	return &eventsv1.PublishResponse{Position: answer}, nil
}

func (bareService) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	next := uint64(1)
	for {
		req, err := rpc.Recv()
		if err != nil {
			return err
		}
		n := len(req.Events)
		if n == 0 {
			continue
		}
		if err := rpc.Send(&eventsv1.PublishStreamResponse{FirstSequence: next, Count: uint32(n)}); err != nil { //nolint:gosec // small
			return err
		}
		next += uint64(n)
	}
}

// Subscribe delivers one event again and again, as far as the credit reaches; what
// is acknowledged counts as credit again. The messages are made beforehand and as
// large as those of the proxy at most.
func (bareService) Subscribe(rpc grpc.BidiStreamingServer[eventsv1.SubscribeRequest, eventsv1.SubscribeResponse]) error {
	const most = 256
	list := make([]*eventsv1.Delivery, most)
	for i := range list {
		list[i] = &eventsv1.Delivery{Id: uint64(1000000 + i), Topic: "mesh", Position: answer, Attempt: 1, Event: &cev1.CloudEvent{Id: "p0-0", Source: source, SpecVersion: "1.0", Type: "bench", //nolint:gosec // small
			Data: &cev1.CloudEvent_BinaryData{BinaryData: bytes.Repeat([]byte{'x'}, len(stored.Data))}}}
	}
	granted := make(chan int, 1024)
	ended := make(chan error, 1)
	go func() {
		for {
			req, err := rpc.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case granted <- int(req.GetOpen().GetCredit()) + len(req.GetAck().GetIds()) + int(req.GetCredit().GetDeliveries()):
			case <-rpc.Context().Done():
			}
		}
	}()
	for credit := 0; ; {
		select {
		case n := <-granted:
			credit += n
		case err := <-ended:
			return err
		}
		for credit > 0 {
			n := min(credit, most)
			if err := rpc.Send(&eventsv1.SubscribeResponse{Message: &eventsv1.SubscribeResponse_Deliveries{Deliveries: &eventsv1.Deliveries{Deliveries: list[:n]}}}); err != nil {
				return err
			}
			credit -= n
		}
	}
}
