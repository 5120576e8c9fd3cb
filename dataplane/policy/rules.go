package policy

import (
	"fmt"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// Rules are compiled access rules. They are immutable. The zero value denies
// everything.
type Rules struct {
	namespaces map[string]*namespaceRules
	// Shadowed, if set, is told of every answer that a shadowed rule would have
	// changed. It is set before the rules are used.
	Shadowed func(policy, rule string)
}

type namespaceRules struct {
	rules []accessRule
	// denied says why the whole namespace is denied; "" when it is not.
	denied string
}

type accessRule struct {
	policy, name string
	deny, shadow bool
	actions      [3]bool
	anyone       bool
	principals   map[string]struct{}
	groups       map[string]struct{}
	topics       matcher
	subs         matcher
}

// matcher is a set of names and patterns.
type matcher struct {
	names    map[string]struct{}
	patterns []string
}

func (m *matcher) match(name string) bool {
	if _, ok := m.names[name]; ok {
		return true
	}
	for _, p := range m.patterns {
		if names.Match(p, name) {
			return true
		}
	}
	return false
}

// NamedPolicy is an AccessPolicy with its names.
type NamedPolicy struct {
	Namespace string
	// Name is the canonical name.
	Name string
	Spec *configv1.AccessPolicy
}

// A FieldError names the field of a resource that is wrong.
type FieldError struct {
	Field  string // "spec.rules[2].topics[0]"
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// CheckPolicy tells whether a policy compiles. The error is a *FieldError.
func CheckPolicy(p *configv1.AccessPolicy) error {
	for i, r := range p.Rules {
		if _, err := compileRule("", "", r, i); err != nil {
			return err
		}
	}
	return nil
}

// CompileRules compiles policies that CheckPolicy accepts; one that it does not
// accept denies its namespace, as do the namespaces in withheld, which have a
// policy of which no good version is here: what that policy selects cannot be
// known, so everything is.
func CompileRules(policies []NamedPolicy, withheld map[string]string) *Rules {
	out := &Rules{namespaces: map[string]*namespaceRules{}}
	of := func(ns string) *namespaceRules {
		n := out.namespaces[ns]
		if n == nil {
			n = &namespaceRules{}
			out.namespaces[ns] = n
		}
		return n
	}
	for ns, name := range withheld {
		of(ns).denied = name + " has no version that this proxy accepts"
	}
	for _, p := range policies {
		n := of(p.Namespace)
		for i, r := range p.Spec.Rules {
			c, err := compileRule(p.Namespace, p.Name, r, i)
			if err != nil {
				n.denied = fmt.Sprintf("%s is not understood: %v", p.Name, err)
				continue
			}
			n.rules = append(n.rules, c)
		}
	}
	return out
}

func compileRule(ns, policy string, r *configv1.AccessRule, i int) (accessRule, error) {
	path := fmt.Sprintf("spec.rules[%d]", i)
	out := accessRule{policy: policy, name: r.Name, shadow: r.Mode == configv1.Mode_MODE_SHADOWED,
		principals: map[string]struct{}{}, groups: map[string]struct{}{}}
	switch r.Effect {
	case configv1.Effect_EFFECT_ALLOW:
	case configv1.Effect_EFFECT_DENY:
		out.deny = true
	default:
		return out, &FieldError{path + ".effect", "must be allow or deny"}
	}
	switch r.Mode {
	case configv1.Mode_MODE_UNSPECIFIED, configv1.Mode_MODE_ENFORCED, configv1.Mode_MODE_SHADOWED:
	default:
		return out, &FieldError{path + ".mode", "is not a mode that this version enforces"}
	}
	for j, a := range r.Actions {
		switch a {
		case configv1.Action_ACTION_PUBLISH:
			out.actions[Publish] = true
		case configv1.Action_ACTION_SUBSCRIBE:
			out.actions[Subscribe] = true
		case configv1.Action_ACTION_CONSUME:
			out.actions[Consume] = true
		default:
			return out, &FieldError{fmt.Sprintf("%s.actions[%d]", path, j), "is not an action that this version enforces"}
		}
	}
	for _, p := range r.Principals {
		switch {
		case p == "*":
			out.anyone = true
		case p == Local:
			out.principals[Local] = struct{}{}
		default:
			out.principals[qualify(ns, p)] = struct{}{}
		}
	}
	for _, g := range r.Groups {
		out.groups[qualify(ns, g)] = struct{}{}
	}
	var err error
	if out.topics, err = compileMatcher(path+".topics", "topic", r.Topics); err != nil {
		return out, err
	}
	out.subs, err = compileMatcher(path+".subscriptions", "subscription", r.Subscriptions)
	return out, err
}

func compileMatcher(path, what string, list []string) (matcher, error) {
	m := matcher{names: make(map[string]struct{}, len(list))}
	for i, s := range list {
		if err := names.CheckPattern(what, s); err != nil {
			return m, &FieldError{fmt.Sprintf("%s[%d]", path, i), err.Error()}
		}
		if names.IsPattern(s) {
			m.patterns = append(m.patterns, s)
		} else {
			m.names[s] = struct{}{}
		}
	}
	return m, nil
}

func qualify(ns, name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return ns + "/" + name
}

func (r *accessRule) applies(who string, p *Principal, a Action, name string) bool {
	if !r.actions[a] {
		return false
	}
	m := &r.topics
	if a == Consume {
		m = &r.subs
	}
	if !m.match(name) {
		return false
	}
	if r.anyone {
		return true
	}
	if _, ok := r.principals[who]; ok {
		return true
	}
	for _, g := range p.Groups {
		if _, ok := r.groups[g]; ok {
			return true
		}
	}
	return false
}

// Authorize answers whether p may do a on the topic (Publish, Subscribe) or
// subscription (Consume) called name, which has been checked. A rule that
// denies wins; without one that allows the answer is no. Safe for concurrent
// use; an allowing answer does not allocate, but for what p.String needs.
func (r *Rules) Authorize(p *Principal, a Action, namespace, name string) Decision {
	n := r.namespaces[namespace]
	what := "topic"
	if a == Consume {
		what = "subscription"
	}
	who := p.String()
	if n == nil {
		return refusal(who, a, what, namespace, name)
	}
	if n.denied != "" {
		return Decision{Why: "access to namespace " + namespace + " is denied on this proxy: " + n.denied}
	}
	var allow, deny, shadowAllow, shadowDeny *accessRule
	for i := range n.rules {
		rule := &n.rules[i]
		if !rule.applies(who, p, a, name) {
			continue
		}
		switch {
		case rule.deny && rule.shadow:
			shadowDeny = rule
		case rule.deny:
			deny = rule
		case rule.shadow:
			shadowAllow = rule
		default:
			allow = rule
		}
	}
	var d Decision
	switch {
	case deny != nil:
		d = Decision{Policy: deny.policy, Rule: deny.name,
			Why: fmt.Sprintf("rule %q of %s denies %s to %s %s %s", deny.name, deny.policy, who, a, what, name)}
	case allow != nil:
		d = Decision{Allowed: true, Policy: allow.policy, Rule: allow.name}
	default:
		d = refusal(who, a, what, namespace, name)
	}
	var shadow *accessRule
	switch {
	case d.Allowed:
		shadow = shadowDeny
	case deny == nil:
		shadow = shadowAllow
	}
	if shadow != nil {
		d.Shadow = shadow.policy + "#" + shadow.name
		if r.Shadowed != nil {
			r.Shadowed(shadow.policy, shadow.name)
		}
	}
	return d
}

func refusal(who string, a Action, what, namespace, name string) Decision {
	return Decision{Why: fmt.Sprintf("no AccessPolicy of namespace %s allows %s to %s %s %s", namespace, who, a, what, name)}
}
