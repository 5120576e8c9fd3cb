package grpc

import (
	"context"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"

	"google.golang.org/protobuf/proto"
)

func badEvent(err error) error {
	return &fault.Error{Class: fault.Invalid, Op: "grpc", Reason: "bad-event", Msg: err.Error()}
}

// decodeEvents decodes events of a unary call; what cannot be decoded has its
// error in res. Streams, where speed counts, do it in the codec.
func decodeEvents[E proto.Message](in []E) (events []event.Event, res []frontend.Result) {
	events, res = make([]event.Event, len(in)), make([]frontend.Result, len(in))
	for i := range in {
		b, err := proto.Marshal(in[i])
		if err == nil {
			events[i], err = cloudevents.DecodeProto(b)
		}
		if err != nil {
			res[i].Err = badEvent(err)
		}
	}
	return events, res
}

// Publish publishes one event.
func (s *Server) Publish(ctx context.Context, req *eventsv1.PublishRequest) (*eventsv1.PublishResponse, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	events, res := decodeEvents([]proto.Message{req.Event})
	if err := s.cfg.Mesh.Publish(ctx, who, req.Namespace, req.Topic, events, res); err != nil {
		return nil, toStatus(err)
	}
	return &eventsv1.PublishResponse{Position: res[0].Position.String()}, nil
}

// PublishBatch publishes several events; each has its own outcome.
func (s *Server) PublishBatch(ctx context.Context, req *eventsv1.PublishBatchRequest) (*eventsv1.PublishBatchResponse, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if n := len(req.Events); n == 0 || n > pipeline.MaxBatch {
		return nil, toStatus(fault.New(fault.Invalid, "grpc", "bad-batch", "a batch has 1 to %d events, this one has %d", pipeline.MaxBatch, n))
	}
	events, res := decodeEvents(req.Events)
	// The error is the first of the results'.
	_ = s.cfg.Mesh.Publish(ctx, who, req.Namespace, req.Topic, events, res)
	out := &eventsv1.PublishBatchResponse{Results: make([]*eventsv1.PublishResult, len(res))}
	for i := range res {
		out.Results[i] = &eventsv1.PublishResult{}
		if res[i].Err != nil {
			out.Results[i].Error = toError(res[i].Err)
		} else {
			out.Results[i].Position = res[i].Position.String()
		}
	}
	return out, nil
}
