package http

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// subscribe adds the Subscription demo/billing of demo/orders.
func subscribe(w *world, snap *snapshot.Snapshot, st store.Store) {
	w.Helper()
	admin := st.(store.Admin)
	w.must(admin.EnsureGroup(context.Background(), "orders", "g", store.Start{}))
	w.must(admin.EnsureTopic(context.Background(), store.TopicSpec{Name: "retry"}))
	w.must(admin.EnsureGroup(context.Background(), "retry", "g", store.Start{}))
	topic := snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}]
	key := snapshot.Key{Namespace: "demo", Name: "billing"}
	snap.Subscriptions = map[snapshot.Key]*snapshot.Subscription{key: {Key: key, UID: "33333333-3333-4333-8333-333333333333", Topics: []string{"orders"},
		Sources:    []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "g"}},
		AckTimeout: time.Minute, MaxInFlight: 1024, MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}}
}

const billing = "/v1/demo/subscriptions/billing"

// pulled is an answer to a pull.
type pulled struct {
	AckTimeout string `json:"ack_timeout"`
	Deliveries []struct {
		ID       string `json:"delivery_id"`
		Topic    string
		Position string
		Attempt  int
		Event    struct {
			ID, Source, SpecVersion string
			Data                    json.RawMessage
		}
	}
}

func (w *world) pull(body string) (out pulled) {
	w.Helper()
	resp, text := w.ask("POST", billing+":pull", body)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
		w.Fatalf("%d %s", resp.StatusCode, text)
	}
	w.must(json.Unmarshal([]byte(text), &out))
	return out
}

// TestPull: an event is pulled, given back, pulled again and settled over HTTP.
func TestPull(t *testing.T) {
	w := serve(t)
	if got := w.pull(`{"wait": "10ms"}`); got.Deliveries == nil || len(got.Deliveries) != 0 || got.AckTimeout != "1m" {
		t.Errorf("%+v", got)
	}
	for _, id := range []string{"1", "2"} {
		if resp, text := w.ask("POST", orders, one(id), structured); resp.StatusCode != http.StatusOK {
			t.Fatal(text)
		}
	}
	first := w.pull("").Deliveries
	if len(first) != 1 || first[0].Event.ID != "1" || string(first[0].Event.Data) != `{"a":1}` || first[0].Event.SpecVersion != "1.0" || first[0].Topic != "orders" ||
		first[0].Attempt != 1 || first[0].Position == "" {
		t.Fatalf("%+v", first)
	}
	settle := func(body string, code int, parts ...string) {
		t.Helper()
		resp, text := w.ask("POST", billing+":settle", body)
		if resp.StatusCode != code {
			t.Errorf("%s: %d %s", body, resp.StatusCode, text)
		}
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("%s: %s has no %s", body, text, p)
			}
		}
	}
	settle(`{"extend":[{"delivery_ids":["`+first[0].ID+`"],"ack_timeout":"2m"}]}`, 200, `"settled":1`)
	settle(`{"nack":[{"delivery_ids":["`+first[0].ID+`"],"delay":"0s","reason":"busy"}]}`, 200, `{"settled":1}`)
	var got []string
	var ids []string
	for len(got) < 2 {
		for _, d := range w.pull(`{"max_events": 10, "wait": "1m"}`).Deliveries {
			got, ids = append(got, d.Event.ID), append(ids, d.ID)
			if (d.Event.ID == "1") != (d.Attempt == 2) {
				t.Errorf("%+v", d)
			}
		}
	}
	if slices.Sort(got); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("%v", got)
	}
	settle(`{"ack":["`+first[0].ID+`","`+ids[0]+`"]}`, 207, `"settled":1`, `"delivery-over"`, first[0].ID)
	settle(`{"ack":["`+ids[1]+`"]}`, 200)
	settle(`{"ack":["`+ids[1]+`"]}`, 412, `"settled":0`, "delivery-over")
	settle(`{"ack":["x"]}`, 400, "bad-delivery-id")
}

// unsent is an answer to a client that is gone: what is small is only missed once it is to
// leave the buffer.
type unsent struct {
	*httptest.ResponseRecorder
	small bool
}

func (u unsent) Write(b []byte) (int, error) {
	if u.small {
		return len(b), nil
	}
	return 0, net.ErrClosed
}

func (u unsent) FlushError() error { return net.ErrClosed }

// dated knows until when its client may take an answer.
type dated struct {
	*httptest.ResponseRecorder
	until time.Time
}

func (d *dated) SetReadDeadline(time.Time) error    { return nil }
func (d *dated) SetWriteDeadline(t time.Time) error { d.until = t; return nil }

// TestSlowClient: what takes a client long has longer than what takes it nothing: it would
// be sent again and again, and never be there.
func TestSlowClient(t *testing.T) {
	const stall, each, events = time.Minute, 1000, 200
	least := stall + each*events/(64<<10)*time.Second
	w := serve(t)
	many := make([]event.Event, events)
	for i := range many {
		many[i] = event.Event{ID: strconv.Itoa(i), Source: "/s", Type: "t", Data: make([]byte, each)}
	}
	if err := w.mesh.Publish(t.Context(), &policy.Principal{Name: policy.Local}, "demo", "orders", many, make([]frontend.Result, events)); err != nil {
		t.Fatal(err)
	}
	s := New(Config{Mesh: w.mesh, Stall: stall, MaxBody: 4 << 10, Log: slog.New(slog.DiscardHandler)})
	pulled, began := &dated{ResponseRecorder: httptest.NewRecorder()}, time.Now()
	r := httptest.NewRequest(http.MethodPost, billing+":pull", strings.NewReader(`{"wait": "1m", "max_events": 200}`))
	r.Host, r.RemoteAddr = "127.0.0.1", "127.0.0.1:5"
	if s.ServeHTTP(pulled, r); pulled.Body.Len() < each*events || pulled.until.Before(began.Add(least)) {
		t.Errorf("%d bytes that are pulled may take until %v, asked at %v", pulled.Body.Len(), pulled.until, began)
	}
	tailed := &dated{ResponseRecorder: httptest.NewRecorder()}
	began = time.Now()
	out := &stream{rc: http.NewResponseController(tailed), w: tailed, stall: stall}
	if err := out.write(make([]byte, each*events)); err != nil || tailed.until.Before(began.Add(least)) {
		t.Errorf("what is tailed may take until %v, written at %v: %v", tailed.until, began, err)
	}
}

// TestPullUnsent: what is pulled in an answer that cannot be sent is given back at once, and
// was no attempt.
func TestPullUnsent(t *testing.T) {
	w := serve(t)
	if resp, text := w.ask("POST", orders, one("1"), structured); resp.StatusCode != http.StatusOK {
		t.Fatal(text)
	}
	s := New(Config{Mesh: w.mesh, MaxBody: 4 << 10, Log: slog.New(slog.DiscardHandler)})
	for _, small := range []bool{false, true} {
		r := httptest.NewRequest(http.MethodPost, billing+":pull", strings.NewReader(`{"wait": "1m"}`))
		r.Host, r.RemoteAddr = "127.0.0.1", "127.0.0.1:5"
		answer := unsent{httptest.NewRecorder(), small}
		if s.ServeHTTP(answer, r); answer.Code != http.StatusOK || answer.Header().Get("Content-Length") == "" {
			t.Fatalf("%d %v", answer.Code, answer.Header())
		}
	}
	if got := w.pull(`{"wait": "1s"}`).Deliveries; len(got) != 1 || got[0].Attempt != 1 {
		t.Errorf("%+v", got)
	}
}

// TestPullRefusals: what a pull and a settlement may not be.
func TestPullRefusals(t *testing.T) {
	w := serve(t)
	many := `{"ack":[` + strings.TrimSuffix(strings.Repeat(`"",`, delivery.MaxSettle+1), ",") + `]}`
	for _, tc := range []struct {
		path, body string
		code       int
		reason     string
	}{
		{billing + ":pull", `{"max_events": 1001}`, 400, "bad-pull"},
		{billing + ":pull", `{"max_events": 0}`, 400, "bad-pull"},
		{billing + ":pull", `{"wait": "61s"}`, 400, "bad-pull"},
		{billing + ":pull", `{"wait": "-1s"}`, 400, "bad-pull"},
		{billing + ":pull", `{"wait": "soon"}`, 400, "bad-pull"},
		{billing + ":pull", `{"maximum": 1}`, 400, "bad-body"},
		{billing + ":pull", `{} {}`, 400, "bad-body"},
		{billing + ":pull", `[]`, 400, "bad-body"},
		{billing + ":pull", `{"wait":"` + strings.Repeat("x", 5<<10) + `"}`, 413, "body-too-large"},
		{billing + ":settle", ``, 400, "bad-settlement"},
		{billing + ":settle", many, 400, "bad-settlement"},
		{billing + ":settle", `{"nack":[{"delivery_ids":["x"],"delay":"25h"}]}`, 400, "bad-delay"},
		{billing + ":settle", `{"nack":[{"delivery_ids":["x"],"delay":"-1s"}]}`, 400, "bad-delay"},
		{billing + ":settle", `{"extend":[{"delivery_ids":["x"],"ack_timeout":"0s"}]}`, 400, "bad-delay"},
		{billing + ":settle", `{"extend":[{"delivery_ids":["x"],"ack_timeout":"2h"}]}`, 400, "bad-delay"},
		{"/v1/demo/subscriptions/other:pull", ``, 403, "access-denied"},
		{"/v1/demo/subscriptions/other:settle", `{"ack":["x"]}`, 403, "access-denied"},
		{"/v1/demo/subscriptions/billing%3Apull", ``, 404, "unknown-path"},
		{"/v1/demo/subscriptions/b%69lling:pull", ``, 403, "access-denied"},
		{"/v1/demo/subscriptions/billing", ``, 404, "unknown-path"},
	} {
		resp, text := w.ask("POST", tc.path, tc.body)
		var d details
		w.must(json.Unmarshal([]byte(text), &d))
		if resp.StatusCode != tc.code || d.Reason != tc.reason {
			t.Errorf("%s %.60s: %d %s", tc.path, tc.body, resp.StatusCode, text)
		}
	}
	if resp, _ := w.ask("GET", billing+":pull", ""); resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "POST" {
		t.Errorf("%d", resp.StatusCode)
	}
}
