package weft

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestOTelCollector: a real OpenTelemetry collector gets the spans of an event's way,
// all of one trace, that of its publisher.
func TestOTelCollector(t *testing.T) {
	servers.NeedServers(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	ctx, cancel := context.WithTimeout(context.Background(), 2*servers.StartTimeout)
	defer cancel()
	c, err := servers.StartOTelCollector(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	m := start(t, filepath.Join(t.TempDir(), "data"), "--otlp-endpoint", c.Endpoint)
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"))
	m.must("status", "--wait", "1m")
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	m.post("orders", "text/plain", "canary-data", 200, binary("traced", "order.created", "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")...)
	m.must("subscribe", "billing", "--max", "1")
	span := regexp.MustCompile(`(?m)^ +Trace ID +: (\S+)\n(?: .*\n)*? +Name +: (.+)$`)
	m.await("the spans are in the collector", func() bool {
		got := map[string]bool{}
		for _, s := range span.FindAllStringSubmatch(string(c.Output()), -1) {
			if s[1] == trace {
				got[s[2]] = true
			}
		}
		return got["publish orders"] && got["write orders"] && got["deliver billing"] && got["push warehouse"]
	})
	if strings.Contains(string(c.Output()), "canary-data") {
		t.Error("an event's data is in a span")
	}
}

// TestSkyWalking: a real SkyWalking OAP server gets the spans of an event's way over
// OTLP, and its query API gives them as one trace, each with its kind and its parent,
// the acknowledgement with its link.
func TestSkyWalking(t *testing.T) {
	servers.NeedServers(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	ctx, cancel := context.WithTimeout(context.Background(), 2*servers.StartTimeout)
	defer cancel()
	oap, err := servers.StartSkyWalking(ctx, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := oap.Stop(); err != nil {
			t.Error(err)
		}
	})
	m := start(t, filepath.Join(t.TempDir(), "data"), "--otlp-endpoint", oap.Endpoint)
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"))
	m.must("apply", "-f", archive(t), "--wait", "1m")
	m.must("status", "--wait", "1m")
	m.must("status", "--wait", "1m")
	const trace, publisher = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	m.post("orders", "text/plain", "canary-data", 200, binary("traced", "order.created", "traceparent", "00-"+trace+"-"+publisher+"-01")...)
	m.must("subscribe", "billing", "--max", "1")
	m.pullArchive()

	type zipkin struct {
		TraceID, ID, ParentID, Name, Kind string
		LocalEndpoint                     struct{ ServiceName string }
		Tags                              map[string]string
	}
	var text []byte
	spans := map[string]zipkin{}
	m.await("the spans are in SkyWalking", func() bool {
		if text, err = oap.Trace(ctx, trace); err != nil {
			t.Fatal(err)
		}
		var list []zipkin
		if err := json.Unmarshal(text, &list); text != nil && err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		for _, s := range list {
			spans[s.Name] = s
		}
		return spans["ack billing"].ID != "" && spans["ack archive"].ID != "" && spans["push warehouse"].ID != ""
	})
	for name, want := range map[string]struct{ kind, parent string }{
		"publish orders":  {"PRODUCER", publisher},
		"write orders":    {"CLIENT", spans["publish orders"].ID},
		"deliver billing": {"CONSUMER", publisher},
		"ack billing":     {"CLIENT", spans["deliver billing"].ID},
		"deliver archive": {"CONSUMER", publisher},
		"ack archive":     {"CLIENT", spans["deliver archive"].ID},
		"push warehouse":  {"CLIENT", publisher},
	} {
		s := spans[name]
		if s.Kind != want.kind || s.ParentID != want.parent || s.TraceID != trace || s.LocalEndpoint.ServiceName != "weft-proxy" || s.Tags["messaging.destination.name"] != "orders" {
			t.Errorf("%s: %+v", name, s)
		}
		// A link is its trace and span, as numbers.
		if linked := s.Tags["otlp.link.0"] == "100985939111033328018442752961257817910|67667974448284343||{}|0"; linked != strings.HasPrefix(name, "ack ") {
			t.Errorf("%s has %v", name, s.Tags)
		}
	}
	if strings.Contains(string(text), "canary-data") {
		t.Error("an event's data is in a span")
	}
}
