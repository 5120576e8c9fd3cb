package schema

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/event"
)

// TestMeter: whatever a schema is made of, data that would take it beyond the bound are
// refused before they are judged, and the answer names what it is that takes it.
func TestMeter(t *testing.T) {
	list := func(n int, of string) string { return "[" + strings.TrimSuffix(strings.Repeat(of+",", n), ",") + "]" }
	numbered := func(n int, of string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, ","+of, i)
		}
		return b.String()[1:]
	}
	object := func(n int) string { return "{" + numbered(n, `"k%d":1`) + "}" }
	text := strings.Repeat("a", 200_000)
	for name, tc := range map[string]struct{ schema, good, bad, rule string }{
		"a pattern":                {`{"properties": {"a": {"pattern": "^(?:a{1000})*$"}}}`, `{"a": "` + text[:1000] + `"}`, `{"a": "` + text + `"}`, "/properties/a/pattern"},
		"of a text beside":         {`{"properties": {"a": {"pattern": "^(?:a{1000})*$"}}}`, `{"a": "` + text[:1000] + `", "b": "` + text + `"}`, `{"a": "` + text + `"}`, "/properties/a/pattern"},
		"patterns of names":        {`{"patternProperties": {"^(?:a{1000})*$": true}}`, `{"a": 1}`, `{"` + text + `": 1}`, "/patternProperties"},
		"names in a pattern":       {`{"propertyNames": {"pattern": "a{1000}|b{1000}|k"}}`, `{"k": 1}`, `{"` + text + `": 1}`, "/propertyNames/pattern"},
		"required":                 {`{"items": {"anyOf": [true, {"required": [` + numbered(2000, `"n%d"`) + `]}]}}`, `[{}]`, list(1000, `{}`), "/items/anyOf/1/required"},
		"dependentRequired":        {`{"items": {"dependentRequired": {"x": [` + numbered(2000, `"n%d"`) + `]}}}`, `[{}]`, list(1000, `{}`), "/items/required"},
		"dependencies":             {`{"$schema": "http://json-schema.org/draft-07/schema", "items": {"dependencies": {"x": [` + numbered(2000, `"n%d"`) + `]}}}`, `[{}]`, list(1000, `{}`), "/items/required"},
		"members, again and again": {`{"allOf": ` + list(1000, `{"additionalProperties": true}`) + `}`, `{}`, object(2000), "/allOf"},
		"additionalProperties":     {`{"additionalProperties": {"allOf": ` + list(1000, `{"type": "integer"}`) + `}}`, object(10), object(2000), "/additionalProperties/allOf"},
		"unevaluatedProperties":    {`{"unevaluatedProperties": {"allOf": ` + list(1000, `{"type": "integer"}`) + `}}`, object(10), object(2000), "/unevaluatedProperties/allOf"},
		"items, in a list":         {`{"items": {"anyOf": ` + list(100, `{"type": "integer"}`) + `}}`, list(10, "1"), list(20_000, "1"), "/items/anyOf"},
		"items of drafts before":   {`{"$schema": "http://json-schema.org/draft-07/schema", "items": [true], "additionalItems": {"anyOf": ` + list(100, `{"type": "integer"}`) + `}}`, list(10, "1"), list(20_000, "1"), "/additionalItems/anyOf"},
		"contains":                 {`{"contains": {"anyOf": ` + list(100, `{"type": "integer"}`) + `}}`, list(10, "1"), list(20_000, "1"), "/contains/anyOf"},
		"by their place":           {`{"prefixItems": [{"pattern": "^(?:a{1000})*$"}]}`, `["` + text[:1000] + `"]`, `["` + text + `"]`, "/prefixItems/0/pattern"},
		"text, again and again":    {`{"allOf": ` + list(1000, `{"minLength": 1}`) + `}`, `"a"`, `"` + text + `"`, "/allOf"},
		"a constant":               {`{"items": {"anyOf": [true, {"const": "` + text[:2000] + `"}]}}`, `[1]`, list(20_000, "1"), "/items/anyOf/1/enum"},
		"values":                   {`{"items": {"anyOf": [true, {"enum": ["` + text[:2000] + `"]}]}}`, `[1]`, list(20_000, "1"), "/items/anyOf/1/enum"},
		"unique items":             {`{"allOf": ` + list(1000, `{"uniqueItems": true}`) + `}`, `["a", {"a": ["b"]}]`, `["` + text + `", {"b": []}]`, "/allOf/0/uniqueItems"},
		"numbers":                  {`{"items": {"anyOf": ` + list(10, `{"multipleOf": 3}`) + `}}`, `[3]`, list(5000, "3e999"), "/items/anyOf"},
		"depth":                    {`{"items": {"$ref": "#"}, "anyOf": ` + list(5, `{"type": "array"}`) + `}`, `[[]]`, strings.Repeat("[", 60) + list(20_000, "[]") + strings.Repeat("]", 60), "/anyOf"},
		"a tree":                   {`{"oneOf": [{"properties": {"x": {"$ref": "#"}}, "required": ["b"]}, {"properties": {"x": {"$ref": "#"}}, "required": ["a"]}]}`, `{"b": 1}`, strings.Repeat(`{"x":`, 40) + `{}` + strings.Repeat(`}`, 40), "/oneOf"},
	} {
		s, err := Compile(spec(tc.schema))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := s.Check(&event.Event{Data: []byte(tc.good)}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err = s.Check(&event.Event{Data: []byte(tc.bad)})
		var m *Mismatch
		if !errors.As(err, &m) || !strings.Contains(m.Reason, "too much work") || !strings.Contains(m.Reason, " by #"+tc.rule+" of the schema") {
			t.Errorf("%s: %v, expected #%s", name, err, tc.rule)
		}
	}
}

// TestPatterns: the regular expressions of a schema have a bound together, whatever few
// characters they repeat.
func TestPatterns(t *testing.T) {
	list := strings.TrimSuffix(strings.Repeat(`{"pattern": "a{1000}"},`, 30), ",")
	if _, err := Compile(spec(`{"anyOf": [` + list + `]}`)); err != nil {
		t.Error(err)
	}
	list = ""
	for i := range 70 {
		list += fmt.Sprintf(`{"pattern": "a{%d}"},`, 1000-i)
	}
	list = strings.TrimSuffix(list, ",")
	for _, doc := range []string{
		`{"anyOf": [` + list + `]}`,
		`{"patternProperties": {"` + strings.Repeat("(?:[a-f]{10}|bc?){99}", 70) + `": true}}`,
		`{"pattern": "` + strings.Repeat("a{1000}", 70) + `"}`,
	} {
		if _, err := Compile(spec(doc)); err == nil || !strings.Contains(err.Error(), "instructions together") {
			t.Errorf("%.100s: %v", doc, err)
		}
	}
	if _, err := Compile(spec(`{"pattern": "(a{1000}){1000}"}`)); err == nil {
		t.Error("a repeated repeat is compiled")
	}
}

// TestCompileBounds: a schema that has the library compare very many values with each
// other is refused before it does.
func TestCompileBounds(t *testing.T) {
	lists := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, ",[%d]", 1-2*(i&1)) // hashes do not tell signs apart
		}
		return "[" + b.String()[1:] + "]"
	}
	for _, doc := range []string{`{"enum": %s}`, `{"required": %s}`, `{"type": %s}`, `{"properties": {"a": {"enum": %s}}}`, `{"allOf": [{"required": %s}]}`,
		`{"dependentRequired": {"a": %s}}`, `{"dependentRequired": {"allOf": %s}}`, `{"dependencies": {"items": %s}}`} {
		if _, err := Compile(spec(fmt.Sprintf(doc, lists(10_000)))); err == nil || !strings.Contains(err.Error(), " has more than 64 lists and objects") {
			t.Errorf("%s: %.200v", doc, err)
		}
	}
	for _, doc := range []string{`{"enum": ` + lists(64) + `}`, `{"examples": ` + lists(10_000) + `}`, `{"anyOf": [` + strings.Repeat(`{"type": "string"},`, 1000) + `{}]}`} {
		if _, err := Compile(spec(doc)); err != nil {
			t.Errorf("%.100s: %v", doc, err)
		}
	}
}

// TestFormat: format is an annotation, in the drafts too where the library would judge.
func TestFormat(t *testing.T) {
	s, err := Compile(spec(`{"$schema": "http://json-schema.org/draft-07/schema", "items": {"format": "regex"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(&event.Event{Data: []byte(`["("]`)}); err != nil {
		t.Error(err)
	}
}
