package client

import (
	"context"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// Trace asks one of the proxies what it remembers of an event. Each proxy knows what
// happened at it: ask all, each with a Client of its own.
func (c *Client) Trace(ctx context.Context, namespace, source, id string) (*eventsv1.TraceResponse, error) {
	resp, err := c.inspect.Trace(ctx, &eventsv1.TraceRequest{Namespace: namespace, Source: source, Id: id})
	return resp, toError(err)
}

// Why asks one of the proxies why a Subscription has not got an event.
func (c *Client) Why(ctx context.Context, req *eventsv1.WhyRequest) (*eventsv1.WhyResponse, error) {
	resp, err := c.inspect.Why(ctx, req)
	return resp, toError(err)
}
