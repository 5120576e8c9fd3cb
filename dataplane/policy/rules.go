package policy

import (
	"fmt"
	"slices"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Rules are compiled access rules. They are immutable. The zero value denies
// everything.
type Rules struct {
	namespaces map[string]*namespaceRules
	// Observer is told what the rules do. It is set before they are used.
	Observer Observer
}

// Observer counts what rules do; any of its functions may be nil.
type Observer struct {
	// Shadowed is told of every answer that a shadowed rule would have changed.
	Shadowed func(policy, rule string)
	// Refused is told of every refusal that Rules.Refuse makes an error of; policy
	// and rule are "" where no rule allows.
	Refused func(a Action, policy, rule string)
	// Unjudged is told of every condition that could not be evaluated for an event.
	Unjudged func(policy, rule string)
}

// Has reports whether a policy, by its canonical name, has a rule.
func (r *Rules) Has(policy, rule string) bool {
	_, namespace, _, err := resource.Split(policy)
	ns := r.namespaces[namespace]
	return err == nil && ns != nil && slices.ContainsFunc(ns.rules, func(r accessRule) bool { return r.policy == policy && r.name == rule })
}

type namespaceRules struct {
	rules []accessRule
	index *index
	// denied says why the whole namespace is denied; "" when it is not.
	denied string
}

type accessRule struct {
	policy, name string
	number       int32 // its place in the namespace
	deny, shadow bool
	actions      [3]bool
	anyone       bool
	principals   map[whoKey]struct{}
	groups       map[string]struct{}
	topics       matcher
	subs         matcher
	subjects     []string            // patterns; none is all
	condition    *eventcel.Condition // nil is true
}

// class is what a rule does: in this order they decide.
type class uint8

const (
	denies class = iota
	allows
	shadowDenies
	shadowAllows
	classes
)

func (r *accessRule) class() class {
	switch {
	case r.deny && r.shadow:
		return shadowDenies
	case r.deny:
		return denies
	case r.shadow:
		return shadowAllows
	}
	return allows
}

// perEvent tells whether it depends on the event if the rule applies.
func (r *accessRule) perEvent() bool { return len(r.subjects) > 0 || r.condition != nil }

// of are the names that the rule has for an action.
func (r *accessRule) of(a Action) *matcher {
	if a == Consume {
		return &r.subs
	}
	return &r.topics
}

// names tells whether the rule names who.
func (r *accessRule) names(p *Principal) bool {
	if r.anyone {
		return true
	}
	if _, ok := r.principals[whoKey{p.Namespace, p.Name}]; ok {
		return true
	}
	for _, g := range p.Groups {
		if _, ok := r.groups[g]; ok {
			return true
		}
	}
	return false
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

// some reports whether is holds of one of the names and patterns.
func (m *matcher) some(is func(string) bool) bool {
	for n := range m.names {
		if is(n) {
			return true
		}
	}
	return slices.ContainsFunc(m.patterns, is)
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
			c.number = int32(len(n.rules))
			n.rules = append(n.rules, c)
		}
	}
	for _, n := range out.namespaces {
		n.index = build(n.rules)
	}
	return out
}

func compileRule(ns, policy string, r *configv1.AccessRule, i int) (accessRule, error) {
	path := fmt.Sprintf("spec.rules[%d]", i)
	out := accessRule{policy: policy, name: r.Name, shadow: r.Mode == configv1.Mode_MODE_SHADOWED,
		principals: map[whoKey]struct{}{}, groups: map[string]struct{}{}}
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
			out.principals[whoKey{name: Local}] = struct{}{}
		default:
			of, name, _ := strings.Cut(qualify(ns, p), "/")
			out.principals[whoKey{of, name}] = struct{}{}
		}
	}
	for _, g := range r.Groups {
		out.groups[qualify(ns, g)] = struct{}{}
	}
	var err error
	if out.topics, err = compileMatcher(path+".topics", "topic", r.Topics); err != nil {
		return out, err
	}
	if out.subs, err = compileMatcher(path+".subscriptions", "subscription", r.Subscriptions); err != nil {
		return out, err
	}
	if (len(r.Subjects) > 0 || r.Condition != "") && out.actions[Consume] {
		return out, &FieldError{path + ".actions", "must not have consume with subjects or a condition: who joins a subscription does not choose its events"}
	}
	for j, s := range r.Subjects {
		if err := names.CheckSubjectPattern(s); err != nil {
			return out, &FieldError{fmt.Sprintf("%s.subjects[%d]", path, j), err.Error()}
		}
	}
	out.subjects = r.Subjects
	if r.Condition != "" {
		if out.condition, err = eventcel.CompileCondition(r.Condition); err != nil {
			return out, &FieldError{path + ".condition", err.Error()}
		}
	}
	return out, nil
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
