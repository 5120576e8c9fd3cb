package http

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
)

// details is an error as problem details (RFC 9457), with the stable reason.
type details struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Reason string `json:"reason"`
	// RetryAfter is in seconds, as the header has it.
	RetryAfter int `json:"retry_after,omitempty"`
}

func status(c fault.Class) int { return c.Answer().HTTP }

// Reasons with a status that HTTP alone has.
const (
	methodNotAllowed = "method-not-allowed"
	unknownEncoding  = "unknown-encoding"
	unknownFormat    = "unknown-format"
)

// Status is what an error is answered with: what its class is, but for few reasons.
func Status(f *fault.Error) int {
	switch f.Reason {
	case methodNotAllowed:
		return http.StatusMethodNotAllowed
	case unknownEncoding, unknownFormat:
		return http.StatusUnsupportedMediaType
	}
	return status(f.Class)
}

// describe is an error as problem details; what is for logs stays out.
func describe(f *fault.Error) details {
	code := Status(f)
	return details{f.Type(), http.StatusText(code), code, f.Message(), f.Reason, seconds(f.Retry())}
}

// seconds are whole ones, rounded up.
func seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// mayRetry says when to try again, where that helps.
func mayRetry(h http.Header, f *fault.Error) {
	if d := f.Retry(); d > 0 {
		h.Set("Retry-After", strconv.Itoa(seconds(d)))
	}
}

func problem(w http.ResponseWriter, err error) {
	f := fault.From(err)
	mayRetry(w.Header(), f)
	writeProblem(w, describe(f))
}

func writeProblem(w http.ResponseWriter, d details) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	if d.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(d.Status)
	_ = json.NewEncoder(w).Encode(d)
}

// errorJSON is an error as one line of JSON.
func errorJSON(f *fault.Error) []byte {
	b, err := json.Marshal(describe(f))
	if err != nil {
		return []byte("{}") // strings and numbers always marshal
	}
	return b
}
