package pipeline

import (
	"time"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/rest"
)

// Binds reports whether HttpBindings may name a host; see frontend.Mesh.
func (p *Pipeline) Binds(host string) bool {
	snap := p.cfg.Snapshots.Get()
	return snap.Lineage == "" || snap.Calls.At(host) != nil
}

var errUnbound = fault.New(fault.NotFound, "bind", "unknown-path", "no HttpBinding has a rule for this path whose topic you may publish to")

// Bound finds the rule for a call; see frontend.Mesh. What may not be published to is
// not there: a path tells nobody of a topic.
func (p *Pipeline) Bound(who *policy.Principal, call frontend.Call) (frontend.Bound, error) {
	snap := p.cfg.Snapshots.Get()
	b := snap.Calls.In(call.Namespace)
	if call.Namespace == "" {
		b = snap.Calls.At(call.Host)
	}
	switch {
	case b == nil:
		return frontend.Bound{}, errUnbound
	case b.NotReady != "":
		return frontend.Bound{}, &fault.Error{Class: fault.Unavailable, Op: "bind", Reason: "binding-not-ready", RetryAfter: time.Second, Msg: "the HttpBindings here are not ready"}
	}
	if rule := b.Rules.Find(call.Method, call.Path); rule != nil && p.mayCall(snap, who, b.Namespace, rule, true) {
		return frontend.Bound{Namespace: b.Namespace, Rule: rule}, nil
	}
	var allow []string
	for _, rule := range b.Rules.All(call.Path) {
		if p.mayCall(snap, who, b.Namespace, rule, false) {
			allow = append(allow, rule.Method)
		}
	}
	if len(allow) == 0 {
		return frontend.Bound{}, errUnbound
	}
	return frontend.Bound{Allow: allow}, nil
}

// mayCall reports whether who may publish what a rule makes, or some of it. Refusals
// count where it was called.
func (p *Pipeline) mayCall(snap *snapshot.Snapshot, who *policy.Principal, namespace string, rule *rest.Rule, called bool) bool {
	grant := snap.Rules.Grant(who, policy.Publish, namespace, rule.Topic)
	if grant.Ever() {
		return true
	}
	if called {
		err := grant.Refuse(grant.Always())
		p.metrics.refused.Add(1, [2]string{namespaceLabel(snap, namespace)}, reason(err))
	}
	return false
}
