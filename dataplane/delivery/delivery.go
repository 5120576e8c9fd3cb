// Package delivery takes events from stores to clients: it shares each
// Subscription's events among its members, times out, retries, dead-letters,
// settles, and tails topics for those who only look.
package delivery

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

// Delivery is one event for one client. The event is lent until the delivery
// is settled or, on a tail, until the next call of Next.
type Delivery struct {
	// ID names the delivery within its Member; 0 on a tail.
	ID       uint64
	Topic    string
	Position position.Token
	// Attempt is 1 at first.
	Attempt int
	Event   *event.Event
	// Shared has the event's encodings where many tails get it; else nil.
	Shared *Shared

	// judged is the filter that let it through.
	judged *route.Filter
}

// Member is one client of a Subscription. Next and Take may be called by one goroutine
// at a time; the other methods by any, at any time.
type Member interface {
	// Credit grants n more deliveries. Unsettled ones count against the sum
	// of grants, so that whatever settles one, a time-out too, grants again.
	Credit(n int)
	// Next waits for at least one delivery and fills dst, as far as the
	// credit reaches. The error is Denied once the principal may no longer
	// consume (the message names the rule), Unavailable when the proxy drains,
	// NotFound when the Subscription is gone.
	Next(ctx context.Context, dst []Delivery) (int, error)
	// Take is Next for who has no goroutine to wait with. Where there is nothing yet it
	// returns 0, and calls wake, once, when it is worth another call. wake may not block
	// nor call the Member.
	Take(dst []Delivery, wake func()) (int, error)
	// Ack settles; Nack gives back for another attempt after delay (negative:
	// the Subscription's schedule); Extend restarts the ack time-out with d
	// (0: the Subscription's). Reject gives up: no repetition would change it, so
	// the event goes to the dead-letter topic at once; without one it is given
	// back on the schedule. Ids that are unknown, settled or timed out are
	// counted in stale and otherwise ignored.
	Ack(ids ...uint64) (stale int)
	Nack(reason string, delay time.Duration, ids ...uint64) (stale int)
	Extend(d time.Duration, ids ...uint64) (stale int)
	Reject(reason string, ids ...uint64) (stale int)
	// AckTimeout is the Subscription's.
	AckTimeout() time.Duration
	// Lost says that the client is gone without a word, as when its process crashes:
	// each unsettled delivery was an attempt that failed. Other members get them at
	// once. Close follows.
	Lost()
	// Close gives unsettled deliveries to other members, without counting an
	// attempt. It does not block.
	Close()
}

// TailRequest says what to tail.
type TailRequest struct {
	Namespace string
	// Topics by name or pattern.
	Topics []string
	// From is where each topic begins; its After is not used.
	From store.Start
	// After are tokens of what the client has.
	After []position.Token
	// Resumes: After is what a tail of the same topics had, and From is for the rest. Where
	// there are patterns, topics that it read may be gone since.
	Resumes bool
	// Credit bounds what the client gets to what it grants; otherwise it gets all.
	Credit bool
}

// Tail is a client that looks at topics. Next and Take may be called by one goroutine at
// a time.
type Tail interface {
	// Credit grants n more deliveries; each that is taken uses one up.
	Credit(n int)
	// Next waits for at least one event and fills dst. Errors as Member.Next;
	// deliveries have no id.
	Next(ctx context.Context, dst []Delivery) (int, error)
	// Take is as Member.Take.
	Take(dst []Delivery, wake func()) (int, error)
	// Topics are those that it reads now, by uid.
	Topics() map[string]struct{}
	// Close does not block.
	Close()
}
