package validate

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/rest"
)

// scanTogether is Together by looking at everything.
func scanTogether(before config, put []*configv1.Resource, gone []string) []Problem {
	o := scanned{before: before, put: map[string]*configv1.Resource{}, gone: map[string]bool{}}
	for _, r := range put {
		o.put[resource.NameOf(r)] = r
	}
	for _, n := range gone {
		o.gone[n] = true
	}
	var problems []Problem
	seen := map[string]bool{}
	for _, r := range put {
		c := scanner{&collector{name: resource.NameOf(r)}}
		if seen[c.name] {
			c.add("metadata.name", "unique", "is in the change twice")
		}
		seen[c.name] = true
		if o.gone[c.name] {
			c.add("metadata.name", "unique", "is both applied and deleted")
		}
		c.immutable(before.Resource(c.name), r)
		if was, to := before.Resource(c.name).GetTopic(), r.GetTopic(); was != nil && to != nil && was.Store != to.Store && o.get(resource.EventStore, r.Metadata.Namespace, to.Store) != nil {
			c.add("spec.store", "immutable", fmt.Sprintf("is %q; moving a topic that is used is weft migrate's work: weft migrate %s -n %s --to %s, and leave the field as it is",
				was.Store, r.Metadata.Name, r.Metadata.Namespace, to.Store))
		}
		c.together(o, r)
		problems = append(problems, c.problems...)
	}
	clear(seen)
	for _, name := range gone {
		c := scanner{&collector{name: name}}
		if seen[name] {
			c.add("name", "unique", "is in the change twice")
		}
		seen[name] = true
		c.unused(o, before.Resource(name))
		problems = append(problems, c.problems...)
	}
	return problems
}

// scanner judges by looking at everything.
type scanner struct{ *collector }

type scanned struct {
	before config
	put    map[string]*configv1.Resource
	gone   map[string]bool
}

func (o scanned) get(kind resource.Kind, ns, name string) *configv1.Resource {
	full := resource.Name(kind, ns, name)
	if r := o.put[full]; r != nil {
		return r
	}
	if o.gone[full] {
		return nil
	}
	return o.before.Resource(full)
}

func (o scanned) all(kind resource.Kind, ns string) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		for r := range o.before.All(kind, ns) {
			name := resource.NameOf(r)
			if o.put[name] == nil && !o.gone[name] && !yield(r) {
				return
			}
		}
		for _, r := range o.put {
			if resource.KindOf(r) == kind && (ns == "" || r.Metadata.Namespace == ns) && !yield(r) {
				return
			}
		}
	}
}

func (c scanner) together(o scanned, r *configv1.Resource) {
	ns := r.Metadata.Namespace
	for other := range o.all(resource.KindOf(r), ns) {
		if n := other.Metadata.Name; n != r.Metadata.Name && strings.EqualFold(n, r.Metadata.Name) {
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
		for other := range o.all(resource.Route, ns) {
			if other.Metadata.Name != r.Metadata.Name && other.GetRoute().Topic == s.Route.Topic {
				c.add("spec.topic", "unique", fmt.Sprintf("%s routes this topic already; a topic has one Route", resource.NameOf(other)))
			}
		}
		for by := range o.all(resource.Subscription, ns) {
			if f := by.GetSubscription().GetForward(); f.GetTopic() == s.Route.Topic && c.ring(o, ns, resource.NameOf(by), by.GetSubscription(), destinations(s.Route)) {
				c.add("spec.rules", "cycle", "")
				break
			}
		}
	case *configv1.Resource_HttpBinding:
		for i, rule := range s.HttpBinding.Rules {
			topic(fmt.Sprintf("spec.rules[%d].topic", i), rule.Topic)
		}
		for other := range o.all(resource.HTTPBinding, "") {
			same := other.Metadata.Namespace == ns
			if same && other.Metadata.Name == r.Metadata.Name {
				continue
			}
			for i, a := range s.HttpBinding.Rules {
				for j, b := range other.GetHttpBinding().Rules {
					if same && rest.Conflict(a.Method, a.Path, b.Method, b.Path) {
						c.add(fmt.Sprintf("spec.rules[%d].path", i), "http-rule", fmt.Sprintf("%s fits paths that %s of %s (spec.rules[%d]) fits, and neither is more specific", a.Path, b.Path, resource.NameOf(other), j))
					}
				}
			}
			for i, h := range s.HttpBinding.Hosts {
				if !same && slices.Contains(other.GetHttpBinding().Hosts, h) {
					c.add(fmt.Sprintf("spec.hosts[%d]", i), "unique", fmt.Sprintf("%q is taken; a host is of one namespace", h))
				}
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
		}
		if f := s.Subscription.GetForward(); f != nil {
			topic("spec.forward.topic", f.Topic)
		}
		dead, forward := c.onward(o, ns, s.Subscription)
		if c.ring(o, ns, c.name, s.Subscription, dead) {
			c.add("spec.dead_letter_topic", "cycle", "")
		}
		if c.ring(o, ns, c.name, s.Subscription, forward) {
			c.add("spec.forward.topic", "cycle", "")
		}
	case *configv1.Resource_Identity:
		for i, k := range s.Identity.GetApiKeys().GetKeys() {
			for other := range o.all(resource.Identity, "") {
				if resource.NameOf(other) == c.name {
					continue
				}
				for _, k2 := range other.GetIdentity().GetApiKeys().GetKeys() {
					if k.Id == k2.Id {
						// Not whose: that namespace may not be the caller's.
						c.add(fmt.Sprintf("spec.api_keys.keys[%d].id", i), "unique", fmt.Sprintf("%q is taken; key ids are unique in the mesh", k.Id))
					}
				}
			}
		}
	}
}

func (c scanner) topicTogether(o scanned, r *configv1.Resource, t *configv1.Topic) {
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
func (c scanner) eventStoreTogether(o scanned, r *configv1.Resource) {
	if proto.Equal(o.before.Resource(c.name).GetEventStore(), r.GetEventStore()) {
		return // what was wrong before
	}
	for t := range o.all(resource.Topic, r.Metadata.Namespace) {
		if t.GetTopic().Store != r.Metadata.Name || o.put[resource.NameOf(t)] != nil {
			continue // of another store, or judged by itself
		}
		if taken := o.samePhysical(t, r); taken != "" {
			c.add("spec", "unique", fmt.Sprintf("reaches where the physical topic %s of %s is another Topic's already", taken, resource.NameOf(t)))
		}
	}
}

// samePhysical is the physical name of topic r in its store, if another Topic
// has it already; not whose: that namespace may not be the caller's.
func (o scanned) samePhysical(r, store *configv1.Resource) string {
	local := store.GetEventStore().GetEmbedded() != nil
	for other := range o.all(resource.Topic, "") {
		if resource.NameOf(other) == resource.NameOf(r) || PhysicalName(other) != PhysicalName(r) {
			continue
		}
		os := o.get(resource.EventStore, other.Metadata.Namespace, other.GetTopic().Store)
		if os != nil && sameStore(os.GetEventStore(), store.GetEventStore()) && (!local || os == store) {
			return PhysicalName(r)
		}
	}
	return ""
}

// unused checks that nothing that stays refers to r, which goes.
func (c scanner) unused(o scanned, r *configv1.Resource) {
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
	switch resource.KindOf(r) {
	case resource.EventStore:
		for t := range o.all(resource.Topic, ns) {
			if t.GetTopic().Store == name {
				used(t, "spec.store")
			}
		}
	case resource.Topic:
		for s := range o.all(resource.Subscription, ns) {
			if slices.Contains(s.GetSubscription().Topics, name) {
				used(s, "spec.topics")
			}
			if s.GetSubscription().DeadLetterTopic == name {
				used(s, "spec.dead_letter_topic")
			}
			if f := s.GetSubscription().GetForward(); f != nil && f.Topic == name {
				used(s, "spec.forward.topic")
			}
		}
		for b := range o.all(resource.HTTPBinding, ns) {
			for i, rule := range b.GetHttpBinding().Rules {
				if rule.Topic == name {
					used(b, fmt.Sprintf("spec.rules[%d].topic", i))
				}
			}
		}
		for rt := range o.all(resource.Route, ns) {
			if rt.GetRoute().Topic == name {
				used(rt, "spec.topic")
			}
			for i, rule := range rt.GetRoute().Rules {
				if slices.ContainsFunc(rule.To, func(d *configv1.Destination) bool { return d.Topic == name }) {
					used(rt, fmt.Sprintf("spec.rules[%d].to", i))
				}
			}
		}
	}
}

// onward are the topics that get what by gives up, and those that get what it forwards.
func (c scanner) onward(o scanned, ns string, by *configv1.Subscription) (dead, forward []string) {
	if by.DeadLetterTopic != "" {
		dead = append(dead, by.DeadLetterTopic)
	}
	if f := by.GetForward(); f != nil {
		forward = append(forward, f.Topic)
		for rt := range o.all(resource.Route, ns) {
			if rt.GetRoute().Topic == f.Topic {
				forward = append(forward, destinations(rt.GetRoute())...)
			}
		}
	}
	return dead, forward
}

func destinations(rt *configv1.Route) []string {
	var out []string
	for _, rule := range rt.Rules {
		for _, to := range rule.To {
			out = append(out, to.Topic)
		}
	}
	return out
}

// ring looks for a way of any length from topics back to what a subscription reads, by
// closing over all.
func (c scanner) ring(o scanned, ns, self string, s *configv1.Subscription, first []string) bool {
	reached := map[string]bool{}
	for _, t := range first {
		reached[t] = true
	}
	for grown := true; grown; {
		grown = false
		for r := range o.all(resource.Subscription, ns) {
			by := r.GetSubscription()
			if resource.NameOf(r) == self {
				continue
			}
			dead, forward := c.onward(o, ns, by)
			for at := range reached {
				if !readsTopic(by, at) {
					continue
				}
				for _, to := range append(dead, forward...) {
					grown = grown || !reached[to]
					reached[to] = true
				}
			}
		}
	}
	for at := range reached {
		if readsTopic(s, at) {
			return true
		}
	}
	return false
}

// All yields the resources of a kind and namespace ("" is every one), in order.
func (c config) All(kind resource.Kind, namespace string) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		for _, name := range slices.Sorted(maps.Keys(c)) {
			if r := c[name]; resource.KindOf(r) == kind && (namespace == "" || r.Metadata.Namespace == namespace) && !yield(r) {
				return
			}
		}
	}
}

// drawn is a resource out of few, so that they meet.
func drawn(rnd *rand.Rand) *configv1.Resource {
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	some := func(of ...string) []string {
		rnd.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		return of[:1+rnd.IntN(3)]
	}
	r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: pick("demo", "other"), Name: pick("a", "A", "b", "c.a", "c.b", "C.b")}}
	switch rnd.IntN(7) {
	case 0:
		s := &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}
		if rnd.IntN(3) > 0 {
			s.Driver = &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: some("x:1", "y:1", "z:1")}}
		}
		r.Metadata.Name = pick("s", "S", "t")
		r.Spec = &configv1.Resource_EventStore{EventStore: s}
	case 1, 2:
		r.Spec = &configv1.Resource_Topic{Topic: &configv1.Topic{Store: pick("s", "t"), PhysicalName: pick("", "", "P", names.Physical("demo", "b")), Partitions: rnd.Uint32N(2) * 9}}
	case 3:
		r.Spec = &configv1.Resource_Route{Route: &configv1.Route{Topic: pick("a", "b", "c.a"), Rules: []*configv1.RouteRule{{To: []*configv1.Destination{{Topic: pick("a", "b", "c.a")}, {Topic: pick("b", "c.b")}}}}}}
	case 4:
		r.Spec = &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: some("a", "b", "c.a", "c.*", ">"), DeadLetterTopic: pick("", "a", "b", "c.a", "c.b"), Start: configv1.Start(rnd.IntN(3))}}
		if rnd.IntN(2) == 0 {
			r.GetSubscription().Delivery = &configv1.Subscription_Forward{Forward: &configv1.ForwardDelivery{Topic: pick("a", "b", "c.a", "c.b")}}
		}
	case 5:
		r.Spec = &configv1.Resource_HttpBinding{HttpBinding: &configv1.HttpBinding{Hosts: some("x.example", "y.example", "z.example"), Rules: []*configv1.HttpRule{
			{Path: pick("/a", "/a/{b}", "/{a}/b", "/{a...}"), Topic: pick("a", "b")}, {Method: pick("PUT", "POST"), Path: pick("/a/b", "/{c}/{d}"), Topic: pick("a", "c.a")}}}}
	case 6:
		ids := &configv1.ApiKeys{}
		for _, id := range some("k1", "k2", "k3") {
			ids.Keys = append(ids.Keys, &configv1.ApiKey{Id: id})
		}
		r.Spec = &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: ids}}}
	}
	r.Name = resource.NameOf(r)
	return r
}

// TestIndexAgainstScan: what is found by keys is what is found by looking at
// everything, on drawn configurations and changes.
func TestIndexAgainstScan(t *testing.T) {
	found := map[string]int{}
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		before := config{}
		for range rnd.IntN(25) {
			r := drawn(rnd)
			before[r.Name] = r
		}
		var put []*configv1.Resource
		for range rnd.IntN(5) {
			put = append(put, drawn(rnd))
		}
		var gone []string
		for _, name := range slices.Sorted(maps.Keys(before)) {
			if rnd.IntN(6) == 0 {
				gone = append(gone, name)
			}
		}
		var got, want []Problem
		for _, list := range []struct {
			to *[]Problem
			of []Problem
		}{{&got, Together(before, put, gone)}, {&want, scanTogether(before, put, gone)}} {
			for _, p := range list.of {
				if p.Rule == "cycle" {
					p.Message = "" // the way that was found first
				}
				found[p.Rule]++
				*list.to = append(*list.to, p)
			}
		}
		if text(got) != text(want) {
			t.Fatalf("seed %d: by keys\n%sby looking at everything\n%s", seed, text(got), text(want))
		}
	}
	for _, rule := range []string{"case", "reference", "in-use", "unique", "cycle", "immutable", "http-rule"} {
		if found[rule] < 30 {
			t.Errorf("%s was found %d times", rule, found[rule])
		}
	}
}
