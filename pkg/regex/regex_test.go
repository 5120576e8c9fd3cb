package regex

import (
	"regexp/syntax"
	"testing"
)

// FuzzInstructions: no expression has more instructions than was said, but for what
// begins and ends each, and for the two that an alternative may take.
func FuzzInstructions(f *testing.F) {
	for _, p := range []string{"", "a", "^a+b*?c?$", "(a{10}|[b-d]{3,7}){9}", "(?i)straße{5,}", "a{0}", "a{0,3}", "(?:a*)*", "a|b|cd|ce", `\pL{100}`} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		n, err := Instructions(pattern)
		re, perr := syntax.Parse(pattern, syntax.Perl)
		if (err == nil) != (perr == nil) {
			t.Fatalf("%q: %v, %v", pattern, err, perr)
		}
		if err != nil {
			return
		}
		prog, err := syntax.Compile(re.Simplify())
		if err == nil && int64(len(prog.Inst)) > 2*n+4 {
			t.Errorf("%q has %d instructions, %d was said", pattern, len(prog.Inst), n)
		}
	})
}
