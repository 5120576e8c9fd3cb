package http

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/position"
)

func TestMain(m *testing.M) {
	spoil = poison
	goleak.VerifyTestMain(m)
}

// mesh is made of the real parts: identities, pipeline, delivery, embedded store.
type mesh struct {
	*pipeline.Pipeline
	*delivery.Manager
	snaps *latest.Value[*snapshot.Snapshot]
}

func (m mesh) Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error) {
	return m.snaps.Get().Identities.Authenticate(ctx, c, time.Now())
}

func (m mesh) Current(who *policy.Principal) (*policy.Principal, <-chan struct{}, error) {
	_, changed := m.snaps.Load()
	return who, changed, nil
}

func (m mesh) Hold(*policy.Principal, string, string) (frontend.Holding, error) { return nil, nil }

func (m mesh) Ready() error { return nil }

var _ frontend.Mesh = mesh{}

// world is a server with the topics demo/orders and demo/orders.eu, and the
// Subscription demo/billing of the first.
type world struct {
	*testing.T
	base   string
	client *http.Client
	mesh   mesh
}

func serve(t *testing.T, withheld ...string) *world {
	t.Helper()
	w := &world{T: t, client: &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}}
	st, err := embedded.Driver{}.Open(context.Background(), store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	w.must(err)
	t.Cleanup(func() { w.must(st.Close(context.Background())) })
	rules := &configv1.AccessPolicy{Rules: []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Topics: []string{"orders", "orders.>"}, Subscriptions: []string{"billing"},
		Actions: []configv1.Action{configv1.Action_ACTION_PUBLISH, configv1.Action_ACTION_SUBSCRIBE, configv1.Action_ACTION_CONSUME}}}}
	snap := &snapshot.Snapshot{Lineage: "x", Identities: policy.CompileIdentities(nil, nil, true), Topics: map[snapshot.Key]*snapshot.Topic{},
		Rules: policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: rules}}, nil)}
	for i, name := range []string{"orders", "orders.eu"} {
		w.must(st.(store.Admin).EnsureTopic(context.Background(), store.TopicSpec{Name: name}))
		k := snapshot.Key{Namespace: "demo", Name: name}
		snap.Topics[k] = &snapshot.Topic{Key: k, UID: fmt.Sprintf("11111111-1111-4111-8111-11111111111%d", i), MaxEventBytes: 1 << 10,
			Epochs: []snapshot.Epoch{{Number: 1, StoreUID: "s", Physical: name}}}
	}
	subscribe(w, snap, st)
	snap.Calls = shopCalls(withheld)
	m := mesh{snaps: latest.New(snap)}
	open := func(string) (store.Store, error) { return st, nil }
	m.Pipeline = pipeline.New(pipeline.Config{Snapshots: m.snaps, Store: open})
	m.Manager = delivery.New(delivery.Config{Snapshots: m.snaps, Store: open, Write: m.Write, Log: slog.New(slog.DiscardHandler)})
	w.mesh = m
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- m.Run(ctx) }()
	sctx, stop := context.WithCancel(context.Background())
	go func() {
		ended <- New(Config{Mesh: m, Requests: answering{}, MaxBody: 4 << 10, MaxBodies: 5 << 10, DrainTime: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}).Serve(sctx, l)
	}()
	w.base = "http://" + l.Addr().String()
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		stop()
		w.must(<-ended)
		cancel()
		w.must(<-ended)
	})
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// ask sends a request, "Name: value" each header, and gives the answer.
func (w *world) ask(method, path, body string, header ...string) (*http.Response, string) {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.base+path, strings.NewReader(body))
	w.must(err)
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := w.client.Do(req)
	w.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	w.must(err)
	return resp, string(b)
}

const (
	orders     = "/v1/demo/topics/orders"
	structured = "Content-Type: application/cloudevents+json"
	batch      = "Content-Type: application/cloudevents-batch+json"
)

func one(id string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/curl","type":"t","data":{"a":1}}`, id)
}

var inBinary = []string{"ce-specversion: 1.0", "ce-id: 1", "ce-source: /curl", "ce-type: t", "Content-Type: application/json"}

// TestPublish: the three modes are kept, each with its position.
func TestPublish(t *testing.T) {
	w := serve(t)
	resp, body := w.ask("POST", orders, `{"a":1}`, inBinary...)
	var r result
	w.must(json.Unmarshal([]byte(body), &r))
	if _, err := position.Parse(r.Position); resp.StatusCode != http.StatusOK || err != nil {
		t.Errorf("binary: %d %s", resp.StatusCode, body)
	}
	if resp, body = w.ask("POST", orders, one("2"), structured); resp.StatusCode != http.StatusOK {
		t.Errorf("structured: %d %s", resp.StatusCode, body)
	}
	resp, body = w.ask("POST", orders, "["+one("3")+","+one("4")+"]", batch+"; charset=utf-8")
	var rs struct{ Results []result }
	w.must(json.Unmarshal([]byte(body), &rs))
	if resp.StatusCode != http.StatusOK || len(rs.Results) != 2 || rs.Results[0].Position == rs.Results[1].Position {
		t.Errorf("batch: %d %s", resp.StatusCode, body)
	}
	s := w.tail(orders+"/events?from=beginning", "")
	for _, id := range []string{"1", "2", "3", "4"} {
		if e := s.next(); e.ID != id || string(e.Data) != `{"a":1}` {
			t.Errorf("%+v", e)
		}
	}
}

// TestRefusals: each has its status and reason, and nothing was kept.
func TestRefusals(t *testing.T) {
	w := serve(t)
	with := func(change ...string) []string { return append(append([]string(nil), inBinary[1:]...), change...) }
	for name, tc := range map[string]struct {
		method, path, body string
		header             []string
		status             int
		reason             string
	}{
		"no event":               {"POST", orders, "x", nil, 400, "bad-event"},
		"wrong version":          {"POST", orders, "x", with("ce-specversion: 0.3"), 400, "bad-event"},
		"no version":             {"POST", orders, "x", with(), 400, "bad-event"},
		"header twice":           {"POST", orders, "x", with("ce-specversion: 1.0", "ce-id: 2"), 400, "bad-event"},
		"bad UTF-8":              {"POST", orders, "x", with("ce-specversion: 1.0", "ce-a: %ff"), 400, "bad-event"},
		"bad escape":             {"POST", orders, "x", with("ce-specversion: 1.0", "ce-a: %f"), 400, "bad-event"},
		"bad name":               {"POST", orders, "x", with("ce-specversion: 1.0", "ce-a_b: 1"), 400, "bad-event"},
		"bad time":               {"POST", orders, "x", with("ce-specversion: 1.0", "ce-time: yesterday"), 400, "bad-event"},
		"structured, cut":        {"POST", orders, one("1")[:20], []string{structured}, 400, "bad-event"},
		"structured, two":        {"POST", orders, one("1") + one("2"), []string{structured}, 400, "bad-event"},
		"structured, array":      {"POST", orders, "[" + one("1") + "]", []string{structured}, 400, "bad-event"},
		"structured, bad UTF-8":  {"POST", orders, "{\"id\":\"\xff\"}", []string{structured}, 400, "bad-event"},
		"batch, empty":           {"POST", orders, "[]", []string{batch}, 400, "bad-batch"},
		"batch, too many":        {"POST", orders, "[" + strings.Repeat("{},", 1000) + "{}]", []string{batch}, 400, "bad-batch"},
		"batch, one":             {"POST", orders, one("1"), []string{batch}, 400, "bad-event"},
		"batch, cut":             {"POST", orders, "[" + one("1") + ",{", []string{batch}, 400, "bad-event"},
		"batch, behind it":       {"POST", orders, "[" + one("1") + "]x", []string{batch}, 400, "bad-event"},
		"batch, bad UTF-8":       {"POST", orders, "[" + one("1") + ",{\"id\":\"\xff\"}]", []string{batch}, 400, "bad-event"},
		"another format":         {"POST", orders, "<x/>", []string{"Content-Type: application/cloudevents+xml"}, 415, "unknown-format"},
		"compressed":             {"POST", orders, "x", append([]string{"Content-Encoding: gzip"}, inBinary...), 415, "unknown-encoding"},
		"compressed twice":       {"POST", orders, "x", append([]string{"Content-Encoding: identity, br"}, inBinary...), 415, "unknown-encoding"},
		"compressed, two lines":  {"POST", orders, one("1"), []string{structured, "Content-Encoding: identity", "Content-Encoding: X-Gzip"}, 415, "unknown-encoding"},
		"compressed batch":       {"POST", orders, "[" + one("1") + "]", []string{batch, "Content-Encoding: deflate"}, 415, "unknown-encoding"},
		"bad content type":       {"POST", orders, "x", []string{"Content-Type: application/cloudevents+json; ;;"}, 400, "bad-content-type"},
		"large body":             {"POST", orders, strings.Repeat("x", 5<<10), inBinary, 413, "body-too-large"},
		"large event":            {"POST", orders, strings.Repeat("x", 2<<10), inBinary, 413, "event-too-large"},
		"unknown topic":          {"POST", orders + ".unknown", "x", inBinary, 404, "unknown-topic"},
		"denied":                 {"POST", "/v1/demo/topics/secret", "x", inBinary, 403, "access-denied"},
		"denied batch":           {"POST", "/v1/demo/topics/secret", "[" + one("1") + "]", []string{batch}, 403, ""},
		"other namespace":        {"POST", "/v1/other/topics/orders", "x", inBinary, 403, "access-denied"},
		"escaped letter":         {"POST", "/v1/demo/topics/order%73", "x", inBinary, 400, "bad-name"},
		"escaped slash":          {"POST", "/v1/demo%2Ftopics%2Forders", "x", inBinary, 404, "unknown-path"},
		"escaped twice":          {"POST", "/v1/demo/topics/order%2573", "x", inBinary, 400, "bad-name"},
		"escaped dots":           {"POST", "/v1/demo/topics/%2e%2e", "x", inBinary, 400, "bad-name"},
		"space":                  {"POST", "/v1/demo/topics/or%20ders", "x", inBinary, 400, "bad-name"},
		"NUL":                    {"POST", "/v1/demo/topics/orders%00", "x", inBinary, 400, "bad-name"},
		"4 KB":                   {"POST", "/v1/demo/topics/" + strings.Repeat("a", 4<<10), "x", inBinary, 400, "bad-name"},
		"look-alike":             {"POST", "/v1/demo/topics/\u043erders", "x", inBinary, 400, "bad-name"},
		"look-alike, escaped":    {"POST", "/v1/demo/topics/%D0%BErders", "x", inBinary, 400, "bad-name"},
		"full width":             {"POST", "/v1/demo/topics/orders\uff0eeu", "x", inBinary, 400, "bad-name"},
		"bad UTF-8 in a name":    {"POST", "/v1/demo/topics/orders%ff", "x", inBinary, 400, "bad-name"},
		"case":                   {"POST", "/v1/demo/topics/Orders", "x", inBinary, 403, "access-denied"},
		"case of a namespace":    {"POST", "/v1/Demo/topics/orders", "x", inBinary, 400, "bad-name"},
		"no name":                {"POST", "/v1/demo/topics/", "x", inBinary, 400, "bad-name"},
		"no namespace":           {"POST", "/v1//topics/orders", "x", inBinary, 400, "bad-name"},
		"backslash":              {"POST", "/v1/demo/topics/..%5Corders", "x", inBinary, 400, "bad-name"},
		"headers beyond bounds":  {"POST", orders, "x", append([]string{"ce-long: " + strings.Repeat("x", 20<<10)}, inBinary...), 400, "bad-event"},
		"dots":                   {"POST", "/v1/demo/topics/x/../orders", "x", inBinary, 404, "unknown-path"},
		"slashes":                {"POST", "//v1/demo/topics/orders", "x", inBinary, 404, "unknown-path"},
		"slash behind":           {"POST", orders + "/", "x", inBinary, 404, "unknown-path"},
		"a pattern":              {"POST", "/v1/demo/topics/%3E", "x", inBinary, 400, "bad-name"},
		"method":                 {"GET", orders, "", nil, 405, "method-not-allowed"},
		"method of a tail":       {"POST", orders + "/events", "", nil, 405, "method-not-allowed"},
		"Basic":                  {"POST", orders, "x", append([]string{"Authorization: Basic eDp5"}, inBinary...), 401, "bad-credentials"},
		"blank key":              {"POST", orders, "x", append([]string{"Authorization: Bearer  "}, inBinary...), 401, "bad-credentials"},
		"two keys":               {"POST", orders, "x", append([]string{"Authorization: Bearer a", "Authorization: Bearer b"}, inBinary...), 401, "bad-credentials"},
		"rebinding":              {"POST", orders, "x", append([]string{"Host: evil.example"}, inBinary...), 401, "cross-site"},
		"a page":                 {"POST", orders, "x", append([]string{"Origin: https://evil.example"}, inBinary...), 401, "cross-site"},
		"a page, fetched":        {"POST", orders, "x", append([]string{"Sec-Fetch-Site: cross-site"}, inBinary...), 401, "cross-site"},
		"misspelled":             {"GET", orders + "/events?start=beginning", "", nil, 400, "bad-parameter"},
		"a parameter twice":      {"GET", orders + "/events?from=end&from=beginning", "", nil, 400, "bad-parameter"},
		"a bad escape":           {"GET", orders + "/events?from=%zz", "", nil, 400, "bad-parameter"},
		"a parameter of others":  {"POST", orders + "?from=end", "x", inBinary, 400, "bad-parameter"},
		"another's, of pulls":    {"POST", "/v1/demo/subscriptions/billing:pull?max=1", "", nil, 400, "bad-parameter"},
		"another's, of settling": {"POST", "/v1/demo/subscriptions/billing:settle?x", "", nil, 400, "bad-parameter"},
		"another's, of requests": {"POST", orders + ":request?wait=1s", "x", inBinary, 400, "bad-parameter"},
		"another's, of replies":  {"POST", "/v1/demo/replies?timeout=1s", "x", inBinary, 400, "bad-parameter"},
		"another verb":           {"POST", orders + ":ask", "x", inBinary, 404, "unknown-path"},
		"bad from":               {"GET", orders + "/events?from=yesterday", "", nil, 400, "bad-from"},
		"bad last event":         {"GET", orders + "/events", "", []string{"Last-Event-ID: x"}, 400, "bad-last-event-id"},
		"denied tail":            {"GET", "/v1/demo/topics/secret/events", "", nil, 403, "access-denied"},
		"pattern, escaped twice": {"GET", "/v1/demo/topics/%253E/events", "", nil, 400, "bad-name"},
		"pattern and a letter":   {"GET", "/v1/demo/topics/order%73.%3e/events", "", nil, 400, "bad-name"},
		"bad pattern":            {"GET", "/v1/demo/topics/a..b/events", "", nil, 400, "bad-name"},
	} {
		resp, body := w.ask(tc.method, tc.path, tc.body, tc.header...)
		var d details
		_ = json.Unmarshal([]byte(body), &d)
		if resp.StatusCode != tc.status || d.Reason != tc.reason {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	w.ask("POST", orders, one("first"), structured, "Content-Encoding: Identity")
	if e := w.tail(orders+"/events?from=beginning", "").next(); e.ID != "first" {
		t.Errorf("%+v was kept", e)
	}
}

// TestBadBatch: each event of a batch has its own result, whatever is wrong with
// it, and nothing of the batch is kept.
func TestBadBatch(t *testing.T) {
	w := serve(t)
	large := fmt.Sprintf(`{"specversion":"1.0","id":"5","source":"/curl","type":"t","data":%q}`, strings.Repeat("x", 2<<10))
	resp, body := w.ask("POST", orders, "["+strings.Join([]string{one("0"), `{"specversion":"0.3","id":"1"}`, one("2"), "7", `{"specversion":"1.0","id":"4","type":"t"}`, large}, ", ")+"]", batch)
	var got struct{ Results []result }
	w.must(json.Unmarshal([]byte(body), &got))
	want := []struct{ reason, says string }{{"batch-refused", "another"}, {"bad-event", "specversion is"}, {"batch-refused", "another"}, {"bad-event", "JSON object"}, {"bad-event", "source"}, {"event-too-large", "takes 1024"}}
	if resp.StatusCode != http.StatusBadRequest || len(got.Results) != len(want) {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for i, r := range got.Results {
		if r.Position != "" || r.Error == nil || r.Error.Reason != want[i].reason || !strings.Contains(r.Error.Detail, want[i].says) {
			t.Errorf("event %d: %+v", i, r.Error)
		}
	}
	// Who may not publish hears that, and not what is wrong.
	_, body = w.ask("POST", "/v1/demo/topics/secret", "[{},"+one("1")+"]", batch)
	w.must(json.Unmarshal([]byte(body), &got))
	if len(got.Results) != 2 || got.Results[0].Error.Reason != "access-denied" || got.Results[1].Error.Reason != "access-denied" {
		t.Error(body)
	}
	w.publish("orders", "first")
	if e := w.tail(orders+"/events?from=beginning", "").next(); e.ID != "first" {
		t.Errorf("%+v was kept", e)
	}
}

// TestCutBody: a request that ends before its body does is not an event.
func TestCutBody(t *testing.T) {
	w := serve(t)
	const head = " HTTP/1.1\r\nHost: localhost\r\nce-specversion: 1.0\r\nce-id: cut\r\nce-source: /s\r\nce-type: t\r\n"
	for _, rest := range []string{"Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n10\r\nhalf", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
		"Content-Length: 4\r\nContent-Length: 5\r\n\r\nhalf", "Content-Length: -1\r\n\r\n", "ce bad: x\r\nContent-Length: 0\r\n\r\n"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
		w.must(err)
		_, err = io.WriteString(c, "POST "+orders+head+rest)
		w.must(err)
		w.must(c.(*net.TCPConn).CloseWrite())
		w.must(c.SetReadDeadline(time.Now().Add(2 * time.Minute)))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %d", rest, resp.StatusCode)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q is waited for", rest)
		}
		_ = c.Close()
	}
	w.publish("orders", "first")
	if e := w.tail(orders+"/events?from=beginning", "").next(); e.ID != "first" {
		t.Errorf("%+v was kept", e)
	}
}

// TestTraceContext: an event without a trace gets the request's; a header that
// is none of it harms nothing.
func TestTraceContext(t *testing.T) {
	w := serve(t)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for i, h := range [][]string{{"Traceparent: " + parent, "Tracestate: a=b"}, {"Traceparent: \xff"}, {}} {
		if resp, body := w.ask("POST", orders, one(fmt.Sprint(i)), append(h, structured)...); resp.StatusCode != http.StatusOK {
			t.Errorf("%q: %s", h, body)
		}
	}
	s := w.tail(orders+"/events?from=beginning", "")
	for i, want := range []string{parent, "", ""} {
		if e := s.next(); e.Traceparent != want || (e.Tracestate != "") != (want != "") {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}

// sse is an open stream.
type sse struct {
	*world
	lines *bufio.Scanner
	close func()
	id    string // the newest
}

type seen struct {
	ID          string          `json:"id"`
	Data        json.RawMessage `json:"data"`
	Traceparent string          `json:"traceparent"`
	Tracestate  string          `json:"tracestate"`
}

func (w *world) tail(path, last string) *sse {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+path, nil)
	w.must(err)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := w.client.Do(req)
	w.must(err)
	s := &sse{world: w, lines: bufio.NewScanner(resp.Body), close: func() { cancel(); _ = resp.Body.Close() }}
	w.Cleanup(s.close)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(resp.Body)
		w.Fatalf("%s: %d %s", path, resp.StatusCode, b)
	}
	if !s.lines.Scan() || !strings.HasPrefix(s.lines.Text(), ":") { // open: where it begins is fixed
		w.Fatal("the stream does not open")
	}
	s.lines.Scan()
	if s.id = strings.TrimPrefix(s.lines.Text(), "id: "); s.id == s.lines.Text() {
		w.Fatalf("the stream opens with %q", s.id)
	}
	return s
}

func (s *sse) next() (e seen) {
	s.Helper()
	for s.lines.Scan() {
		line := s.lines.Text()
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			s.id = id
		}
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			s.must(json.Unmarshal([]byte(data), &e))
			return e
		}
	}
	s.Fatal("the stream ended")
	return e
}

func (w *world) publish(topic string, ids ...string) {
	w.Helper()
	for _, id := range ids {
		if resp, body := w.ask("POST", "/v1/demo/topics/"+topic, one(id), structured); resp.StatusCode != http.StatusOK {
			w.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
}

// TestPatterns: a tail takes patterns, escaped or not.
func TestPatterns(t *testing.T) {
	w := serve(t)
	w.publish("orders.eu", "1")
	for _, p := range []string{"orders.>", "orders.%3E", "orders.*", "orders.%2A", "orders.%2a", "orders.%3e", ">", "*.eu"} {
		s := w.tail("/v1/demo/topics/"+p+"/events?from=beginning", "")
		if e := s.next(); e.ID != "1" {
			t.Errorf("%s: %+v", p, e)
		}
		s.close()
	}
}

// TestResume: a stream goes on behind what it has seen, in each topic, without a
// gap; and where it has seen nothing it begins where it first began, not at the
// history.
func TestResume(t *testing.T) {
	w := serve(t)
	w.publish("orders", "old")
	w.publish("orders.eu", "old-eu")
	// What is older than a stream's beginning is told by the store's clock.
	for began := time.Now().UnixMilli(); time.Now().UnixMilli() == began; {
		w.ask("GET", "/", "")
	}
	s := w.tail("/v1/demo/topics/>/events", "")
	s.close()
	w.publish("orders", "1") // before the first stream has seen one
	s = w.tail("/v1/demo/topics/>/events", s.id)
	if e := s.next(); e.ID != "1" {
		t.Fatalf("%+v", e)
	}
	last := s.id
	s.close()
	w.publish("orders.eu", "2") // while nobody reads
	s = w.tail("/v1/demo/topics/>/events", last)
	w.publish("orders", "3")
	got := map[string]bool{s.next().ID: true, s.next().ID: true}
	if !got["2"] || !got["3"] {
		t.Errorf("after resuming: %v", got)
	}
	// From the beginning it is the history.
	s.close()
	s = w.tail("/v1/demo/topics/orders/events?from=beginning", "")
	s.next()
	last = s.id
	s.close()
	s = w.tail("/v1/demo/topics/>/events", last)
	got = map[string]bool{}
	for range 4 {
		got[s.next().ID] = true
	}
	if !got["old-eu"] || !got["1"] || !got["2"] || !got["3"] {
		t.Errorf("after resuming from the beginning: %v", got)
	}
}

// TestResumeWithoutATopic: a stream of a pattern goes on where a topic that it had read is
// gone meanwhile.
func TestResumeWithoutATopic(t *testing.T) {
	w := serve(t)
	w.publish("orders", "1")
	w.publish("orders.eu", "2")
	s := w.tail("/v1/demo/topics/>/events?from=beginning", "")
	s.next()
	s.next()
	s.close()
	w.publish("orders", "3")
	was := w.mesh.snaps.Get()
	topics := maps.Clone(was.Topics)
	delete(topics, snapshot.Key{Namespace: "demo", Name: "orders.eu"})
	w.mesh.snaps.Store(&snapshot.Snapshot{Lineage: was.Lineage, Identities: was.Identities, Rules: was.Rules, Topics: topics})
	s = w.tail("/v1/demo/topics/>/events", s.id)
	if e := s.next(); e.ID != "3" {
		t.Errorf("%+v", e)
	}
	s.close()
}

// TestSlowHeaders: whoever does not finish its headers is cut off, and others
// are served meanwhile.
func TestSlowHeaders(t *testing.T) {
	w := serve(t)
	var slow []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
		w.must(err)
		defer c.Close()
		_, err = c.Write([]byte("POST " + orders + " HTTP/1.1\r\nHost: localhost\r\n"))
		w.must(err)
		slow = append(slow, c)
	}
	w.publish("orders", "1")
	for _, c := range slow {
		w.must(c.SetReadDeadline(time.Now().Add(2 * time.Minute)))
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Fatalf("the connection lives: %v", err)
		}
	}
}

// endless is a tail that always has events.
type endless struct{ delivery.Tail }

func (endless) Next(_ context.Context, dst []delivery.Delivery) (int, error) {
	for i := range dst {
		dst[i] = delivery.Delivery{Topic: "orders", Event: &event.Event{ID: "1", Source: "/s", Type: "t", Data: make([]byte, 10<<10)}}
	}
	return len(dst), nil
}

// TestStalledTail: a client that reads nothing of a stream is cut off.
func TestStalledTail(t *testing.T) {
	s := New(Config{Stall: 50 * time.Millisecond})
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		s.pump(r.Context(), endless{}, &stream{rc: http.NewResponseController(w), w: w, stall: s.cfg.Stall}, &places{})
	}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err == nil {
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("whoever does not read is waited for")
	}
}

// TestTooLargeAtOnce: a client that asks whether to send a body that is too large hears that
// it is, before it has sent anything.
func TestTooLargeAtOnce(t *testing.T) {
	w := serve(t)
	for _, path := range []string{orders, orders + ":request", "/v1/demo/replies", billing + ":pull"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
		w.must(err)
		_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nCe-Specversion: 1.0\r\nCe-Id: 1\r\nCe-Source: /s\r\nCe-Type: t\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n", path)
		w.must(err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %v, %v", path, resp, err)
		}
		w.must(c.Close())
	}
}

// TestBodiesAreBounded: requests whose bodies do not end hold a bounded number of
// bytes together; what comes meanwhile is told to come back.
func TestBodiesAreBounded(t *testing.T) {
	w := serve(t)
	c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
	w.must(err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4096\r\n\r\n%s", orders, strings.Repeat("x", 4000))
	w.must(err)
	status := func() int {
		resp, text := w.ask(http.MethodPost, orders, strings.Repeat("x", 3000), structured)
		if resp.StatusCode == http.StatusTooManyRequests && (resp.Header.Get("Retry-After") == "" || !strings.Contains(text, "proxy-full")) {
			t.Errorf("%v %s", resp.Header, text)
		}
		return resp.StatusCode
	}
	for tries := 0; status() != http.StatusTooManyRequests; tries++ {
		if tries == 1000 {
			t.Fatal("bodies are read without a bound")
		}
	}
	w.must(c.Close())
	for status() != http.StatusBadRequest { // it was read, and is no event
	}
}
