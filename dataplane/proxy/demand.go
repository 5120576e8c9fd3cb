package proxy

import (
	"context"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// demand brings the configuration of what clients use, when they use it. It is nil on
// a proxy that follows everything.
type demand struct{ client following }

// following is what the configuration's client does; a *config.Client.
type following interface {
	Use(ctx context.Context, n config.Name, inForce bool) error
	Pin(n config.Name) (release func())
}

// onDemand is what the configuration's client is told of it.
func (c *Config) onDemand() *config.Demand {
	if !c.OnDemand {
		return nil
	}
	d := &config.Demand{Idle: c.OnDemandIdle, Wait: c.OnDemandWait, Max: c.OnDemandMax}
	for _, s := range c.Preload {
		if n, err := config.ParseName(s); err == nil { // it was checked
			d.Preload = append(d.Preload, n)
		}
	}
	return d
}

// need waits for a name that a client uses. Who may not use it anyway, or names what
// cannot be, is nobody whom the control plane is asked for: the error of that is for
// those behind to find.
func (d *demand) need(ctx context.Context, s *snapshot.Snapshot, who *policy.Principal, action policy.Action, n config.Name) error {
	if names.CheckNamespace(n.Namespace) != nil || names.CheckName(string(n.Kind), n.Name) != nil {
		return nil
	}
	key, inForce := snapshot.Key{Namespace: n.Namespace, Name: n.Name}, false
	switch n.Kind {
	case resource.Topic:
		t := s.Topics[key]
		inForce = t != nil && t.NotReady == ""
	case resource.Subscription:
		sub := s.Subscriptions[key]
		inForce = sub != nil && sub.NotReady == ""
	}
	if grant := s.Rules.Grant(who, action, n.Namespace, n.Name); !inForce && !grant.Ever() {
		return nil
	}
	return d.client.Use(ctx, n, inForce)
}

// topics waits for the topics of a tail. A pattern cannot be asked for.
func (d *demand) topics(ctx context.Context, s *snapshot.Snapshot, who *policy.Principal, r delivery.TailRequest) error {
	if len(r.Topics) > delivery.MaxTailTopics {
		return nil
	}
	for _, t := range r.Topics {
		if names.IsPattern(t) {
			return fault.New(fault.Precondition, "configuration", "pattern-on-demand", "this proxy has only the topics that are used, not all that pattern %s may match: name the topics", t)
		}
		if err := d.need(ctx, s, who, policy.Subscribe, config.Name{Kind: resource.Topic, Namespace: r.Namespace, Name: t}); err != nil {
			return err
		}
	}
	return nil
}

// pin keeps names in use until release is called.
func (d *demand) pin(list ...config.Name) (release func()) {
	if d == nil {
		return func() {}
	}
	var all []func()
	for _, n := range list {
		all = append(all, d.client.Pin(n))
	}
	return func() {
		for _, r := range all {
			r()
		}
	}
}
