package names

import (
	"strings"
	"testing"
)

func TestMatchSubject(t *testing.T) {
	for _, tc := range []struct {
		pattern, subject string
		want             bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/B", false}, {"a/b", "a/b/", false}, {"a/b", "/a/b", false}, {"a/b", "a//b", false}, {"a/b", "a%2Fb", false}, {"a/b", "a/./b", false},
		{"a/*", "a/b", true}, {"a/*", "a/b/c", false}, {"a/*", "a", false}, {"a/*/c", "a//c", true}, {"*", "a", true}, {"*", "", false}, {"a/*", "a/*", true},
		{"a/>", "a/b", true}, {"a/>", "a/b/c", true}, {"a/>", "a", false}, {">", "a/b", true}, {">", "", false}, {"a/>", "ab/c", false},
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"a", "a\u0301", false}, {"\u00e1", "a\u0301", false},
	} {
		if got := MatchSubject(tc.pattern, tc.subject); got != tc.want || CheckSubjectPattern(tc.pattern) != nil {
			t.Errorf("%q, %q: %v", tc.pattern, tc.subject, got)
		}
	}
	for _, bad := range []string{"a*", ">/a", "a/b>", "**", "\xff", strings.Repeat("a", MaxSubjectPattern+1)} {
		if CheckSubjectPattern(bad) == nil {
			t.Errorf("%.20q is accepted", bad)
		}
	}
}
