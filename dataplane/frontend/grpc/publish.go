package grpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
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

// PublishStream publishes as events come. One message is being decoded while the
// one before it is with the store; a store that is slow stops the reading.
func (s *Server) PublishStream(rpc grpc.BidiStreamingServer[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]) error {
	ctx := rpc.Context()
	who, err := s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	requests := make(chan *publishRequest)
	received := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			r := &publishRequest{}
			if err := rpc.RecvMsg(r); err != nil {
				received <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	st := publishStream{server: s, who: who, next: 1}
	for {
		select {
		case r := <-requests:
			resp, err := st.publish(ctx, r)
			if err != nil {
				return toStatus(err)
			}
			if resp == nil {
				continue
			}
			if err := rpc.Send(resp); err != nil {
				return err
			}
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// publishStream is what a stream remembers.
type publishStream struct {
	server           *Server
	who              *policy.Principal
	namespace, topic string
	next             uint64
	omit             bool
}

// publish publishes one message's events; the error ends the stream.
func (st *publishStream) publish(ctx context.Context, r *publishRequest) (*eventsv1.PublishStreamResponse, error) {
	if r.namespace != "" {
		st.namespace = r.namespace
	}
	if r.topic != "" {
		st.topic = r.topic
	}
	st.omit = st.omit || r.omitPositions
	if r.tooMany {
		// Its events have no sequences: an answer would acknowledge others.
		return nil, fault.New(fault.Invalid, "grpc", "bad-batch", "a message has at most %d events", pipeline.MaxBatch)
	}
	n := len(r.events)
	if n == 0 {
		return nil, nil
	}
	resp := &eventsv1.PublishStreamResponse{FirstSequence: st.next, Count: uint32(n)} //nolint:gosec // at most MaxBatch
	st.next += uint64(n)
	res := make([]frontend.Result, n)
	for i, err := range r.wrong {
		if err != nil {
			res[i].Err = badEvent(err)
		}
	}
	// The error is the first of the results'.
	_ = st.server.cfg.Mesh.Publish(ctx, st.who, st.namespace, st.topic, r.events, res)
	for i := range res {
		if err := res[i].Err; err != nil {
			if c := fault.ClassOf(err); c == fault.Unauthenticated {
				return nil, err // the credentials are not valid any more
			}
			resp.Failed = append(resp.Failed, &eventsv1.FailedResult{Sequence: resp.FirstSequence + uint64(i), Error: toError(err)})
		}
		if !st.omit {
			text := ""
			if res[i].Err == nil {
				text = res[i].Position.String()
			}
			resp.Positions = append(resp.Positions, text)
		}
	}
	return resp, nil
}
