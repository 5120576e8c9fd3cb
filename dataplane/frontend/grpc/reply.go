package grpc

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// request publishes one event and answers the reply to it.
func (s *Server) request(ctx context.Context, r *publishRequest, res []frontend.Result) (any, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	timeout, err := r.wait()
	if err == nil {
		err = res[0].Err
	}
	if err != nil {
		return nil, toStatus(err)
	}
	// The event is the mesh's, and the buffer does not wait for its reply.
	e := r.events[0]
	e.Data = slices.Clone(e.Data)
	r.events[0] = event.Event{}
	r.buf.Free()
	r.buf = nil
	reply, err := s.cfg.Requests.Request(ctx, who, r.namespace, r.topic, e, timeout)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &eventsv1.RequestResponse{}
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	out.ProtoReflect().SetUnknown(protowire.AppendBytes(b, cloudevents.AppendProto(nil, &reply)))
	return out, nil
}

// wait is how long a request waits; 0 where it does not say.
func (r *publishRequest) wait() (time.Duration, error) {
	if r.timeout == nil {
		return 0, nil
	}
	var d durationpb.Duration
	if proto.Unmarshal(r.timeout, &d) != nil || d.CheckValid() != nil || d.AsDuration() <= 0 {
		return 0, fault.New(fault.Invalid, "grpc", "bad-timeout", "timeout is a time of more than 0s")
	}
	return d.AsDuration(), nil
}

// reply takes a reply to its request.
func (s *Server) reply(ctx context.Context, r *publishRequest, res []frontend.Result) (any, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := res[0].Err; err != nil {
		return nil, toStatus(err)
	}
	if err := s.cfg.Requests.Reply(ctx, who, r.namespace, r.events[0]); err != nil {
		return nil, toStatus(err)
	}
	return &eventsv1.ReplyResponse{}, nil
}
