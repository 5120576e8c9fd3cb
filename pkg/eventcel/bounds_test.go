package eventcel

import (
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/fuzztest"
)

// TestBounds: what an expression makes of an event and what it reads for it is bounded,
// whatever functions it is made of: none of these would be beyond the limit by how many
// calls it makes.
func TestBounds(t *testing.T) {
	a64 := strings.Repeat("a", 64)
	nested := "'" + a64 + "'" + strings.Repeat(".replace('a', '"+a64+"')", 6)
	data := `{"s":"` + strings.Repeat("1", 200_000) + `","l":[` + strings.TrimSuffix(strings.Repeat(`"a",`, 2000), ",") + `],"deep":` + strings.Repeat("[", 20) + strings.TrimSuffix(strings.Repeat(`"a",`, 20_000), ",") + strings.Repeat("]", 20) +
		`,"many":"` + strings.Repeat("a{1000}", 100) + `","mid":"` + strings.Repeat("a", 6000) + `","long":"` + strings.Repeat("a", 2000) + `"}`
	const dear, large, pattern, comparison = "cost limit", "more than 1 MiB of text", "more than 256 instructions", "a comparison is beyond the cost limit"
	// Lists of lists that are eight times one value, and a list that is eight times as long each time.
	shared := "[[1]]" + strings.Repeat(".map(x, [x, x, x, x, x, x, x, x])", 7)
	long := "[data.l]" + strings.Repeat(".map(x, x + x + x + x + x + x + x + x)", 4)
	for src, want := range map[string]string{
		nested + ".size()":                                                                     large,
		"data.long.replace('', data.long).size()":                                              large,
		"data.long.replace('a', data.long, 1000).size()":                                       large,
		"data.l.join(data.long).size()":                                                        large,
		"'%s'.format([[" + strings.Repeat("data.long,", 300) + "''] ])":                        large,
		"data.l.map(x, '%s'.format([data.l])).size()":                                          dear,
		"data.l.map(x, data.s.reverse()).size()":                                               dear,
		"data.l.map(x, data.s.lowerAscii()).size()":                                            dear,
		"data.l.map(x, data.s.indexOf('b')).size()":                                            dear,
		"data.l.map(x, data.s.lastIndexOf('b')).size()":                                        dear,
		"data.mid.indexOf(data.mid)":                                                           "compare very long texts",
		"data.l.map(x, data.l.join().indexOf(data.l.join() + 'b')).size()":                     dear,
		"data.l.map(x, data.s.split('')).size()":                                               dear,
		"data.l.map(x, strings.quote(data.s)).size()":                                          dear,
		"data.l.exists(x, int(data.s) == 1)":                                                   dear,
		"data.l.exists(x, double(data.s) == 1.0)":                                              dear,
		"data.l.exists(x, bytes(data.s) == b'')":                                               dear,
		"data.l.exists(x, data.s + x == '')":                                                   dear,
		"data.l.exists(x, data.s < data.s)":                                                    dear,
		"data.l.exists(x, data.deep != data.deep)":                                             dear,
		"data.l.exists(x, data.deep in [[1], [2]])":                                            dear,
		"data.l.exists(x, 'b' in data.l)":                                                      dear,
		"data.l.map(x, timestamp('2020-01-01T00:00:00Z').getFullYear('Europe/Berlin')).size()": dear,
		shared + ".all(x, x == x)":                                                             comparison,
		shared + ".all(x, x != x)":                                                             comparison,
		shared + ".all(x, x in [x])":                                                           comparison,
		shared + ".all(x, ['a', x].join() == '')":                                              large,
		long + ".size()":                                                                       dear,
		"event.subject.matches(data.many)":                                                     pattern,
		"matches(event.subject, data.many)":                                                    pattern,
		"event.subject.matches(data.long)":                                                     pattern,
	} {
		tr, err := CompileTransform(transform(nil, src))
		if err != nil {
			t.Errorf("%.100s: %v", src, err)
			continue
		}
		e := sample()
		e.Data = []byte(data)
		if n := fuzztest.Allocated(func() { _, err = tr.Apply(e) }); n > 64<<20 {
			t.Errorf("%.100s: %d MiB", src, n>>20)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v, expected %q", src, err, want)
		}
	}
	// A condition has only the attributes, and what it is written of.
	c, err := CompileCondition(nested + ".size() > 0")
	if err != nil {
		t.Fatal(err)
	}
	if n := fuzztest.Allocated(func() { _, err = c.Holds(Access{Event: sample()}) }); err == nil || n > 1<<20 {
		t.Errorf("a condition: %v, %d bytes", err, n)
	}
}

// TestWithinBounds: what is ordinary is not near them.
func TestWithinBounds(t *testing.T) {
	note := strings.Repeat("line of text\n", 5000)
	e := sample()
	e.Data = []byte(`{"note":"` + strings.ReplaceAll(note, "\n", `\n`) + `","tags":["a","b"],"at":"2026-01-02T03:04:05Z"}`)
	for src, want := range map[string]string{
		"{'n': data.note.replace('text', 'words').size()}":  `{"n":70000}`,
		"data.tags.join(', ')":                              `"a, b"`,
		"'%s has %d: %.2f'.format([event.type, 3, 0.5])":    `"order.created has 3: 0.50"`,
		"data.note.split('\\n').size()":                     "5001",
		"data.tags.exists(t, t in ['b', 'c'])":              "true",
		"timestamp(data.at).getHours('Europe/Berlin')":      "4",
		"event.type.matches('^' + data.tags[1] + '?order')": "true",
		"matches(event.type, event.region + '|order')":      "true",
		"event.type.replace('o', '0', 1)":                   `"0rder.created"`,
		"data.tags.map(t, t.upperAscii()).join()":           `"AB"`,
	} {
		tr, err := CompileTransform(transform(nil, src))
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if got, err := tr.Apply(e); err != nil || string(got.Data) != want {
			t.Errorf("%s: %v, %+v", src, err, got)
		}
	}
}
