package delivery

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/weft-mesh/weft/pkg/tracing"
)

// How a delivery ends, as its span has it.
const (
	outcomeAck           = "ack"
	outcomeNack          = "nack"
	outcomeTimeout       = "timeout"
	outcomeLost          = "lost"     // the member's client went without a word
	outcomeReturned      = "returned" // the member left, or the topic's source ended
	outcomeFiltered      = "filtered"
	outcomeUntransformed = "untransformed"
)

// begin begins the span of one delivery, from the hand-over to its settlement: a
// child of the event's own context. Nothing without tracing.
func (it *item) begin(r *runtime, now time.Time) {
	if r.m.tracer == nil {
		return
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), tracing.Of(&it.msg.stored.Event))
	_, it.span = r.m.tracer.Start(ctx, "deliver "+r.key.Name, trace.WithTimestamp(now), trace.WithSpanKind(trace.SpanKindConsumer),
		tracing.Message("deliver", r.key.Namespace, it.msg.topic, attribute.String("messaging.consumer.group.name", r.key.Name),
			attribute.String("messaging.message.id", it.msg.stored.ID), attribute.Int("weft.attempt", it.msg.attempt)))
}

// end ends the span of the delivery, if it has one. Where the member acknowledged it
// another begins, of the settlement in the store, which settled ends: a child of the
// delivery, linked to the event's own context.
func (it *item) end(outcome string) {
	span := it.span
	if span == nil {
		return
	}
	span.SetAttributes(attribute.String("weft.outcome", outcome))
	if outcome == outcomeNack || outcome == outcomeTimeout || outcome == outcomeLost {
		span.SetStatus(codes.Error, outcome)
	}
	span.End()
	it.span = nil
	if outcome != outcomeAck {
		return
	}
	r := it.src.r
	opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient),
		tracing.Message("ack", r.key.Namespace, it.msg.topic, attribute.String("messaging.consumer.group.name", r.key.Name), attribute.String("messaging.message.id", it.msg.stored.ID))}
	if origin := tracing.Of(&it.msg.stored.Event); origin.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: origin}))
	}
	_, it.span = r.m.tracer.Start(trace.ContextWithSpan(context.Background(), span), "ack "+r.key.Name, opts...)
}

// settled ends the span of the settlement, if there is one.
func (it *item) settled() {
	if it.span != nil {
		it.span.End()
		it.span = nil
	}
}
