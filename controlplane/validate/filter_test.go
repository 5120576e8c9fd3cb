package validate

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// conditions is an expression with n conditions whose values have some bytes.
func conditions(n, bytes int) *configv1.Filter {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprintf("a%02d", i)] = strings.Repeat("v", bytes)
	}
	return &configv1.Filter{Exact: m}
}

// anyOf has n children, each of them as f makes it.
func anyOf(n int, f func() *configv1.Filter) *configv1.Filter {
	out := &configv1.Filter{}
	for range n {
		out.Any = append(out.Any, f())
	}
	return out
}

// TestFilterCost: what a filter, or those of a Route together, may cost is bounded;
// what is at the bound passes, what is above it is refused with its path.
func TestFilterCost(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	one := func() *configv1.Filter { return conditions(1, 1) }
	sql := func() *configv1.Filter { return &configv1.Filter{Sql: "type LIKE 'a%'"} }
	some := func(n, bytes int) func() *configv1.Filter {
		return func() *configv1.Filter { return conditions(n, bytes) }
	}
	plus := func(f *configv1.Filter, more ...*configv1.Filter) *configv1.Filter {
		return &configv1.Filter{All: append([]*configv1.Filter{f}, more...)}
	}
	route := func(rules int, f func() *configv1.Filter) *configv1.Resource {
		r := proto.Clone(good()[resource.Route]).(*configv1.Resource)
		rule := r.GetRoute().Rules[0]
		r.GetRoute().Rules = nil
		for range rules {
			next := proto.Clone(rule).(*configv1.RouteRule)
			next.Filter = f()
			r.GetRoute().Rules = append(r.GetRoute().Rules, next)
		}
		return r
	}
	sub := func(change func(*configv1.Subscription)) *configv1.Resource {
		r := proto.Clone(good()[resource.Subscription]).(*configv1.Resource)
		change(r.GetSubscription())
		return r
	}
	filter := func(f *configv1.Filter) *configv1.Resource {
		return sub(func(s *configv1.Subscription) { s.Filter = f })
	}
	patterns := func(n int, pattern string) *configv1.Resource {
		return sub(func(s *configv1.Subscription) {
			s.Topics = nil
			for i := range n {
				s.Topics = append(s.Topics, fmt.Sprintf("p%d.%s", i, pattern))
			}
		})
	}
	// 255 expressions: 1 + 8 + 8*30 + 6.
	nodes := func() *configv1.Filter {
		f := anyOf(8, func() *configv1.Filter { return anyOf(30, one) })
		f.Any = append(f.Any, one(), one(), one(), one(), one(), one())
		return f
	}
	for what, tc := range map[string]struct {
		r           *configv1.Resource
		field, rule string
	}{
		"256 expressions":           {filter(plus(nodes())), "", ""},
		"257 expressions":           {filter(plus(nodes(), one())), "spec.filter", "filter-size"},
		"512 conditions":            {filter(anyOf(16, some(32, 1))), "", ""},
		"513 conditions":            {filter(plus(anyOf(16, some(32, 1)), one())), "spec.filter", "filter-conditions"},
		"16 KiB":                    {filter(anyOf(16, some(1, 1021))), "", ""},
		"more than 16 KiB":          {filter(plus(anyOf(16, some(1, 1021)), one())), "spec.filter", "filter-bytes"},
		"a value of 1 KiB":          {filter(conditions(1, 1024)), "", ""},
		"a value of more":           {filter(&configv1.Filter{Not: conditions(1, 1025)}), "spec.filter.not.exact.a00", "filter-value"},
		"4,096 expressions":         {route(256, func() *configv1.Filter { return anyOf(15, one) }), "", ""},
		"4,352 expressions":         {route(256, func() *configv1.Filter { return anyOf(16, one) }), "spec.rules", "filter-size"},
		"4,096 conditions":          {route(128, some(32, 1)), "", ""},
		"more than 4,096":           {route(128, func() *configv1.Filter { return anyOf(2, some(17, 1)) }), "spec.rules", "filter-conditions"},
		"128 KiB":                   {route(128, some(1, 1021)), "", ""},
		"more than 128 KiB":         {route(128, some(1, 1022)), "spec.rules", "filter-bytes"},
		"one rule's":                {route(1, func() *configv1.Filter { return plus(nodes(), one()) }), "spec.rules[0].filter", "filter-size"},
		"an SQL expression":         {filter(&configv1.Filter{Sql: "type = 'a'"}), "", ""},
		"8 SQL expressions":         {filter(anyOf(8, sql)), "", ""},
		"9 SQL expressions":         {filter(anyOf(9, sql)), "spec.filter", "filter-sql"},
		"1,000 rules":               {route(1000, one), "", ""},
		"1,001 rules":               {route(1001, one), "spec.rules", "repeated.max_items"},
		"32 in a Route":             {route(32, sql), "", ""},
		"33 in a Route":             {route(33, sql), "spec.rules", "filter-sql"},
		"SQL that is none":          {filter(&configv1.Filter{Not: &configv1.Filter{Sql: "type ="}}), "spec.filter.not.sql", "filter-sql-syntax"},
		"the data":                  {filter(&configv1.Filter{Any: []*configv1.Filter{{Suffix: map[string]string{"type": "a"}}, {Exact: map[string]string{"data": "a"}}}}), "spec.filter.any[1].exact.data", "attribute-name"},
		"the data in SQL":           {filter(&configv1.Filter{Not: &configv1.Filter{Sql: "type = 'a' OR EXISTS DATA"}}), "spec.filter.not.sql", "attribute-name"},
		"SQL and another":           {filter(&configv1.Filter{Sql: "true", Exact: map[string]string{"type": "a"}}), "spec.filter", "filter-dialect"},
		"16 patterns":               {patterns(16, "*"), "", ""},
		"17 patterns":               {patterns(17, "*"), "spec.topics", "patterns"},
		"17 names":                  {patterns(17, "x"), "", ""},
		"8 wildcards":               {patterns(1, strings.Repeat("*.", 7)+">"), "", ""},
		"9 wildcards":               {patterns(1, strings.Repeat("*.", 8)+">"), "spec.topics[0]", "pattern-wildcards"},
		"what is beyond all bounds": {filter(anyOf(200, func() *configv1.Filter { return anyOf(1000, func() *configv1.Filter { return &configv1.Filter{} }) })), "spec.filter.any", "repeated.max_items"},
	} {
		problems := v.Alone(tc.r)
		found := false
		for _, p := range problems {
			found = found || p.Field == tc.field && p.Rule == tc.rule && p.Message != ""
			if len(p.Field) > maxField || len(p.Message) > maxMessage {
				t.Errorf("%s: %d bytes are said of a field of %d", what, len(p.Message), len(p.Field))
			}
		}
		if tc.rule == "" && len(problems) > 0 || tc.rule != "" && !found || len(problems) > maxProblems {
			t.Errorf("%s: %d problems, %v", what, len(problems), problems[:min(3, len(problems))])
		}
	}
	long := filter(&configv1.Filter{Exact: map[string]string{strings.Repeat("A", 1<<20): "x"}})
	for _, p := range v.Alone(long) {
		if len(p.String()) > maxField+maxMessage+100 {
			t.Errorf("%d bytes are said of a name of a MiB", len(p.String()))
		}
	}
}
