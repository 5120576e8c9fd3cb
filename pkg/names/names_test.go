package names

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		check    func(string) error
		ok, nope []string
	}{
		{CheckNamespace,
			[]string{"a", "demo", "a-b", "0", strings.Repeat("x", 32)},
			[]string{"", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", "a\x00", strings.Repeat("x", 33)}},
		{func(s string) error { return CheckName("topic", s) },
			[]string{"a", "orders.created", "A_b-C", "CON", "-a", strings.Repeat("x", 80), strings.Repeat("_", 40)},
			[]string{"", ".", "a.", ".a", "a..b", "../a", "a/b", "a%2Fb", "a b", "a\x00", "a\r\n", "é", "a#", "a?", "*", "a.>", "$SYS", strings.Repeat("x", 81), strings.Repeat("_", 41), strings.Repeat("a.", 27) + "a"}},
		{func(s string) error { return CheckPattern("pattern", s) },
			[]string{"*", ">", "a.*", "*.a", "a.>", "a.*.b", "a"},
			[]string{"", "a*", "*a", "a.>.b", ">>", "a>", "**", ">.a", "a.*b"}},
	} {
		for _, s := range tc.ok {
			if err := tc.check(s); err != nil {
				t.Errorf("%q: %v", s, err)
			}
		}
		for _, s := range tc.nope {
			if tc.check(s) == nil {
				t.Errorf("%q is accepted", s)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a.b", "a", false},
		{"*", "a", true}, {"*", "a.b", false}, {"a.*", "a.b", true}, {"a.*", "a", false},
		{"a.*", "a.b.c", false}, {"*.b", "a.b", true}, {"a.*.c", "a.b.c", true},
		{">", "a", true}, {">", "a.b.c", true}, {"a.>", "a.b", true}, {"a.>", "a.b.c", true},
		{"a.>", "a", false}, {"a.*.>", "a.b", false}, {"a.*.>", "a.b.c", true},
		{"t1", "t1x", false}, {"t1.>", "t1x.a", false}, {"A", "a", false},
	} {
		if got := Match(tc.pattern, tc.name); got != tc.want {
			t.Errorf("Match(%q, %q) = %v", tc.pattern, tc.name, got)
		}
	}
}

// FuzzMatch compares Match with path.Match, segment by segment.
func FuzzMatch(f *testing.F) {
	f.Add("a.*.>", "a.b.c")
	f.Add("*", "a")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if CheckPattern("pattern", pattern) != nil || CheckName("topic", name) != nil {
			return
		}
		p, n := strings.Split(pattern, "."), strings.Split(name, ".")
		want := len(p) == len(n)
		if p[len(p)-1] == ">" {
			want = len(n) >= len(p)
			p = p[:len(p)-1]
			n = n[:min(len(n), len(p))]
		}
		if want {
			want, _ = path.Match(strings.Join(p, "/"), strings.Join(n, "/"))
		}
		if got := Match(pattern, name); got != want {
			t.Errorf("Match(%q, %q) = %v, want %v", pattern, name, got, want)
		}
		if !IsPattern(pattern) && Match(pattern, name) != (pattern == name) {
			t.Errorf("a plain name must match only itself: %q %q", pattern, name)
		}
	})
}

// FuzzPhysical shows that no two names share a physical name, and that every
// store takes it.
func FuzzPhysical(f *testing.F) {
	f.Add("a", "b.c_d", "a", "b_-c__d")
	f.Add("a-b", "c", "a", "b_c")
	f.Fuzz(func(t *testing.T, ns1, n1, ns2, n2 string) {
		for _, ns := range []string{ns1, ns2} {
			if CheckNamespace(ns) != nil {
				return
			}
		}
		for _, n := range []string{n1, n2} {
			if CheckName("topic", n) != nil {
				return
			}
		}
		p1, p2 := Physical(ns1, n1), Physical(ns2, n2)
		if (p1 == p2) != (ns1 == ns2 && n1 == n2) {
			t.Errorf("%s/%s and %s/%s are both %s", ns1, n1, ns2, n2, p1)
		}
		if len(p1) > MaxPhysical-14 || strings.Trim(p1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			t.Errorf("physical name %q is not for every store", p1)
		}
	})
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{"é x": "é x", "a\nb\x1b[2J\x7f": "a?b?[2J?", "\u202eabc": "?abc", "\u009b1m": "?1m", "12345\xff": "12345", "123456789é": "123456789"} {
		if got := Text(in, 10); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

// TestEpoch: a later epoch has a name that every store takes and nothing else has:
// neither another epoch of any topic, nor a topic, nor what a topic of the same name
// left behind.
func TestEpoch(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z0-9_-]{1,127}$`)
	seen := map[string]string{}
	note := func(name, of string) {
		t.Helper()
		if !plain.MatchString(name) {
			t.Errorf("%s: %q is not a name that every store takes", of, name)
		}
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s are both %q", of, other, name)
		}
		seen[name] = of
	}
	long := strings.Repeat("x", MaxName)
	for _, topic := range []string{"a", "a_e2", "a-e2", "a.b", "a_b", long} {
		note(Physical("ns", topic), "topic "+topic)
	}
	adopted := []string{"orders", "a.b", "a%b", "a|b", "a_b", strings.Repeat("y", 249), strings.Repeat("y", 248) + "z", "ns_a_e2"}
	for _, first := range append(adopted, Physical("ns", "a"), Physical("ns", "a_e2"), Physical("ns", "a.b"), Physical(strings.Repeat("n", MaxNamespace), long)) {
		for _, uid := range []string{"one", "two"} {
			for _, number := range []uint32{2, 3, 22, 4294967295} {
				name := Epoch(first, number, uid)
				note(name, fmt.Sprint(first, "/", number, "/", uid))
				if name != Epoch(first, number, uid) {
					t.Errorf("%s is not always the same", name)
				}
			}
		}
	}
	if got := Epoch(Physical("ns", "orders"), 2, "u"); !strings.HasPrefix(got, "ns_orders_e2_") {
		t.Errorf("%q does not tell what it is of", got)
	}
}

// TestMeetAndCovers: both agree with Match, of every pattern and name of few segments.
func TestMeetAndCovers(t *testing.T) {
	var all []string
	level := []string{""}
	for range 4 {
		var next []string
		for _, p := range level {
			for _, seg := range []string{"a", "b", "*", ">"} {
				next = append(next, strings.TrimPrefix(p+"."+seg, "."))
			}
		}
		all, level = append(all, next...), next
	}
	var patterns, plain []string
	for _, p := range all {
		if CheckPattern("topic", p) != nil {
			continue
		}
		if strings.Count(p, ".") < 3 {
			patterns = append(patterns, p)
		}
		if !IsPattern(p) {
			plain = append(plain, p, strings.ReplaceAll(p, "b", "c"))
		}
	}
	for _, a := range patterns {
		for _, b := range patterns {
			meet, covers := false, true
			for _, n := range plain {
				meet = meet || Match(a, n) && Match(b, n)
				covers = covers && (Match(a, n) || !Match(b, n))
			}
			if Meet(a, b) != meet || Covers(a, b) != covers {
				t.Errorf("%s and %s: meet %v, covers %v", a, b, Meet(a, b), Covers(a, b))
			}
		}
	}
}
