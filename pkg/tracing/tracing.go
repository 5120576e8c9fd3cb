// Package tracing has the spans of the mesh: how an event carries W3C trace
// context (CloudEvents, "Distributed Tracing" extension), and where spans go.
//
// An event's context is that of whoever made it. The mesh never replaces it: an
// event that comes without one gets that of the mesh's own span.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/version"
)

// Of is the context that an event carries; not valid where it carries none, or
// one that is not W3C trace context.
func Of(e *event.Event) trace.SpanContext {
	parent, ok := event.Lookup(e.Ext, event.AttrTraceParent)
	if !ok {
		return trace.SpanContext{}
	}
	carrier := propagation.MapCarrier{event.AttrTraceParent: parent}
	if state, ok := event.Lookup(e.Ext, event.AttrTraceState); ok {
		carrier[event.AttrTraceState] = state
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier))
}

// Give gives an event that carries no context sc, if it has room for it.
func Give(e *event.Event, sc trace.SpanContext) {
	if _, has := event.Lookup(e.Ext, event.AttrTraceParent); has || !sc.IsValid() || len(e.Ext) > event.MaxAttributes-2 {
		return
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), sc), carrier)
	for name, value := range carrier {
		if value != "" {
			e.Ext = event.With(e.Ext, name, value)
		}
	}
}

// operations are the types that the semantic conventions know, of what the mesh does.
var operations = map[string]string{"publish": "send", "write": "send", "deliver": "process", "push": "process", "ack": "settle"}

// Message are the attributes of a span that is about events of one topic
// (OpenTelemetry semantic conventions, messaging). operation is one of publish,
// write, deliver, push and ack.
func Message(operation, namespace, topic string, more ...attribute.KeyValue) trace.SpanStartEventOption {
	return trace.WithAttributes(append(more, attribute.String("messaging.system", "weft"), attribute.String("messaging.operation.name", operation), attribute.String("messaging.operation.type", operations[operation]),
		attribute.String("messaging.destination.namespace", namespace), attribute.String("messaging.destination.name", topic))...)
}

// Provider sends spans.
type Provider struct{ *sdktrace.TracerProvider }

// NewProvider makes a Provider that sends to the OTLP collector at endpoint, a
// URL such as http://127.0.0.1:4317 (gRPC), in batches in the background. What
// the collector does not take in time is dropped: tracing holds up no event.
// Sampling is by the caller's decision, else OTEL_TRACES_SAMPLER and
// OTEL_TRACES_SAMPLER_ARG, else everything. service and instance name the
// process; log is told once where a collector takes nothing, and once when it does again.
// Nothing is connected yet; Shutdown sends what is left.
func NewProvider(ctx context.Context, endpoint, service, instance string, log *slog.Logger) (*Provider, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the OTLP endpoint must be a URL such as http://127.0.0.1:4317")
	}
	if u.User != nil {
		return nil, fmt.Errorf("the OTLP endpoint must have no credentials in it: use OTEL_EXPORTER_OTLP_HEADERS")
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint), otlptracegrpc.WithTimeout(5*time.Second))
	if err != nil {
		return nil, err
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", service), attribute.String("service.version", version.String()),
		attribute.String("service.instance.id", instance)), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	return &Provider{sdktrace.NewTracerProvider(sdktrace.WithBatcher(&telling{SpanExporter: exporter, log: log}), sdktrace.WithResource(about))}, nil
}

// telling tells in the log what OpenTelemetry would write to standard error, for each batch.
type telling struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu      sync.Mutex
	dropped int // since it takes none
}

// ExportSpans implements sdktrace.SpanExporter.
func (t *telling) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := t.SpanExporter.ExportSpans(ctx, spans)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		if t.dropped == 0 {
			t.log.Warn("the collector does not take spans: they are dropped until it does", "error", err)
		}
		t.dropped += len(spans)
	case t.dropped > 0:
		t.log.Info("the collector takes spans again", "dropped", t.dropped)
		t.dropped = 0
	}
	return nil
}
