// Package quota holds clients to the Quotas of their namespaces, whatever
// protocols, connections and credentials they use. Rules are what the
// configuration says, compiled; a Limiter has what was used, which outlives every
// change of the configuration.
package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/names"
)

// DefaultBurst is the burst of a Quota that has none.
const DefaultBurst = time.Second

// Named is a Quota with its names.
type Named struct {
	// Name is the canonical name, UID the resource's.
	Namespace, Name, UID string
	Spec                 *configv1.Quota
}

// Rule is one compiled Quota. It is immutable.
type Rule struct {
	namespace, name string // the namespace, and the name within it
	uid             string
	per             configv1.QuotaPer
	shadow          bool

	anyone     bool
	principals map[subject]struct{}
	groups     map[string]struct{} // "namespace/group"
	topics     []string            // names and patterns; none: every topic

	publish     rates
	burst       time.Duration
	inFlight    int64
	connections int
}

// rates are the most of a second; 0 is no bound.
type rates struct{ events, bytes int64 }

// subject is a principal, as policy.Principal has its name.
type subject struct{ namespace, name string }

// Rules are the Quotas of a configuration. They are immutable; the zero value
// bounds nothing.
type Rules struct {
	namespaces map[string][]*Rule
}

// Check tells whether a Quota compiles. The error is a *policy.FieldError.
func Check(spec *configv1.Quota) error {
	_, err := compile(Named{Namespace: "check", Spec: spec})
	return err
}

// Compile compiles Quotas that Check accepts. Of those that it does not accept,
// refused has the canonical names by namespace: what these select cannot be
// known.
func Compile(list []Named) (rules *Rules, refused map[string]string) {
	rules, refused = &Rules{namespaces: map[string][]*Rule{}}, map[string]string{}
	for _, n := range list {
		r, err := compile(n)
		if err != nil {
			refused[n.Namespace] = n.Name
			continue
		}
		rules.namespaces[n.Namespace] = append(rules.namespaces[n.Namespace], r)
	}
	for _, of := range rules.namespaces {
		slices.SortFunc(of, func(a, b *Rule) int { return strings.Compare(a.name, b.name) })
	}
	return rules, refused
}

func compile(n Named) (*Rule, error) {
	s := n.Spec
	_, name, _ := strings.Cut(strings.TrimPrefix(n.Name, "quota/"), "/")
	r := &Rule{namespace: n.Namespace, name: name, uid: n.UID, per: s.Per, shadow: s.Mode == configv1.Mode_MODE_SHADOWED,
		principals: map[subject]struct{}{}, groups: map[string]struct{}{}, topics: s.Topics,
		publish: rates{int64(s.GetPublish().GetEventsPerSecond()), int64(s.GetPublish().GetBytesPerSecond())}, //nolint:gosec // bounded below
		burst:   DefaultBurst, inFlight: int64(s.GetPublish().GetInFlight()), connections: int(s.Connections)}
	switch s.Per {
	case configv1.QuotaPer_QUOTA_PER_PRINCIPAL, configv1.QuotaPer_QUOTA_PER_TOPIC, configv1.QuotaPer_QUOTA_PER_ALL:
	default:
		return nil, &policy.FieldError{Field: "spec.per", Reason: "must be principal, topic or all"}
	}
	switch s.Scope {
	case configv1.QuotaScope_QUOTA_SCOPE_UNSPECIFIED, configv1.QuotaScope_QUOTA_SCOPE_PROXY:
	default:
		return nil, &policy.FieldError{Field: "spec.scope", Reason: "is not a scope that this version enforces"}
	}
	switch s.Mode {
	case configv1.Mode_MODE_UNSPECIFIED, configv1.Mode_MODE_ENFORCED, configv1.Mode_MODE_SHADOWED:
	default:
		return nil, &policy.FieldError{Field: "spec.mode", Reason: "is not a mode that this version enforces"}
	}
	for _, p := range s.Principals {
		switch ns, rest, qualified := strings.Cut(p, "/"); {
		case p == "*":
			r.anyone = true
		case p == policy.Local:
			r.principals[subject{"", policy.Local}] = struct{}{}
		case qualified:
			r.principals[subject{ns, rest}] = struct{}{}
		default:
			r.principals[subject{n.Namespace, p}] = struct{}{}
		}
	}
	for _, g := range s.Groups {
		if !strings.Contains(g, "/") {
			g = n.Namespace + "/" + g
		}
		r.groups[g] = struct{}{}
	}
	r.anyone = r.anyone || len(s.Principals)+len(s.Groups) == 0
	for i, t := range s.Topics {
		if err := names.CheckPattern("topic", t); err != nil {
			return nil, &policy.FieldError{Field: fmt.Sprintf("spec.topics[%d]", i), Reason: err.Error()}
		}
	}
	if b := s.GetPublish().GetBurst(); b != nil {
		if r.burst = b.AsDuration(); b.CheckValid() != nil || r.burst < time.Millisecond || r.burst > time.Minute {
			return nil, &policy.FieldError{Field: "spec.publish.burst", Reason: "must be 1 ms to 1 minute"}
		}
	}
	for _, b := range []struct {
		field    string
		is, most int64
	}{{"publish.events_per_second", r.publish.events, maxEvents}, {"publish.bytes_per_second", r.publish.bytes, maxBytes}, {"publish.in_flight", r.inFlight, maxCount}, {"connections", int64(r.connections), maxCount}} {
		if b.is < 0 || b.is > b.most {
			return nil, &policy.FieldError{Field: "spec." + b.field, Reason: fmt.Sprintf("must be at most %d", b.most)}
		}
	}
	if e := r.publish.events; e > 0 && cost(1, e) > r.burst {
		return nil, &policy.FieldError{Field: "spec.publish.burst", Reason: "is too short for one event"}
	}
	if r.publish == (rates{}) && r.inFlight == 0 && r.connections == 0 {
		return nil, &policy.FieldError{Field: "spec", Reason: "bounds nothing"}
	}
	return r, nil
}

// Most of what a Quota may say: beyond, times that are counted with would be too
// short or overflow.
const (
	maxEvents = 10_000_000
	maxBytes  = 10 << 30
	maxCount  = 1_000_000
)

// cost is the time for which n uses up a rate.
func cost(n, rate int64) time.Duration {
	return time.Duration(max(min(n, 1), n*int64(time.Second)/rate))
}

// Publishing are the rules that bound publishing to a topic of a namespace, those
// that are shadowed last: they count what passes the others.
func (r *Rules) Publishing(namespace, topic string) []*Rule {
	var out, shadowed []*Rule
	for _, rule := range r.namespaces[namespace] {
		switch {
		case rule.publish == rates{} && rule.inFlight == 0 || !rule.about(topic):
		case rule.shadow:
			shadowed = append(shadowed, rule)
		default:
			out = append(out, rule)
		}
	}
	return append(out, shadowed...)
}

// about reports whether a topic is selected.
func (r *Rule) about(topic string) bool {
	return len(r.topics) == 0 || slices.ContainsFunc(r.topics, func(p string) bool { return names.Match(p, topic) })
}

// selects reports whether a principal is selected. It does not allocate.
func (r *Rule) selects(who *policy.Principal) bool {
	if r.anyone {
		return true
	}
	if _, ok := r.principals[subject{who.Namespace, who.Name}]; ok {
		return true
	}
	for _, g := range who.Groups {
		if _, ok := r.groups[g]; ok {
			return true
		}
	}
	return false
}

// key is whose use is counted together: of one Quota, by its uid, that of a
// principal, of a topic, or all.
type key struct {
	quota string
	per   configv1.QuotaPer
	subject
}

func (r *Rule) key(who *policy.Principal, topic string) key {
	k := key{quota: r.uid, per: r.per}
	switch r.per {
	case configv1.QuotaPer_QUOTA_PER_PRINCIPAL:
		k.subject = subject{who.Namespace, who.Name}
	case configv1.QuotaPer_QUOTA_PER_TOPIC:
		k.subject = subject{r.namespace, topic}
	}
	return k
}

// whose is how the sharing stands in refusals.
func (r *Rule) whose() string {
	switch r.per {
	case configv1.QuotaPer_QUOTA_PER_PRINCIPAL:
		return "each principal"
	case configv1.QuotaPer_QUOTA_PER_TOPIC:
		return "each topic"
	}
	return "all together"
}

// label is the Quota in metrics: "namespace/name".
func (r *Rule) label() string { return r.namespace + "/" + r.name }

// has reports whether there is a Quota of a label.
func (r *Rules) has(label string) bool {
	namespace, name, _ := strings.Cut(label, "/")
	return r != nil && slices.ContainsFunc(r.namespaces[namespace], func(r *Rule) bool { return r.name == name })
}
