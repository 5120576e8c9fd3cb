package grpc

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/fault"
)

func badEvent(err error) error {
	return &fault.Error{Class: fault.Invalid, Op: "grpc", Reason: "bad-event", Msg: err.Error()}
}

// service is the API as generated code has it, but that what is published, asked and
// replied call by call is decoded straight to events.
func service() *grpc.ServiceDesc {
	d := eventsv1.EventService_ServiceDesc
	d.Methods = slices.Clone(d.Methods)
	for i := range d.Methods {
		switch m := &d.Methods[i]; m.MethodName {
		case "Publish":
			m.Handler = publishing(eventsv1.EventService_Publish_FullMethodName, true, (*Server).publish)
		case "PublishBatch":
			m.Handler = publishing(eventsv1.EventService_PublishBatch_FullMethodName, false, (*Server).publishBatch)
		case "Request":
			m.Handler = publishing(eventsv1.EventService_Request_FullMethodName, true, (*Server).request)
		case "Reply":
			m.Handler = publishing(eventsv1.EventService_Reply_FullMethodName, true, (*Server).reply)
		}
	}
	return &d
}

// publishing handles a method whose request is a publishRequest. do fills in the
// results and answers.
func publishing(method string, single bool, do func(s *Server, ctx context.Context, r *publishRequest, res []frontend.Result) (any, error)) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		s := srv.(*Server) //nolint:forcetypeassert // it is registered with one
		r := newRequest()
		r.single = single
		if err := decode(r); err != nil {
			r.release()
			return nil, err
		}
		res := make([]frontend.Result, len(r.events))
		for i, err := range r.wrong {
			if err != nil {
				res[i].Err = badEvent(err)
			}
		}
		resp, err := intercept(ctx, r, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
			return do(s, ctx, r, res)
		})
		if err == nil && !slices.ContainsFunc(res, func(r frontend.Result) bool { return r.Err != nil }) {
			r.release()
		}
		return resp, err
	}
}

// publish publishes one event.
func (s *Server) publish(ctx context.Context, r *publishRequest, res []frontend.Result) (any, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := s.cfg.Mesh.Publish(ctx, who, r.namespace, r.topic, r.events, res); err != nil {
		return nil, toStatus(err)
	}
	return &eventsv1.PublishResponse{Position: res[0].Position.String()}, nil
}

// publishBatch publishes several events; each has its own outcome.
func (s *Server) publishBatch(ctx context.Context, r *publishRequest, res []frontend.Result) (any, error) {
	who, err := s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if n := len(r.events); n == 0 || r.tooMany {
		return nil, toStatus(fault.New(fault.Invalid, "grpc", "bad-batch", "a batch has 1 to %d events", pipeline.MaxBatch))
	}
	// The error is the first of the results'.
	_ = s.cfg.Mesh.Publish(ctx, who, r.namespace, r.topic, r.events, res)
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
