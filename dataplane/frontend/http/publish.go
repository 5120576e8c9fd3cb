package http

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// publish takes POST /v1/{namespace}/topics/{topic}: one event in binary or
// structured mode, or a batch.
func (s *Server) publish(w http.ResponseWriter, r *http.Request, namespace, topic string) {
	who, err := s.authenticate(r)
	if err != nil {
		problem(w, err)
		return
	}
	in := &body{s: s, r: http.MaxBytesReader(w, r.Body, s.cfg.MaxBody)}
	defer in.release()
	body, err := io.ReadAll(in)
	if err != nil {
		problem(w, unread(err))
		return
	}
	events, wrong, batch, err := decode(r.Header, body)
	if err != nil {
		if f := fault.From(err); f.Reason == unknownFormat {
			writeProblem(w, http.StatusUnsupportedMediaType, f.Reason, f.Msg, 0)
			return
		}
		problem(w, err)
		return
	}
	trace(r.Header, events)
	res := make([]frontend.Result, len(events))
	for i, err := range wrong {
		if err != nil {
			res[i].Err = badEvent(err)
		}
	}
	err = s.cfg.Mesh.Publish(r.Context(), who, namespace, topic, events, res)
	if batch {
		writeBatch(w, err, res)
		return
	}
	if err != nil {
		problem(w, err)
		return
	}
	writeJSON(w, http.StatusOK, result{Position: res[0].Position.String()})
}

// body reads a request's body while those of all requests together are within
// what the server may hold.
type body struct {
	s    *Server
	r    io.Reader
	read int64
}

var errFull = &fault.Error{Class: fault.Throttled, Op: "http", Reason: "proxy-full", RetryAfter: time.Second, Msg: "the proxy reads as many requests as it may hold; nothing was published"}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read += int64(n)
	if all := b.s.bodies.Add(int64(n)); all > b.s.cfg.MaxBodies && all != b.read {
		return n, errFull
	}
	return n, err
}

func (b *body) release() { b.s.bodies.Add(-b.read) }

// unread is why a body was not read.
func unread(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, errFull):
		return errFull
	case errors.As(err, &large):
		return fault.New(fault.TooLarge, "http", "body-too-large", "the body has more than %d bytes", large.Limit)
	}
	return fault.New(fault.Invalid, "http", "bad-body", "the body could not be read")
}

// unknownFormat is the reason where an event format is not understood: 415.
const unknownFormat = "unknown-format"

// decode makes events of a request in any of the three modes. In a batch, wrong
// has the errors of events that could not be read, by their place.
func decode(h http.Header, body []byte) (events []event.Event, wrong []error, batch bool, err error) {
	media := ""
	if ct := h.Get("Content-Type"); ct != "" {
		var perr error
		if media, _, perr = mime.ParseMediaType(ct); perr != nil && strings.HasPrefix(ct, "application/cloudevents") {
			return nil, nil, false, fault.New(fault.Invalid, "http", "bad-content-type", "the Content-Type cannot be read")
		}
	}
	switch {
	case media == cloudevents.TypeBatch:
		events, wrong, err = cloudevents.DecodeJSONBatch(body)
		batch = true
	case media == cloudevents.TypeJSON:
		var e event.Event
		e, err = cloudevents.DecodeJSON(body)
		events = []event.Event{e}
	case strings.HasPrefix(media, "application/cloudevents"):
		return nil, nil, false, &fault.Error{Class: fault.Invalid, Op: "http", Reason: unknownFormat, Msg: "the event format " + media + " is not understood; use " + cloudevents.TypeJSON + ", " + cloudevents.TypeBatch + ", or binary mode"}
	default:
		var e event.Event
		e, err = cloudevents.DecodeBinary(h, body)
		events = []event.Event{e}
	}
	if err != nil {
		return nil, nil, batch, badEvent(err)
	}
	return events, wrong, batch, nil
}

func badEvent(err error) error {
	return &fault.Error{Class: fault.Invalid, Op: "http", Reason: "bad-event", Msg: err.Error()}
}

// trace puts the request's W3C trace context into events that have none.
func trace(h http.Header, events []event.Event) {
	parent := h.Get("Traceparent")
	if !printable(parent, 128) {
		return // not a trace context; the event is fine without
	}
	for i := range events {
		if _, has := event.Lookup(events[i].Ext, event.AttrTraceParent); has || len(events[i].Ext) > event.MaxAttributes-2 {
			continue
		}
		events[i].Ext = event.With(events[i].Ext, event.AttrTraceParent, parent)
		if state := h.Get("Tracestate"); printable(state, 512) {
			events[i].Ext = event.With(events[i].Ext, event.AttrTraceState, state)
		}
	}
}

// printable reports whether s is 1 to most characters of printable ASCII.
func printable(s string, most int) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// result is the outcome of one event.
type result struct {
	Position string   `json:"position,omitempty"`
	Error    *details `json:"error,omitempty"`
}

// writeBatch answers a batch: one result for each event, in order; 207 when
// some failed and some did not.
func writeBatch(w http.ResponseWriter, err error, res []frontend.Result) {
	out := struct {
		Results []result `json:"results"`
	}{make([]result, len(res))}
	kept := 0
	for i := range res {
		if res[i].Err == nil {
			kept++
			out.Results[i].Position = res[i].Position.String()
			continue
		}
		f := fault.From(res[i].Err)
		code := status(f.Class)
		out.Results[i].Error = &details{"about:blank", http.StatusText(code), code, message(f), f.Reason}
	}
	switch {
	case err == nil:
		writeJSON(w, http.StatusOK, out)
	case kept > 0:
		writeJSON(w, http.StatusMultiStatus, out)
	default:
		f := fault.From(err)
		if f.Class == fault.Throttled || f.Class == fault.Unavailable {
			w.Header().Set("Retry-After", "1")
		}
		writeJSON(w, status(f.Class), out)
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
