package http

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// operations of requests, as the metric has them.
const (
	opPublish = "publish"
	opRequest = "request"
	opReply   = "reply"
	opTail    = "tail"
	opPull    = "pull"
	opSettle  = "settle"
	opRest    = "rest"
	opOther   = "other" // no path of this API
)

func newRequests(reg prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_http_requests_total", Help: "Requests of clients that were answered, by operation and status; a tail counts when it ends."}, []string{"operation", "code"})
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}

// answered remembers the status of an answer.
type answered struct {
	http.ResponseWriter
	code int
}

func (w *answered) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap gives http.ResponseController what it works on.
func (w *answered) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// count counts the request once it is over.
func (s *Server) count(w *answered, operation string) {
	s.requests.WithLabelValues(operation, strconv.Itoa(w.code)).Inc()
}
