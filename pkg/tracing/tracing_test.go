package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/pkg/event"
)

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestOf(t *testing.T) {
	e := &event.Event{Ext: []event.Attr{{Name: event.AttrTraceParent, Value: parent}, {Name: event.AttrTraceState, Value: "a=b"}}}
	sc := Of(e)
	if sc.TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" || sc.SpanID().String() != "00f067aa0ba902b7" || !sc.IsSampled() || !sc.IsRemote() || sc.TraceState().Get("a") != "b" {
		t.Errorf("%+v", sc)
	}
	for _, bad := range []string{"", "x", parent[:len(parent)-1], strings.Repeat("0", len(parent)), "ff" + parent[2:], strings.ToUpper(parent)} {
		if Of(&event.Event{Ext: []event.Attr{{Name: event.AttrTraceParent, Value: bad}}}).IsValid() {
			t.Errorf("%q is valid", bad)
		}
	}
	if Of(&event.Event{}).IsValid() {
		t.Error("an event without a context has one")
	}
}

func TestGive(t *testing.T) {
	sc := Of(&event.Event{Ext: []event.Attr{{Name: event.AttrTraceParent, Value: parent}, {Name: event.AttrTraceState, Value: "a=b"}}})
	e := &event.Event{Ext: []event.Attr{{Name: "zone", Value: "z"}}}
	Give(e, sc)
	if fmt.Sprint(e.Ext) != "[{traceparent "+parent+"} {tracestate a=b} {zone z}]" {
		t.Error(e.Ext)
	}
	other := &event.Event{Ext: []event.Attr{{Name: event.AttrTraceParent, Value: "its own"}}}
	Give(other, sc)
	if fmt.Sprint(other.Ext) != "[{traceparent its own}]" {
		t.Errorf("an event's own context was replaced: %v", other.Ext)
	}
	full := &event.Event{Ext: make([]event.Attr, event.MaxAttributes-1)}
	Give(full, sc)
	if len(full.Ext) != event.MaxAttributes-1 {
		t.Error("there was no room")
	}
	none := &event.Event{}
	Give(none, trace.SpanContext{})
	if none.Ext != nil {
		t.Error("a context that is none was given")
	}
}

func TestEndpoint(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:4317", "ftp://host", "http://", "http://user:geheim@127.0.0.1:4317", "http://a b"} {
		if _, err := NewProvider(context.Background(), bad, "s", "i", nil); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	p, err := NewProvider(context.Background(), "http://127.0.0.1:4317", "s", "i", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// collector takes spans, or does not.
type collector struct {
	sdktrace.SpanExporter
	err error
}

func (c *collector) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return c.err }

// TestCollectorAway: that a collector takes no spans is told once, and once how many were
// dropped until it does; OpenTelemetry, which would tell of each batch, is told of none.
func TestCollectorAway(t *testing.T) {
	var said strings.Builder
	c := &collector{}
	e := &telling{SpanExporter: c, log: slog.New(slog.NewTextHandler(&said, nil))}
	for _, c.err = range []error{nil, errors.New("away"), errors.New("away"), nil, nil} {
		if err := e.ExportSpans(t.Context(), make([]sdktrace.ReadOnlySpan, 3)); err != nil {
			t.Error(err)
		}
	}
	if lines := strings.Split(strings.TrimSpace(said.String()), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "error=away") || !strings.HasSuffix(lines[1], "dropped=6") {
		t.Errorf("%q", lines)
	}
}

// FuzzTraceContext: what is taken as trace context is W3C's, and is the same when
// it is given on; nothing else is taken, and an event's own is never replaced.
func FuzzTraceContext(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b,c=d")
	f.Add("00-00000000000000000000000000000000-b7ad6b7169203331-01", "")
	f.Add("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "=")
	f.Fuzz(func(t *testing.T, parent, state string) {
		e := &event.Event{Ext: []event.Attr{{Name: event.AttrTraceParent, Value: parent}, {Name: event.AttrTraceState, Value: state}}}
		sc := Of(e)
		Give(e, sc)
		if got, _ := event.Lookup(e.Ext, event.AttrTraceParent); got != parent || len(e.Ext) != 2 {
			t.Errorf("%q became %q", parent, got)
		}
		if !sc.IsValid() {
			return
		}
		if ids := sc.TraceID().String() + "-" + sc.SpanID().String(); len(parent) < 55 || parent[3:52] != ids {
			t.Errorf("%q is read as %s", parent, ids)
		}
		next := &event.Event{}
		Give(next, sc)
		if again := Of(next); again.TraceID() != sc.TraceID() || again.SpanID() != sc.SpanID() || again.TraceState().String() != sc.TraceState().String() {
			t.Errorf("%v became %v", sc, again)
		}
	})
}
