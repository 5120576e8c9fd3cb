// Package frontend is the contract between protocols and the proxy behind
// them. Each protocol is a package below this one: bytes to events, deliveries
// to bytes, and the one table from error class to the protocol's answers.
package frontend

import (
	"context"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store/position"
)

// Mesh is the proxy as a frontend sees it. Errors are *fault.Error; their Msg
// may be shown to the client.
type Mesh interface {
	// Authenticate tells who the client is. Without credentials the error is
	// Unauthenticated, but for loopback on a proxy that trusts it.
	Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error)

	// Current is who as the newest configuration sees it; Unauthenticated where
	// its credentials are not good any more. A session that waits asks again once
	// changed is closed and, where the principal expires, now and then: Publish,
	// Join and Tail ask by themselves.
	Current(who *policy.Principal) (now *policy.Principal, changed <-chan struct{}, err error)

	// Publish takes a batch of one client for one topic to the store and waits
	// for the outcome. It borrows events, which it validates; the slice itself
	// may be changed (trace context). res has the length of
	// events and is filled in; the error is the first failure. An event that the
	// frontend could not decode comes with its error in res.
	//
	// Frontends keep one call in flight per session and decode the next batch
	// meanwhile, so that batches grow with load by themselves.
	Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []Result) error

	// Join makes the client a member of a Subscription.
	Join(ctx context.Context, who *policy.Principal, namespace, subscription string) (delivery.Member, error)

	// Tail begins to follow topics.
	Tail(ctx context.Context, who *policy.Principal, r delivery.TailRequest) (delivery.Tail, error)

	// Ready is nil when the proxy serves: it has a configuration and is not
	// draining.
	Ready() error
}

// Result is the outcome for one published event.
type Result struct {
	Position position.Token
	Err      error
}
