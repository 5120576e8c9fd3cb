// Package frontend is the contract between protocols and the proxy behind
// them. Each protocol is a package below this one: bytes to events, deliveries
// to bytes, and the one table from error class to the protocol's answers.
package frontend

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/inspect"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/store/position"
)

// Holding is what counts as a connection. It is used by one goroutine at a time.
type Holding interface {
	// Also counts it as one to one more topic of the namespace; where topics are counted
	// together it stays one. The error is Throttled.
	Also(topic string) error
	Close()
}

// Mesh is the proxy as a frontend sees it. Errors are *fault.Error; their Msg
// may be shown to the client.
type Mesh interface {
	// Authenticate tells who the client is. Without credentials the error is
	// Unauthenticated, but for loopback and Unix sockets on a proxy that trusts them.
	Authenticate(ctx context.Context, c policy.Credentials) (*policy.Principal, error)

	// Current is who as the newest configuration sees it; Unauthenticated where
	// its credentials are not good any more. A session that waits asks again once
	// changed is closed and, where the principal expires, now and then: the calls
	// below ask by themselves.
	Current(who *policy.Principal) (now *policy.Principal, changed <-chan struct{}, err error)

	// Publish takes a batch of one client for one topic to the store and waits
	// for the outcome. It borrows events that it acknowledges and keeps others
	// (store.Store tells why). It validates them; the slice itself
	// may be changed (trace context). res has the length of
	// events and is filled in; the error is the first failure. An event that the
	// frontend could not decode comes with its error in res.
	//
	// Frontends keep few calls in flight per session and decode the next batch
	// meanwhile, so that batches grow with load by themselves.
	Publish(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []Result) error

	// Begin is the first half of Publish: events of a key keep their order with those of
	// later calls. Where there is no wait all of it is done, and err is the outcome. Else
	// wait must be called, once, and is the other half; it ends early when ctx does.
	Begin(ctx context.Context, who *policy.Principal, namespace, topic string, events []event.Event, res []Result) (wait func(ctx context.Context) error, err error)

	// Binds reports whether calls at a host, in lower case and without a port, may be of
	// HttpBindings.
	Binds(host string) bool
	// Bound finds the rule of HttpBindings for a call of who. One whose topic who may
	// not publish to is none: without any the error is NotFound.
	Bound(who *policy.Principal, call Call) (Bound, error)

	// Hold counts a publish stream as a connection of the client to the topic, until it is
	// closed. The error is Throttled, where its quota allows no more.
	Hold(who *policy.Principal, namespace, topic string) (Holding, error)

	// Join makes the client a member of a Subscription.
	Join(ctx context.Context, who *policy.Principal, namespace, subscription string) (delivery.Member, error)

	// Pull takes events of a Subscription for a client without a stream, Settle
	// settles them; delivery.Manager has the rules.
	Pull(ctx context.Context, who *policy.Principal, namespace, subscription string, r delivery.PullRequest) (delivery.Pulled, error)
	Settle(ctx context.Context, who *policy.Principal, namespace, subscription string, x delivery.Settlement) ([]delivery.Unsettled, error)

	// Tail begins to follow topics.
	Tail(ctx context.Context, who *policy.Principal, r delivery.TailRequest) (delivery.Tail, error)

	// Ready is nil when the proxy serves: it has a configuration and is not
	// draining.
	Ready() error
}

// Room is a slice for the next deliveries, after the last call filled n of dst: it
// grows to most with a stream that is busy, and an idle one has little.
func Room(dst []delivery.Delivery, n, most int) []delivery.Delivery {
	const least = 1
	switch size := len(dst); {
	case size == 0:
		return make([]delivery.Delivery, least)
	case n == size && size < most:
		return make([]delivery.Delivery, min(4*size, most))
	case n <= size/16 && size > least:
		return make([]delivery.Delivery, max(size/4, least))
	}
	clear(dst[:n])
	return dst
}

// Call is a call of a REST API.
type Call struct {
	// Namespace is that of the rules; "" where Host tells.
	Namespace, Host string
	Method          string
	Path            *rest.Path
}

// Bound is what a call is bound to.
type Bound struct {
	// Namespace and Rule make the event; Rule is nil where there is none for the
	// method: then Allow are the methods of those there are, sorted.
	Namespace string
	Rule      *rest.Rule
	Allow     []string
}

// Result is the outcome for one published event.
type Result struct {
	Position position.Token
	Err      error
}

// Requests are publishes that wait for a reply. Errors are as those of Mesh; see
// pipeline.Pipeline.
type Requests interface {
	// Request publishes an event, which it keeps, and waits for the reply to it, at
	// most for timeout; 0 is 10 s.
	Request(ctx context.Context, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration) (event.Event, error)
	// Reply takes an event with the attribute replyto of a request to whoever waits
	// for it. It borrows the event.
	Reply(ctx context.Context, who *policy.Principal, namespace string, e event.Event) error
}

// Inspector tells what happened to events. Errors are as those of Mesh.
type Inspector interface {
	// Trace tells what this proxy remembers of an event; see inspect.Inspector.
	Trace(ctx context.Context, who *policy.Principal, namespace, source, id string) (inspect.Trace, error)
	// Why tells why a Subscription has not got an event; see inspect.Inspector.
	Why(ctx context.Context, who *policy.Principal, q inspect.Question) (inspect.Answer, error)
}

// DeadLetters is what the proxy does with what could not be delivered. Errors are
// as those of Mesh.
type DeadLetters interface {
	// DeadLetters gives what q selects to visit; see delivery.Manager.
	DeadLetters(ctx context.Context, who *policy.Principal, q delivery.DeadLetterQuery, visit func(*delivery.DeadLetter) error) (delivery.DeadLetterSummary, error)
	// Redrive gives dead letters back to their Subscription; see delivery.Manager.
	Redrive(ctx context.Context, who *policy.Principal, r delivery.Redrive, report func(delivery.Redriven)) (delivery.Redriven, error)
}
