package grpc

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// toStatus is an error of a whole call.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	f := fault.From(err)
	st := status.New(f.Class.Answer().GRPC, f.Message())
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: f.Reason, Domain: "weft"}}
	if d := f.Retry(); d > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// toError is an error of one event.
func toError(err error) *eventsv1.Error {
	f := fault.From(err)
	e := &eventsv1.Error{Code: int32(f.Class.Answer().GRPC), Reason: f.Reason, Message: f.Message()} //nolint:gosec // codes are below 17
	if d := f.Retry(); d > 0 {
		e.RetryAfter = durationpb.New(d)
	}
	return e
}
