package http

import (
	"net/http"
	"strconv"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
)

// verbRequest stands behind the name of a topic.
const verbRequest = ":request"

// request takes POST /v1/{namespace}/topics/{topic}:request?timeout=10s: it publishes
// one event and answers the reply to it, as a CloudEvent in binary mode.
func (s *Server) request(w http.ResponseWriter, r *http.Request, namespace, topic string) {
	who, err := s.enter(r, "timeout")
	if err != nil {
		problem(w, err)
		return
	}
	timeout, err := waitFor(r)
	if err != nil {
		problem(w, err)
		return
	}
	in := s.body(w, r, s.cfg.MaxBody)
	defer in.release()
	e, ok := s.oneEvent(w, r, in)
	if !ok {
		return
	}
	s.ask(w, r, in, who, namespace, topic, e, timeout, func(*event.Event) int { return http.StatusOK })
}

// ask publishes an event, whose body is here, and answers the reply to it with its
// status: from now on only the timeout bounds the request, and its body counts as what
// is published does, not for as long as it waits.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, in *body, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration, status func(*event.Event) int) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Time{}) // over HTTP/2 it ends a request that has no answer yet
	in.release()
	reply, err := s.cfg.Requests.Request(r.Context(), who, namespace, topic, e, timeout)
	s.expect(rc, reply.Size())
	if err != nil {
		problem(w, err)
		return
	}
	h := w.Header()
	body := cloudevents.EncodeHTTP(h, &reply)
	h["X-Content-Type-Options"], h["Cache-Control"] = nosniff, []string{"no-store"}
	code := status(&reply)
	if code == http.StatusNoContent { // which has no body
		w.WriteHeader(code)
		return
	}
	if _, has := h["Content-Type"]; !has {
		h["Content-Type"] = nil // or one is guessed by the data
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// expect has the client take n bytes, of an answer that is ready. A recorder has no
// deadlines.
func (s *Server) expect(rc *http.ResponseController, n int) {
	_ = rc.SetWriteDeadline(time.Now().Add(listener.Patience(s.cfg.Stall, n)))
}

// waitFor is how long a request waits; 0 where it does not say.
func waitFor(r *http.Request) (time.Duration, error) {
	v := r.URL.Query().Get("timeout")
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fault.New(fault.Invalid, "http", "bad-timeout", "timeout is a time such as 10s")
	}
	return d, nil
}

// oneEvent reads the one event of a request, whose data stay as they are for ever. It
// answers where there is another number of them.
func (s *Server) oneEvent(w http.ResponseWriter, r *http.Request, in *body) (event.Event, bool) {
	events, _, batch, ok := readEvents(w, r, in, newBuffer())
	if !ok {
		return event.Event{}, false
	}
	if batch {
		problem(w, fault.New(fault.Invalid, "http", "bad-batch", "here one event is taken, not a batch"))
		return event.Event{}, false
	}
	trace(r.Header, events)
	return events[0], true
}

// reply takes POST /v1/{namespace}/replies: an event with the attribute replyto of the
// request that it is the reply to.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, namespace string) {
	who, err := s.enter(r)
	if err != nil {
		problem(w, err)
		return
	}
	in := s.body(w, r, s.cfg.MaxBody)
	defer in.release()
	e, ok := s.oneEvent(w, r, in)
	if !ok {
		return
	}
	if err := s.cfg.Requests.Reply(r.Context(), who, namespace, e); err != nil {
		problem(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
