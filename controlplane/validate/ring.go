package validate

import (
	"fmt"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// way is one way on for an event: the topic that keeps it next, and how it comes
// there, for people.
type way struct{ to, how string }

// onward are the ways on from the topics that subscription r reads: dead letters, which
// no Route sees, and what it forwards, which may be routed on once. Filters are not
// looked at.
func (o overlay) onward(r *configv1.Resource) (dead, forward []way) {
	s, name := r.GetSubscription(), resource.NameOf(r)
	if d := s.GetDeadLetterTopic(); d != "" {
		dead = []way{{d, "dead letters of " + name}}
	}
	f := s.GetForward()
	if f == nil {
		return dead, nil
	}
	forward = []way{{f.Topic, "forwarded by " + name}}
	ns := r.GetMetadata().GetNamespace()
	for user := range o.find(usersOf(resource.Topic, ns, f.Topic)) {
		if rt := user.GetRoute(); rt.GetTopic() == f.Topic {
			forward = append(forward, routed(rt, name)...)
		}
	}
	return dead, forward
}

// routed are the ways by a Route of what a subscription forwards to its topic.
func routed(rt *configv1.Route, forwarder string) []way {
	var out []way
	for _, rule := range rt.Rules {
		for _, to := range rule.To {
			out = append(out, way{to.Topic, fmt.Sprintf("forwarded to %s by %s and routed", rt.Topic, forwarder)})
		}
	}
	return out
}

// ring follows events from the topics that subscription r reads over first, and on
// over everyone who reads them there. Where they come back to a topic that r reads it
// gives the ring, for people; else "".
func (o overlay) ring(r *configv1.Resource, first []way) string {
	ns, s, self := r.GetMetadata().GetNamespace(), r.GetSubscription(), resource.NameOf(r)
	from := map[string]string{} // by topic: how events come there
	var next []string
	// take follows ways that go on from where path leads; it gives a ring.
	take := func(path string, ways []way) string {
		for _, w := range ways {
			if _, seen := from[w.to]; seen {
				continue
			}
			p := fmt.Sprintf("%s -> %s (%s)", path, w.to, w.how)
			if readsTopic(s, w.to) {
				return w.to + p
			}
			from[w.to] = p
			next = append(next, w.to)
		}
		return ""
	}
	if ring := take("", first); ring != "" {
		return ring
	}
	for len(next) > 0 {
		at := next[0]
		next = next[1:]
		for _, key := range []string{usersOf(resource.Topic, ns, at), patterns(ns)} {
			for by := range o.find(key) {
				if by.GetSubscription() == nil || resource.NameOf(by) == self || !readsTopic(by.GetSubscription(), at) {
					continue
				}
				dead, forward := o.onward(by)
				if ring := take(from[at], append(dead, forward...)); ring != "" {
					return ring
				}
			}
		}
	}
	return ""
}

const goesRound = "leads back to what the subscription reads, so that an event may go round for ever: "

// subscriptionRings: neither dead letters of a subscription nor what it forwards may
// come back to it.
func (c *collector) subscriptionRings(o overlay, r *configv1.Resource) {
	dead, forward := o.onward(r)
	if ring := o.ring(r, dead); ring != "" {
		c.add("spec.dead_letter_topic", "cycle", goesRound+ring)
	}
	if ring := o.ring(r, forward); ring != "" {
		c.add("spec.forward.topic", "cycle", goesRound+ring)
	}
}

// routeRing: a Route must not take what is forwarded to its topic back to where it
// was forwarded from.
func (c *collector) routeRing(o overlay, ns string, rt *configv1.Route) {
	for user := range o.find(usersOf(resource.Topic, ns, rt.Topic)) {
		if user.GetSubscription().GetForward().GetTopic() != rt.Topic {
			continue
		}
		if ring := o.ring(user, routed(rt, resource.NameOf(user))); ring != "" {
			c.add("spec.rules", "cycle", fmt.Sprintf("makes a ring of %s, in which an event may go round for ever: %s", resource.NameOf(user), ring))
			return
		}
	}
}

// checkForward judges a target by itself.
func (c *collector) checkForward(s *configv1.Subscription) {
	f := s.GetForward()
	if f == nil {
		return
	}
	if err := names.CheckName("topic", f.Topic); err != nil {
		c.add("spec.forward.topic", "name", err.Error())
		return
	}
	for i, t := range s.Topics {
		if names.CheckPattern("topic", t) == nil && names.Match(t, f.Topic) {
			c.add("spec.forward.topic", "cycle", fmt.Sprintf("is read by the subscription itself (spec.topics[%d])", i))
		}
	}
}
