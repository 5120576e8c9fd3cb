package push

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
)

// forward publishes one event to another topic and tells what came of it. A quota of
// that topic slows the forwarding down: the event waits for it here, as long as one
// attempt may take.
func (p *Pusher) forward(ctx context.Context, push *snapshot.Push, key snapshot.Key, d *delivery.Delivery) answer {
	n := delivery.Forwards(d.Event)
	if n >= delivery.MaxForwards {
		return failure(Rejected, "forward: was forwarded %d times already, as in a ring", n)
	}
	ctx, cancel := context.WithTimeout(ctx, push.Timeout)
	defer cancel()
	e := *d.Event
	e.Mesh = delivery.Forwarded(n + 1)
	for {
		err := p.cfg.Forward(ctx, key, push.ForwardTo, &e)
		if err == nil {
			return answer{outcome: outcomeOK}
		}
		f := fault.From(err)
		a := failure(Failed, "forward to %s: %s: %s", push.ForwardTo, f.Reason, f.Msg)
		switch f.Class {
		case fault.Invalid, fault.TooLarge:
			a.outcome = Rejected
			return a
		case fault.Throttled:
			a.outcome, a.delay = Later, max(f.RetryAfter, minPause)
		default:
			return a
		}
		timer := time.NewTimer(a.delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a
		}
	}
}

// minPause is the shortest wait for a quota.
const minPause = 10 * time.Millisecond
