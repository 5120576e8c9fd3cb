package http

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// answering replies to every request but those of a type "nobody", to one of a type
// "says.404" with that status, and takes replies that have a token.
type answering struct{}

func (answering) Request(_ context.Context, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration) (event.Event, error) {
	if strings.HasSuffix(e.Type, "nobody") {
		return event.Event{}, fault.New(fault.Ambiguous, "request", "no-reply", "nobody has replied in time")
	}
	reply := event.Event{ID: "to ü " + e.ID, Source: "/answer", Type: "answer", DataContentType: "text/plain", Data: append([]byte("to "), e.Data...),
		Ext: []event.Attr{{Name: "asked", Value: namespace + "/" + topic + " " + timeout.String() + " " + who.String()}}}
	switch e.Type {
	case "within":
		reply.DataContentType = "application/cloudevents+json"
	case "bare":
		reply.DataContentType = ""
	}
	if _, status, says := strings.Cut(e.Type, "says."); says {
		reply.Set(event.AttrHTTPStatus, status)
	}
	return reply, nil
}

func (answering) Reply(_ context.Context, _ *policy.Principal, namespace string, e event.Event) error {
	if token, _ := event.Lookup(e.Ext, "replyto"); token != "a-token" || namespace != "demo" || e.ID != "1" {
		return fault.New(fault.Precondition, "reply", "reply-late", "nobody waits for this reply any more")
	}
	return nil
}

// TestRequest: a request in either mode is answered with its reply in binary mode, and
// refused where it is not one event or says no time.
func TestRequest(t *testing.T) {
	w := serve(t)
	binary := []string{"Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: /s", "Ce-Type: t", "Content-Type: text/plain"}
	resp, body := w.ask(http.MethodPost, "/v1/demo/topics/orders:request?timeout=250ms", "question", binary...)
	if h := resp.Header; resp.StatusCode != http.StatusOK || body != "to question" || h.Get("Ce-Id") != "to%20%C3%BC%201" || h.Get("Ce-Asked") != "demo/orders%20250ms%20local" ||
		h.Get("Content-Type") != "text/plain" || h.Get("Ce-Specversion") != "1.0" {
		t.Errorf("%d %v %s", resp.StatusCode, h, body)
	}
	resp, body = w.ask(http.MethodPost, "/v1/demo/topics/orders:request", `{"specversion":"1.0","id":"2","source":"/s","type":"t","data":"x"}`, "Content-Type: application/cloudevents+json")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Ce-Asked") != "demo/orders%200s%20local" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	// Data that are an event are not taken for the reply.
	resp, body = w.ask(http.MethodPost, "/v1/demo/topics/orders:request", "x", "Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: /s", "Ce-Type: within")
	if h := resp.Header; h.Get("Content-Type") != "application/cloudevents+json" || h.Get("Ce-Id") != "" || !strings.Contains(body, `"type":"answer"`) || !strings.Contains(body, `"datacontenttype":"application/cloudevents+json"`) {
		t.Errorf("%v %s", h, body)
	}
	// Of data that nobody has said the type of none is guessed.
	resp, body = w.ask(http.MethodPost, "/v1/demo/topics/orders:request", "<html>", "Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: /s", "Ce-Type: bare")
	if said, has := resp.Header["Content-Type"]; resp.StatusCode != http.StatusOK || body != "to <html>" || has {
		t.Errorf("%d %s, whose type is %q", resp.StatusCode, body, said)
	}
	const one = `[{"specversion":"1.0","id":"2","source":"/s","type":"t"}]`
	for name, tc := range map[string]struct {
		method, path, body string
		header             []string
		code               int
		reason             string
	}{
		"no reply":      {http.MethodPost, "/v1/demo/topics/orders:request", "", []string{"Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: /s", "Ce-Type: nobody"}, http.StatusGatewayTimeout, "no-reply"},
		"another verb":  {http.MethodGet, "/v1/demo/topics/orders:request", "", binary, http.StatusMethodNotAllowed, "method-not-allowed"},
		"no time":       {http.MethodPost, "/v1/demo/topics/orders:request?timeout=soon", "", binary, http.StatusBadRequest, "bad-timeout"},
		"less than one": {http.MethodPost, "/v1/demo/topics/orders:request?timeout=-1s", "", binary, http.StatusBadRequest, "bad-timeout"},
		"no event":      {http.MethodPost, "/v1/demo/topics/orders:request", "", nil, http.StatusBadRequest, "bad-event"},
		"a batch":       {http.MethodPost, "/v1/demo/topics/orders:request", one, []string{"Content-Type: application/cloudevents-batch+json"}, http.StatusBadRequest, "bad-batch"},
		"too much":      {http.MethodPost, "/v1/demo/topics/orders:request", strings.Repeat("x", 5<<10), binary, http.StatusRequestEntityTooLarge, "body-too-large"},
		"a late reply":  {http.MethodPost, "/v1/demo/replies", "", append(binary, "Ce-Replyto: old"), http.StatusPreconditionFailed, "reply-late"},
		"a batch of replies": {http.MethodPost, "/v1/demo/replies", one, []string{"Content-Type: application/cloudevents-batch+json"},
			http.StatusBadRequest, "bad-batch"},
	} {
		if resp, body := w.ask(tc.method, tc.path, tc.body, tc.header...); resp.StatusCode != tc.code || !strings.Contains(body, `"reason":"`+tc.reason+`"`) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	if resp, body := w.ask(http.MethodPost, "/v1/demo/replies", "yes", append(binary, "Ce-Replyto: a-token")...); resp.StatusCode != http.StatusNoContent || body != "" {
		t.Errorf("a reply: %d %s", resp.StatusCode, body)
	}
}

// waiting are requests without a reply, until let is closed.
type waiting struct {
	answering
	began chan struct{}
	let   chan struct{}
}

func (w waiting) Request(context.Context, *policy.Principal, string, string, event.Event, time.Duration) (event.Event, error) {
	w.began <- struct{}{}
	<-w.let
	return event.Event{ID: "1", Source: "/answer", Type: "answer"}, nil
}

// deadlines is an answer that knows until when it may be written; at first until now.
type deadlines struct {
	*httptest.ResponseRecorder
	write time.Time
}

func (d *deadlines) SetReadDeadline(time.Time) error    { return nil }
func (d *deadlines) SetWriteDeadline(t time.Time) error { d.write = t; return nil }

// TestRequestWaits: a request that waits for its reply takes no room from the bodies of
// others, and nothing but its timeout ends it.
func TestRequestWaits(t *testing.T) {
	mesh := waiting{began: make(chan struct{}), let: make(chan struct{})}
	s := New(Config{Mesh: &judge{t: t}, Requests: mesh, MaxBodies: 1000, Log: slog.New(slog.DiscardHandler)})
	post := func(w http.ResponseWriter, path string) {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(dataOf("some-event-1")))
		for _, h := range []string{"Specversion: 1.0", "Id: some-event-1", "Source: /s", "Type: t"} {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set("Ce-"+name, value)
		}
		s.ServeHTTP(w, r)
	}
	w, done := &deadlines{ResponseRecorder: httptest.NewRecorder(), write: time.Now()}, make(chan struct{})
	go func() { defer close(done); post(w, orders+":request?timeout=5m") }()
	<-mesh.began
	if !w.write.IsZero() {
		t.Errorf("a request that waits may be answered until %s", w.write)
	}
	other := httptest.NewRecorder()
	if post(other, orders); other.Code != http.StatusOK {
		t.Errorf("beside a request that waits: %d %s", other.Code, other.Body)
	}
	close(mesh.let)
	if <-done; w.Code != http.StatusOK || w.write.IsZero() {
		t.Errorf("%d, until %s", w.Code, w.write)
	}
	if n := s.bodies.Load(); n != 0 {
		t.Errorf("%d bytes of bodies are held", n)
	}
}
