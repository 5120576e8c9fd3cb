package grpc

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Pull gives events of a Subscription.
func (s *Server) Pull(ctx context.Context, req *eventsv1.PullRequest) (*eventsv1.PullResponse, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	r, err := pullRequest(req)
	if err != nil {
		return nil, toStatus(err)
	}
	p, err := s.cfg.Mesh.Pull(ctx, who, req.Namespace, req.Subscription, r)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &eventsv1.PullResponse{AckTimeout: durationpb.New(p.AckTimeout), NodeId: s.cfg.NodeID}
	for i := range p.Deliveries {
		resp.Deliveries = append(resp.Deliveries, pulled(&p.Deliveries[i], p.Handles[i]))
	}
	return resp, nil
}

// pullRequest reads what is wanted; its bounds are delivery's.
func pullRequest(req *eventsv1.PullRequest) (delivery.PullRequest, error) {
	r := delivery.PullRequest{Max: delivery.DefaultPull, Wait: delivery.DefaultPullWait}
	if req.MaxEvents != 0 {
		r.Max = int(min(req.MaxEvents, delivery.MaxPull+1))
	}
	if req.Wait != nil {
		if req.Wait.CheckValid() != nil {
			return r, fault.New(fault.Invalid, "grpc", "bad-pull", "the wait is not valid")
		}
		r.Wait = req.Wait.AsDuration()
	}
	return r, nil
}

// pulled is one delivery. The event goes in as the bytes of its field, which on the
// wire is the same.
func pulled(d *delivery.Delivery, handle string) *eventsv1.PulledDelivery {
	out := &eventsv1.PulledDelivery{DeliveryId: handle, Topic: d.Topic, Position: d.Position.String(), Attempt: uint32(d.Attempt)} //nolint:gosec // attempts begin at 1
	b := protowire.AppendTag(nil, 5, protowire.BytesType)
	out.ProtoReflect().SetUnknown(protowire.AppendBytes(b, cloudevents.AppendProto(nil, d.Event)))
	return out
}

// Settle settles what was pulled.
func (s *Server) Settle(ctx context.Context, req *eventsv1.SettleRequest) (*eventsv1.SettleResponse, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	x, err := settlement(req)
	if err != nil {
		return nil, toStatus(err)
	}
	failed, err := s.cfg.Mesh.Settle(ctx, who, req.Namespace, req.Subscription, x)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &eventsv1.SettleResponse{}
	for _, u := range failed {
		resp.Unsettled = append(resp.Unsettled, &eventsv1.Unsettled{DeliveryId: u.Handle, Error: toError(u.Err)})
	}
	return resp, nil
}

// settlement reads what became of deliveries.
func settlement(req *eventsv1.SettleRequest) (x delivery.Settlement, err error) {
	x.Ack = req.Ack
	for _, k := range req.Nack {
		n := delivery.Nack{Handles: k.DeliveryIds, Reason: k.Reason}
		if n.Delay, err = nackDelay(k.Delay); err != nil {
			return x, err
		}
		x.Nack = append(x.Nack, n)
	}
	for _, e := range req.Extend {
		t := delivery.Extension{Handles: e.DeliveryIds, Timeout: e.AckTimeout.AsDuration()}
		if e.AckTimeout != nil && (e.AckTimeout.CheckValid() != nil || t.Timeout <= 0 || t.Timeout > delivery.MaxExtend) {
			return x, fault.New(fault.Invalid, "grpc", "bad-delay", "an ack_timeout is more than 0s and at most %s", duration.Text(delivery.MaxExtend))
		}
		x.Extend = append(x.Extend, t)
	}
	return x, nil
}
