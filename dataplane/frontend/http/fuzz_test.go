package http

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/rest"
)

// recorder remembers what a request asks of the mesh.
type recorder struct {
	frontend.Mesh
	asked, published, tailed bool
	key                      string
	call                     frontend.Call
	namespace, name          string
	events                   []event.Event
	errs                     int
	tail                     delivery.TailRequest
	pulled                   bool
	verb                     string
	settled                  delivery.Settlement
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

func (r *recorder) Binds(host string) bool { return host == "shop.example" }

func (r *recorder) Bound(_ *policy.Principal, call frontend.Call) (frontend.Bound, error) {
	r.call = call
	rule, err := rest.CompileRule(&configv1.HttpRule{Path: "/{all...}", Topic: "bound", Attributes: map[string]string{"type": "t", "source": "/{all}", "subject": "{all}"}})
	if err != nil || call.Method != http.MethodPost || len(call.Path.Segments()) == 0 {
		return frontend.Bound{Allow: []string{http.MethodPost}}, err
	}
	return frontend.Bound{Namespace: "demo", Rule: rule}, nil
}

func (r *recorder) Tail(_ context.Context, _ *policy.Principal, req delivery.TailRequest) (delivery.Tail, error) {
	r.tailed, r.namespace, r.name, r.tail = true, req.Namespace, req.Topics[0], req
	return nil, fault.New(fault.NotFound, "test", "nothing", "there is nothing here")
}

func (r *recorder) Pull(_ context.Context, _ *policy.Principal, namespace, subscription string, _ delivery.PullRequest) (delivery.Pulled, error) {
	r.pulled, r.namespace, r.name, r.verb = true, namespace, subscription, verbPull
	return delivery.Pulled{}, fault.New(fault.NotFound, "test", "nothing", "there is nothing here")
}

func (r *recorder) Settle(_ context.Context, _ *policy.Principal, namespace, subscription string, x delivery.Settlement) ([]delivery.Unsettled, error) {
	r.pulled, r.namespace, r.name, r.verb, r.settled = true, namespace, subscription, verbSettle, x
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
	for _, path := range []string{"/orders/1", "/a%2fb", "/a%2Fb\"", "/a/../b", "/%2e%2e/a", "/a//b", "/a%5cb", "/a%00b", "/%256f", "", "/", "/;a"} {
		f.Add([]byte("POST /rest/demo" + path + " HTTP/1.1\r\nHost: x\r\n\r\n"))
		f.Add([]byte("POST " + path + " HTTP/1.1\r\nHost: Shop.example:80\r\n\r\n"))
	}
	for path, body := range map[string]string{
		"billing:pull": `{"max_events": 5, "wait": "1s"}`, "%62illing:pull": "", "billing:settle": `{"ack":["a"],"nack":[{"delivery_ids":["b"],"delay":"5s","reason":"r"}],"extend":[{"delivery_ids":["c"],"ack_timeout":"1m"}]}`,
		"a:pull:settle": `{"ack":[[[[[[[[`} {
		f.Add(fmt.Appendf(nil, "POST /v1/demo/subscriptions/%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body))
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
		if (mesh.published || mesh.tailed || mesh.pulled) && !mesh.asked {
			t.Error("served without a look at the credentials")
		}
		if mesh.key != strings.TrimSpace(mesh.key) || mesh.asked && (mesh.key != "") != (len(req.Header.Values("Authorization")) > 0) {
			t.Errorf("the key is %q, the header %q", mesh.key, req.Header.Values("Authorization"))
		}
		path, _, _ := strings.Cut(req.RequestURI, "?")
		switch {
		case mesh.published && mesh.call.Path != nil:
			// What was matched is what becomes the event, and has the slashes that came.
			segments := mesh.call.Path.Segments()
			if mesh.events[0].Subject != strings.Join(segments, "/") {
				t.Errorf("%q is matched as %q and becomes %q", path, segments, mesh.events[0].Subject)
			}
			if u, err := url.ParseRequestURI(req.RequestURI); err == nil && !strings.HasSuffix(u.Path, "/"+strings.Join(segments, "/")) {
				t.Errorf("%q is matched as %q", path, segments)
			}
			slashes := len(segments)
			if mesh.call.Namespace != "" {
				slashes += 2
			}
			if _, after, ok := strings.Cut(path, "://"); ok && !strings.HasPrefix(path, "/") {
				path = after[strings.Index(after, "/"):]
			}
			if strings.Count(path, "/") != slashes {
				t.Errorf("%q is matched as %q", path, segments)
			}
		case mesh.published:
			if names.CheckNamespace(mesh.namespace) == nil && names.CheckName("topic", mesh.name) == nil && !strings.HasSuffix(path, "/v1/"+mesh.namespace+"/topics/"+mesh.name) {
				t.Errorf("%q publishes to %q of %q", path, mesh.name, mesh.namespace)
			}
			if len(mesh.events) == 0 || len(mesh.events) > 1000 {
				t.Errorf("%d events", len(mesh.events))
			}
		case mesh.pulled:
			if names.CheckNamespace(mesh.namespace) == nil && names.CheckName("subscription", mesh.name) == nil && !strings.HasSuffix(path, "/v1/"+mesh.namespace+"/subscriptions/"+mesh.name+mesh.verb) {
				t.Errorf("%q is %s of %q of %q", path, mesh.verb, mesh.name, mesh.namespace)
			}
			for _, n := range mesh.settled.Nack {
				if n.Delay > delivery.MaxNackDelay {
					t.Errorf("a delay of %s", n.Delay)
				}
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
