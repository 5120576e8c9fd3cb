package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
)

// Grant is what the rules say of one principal, action and name. Where rules have
// subjects or conditions it depends on the event; otherwise Always answers for all.
// It is as old as the Rules that it is of.
type Grant struct {
	of        *Rules
	principal *Principal
	action    Action
	namespace string
	name      string
	denied    string // why everything is; "" where rules decide
	// first are, by class, the rules that decide for every event.
	first [classes]*accessRule
	// some are the rules that may decide for one event, in their order.
	some []*accessRule
}

// Authorize is Grant.Always. Safe for concurrent use; an allowing answer does not
// allocate.
func (r *Rules) Authorize(p *Principal, a Action, namespace, name string) Decision {
	g := r.Grant(p, a, namespace, name)
	return g.Always()
}

// Grant finds what the rules say about whether p may do a on the topic (Publish,
// Subscribe) or subscription (Consume) called name, which has been checked. Safe for
// concurrent use.
func (r *Rules) Grant(p *Principal, a Action, namespace, name string) Grant {
	g := Grant{of: r, principal: p, action: a, namespace: namespace, name: name}
	n := r.namespaces[namespace]
	if n == nil {
		return g
	}
	if g.denied = n.denied; g.denied != "" {
		return g
	}
	var first [classes]int32
	for c := range first {
		first[c] = -1
	}
	n.index.find(n.rules, p, a, name, func(i int32) {
		rule := &n.rules[i]
		if rule.perEvent() {
			g.some = append(g.some, rule)
		} else if c := rule.class(); first[c] < 0 || i < first[c] {
			first[c], g.first[c] = i, rule
		}
	})
	if len(g.some) > 1 {
		slices.SortFunc(g.some, func(a, b *accessRule) int { return cmp.Compare(a.number, b.number) })
		g.some = slices.Compact(g.some)
	}
	return g
}

// Prospect reports whether rules may allow p to do a on some name that a pattern matches,
// whether there is a topic (Publish, Subscribe) or subscription (Consume) of that name or
// not: one that comes is judged by itself.
func (r *Rules) Prospect(p *Principal, a Action, namespace, pattern string) bool {
	n := r.namespaces[namespace]
	if n == nil || n.denied != "" {
		return false
	}
	of := func(c class, is func(string) bool) bool {
		return slices.ContainsFunc(n.rules, func(r accessRule) bool {
			return r.class() == c && r.actions[a] && (c == allows || !r.perEvent()) && r.names(p) && r.of(a).some(is)
		})
	}
	denied := func(name string) bool {
		return of(denies, func(wide string) bool { return names.Covers(wide, name) })
	}
	return !denied(pattern) && of(allows, func(s string) bool { return names.Meet(s, pattern) && !denied(s) })
}

// PerEvent reports whether the answer may differ from event to event.
func (g *Grant) PerEvent() bool {
	return g.first[denies] == nil && g.denied == "" && slices.ContainsFunc(g.some, func(r *accessRule) bool { return !r.shadow })
}

// Ever reports whether the answer may be yes, for some event.
func (g *Grant) Ever() bool {
	return g.denied == "" && g.first[denies] == nil &&
		(g.first[allows] != nil || slices.ContainsFunc(g.some, func(r *accessRule) bool { return r.class() == allows }))
}

// Always answers for all events at once: yes only where none is denied.
func (g *Grant) Always() Decision {
	d := g.decide(g.first)
	for _, r := range g.some {
		switch c := r.class(); {
		case c == denies && d.Allowed:
			return Decision{Policy: r.policy, Rule: r.name, Why: fmt.Sprintf("rule %q of %s denies %s to %s some events of %s %s, by their subject or a condition", r.name, r.policy, g.principal, g.action, g.what(), g.name)}
		case c == allows && !d.Allowed && g.first[denies] == nil:
			d.Why = fmt.Sprintf("rule %q of %s allows %s to %s only some events of %s %s, by their subject or a condition", r.name, r.policy, g.principal, g.action, g.what(), g.name)
			return d
		}
	}
	return d
}

// For answers for one event, which it borrows and which has been validated.
func (g *Grant) For(e *event.Event) Decision {
	if len(g.some) == 0 || g.denied != "" {
		return g.decide(g.first)
	}
	by := g.first
	for _, r := range g.some {
		c := r.class()
		if (by[c] == nil || r.number < by[c].number) && g.applies(r, e) {
			by[c] = r
		}
	}
	d := g.decide(by)
	if d.Allowed {
		return d
	}
	switch r := by[denies]; {
	case r != nil && r.perEvent():
		d.Why += fmt.Sprintf(", for events as this one, whose subject is %.64q", e.Subject)
	case r == nil:
		// The topic is not what is wrong where a rule allows other events of it.
		for _, r := range g.some {
			if r.class() == allows {
				d.Why = fmt.Sprintf("rule %q of %s allows %s to %s only some events of %s %s, by their subject or a condition, and not this one, whose subject is %.64q", r.name, r.policy, g.principal, g.action, g.what(), g.name, e.Subject)
				break
			}
		}
	}
	return d
}

// applies tells whether a rule that names who, what and the action is for an event.
// A condition that cannot be evaluated holds where that denies.
func (g *Grant) applies(r *accessRule, e *event.Event) bool {
	if len(r.subjects) > 0 && !slices.ContainsFunc(r.subjects, func(s string) bool { return names.MatchSubject(s, e.Subject) }) {
		return false
	}
	if r.condition == nil {
		return true
	}
	ok, err := r.condition.Holds(eventcel.Access{Event: e, Principal: g.principal.String(), Groups: g.principal.Groups, Action: g.action.String(), Topic: g.name})
	if err != nil {
		if f := g.of.Observer.Unjudged; f != nil {
			f(r.policy, r.name)
		}
		return r.deny
	}
	return ok
}

// decide is the answer where by are the rules that apply, the first of each class.
func (g *Grant) decide(by [classes]*accessRule) Decision {
	var d Decision
	switch {
	case g.denied != "":
		return Decision{Why: "access to namespace " + g.namespace + " is denied on this proxy: " + g.denied}
	case by[denies] != nil:
		r := by[denies]
		return Decision{Policy: r.policy, Rule: r.name, Why: fmt.Sprintf("rule %q of %s denies %s to %s %s %s", r.name, r.policy, g.principal, g.action, g.what(), g.name)}
	case by[allows] != nil:
		d = Decision{Allowed: true, Policy: by[allows].policy, Rule: by[allows].name}
	default:
		d = Decision{Why: fmt.Sprintf("no AccessPolicy of namespace %s allows %s to %s %s %s", g.namespace, g.principal, g.action, g.what(), g.name)}
	}
	shadow := by[shadowAllows]
	if d.Allowed {
		shadow = by[shadowDenies]
	}
	if shadow != nil {
		d.Shadow = shadow.policy + "#" + shadow.name
		if f := g.of.Observer.Shadowed; f != nil {
			f(shadow.policy, shadow.name)
		}
	}
	return d
}

func (g *Grant) what() string {
	if g.action == Consume {
		return "subscription"
	}
	return "topic"
}

// Refuse is the error of a decision that is not allowed, counted by its rule.
func (g *Grant) Refuse(d Decision) error {
	if f := g.of.Observer.Refused; f != nil {
		f(g.action, d.Policy, d.Rule)
	}
	return &fault.Error{Class: fault.Denied, Op: "authorise", Reason: "access-denied", Msg: d.Why}
}
