package http

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/pkg/names"
)

// recorder remembers what a request asks of the mesh.
type recorder struct {
	frontend.Mesh
	asked, published, tailed bool
	key                      string
	namespace, name          string
	events                   []event.Event
	errs                     int
	tail                     delivery.TailRequest
}

func (r *recorder) Authenticate(_ context.Context, c policy.Credentials) (*policy.Principal, error) {
	r.asked, r.key = true, c.Bearer
	return &policy.Principal{Namespace: "demo", Name: "somebody"}, nil
}

func (r *recorder) Publish(_ context.Context, _ *policy.Principal, namespace, topic string, events []event.Event, res []frontend.Result) error {
	r.published, r.namespace, r.name, r.events = true, namespace, topic, events
	for i := range res {
		if res[i].Err != nil {
			r.errs++
		}
		res[i].Err = fault.New(fault.NotFound, "test", "nothing", "there is nothing here")
	}
	return fault.New(fault.NotFound, "test", "nothing", "there is nothing here")
}

func (r *recorder) Tail(_ context.Context, _ *policy.Principal, req delivery.TailRequest) (delivery.Tail, error) {
	r.tailed, r.namespace, r.name, r.tail = true, req.Namespace, req.Topics[0], req
	return nil, fault.New(fault.NotFound, "test", "nothing", "there is nothing here")
}

// FuzzRequest: whatever comes over HTTP is refused, or asks the mesh for exactly
// the topic that stands in its path, as somebody who was asked for credentials,
// and costs memory in proportion to what came.
func FuzzRequest(f *testing.F) {
	fuzztest.Seeds(f, "*.http")
	for _, path := range []string{"/v1/demo/topics/%6frders", "/v1/demo/topics/../orders", "/v1/demo%2Ftopics/orders", "/v1/demo/topics/%3E/events", "//v1/demo/topics/orders", "/v1/demo/topics/a%00b"} {
		f.Add([]byte("POST " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: bearer  weft_a_b \r\nce-specversion: 1.0\r\n\r\n"))
		f.Add([]byte("GET " + path + " HTTP/1.1\r\nHost: x\r\nLast-Event-ID: AQAAAA\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		req.RemoteAddr = "127.0.0.1:5"
		mesh := &recorder{}
		s := New(Config{Mesh: mesh, MaxBody: 1 << 20, Log: slog.New(slog.DiscardHandler)})
		rec := httptest.NewRecorder()
		n := fuzztest.Allocated(func() { s.ServeHTTP(rec, req) })
		_, _ = io.Copy(io.Discard, req.Body)
		if most := 512*uint64(len(b)) + 256<<10; n > most {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if rec.Code < 200 || rec.Code >= 500 || rec.Code == http.StatusOK {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		if (mesh.published || mesh.tailed) && !mesh.asked {
			t.Error("served without a look at the credentials")
		}
		if mesh.key != strings.TrimSpace(mesh.key) || mesh.asked && (mesh.key != "") != (len(req.Header.Values("Authorization")) > 0) {
			t.Errorf("the key is %q, the header %q", mesh.key, req.Header.Values("Authorization"))
		}
		path, _, _ := strings.Cut(req.RequestURI, "?")
		switch {
		case mesh.published:
			if names.CheckNamespace(mesh.namespace) == nil && names.CheckName("topic", mesh.name) == nil && !strings.HasSuffix(path, "/v1/"+mesh.namespace+"/topics/"+mesh.name) {
				t.Errorf("%q publishes to %q of %q", path, mesh.name, mesh.namespace)
			}
			if len(mesh.events) == 0 || len(mesh.events) > 1000 {
				t.Errorf("%d events", len(mesh.events))
			}
		case mesh.tailed:
			plain := strings.NewReplacer("%3E", ">", "%3e", ">", "%2A", "*", "%2a", "*").Replace(path)
			if names.CheckNamespace(mesh.namespace) == nil && names.CheckPattern("topic", mesh.name) == nil && !strings.HasSuffix(plain, "/v1/"+mesh.namespace+"/topics/"+mesh.name+"/events") {
				t.Errorf("%q tails %q of %q", path, mesh.name, mesh.namespace)
			}
			if len(mesh.tail.After) > maxPlaces {
				t.Errorf("%d positions", len(mesh.tail.After))
			}
		}
	})
}
