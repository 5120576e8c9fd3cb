package config

import (
	"context"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// On demand, what is asked of the control plane for what is used, and what its
// answers say of that. All of it is of the client's goroutine.

// held reports whether it is known what there is under a name.
func (m *memory) held(name string) bool { return m.names[name] || configfile.Covers(m.scope, name) }

// there reports whether something exists under a name, also where it is not in
// force.
func (m *memory) there(name string) bool {
	return m.resources[name] != nil || slices.ContainsFunc(m.withheld, func(w *configv1.Withheld) bool { return w.Name == name })
}

// routed are the topics that the routes of each topic lead to, by canonical name.
func (m *memory) routed() map[string][]Name {
	out := map[string][]Name{}
	for name, k := range m.resources {
		r := k.good.Resource.GetRoute()
		if r == nil {
			continue
		}
		_, ns, _, err := resource.Split(name)
		if err != nil {
			continue
		}
		from := resource.Name(resource.Topic, ns, r.Topic)
		for _, rule := range r.Rules {
			for _, to := range rule.To {
				out[from] = append(out[from], Name{resource.Topic, ns, to.Topic})
			}
		}
	}
	return out
}

// needs are the names of the resources that a name is served with, as far as can be
// told from what is here.
func (m *memory) needs(n Name, routed map[string][]Name) map[string]bool {
	out := map[string]bool{}
	var topic func(ns, name string)
	topic = func(ns, name string) {
		own := resource.Name(resource.Topic, ns, name)
		if out[own] {
			return
		}
		binding := resource.Name(resource.TopicBinding, ns, name)
		out[own], out[binding], out[resource.Name(resource.TopicAdmission, ns, name)] = true, true, true
		if k := m.resources[binding]; k != nil {
			for _, e := range k.good.Resource.GetTopicBinding().GetEpochs() {
				out[resource.Name(resource.EventStore, ns, e.Store)] = true
			}
		}
		if k := m.resources[own]; k != nil && k.good.Resource.GetTopic().GetSchema() != "" {
			out[resource.Name(resource.Schema, ns, k.good.Resource.GetTopic().Schema)] = true
		}
		for _, to := range routed[own] {
			topic(ns, to.Name)
		}
	}
	if n.Kind == resource.Topic {
		topic(n.Namespace, n.Name)
		return out
	}
	own, admission := n.String(), resource.Name(resource.SubscriptionAdmission, n.Namespace, n.Name)
	out[own], out[admission] = true, true
	if k := m.resources[own]; k != nil {
		sub := k.good.Resource.GetSubscription()
		for _, t := range sub.GetTopics() {
			if !names.IsPattern(t) {
				topic(n.Namespace, t)
			}
		}
		if t := sub.GetDeadLetterTopic(); t != "" {
			topic(n.Namespace, t)
		}
		if t := sub.GetForward().GetTopic(); t != "" {
			topic(n.Namespace, t)
		}
	}
	if k := m.resources[admission]; k != nil {
		for _, src := range k.good.Resource.GetSubscriptionAdmission().GetSources() {
			topic(n.Namespace, src.Topic)
		}
	}
	return out
}

// subscription is what a stream has asked for beside the client's scope.
type subscription struct {
	// asked are the names, and whether they were answered; sum is of the names.
	asked map[string]bool
	sum   resource.Digest
}

func (s *subscription) add(name string, answered bool) {
	s.asked[name] = answered
	s.sum = s.sum.Add(resource.DigestOf(name, "", nil))
}

func (s *subscription) remove(name string) {
	delete(s.asked, name)
	s.sum = s.sum.Sub(resource.DigestOf(name, "", nil))
}

// is reports whether a manifest is of this subscription.
func (s *subscription) is(man *configv1.Manifest) bool {
	if len(man.Names) == 0 {
		return len(s.asked) == 0
	}
	return string(man.Names) == string(s.sum.Bytes())
}

// first is what a stream begins with: with a resume token what that is of, else
// what is wanted.
func (c *Client) first(resumes bool) *subscription {
	s := &subscription{asked: map[string]bool{}}
	if c.demand == nil {
		return s
	}
	if resumes {
		for name := range c.mem.names {
			s.add(name, true)
		}
		return s
	}
	for name := range c.wanted() {
		s.add(name, false)
	}
	return s
}

// wanted are the names of all that is used, with what they need.
func (c *Client) wanted() map[string]bool {
	routed := c.mem.routed()
	all := map[string]bool{}
	var none []Name
	for _, n := range c.demand.list() {
		needs := c.mem.needs(n, routed)
		maps.DeleteFunc(needs, func(name string, _ bool) bool { return all[name] })
		if len(all)+len(needs) > maxNames {
			none = append(none, n)
			continue
		}
		maps.Copy(all, needs)
	}
	c.demand.giveUp(none)
	return all
}

// ask makes the stream's subscription what is used by now, and tells those who wait
// for what is here already.
func (c *Client) ask(ctx context.Context, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, s *subscription) error {
	if c.demand == nil {
		return nil
	}
	defer c.settle()
	c.demand.expire()
	want := c.wanted()
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL}
	for name := range want {
		if _, asked := s.asked[name]; !asked {
			s.add(name, false)
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		}
	}
	dropped := false
	for name := range s.asked {
		if want[name] {
			continue
		}
		s.remove(name)
		req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
		delete(c.mem.names, name)
		if c.mem.resources[name] != nil {
			c.mem.remove(name)
			dropped = true
		}
	}
	if dropped {
		c.applyLive(ctx)
		c.keep()
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	slices.Sort(req.ResourceNamesSubscribe)
	slices.Sort(req.ResourceNamesUnsubscribe)
	return rpc.Send(req)
}

// mine leaves of a delta what the stream still asks for.
func (c *Client) mine(s *subscription, d staged, man *configv1.Manifest) staged {
	if c.demand == nil {
		return d
	}
	other := func(name string) bool {
		_, asked := s.asked[name]
		return !asked && !configfile.Covers(c.scope, name)
	}
	d.put = slices.DeleteFunc(d.put, func(o offer) bool { return other(o.name) })
	d.removed = slices.DeleteFunc(d.removed, other)
	man.Withheld = slices.DeleteFunc(man.Withheld, func(w *configv1.Withheld) bool { return other(w.Name) })
	return d
}

// answered notes which names a delta, that was applied, has answered, and returns
// whether its digests are of what is here.
func (c *Client) answered(s *subscription, d staged, man *configv1.Manifest) (comparable bool) {
	same := s.is(man)
	if man.Complete {
		c.mem.scope, c.mem.names = c.scope, map[string]bool{}
	}
	answer := func(name string) {
		if _, asked := s.asked[name]; asked {
			s.asked[name], c.mem.names[name] = true, true
		}
	}
	for _, o := range d.put {
		answer(o.name)
	}
	for _, name := range d.removed {
		answer(name)
	}
	for _, w := range man.Withheld {
		answer(w.Name)
	}
	comparable = same
	for name, answered := range s.asked {
		if man.Complete && same {
			answer(name)
		} else if !answered {
			comparable = false
		}
	}
	return comparable
}

// settle tells those who wait what is known by what is in force.
func (c *Client) settle() {
	d := c.demand
	if d == nil {
		return
	}
	routed := c.mem.routed()
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, u := range d.uses {
		there := c.mem.there(n.String())
		// What was not there when this was kept may be there by now.
		if !there && !c.confirmed {
			continue
		}
		if u.done {
			u.absent = !there
			continue
		}
		whole := true
		for name := range c.mem.needs(n, routed) {
			whole = whole && c.mem.held(name)
		}
		if whole {
			u.absent = !there
			u.end(nil)
		}
	}
	d.settled()
}

// adopt takes up what was used when the configuration was kept.
func (c *Client) adopt() {
	d := c.demand
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range c.mem.names {
		if n, err := ParseName(name); err == nil && c.mem.there(name) && len(d.uses) < d.cfg.Max && d.uses[n] == nil {
			d.uses[n] = &use{last: time.Now(), known: make(chan struct{})}
		}
	}
}
