package lineage

import (
	"strings"
	"testing"
)

// TestNew: the counter is above all that are known, and no two are one.
func TestNew(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct {
		others []string
		want   string
	}{{nil, "1-"}, {[]string{"1-aa", ""}, "2-"}, {[]string{"3-aa", "7-bb"}, "8-"}, {[]string{"x", "-1-x", "99999999999999999999-x"}, "1-"}} {
		got, err := New(c.others...)
		if err != nil || !strings.HasPrefix(got, c.want) || seen[got] || len(got) != len(c.want)+16 {
			t.Errorf("after %q comes %q, %v", c.others, got, err)
		}
		for _, o := range c.others {
			if !Follows(got, o) || Follows(o, got) {
				t.Errorf("%s and %s follow each other wrongly", got, o)
			}
		}
		seen[got] = true
	}
}

// TestFollows: nobody goes on with a history that does not know of his own.
func TestFollows(t *testing.T) {
	for _, c := range []struct {
		next, old string
		want      bool
	}{
		{"1-a", "", true}, {"1-a", "1-a", true}, {"2-b", "1-a", true}, {"10-b", "9-a", true},
		{"1-b", "1-a", false}, {"1-a", "2-b", false}, {"", "1-a", false}, {"x", "1-a", false}, {"x", "y", false},
	} {
		if got := Follows(c.next, c.old); got != c.want {
			t.Errorf("%q after %q: %v", c.next, c.old, got)
		}
	}
}
