package position

import (
	"math"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/store"
)

const uid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"

// TestStable holds the text of version 1: tokens that were given out must be
// understood for ever.
func TestStable(t *testing.T) {
	for text, want := range map[string]Token{
		"AWunuBCdrUHRgLQAwE_UMMgBBwA":                    {uid, 1, store.Position{Offset: 7}},
		"AWunuBCdrUHRgLQAwE_UMMgCrAIAYnJva2VyLWEvMw":     {uid, 2, store.Position{Partition: "broker-a/3", Offset: 300}},
		"AWunuBCdrUHRgLQAwE_UMMj_____D____________wEFcA": {uid, math.MaxUint32, store.Position{Partition: "p", Offset: math.MaxUint64, Minor: 5}},
	} {
		if got := want.String(); got != text {
			t.Errorf("%+v is %q, was %q", want, got, text)
		}
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := Token{uid, 1, store.Position{Partition: "p", Offset: 9}}.String()
	for _, s := range []string{"", "x", good[:10], good + "=", "Ag" + good[2:], strings.Repeat("A", 600), good[:len(good)-1] + "!", "\x00", good[:9] + "\n" + good[9:], good + "\r\n"} {
		if _, err := Parse(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

// FuzzParse: what parses has exactly one text.
func FuzzParse(f *testing.F) {
	f.Add(Token{uid, 1, store.Position{Partition: "broker-a/3", Offset: 300}}.String())
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			return
		}
		if got := tok.String(); got != s {
			t.Errorf("%q parses to %+v, whose text is %q", s, tok, got)
		}
	})
}
