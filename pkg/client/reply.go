package client

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// Request publishes one event as a request and waits for the first reply to it, at most
// for timeout, 1 ms to 5 min; 0 is as long as ctx's deadline allows, and 10 s without
// one. Where none came in time the reason of the *Error is "no-reply", or the code
// DeadlineExceeded without a reason where ctx ended first: the event was published, and
// may still be worked on.
func (c *Client) Request(ctx context.Context, namespace, topic string, e event.Event, timeout time.Duration) (reply event.Event, err error) {
	if err := e.Validate(); err != nil {
		return event.Event{}, &Error{Code: codes.InvalidArgument, Reason: "bad-event", Message: err.Error()}
	}
	resp := &eventsv1.RequestResponse{}
	if err := c.call(ctx, eventsv1.EventService_Request_FullMethodName, c.asking(namespace, topic, &e, timeout), resp); err != nil {
		return event.Event{}, err
	}
	return fromProto(resp.Event)
}

// asking is a RequestRequest.
func (c *Client) asking(namespace, topic string, e *event.Event, timeout time.Duration) encoded {
	req := append(request(namespace, topic), encode(e, c.pool))
	if timeout != 0 {
		var d []byte                                                                                             // a Duration
		d = protowire.AppendVarint(protowire.AppendTag(d, 1, protowire.VarintType), uint64(timeout/time.Second)) //nolint:gosec // as protobuf has what is negative
		d = protowire.AppendVarint(protowire.AppendTag(d, 2, protowire.VarintType), uint64(timeout%time.Second)) //nolint:gosec // as well
		req = append(req, mem.SliceBuffer(protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), d)))
	}
	return req
}

// Reply takes e to whoever waits for the reply to asked, an event that was received. nil
// is that it was passed on. The reason of the *Error is "no-request" where asked waits
// for no reply, and "reply-late" where nobody waits any more.
func (c *Client) Reply(ctx context.Context, namespace string, asked, e event.Event) error {
	token, ok := event.Lookup(asked.Ext, event.AttrReplyTo)
	if !ok {
		return &Error{Code: codes.InvalidArgument, Reason: "no-request", Message: "the event asks for no reply: it has no attribute " + event.AttrReplyTo}
	}
	if err := e.Validate(); err != nil {
		return &Error{Code: codes.InvalidArgument, Reason: "bad-event", Message: err.Error()}
	}
	e.Ext = event.With(e.Ext, event.AttrReplyTo, token)
	return c.call(ctx, eventsv1.EventService_Reply_FullMethodName, append(request(namespace, ""), encode(&e, c.pool)), &eventsv1.ReplyResponse{})
}
