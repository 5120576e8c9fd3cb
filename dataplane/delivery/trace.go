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
	outcomeAck      = "ack"
	outcomeNack     = "nack"
	outcomeTimeout  = "timeout"
	outcomeReturned = "returned" // the member left, or the topic's source ended
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

// end ends the span of the delivery, if it has one.
func (it *item) end(outcome string) {
	if it.span == nil {
		return
	}
	it.span.SetAttributes(attribute.String("weft.outcome", outcome))
	if outcome == outcomeNack || outcome == outcomeTimeout {
		it.span.SetStatus(codes.Error, outcome)
	}
	it.span.End()
	it.span = nil
}
