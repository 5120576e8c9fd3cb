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
		if was.Store != s.Topic.Store {
			c.add("spec.store", "immutable", fmt.Sprintf("is %q; moving a topic that is used is weft migrate's work", was.Store))
		}
		if was.PhysicalName != s.Topic.PhysicalName {
			c.add("spec.physical_name", "immutable", fmt.Sprintf("is %q and cannot change", was.PhysicalName))
		}
		if before := cmp.Or(was.Partitions, defaultPartitions); cmp.Or(s.Topic.Partitions, defaultPartitions) < before {
			c.add("spec.partitions", "immutable", fmt.Sprintf("is %d and cannot shrink: events of one key would change places", before))
		}
	case *configv1.Resource_Subscription:
		if was := old.GetSubscription(); cmp.Or(was.Start, configv1.Start_START_END) != cmp.Or(s.Subscription.Start, configv1.Start_START_END) {
			c.add("spec.start", "immutable", "is fixed at creation: create another Subscription to begin elsewhere")
		}
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
	case *configv1.Resource_Subscription:
		for i, t := range s.Subscription.Topics {
			if !names.IsPattern(t) {
				topic(fmt.Sprintf("spec.topics[%d]", i), t)
			}
		}
		if d := s.Subscription.DeadLetterTopic; d != "" {
			topic("spec.dead_letter_topic", d)
			c.deadLetterRing(o, ns, s.Subscription)
		}
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

func (c *collector) topicTogether(o overlay, r *configv1.Resource, t *configv1.Topic) {
	ns := r.Metadata.Namespace
	store := o.get(resource.EventStore, ns, t.Store)
	if store == nil {
		c.add("spec.store", "reference", fmt.Sprintf("there is no EventStore %s in namespace %s", t.Store, ns))
		return
	}
	local := store.GetEventStore().GetEmbedded() != nil
	if t.Retention != nil && !local {
		c.add("spec.retention", "store-lacks", "EventStore "+t.Store+" keeps events by one setting for all topics (RocketMQ: fileReservedTime of the broker); leave it out")
	}
	if t.PhysicalName != "" && local {
		c.add("spec.physical_name", "store-lacks", "an embedded store has no topics of others to adopt; leave it out")
	}
	if local && t.Needs.GetDurability() == configv1.Durability_DURABILITY_REPLICATED {
		c.add("spec.needs.durability", "store-lacks", "an embedded store is on one machine")
	}
	if taken := o.samePhysical(r, store); taken != "" {
		c.add("spec.physical_name", "unique", fmt.Sprintf("the physical topic %s is a Topic's already", taken))
	}
}

// eventStoreTogether: a store that now reaches where another one does must not
// bring two topics together.
func (c *collector) eventStoreTogether(o overlay, r *configv1.Resource) {
	if proto.Equal(o.before.Resource(c.name).GetEventStore(), r.GetEventStore()) {
		return // reaches where it did
	}
	for t := range o.find(usersOf(resource.EventStore, r.Metadata.Namespace, r.Metadata.Name)) {
		if o.put[resource.NameOf(t)] != nil {
			continue // judged by itself
		}
		if taken := o.samePhysical(t, r); taken != "" {
			c.add("spec", "unique", fmt.Sprintf("reaches where the physical topic %s of %s is another Topic's already", taken, resource.NameOf(t)))
		}
	}
}

// samePhysical is the physical name of topic r in its store, if another Topic
// has it already; not whose: that namespace may not be the caller's.
func (o overlay) samePhysical(r, store *configv1.Resource) string {
	local := store.GetEventStore().GetEmbedded() != nil
	for other := range o.find(physical(PhysicalName(r))) {
		if resource.NameOf(other) == resource.NameOf(r) {
			continue
		}
		os := o.get(resource.EventStore, other.Metadata.Namespace, other.GetTopic().Store)
		if os != nil && sameStore(os.GetEventStore(), store.GetEventStore()) && (!local || os == store) {
			return PhysicalName(r)
		}
	}
	return ""
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
	ra, rb := a.GetRocketmq(), b.GetRocketmq()
	if ra == nil || rb == nil {
		return proto.Equal(a, b)
	}
	return slices.ContainsFunc(ra.NameServers, func(s string) bool { return slices.Contains(rb.NameServers, s) })
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
	used := func(by *configv1.Resource, field string) {
		c.add("name", "in-use", fmt.Sprintf("is used by %s (%s); delete or change that first, or in the same call", resource.NameOf(by), field))
	}
	for user := range o.find(usersOf(resource.KindOf(r), ns, name)) {
		switch s := user.Spec.(type) {
		case *configv1.Resource_Topic:
			used(user, "spec.store")
		case *configv1.Resource_Subscription:
			if slices.Contains(s.Subscription.Topics, name) {
				used(user, "spec.topics")
			}
			if s.Subscription.DeadLetterTopic == name {
				used(user, "spec.dead_letter_topic")
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

// deadLetterRing follows the dead letters of s: where those who read them give
// up too, and so on, they must not come back to s. (That s reads its own is seen
// without the others.)
func (c *collector) deadLetterRing(o overlay, ns string, s *configv1.Subscription) {
	from := map[string]string{} // by topic: how dead letters of s come there
	next := []string{s.DeadLetterTopic}
	from[s.DeadLetterTopic] = s.DeadLetterTopic
	for len(next) > 0 {
		at := next[0]
		next = next[1:]
		for _, key := range []string{usersOf(resource.Topic, ns, at), patterns(ns)} {
			for r := range o.find(key) {
				by := r.GetSubscription()
				to := by.GetDeadLetterTopic()
				if to == "" || resource.NameOf(r) == c.name || from[to] != "" || !readsTopic(by, at) {
					continue
				}
				from[to] = fmt.Sprintf("%s, %s (of %s)", from[at], to, resource.NameOf(r))
				if readsTopic(s, to) {
					c.add("spec.dead_letter_topic", "cycle", "leads back to what the subscription reads, so that an event which nobody can take goes round for ever: "+from[to])
					return
				}
				next = append(next, to)
			}
		}
	}
}
