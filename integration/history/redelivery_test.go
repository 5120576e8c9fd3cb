package history

import (
	"strconv"
	"strings"
	"testing"
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
