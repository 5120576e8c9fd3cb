// Package store is the contract between the mesh and middleware that keeps
// events. A driver implements it for one product and passes the suite in
// store/storetest.
//
// A store knows physical topics, partitions and groups; it knows nothing of
// namespaces, resources or policy. Drivers are listed in a table where a
// process is composed; importing one has no effect of its own.
package store

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Driver opens stores of one kind.
type Driver interface {
	// Kind is the name of the EventStore's oneof field: "rocketmq".
	Kind() string
	// Open connects. ctx bounds Open only, never the life of the Store. It
	// may succeed while the server is down: then calls fail with Unavailable
	// until it is back.
	Open(ctx context.Context, cfg Config) (Store, error)
}

// Config is one binding of a store.
type Config struct {
	// Name is for logs and metrics: "namespace/name".
	Name string
	// ClientID is unique among all processes that open the store (the
	// proxy's incarnation).
	ClientID string
	// Dir is a folder of the store's own on this machine, for stores that
	// keep data here.
	Dir string
	// Options are the driver's own options type, by value.
	Options any
	// Window bounds, for each partition of a group, the events between what is
	// durably settled without a gap and the highest delivered one; delivery
	// stops there. It is what a crash may repeat. The driver's default when 0.
	Window int
	Log    *slog.Logger
}

// Capabilities are what a store was observed to be able to do.
type Capabilities struct {
	// Product and Version of the server, for people.
	Product, Version string
	// Durability is what an acknowledged event survives.
	Durability Durability
	// Delay is the longest delay of PublishDelayed; 0 means that the store
	// has none.
	Delay time.Duration
	// Replay: Tail can begin at the beginning, a time or a position.
	Replay bool
	// TopicRetention: TopicSpec's retention is honoured.
	TopicRetention bool
	// MaxEventBytes bounds an event: data, attributes and mesh headers.
	MaxEventBytes int
	// RedeliveryWindow is the Window in force: the most events of a partition
	// that a crash of the mesh repeats, settled or not.
	RedeliveryWindow int
	// CommitInterval is how long a settled event may stay without a durable
	// commit while all goes well.
	CommitInterval time.Duration
	// Local: the store lives in the process that opened it; one process only.
	Local bool
}

// Durability is what an acknowledged event survives.
type Durability uint8

// Durabilities, weakest first.
const (
	DurabilityUnknown    Durability = iota
	DurabilityProcess               // the death of the store's process
	DurabilityDisk                  // power loss of one machine
	DurabilityReplicated            // the loss of one machine
)

// Store is one open store. All methods are safe for concurrent use. Errors are
// *fault.Error.
//
// What only some stores can do is in the small interfaces below it; ask by type
// assertion, and check Capabilities.
type Store interface {
	// Probe asks the server what it is. Unavailable when it cannot be reached.
	Probe(ctx context.Context) (Capabilities, error)

	// Publish writes events to a topic and waits for their outcome. It
	// borrows events.
	//
	// res has the length of events and is filled in before Publish returns;
	// res[i].Err is nil only where the store acknowledged. The error is nil
	// if every event was written, else the first failure. Events of one call
	// with one Key, and calls one after the other, are written in order; after a failed event no
	// later event of its key in the same call is written.
	//
	// When ctx ends, an event that was not yet handed to the store fails with
	// Canceled; one that was, with Ambiguous.
	Publish(ctx context.Context, topic string, events []Outgoing, res []Result) error

	// Subscribe joins a group that exists (Admin.EnsureGroup). ctx bounds the
	// join only. Members of one group divide the topic among them.
	Subscribe(ctx context.Context, r SubscribeRequest) (Subscription, error)

	// Tail reads a topic without a group and without settling.
	Tail(ctx context.Context, r TailRequest) (Tail, error)

	// Close refuses new calls, waits for those in progress at most until ctx
	// ends, and leaves no goroutine. Subscriptions and Tails must be closed
	// before.
	Close(ctx context.Context) error
}

// Outgoing is an event on its way in.
type Outgoing struct {
	*event.Event
	// Key orders: events of one key keep their order. "" is no key. It is
	// not stored; a partitionkey attribute is part of the event.
	Key string
}

// Result is the outcome of publishing one event.
type Result struct {
	Pos Position
	Err error
}

// Position names a place in a physical topic. It survives restarts and is part
// of position tokens.
type Position struct {
	// Partition is the driver's own stable name ("broker-a/3"), at most 256
	// bytes. Stores without partitions have "".
	Partition string
	// Offset orders events of a partition. Offsets may have holes.
	Offset uint64
	// Minor orders events with one Offset, in stores that have two parts.
	Minor uint64
}

// Less reports whether p comes before q, which is in the same partition.
func (p Position) Less(q Position) bool {
	return p.Offset < q.Offset || p.Offset == q.Offset && p.Minor < q.Minor
}

// SubscribeRequest joins a group.
type SubscribeRequest struct {
	Topic string
	Group string
}

// Subscription is one member of a group. Fetch may be called by one goroutine
// at a time, Settle by any number, concurrently with Fetch.
type Subscription interface {
	// Fetch waits until at least one message is there and fills dst. A message
	// is given to one member at a time; it stays unsettled until Settle or
	// until the member or its partition is lost, after which it comes again
	// (here or elsewhere). There is no lease: time-outs are the caller's.
	// The messages are the caller's to keep.
	//
	// After an error that is fault.Unavailable Fetch may be called again: the
	// driver reconnects by itself. It returns ctx's error when ctx ends.
	Fetch(ctx context.Context, dst []Message) (n int, err error)

	// Settle records that messages are done with. It does not wait for the
	// store: the commit is durable within Capabilities.CommitInterval while
	// all goes well; a crash may repeat a message but never lose one. A
	// message whose partition this member has lost is counted in stale and
	// needs nothing more; so is one settled before.
	Settle(msgs []*Message) (stale int)

	// Close stops fetching, makes settled messages durable and gives the
	// unsettled ones back, all within ctx.
	Close(ctx context.Context) error
}

// Message is a fetched event with what is needed to settle it.
type Message struct {
	event.Event
	Pos Position
	// Stored is when the store got it; zero if unknown.
	Stored time.Time
	// Redelivered: the store knows, or cannot rule out, that the message was
	// delivered before.
	Redelivered bool
	// Handle is the driver's own.
	Handle any
}

// TailRequest says what to read.
type TailRequest struct {
	Topic string
	From  Start
}

// Start is a place to begin reading. The zero value is the beginning.
type Start struct {
	// End: only what is published from now on. Tail returns once that point
	// is fixed.
	End bool
	// At: the first message stored at or after it; not with End.
	At time.Time
	// After: each partition begins after its position. Partitions that are
	// not named follow End, At or the beginning.
	After []Position
}

// Tail is a reader without a group. Next may be called by one goroutine at a
// time.
type Tail interface {
	// Next waits until at least one message is there and fills dst. Messages
	// of a partition come in order and without a gap, except for what the
	// store's retention removed (Position tells). Partitions that come later
	// join from their beginning. Errors as Subscription.Fetch.
	Next(ctx context.Context, dst []Message) (n int, err error)
	Close(ctx context.Context) error
}

// Delayer is a Store that can hold messages back.
type Delayer interface {
	// PublishDelayed is Publish for messages that become readable at due and
	// not before; how late is the store's. No order is kept among them. delay
	// beyond Capabilities.Delay is Invalid.
	PublishDelayed(ctx context.Context, topic string, events []Outgoing, due []time.Time, res []Result) error
}

// Checker is a Store whose server is elsewhere and may want credentials.
type Checker interface {
	// Check tells, cheaply and with no right but that to come in, whether the
	// server is there and takes the credentials.
	Check(ctx context.Context) error
}

// Why is the one word, for status, that says why a store cannot be used: its
// secret is not where the configuration says, the server refuses its
// credentials, or it does not answer. "" for another reason.
func Why(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		switch e.Reason {
		case "store-secret-missing":
			return "SecretMissing"
		case "store-access-denied":
			return "AccessDenied"
		case "store-unreachable":
			return "Unreachable"
		}
	}
	return ""
}

// Admin changes the store itself. Every operation converges: asking twice is
// asking once. Each reads back what it did.
type Admin interface {
	// EnsureTopic creates the topic or grows its partitions.
	EnsureTopic(ctx context.Context, t TopicSpec) error
	// DeleteTopic deletes the topic with its events; nil if there is none.
	DeleteTopic(ctx context.Context, name string) error
	// TopicExists reports whether the topic is there.
	TopicExists(ctx context.Context, name string) (bool, error)
	// EnsureGroup creates a group on a topic with its start durably fixed. An
	// existing group is left where it is.
	EnsureGroup(ctx context.Context, topic, group string, from Start) error
	// DeleteGroup deletes a group; nil if there is none.
	DeleteGroup(ctx context.Context, topic, group string) error
	// Lag tells how far a group is behind, for each partition. Events that were
	// acknowledged a moment ago may not count yet.
	Lag(ctx context.Context, topic, group string) ([]PartitionLag, error)
}

// TopicSpec is a physical topic.
type TopicSpec struct {
	Name       string
	Partitions int // 0: the driver's default
	// MaxAge and MaxBytes bound what is kept; 0 is without. Only with
	// Capabilities.TopicRetention.
	MaxAge   time.Duration
	MaxBytes int64
}

// PartitionLag is a group's place in one partition.
type PartitionLag struct {
	Partition string
	Committed uint64 // the next offset to deliver after a crash
	End       uint64 // the offset that the next event gets
	Behind    int64  // events between the two; holes may count
}
