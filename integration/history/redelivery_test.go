package history

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestRedelivery: repeats within a window when a partition changes hands are
// what is promised, and nothing else is.
func TestRedelivery(t *testing.T) {
	const window = 3
	type run struct {
		owner    string
		from, to int // offsets, both included
	}
	for name, tc := range map[string]struct {
		runs                    []run
		repeats, changes, bound int
		want                    string // part of a violation; "" for none
	}{
		"no change":             {[]run{{"a", 0, 9}}, 0, 0, 0, ""},
		"nothing comes again":   {[]run{{"a", 0, 9}, {"b", 10, 12}}, 0, 1, 3, ""},
		"a window comes again":  {[]run{{"a", 0, 9}, {"b", 7, 12}}, 3, 1, 3, ""},
		"the next life":         {[]run{{"a1", 0, 9}, {"a2", 7, 12}}, 3, 1, 3, ""},
		"twice":                 {[]run{{"a", 0, 9}, {"b", 7, 9}, {"c", 7, 12}}, 6, 2, 6, ""},
		"more than a window":    {[]run{{"a", 0, 9}, {"b", 6, 12}}, 4, 1, 3, "4 deep"},
		"a short term":          {[]run{{"a", 0, 0}, {"b", 0, 9}}, 1, 1, 1, ""},
		"without a change":      {[]run{{"a", 0, 9}, {"a", 9, 9}}, 1, 0, 0, "twice from a"},
		"overtaken by too many": {[]run{{"a", 1, 4}, {"a", 0, 0}}, 0, 0, 0, "5 deep"},
		"an old one, at last":   {[]run{{"a", 0, 9}, {"b", 0, 0}}, 1, 1, 3, "10 deep"},
	} {
		l := New()
		for _, r := range tc.runs {
			for o := r.from; o <= r.to; o++ {
				l.ReceiveAt(strconv.Itoa(o), nil, Place{r.owner, "p", uint64(o)})
			}
		}
		got := l.Redelivery(window)
		if got.Repeats != tc.repeats || got.Changes != tc.changes || got.Bound != tc.bound {
			t.Errorf("%s: %s", name, got)
		}
		if all := strings.Join(got.Violations, "\n"); tc.want == "" && all != "" || !strings.Contains(all, tc.want) {
			t.Errorf("%s: the violations are %q, wanted is %q", name, all, tc.want)
		}
	}
}

// TestDisturb: what was disturbed may come again from whoever had it, by a window of what
// was delivered before, or by as much as the store may have forgotten.
func TestDisturb(t *testing.T) {
	const window = 3
	type run struct{ from, to int }
	for name, tc := range map[string]struct {
		before, after  []run
		back           time.Duration
		disturb        int
		repeats, bound int
		want           string // part of a violation; "" for none
	}{
		"nothing comes again":     {[]run{{0, 9}}, []run{{10, 12}}, 0, 1, 0, 3, ""},
		"a window comes again":    {[]run{{0, 9}}, []run{{7, 12}}, 0, 1, 3, 3, ""},
		"without a disturbance":   {[]run{{0, 9}}, []run{{7, 12}}, 0, 0, 3, 0, "twice from a"},
		"little was delivered":    {[]run{{0, 0}}, []run{{0, 3}}, 0, 1, 1, 1, ""},
		"more than a window":      {[]run{{0, 9}}, []run{{6, 12}}, 0, 1, 4, 3, "4 deep"},
		"twice for one":           {[]run{{0, 9}}, []run{{7, 9}, {7, 9}}, 0, 1, 6, 3, "the bound is 3"},
		"twice for two":           {[]run{{0, 9}}, []run{{7, 9}, {7, 9}}, 0, 2, 6, 3, "the bound is 3"},
		"it begins afterwards":    {nil, []run{{0, 3}, {1, 4}}, 0, 1, 3, 0, "3 repeats, the bound is 0"},
		"the store has forgotten": {[]run{{0, 9}}, []run{{0, 12}}, time.Hour, 1, 10, 10, ""},
	} {
		l := New()
		receive := func(runs []run) {
			for _, r := range runs {
				for o := r.from; o <= r.to; o++ {
					l.ReceiveAt(strconv.Itoa(o), nil, Place{"a", "p", uint64(o)})
				}
			}
		}
		receive(tc.before)
		for range tc.disturb {
			l.Disturb(tc.back)
		}
		receive(tc.after)
		got := l.Redelivery(window)
		if got.Repeats != tc.repeats || got.Bound != tc.bound {
			t.Errorf("%s: %s", name, got)
		}
		if all := strings.Join(got.Violations, "\n"); tc.want == "" && all != "" || !strings.Contains(all, tc.want) {
			t.Errorf("%s: the violations are %q, wanted is %q", name, all, tc.want)
		}
	}
}

// TestCopies: an event may be in as many places as attempts explain.
func TestCopies(t *testing.T) {
	l := New()
	for _, id := range []string{"once", "unknown", "copied"} {
		l.Intend(id, id, 1, nil)
		if id == "unknown" {
			l.Told(id, Unknown)
		}
		l.Told(id, Acked)
	}
	for i, id := range []string{"once", "unknown", "copied", "unknown", "copied"} {
		l.ReceiveAt(id, nil, Place{"a", "p", uint64(i)}) //nolint:gosec // small
	}
	l.ReceiveAt("once", nil, Place{"b", "p", 0})
	if got := l.Copies(); len(got) != 1 || got[0] != "copied" {
		t.Errorf("copies are %v", got)
	}
}
