package http

import (
	"errors"
	"mime"
	"net/http"
	"strings"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// publish takes POST /v1/{namespace}/topics/{topic}: one event in binary or
// structured mode, or a batch.
func (s *Server) publish(w http.ResponseWriter, r *http.Request, namespace, topic string) {
	who, err := s.enter(r)
	if err != nil {
		problem(w, err)
		return
	}
	in := s.body(w, r, s.cfg.MaxBody)
	defer in.release()
	buf := newBuffer()
	events, wrong, batch, ok := readEvents(w, r, in, buf)
	if !ok {
		return
	}
	trace(r.Header, events)
	res := buf.results(len(events))
	for i, err := range wrong {
		if err != nil {
			res[i].Err = badEvent(err)
		}
	}
	err = s.cfg.Mesh.Publish(r.Context(), who, namespace, topic, events, res)
	switch {
	case err == nil:
		// The store has the events; where it may not, it may still read them.
		buf.b = appendPositions(buf.b[:0], batch, res)
		writeKept(w, buf.b)
		buf.release()
	case batch:
		writeBatch(w, err, res)
	default:
		problem(w, err)
	}
}

// readEvents reads the events of a request into buf. It answers where it cannot.
func readEvents(w http.ResponseWriter, r *http.Request, in *body, buf *buffer) (events []event.Event, wrong []error, batch, ok bool) {
	if err := plain(r.Header); err != nil {
		w.Header().Set("Accept-Encoding", "identity")
		problem(w, err)
		return nil, nil, false, false
	}
	if err := buf.read(in, r.ContentLength); err != nil {
		problem(w, unread(err))
		return nil, nil, false, false
	}
	events, wrong, batch, err := decode(r.Header, buf)
	if err != nil {
		problem(w, err)
		return nil, nil, false, false
	}
	return events, wrong, batch, true
}

// plain refuses a body that is compressed or otherwise encoded: the bytes would be kept
// as they came, and members would not know.
func plain(h http.Header) *fault.Error {
	for _, line := range h.Values("Content-Encoding") {
		for coding := range strings.SplitSeq(line, ",") {
			if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
				return fault.New(fault.Invalid, "http", unknownEncoding, "the Content-Encoding %.32q is not understood: send the body as it is; what is compressed for its receivers says so in its content type or an attribute", coding)
			}
		}
	}
	return nil
}

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

// decode makes events of a request in any of the three modes. In a batch, wrong
// has the errors of events that could not be read, by their place.
func decode(h http.Header, body *buffer) (events []event.Event, wrong []error, batch bool, err error) {
	media := ""
	switch ct := h.Get("Content-Type"); {
	case ct == cloudevents.TypeBatch || ct == cloudevents.TypeJSON:
		media = ct
	case strings.Contains(strings.ToLower(ct), "cloudevents"): // or it says nothing of events
		var perr error
		if media, _, perr = mime.ParseMediaType(ct); perr != nil && strings.HasPrefix(ct, "application/cloudevents") {
			return nil, nil, false, fault.New(fault.Invalid, "http", "bad-content-type", "the Content-Type cannot be read")
		}
	}
	switch {
	case media == cloudevents.TypeBatch:
		events, wrong, err = cloudevents.DecodeJSONBatch(body.b)
		batch = true
	case media == cloudevents.TypeJSON:
		events = body.event[:]
		events[0], err = cloudevents.DecodeJSON(body.b)
	case strings.HasPrefix(media, "application/cloudevents"):
		return nil, nil, false, &fault.Error{Class: fault.Invalid, Op: "http", Reason: unknownFormat, Msg: "the event format " + media + " is not understood; use " + cloudevents.TypeJSON + ", " + cloudevents.TypeBatch + ", or binary mode"}
	default:
		events = body.event[:]
		events[0], err = cloudevents.DecodeBinary(h, body.b)
	}
	var size *cloudevents.SizeError
	switch {
	case errors.As(err, &size):
		return nil, nil, batch, &fault.Error{Class: fault.Invalid, Op: "http", Reason: "bad-batch", Msg: err.Error()}
	case err != nil:
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
