package grpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
)

// defective panics in one of its parts.
type defective struct {
	frontend.Mesh
	part   string
	mended atomic.Bool
	left   chan struct{} // a member has left
}

func (d *defective) fail(part string) {
	if d.part == part && !d.mended.Load() {
		panic("a defect")
	}
}

func (d *defective) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	d.fail("authenticate")
	return d.Mesh.Authenticate(ctx, c)
}

func (d *defective) Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) (func(context.Context) error, error) {
	wait, err := d.Mesh.Begin(ctx, who, namespace, topic, events, res)
	return func(ctx context.Context) error {
		if wait != nil {
			err = wait(ctx)
		}
		d.fail("wait")
		return err
	}, err
}

func (d *defective) Join(context.Context, *policy.Principal, string, string) (delivery.Member, error) {
	d.fail("join")
	return &defectiveMember{d: d}, nil
}

type defectiveMember struct {
	delivery.Member
	d *defective
}

func (m *defectiveMember) Credit(int) { m.d.fail("credit") }

func (*defectiveMember) AckTimeout() time.Duration { return time.Minute }

func (m *defectiveMember) Take([]delivery.Delivery, func()) (int, error) {
	m.d.fail("take")
	return 0, nil
}

func (m *defectiveMember) Close() { m.d.left <- struct{}{} }

// TestPanicsBeside: what panics beside the goroutine of a handler ends its stream with
// INTERNAL, and nothing else.
func TestPanicsBeside(t *testing.T) {
	publish := func(ctx context.Context, api eventsv1.EventServiceClient) error {
		st, err := api.PublishStream(ctx)
		for range 3 { // some wait for their turn
			if err == nil {
				err = st.Send(&eventsv1.PublishStreamRequest{Namespace: "demo", Topic: "orders", Events: []*cev1.CloudEvent{ce("1")}})
			}
		}
		if err == nil || errors.Is(err, io.EOF) { // it has ended: Recv says why
			_, err = st.Recv()
		}
		return err
	}
	subscribe := func(ctx context.Context, api eventsv1.EventServiceClient) error {
		st, err := api.Subscribe(ctx)
		if err == nil {
			_ = st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: "billing"}}}})
		}
		for err == nil {
			_, err = st.Recv()
		}
		return err
	}
	for name, tc := range map[string]struct {
		part string
		call func(context.Context, eventsv1.EventServiceClient) error
		left int
	}{
		"who publishes":        {"authenticate", publish, 0},
		"who subscribes":       {"authenticate", subscribe, 0},
		"a publish":            {"wait", publish, 0},
		"a member joins":       {"join", subscribe, 0},
		"a member is let know": {"credit", subscribe, 1},
		"a member takes":       {"take", subscribe, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := &defective{part: tc.part, left: make(chan struct{}, 2)}
			api, _ := serve(t, func(m frontend.Mesh) frontend.Mesh { d.Mesh = m; return d })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := tc.call(ctx, api); status.Code(err) != codes.Internal {
				t.Errorf("the stream ends with %v", err)
			}
			d.mended.Store(true)
			if _, err := api.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: ce("2")}); err != nil {
				t.Errorf("others: %v", err)
			}
			for range tc.left {
				select {
				case <-d.left:
				case <-ctx.Done():
					t.Error("it is a member still")
				}
			}
		})
	}
}

// unreadable panics where it is read.
type unreadable struct{ grpc.ServerStream }

func (unreadable) RecvMsg(any) error { panic("a defect") }

// TestPanicReading: bytes that cannot be decoded for a defect end their publish stream.
func TestPanicReading(t *testing.T) {
	in := &inbox{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	srv := New(Config{Log: slog.New(slog.DiscardHandler)})
	in.read(t.Context(), unreadable{}, srv.held, srv.cfg.Log)
	if _, err := in.take(t.Context(), &publishStream{server: srv}); status.Code(err) != codes.Internal {
		t.Errorf("the stream ends with %v", err)
	}
}
