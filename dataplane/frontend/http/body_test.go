package http

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

func poison(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}

// judge looks whether events have the data that they came with.
type judge struct {
	frontend.Mesh
	t    *testing.T
	mu   sync.Mutex
	kept [][]event.Event // of calls that failed, which a store may still read
}

func dataOf(id string) string { return strings.Repeat(id+".", 50) }

func (j *judge) look(when string, events []event.Event) {
	for i := range events {
		if e := &events[i]; strings.Trim(string(e.Data), `"`) != dataOf(e.ID) {
			j.t.Errorf("%s, event %q has data of another one: %.40q", when, e.ID, e.Data)
		}
	}
}

func (*judge) Authenticate(context.Context, policy.Credentials) (*policy.Principal, error) {
	return &policy.Principal{Namespace: "demo", Name: "somebody"}, nil
}

func (j *judge) Publish(_ context.Context, _ *policy.Principal, _, _ string, events []event.Event, res []frontend.Result) (err error) {
	j.look("before", events)
	if strings.HasPrefix(events[0].ID, "bad") {
		err = fault.New(fault.Ambiguous, "test", "ambiguous", "nobody knows")
		j.mu.Lock()
		j.kept = append(j.kept, events)
		j.mu.Unlock()
	}
	for i := range res {
		res[i] = frontend.Result{Err: err}
		if err == nil {
			res[i].Position = position.Token{TopicUID: "11111111-1111-4111-8111-111111111111", Epoch: 1, Pos: store.Position{Offset: uint64(i)}}
		}
	}
	j.look("after", events)
	return err
}

// TestBodies: events keep their bytes until they are published; where nobody knows
// whether a store is done with them, for ever. The answer has the positions of the
// request's own events.
func TestBodies(t *testing.T) {
	j := &judge{t: t}
	s := New(Config{Mesh: j, Log: slog.New(slog.DiscardHandler)})
	post := func(body string, header ...string) string {
		req := httptest.NewRequest(http.MethodPost, orders, strings.NewReader(body))
		for _, h := range header {
			name, value, _ := strings.Cut(h, ": ")
			req.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, req)
		return w.Body.String()
	}
	one := func(id string) string {
		return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/s","type":"t","data":%q}`, id, dataOf(id))
	}
	var wg sync.WaitGroup
	for c := range 4 {
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprintf("%s-%d-%d", []string{"good", "bad"}[i%2], c, i)
				post(dataOf(id), "Ce-Specversion: 1.0", "Ce-Id: "+id, "Ce-Source: /s", "Ce-Type: t")
				post(one(id), structured)
				var list []string
				for n := range 1 + i {
					list = append(list, one(fmt.Sprintf("%s-%d", id, n)))
				}
				var got struct {
					Results []result `json:"results"`
				}
				answer := post("["+strings.Join(list, ",")+"]", batch)
				if err := json.Unmarshal([]byte(answer), &got); err != nil || len(got.Results) != len(list) {
					t.Errorf("%v: %q", err, answer)
					return
				}
				for n, r := range got.Results {
					if tok, err := position.Parse(r.Position); (r.Error == nil) != (i%2 == 0) || r.Error == nil && (err != nil || tok.Pos.Offset != uint64(n)) { //nolint:gosec // not negative
						t.Errorf("result %d: %+v", n, r)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(j.kept) == 0 {
		t.Error("nothing failed")
	}
	for _, events := range j.kept {
		j.look("long after", events)
	}
	if n := s.bodies.Load(); n != 0 {
		t.Errorf("%d bytes of bodies are held", n)
	}
}

// nothingWritten is an answer that is not looked at.
type nothingWritten struct{ h http.Header }

func (w nothingWritten) Header() http.Header         { return w.h }
func (w nothingWritten) WriteHeader(int)             {}
func (w nothingWritten) Write(b []byte) (int, error) { return len(b), nil }

type rewound struct {
	strings.Reader
	text string
}

func (r *rewound) Close() error {
	r.Reset(r.text)
	return nil
}

// single is a request with one event of 1 KiB in binary mode, which can be asked
// again once its body is closed.
func single() *http.Request {
	body := &rewound{text: strings.Repeat("x", 1024)}
	req := httptest.NewRequest(http.MethodPost, orders, body)
	req.ContentLength = 1024
	_ = body.Close()
	for name, value := range map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/s", "Ce-Type": "t", "Content-Type": "text/plain", "Authorization": "Bearer x"} {
		req.Header.Set(name, value)
	}
	return req
}

type taker struct{ judge }

func (*taker) Publish(context.Context, *policy.Principal, string, string, []event.Event, []frontend.Result) error {
	return nil
}

// TestPublishAllocations: a request with one event takes little of the heap, and
// nothing for its data.
func TestPublishAllocations(t *testing.T) {
	s := New(Config{Mesh: &taker{}, Log: slog.New(slog.DiscardHandler)})
	req, w := single(), nothingWritten{http.Header{}}
	ask := func() {
		s.ServeHTTP(w, req)
		_ = req.Body.Close()
	}
	if n := testing.AllocsPerRun(200, ask); n > 10 {
		t.Errorf("%.0f allocations a request", n)
	}
}

// BenchmarkPublish is what the frontend takes for a request with one event of 1 KiB.
func BenchmarkPublish(b *testing.B) {
	s := New(Config{Mesh: &taker{}, Log: slog.New(slog.DiscardHandler)})
	req, w := single(), nothingWritten{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		s.ServeHTTP(w, req)
		_ = req.Body.Close()
	}
}
