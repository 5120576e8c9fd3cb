package validate

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
	"github.com/weft-mesh/weft/pkg/schema"
)

// Together judges what a change makes of the configuration: before is what is
// there, put what is created or updated (each accepted by Alone), gone the
// canonical names that are deleted. Problems are of put and gone; what was
// wrong before and is not touched is not reported.
func Together(before View, put []*configv1.Resource, gone []string) []Problem {
	o := overlay{before: before, put: map[string]*configv1.Resource{}, gone: map[string]bool{}, keys: map[string][]*configv1.Resource{}}
	for _, r := range put {
		o.put[resource.NameOf(r)] = r
	}
	for _, r := range put {
		if o.put[resource.NameOf(r)] != r {
			continue // there twice
		}
		for _, k := range Keys(r) {
			o.keys[k] = append(o.keys[k], r)
		}
	}
	for _, n := range gone {
		o.gone[n] = true
	}
	var problems []Problem
	seen := map[string]bool{}
	for _, r := range put {
		c := &collector{name: resource.NameOf(r)}
		if seen[c.name] {
			c.add("metadata.name", "unique", "is in the change twice")
		}
		seen[c.name] = true
		if o.gone[c.name] {
			c.add("metadata.name", "unique", "is both applied and deleted")
		}
		c.immutable(before.Resource(c.name), r)
		c.stays(o, before.Resource(c.name), r)
		c.together(o, r)
		problems = append(problems, c.problems...)
	}
	clear(seen)
	for _, name := range gone {
		c := &collector{name: name}
		if seen[name] {
			c.add("name", "unique", "is in the change twice")
		}
		seen[name] = true
		c.unused(o, before.Resource(name))
		problems = append(problems, c.problems...)
	}
	return problems
}

// overlay is the configuration after the change.
type overlay struct {
	before View
	put    map[string]*configv1.Resource
	gone   map[string]bool
	// keys has what is put, by Keys.
	keys map[string][]*configv1.Resource
}

func (o overlay) get(kind resource.Kind, ns, name string) *configv1.Resource {
	full := resource.Name(kind, ns, name)
	if r := o.put[full]; r != nil {
		return r
	}
	if o.gone[full] {
		return nil
	}
	return o.before.Resource(full)
}

// find yields the resources that are there under a key of Keys.
func (o overlay) find(key string) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		for r := range o.before.Find(key) {
			name := resource.NameOf(r)
			if o.put[name] == nil && !o.gone[name] && !yield(r) {
				return
			}
		}
		for _, r := range o.keys[key] {
			if !yield(r) {
				return
			}
		}
	}
}

// defaultPartitions is what a Topic without partitions has.
const defaultPartitions = 8

// immutable checks what may not change once it is there.
func (c *collector) immutable(old, r *configv1.Resource) {
	if old == nil {
		return
	}
	switch s := r.Spec.(type) {
	case *configv1.Resource_EventStore:
		if a, b := old.GetEventStore().ProtoReflect(), s.EventStore.ProtoReflect(); a.WhichOneof(a.Descriptor().Oneofs().ByName("driver")) != b.WhichOneof(b.Descriptor().Oneofs().ByName("driver")) {
			c.add("spec", "immutable", "a store's kind cannot change; create another EventStore and move its topics with weft migrate")
		}
	case *configv1.Resource_Topic:
		was := old.GetTopic()
		if was.PhysicalName != s.Topic.PhysicalName {
			c.add("spec.physical_name", "immutable", fmt.Sprintf("is %q and cannot change", was.PhysicalName))
		}
		if before := cmp.Or(was.Partitions, defaultPartitions); cmp.Or(s.Topic.Partitions, defaultPartitions) < before {
			c.add("spec.partitions", "immutable", fmt.Sprintf("is %d and cannot shrink: events of one key would change places", before))
		}
	case *configv1.Resource_Migration:
		was := old.GetMigration()
		if was.To != s.Migration.To {
			c.add("spec.to", "immutable", fmt.Sprintf("is %q and cannot change: roll back, delete the Migration, and create another one", was.To))
		}
		if was.PhysicalName != s.Migration.PhysicalName {
			c.add("spec.physical_name", "immutable", fmt.Sprintf("is %q and cannot change: roll back, delete the Migration, and create another one", was.PhysicalName))
		}
	case *configv1.Resource_Schema:
		for _, why := range schema.Incompatible(old.GetSchema(), s.Schema) {
			c.add(schema.Field(s.Schema), "compatibility", why)
		}
	case *configv1.Resource_Subscription:
		c.startFixed(old.GetSubscription(), s.Subscription)
	}
}

func (c *collector) together(o overlay, r *configv1.Resource) {
	ns := r.Metadata.Namespace
	for other := range o.find(sameName(resource.KindOf(r), ns, r.Metadata.Name)) {
		if other.Metadata.Name != r.Metadata.Name {
			c.add("metadata.name", "case", fmt.Sprintf("differs from %s only in case", resource.NameOf(other)))
		}
	}
	topic := func(field, name string) {
		if o.get(resource.Topic, ns, name) == nil {
			c.add(field, "reference", fmt.Sprintf("there is no Topic %s in namespace %s", name, ns))
		}
	}
	switch s := r.Spec.(type) {
	case *configv1.Resource_EventStore:
		c.eventStoreTogether(o, r)
	case *configv1.Resource_Topic:
		c.topicTogether(o, r, s.Topic)
	case *configv1.Resource_Migration:
		c.migrationTogether(o, r)
	case *configv1.Resource_Route:
		topic("spec.topic", s.Route.Topic)
		for i, rule := range s.Route.Rules {
			for j, to := range rule.To {
				topic(fmt.Sprintf("spec.rules[%d].to[%d].topic", i, j), to.Topic)
			}
		}
		for other := range o.find(usersOf(resource.Topic, ns, s.Route.Topic)) {
			if route := other.GetRoute(); route != nil && other.Metadata.Name != r.Metadata.Name && route.Topic == s.Route.Topic {
				c.add("spec.topic", "unique", fmt.Sprintf("%s routes this topic already; a topic has one Route", resource.NameOf(other)))
			}
		}
		c.routeRing(o, ns, s.Route)
	case *configv1.Resource_HttpBinding:
		for i, rule := range s.HttpBinding.Rules {
			topic(fmt.Sprintf("spec.rules[%d].topic", i), rule.Topic)
		}
		c.bindingTogether(o, r)
	case *configv1.Resource_Subscription:
		for i, t := range s.Subscription.Topics {
			if !names.IsPattern(t) {
				topic(fmt.Sprintf("spec.topics[%d]", i), t)
			}
		}
		if d := s.Subscription.DeadLetterTopic; d != "" {
			topic("spec.dead_letter_topic", d)
		}
		if f := s.Subscription.GetForward(); f != nil {
			topic("spec.forward.topic", f.Topic)
		}
		c.startTogether(o, r)
		c.subscriptionRings(o, r)
	case *configv1.Resource_Identity:
		for i, k := range s.Identity.GetApiKeys().GetKeys() {
			for other := range o.find(apiKey(k.Id)) {
				if resource.NameOf(other) != c.name {
					// Not whose: that namespace may not be the caller's.
					c.add(fmt.Sprintf("spec.api_keys.keys[%d].id", i), "unique", fmt.Sprintf("%q is taken; key ids are unique in the mesh", k.Id))
				}
			}
		}
		for i, aud := range s.Identity.GetJwt().GetAudiences() {
			for other := range o.find(audience(s.Identity.GetJwt().Issuer, aud)) {
				if resource.NameOf(other) != c.name {
					c.add(fmt.Sprintf("spec.jwt.audiences[%d]", i), "unique", fmt.Sprintf("%q of this issuer is taken; a token must not be good for two principals", aud))
				}
			}
		}
	}
}

// bindingTogether: of two rules that fit one path one is more specific, and a host is
// of one namespace.
func (c *collector) bindingTogether(o overlay, r *configv1.Resource) {
	ns := r.Metadata.Namespace
	for other := range o.find(bindings(ns)) {
		if other.Metadata.Name == r.Metadata.Name {
			continue
		}
		for i, a := range r.GetHttpBinding().Rules {
			for j, b := range other.GetHttpBinding().Rules {
				if rest.Conflict(a.Method, a.Path, b.Method, b.Path) {
					c.add(fmt.Sprintf("spec.rules[%d].path", i), "http-rule", fmt.Sprintf("%s fits paths that %s of %s (spec.rules[%d]) fits, and neither is more specific", a.Path, b.Path, resource.NameOf(other), j))
				}
			}
		}
	}
	for i, h := range r.GetHttpBinding().Hosts {
		for other := range o.find(host(h)) {
			if other.Metadata.Namespace != ns {
				// Not whose: that namespace may not be the caller's.
				c.add(fmt.Sprintf("spec.hosts[%d]", i), "unique", fmt.Sprintf("%q is taken; a host is of one namespace", h))
			}
		}
	}
}

func (c *collector) topicTogether(o overlay, r *configv1.Resource, t *configv1.Topic) {
	ns := r.Metadata.Namespace
	if t.Schema != "" && o.get(resource.Schema, ns, t.Schema) == nil {
		c.add("spec.schema", "reference", fmt.Sprintf("there is no Schema %s in namespace %s", t.Schema, ns))
	}
	home := o.home(r)
	store := o.get(resource.EventStore, ns, home)
	if store == nil {
		c.add("spec.store", "reference", fmt.Sprintf("there is no EventStore %s in namespace %s", home, ns))
		return
	}
	if b := o.bindingOf(ns, r.Metadata.Name); home == t.Store && (b == nil || b.Epochs[len(b.Epochs)-1].PhysicalName == PhysicalName(r)) {
		c.storeTakes(t, store, "spec.retention", "spec.needs.durability", t.PhysicalName)
		if taken := PhysicalName(r); o.taken(taken, c.name, store) || o.claimed(taken, "", store) {
			c.add("spec.physical_name", "unique", fmt.Sprintf("the physical topic %s is a Topic's already", taken))
		}
	} else {
		c.storeTakes(t, store, "spec.retention", "spec.needs.durability", "")
	}
}

// eventStoreTogether: a store that now reaches where another one does must not
// bring two topics together.
func (c *collector) eventStoreTogether(o overlay, r *configv1.Resource) {
	if proto.Equal(o.before.Resource(c.name).GetEventStore(), r.GetEventStore()) {
		return // reaches where it did
	}
	ns := r.Metadata.Namespace
	judge := func(topic, physical string) {
		if o.put[topic] == nil /* else it is judged by itself */ && o.taken(physical, topic, r) {
			c.add("spec", "unique", fmt.Sprintf("reaches where the physical topic %s of %s is another Topic's already", physical, topic))
		}
	}
	for t := range o.find(usersOf(resource.EventStore, ns, r.Metadata.Name)) {
		if t.GetTopic() != nil {
			judge(resource.NameOf(t), PhysicalName(t))
		}
	}
	for b := range o.find(epochsIn(ns, r.Metadata.Name)) {
		for _, e := range b.GetTopicBinding().Epochs {
			if e.Store == r.Metadata.Name && o.bindingOf(ns, b.Metadata.Name) != nil {
				judge(resource.Name(resource.Topic, ns, b.Metadata.Name), e.PhysicalName)
			}
		}
	}
}

// PhysicalName is the name of a Topic resource in its first store.
func PhysicalName(r *configv1.Resource) string {
	if n := r.GetTopic().GetPhysicalName(); n != "" {
		return n
	}
	return names.Physical(r.Metadata.Namespace, r.Metadata.Name)
}

// sameStore reports whether two bindings surely reach one middleware.
func sameStore(a, b *configv1.EventStore) bool {
	servers := a.GetRocketmq().GetNameServers()
	others := b.GetRocketmq().GetNameServers()
	if a.GetKafka() != nil {
		servers, others = a.GetKafka().Brokers, b.GetKafka().GetBrokers()
	}
	if servers == nil || others == nil {
		return proto.Equal(a, b)
	}
	return slices.ContainsFunc(servers, func(s string) bool { return slices.Contains(others, s) })
}

// unused checks that nothing that stays refers to r, which goes.
func (c *collector) unused(o overlay, r *configv1.Resource) {
	if r == nil {
		c.add("name", "not-found", "does not exist")
		return
	}
	if info, _ := resource.Lookup(string(resource.KindOf(r))); info.System {
		c.add("name", "system-kind", "is of a kind that only the control plane writes")
		return
	}
	ns, name := r.Metadata.Namespace, r.Metadata.Name
	switch resource.KindOf(r) {
	case resource.Migration:
		c.migrationUnused(o, r)
	case resource.EventStore:
		if topic := o.holds(ns, name); topic != "" {
			c.add("name", "in-use", "has events of "+topic+": move it (weft migrate) and finish that, or delete it, first")
		}
	}
	used := func(by *configv1.Resource, field string) {
		c.add("name", "in-use", fmt.Sprintf("is used by %s (%s); delete or change that first, or in the same call", resource.NameOf(by), field))
	}
	for user := range o.find(usersOf(resource.KindOf(r), ns, name)) {
		switch s := user.Spec.(type) {
		case *configv1.Resource_Topic:
			if s.Topic.Store == name && resource.KindOf(r) == resource.EventStore && o.bindingOf(ns, user.Metadata.Name) == nil {
				used(user, "spec.store") // else where it was made is of no matter any more
			}
			if s.Topic.Schema == name && resource.KindOf(r) == resource.Schema {
				used(user, "spec.schema")
			}
		case *configv1.Resource_Migration:
			if b := o.bindingOf(ns, user.Metadata.Name); b == nil || b.Ended != user.Metadata.Uid {
				used(user, "spec.to")
			}
		case *configv1.Resource_Subscription:
			if slices.Contains(s.Subscription.Topics, name) {
				used(user, "spec.topics")
			}
			if s.Subscription.DeadLetterTopic == name {
				used(user, "spec.dead_letter_topic")
			}
			if f := s.Subscription.GetForward(); f != nil && f.Topic == name {
				used(user, "spec.forward.topic")
			}
		case *configv1.Resource_HttpBinding:
			for i, rule := range s.HttpBinding.Rules {
				if rule.Topic == name {
					used(user, fmt.Sprintf("spec.rules[%d].topic", i))
				}
			}
		case *configv1.Resource_Route:
			if s.Route.Topic == name {
				used(user, "spec.topic")
			}
			for i, rule := range s.Route.Rules {
				if slices.ContainsFunc(rule.To, func(d *configv1.Destination) bool { return d.Topic == name }) {
					used(user, fmt.Sprintf("spec.rules[%d].to", i))
				}
			}
		}
	}
}

// readsTopic reports whether a subscription reads a topic.
func readsTopic(s *configv1.Subscription, topic string) bool {
	return slices.ContainsFunc(s.Topics, func(t string) bool { return names.Match(t, topic) })
}
