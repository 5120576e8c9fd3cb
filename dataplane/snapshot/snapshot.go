// Package snapshot is the configuration as the event path uses it: compiled,
// immutable, whole. One snapshot is taken at the start of an operation and
// used to its end.
package snapshot

import (
	"slices"
	"sync"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/store"
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
	// Calls are what HttpBindings make events of.
	Calls Calls
	// Stores by EventStore uid.
	Stores map[string]*Store
	// Rules decide; never nil.
	Rules *policy.Rules
	// Quotas bound what clients do; nil bounds nothing.
	Quotas *quota.Rules
	// Identities authenticate; never nil.
	Identities *policy.Identities
	// Refuses tells why nothing of a namespace may be used, whoever asks; nil where
	// all may.
	Refuses func(namespace string) error

	// namespaces are the Topics of each, once somebody asks.
	namespaces map[string][]*Topic
	sorted     sync.Once
}

// Namespace are the topics of one namespace, found without a look at those of others:
// who is refused asks too. They are not to be changed.
func (s *Snapshot) Namespace(name string) []*Topic {
	s.sorted.Do(func() {
		s.namespaces = map[string][]*Topic{}
		for k, t := range s.Topics {
			s.namespaces[k.Namespace] = append(s.namespaces[k.Namespace], t)
		}
	})
	return s.namespaces[name]
}

// Matching are the topics of a namespace that names or patterns match, each once.
func (s *Snapshot) Matching(namespace string, list []string) []*Topic {
	var out []*Topic
	patterns := false
	for _, n := range list {
		if names.IsPattern(n) {
			patterns = true
		} else if t := s.Topics[Key{namespace, n}]; t != nil && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	if !patterns {
		return out
	}
	for _, t := range s.Namespace(namespace) {
		if !slices.Contains(list, t.Name) && slices.ContainsFunc(list, func(p string) bool { return names.Match(p, t.Name) }) {
			out = append(out, t)
		}
	}
	return out
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
	// Epochs, oldest first. Never empty.
	Epochs []Epoch
	// Cuts tell, by number, where epochs that were written to before end: the position
	// of the marker in each partition. What is there and behind it does not count, nor
	// what is in partitions that are not in it.
	Cuts map[uint32]map[string]store.Position
	// Move is nil while the topic does not move to its last epoch.
	Move *Move
	// NotReady says why the topic may not be used yet; "" when it may.
	NotReady string
	KeyFrom  string
	// MaxEventBytes bounds event.Event.Size.
	MaxEventBytes int
	// Route is nil where events stay in the topic that they enter. Its
	// destinations are topics of the same namespace.
	Route *route.Table
	// Schema judges the data of its events; nil takes any. Unjudged is why it
	// cannot be judged, so that nothing may be published; "" when it can.
	Schema   *schema.Schema
	Unjudged string
	// Quotas bound publishing to it.
	Quotas []*quota.Rule
	// AtProxy: this proxy creates the topic in its local stores: its epochs that are
	// Local.
	AtProxy *LocalTopic
}

// Move is the move of a topic to its last epoch; see package cutover.
type Move struct {
	Phase cutover.Phase
	// Version of the TopicBinding; says equality only.
	Version string
	// Marker is the node id of who writes the markers of Attempt, in Marking.
	Marker  string
	Attempt uint32
}

// Epoch is a stretch of a topic in one store.
type Epoch struct {
	Number   uint32
	StoreUID string
	Physical string
	// Local: the store is inside this proxy.
	Local bool
}

// Written is the epoch that is written to.
func (t *Topic) Written() Epoch {
	if t.Move != nil && t.Move.Phase < cutover.Draining && len(t.Epochs) > 1 {
		return t.Epochs[len(t.Epochs)-2]
	}
	return t.Epochs[len(t.Epochs)-1]
}

// Writing is how the topic may be written to.
func (t *Topic) Writing() cutover.Writing {
	if t.Move == nil || len(t.Epochs) < 2 {
		return cutover.Writing{Epoch: t.Written().Number}
	}
	w := t.Move.Phase.Writing(t.Epochs[len(t.Epochs)-2].Number)
	w.Epoch = t.Written().Number // the next one need not have the next number
	return w
}

// Has reports whether the topic has an epoch.
func (t *Topic) Has(epoch uint32) bool {
	return slices.ContainsFunc(t.Epochs, func(e Epoch) bool { return e.Number == epoch })
}

// Past reports whether what is at a position of an epoch does not count: it is at or
// behind the cut, or in a partition that the cut does not have.
func (t *Topic) Past(epoch uint32, p store.Position) bool {
	cut, ok := t.Cuts[epoch]
	if !ok {
		return false
	}
	end, ok := cut[p.Partition]
	return !ok || !p.Less(end)
}

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
	// Sources are the topics that are read, each with its start fixed. Those of one topic
	// come one after the other, in the order of its epochs: what is of a later epoch is
	// read once the group has settled all of the earlier ones, up to their cuts.
	Sources []Source
	// Filter is nil where everything is delivered.
	Filter *route.Filter
	// Transform is nil where events are delivered as they are.
	Transform *eventcel.Transform
	// Push is nil where members connect.
	Push        *Push
	AckTimeout  time.Duration
	MaxInFlight int
	MaxAttempts int
	MinBackoff  time.Duration
	MaxBackoff  time.Duration
	// DeadLetter is the name of a Topic of the namespace; "" for none.
	DeadLetter string
	// Ordered: one event of a key at a time, in order.
	Ordered bool
	// Block: what has exhausted its attempts is repeated all the same.
	Block bool
	// Rate is the most deliveries a second of this proxy, 0 without bound; Burst
	// how many of them may come at once.
	Rate  float64
	Burst int
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
	AtProxy bool
	// Start is where Group begins, with AtProxy.
	Start store.Start
}

// Settled reports whether the group of a source, which is so far behind, has settled the
// epoch up to its cut; without one it has not. A store that is inside this proxy has what
// the proxy has written: where the group has settled all of that there is no more, also
// if the cut is behind it, of a store that was lost.
func (s *Source) Settled(lag []store.PartitionLag) bool {
	cut, ok := s.Topic.Cuts[s.Epoch.Number]
	if !ok {
		return false
	}
	if s.Epoch.Local && !slices.ContainsFunc(lag, func(l store.PartitionLag) bool { return l.Committed < l.End }) {
		return true
	}
	return store.Settled(lag, cut)
}

// Push is delivery by the proxy itself: by HTTP, or into another topic.
type Push struct {
	// Version of the Subscription; says equality only.
	Version string
	// ForwardTo is the Topic of the namespace that events are published to; "" is
	// delivery by HTTP, of which the fields from URL on are, but for Timeout.
	ForwardTo   string
	Concurrency int
	Timeout     time.Duration
	// URL of the target; "" where it is Service.
	URL     string
	Service *Service
	// Request is what the target is asked; nil is a CloudEvent in binary mode.
	Request *rest.Request
	// Origin asks the target for its consent, and Rate for so many requests a
	// minute; "" where it is not asked, 0 where no rate is.
	Origin string
	Rate   uint32
	// SettleOn and RejectOn are answers with a meaning of their own.
	SettleOn, RejectOn rest.Statuses
	// SignWith are names of secrets; none where requests are not signed.
	SignWith []string
	// Scheme and Secret are of the Authorization header; Secret is the name of
	// one, "" for none.
	Scheme, Secret string
	// CA, Cert and Key are names of secrets: what the target is trusted by, and shown;
	// "" for the system's authorities, and nothing.
	CA, Cert, Key string
}

// Service is a service in a registry that is pushed to.
type Service struct {
	Group, Name string
	Clusters    []string // all when empty
	// Scheme and Path are of the URL, around an instance's address.
	Scheme, Path string
}

// Store is an EventStore.
type Store struct {
	Key
	UID     string
	Version string
	// Spec is never changed.
	Spec *configv1.EventStore
}
