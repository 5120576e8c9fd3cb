package route

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cesql"
	"github.com/weft-mesh/weft/pkg/event"
)

func exact(k, v string) *configv1.Filter {
	return &configv1.Filter{Exact: map[string]string{k: v}}
}

func TestFilter(t *testing.T) {
	e := &event.Event{ID: "1", Source: "/shop", Type: "com.shop.order.created", Subject: "o/7",
		Ext: []event.Attr{{Name: "region", Value: "eu"}}}
	for name, tc := range map[string]struct {
		f    *configv1.Filter
		want bool
	}{
		"none":             {nil, true},
		"exact":            {exact("region", "eu"), true},
		"exact other":      {exact("region", "us"), false},
		"exact absent":     {exact("zone", "eu"), false},
		"specversion":      {exact("specversion", "1.0"), true},
		"prefix":           {&configv1.Filter{Prefix: map[string]string{"type": "com.shop.", "subject": "o/"}}, true},
		"prefix one fails": {&configv1.Filter{Prefix: map[string]string{"type": "com.shop.", "subject": "p/"}}, false},
		"suffix":           {&configv1.Filter{Suffix: map[string]string{"type": ".created"}}, true},
		"suffix absent":    {&configv1.Filter{Suffix: map[string]string{"dataschema": "x"}}, false},
		"not":              {&configv1.Filter{Not: exact("region", "us")}, true},
		"not absent":       {&configv1.Filter{Not: exact("zone", "x")}, true},
		"all":              {&configv1.Filter{All: []*configv1.Filter{exact("region", "eu"), exact("id", "1")}}, true},
		"all one fails":    {&configv1.Filter{All: []*configv1.Filter{exact("region", "eu"), exact("id", "2")}}, false},
		"any":              {&configv1.Filter{Any: []*configv1.Filter{exact("region", "us"), exact("id", "1")}}, true},
		"any none":         {&configv1.Filter{Any: []*configv1.Filter{exact("region", "us"), exact("id", "2")}}, false},
		"sql":              {&configv1.Filter{Sql: "type LIKE 'com.shop.%' AND region IN ('eu', 'us')"}, true},
		"sql fails":        {&configv1.Filter{Sql: "region = 'us'"}, false},
		"sql absent":       {&configv1.Filter{Sql: "zone != 'x'"}, false},
		"not sql absent":   {&configv1.Filter{Not: &configv1.Filter{Sql: "zone = 'x'"}}, true},
		"nested":           {&configv1.Filter{Any: []*configv1.Filter{{Not: &configv1.Filter{All: []*configv1.Filter{exact("id", "2")}}}}}, true},
	} {
		f, err := CompileFilter(tc.f, "spec.filter")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if f.Match(e, nil) != tc.want {
			t.Errorf("%s: want %v", name, tc.want)
		}
		if n := testing.AllocsPerRun(10, func() { f.Match(e, nil) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestFilterTells: an expression that cannot be evaluated is told of, each time.
func TestFilterTells(t *testing.T) {
	table, err := CompileTable(&configv1.Route{Rules: []*configv1.RouteRule{
		{Filter: &configv1.Filter{Any: []*configv1.Filter{{Sql: "zone = 'x'"}, {Sql: "1 / 0 = 1"}, {Sql: "id = '2'"}}}, To: []*configv1.Destination{{Topic: "a"}}},
		{Filter: &configv1.Filter{Sql: "id = '1'"}, To: []*configv1.Destination{{Topic: "b"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var told []error
	to, ok := table.Resolve(&event.Event{ID: "1", Source: "/s", Type: "t"}, "", func(err error) { told = append(told, err) })
	if to != "b" || !ok || len(told) != 2 || !errors.Is(told[0], cesql.ErrMissingAttribute) || !errors.Is(told[1], cesql.ErrMath) {
		t.Errorf("to %q, told %v", to, told)
	}
}

func TestFilterRefused(t *testing.T) {
	deep := exact("id", "1")
	for range MaxDepth {
		deep = &configv1.Filter{Not: deep}
	}
	wide := &configv1.Filter{}
	for range 20 {
		inner := &configv1.Filter{}
		for range 20 {
			inner.Any = append(inner.Any, exact("id", "1"))
		}
		wide.Any = append(wide.Any, inner)
	}
	for name, tc := range map[string]struct {
		f     *configv1.Filter
		field string
	}{
		"empty":        {&configv1.Filter{}, "f"},
		"two dialects": {&configv1.Filter{Exact: map[string]string{"id": "1"}, Not: exact("id", "2")}, "f"},
		"bad name":     {exact("Bad-Name", "1"), "f.exact"},
		"empty value":  {exact("id", ""), "f.exact.id"},
		"empty child":  {&configv1.Filter{All: []*configv1.Filter{exact("id", "1"), {}}}, "f.all[1]"},
		"sql":          {&configv1.Filter{Any: []*configv1.Filter{{Sql: "a ="}}}, "f.any[0].sql"},
		"sql and more": {&configv1.Filter{Sql: "true", Prefix: map[string]string{"id": "2"}}, "f"},
		"deep":         {deep, "f" + strings.Repeat(".not", MaxDepth)},
		"wide":         {wide, "f.any[12].any[2]"},
	} {
		_, err := CompileFilter(tc.f, "f")
		fe, ok := err.(*FieldError) //nolint:errorlint // the contract is the type itself
		if !ok || fe.Field != tc.field {
			t.Errorf("%s: got %v, want a problem at %s", name, err, tc.field)
		}
	}
}

func TestTable(t *testing.T) {
	table, err := CompileTable(&configv1.Route{Rules: []*configv1.RouteRule{
		{Filter: exact("region", "eu"), To: []*configv1.Destination{{Topic: "eu"}}},
		{Filter: exact("region", "us"), To: []*configv1.Destination{{Topic: "us-1", Weight: 3}, {Topic: "us-2"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ev := func(region, id string) *event.Event {
		return &event.Event{ID: id, Source: "s", Type: "t", Ext: []event.Attr{{Name: "region", Value: region}}}
	}
	if topic, ok := table.Resolve(ev("eu", "1"), "", nil); !ok || topic != "eu" {
		t.Errorf("eu went to %q, %v", topic, ok)
	}
	if _, ok := table.Resolve(ev("asia", "1"), "", nil); ok {
		t.Error("asia matches no rule")
	}
	count := map[string]int{}
	const n = 20000
	for i := range n {
		id := strconv.Itoa(i)
		byKey, _ := table.Resolve(ev("us", "x"), id, nil)
		byID, _ := table.Resolve(ev("us", id), "", nil)
		again, _ := table.Resolve(ev("us", "y"), id, nil)
		if byKey != again || byKey != byID {
			t.Fatalf("key %s went to %s, %s and %s", id, byKey, again, byID)
		}
		count[byKey]++
	}
	if share := float64(count["us-1"]) / n; math.Abs(share-0.75) > 0.02 {
		t.Errorf("us-1 has weight 3 of 4 and got %.3f", share)
	}
	var none *Table
	if _, ok := none.Resolve(ev("eu", "1"), "", nil); ok {
		t.Error("no table matches nothing")
	}
}
