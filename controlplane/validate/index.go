package validate

import (
	"iter"
	"slices"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Keys are what a View finds r under, each once. They follow from r alone, so
// that a configuration of any size is judged without reading all of it.
func Keys(r *configv1.Resource) []string {
	ns, name := r.GetMetadata().GetNamespace(), r.GetMetadata().GetName()
	keys := []string{sameName(resource.KindOf(r), ns, name)}
	add := func(key string) {
		for _, k := range keys {
			if k == key {
				return
			}
		}
		keys = append(keys, key)
	}
	topic := func(t string) { add(usersOf(resource.Topic, ns, t)) }
	switch s := r.GetSpec().(type) {
	case *configv1.Resource_Topic:
		if uid := r.Metadata.Uid; uid != "" {
			add(topicUID(uid))
		}
		add(physical(PhysicalName(r)))
		add(usersOf(resource.EventStore, ns, s.Topic.Store))
		if s.Topic.Schema != "" {
			add(usersOf(resource.Schema, ns, s.Topic.Schema))
		}
	case *configv1.Resource_TopicBinding:
		if s.TopicBinding.Move != nil {
			add(Moving)
		}
		for _, e := range s.TopicBinding.Epochs {
			add(epochsIn(ns, e.Store))
			add(epochCalled(e.PhysicalName))
		}
	case *configv1.Resource_Migration:
		add(usersOf(resource.EventStore, ns, s.Migration.To))
		if s.Migration.PhysicalName != "" {
			add(claims(s.Migration.PhysicalName))
		}
	case *configv1.Resource_Route:
		topic(s.Route.Topic)
		for _, rule := range s.Route.Rules {
			for _, to := range rule.To {
				topic(to.Topic)
			}
		}
	case *configv1.Resource_HttpBinding:
		add(bindings(ns))
		for _, h := range s.HttpBinding.Hosts {
			add(host(h))
		}
		for _, rule := range s.HttpBinding.Rules {
			topic(rule.Topic)
		}
	case *configv1.Resource_Subscription:
		for _, t := range s.Subscription.Topics {
			if names.IsPattern(t) {
				add(patterns(ns))
			} else {
				topic(t)
			}
		}
		if d := s.Subscription.DeadLetterTopic; d != "" {
			topic(d)
		}
		if f := s.Subscription.GetForward(); f != nil {
			topic(f.Topic)
		}
	case *configv1.Resource_Identity:
		for _, k := range s.Identity.GetApiKeys().GetKeys() {
			add(apiKey(k.Id))
		}
		for _, aud := range s.Identity.GetJwt().GetAudiences() {
			add(audience(s.Identity.GetJwt().Issuer, aud))
		}
	}
	return keys
}

// Moving is the key of the TopicBindings of topics that move.
const Moving = "moving"

// epochsIn: TopicBindings with an epoch in an EventStore.
func epochsIn(ns, store string) string { return "epochs/" + ns + "/" + store }

// epochCalled: TopicBindings with an epoch of a physical name.
func epochCalled(name string) string { return "epoch/" + name }

// claims: Migrations to a physical name.
func claims(name string) string { return "claims/" + name }

// sameName: resources of a kind whose names differ at most in case.
func sameName(kind resource.Kind, ns, name string) string {
	return "name/" + string(kind) + "/" + ns + "/" + strings.ToLower(name)
}

// usersOf: resources that name another one.
func usersOf(kind resource.Kind, ns, name string) string {
	return "users/" + resource.Name(kind, ns, name)
}

// Users yields what refers to r by its name, the subscriptions that read it by a pattern,
// and of an EventStore the topics that are in it, and not those that have left it.
func Users(v View, r *configv1.Resource) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		ns, name := r.GetMetadata().GetNamespace(), r.GetMetadata().GetName()
		for user := range v.Find(usersOf(resource.KindOf(r), ns, name)) {
			if r.GetEventStore() != nil && user.GetTopic() != nil && placed(v, user) != nil {
				continue // its binding tells
			}
			if !yield(user) {
				return
			}
		}
		if r.GetEventStore() != nil {
			for b := range v.Find(epochsIn(ns, name)) {
				t := v.Resource(resource.Name(resource.Topic, ns, b.Metadata.Name))
				if t != nil && placed(v, t) != nil && !yield(t) {
					return
				}
			}
		}
		if r.GetTopic() == nil {
			return
		}
		for user := range v.Find(patterns(ns)) {
			s := user.GetSubscription()
			if readsTopic(s, name) && !slices.Contains(s.Topics, name) && s.DeadLetterTopic != name && s.GetForward().GetTopic() != name && !yield(user) {
				return
			}
		}
	}
}

// placed is the binding of a Topic; nil where it has none yet.
func placed(v View, topic *configv1.Resource) *configv1.TopicBinding {
	b := v.Resource(resource.Name(resource.TopicBinding, topic.Metadata.Namespace, topic.Metadata.Name)).GetTopicBinding()
	if b.GetTopicUid() == "" || b.TopicUid != topic.Metadata.Uid || len(b.Epochs) == 0 {
		return nil
	}
	return b
}

// patterns: subscriptions that read topics by pattern.
func patterns(ns string) string { return "patterns/" + ns }

// topicUID: the topic with a uid.
func topicUID(uid string) string { return "uid/" + uid }

// bindings: HttpBindings of a namespace.
func bindings(ns string) string { return "bindings/" + ns }

// host: HttpBindings that name a host.
func host(name string) string { return "host/" + name }

// physical: topics with a physical name.
func physical(name string) string { return "physical/" + name }

// apiKey: identities with an API key.
func apiKey(id string) string { return "apikey/" + id }

// audience: identities that accept an issuer's tokens for an audience.
func audience(issuer, aud string) string { return "audience/" + issuer + "\x00" + aud }
