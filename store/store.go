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
	// UID tells the binding from all others, for names of what it has of its own.
	UID string
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
	// Refused, if set, is given what was delayed and its topic does not take now that it
	// is due, for what it is (fault.TooLarge, fault.Invalid), by drivers that find that out
	// only then: package delay. It borrows the event. Where it returns nil the event is
	// durable elsewhere; else it is kept, and tried again.
	Refused func(ctx context.Context, topic string, e *event.Event, why error) error
	Log     *slog.Logger
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
	// DelayEmulated: the mesh delays in the store's place (package delay), at the
	// price of one more write of each delayed event.
	DelayEmulated bool
	// DelayPrecision is how late a delayed event becomes readable at most, while the
	// store keeps up.
	DelayPrecision time.Duration
	// Order: SubscribeRequest.Ordered is honoured. The mesh makes an order by key of it.
	Order bool
	// Tail: a topic can be read without a group, by any number of readers. The mesh
	// makes broadcast of it, and replies to requests of other processes.
	Tail bool
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
	// borrows those that it acknowledges; others may still be on their way
	// when it returns, so their data stay as they are for ever.
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
	// Ordered: each partition is one member's at a time, and another one's only
	// once that has stopped, so that messages of a partition can be worked on in
	// order whoever has it. All members of the group must ask the same: no order
	// is kept beside one that does not.
	Ordered bool
	// Revoked, with Ordered, is told that the member loses a partition that it has
	// not given back by Close. When it returns nothing of the partition may be
	// delivered any more: then another member may have it. Its messages are stale;
	// those unsettled come again, perhaps to this member. It is called without
	// locks of the store, and may call Holds and Settle.
	Revoked func(partition string)
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

	// Holds reports whether a message that was fetched is still this member's to
	// deliver. With Ordered it is asked right before: it is false from the moment on
	// in which the member can no longer rule out that another has the partition, it
	// stays so, and what is not held comes again.
	Holds(m *Message) bool

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
	// StoredKey is the key that somebody has published it with past the mesh, which orders
	// it where the event itself has none; "" for none, or where the event says it.
	StoredKey string
	// Handle is the driver's own.
	Handle any
}

// TailRequest says what to read.
type TailRequest struct {
	Topic string
	From  Start
	// Own: each event has memory of its own. Else it may share it with all that a server
	// sent with it: who keeps few of many for long keeps all of that.
	Own bool
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
	// AtEnd reports whether Next has given everything, as far as the tail knows
	// without asking the store. It is called by who calls Next, and not beside it.
	AtEnd() bool
	// Mark asks the store where the topic ends now. passed then reports whether
	// Next has given everything before that; it is called as AtEnd. Errors as Next.
	Mark(ctx context.Context) (passed func() bool, err error)
	Close(ctx context.Context) error
}

// Hander is a Store that can publish in two halves, so that a caller hands over more while
// it waits for the outcome of what came before.
type Hander interface {
	// Hand is the first half of Publish: when it returns events have their place, behind
	// those of calls that have returned and before those of later ones. It waits only for
	// what it must know of the topic. Wait, which must be called once, is the other half:
	// it fills in res, and ends early when ctx does. Where there is an error instead,
	// nothing was handed over.
	Hand(ctx context.Context, topic string, events []Outgoing) (wait func(ctx context.Context, res []Result) error, err error)
}

// Delayer is a Store that can hold messages back.
type Delayer interface {
	// PublishDelayed is Publish for messages that become readable at due and
	// not before; how late is the store's. No order is kept among them. delay
	// beyond Capabilities.Delay is Invalid.
	PublishDelayed(ctx context.Context, topic string, events []Outgoing, due []time.Time, res []Result) error
}

// Sealer is a Store that can mark where a topic ends now, in all of its partitions.
type Sealer interface {
	// Seal writes e, which it borrows, into every partition that the topic has now, as
	// the server says and not what is remembered, and returns the position of each,
	// sorted by partition. What was acknowledged before the call lies before it in its
	// partition. e is as durable as what Publish acknowledges.
	//
	// It is all or an error. After one some partitions may have e: whoever asks again
	// puts more of it behind, which is why a reader knows e when it sees it. Errors as
	// Publish; a server that does not answer for a partition is Unavailable.
	Seal(ctx context.Context, topic string, e *event.Event) ([]Position, error)
}

// Fencer is a Store that can keep everybody from writing to a topic, also those who write
// past the mesh.
type Fencer interface {
	// Fence puts a fence around a topic that is there, and tells how well it holds. When
	// it returns every server that can be reached goes by it. Readers are not kept out. One
	// that stands, whoever put it up, is as good. Where the servers have no such thing, or
	// it would do harm, the error is Precondition (NoFence); nothing is changed.
	Fence(ctx context.Context, topic string) (Fence, error)
	// Unfence removes the fence that a Fence of any Store put up; nil where there is none,
	// or another's, which stays, or no such topic.
	Unfence(ctx context.Context, topic string) error
}

// Fence is how well a fence holds.
type Fence uint8

// Fences.
const (
	// FenceEnforced: servers refuse what is written.
	FenceEnforced Fence = iota + 1
	// FenceAdvisory: clients that ask where the topic is are told not to write; servers
	// take what others write.
	FenceAdvisory
)

// NoFence is the error of a store that has no fence for a topic, and why.
func NoFence(topic, why string) error {
	return fault.New(fault.Precondition, "store.fence", "store-no-fence", "topic %s has no fence: %s", topic, why)
}

// Unfence removes the mesh's fence around a topic of a store; nil also where the store has
// no fences, or does not let the mesh change them: then none of it stands. The error is of
// a store that has not answered.
func Unfence(ctx context.Context, st Store, topic string) error {
	f, ok := st.(Fencer)
	if !ok {
		return nil
	}
	if err := f.Unfence(ctx, topic); err != nil && Silent(err) {
		return err
	}
	return nil
}

// Silent reports whether an error is that of a store which has not answered, so that
// another attempt may come to something else.
func Silent(err error) bool {
	e := fault.From(err)
	return e.Class == fault.Canceled || e.Reason == "store-unreachable" || e.Reason == "not-seen"
}

// TopicOwner is a Store that needs topics of its own. Whoever administers the store
// makes them; until they are there what needs them fails.
type TopicOwner interface {
	OwnTopics() []OwnTopic
}

// OwnTopic is a topic of a store's own, and the group that reads it.
type OwnTopic struct {
	Spec  TopicSpec
	Group string
	// Delay is the shortest one of what is held back in it. What its group has settled is
	// where it belongs, or in a topic of the store's own once more, for a moment.
	Delay time.Duration
}

// Trimmer is a Store that keeps what a group has settled as long as anything else, until it
// is asked to remove it.
type Trimmer interface {
	// Trim removes, of a topic that has no other readers, the messages that lie before its
	// group's place: what Lag gives as Committed stays as it is. How soon the room on disk
	// is free is up to the store. A group or topic that is not there is NotFound.
	Trim(ctx context.Context, topic, group string) error
}

// Measurer is a Store that can tell how far a topic reaches.
type Measurer interface {
	// Extents tells where each partition of a topic begins and ends now, as the servers
	// say. Events that were acknowledged a moment ago may not count yet. It is all
	// partitions, or an error.
	//
	// A topic is empty where each begins at its end, and fresh, which is that nothing
	// ever was in it, where all ends are 0. What looks as if it had something may have
	// nothing to read: what ended transactions leave, for one. One that is looked at a
	// moment after its last event must be looked at again.
	Extents(ctx context.Context, topic string) ([]Extent, error)
}

// Extent is how far a partition reaches: its messages have offsets from Begin,
// up to but not End. Begin may be of a message that is not kept any more.
type Extent struct {
	Partition  string
	Begin, End uint64
}

// Checker is a Store whose server is elsewhere and may want credentials.
type Checker interface {
	// Check tells, cheaply and with no right but that to come in, whether the
	// server is there and takes the credentials.
	Check(ctx context.Context) error
}

// Why is the one word, for status, that says why a store cannot be used: its
// secret is not where the configuration says, the server refuses its
// credentials, it does not answer, or it is too old. "" for another reason.
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
		case "store-too-old":
			return "TooOld"
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
	// existing group is left where it is. A position of a partition that is not there,
	// or that nothing was stored at yet, is refused with Refused; one whose events are
	// gone is after what was before them.
	EnsureGroup(ctx context.Context, topic, group string, from Start) error
	// DeleteGroup deletes a group; nil if there is none.
	DeleteGroup(ctx context.Context, topic, group string) error
	// Lag tells how far a group is behind, for each partition, of all of them or an
	// error. Events that were acknowledged a moment ago may not count yet.
	Lag(ctx context.Context, topic, group string) ([]PartitionLag, error)
}

// Refused is the error of a position at which a group cannot begin, in a physical
// topic.
func Refused(topic string, p Position) error {
	return fault.New(fault.Precondition, "store.ensure-group", "position-unknown", "a position is offset %d of partition %q, which topic %s does not have", p.Offset, p.Partition, topic)
}

// TopicSpec is a physical topic.
type TopicSpec struct {
	Name       string
	Partitions int // 0: the driver's default
	// MaxAge and MaxBytes bound what is kept; 0 is without. Only with
	// Capabilities.TopicRetention.
	MaxAge   time.Duration
	MaxBytes int64
	// DropSettled: what every group of the topic has settled is not kept, for a topic that
	// has no other readers. Only with Capabilities.Local.
	DropSettled bool
}

// PartitionLag is a group's place in one partition.
type PartitionLag struct {
	Partition string
	Committed uint64 // the next offset to deliver after a crash; not before what is kept
	End       uint64 // the offset that the next event gets
	Behind    int64  // events between the two; holes may count
	// Delayed are the topic's events that are held back (Delayer), of a store inside the
	// process; others do not tell: 0. At each moment one counts here or lies before End.
	Delayed int64
}

// Settled reports whether a group has settled all that lies before cut, which has a
// place in some partitions of its topic. What is there and behind does not count, nor
// do other partitions. A partition that the group does not have is not settled.
func Settled(lag []PartitionLag, cut map[string]Position) bool {
	done := 0
	for _, l := range lag {
		if at, ok := cut[l.Partition]; ok && l.Committed >= at.Offset {
			done++
		}
	}
	return done == len(cut)
}
