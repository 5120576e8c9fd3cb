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
	"github.com/weft-mesh/weft/dataplane/quota"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/jwtauth"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
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
	DefaultServiceGroup  = "DEFAULT_GROUP" // as Nacos has it
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
	// Observer: see policy.Rules.
	Observer policy.Observer
	// Refuses: see Snapshot.
	Refuses func(namespace string) error
}

// Compile makes a snapshot. It cannot fail: what refers to something that is
// not there is not ready and says why.
func Compile(in Input) *Snapshot {
	s := &Snapshot{Lineage: in.Lineage, Revision: in.Revision, Origin: in.Origin, Refuses: in.Refuses,
		Topics: map[Key]*Topic{}, Subscriptions: map[Key]*Subscription{}, Stores: map[string]*Store{}}
	c := compiler{in: in, out: s, schemas: map[Key]*schema.Schema{}}
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
	c.bindings(byKind[resource.HTTPBinding])
	for _, v := range byKind[resource.Subscription] {
		c.subscription(v)
	}
	refused := c.quotas(byKind[resource.Quota])
	c.access(byKind[resource.AccessPolicy], byKind[resource.Identity], refused)
	return s
}

type compiler struct {
	in      Input
	out     *Snapshot
	schemas map[Key]*schema.Schema // that topics name; nil where there is none
}

func key(v Versioned) Key {
	return Key{v.Resource.Metadata.Namespace, v.Resource.Metadata.Name}
}

// companion is the system resource of kind that belongs to k; nil if it is not
// there.
func (c *compiler) companion(kind resource.Kind, k Key) *configv1.Resource {
	return c.in.Set[resource.Name(kind, k.Namespace, k.Name)].Resource
}

// schema is the Schema called k, compiled; nil where it is not there or not understood.
func (c *compiler) schema(k Key) *schema.Schema {
	s, ok := c.schemas[k]
	if !ok {
		if r := c.companion(resource.Schema, k); r != nil {
			s, _ = schema.Compile(r.GetSchema())
		}
		c.schemas[k] = s
	}
	return s
}

func (c *compiler) topic(v Versioned) {
	k, spec := key(v), v.Resource.GetTopic()
	t := &Topic{Key: k, UID: v.Resource.Metadata.Uid, KeyFrom: spec.KeyFrom,
		MaxEventBytes: int(cmp.Or(spec.MaxEventBytes, DefaultMaxEventBytes))}
	c.out.Topics[k] = t
	if spec.Schema != "" {
		if t.Schema = c.schema(Key{k.Namespace, spec.Schema}); t.Schema == nil {
			t.Unjudged = fmt.Sprintf("schema %s is not on this proxy", spec.Schema)
		}
	}
	binding, version := c.companion(resource.TopicBinding, k).GetTopicBinding(), c.in.Set[resource.Name(resource.TopicBinding, k.Namespace, k.Name)].Version
	if binding.GetTopicUid() != t.UID {
		t.NotReady = "the topic is not bound to a store yet"
		return
	}
	c.epochs(t, binding, version)
	if c.out.Stores[t.Written().StoreUID] == nil {
		for _, e := range binding.Epochs {
			if e.Number == t.Written().Number {
				t.NotReady = fmt.Sprintf("event store %s is not on this proxy", e.Store)
			}
		}
		return
	}
	adm := c.companion(resource.TopicAdmission, k).GetTopicAdmission()
	switch {
	case adm.GetTopicUid() != t.UID:
		t.NotReady = "the topic is not provisioned yet"
	case !adm.Admitted:
		t.NotReady = cmp.Or(strings.Join(adm.Reasons, "; "), "the topic is not admitted")
	}
	if adm.GetTopicUid() == t.UID && (adm.AtProxy || slices.ContainsFunc(t.Epochs, func(e Epoch) bool { return e.Local })) {
		t.AtProxy = &LocalTopic{Partitions: int(cmp.Or(spec.Partitions, DefaultPartitions)),
			MaxAge: spec.GetRetention().GetMaxAge().AsDuration(), MaxBytes: int64(spec.GetRetention().GetMaxBytes())}
	}
}

// epochs has where a topic is, and how far its move is, of its TopicBinding.
func (c *compiler) epochs(t *Topic, binding *configv1.TopicBinding, version string) {
	for _, e := range binding.Epochs {
		local := c.out.Stores[e.StoreUid] != nil && c.out.Stores[e.StoreUid].Spec.GetEmbedded() != nil
		t.Epochs = append(t.Epochs, Epoch{Number: e.Number, StoreUID: e.StoreUid, Physical: e.PhysicalName, Local: local})
		if len(e.Cut) == 0 {
			continue
		}
		cut := make(map[string]store.Position, len(e.Cut))
		for _, p := range e.Cut {
			cut[p.Partition] = store.Position{Partition: p.Partition, Offset: p.Offset, Minor: p.Minor}
		}
		if t.Cuts == nil {
			t.Cuts = map[uint32]map[string]store.Position{}
		}
		t.Cuts[e.Number] = cut
	}
	if phase, moves := cutover.PhaseOf(binding.Move); moves { // Check lets no others in
		m := binding.Move
		t.Move = &Move{Phase: phase, Version: version, Marker: m.Marker, Attempt: m.Attempt}
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
		DeadLetter:  spec.DeadLetterTopic,
		Ordered:     spec.Ordering == configv1.Ordering_ORDERING_BY_KEY,
		Block:       spec.OnExhausted == configv1.OnExhausted_ON_EXHAUSTED_BLOCK}
	if r := spec.Rate; r != nil {
		s.Rate = float64(r.Deliveries) / duration(r.Per, time.Second).Seconds()
		s.Burst = int(cmp.Or(r.Burst, max(1, uint32(s.Rate/10))))
	}
	s.MaxBackoff = max(s.MaxBackoff, s.MinBackoff)
	c.out.Subscriptions[k] = s
	var err error
	if s.Filter, err = route.CompileFilter(spec.Filter, "spec.filter"); err != nil {
		s.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
		return
	}
	if s.Transform, err = eventcel.CompileTransform(spec.Transform); err != nil {
		s.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
		return
	}
	if p := spec.GetPush(); p != nil {
		if s.Push, err = compilePush(p, v.Version); err != nil {
			s.NotReady = fmt.Sprintf("%s is not understood: %v", v.Resource.Name, err)
			return
		}
	}
	if f := spec.GetForward(); f != nil {
		s.Push = &Push{Version: v.Version, ForwardTo: f.Topic, Timeout: DefaultPushTimeout, Concurrency: int(cmp.Or(f.Concurrency, DefaultPushInFlight))}
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
		from, err := position.Start(src.FromBeginning, spec.StartAt, spec.StartPositions, src.TopicUid, src.Epoch)
		if err != nil && src.AtProxy {
			s.NotReady = err.Error()
			return
		}
		s.Sources = append(s.Sources, Source{Topic: t, Epoch: t.Epochs[i], Group: src.PhysicalGroup,
			RetryTopic: src.RetryTopic, RetryGroup: src.RetryGroup, AtProxy: src.AtProxy, Start: from})
	}
	if len(s.Sources) == 0 {
		s.NotReady = cmp.Or(strings.Join(adm.Reasons, "; "), "no topic that it reads is ready")
	}
}

func compilePush(p *configv1.PushDelivery, version string) (*Push, error) {
	out := &Push{Version: version, URL: p.Url, Timeout: duration(p.Timeout, DefaultPushTimeout), Concurrency: int(cmp.Or(p.Concurrency, DefaultPushInFlight)),
		Origin: p.GetHandshake().GetOrigin(), Rate: p.GetHandshake().GetRate(),
		SignWith: p.GetSignature().GetSecrets(), Scheme: cmp.Or(p.GetAuthorization().GetScheme(), "Bearer"), Secret: p.GetAuthorization().GetSecret(),
		CA: p.GetTls().GetCa(), Cert: p.GetTls().GetCertificate(), Key: p.GetTls().GetKey()}
	if s := p.Service; s != nil {
		out.Service = &Service{Group: cmp.Or(s.Group, DefaultServiceGroup), Name: s.Name, Clusters: s.Clusters, Scheme: cmp.Or(s.Scheme, "http"), Path: s.Path}
	}
	var err error
	if p.Request != nil {
		if out.Request, err = rest.CompileRequest(p.Request); err != nil {
			return nil, err
		}
	}
	if out.SettleOn, err = rest.ParseStatuses(p.SettleOn); err != nil {
		return nil, err
	}
	out.RejectOn, err = rest.ParseStatuses(p.RejectOn)
	return out, err
}

// quotas compiles them; refused are those that are not understood, by namespace.
func (c *compiler) quotas(list []Versioned) (refused map[string]string) {
	var qs []quota.Named
	for _, v := range list {
		md := v.Resource.Metadata
		qs = append(qs, quota.Named{Namespace: md.Namespace, Name: v.Resource.Name, UID: md.Uid, Spec: v.Resource.GetQuota()})
	}
	c.out.Quotas, refused = quota.Compile(qs)
	for k, t := range c.out.Topics {
		t.Quotas = c.out.Quotas.Publishing(k.Namespace, k.Name)
	}
	return refused
}

// access compiles what is allowed. denied are namespaces of which nothing may be,
// by what is not understood.
func (c *compiler) access(policies, identities []Versioned, denied map[string]string) {
	withheld := denied
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
	c.out.Rules.Observer = c.in.Observer
	c.out.Identities = policy.CompileIdentities(is, c.in.Verifiers, c.in.TrustLoopback)
}

func duration(d *durationpb.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.AsDuration()
}
