package fault

import (
	"cmp"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"
)

// Answer is how errors of one class are told to clients.
type Answer struct {
	HTTP   int        // the status
	GRPC   codes.Code // the code
	Advice string     // what the receiver does next, for people
}

// answers is the one table, in the order of the classes.
var answers = [len(classNames)]Answer{
	Internal:        {http.StatusInternalServerError, codes.Internal, "a bug here: report it"},
	Invalid:         {http.StatusBadRequest, codes.InvalidArgument, "change the request"},
	TooLarge:        {http.StatusRequestEntityTooLarge, codes.InvalidArgument, "send less"},
	Unauthenticated: {http.StatusUnauthorized, codes.Unauthenticated, "show who you are"},
	Denied:          {http.StatusForbidden, codes.PermissionDenied, "ask for a rule; the detail names the one that denies"},
	NotFound:        {http.StatusNotFound, codes.NotFound, "create it; told only to those who may know"},
	Conflict:        {http.StatusConflict, codes.Aborted, "read again, decide again"},
	Precondition:    {http.StatusPreconditionFailed, codes.FailedPrecondition, "change what forbids it"},
	Throttled:       {http.StatusTooManyRequests, codes.ResourceExhausted, "again here, after the time; nothing was done"},
	Unavailable:     {http.StatusServiceUnavailable, codes.Unavailable, "again later or elsewhere; nothing was done"},
	Ambiguous:       {http.StatusGatewayTimeout, codes.DeadlineExceeded, "it may have happened: repeat with the same source and id"},
	Canceled:        {http.StatusGatewayTimeout, codes.Canceled, "the caller gave up; nothing was done"},
}

// Answer is what clients are told of the class; of one that is not known, as
// of Internal.
func (c Class) Answer() Answer {
	if int(c) < len(answers) {
		return answers[c]
	}
	return answers[Internal]
}

// defaultRetry is when to try again where no better time is known.
const defaultRetry = time.Second

// Retry is the time after which the receiver may try again, more than 0; 0 where
// waiting is not what helps: only what is throttled or unavailable has a time.
func (e *Error) Retry() time.Duration {
	switch e.Class {
	case Throttled, Unavailable:
		return cmp.Or(max(e.RetryAfter, 0), defaultRetry)
	}
	return 0
}

// Message is what of the error is for clients.
func (e *Error) Message() string { return cmp.Or(e.Msg, e.Class.String()) }

// page is where docs/errors.md is read.
const page = "https://github.com/weft-mesh/weft/blob/main/docs/errors.md"

// Type is the URI of the kind of problem (RFC 9457): a stable name, which leads
// to what docs/errors.md says of the reason.
func (e *Error) Type() string { return page + "#" + e.Reason }
