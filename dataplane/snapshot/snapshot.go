// Package snapshot is the configuration as the event path uses it: compiled,
// immutable, whole. One snapshot is taken at the start of an operation and
// used to its end.
package snapshot

import (
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/route"
)

// Key names a resource of one kind.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Origin is where a configuration came from.
type Origin string

// The origins. Without a configuration there is none.
const (
	// Live: a control plane has confirmed it since the process started.
	Live Origin = "live"
	// FromDisk: what this proxy kept.
	FromDisk Origin = "disk"
	// FromFile: a snapshot file that a control plane exported.
	FromFile Origin = "snapshot"
)

// Snapshot is one state of the configuration.
type Snapshot struct {
	// Lineage and Revision of the control plane; zero before the first.
	Lineage  string
	Revision int64
	// Origin is where it came from.
	Origin Origin

	Topics        map[Key]*Topic
	Subscriptions map[Key]*Subscription
	// Stores by EventStore uid.
	Stores map[string]*Store
	// Rules decide; never nil.
	Rules *policy.Rules
	// Identities authenticate; never nil.
	Identities *policy.Identities
	// Refuses tells why nothing of a namespace may be used, whoever asks; nil where
	// all may.
	Refuses func(namespace string) error
}

// Refusal is why nothing of a namespace may be used; nil where it may.
func (s *Snapshot) Refusal(namespace string) error {
	if s.Refuses == nil {
		return nil
	}
	return s.Refuses(namespace)
}

// Topic is a compiled Topic with its binding, admission and route.
type Topic struct {
	Key
	UID string
	// Epochs, oldest first; the last one is written to. Never empty.
	Epochs []Epoch
	// NotReady says why the topic may not be used yet; "" when it may.
	NotReady string
	KeyFrom  string
	// MaxEventBytes bounds event.Event.Size.
	MaxEventBytes int
	// Route is nil where events stay in the topic that they enter. Its
	// destinations are topics of the same namespace.
	Route *route.Table
	// AtProxy: this proxy creates the topic in its local store.
	AtProxy *LocalTopic
}

// Epoch is a stretch of a topic in one store.
type Epoch struct {
	Number   uint32
	StoreUID string
	Physical string
}

// Last is the epoch that is written to.
func (t *Topic) Last() Epoch { return t.Epochs[len(t.Epochs)-1] }

// LocalTopic is what a local store needs to create a topic.
type LocalTopic struct {
	Partitions int
	MaxAge     time.Duration
	MaxBytes   int64
}

// Subscription is a compiled Subscription with its admission.
type Subscription struct {
	Key
	UID string
	// Topics are the names and patterns as written.
	Topics []string
	// Sources are the topics that are read, each with its start fixed.
	Sources []Source
	// Filter is nil where everything is delivered.
	Filter *route.Filter
	// Push is nil where members connect.
	Push        *Push
	AckTimeout  time.Duration
	MaxInFlight int
	MaxAttempts int
	MinBackoff  time.Duration
	MaxBackoff  time.Duration
	// DeadLetter is the name of a Topic of the namespace; "" for none.
	DeadLetter string
	// NotReady says why nothing can be delivered yet; "" when it can.
	NotReady string
}

// Source is one topic of a subscription.
type Source struct {
	Topic *Topic
	Epoch Epoch
	Group string
	// RetryTopic and RetryGroup are in the store of Epoch; several sources of
	// one subscription in one store share them.
	RetryTopic string
	RetryGroup string
	// AtProxy: this proxy creates group and retry topic in its local store.
	AtProxy       bool
	FromBeginning bool
}

// Push is delivery by HTTP.
type Push struct {
	URL         string
	Timeout     time.Duration
	Concurrency int
}

// Store is an EventStore.
type Store struct {
	Key
	UID     string
	Version string
	// Spec is never changed.
	Spec *configv1.EventStore
}
