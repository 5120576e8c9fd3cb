package route

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

var indexNames = []string{"id", "type", "subject", "dataschema", "a", "b", "c", "d"}

// word is short and of few letters, so that one is often a prefix or suffix of another.
func word(t *rapid.T) string {
	return rapid.StringOfN(rapid.SampledFrom([]rune("ab.ü")), 1, 4, -1).Draw(t, "word")
}

func anyFilter(t *rapid.T, depth int) *configv1.Filter {
	kinds := 4
	if depth > 1 {
		kinds = 7
	}
	attrs := func() map[string]string {
		m := map[string]string{}
		for range rapid.IntRange(1, 2).Draw(t, "conditions") {
			m[rapid.SampledFrom(indexNames).Draw(t, "name")] = word(t)
		}
		return m
	}
	nested := func() (out []*configv1.Filter) {
		for range rapid.IntRange(1, 3).Draw(t, "children") {
			out = append(out, anyFilter(t, depth-1))
		}
		return out
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return &configv1.Filter{Exact: attrs()}
	case 1:
		return &configv1.Filter{Prefix: attrs()}
	case 2:
		return &configv1.Filter{Suffix: attrs()}
	case 3:
		return &configv1.Filter{Sql: fmt.Sprintf("%s LIKE '%%%s'", rapid.SampledFrom(indexNames).Draw(t, "name"), word(t))}
	case 4:
		return &configv1.Filter{All: nested()}
	case 5:
		return &configv1.Filter{Any: nested()}
	}
	return &configv1.Filter{Not: anyFilter(t, depth-1)}
}

func anyEvent(t *rapid.T) *event.Event {
	e := &event.Event{ID: word(t), Source: "s", Type: word(t)}
	if rapid.Bool().Draw(t, "has subject") {
		e.Subject = word(t)
	}
	for _, n := range indexNames[4:] {
		if rapid.Bool().Draw(t, "has "+n) {
			e.Ext = append(e.Ext, event.Attr{Name: n, Value: word(t)})
		}
	}
	return e
}

// TestIndexIsLinear: of random rules the index finds for random events the rule that
// trying one after the other finds.
func TestIndexIsLinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &configv1.Route{}
		for range rapid.IntRange(1, 100).Draw(t, "rules") {
			rule := &configv1.RouteRule{To: []*configv1.Destination{{Topic: "t"}}}
			if rapid.IntRange(0, 50).Draw(t, "all") > 0 {
				rule.Filter = anyFilter(t, 3)
			}
			r.Rules = append(r.Rules, rule)
		}
		table, err := CompileTable(r)
		if err != nil {
			t.Fatal(err)
		}
		x := newIndex(table.rules)
		for range 20 {
			e := anyEvent(t)
			linear := (&Table{rules: table.rules}).First(e, nil)
			if found := x.first(table.rules, e, nil); found != linear {
				t.Fatalf("rule %d, by trying each %d, of %v", found, linear, e)
			}
		}
	})
}

// many is a Route of n rules that are of the kinds, in turns: 0 exact, 1 prefix, 2
// suffix, 3 two of them; of all where none is named.
func many(n int, kinds ...int) *configv1.Route {
	r := &configv1.Route{}
	if len(kinds) == 0 {
		kinds = []int{0, 1, 2, 3}
	}
	for i := range n {
		var f *configv1.Filter
		switch kinds[i%len(kinds)] {
		case 0:
			f = &configv1.Filter{Exact: map[string]string{"subject": fmt.Sprintf("order/%04d", i)}}
		case 1:
			f = &configv1.Filter{Prefix: map[string]string{"type": fmt.Sprintf("com.shop%04d.", i)}}
		case 2:
			f = &configv1.Filter{Suffix: map[string]string{"subject": fmt.Sprintf("/item%04d", i)}}
		case 3:
			f = &configv1.Filter{All: []*configv1.Filter{{Prefix: map[string]string{"type": "com."}}, {Exact: map[string]string{"region": fmt.Sprintf("r%04d", i)}}}}
		}
		r.Rules = append(r.Rules, &configv1.RouteRule{Filter: f, To: []*configv1.Destination{{Topic: fmt.Sprint("t", i)}}})
	}
	return r
}

// meets is an event that rule i of many matches, which is of a kind.
func meets(i, kind int) *event.Event {
	e := &event.Event{ID: "1", Source: "/s", Type: "com.other.created", Subject: "order/none", Ext: []event.Attr{{Name: "region", Value: "eu"}}}
	switch kind {
	case 0:
		e.Subject = fmt.Sprintf("order/%04d", i)
	case 1:
		e.Type = fmt.Sprintf("com.shop%04d.created", i)
	case 2:
		e.Subject = fmt.Sprintf("order/1/item%04d", i)
	case 3:
		e.Ext[0].Value = fmt.Sprintf("r%04d", i)
	}
	return e
}

// TestIndexTriesFew: of the most rules that a Route may have those are tried that may
// match, without the heap; one more is refused.
func TestIndexTriesFew(t *testing.T) {
	r := many(MaxRules)
	table, err := CompileTable(r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxRules {
		if to, ok := table.Resolve(meets(i, i%4), "", nil); !ok || to != fmt.Sprint("t", i) {
			t.Fatalf("event %d went to %s", i, to)
		}
	}
	// Filters that count: each expression that is tried and cannot be evaluated tells.
	for i, rule := range r.Rules {
		if i%32 == 3 { // as many SQL expressions as a Route may have
			rule.Filter = &configv1.Filter{All: []*configv1.Filter{{Sql: "missing = 'x'"}, rule.Filter}}
		}
	}
	if table, err = CompileTable(r); err != nil {
		t.Fatal(err)
	}
	tried, e := 0, meets(67, 3)
	if to, ok := table.Resolve(e, "", func(error) { tried++ }); ok || tried != 1 {
		t.Errorf("%d filters were tried, and %q found", tried, to)
	}
	if n := testing.AllocsPerRun(100, func() { table.Resolve(e, "", nil) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	r.Rules = append(r.Rules, r.Rules[0])
	if _, err := CompileTable(r); err == nil || !strings.HasPrefix(err.Error(), "spec.rules: ") {
		t.Errorf("%d rules: %v", len(r.Rules), err)
	}
}

func BenchmarkResolve(b *testing.B) {
	for kind, name := range []string{"exact", "prefix", "suffix", "both"} {
		for _, n := range []int{1, 10, MaxRules} {
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				table, err := CompileTable(many(n, kind))
				if err != nil {
					b.Fatal(err)
				}
				var events [64]*event.Event
				for i := range events {
					events[i] = meets(i*7%n, kind)
				}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					table.Resolve(events[i%len(events)], "", nil)
				}
			})
		}
	}
}
