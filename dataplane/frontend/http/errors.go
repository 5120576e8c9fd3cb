package http

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
)

// status maps an error class to HTTP; the one table.
func status(c fault.Class) int {
	switch c {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.TooLarge:
		return http.StatusRequestEntityTooLarge
	case fault.Unauthenticated:
		return http.StatusUnauthorized
	case fault.Denied:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Precondition:
		return http.StatusPreconditionFailed
	case fault.Throttled:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.Ambiguous, fault.Canceled:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// details is an error as problem details (RFC 9457), with the stable reason.
type details struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Reason string `json:"reason"`
}

// message is what of an error is for clients.
func message(f *fault.Error) string {
	if f.Msg != "" {
		return f.Msg
	}
	return f.Class.String()
}

func problem(w http.ResponseWriter, err error) {
	f := fault.From(err)
	writeProblem(w, status(f.Class), f.Reason, message(f), f.RetryAfter)
}

func writeProblem(w http.ResponseWriter, code int, reason, detail string, retry time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	switch code {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(retry.Seconds())))))
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(details{"about:blank", http.StatusText(code), code, detail, reason})
}

// errorJSON is an error as one line of JSON.
func errorJSON(f *fault.Error) []byte {
	code := status(f.Class)
	b, err := json.Marshal(details{"about:blank", http.StatusText(code), code, message(f), f.Reason})
	if err != nil {
		return []byte("{}") // strings and numbers always marshal
	}
	return b
}
