package client

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// Pulled is one event that was pulled.
type Pulled struct {
	Delivery
	// ID is what Settle names it by.
	ID string
}

// PullOptions change Pull. The zero value is its defaults.
type PullOptions struct {
	// MaxEvents is the most events, 1 to 1,000; 1 when 0.
	MaxEvents int
	// Wait is the longest wait for the first one, up to 1 min; 10 s when 0.
	Wait time.Duration
}

// Pull takes events of a Subscription, beside the members that Subscribe. It waits
// until there is one; none and no error is that the wait was over. Each is the
// caller's until Settle, or until the ack time-out passes and it comes again.
func (c *Client) Pull(ctx context.Context, namespace, subscription string, o PullOptions) ([]Pulled, error) {
	req := &eventsv1.PullRequest{Namespace: namespace, Subscription: subscription, MaxEvents: uint32(max(o.MaxEvents, 0))} //nolint:gosec // the proxy has the bound
	if o.Wait > 0 {
		req.Wait = durationpb.New(o.Wait)
	}
	resp, err := c.rpc.Pull(ctx, req)
	if err != nil {
		return nil, toError(err)
	}
	out := make([]Pulled, len(resp.Deliveries))
	for i, d := range resp.Deliveries {
		e, err := fromProto(d.Event)
		if err != nil {
			return nil, err
		}
		out[i] = Pulled{Delivery{Topic: d.Topic, Position: d.Position, Attempt: int(d.Attempt), Event: e}, d.DeliveryId}
	}
	return out, nil
}

// Settlement says what became of deliveries that were pulled, of at most 1,000.
type Settlement struct {
	// Ack are the ids of those that are done.
	Ack []string
	// Nack gives back.
	Nack []Nack
	// Extend asks for more time.
	Extend []Extension
}

// Nack gives deliveries back for another attempt.
type Nack struct {
	IDs []string
	// Retry says when and why; nil is the Subscription's schedule.
	Retry *Retry
}

// Extension restarts the ack time-out of deliveries, which is By then, or as it was
// where By is 0.
type Extension struct {
	IDs []string
	By  time.Duration
}

// Times of a settlement whose proxy is another one.
const (
	maxElsewhere = 16
	elsewhere    = "delivery-elsewhere"
)

// Settle settles what Pull gave. Deliveries are settled at the proxy that gave
// them: Settle asks one after the other. unsettled has those that could not be
// settled, by id, each with an *Error; the error is of the call as a whole.
func (c *Client) Settle(ctx context.Context, namespace, subscription string, s Settlement) (unsettled map[string]error, err error) {
	req := &eventsv1.SettleRequest{Namespace: namespace, Subscription: subscription, Ack: s.Ack}
	for _, n := range s.Nack {
		k := &eventsv1.PulledNack{DeliveryIds: n.IDs}
		if n.Retry != nil {
			k.Delay, k.Reason = n.Retry.delay(), reason(n.Retry.Reason)
		}
		req.Nack = append(req.Nack, k)
	}
	for _, e := range s.Extend {
		x := &eventsv1.PulledExtend{DeliveryIds: e.IDs}
		if e.By > 0 {
			x.AckTimeout = durationpb.New(e.By)
		}
		req.Extend = append(req.Extend, x)
	}
	unsettled = map[string]error{}
	for n := 0; req != nil && n < maxElsewhere; n++ { // the next call is the next proxy's
		resp, err := c.rpc.Settle(ctx, req)
		if err != nil {
			return nil, toError(err)
		}
		away := map[string]bool{}
		for id, e := range unsettled {
			if e, ok := errors.AsType[*Error](e); ok && e.Reason == elsewhere {
				delete(unsettled, id) // it was asked for again
			}
		}
		for _, u := range resp.Unsettled {
			unsettled[u.DeliveryId] = fromWire(u.Error)
			away[u.DeliveryId] = u.Error.GetReason() == elsewhere
		}
		req = only(req, away)
	}
	return unsettled, nil
}

// only is what of a settlement is still to be done elsewhere; nil where nothing is.
func only(req *eventsv1.SettleRequest, away map[string]bool) *eventsv1.SettleRequest {
	left := 0
	pick := func(ids []string) (out []string) {
		for _, id := range ids {
			if away[id] {
				out = append(out, id)
				left++
			}
		}
		return out
	}
	out := &eventsv1.SettleRequest{Namespace: req.Namespace, Subscription: req.Subscription, Ack: pick(req.Ack)}
	for _, n := range req.Nack {
		if ids := pick(n.DeliveryIds); len(ids) > 0 {
			out.Nack = append(out.Nack, &eventsv1.PulledNack{DeliveryIds: ids, Delay: n.Delay, Reason: n.Reason})
		}
	}
	for _, e := range req.Extend {
		if ids := pick(e.DeliveryIds); len(ids) > 0 {
			out.Extend = append(out.Extend, &eventsv1.PulledExtend{DeliveryIds: ids, AckTimeout: e.AckTimeout})
		}
	}
	if left == 0 {
		return nil
	}
	return out
}
