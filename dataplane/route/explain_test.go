package route

import (
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// TestRefuses: the expression that keeps an event out is named.
func TestRefuses(t *testing.T) {
	exact := func(v string) *configv1.Filter { return &configv1.Filter{Exact: map[string]string{"type": v}} }
	e := &event.Event{ID: "1", Source: "/s", Type: "order.created"}
	for _, c := range []struct {
		f    *configv1.Filter
		want string
	}{
		{nil, ""},
		{exact("order.created"), ""},
		{exact("order.paid"), `spec.filter.exact.type: wants "order.paid", the event has "order.created"`},
		{&configv1.Filter{Prefix: map[string]string{"subject": "eu/"}}, `spec.filter.prefix.subject: wants "eu/", the event has no attribute subject`},
		{&configv1.Filter{Suffix: map[string]string{"type": ".paid"}}, `spec.filter.suffix.type: wants ".paid", the event has "order.created"`},
		{&configv1.Filter{All: []*configv1.Filter{exact("order.created"), exact("x")}}, `spec.filter.all[1].exact.type: wants "x", the event has "order.created"`},
		{&configv1.Filter{Any: []*configv1.Filter{exact("x"), exact("y")}}, "spec.filter.any: none of its expressions matches"},
		{&configv1.Filter{Not: exact("order.created")}, "spec.filter.not: its expression matches"},
		{&configv1.Filter{Sql: "type = 'x'\n  AND EXISTS region OR Type = 'y'"}, `spec.filter.sql: type = 'x' AND EXISTS region OR Type = 'y' is not true; the event has type "order.created", no region`},
		{&configv1.Filter{Sql: "amount > 3"}, `spec.filter.sql: amount > 3 cannot be evaluated: the event has no such attribute: amount; the event has no amount`},
		{&configv1.Filter{Sql: "1 = 2"}, "spec.filter.sql: 1 = 2 is not true"},
		{&configv1.Filter{Not: &configv1.Filter{Sql: "type = 'order.created'"}}, "spec.filter.not: its expression matches"},
		{&configv1.Filter{Sql: "subject IN (" + strings.Repeat("'é', ", 100) + "a, b, c, d, f, g, h, i)"}, "spec.filter.sql: subject IN (" + strings.Repeat("'é', ", 40) + "'é'… cannot be evaluated: the event has no such attribute: subject; the event has no subject, no a, no b, no c, no d, no f, no g, no h, and 1 more"},
	} {
		f, err := CompileFilter(c.f, "spec.filter")
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Refuses(e, "spec.filter"); got != c.want {
			t.Errorf("%v: %q, want %q", c.f, got, c.want)
		}
	}
}
