package weft

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/weft-mesh/weft/pkg/cloudevents"
)

// spans collects what is sent to it over OTLP.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*tracepb.Span
}

func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range req.ResourceSpans {
		for _, sc := range r.ScopeSpans {
			s.all = append(s.all, sc.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// named are the spans of a name, by their trace.
func (s *spans) named(name string) map[string]*tracepb.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*tracepb.Span{}
	for _, sp := range s.all {
		if sp.Name == name {
			out[hex.EncodeToString(sp.TraceId)] = sp
		}
	}
	return out
}

func attributeOf(sp *tracepb.Span, name string) string {
	for _, kv := range sp.GetAttributes() {
		if kv.Key == name {
			return kv.Value.GetStringValue()
		}
	}
	return ""
}

// archive is a file with a Subscription that is pulled, of what the warehouse gets.
func archive(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "archive.yaml")
	if err := os.WriteFile(file, []byte(`apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: archive}
spec:
  topics: [orders]
  start: beginning
  filter: {prefix: {type: order.}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: archive}
spec:
  rules: [{name: archive, effect: allow, principals: [local], actions: [consume], subscriptions: [archive]}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// pullArchive pulls one event of the archive and settles it.
func (m *mesh) pullArchive() {
	m.Helper()
	ask := func(verb, body string, out any) {
		resp, err := http.Post(m.http+"/v1/demo/subscriptions/archive:"+verb, "application/json", strings.NewReader(body))
		if err != nil {
			m.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil || resp.StatusCode != http.StatusOK {
			m.Fatal(resp.Status, err)
		}
	}
	var pulled struct {
		Deliveries []struct {
			ID string `json:"delivery_id"`
		}
	}
	ask("pull", `{"max_events": 1, "wait": "20s"}`, &pulled)
	if len(pulled.Deliveries) != 1 {
		m.Fatal("nothing was pulled")
	}
	ask("settle", `{"ack": ["`+pulled.Deliveries[0].ID+`"]}`, &struct{}{})
}

// TestTraces: the spans of an event's way are children of the context that its
// publisher gave, and the event keeps that context to the end. An event without
// one gets that of the publish.
func TestTraces(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &spans{}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, got)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	parents := make(chan string, 10)
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		parents <- r.Header.Get("Traceparent")
	}))
	defer hook.Close()

	m := start(t, filepath.Join(t.TempDir(), "data"), "--otlp-endpoint", "http://"+l.Addr().String())
	m.must("apply", "-f", exampleFolder(t, hook.URL))
	m.must("apply", "-f", archive(t), "--wait", "1m")
	m.must("status", "--wait", "1m")
	m.await("orders is ready", func() bool {
		_, err := m.weft("publish", "orders", "--id", "untraced", "--type", "note")
		return err == nil
	})
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	m.post("orders", "text/plain", "x", 200, binary("traced", "order.created", "traceparent", "00-"+trace+"-"+span+"-01")...)

	// The request to the webhook continues the trace.
	var parent string
	select {
	case parent = <-parents:
	case <-m.ctx.Done():
		t.Fatal("the webhook is not called")
	}
	if !strings.HasPrefix(parent, "00-"+trace+"-") || strings.Contains(parent, span) {
		t.Errorf("the webhook is called within %q", parent)
	}
	out := m.must("subscribe", "billing", "--max", "2", "-o", "json")
	ofUntraced := ""
	for line := range strings.Lines(out) {
		e, err := cloudevents.DecodeJSON([]byte(strings.TrimSpace(line)))
		if err != nil {
			t.Fatal(err)
		}
		v, _ := e.Attribute("traceparent")
		switch e.ID {
		case "traced":
			if v != "00-"+trace+"-"+span+"-01" {
				t.Errorf("the event's context became %q", v)
			}
		case "untraced":
			ofUntraced = v
		}
	}
	m.pullArchive()
	// Parents: the publisher's span, or, by name, another of the mesh.
	wants := map[string]string{"publish orders": span, "write orders": "publish orders", "push warehouse": span}
	for _, sub := range []string{"billing", "warehouse", "archive"} { // by stream, push and pull
		wants["deliver "+sub], wants["ack "+sub] = span, "deliver "+sub
	}
	kinds := map[string]tracepb.Span_SpanKind{"publish": tracepb.Span_SPAN_KIND_PRODUCER, "deliver": tracepb.Span_SPAN_KIND_CONSUMER,
		"write": tracepb.Span_SPAN_KIND_CLIENT, "push": tracepb.Span_SPAN_KIND_CLIENT, "ack": tracepb.Span_SPAN_KIND_CLIENT}
	types := map[string]string{"publish": "send", "write": "send", "deliver": "process", "push": "process", "ack": "settle"}
	m.await("all spans are there", func() bool {
		for name := range wants {
			if got.named(name)[trace] == nil {
				return false
			}
		}
		return true
	})
	page, err := os.ReadFile("../../docs/traces.md")
	if err != nil {
		t.Fatal(err)
	}
	for operation, kind := range kinds {
		if row := regexp.MustCompile("\n\\| `" + operation + " [A-Z]+` \\| " + strings.ToLower(strings.TrimPrefix(kind.String(), "SPAN_KIND_")) + " \\| " + types[operation] + " \\| "); !row.Match(page) {
			t.Errorf("docs/traces.md has no row %s", row)
		}
	}
	for name, want := range wants {
		sp := got.named(name)[trace]
		if parent := got.named(want)[trace]; parent != nil {
			want = hex.EncodeToString(parent.SpanId)
		}
		operation, _, _ := strings.Cut(name, " ")
		if sp.Kind != kinds[operation] || attributeOf(sp, "messaging.operation.name") != operation || attributeOf(sp, "messaging.operation.type") != types[operation] {
			t.Errorf("%s is a %s with %v", name, sp.Kind, sp.Attributes)
		}
		if linked := len(sp.Links) == 1 && hex.EncodeToString(sp.Links[0].TraceId) == trace && hex.EncodeToString(sp.Links[0].SpanId) == span; linked != (operation == "ack") {
			t.Errorf("%s has the links %v", name, sp.Links)
		}
		if hex.EncodeToString(sp.ParentSpanId) != want {
			t.Errorf("%s is a child of %x, want %s", name, sp.ParentSpanId, want)
		}
		if attributeOf(sp, "messaging.destination.name") != "orders" || attributeOf(sp, "messaging.system") != "weft" {
			t.Errorf("%s has %v", name, sp.Attributes)
		}
	}
	if v := attributeOf(got.named("deliver billing")[trace], "weft.outcome"); v != "ack" {
		t.Errorf("the delivery's outcome is %q", v)
	}
	parts := strings.Split(ofUntraced, "-")
	if len(parts) != 4 {
		t.Fatalf("an event without a context came out with %q", ofUntraced)
	}
	if sp := got.named("publish orders")[parts[1]]; sp == nil || hex.EncodeToString(sp.SpanId) != parts[2] {
		t.Errorf("the context %q is not its publish's", ofUntraced)
	}
	// A refusal is an error.
	m.post("orders", "text/plain", "x", 400, binary("bad", "")...)
}
