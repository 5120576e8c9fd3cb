package grpc

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/position"
)

// brokenMember has nothing to deliver, and panics when something is acknowledged.
type brokenMember struct {
	delivery.Member
	mu   sync.Mutex
	left bool
	wake func()
}

func (*brokenMember) Credit(int) {}

func (*brokenMember) AckTimeout() time.Duration { return time.Minute }

func (*brokenMember) Ack(...uint64) int { panic("a defect") }

func (m *brokenMember) Take(_ []delivery.Delivery, wake func()) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left {
		return 0, fault.New(fault.Canceled, "test", "closed", "the member has left")
	}
	m.wake = wake
	return 0, nil
}

func (m *brokenMember) Close() {
	m.mu.Lock()
	m.left = true
	wake := m.wake
	m.wake = nil
	m.mu.Unlock()
	if wake != nil {
		wake()
	}
}

type brokenMembers struct {
	frontend.Mesh
	m *brokenMember
}

func (b brokenMembers) Join(context.Context, *policy.Principal, string, string) (delivery.Member, error) {
	return b.m, nil
}

// TestPanicLeaves: a stream that panics at what its client says ends with INTERNAL, and is a
// member no more: what it had is for others.
func TestPanicLeaves(t *testing.T) {
	m := &brokenMember{}
	api, _ := serve(t, func(mesh frontend.Mesh) frontend.Mesh { return brokenMembers{mesh, m} })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := api.Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*eventsv1.SubscribeRequest{
		{Message: &eventsv1.SubscribeRequest_Open{Open: &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 1, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: "billing"}}}},
		{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: []uint64{1}}}},
	} {
		if err := st.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	if resp, err := st.Recv(); err != nil || resp.GetOpened() == nil {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := st.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("the stream ends with %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.left {
		t.Error("it is a member still")
	}
}

// TestTailGoesOn: a tail that goes on says where it begins in partitions of which it has
// no position: where it began, which for the end is the time that its stream told.
func TestTailGoesOn(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	publish := func(n int) {
		t.Helper()
		if _, err := api.PublishBatch(ctx, &eventsv1.PublishBatchRequest{Namespace: "demo", Topic: "orders", Events: ces(n)}); err != nil {
			t.Fatal(err)
		}
	}
	tail := func(after *eventsv1.Positions) (eventsv1.EventService_SubscribeClient, *timestamppb.Timestamp) {
		t.Helper()
		st, err := api.Subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		open := &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 100, Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"orders"}, From: &eventsv1.Tail_After{After: after}}}}
		if err := st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		resp, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return st, resp.GetOpened().GetTime()
	}
	_, end := tail(&eventsv1.Positions{})
	publish(3) // nobody has heard it
	for name, after := range map[string]*eventsv1.Positions{"time": {Others: &eventsv1.Positions_Time{Time: end}}, "beginning": {Others: &eventsv1.Positions_Beginning{Beginning: true}}} {
		st, _ := tail(after)
		for got := 0; got < 3; {
			resp, err := st.Recv()
			if err != nil {
				t.Fatalf("%s: of 3 events %d came: %v", name, got, err)
			}
			got += len(resp.GetDeliveries().GetDeliveries())
		}
	}
}

// TestTailGoesOnWithoutATopic: a tail of a pattern that says where the rest began goes on
// where a topic that it had read is gone meanwhile; one that begins there is refused.
func TestTailGoesOnWithoutATopic(t *testing.T) {
	api, _ := serve(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	gone := position.Token{TopicUID: "99999999-9999-4999-8999-999999999999", Epoch: 1}.String()
	for _, tc := range []struct {
		after *eventsv1.Positions
		want  codes.Code
	}{
		{&eventsv1.Positions{Tokens: []string{gone}, Others: &eventsv1.Positions_Time{Time: timestamppb.Now()}}, codes.OK},
		{&eventsv1.Positions{Tokens: []string{gone}}, codes.FailedPrecondition},
	} {
		st, err := api.Subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		open := &eventsv1.SubscribeOpen{Namespace: "demo", Credit: 100, Source: &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{">"}, From: &eventsv1.Tail_After{After: tc.after}}}}
		if err := st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Recv(); status.Code(err) != tc.want {
			t.Errorf("%v: %v", tc.after, err)
		}
	}
}
