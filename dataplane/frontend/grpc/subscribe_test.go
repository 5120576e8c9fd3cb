package grpc

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/fault"
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
