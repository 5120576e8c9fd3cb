package http

import (
	"bufio"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
)

// shopCalls are HttpBindings of demo, one of them at the host localhost.
func shopCalls(withheld []string) snapshot.Calls {
	rule := func(method, path, topic string) *configv1.HttpRule {
		return &configv1.HttpRule{Method: method, Path: path, Topic: topic, Attributes: map[string]string{"type": "order.{query.kind}", "source": "/shop", "subject": "{id}", "id": "{header.Idempotency-Key}", "partitionkey": "{id}"}}
	}
	asking := func(method, path string, timeout time.Duration) *configv1.HttpRule {
		r := rule(method, path, "orders")
		if r.Reply = (&configv1.HttpReply{}); timeout != 0 {
			r.Reply.Timeout = durationpb.New(timeout)
		}
		return r
	}
	set := map[string]snapshot.Versioned{}
	for name, b := range map[string]*configv1.HttpBinding{
		"shop": {Hosts: []string{"localhost"}, Rules: []*configv1.HttpRule{rule("", "/orders/{id}", "orders"), rule("PUT", "/orders/{id}", "orders"), rule("DELETE", "/orders/{id}", "secret")}},
		"asks": {Rules: []*configv1.HttpRule{asking("GET", "/prices/{id}", 0), asking("POST", "/prices/{id}", 1500*time.Millisecond)}},
		"back": {Rules: []*configv1.HttpRule{rule("", "/secrets/{id}", "secret"), rule("", "/gone/{id}", "orders.gone")}}} {
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name}, Spec: &configv1.Resource_HttpBinding{HttpBinding: b}}
		r.Name = resource.NameOf(r)
		set[r.Name] = snapshot.Versioned{Resource: r, Version: "1"}
	}
	return snapshot.Compile(snapshot.Input{Set: set, Withheld: withheld}).Calls
}

// TestHostOfCall: the host that a call is for is one of its headers.
func TestHostOfCall(t *testing.T) {
	rule, err := rest.CompileRule(&configv1.HttpRule{Path: "/orders", Topic: "orders", Attributes: map[string]string{"type": "t", "source": "//{header.Host}/orders"}})
	if err != nil {
		t.Fatal(err)
	}
	path, err := rest.ReadPath("/orders")
	if err != nil {
		t.Fatal(err)
	}
	if e, err := made(rule, path, httptest.NewRequest(http.MethodPost, "http://shop.example/orders", nil)); err != nil || e.Source != "//shop.example/orders" {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestRest: a call becomes an event, and nothing else does.
func TestRest(t *testing.T) {
	w := serve(t, "httpbinding/later/b")
	_, port, err := net.SplitHostPort(strings.TrimPrefix(w.base, "http://"))
	w.must(err)
	local := "Host: localhost:" + port
	kept := func(resp *http.Response, body string) (id string) {
		t.Helper()
		var a struct{ ID, Source, Position string }
		if err := json.Unmarshal([]byte(body), &a); resp.StatusCode != http.StatusAccepted || err != nil || a.ID == "" || a.Source != "/shop" || a.Position == "" || resp.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		return a.ID
	}
	const path = "/rest/demo/orders/42?kind=made"
	if id := kept(w.ask("POST", path, `{"a":1}`, "Content-Type: application/json", "Idempotency-Key: k-1")); id != "k-1" {
		t.Errorf("the id is %s", id)
	}
	if id := kept(w.ask("POST", path, `{"a":1}`)); id == kept(w.ask("PUT", "/orders/4%20%3F2?kind=made", "", local)) {
		t.Errorf("two calls have the id %s", id)
	}
	for _, tc := range []struct {
		method, path, body string
		header             []string
		code               int
		reason             string
	}{
		{"POST", path, "x", []string{"Content-Encoding: gzip"}, 415, "unknown-encoding"},
		{"POST", "/rest/demo/orders/4%2F2?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/4%2f2%22?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/4%5C2?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/4%002?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/%2e%2e?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/42/?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo//orders/42?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest//orders/42?kind=made", "", nil, 400, "bad-path"},
		{"POST", "/rest/demo" + strings.Repeat("/a", 33), "", nil, 400, "bad-path"},
		{"POST", "/rest/demo/orders/42", "", nil, 400, "bad-call"},
		{"POST", "/rest/demo/orders/42?kind=a&kind=b", "", nil, 400, "bad-call"},
		{"POST", "/rest/demo/orders/42?kind=%zz", "", nil, 400, "bad-call"},
		{"POST", path, "", []string{"Idempotency-Key: a", "Idempotency-Key: b"}, 400, "bad-call"},
		{"POST", path, strings.Repeat("x", 4<<10+1), nil, 413, "body-too-large"},
		{"POST", path, strings.Repeat("x", 2<<10), nil, 413, "event-too-large"},
		{"POST", path, "", []string{"Authorization: Bearer weft_none_x"}, 401, "bad-credentials"},
		{"POST", "/rest/demo/nowhere?kind=made", "", nil, 404, "unknown-path"},
		{"POST", "/rest/demo/secrets/1?kind=made", "", nil, 404, "unknown-path"},
		{"OPTIONS", "/rest/demo/secrets/1?kind=made", "", nil, 404, "unknown-path"},
		{"POST", "/rest/nowhere/orders/42", "", nil, 404, "unknown-path"},
		{"POST", "/rest/demo/gone/1?kind=made", "", nil, 404, "unknown-topic"},
		{"POST", "/rest/later/a", "", nil, 503, "binding-not-ready"},
		{"POST", "/orders/42?kind=made", "", nil, 503, "binding-not-ready"}, // of a host that what is withheld may name
		{"GET", path, "", nil, 405, "method-not-allowed"},
		{"DELETE", path, "", nil, 405, "method-not-allowed"},
		{"GET", "/orders/42", "", []string{local}, 405, "method-not-allowed"},
		{"POST", "/nowhere", "", []string{local}, 404, "unknown-path"},
	} {
		resp, body := w.ask(tc.method, tc.path, tc.body, tc.header...)
		var d details
		if err := json.Unmarshal([]byte(body), &d); err != nil || resp.StatusCode != tc.code || d.Reason != tc.reason || strings.Contains(body, "secret") || strings.Contains(body, "later") {
			t.Errorf("%s %s %v: %d %s", tc.method, tc.path, tc.header, resp.StatusCode, body)
		}
		if tc.code == 405 && resp.Header.Get("Allow") != "POST, PUT, OPTIONS" {
			t.Errorf("%s %s: Allow is %q", tc.method, tc.path, resp.Header.Get("Allow"))
		}
	}
	for method, code := range map[string]int{"OPTIONS": 204, "HEAD": 405} {
		if resp, _ := w.ask(method, path, ""); resp.StatusCode != code || resp.Header.Get("Allow") != "POST, PUT, OPTIONS" {
			t.Errorf("%s: %d, Allow %q", method, resp.StatusCode, resp.Header.Get("Allow"))
		}
	}
	// What is not to be known looks like what is not there.
	_, secret := w.ask("POST", "/rest/demo/secrets/1", "")
	if _, none := w.ask("POST", "/rest/demo/none/1", ""); none != secret {
		t.Errorf("%s\n%s", none, secret)
	}
	_, body := w.ask("POST", "/v1/demo/subscriptions/billing:pull", `{"max_events": 10, "wait": "5s"}`)
	for _, want := range []string{`"id":"k-1","source":"/shop","type":"order.made","subject":"42","datacontenttype":"application/json","partitionkey":"42","data":{"a":1}`, `"subject":"4 ?2"`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
}

// TestRestReply: a call whose rule waits for a reply is answered with it, and with nothing
// of the event.
func TestRestReply(t *testing.T) {
	w := serve(t)
	for _, tc := range []struct{ method, body, wait string }{{"GET", "", "0s"}, {"POST", "question", "1.5s"}} {
		resp, body := w.ask(tc.method, "/rest/demo/prices/7?kind=asked", tc.body, "Idempotency-Key: k-1", "Content-Type: text/x-question")
		if h := resp.Header; resp.StatusCode != http.StatusOK || body != "to "+tc.body || h.Get("Content-Type") != "text/plain" || h.Get("Ce-Id") != "to%20%C3%BC%20k-1" || h.Get("Ce-Asked") != "demo/orders%20"+tc.wait+"%20local" {
			t.Errorf("%s: %d %v %s", tc.method, resp.StatusCode, h, body)
		}
	}
	for said, code := range map[string]int{"404": 404, "201": 201, "503": 503, "204": 204, "302": 200, "101": 200, "100": 200, "999": 200, "205": 200, "0404": 200, "+40": 200, "-200": 200, "x": 200} {
		resp, body := w.ask("GET", "/rest/demo/prices/7?kind=says."+url.QueryEscape(said), "")
		if resp.StatusCode != code || (body == "to ") != (code != 204) || resp.Header.Get("Ce-Type") != "answer" {
			t.Errorf("%s: %d %v %q", said, resp.StatusCode, resp.Header, body)
		}
	}
	// Who asks as a client of the mesh is told what became of the request.
	if resp, _ := w.ask(http.MethodPost, "/v1/demo/topics/orders:request", "", "Ce-Specversion: 1.0", "Ce-Id: 1", "Ce-Source: /s", "Ce-Type: order.says.404"); resp.StatusCode != http.StatusOK || resp.Header.Get("Ce-Httpstatus") != "404" {
		t.Errorf("a client: %d %v", resp.StatusCode, resp.Header)
	}
	for _, tc := range []struct {
		method, path, reason string
		code                 int
	}{
		{"GET", "/rest/demo/prices/7?kind=nobody", "no-reply", 504},
		{"GET", "/rest/demo/prices/7", "bad-call", 400},
		{"PUT", "/rest/demo/prices/7?kind=asked", "method-not-allowed", 405},
	} {
		resp, body := w.ask(tc.method, tc.path, "")
		if resp.StatusCode != tc.code || !strings.Contains(body, `"reason":"`+tc.reason+`"`) || tc.code == 405 && resp.Header.Get("Allow") != "GET, POST, OPTIONS" {
			t.Errorf("%s %s: %d %v %s", tc.method, tc.path, resp.StatusCode, resp.Header, body)
		}
	}
}

// asked is what a request makes of a path, as it is written there.
func asked(t *testing.T, path string) (*recorder, int) {
	t.Helper()
	r, w := &recorder{}, httptest.NewRecorder()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	req.RemoteAddr = "127.0.0.1:5"
	New(Config{Mesh: r, Log: slog.New(slog.DiscardHandler)}).ServeHTTP(w, req)
	return r, w.Code
}

// TestRestEncoding: names that differ by how they are escaped alone are one name,
// and others are not.
func TestRestEncoding(t *testing.T) {
	for _, path := range []string{"/rest/demo/orders/42", "/rest/d%65mo/orders/42", "/rest/demo/%6Frders/42", "/rest/demo/%6frders/%34%32", "/rest/demo/orders/%342", "http://y/rest/demo/orders/42"} {
		r, _ := asked(t, path)
		if !r.published || r.call.Namespace != "demo" || strings.Join(r.call.Path.Segments(), "|") != "orders|42" || r.events[0].Subject != "orders/42" || r.events[0].Source != "/orders/42" {
			t.Errorf("%s: %+v, %+v", path, r.call, r.events)
		}
	}
	if r, _ := asked(t, "/rest/demo/orders/%2534"); r.events[0].Subject != "orders/%34" || r.events[0].Source != "/orders/%2534" {
		t.Errorf("what is escaped twice is read twice: %+v", r.events)
	}
	// With a character that should have been escaped, too.
	for _, path := range []string{`/rest/demo/orders%2f42"`, `/rest/demo/ü/%2e%2e`, `/rest/demo%2forders/42"`} {
		if r, code := asked(t, path); r.published || code != http.StatusBadRequest {
			t.Errorf("%s: %d, %+v", path, code, r.call)
		}
	}
}

// TestHostOf: a host is one however it is written.
func TestHostOf(t *testing.T) {
	for host, want := range map[string]string{"shop.example": "shop.example", "Shop.EXAMPLE.:80": "shop.example", "shop.example:": "shop.example", "": "", "[::1]:80": "["} {
		if got := hostOf(&http.Request{Host: host}); got != want {
			t.Errorf("%s: %s", host, got)
		}
	}
}
