package pipeline

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/tracing"
)

// beginPublish begins the span of one Publish; nil without tracing. One event's span is
// a child of the event's own context, that of a batch has links. Events without a
// context get the span's.
func (p *Pipeline) beginPublish(ctx context.Context, t *snapshot.Topic, events []event.Event) (context.Context, trace.Span) {
	if p.tracer == nil {
		return ctx, nil
	}
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer), tracing.Message("publish", t.Namespace, t.Name,
		attribute.Int("messaging.batch.message_count", len(events)))}
	if len(events) == 1 {
		if origin := tracing.Of(&events[0]); origin.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, origin)
		}
		opts = append(opts, trace.WithAttributes(attribute.String("messaging.message.id", events[0].ID)))
	} else {
		var links []trace.Link
		for i := range events {
			if origin := tracing.Of(&events[i]); origin.IsValid() {
				links = append(links, trace.Link{SpanContext: origin})
			}
		}
		opts = append(opts, trace.WithLinks(links...))
	}
	ctx, span := p.tracer.Start(ctx, "publish "+t.Name, opts...)
	for i := range events {
		tracing.Give(&events[i], span.SpanContext())
	}
	return ctx, span
}

// beginWrite begins the span of one write to a store; nil without tracing.
func (p *Pipeline) beginWrite(ctx context.Context, t *snapshot.Topic, physical string, n int) (context.Context, trace.Span) {
	if p.tracer == nil {
		return ctx, nil
	}
	return p.tracer.Start(ctx, "write "+t.Name, trace.WithSpanKind(trace.SpanKindClient), tracing.Message("write", t.Namespace, t.Name,
		attribute.String("weft.physical_topic", physical), attribute.Int("messaging.batch.message_count", n)))
}

// end ends a span with the outcome. span may be nil.
func end(span trace.Span, err error) {
	if span == nil {
		return
	}
	if err != nil {
		span.SetStatus(codes.Error, reason(err))
		span.SetAttributes(attribute.String("error.type", reason(err)))
	}
	span.End()
}
