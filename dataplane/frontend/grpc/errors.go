package grpc

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/fault"
)

// code maps an error class to gRPC; the one table.
func code(c fault.Class) codes.Code {
	switch c {
	case fault.Invalid, fault.TooLarge:
		return codes.InvalidArgument
	case fault.Unauthenticated:
		return codes.Unauthenticated
	case fault.Denied:
		return codes.PermissionDenied
	case fault.NotFound:
		return codes.NotFound
	case fault.Conflict:
		return codes.Aborted
	case fault.Precondition:
		return codes.FailedPrecondition
	case fault.Throttled:
		return codes.ResourceExhausted
	case fault.Unavailable:
		return codes.Unavailable
	case fault.Ambiguous:
		return codes.DeadlineExceeded
	case fault.Canceled:
		return codes.Canceled
	}
	return codes.Internal
}

func message(f *fault.Error) string {
	if f.Msg != "" {
		return f.Msg
	}
	return f.Class.String()
}

// toStatus is an error of a whole call.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	f := fault.From(err)
	st := status.New(code(f.Class), message(f))
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: f.Reason, Domain: "weft"}}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// toError is an error of one event.
func toError(err error) *eventsv1.Error {
	f := fault.From(err)
	e := &eventsv1.Error{Code: int32(code(f.Class)), Reason: f.Reason, Message: message(f)} //nolint:gosec // codes are below 17
	if f.RetryAfter > 0 {
		e.RetryAfter = durationpb.New(f.RetryAfter)
	}
	return e
}
