package policy

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/eventcel"
	"github.com/weft-mesh/weft/pkg/names"
)

// drawRules draws policies of few principals, groups, names and subjects, so that
// their rules meet.
func drawRules(t *rapid.T) []NamedPolicy {
	some := func(what string, of ...string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 0, 3, rapid.ID[string]).Draw(t, what)
	}
	var rs []*configv1.AccessRule
	for i := range rapid.IntRange(0, 12).Draw(t, "rules") {
		r := &configv1.AccessRule{Name: fmt.Sprint("r", i), Effect: rapid.SampledFrom([]configv1.Effect{allow, allow, deny}).Draw(t, "effect"),
			Mode:       rapid.SampledFrom([]configv1.Mode{configv1.Mode_MODE_ENFORCED, configv1.Mode_MODE_ENFORCED, shadow}).Draw(t, "mode"),
			Principals: some("principals", "*", "alice", "bob", "other/alice", "local"), Groups: some("groups", "staff", "other/staff"),
			Topics: some("topics", "a", "a.b", "a.*", "a.>", ">", "*", "*.b", "b"), Subscriptions: some("subscriptions", "a", "*", ">"),
			Actions: rapid.SliceOfNDistinct(rapid.SampledFrom([]configv1.Action{publish, configv1.Action_ACTION_SUBSCRIBE, consume}), 1, 3, rapid.ID[configv1.Action]).Draw(t, "actions")}
		if rapid.IntRange(0, 9).Draw(t, "wide") == 0 { // under more pairs than the index has for one rule
			for n := range 40 {
				r.Principals, r.Topics, r.Subscriptions = append(r.Principals, fmt.Sprint("p", n)), append(r.Topics, fmt.Sprint("t", n)), append(r.Subscriptions, fmt.Sprint("t", n))
			}
		}
		if !slices.Contains(r.Actions, consume) {
			r.Subjects = some("subjects", "x", "x/*", "x/>", "*", "")
			r.Condition = rapid.SampledFrom([]string{"", "", "event.type == 't1'", "event.region == 'eu'", "'other/staff' in groups", "principal == 'demo/alice' && action == 'publish'", "topic.startsWith('a.')"}).Draw(t, "condition")
		}
		rs = append(rs, r)
	}
	return rules(rs...)
}

// naive tries every rule, and tells which apply, by class.
func naive(list []NamedPolicy, p *Principal, a Action, name string, e *event.Event) (out [classes][]string) {
	for _, r := range list[0].Spec.Rules {
		in := func(list []string, is func(string) bool) bool { return slices.ContainsFunc(list, is) }
		pats, want := r.Topics, map[Action]configv1.Action{Publish: publish, Subscribe: configv1.Action_ACTION_SUBSCRIBE, Consume: consume}[a]
		if a == Consume {
			pats = r.Subscriptions
		}
		who := in(r.Principals, func(s string) bool { return s == "*" || s == p.String() || "demo/"+s == p.String() && s != "local" }) ||
			in(r.Groups, func(s string) bool { return slices.Contains(p.Groups, s) || slices.Contains(p.Groups, "demo/"+s) })
		if !who || !slices.Contains(r.Actions, want) || !in(pats, func(s string) bool { return names.Match(s, name) }) {
			continue
		}
		if len(r.Subjects) > 0 && !in(r.Subjects, func(s string) bool { return names.MatchSubject(s, e.Subject) }) {
			continue
		}
		if r.Condition != "" {
			c, err := eventcel.CompileCondition(r.Condition)
			if err != nil {
				panic(err)
			}
			ok, err := c.Holds(eventcel.Access{Event: e, Principal: p.String(), Groups: p.Groups, Action: a.String(), Topic: name})
			if !ok && (err == nil || r.Effect == allow) {
				continue
			}
		}
		c := allows
		switch {
		case r.Mode == shadow && r.Effect == deny:
			c = shadowDenies
		case r.Mode == shadow:
			c = shadowAllows
		case r.Effect == deny:
			c = denies
		}
		out[c] = append(out[c], r.Name)
	}
	return out
}

// TestAsTriedOneByOne: what the index finds decides as trying every rule does, for
// each event and for all at once, and names the first rule that decides.
func TestAsTriedOneByOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := drawRules(t)
		r := CompileRules(list, nil)
		for _, p := range []*Principal{{Namespace: "demo", Name: "alice"}, {Namespace: "demo", Name: "bob", Groups: []string{"demo/staff"}}, {Namespace: "other", Name: "alice", Groups: []string{"other/staff"}}, {Name: Local}, {Namespace: "demo", Name: "p7"}} {
			for _, a := range []Action{Publish, Subscribe, Consume} {
				for _, name := range []string{"a", "a.b", "a.b.c", "b", "c", "t7"} {
					g := r.Grant(p, a, "demo", name)
					always, ever := g.Always(), g.Ever()
					for _, e := range []event.Event{{ID: "1", Source: "s", Type: "t1"}, {ID: "1", Source: "s", Type: "t2", Subject: "x"}, {ID: "1", Source: "s", Type: "t1", Subject: "x/y", Ext: []event.Attr{{Name: "region", Value: "eu"}}}, {ID: "1", Source: "s", Type: "t2", Subject: "x/y/z", Ext: []event.Attr{{Name: "region", Value: "us"}}}} {
						by := naive(list, p, a, name, &e)
						d := g.For(&e)
						want, rule := len(by[allows]) > 0, ""
						switch {
						case len(by[denies]) > 0:
							want, rule = false, by[denies][0]
						case want:
							rule = by[allows][0]
						}
						shadowed := ""
						switch {
						case want && len(by[shadowDenies]) > 0:
							shadowed = "accesspolicy/demo/p#" + by[shadowDenies][0]
						case !want && rule == "" && len(by[shadowAllows]) > 0:
							shadowed = "accesspolicy/demo/p#" + by[shadowAllows][0]
						}
						if d.Allowed != want || d.Rule != rule || d.Shadow != shadowed || (d.Why == "") != want {
							t.Fatalf("%v %v %s, subject %q: %+v, want %v by %q, shadow %q", p, a, name, e.Subject, d, want, rule, shadowed)
						}
						if always.Allowed && !d.Allowed || d.Allowed && !ever || !g.PerEvent() && always.Allowed != d.Allowed {
							t.Fatalf("%v %v %s: always %+v, ever %v, for one %+v", p, a, name, always, ever, d)
						}
					}
				}
			}
		}
	})
}

// TestConditionFailsClosed: a condition that cannot be evaluated, or costs too much,
// does not allow, denies where it denies, and is told of.
func TestConditionFailsClosed(t *testing.T) {
	who, e := &Principal{Namespace: "demo", Name: "a"}, &event.Event{ID: "1", Source: "s", Type: "t"}
	rule := func(name string, effect configv1.Effect, condition string) *configv1.AccessRule {
		return &configv1.AccessRule{Name: name, Effect: effect, Principals: []string{"*"}, Actions: []configv1.Action{publish}, Topics: []string{">"}, Condition: condition}
	}
	told := ""
	r := CompileRules(rules(rule("a", allow, "event.region == 'eu'")), nil)
	r.Observer.Unjudged = func(policy, rule string) { told = policy + "#" + rule }
	g := r.Grant(who, Publish, "demo", "t")
	if d := g.For(e); d.Allowed || d.Why != `rule "a" of accesspolicy/demo/p allows demo/a to publish only some events of topic t, by their subject or a condition, and not this one, whose subject is ""` {
		t.Errorf("%+v", d)
	}
	if d := g.For(e); d.Allowed || told != "accesspolicy/demo/p#a" || !g.Ever() || !g.PerEvent() {
		t.Errorf("%+v, told of %q", d, told)
	}
	if d := g.Always(); d.Allowed || d.Why != `rule "a" of accesspolicy/demo/p allows demo/a to publish only some events of topic t, by their subject or a condition` {
		t.Errorf("%+v", d)
	}
	r = CompileRules(rules(rule("all", allow, ""), rule("d", deny, "event.region == 'us'")), nil)
	g = r.Grant(who, Publish, "demo", "t")
	e.Subject = "a/b"
	if d := g.For(e); d.Allowed || d.Rule != "d" || d.Why != `rule "d" of accesspolicy/demo/p denies demo/a to publish topic t, for events as this one, whose subject is "a/b"` {
		t.Errorf("%+v", d)
	}
	if d := g.Always(); d.Allowed || d.Rule != "d" {
		t.Errorf("%+v", d)
	}
	e.Ext = []event.Attr{{Name: "region", Value: "eu"}}
	if d := g.For(e); !d.Allowed {
		t.Errorf("%+v", d)
	}
	for _, bad := range []*configv1.AccessRule{rule("a", allow, "event.type"), rule("a", allow, "event.("), {Name: "a", Effect: allow, Principals: []string{"*"}, Actions: []configv1.Action{consume}, Subscriptions: []string{"s"}, Subjects: []string{"x"}},
		{Name: "a", Effect: allow, Principals: []string{"*"}, Actions: []configv1.Action{publish}, Topics: []string{"s"}, Subjects: []string{"x*"}}} {
		if CheckPolicy(&configv1.AccessPolicy{Rules: []*configv1.AccessRule{bad}}) == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

// many are 10,000 rules of a shape, and who asks for what, allowed by the last rule.
func many(shape string) (rs *Rules, p *Principal, topic string) {
	const n = 10_000
	var list []*configv1.AccessRule
	p, topic = &Principal{Namespace: "demo", Name: "p0", Groups: []string{"demo/g0"}}, "t0"
	for i := range n {
		r := &configv1.AccessRule{Name: fmt.Sprint("r", i), Effect: allow, Principals: []string{fmt.Sprint("x", i)}, Actions: []configv1.Action{publish}, Topics: []string{fmt.Sprint("t", i)}}
		if i%10 == 0 {
			r.Effect = deny
		}
		switch shape {
		case "each its topic":
			r.Principals = []string{"p0"}
		case "each its topics":
			r.Principals, r.Topics = []string{"p0"}, []string{fmt.Sprintf("t%d.>", i)}
		case "each its principal":
			r.Topics = []string{">"}
		case "each its group":
			r.Principals, r.Groups, r.Topics = nil, []string{fmt.Sprint("y", i)}, []string{"t0", "*"}
		case "100 by 100":
			r.Principals, r.Topics = []string{fmt.Sprint("p", i%100)}, []string{fmt.Sprint("t", i/100+1)}
		case "wide":
			r.Principals = nil
			for j := range 100 {
				r.Principals = append(r.Principals, fmt.Sprint("x", i, "-", j))
			}
		}
		list = append(list, r)
	}
	switch shape {
	case "each its topics":
		topic = "t7.x"
	case "each its topic":
		topic = "t7"
	default:
		list[n-1] = &configv1.AccessRule{Name: "mine", Effect: allow, Groups: []string{"g0"}, Actions: []configv1.Action{publish}, Topics: []string{"t0"}}
	}
	return CompileRules(rules(list...), nil), p, topic
}

func shapes() []string {
	return []string{"each its own", "each its topic", "each its topics", "each its principal", "each its group", "100 by 100", "wide"}
}

// TestManyRulesAreFound: of 10,000 rules those that may apply are found, not tried,
// without an allocation.
func TestManyRulesAreFound(t *testing.T) {
	for _, shape := range shapes() {
		r, p, topic := many(shape)
		if d := r.Authorize(p, Publish, "demo", topic); !d.Allowed {
			t.Errorf("%s: %+v", shape, d)
		}
		n := r.namespaces["demo"]
		found := 0
		n.index.find(n.rules, p, Publish, topic, func(int32) { found++ })
		if found != 1 {
			t.Errorf("%s: %d rules are found", shape, found)
		}
		if n := testing.AllocsPerRun(100, func() { r.Authorize(p, Publish, "demo", topic) }); n > 0 {
			t.Errorf("%s: %v allocations", shape, n)
		}
	}
}

// BenchmarkAuthorizeMany: a decision of 10,000 rules.
func BenchmarkAuthorizeMany(b *testing.B) {
	for _, shape := range shapes() {
		r, p, topic := many(shape)
		b.Run(shape, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Authorize(p, Publish, "demo", topic)
			}
		})
	}
	who, e := &Principal{Namespace: "demo", Name: "a"}, &event.Event{ID: "1", Source: "s", Type: "com.example.order", Subject: "plant1/dev42/temp", Ext: []event.Attr{{Name: "region", Value: "eu"}}}
	for name, rule := range map[string]*configv1.AccessRule{"subject": {Subjects: []string{"plant1/*/temp"}}, "condition": {Condition: "event.type.startsWith('com.example.') && event.region in ['eu', 'us']"}} {
		rule.Name, rule.Effect, rule.Principals, rule.Actions, rule.Topics = "r", allow, []string{"*"}, []configv1.Action{publish}, []string{">"}
		r := CompileRules(rules(rule), nil)
		g := r.Grant(who, Publish, "demo", "t")
		b.Run("event by "+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := g.For(e); !d.Allowed {
					b.Fatal(d)
				}
			}
		})
	}
}

// TestProspect: whether a rule may allow a name that a pattern matches, whichever there are.
func TestProspect(t *testing.T) {
	alice := &Principal{Namespace: "demo", Name: "alice"}
	of := func(name string, effect configv1.Effect, topics ...string) *configv1.AccessRule {
		return &configv1.AccessRule{Name: name, Effect: effect, Principals: []string{"alice"}, Actions: []configv1.Action{publish}, Topics: topics}
	}
	shadowed, some := of("shadowed", allow, ">"), of("some", deny, ">")
	shadowed.Mode, some.Subjects = shadow, []string{"x"}
	for name, tc := range map[string]struct {
		rules   []*configv1.AccessRule
		pattern string
		want    bool
	}{
		"all":                   {[]*configv1.AccessRule{of("a", allow, ">")}, "nosuch.>", true},
		"a name":                {[]*configv1.AccessRule{of("a", allow, "orders")}, "*", true},
		"another name":          {[]*configv1.AccessRule{of("a", allow, "orders.eu")}, "*", false},
		"patterns that meet":    {[]*configv1.AccessRule{of("a", allow, "*.eu")}, "orders.*", true},
		"no rule":               {nil, ">", false},
		"a shadowed rule":       {[]*configv1.AccessRule{shadowed}, ">", false},
		"denied":                {[]*configv1.AccessRule{of("a", allow, ">"), of("d", deny, "orders.>")}, "orders.*", false},
		"denied in part":        {[]*configv1.AccessRule{of("a", allow, ">"), of("d", deny, "orders.*")}, "orders.>", true},
		"what is allowed is":    {[]*configv1.AccessRule{of("a", allow, "orders.eu"), of("d", deny, "orders.*")}, "orders.>", false},
		"some events are":       {[]*configv1.AccessRule{of("a", allow, ">"), some}, "orders.>", true},
		"to somebody else only": {[]*configv1.AccessRule{{Name: "b", Effect: allow, Principals: []string{"bob"}, Actions: []configv1.Action{publish}, Topics: []string{">"}}}, ">", false},
	} {
		r := CompileRules(rules(tc.rules...), nil)
		if got := r.Prospect(alice, Publish, "demo", tc.pattern); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
		if r.Prospect(alice, Subscribe, "demo", tc.pattern) || r.Prospect(alice, Publish, "other", tc.pattern) {
			t.Errorf("%s: another action or namespace", name)
		}
	}
	if CompileRules(rules(of("a", allow, ">")), map[string]string{"demo": "accesspolicy/demo/q"}).Prospect(alice, Publish, "demo", ">") {
		t.Error("a namespace that is denied")
	}
}
