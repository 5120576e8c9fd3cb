package grpc

import (
	"context"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store/position"
)

// pulling is a mesh that has one event for who pulls, and remembers what it is
// asked.
type pulling struct {
	frontend.Mesh
	pull    delivery.PullRequest
	settled delivery.Settlement
}

var place = position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: 1}

func (p *pulling) Pull(_ context.Context, _ *policy.Principal, _, _ string, r delivery.PullRequest) (delivery.Pulled, error) {
	p.pull = r
	e := &event.Event{ID: "1", Source: "/s", Type: "t", Data: []byte("data")}
	return delivery.Pulled{Deliveries: []delivery.Delivery{{ID: 7, Topic: "orders", Position: place, Attempt: 2, Event: e}}, Handles: []string{"seven"}, AckTimeout: time.Minute}, nil
}

func (p *pulling) Settle(_ context.Context, _ *policy.Principal, _, _ string, x delivery.Settlement) ([]delivery.Unsettled, error) {
	p.settled = x
	return []delivery.Unsettled{{Handle: "six", Err: fault.New(fault.Unavailable, "test", "delivery-elsewhere", "it is of another proxy")}}, nil
}

// TestPull: generated code reads what is pulled, and what it says of it arrives.
func TestPull(t *testing.T) {
	mesh := &pulling{}
	api, _ := serve(t, func(m frontend.Mesh) frontend.Mesh { mesh.Mesh = m; return mesh })
	got, err := api.Pull(t.Context(), &eventsv1.PullRequest{Namespace: "demo", Subscription: "billing"})
	if err != nil {
		t.Fatal(err)
	}
	if mesh.pull != (delivery.PullRequest{Max: 1, Wait: 10 * time.Second}) {
		t.Errorf("%+v", mesh.pull)
	}
	d := got.Deliveries[0]
	if d.DeliveryId != "seven" || d.Topic != "orders" || d.Position != place.String() || d.Attempt != 2 || d.Event.GetId() != "1" || string(d.Event.GetBinaryData()) != "data" ||
		got.NodeId != "node" || got.AckTimeout.AsDuration() != time.Minute {
		t.Errorf("%v", got)
	}
	settled, err := api.Settle(t.Context(), &eventsv1.SettleRequest{Namespace: "demo", Subscription: "billing", Ack: []string{"a"},
		Nack:   []*eventsv1.PulledNack{{DeliveryIds: []string{"b"}, Reason: "busy"}, {DeliveryIds: []string{"c"}, Delay: durationpb.New(0)}},
		Extend: []*eventsv1.PulledExtend{{DeliveryIds: []string{"d"}}, {DeliveryIds: []string{"e"}, AckTimeout: durationpb.New(time.Second)}}})
	if err != nil {
		t.Fatal(err)
	}
	if want := (delivery.Settlement{Ack: []string{"a"}, Nack: []delivery.Nack{{Handles: []string{"b"}, Reason: "busy", Delay: -1}, {Handles: []string{"c"}}},
		Extend: []delivery.Extension{{Handles: []string{"d"}}, {Handles: []string{"e"}, Timeout: time.Second}}}); !reflect.DeepEqual(mesh.settled, want) {
		t.Errorf("%+v", mesh.settled)
	}
	if u := settled.Unsettled; len(u) != 1 || u[0].DeliveryId != "six" || u[0].Error.Reason != "delivery-elsewhere" || codes.Code(u[0].Error.Code) != codes.Unavailable { //nolint:gosec // a code
		t.Errorf("%v", settled)
	}
}

// TestBadPull: what is out of bounds is refused.
func TestBadPull(t *testing.T) {
	api, _ := serve(t)
	for _, req := range []*eventsv1.PullRequest{{MaxEvents: delivery.MaxPull + 1}, {MaxEvents: 1<<32 - 1}, {Wait: durationpb.New(-1)}, {Wait: durationpb.New(time.Hour)}, {Wait: &durationpb.Duration{Nanos: -5, Seconds: 3}}} {
		req.Namespace, req.Subscription = "demo", "billing"
		if _, err := api.Pull(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	for _, req := range []*eventsv1.SettleRequest{{}, {Ack: make([]string, delivery.MaxSettle+1)}, {Nack: []*eventsv1.PulledNack{{Delay: durationpb.New(-1)}}}, {Nack: []*eventsv1.PulledNack{{Delay: durationpb.New(25 * time.Hour)}}},
		{Extend: []*eventsv1.PulledExtend{{AckTimeout: durationpb.New(0)}}}, {Extend: []*eventsv1.PulledExtend{{AckTimeout: durationpb.New(2 * time.Hour)}}}} {
		req.Namespace, req.Subscription = "demo", "billing"
		if _, err := api.Settle(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	if _, err := api.Pull(t.Context(), &eventsv1.PullRequest{Namespace: "demo", Subscription: "billing"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v", err)
	}
}

// FuzzSettleRequest: what is said of deliveries is refused, or within bounds.
func FuzzSettleRequest(f *testing.F) {
	b, err := proto.Marshal(&eventsv1.SettleRequest{Namespace: "demo", Subscription: "billing", Ack: []string{"a"}, Nack: []*eventsv1.PulledNack{{DeliveryIds: []string{"b"}, Delay: durationpb.New(time.Second)}},
		Extend: []*eventsv1.PulledExtend{{DeliveryIds: []string{"c"}, AckTimeout: durationpb.New(time.Minute)}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &eventsv1.SettleRequest{}
		var err error
		if n := fuzztest.Allocated(func() { err = codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, req) }); n > 256*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		x, err := settlement(req)
		if err != nil {
			return
		}
		for _, n := range x.Nack {
			if n.Delay > delivery.MaxNackDelay {
				t.Errorf("a delay of %s", n.Delay)
			}
		}
		for _, e := range x.Extend {
			if e.Timeout < 0 || e.Timeout > delivery.MaxExtend {
				t.Errorf("an extension of %s", e.Timeout)
			}
		}
	})
}
