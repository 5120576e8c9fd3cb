package route

import (
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
		{&configv1.Filter{Sql: "type = 'x'"}, "spec.filter.sql: it is not true"},
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
