package cesql

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	sdksql "github.com/cloudevents/sdk-go/sql/v2/parser"
	"pgregory.net/rapid"

	"github.com/weft-mesh/weft/pkg/event"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

func TestRefused(t *testing.T) {
	for src, want := range map[string]string{
		"":                                 "must not be empty",
		"type = ":                          "line 1, column 8",
		"type = 'a' #":                     "line 1, column 12",
		"type = 'a":                        "line 1, column 8",
		"a b":                              "line 1, column 3",
		"data.amount > 3":                  "expressions see the attributes of an event, not its data",
		"type = 'a'\nAND Data.b = 1":       "line 2, column 9: token recognition error at: '.'; expressions see the attributes of an event, not its data",
		"UNKNOWN(1)":                       "no such function: UNKNOWN with 1 arguments",
		"LENGTH('a', 'b')":                 "no such function: LENGTH with 2 arguments",
		"4294967296 = id":                  "4294967296 is not an Integer of 32 bits",
		"type LIKE id":                     "line 1",
		"\xff":                             "UTF-8",
		"a IN ()":                          "line 1",
		strings.Repeat("a", MaxLength+1):   "4097 bytes, an expression may have 4096",
		strings.Repeat("a", 65) + " = 'b'": "is not the name of an attribute",
		strings.Repeat("(", MaxDepth+1) + "a" + strings.Repeat(")", MaxDepth+1): "may nest 32 deep",
		strings.Repeat("NOT ", MaxDepth+1) + "a":                                "may nest 32 deep",
		"a" + strings.Repeat("+1 + a", MaxTokens/2):                             "512 names",
	} {
		if _, err := Compile(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", src, err, want)
		}
	}
	for _, src := range []string{
		strings.Repeat("(", MaxDepth) + "a" + strings.Repeat(")", MaxDepth),
		strings.Repeat("NOT ", MaxDepth) + "a",
		"a" + strings.Repeat(" AND a", MaxTokens/2-1),
		"a" + strings.Repeat(" + a", MaxTokens/2-1),
	} {
		if _, err := Compile(src); err != nil {
			t.Errorf("%.60q: %v", src, err)
		}
	}
}

// TestMatch: what the specification leaves to an implementation's care.
func TestMatch(t *testing.T) {
	e := full()
	e.Subject = "größe/naïve"
	for src, want := range map[string]struct {
		is  bool
		err error
	}{
		"TYPE = 'com.example.FullEvent'":              {true, nil},
		"subject LIKE 'gr_ße/na%'":                    {true, nil},
		"subject LIKE 'gr__ße/na%'":                   {false, nil},
		"subject LIKE '%\\_%'":                        {false, nil},
		"'%a%' LIKE '%' AND '%%' LIKE '_%'":           {true, nil},
		"subject LIKE '%ö_e%a_v_'":                    {true, nil},
		"LENGTH(subject) = 11":                        {true, nil},
		"LEFT(subject, 3) = 'grö'":                    {true, nil},
		"RIGHT(subject, 3) = 'ïve'":                   {true, nil},
		"SUBSTRING(subject, 3, 2) = 'öß'":             {true, nil},
		"SUBSTRING(subject, 1, -1) = ''":              {false, ErrFunction},
		"SUBSTRING(subject, 1, 2147483647) = subject": {true, nil},
		"missing = 'a'":                               {false, ErrMissingAttribute},
		"NOT missing = 'a'":                           {false, ErrMissingAttribute},
		"EXISTS missing OR exint > 41":                {true, nil},
		"exint / 0 = 1":                               {false, ErrMath},
		"(0 - 2147483647 - 1) / -1 < 0":               {true, nil},
		"exbool":                                      {true, nil},
		"exstring":                                    {false, ErrCast},
		"1":                                           {true, nil},
		"exstring IN ('a', 'exstring')":               {true, nil},
		"exint IN (41, 42)":                           {true, nil},
		"exint = '042'":                               {false, nil},
		"exint = +42":                                 {true, nil},
		"'2147483648' > 1":                            {false, ErrCast},
		"'-2147483648' < 1":                           {true, nil},
		"'-2147483649' < 1":                           {false, ErrCast},
		"'99999999999999999999999999999' < 1":         {false, ErrCast},
		"'+-1' < 1":                                   {false, ErrCast},
		`exstring = "exstring"`:                       {true, nil},
		`'it\'s' = "it's"`:                            {true, nil},
	} {
		x, err := Compile(src)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if got, err := x.Match(&e); got != want.is || !errors.Is(err, want.err) || x.String() != src {
			t.Errorf("%s: %v %v, want %v %v", src, got, err, want.is, want.err)
		}
	}
}

// expression draws an expression of the whole language, over ASCII. Texts have no %, which
// the SDK takes for that of a pattern: to it, '%%' is not LIKE '%'.
func expression(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		lit := func(of string) string { return "'" + rapid.StringMatching(of+"{0,4}").Draw(t, "literal") + "'" }
		if depth == 0 {
			switch rapid.IntRange(0, 3).Draw(t, "atom") {
			case 0:
				return rapid.SampledFrom([]string{"id", "type", "subject", "ext", "num", "yes", "missing"}).Draw(t, "attribute")
			case 1:
				return lit("[a-c_]")
			case 2:
				return fmt.Sprint(rapid.Int32Range(-3, 3).Draw(t, "integer"))
			}
			return rapid.SampledFrom([]string{"TRUE", "false"}).Draw(t, "boolean")
		}
		sub := func() string { return expression(rapid.IntRange(0, depth-1).Draw(t, "depth")).Draw(t, "operand") }
		switch rapid.IntRange(0, 7).Draw(t, "operation") {
		case 0:
			return "NOT (" + sub() + ")"
		case 1:
			return "(" + sub() + ") LIKE " + lit("[a-c_%]")
		case 2:
			return "(" + sub() + ") IN (" + sub() + ", " + sub() + ")"
		case 3:
			return "EXISTS ext"
		case 4:
			f := rapid.SampledFrom([]string{"INT(%s)", "BOOL(%s)", "STRING(%s)", "IS_INT(%s)", "IS_BOOL(%s)", "ABS(%s)", "LENGTH(%s)", "UPPER(%s)", "LOWER(%s)", "TRIM(%s)", "LEFT(%s, 2)", "RIGHT(%s, 1)", "SUBSTRING(%s, -2)", "SUBSTRING(%s, 1, 2)", "CONCAT(%s, 'b', num)", "CONCAT_WS(%s, 'x', 1, TRUE)"}).Draw(t, "function")
			return fmt.Sprintf(f, sub())
		}
		return "(" + sub() + ") " + rapid.SampledFrom([]string{"AND", "or", "XOR", "+", "-", "*", "/", "%", "=", "!=", "<>", "<", "<=", ">", ">="}).Draw(t, "operator") + " (" + sub() + ")"
	})
}

// TestAsTheSDK: the SDK's own evaluation gives the same, value and error.
func TestAsTheSDK(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-c_]{1,4}`)
		e := event.Event{ID: word.Draw(t, "id"), Source: "/s", Type: word.Draw(t, "type"), Subject: rapid.StringMatching(`[a-c]{0,4}`).Draw(t, "subject"),
			Ext: []event.Attr{{Name: "ext", Value: word.Draw(t, "ext")}, {Name: "num", Value: fmt.Sprint(rapid.Int32Range(-3, 3).Draw(t, "num"))}, {Name: "yes", Value: "true"}}}
		src := expression(3).Draw(t, "expression")
		x, err := Compile(src)
		theirs, terr := sdksql.Parse(src)
		if (err == nil) != (terr == nil) {
			t.Fatalf("%s: %v, the SDK: %v", src, err, terr)
		}
		if err != nil {
			return
		}
		got, err := x.eval(&e)
		want, werr := theirs.Evaluate(toSDK(&e))
		if (err == nil) != (werr == nil) {
			t.Fatalf("%s of %+v: %v, the SDK: %v", src, e, err, werr)
		}
		if i, ok := want.(int32); ok {
			want = int(i)
		}
		if err == nil && got != valueOf(want) {
			t.Fatalf("%s of %+v: %+v, the SDK: %+v", src, e, got, want)
		}
	})
}

// dear are expressions that cost as much as they can, of an event that is as large
// as it can be.
func dear() (map[string]string, *event.Event) {
	e := full()
	e.Subject = strings.Repeat("a", event.MaxAttributeValue)
	long := strings.Repeat("a", 1500)
	return map[string]string{
		"like":     "subject LIKE '%" + long + "_b%'",
		"likes":    "subject LIKE '%" + strings.Repeat("a_", 900) + "b%'",
		"concat":   "CONCAT(" + strings.Repeat("subject,", 200) + "'a') = 'b'",
		"nested":   strings.Repeat("CONCAT(subject,", 30) + "subject" + strings.Repeat(")", 30) + " = 'b'",
		"in":       "subject IN (" + strings.Repeat("UPPER(subject),", 90) + "'a')",
		"lengths":  "LENGTH(subject)" + strings.Repeat(" + LENGTH(subject)", 90) + " = 1",
		"together": "subject = 'a'" + strings.Repeat(" OR subject LIKE '%b%'", 90),
	}, &e
}

// TestCost: whatever costs more than one event may cost ends with an error, and
// what it has cost by then is bounded.
func TestCost(t *testing.T) {
	sources, e := dear()
	for name, src := range sources {
		x, err := Compile(src)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := &scope{event: e, steps: MaxSteps}
		v, err := x.root.eval(s)
		if v.b || s.steps < -MaxLength {
			t.Errorf("%s: %v, %d steps are left", name, v, s.steps)
		}
		if name != "together" && name != "in" && !errors.Is(err, ErrCost) {
			t.Errorf("%s costs %d steps: %v", name, MaxSteps-s.steps, err)
		}
	}
}

// TestNoAllocation: what compares attributes allocates nothing.
func TestNoAllocation(t *testing.T) {
	e := full()
	x, err := Compile("type LIKE 'com.%' AND subject = 'topic' AND exint > 41 AND source IN ('/a', '/mock/source') AND EXISTS exbool AND LENGTH(id) < 20 AND NOT id = 'a'")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = x.Match(&e) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMatch(b *testing.B) {
	e := full()
	x, err := Compile("type LIKE 'com.example.%' AND subject = 'topic' AND exint > 41")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if ok, _ := x.Match(&e); !ok {
			b.Fatal("does not match")
		}
	}
}

func BenchmarkMatchSDK(b *testing.B) {
	e := full()
	x, err := sdksql.Parse("type LIKE 'com.example.%' AND subject = 'topic' AND exint > 41")
	if err != nil {
		b.Fatal(err)
	}
	theirs := toSDK(&e)
	b.ReportAllocs()
	for b.Loop() {
		if v, _ := x.Evaluate(theirs); v != true {
			b.Fatal("does not match")
		}
	}
}

func BenchmarkDear(b *testing.B) {
	sources, e := dear()
	for name, src := range sources {
		x, err := Compile(src)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, _ = x.Match(e)
			}
		})
	}
}

// BenchmarkCompile: the dearest to parse.
func BenchmarkCompile(b *testing.B) {
	for name, src := range map[string]string{
		"usual":  "type LIKE 'com.example.%' AND subject = 'topic' AND exint > 41",
		"deep":   strings.Repeat("(", MaxDepth) + "a" + strings.Repeat(")", MaxDepth),
		"chain":  "a" + strings.Repeat(" AND a", MaxTokens/2-1),
		"nots":   strings.Repeat("NOT ", MaxDepth) + "a" + strings.Repeat(" IN (a, a) = a LIKE 'b'", 40),
		"mixed":  "a" + strings.Repeat(" OR a + a * a = a", 60),
		"nested": strings.Repeat("a IN (1, (", 15) + "a" + strings.Repeat("))", 15),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := parse(src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// FuzzCompile: whatever is written is refused or can be evaluated, within bounds.
func FuzzCompile(f *testing.F) {
	for _, src := range []string{"type = 'a' AND NOT (subject LIKE 'a%_b' OR exint IN (1, -2))", "SUBSTRING(id, 1, -1)", "ABS(", "NOT NOT - - a", `"\"" = '\''`, "a <> b XOR EXISTS c", "é = 1 #"} {
		f.Add(src, "größe")
	}
	f.Fuzz(func(t *testing.T, src, subject string) {
		x, err := Compile(src)
		if err != nil {
			if err.Error() == "" {
				t.Error("a refusal without a reason")
			}
			return
		}
		e := full()
		e.Subject = subject
		if ok, err := x.Match(&e); ok && err != nil {
			t.Errorf("%q matches with %v", src, err)
		}
	})
}
