package snapshot

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Versioned is a resource as it was streamed.
type Versioned struct {
	Resource *configv1.Resource
	Version  string
}

// Defaults of fields that are zero in a resource.
const (
	DefaultMaxEventBytes = 1 << 20
	DefaultPartitions    = 8
	DefaultAckTimeout    = 30 * time.Second
	DefaultMaxInFlight   = 1024
	DefaultMaxAttempts   = 16
	DefaultMinBackoff    = time.Second
	DefaultMaxBackoff    = 5 * time.Minute
	DefaultPushTimeout   = 10 * time.Second
	DefaultPushInFlight  = 16
)

// Input is what a snapshot is made of.
type Input struct {
	// Set are the resources by canonical name, each accepted by Check. They
	// are not changed and may be kept.
	Set map[string]Versioned
	// Withheld are the canonical names of resources that exist but of which
	// there is no version here that Check accepts.
	Withheld []string
	// Denied are namespaces that something of a kind which is not known here
	// governs; by what that is.
	Denied   map[string]string
	Lineage  string
	Revision int64
	Origin   Origin
	// Verifiers and TrustLoopback: see policy.CompileIdentities.
	Verifiers     map[string]*jwtauth.Verifier
	TrustLoopback bool
	// Shadowed: see policy.Rules.
	Shadowed func(policy, rule string)
	// Refuses: see Snapshot.
	Refuses func(namespace string) error
}

// Compile makes a snapshot. It cannot fail: what refers to something that is
// not there is not ready and says why.
func Compile(in Input) *Snapshot {
	s := &Snapshot{Lineage: in.Lineage, Revision: in.Revision, Origin: in.Origin, Refuses: in.Refuses,
		Topics: map[Key]*Topic{}, Subscriptions: map[Key]*Subscription{}, Stores: map[string]*Store{}}
	c := compiler{in: in, out: s}
	byKind := map[resource.Kind][]Versioned{}
	for _, name := range slices.Sorted(maps.Keys(in.Set)) {
		v := in.Set[name]
		kind := resource.KindOf(v.Resource)
		byKind[kind] = append(byKind[kind], v)
	}
	for _, v := range byKind[resource.EventStore] {
		md := v.Resource.Metadata
		s.Stores[md.Uid] = &Store{Key: key(v), UID: md.Uid, Version: v.Version, Spec: v.Resource.GetEventStore()}
	}
	for _, v := range byKind[resource.Topic] {
		c.topic(v)
	}
	for _, v := range byKind[resource.Route] {
		c.route(v)
	}
	c.withheldRoutes()
	for _, v := range byKind[resource.Subscription] {
		c.subscription(v)
	}
	c.access(byKind[resource.AccessPolicy], byKind[resource.Identity])
	return s
}

type compiler struct {
	in  Input
	out *Snapshot
}

func key(v Versioned) Key {
	return Key{v.Resource.Metadata.Namespace, v.Resource.Metadata.Name}
}

// companion is the system resource of kind that belongs to k; nil if it is not
// there.
func (c *compiler) companion(kind resource.Kind, k Key) *configv1.Resource {
	return c.in.Set[resource.Name(kind, k.Namespace, k.Name)].Resource
}

func (c *compiler) topic(v Versioned) {
	k, spec := key(v), v.Resource.GetTopic()
	t := &Topic{Key: k, UID: v.Resource.Metadata.Uid, KeyFrom: spec.KeyFrom,
		MaxEventBytes: int(cmp.Or(spec.MaxEventBytes, DefaultMaxEventBytes))}
	c.out.Topics[k] = t
	binding := c.companion(resource.TopicBinding, k).GetTopicBinding()
	if binding.GetTopicUid() != t.UID {
		t.NotReady = "the topic is not bound to a store yet"
		return
	}
	for _, e := range binding.Epochs {
		t.Epochs = append(t.Epochs, Epoch{Number: e.Number, StoreUID: e.StoreUid, Physical: e.PhysicalName})
	}
	if c.out.Stores[t.Last().StoreUID] == nil {
		t.NotReady = fmt.Sprintf("event store %s is not on this proxy", binding.Epochs[len(binding.Epochs)-1].Store)
		return
	}
	adm := c.companion(resource.TopicAdmission, k).GetTopicAdmission()
	switch {
	case adm.GetTopicUid() != t.UID:
		t.NotReady = "the topic is not provisioned yet"
	case !adm.Admitted:
		t.NotReady = cmp.Or(strings.Join(adm.Reasons, "; "), "the topic is not admitted")
	}
	if adm.GetTopicUid() == t.UID && adm.AtProxy {
		t.AtProxy = &LocalTopic{Partitions: int(cmp.Or(spec.Partitions, DefaultPartitions)),
			MaxAge: spec.GetRetention().GetMaxAge().AsDuration(), MaxBytes: int64(spec.GetRetention().GetMaxBytes())}
	}
}

func (c *compiler) route(v Versioned) {
	spec := v.Resource.GetRoute()
	t := c.out.Topics[Key{v.Resource.Metadata.Namespace, spec.Topic}]
	if t == nil {
		return // a route of a topic that is not here routes nothing
	}
	table, err := route.CompileTable(spec)
	if err != nil {
		t.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
		return
	}
	t.Route = table
}

// withheldRoutes stops every topic of a namespace that has a route which this
// proxy does not understand: which topic it is for cannot be known, and an
// event must not be kept where it does not belong.
func (c *compiler) withheldRoutes() {
	for _, name := range c.in.Withheld {
		kind, ns, _, err := resource.Split(name)
		if err != nil || kind != resource.Route {
			continue
		}
		for k, t := range c.out.Topics {
			if k.Namespace == ns && t.NotReady == "" {
				t.NotReady = name + " has no version that this proxy accepts"
			}
		}
	}
}

func (c *compiler) subscription(v Versioned) {
	k, spec := key(v), v.Resource.GetSubscription()
	retry := spec.GetRetry()
	s := &Subscription{Key: k, UID: v.Resource.Metadata.Uid, Topics: spec.Topics,
		AckTimeout:  duration(spec.AckTimeout, DefaultAckTimeout),
		MaxInFlight: int(cmp.Or(spec.MaxInFlight, DefaultMaxInFlight)),
		MaxAttempts: int(cmp.Or(retry.GetMaxAttempts(), DefaultMaxAttempts)),
		MinBackoff:  duration(retry.GetMinBackoff(), DefaultMinBackoff),
		MaxBackoff:  duration(retry.GetMaxBackoff(), DefaultMaxBackoff),
		DeadLetter:  spec.DeadLetterTopic}
	s.MaxBackoff = max(s.MaxBackoff, s.MinBackoff)
	c.out.Subscriptions[k] = s
	var err error
	if s.Filter, err = route.CompileFilter(spec.Filter, "spec.filter"); err != nil {
		s.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
		return
	}
	if p := spec.GetPush(); p != nil {
		s.Push = &Push{URL: p.Url, Timeout: duration(p.Timeout, DefaultPushTimeout), Concurrency: int(cmp.Or(p.Concurrency, DefaultPushInFlight))}
	}
	adm := c.companion(resource.SubscriptionAdmission, k).GetSubscriptionAdmission()
	if adm.GetSubscriptionUid() != s.UID {
		s.NotReady = "the subscription's start is not fixed yet"
		return
	}
	for _, src := range adm.Sources {
		t := c.out.Topics[Key{k.Namespace, src.Topic}]
		if t == nil || t.UID != src.TopicUid {
			continue // deleted meanwhile, or not here
		}
		i := slices.IndexFunc(t.Epochs, func(e Epoch) bool { return e.Number == src.Epoch })
		if i < 0 {
			continue
		}
		s.Sources = append(s.Sources, Source{Topic: t, Epoch: t.Epochs[i], Group: src.PhysicalGroup,
			RetryTopic: src.RetryTopic, RetryGroup: src.RetryGroup, AtProxy: src.AtProxy, FromBeginning: src.FromBeginning})
	}
	if len(s.Sources) == 0 {
		s.NotReady = cmp.Or(strings.Join(adm.Reasons, "; "), "no topic that it reads is ready")
	}
}

func (c *compiler) access(policies, identities []Versioned) {
	withheld := map[string]string{}
	maps.Copy(withheld, c.in.Denied)
	for _, name := range c.in.Withheld {
		if kind, ns, _, err := resource.Split(name); err == nil && resource.Governs(kind) {
			withheld[ns] = name
		}
	}
	var ps []policy.NamedPolicy
	for _, v := range policies {
		ps = append(ps, policy.NamedPolicy{Namespace: v.Resource.Metadata.Namespace, Name: v.Resource.Name, Spec: v.Resource.GetAccessPolicy()})
	}
	var is []policy.NamedIdentity
	for _, v := range identities {
		is = append(is, policy.NamedIdentity{Namespace: v.Resource.Metadata.Namespace, Name: v.Resource.Name, Spec: v.Resource.GetIdentity()})
	}
	c.out.Rules = policy.CompileRules(ps, withheld)
	c.out.Rules.Shadowed = c.in.Shadowed
	c.out.Identities = policy.CompileIdentities(is, c.in.Verifiers, c.in.TrustLoopback)
}

func duration(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.AsDuration()
}
