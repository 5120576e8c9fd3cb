package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

func spec(document string) *configv1.Schema {
	return &configv1.Schema{Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: document}}}
}

const order = `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "required": ["id", "lines"], "additionalProperties": false,
	"properties": {"id": {"type": "string", "pattern": "^o-"}, "total": {"type": "number", "minimum": 0}, "a/b~c": {"type": "string"},
		"lines": {"type": "array", "items": {"$ref": "#/$defs/line"}}},
	"$defs": {"line": {"type": "object", "properties": {"sku": {"type": "string"}, "n": {"type": "integer"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/line"}}}}}}`

// TestCheck: data conform, or the error says where they do not.
func TestCheck(t *testing.T) {
	s, err := Compile(spec(order))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ media, data, path, says string }{
		{"", `{"id": "o-1", "lines": []}`, "-", ""},
		{"application/json; charset=utf-8", `{"id": "o-1", "lines": [{"sku": "x", "n": 1e2}]}`, "-", ""},
		{"application/vnd.shop+json", `{"id": "o-1", "lines": [{"parts": [{"n": 1}]}], "total": 0.5}`, "-", ""},
		{"text/plain", `{"id": "o-1", "lines": []}`, "", "text/plain"},
		{"application/avro", `{}`, "", "application/avro"},
		{"", ``, "", "none"},
		{"", `{"id": "o-1", "lines": []`, "", "no JSON"},
		{"", `{"id": "o-1", "lines": []} x`, "", "no JSON"},
		{"", `[]`, "", "want object"},
		{"", `{"id": "1", "lines": []}`, "/id", "pattern"},
		{"", `{"id": "o-1"}`, "", "lines"},
		{"", `{"id": "o-1", "lines": [{}, {"parts": [{"n": "x"}]}]}`, "/lines/1/parts/0/n", "want integer"},
		{"", `{"id": "o-1", "lines": [], "a/b~c": 1}`, "/a~1b~0c", "want string"},
		{"", `{"id": "o-1", "lines": [], "other": 1}`, "", "other"},
		{"", strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), "", "64 deep"},
		{"", `{"total": 1e9999}`, "", "exponent"},
		{"", `{"total": ` + strings.Repeat("1", maxNumber+1) + `}`, "", "64 characters"},
		{"", `[` + strings.Repeat("1,", maxValues) + `1]`, "", "65536 values"},
	} {
		err := s.Check(&event.Event{DataContentType: tc.media, Data: []byte(tc.data)})
		var m *Mismatch
		switch errors.As(err, &m); {
		case tc.path == "-" && err != nil:
			t.Errorf("%s: %v", tc.data, err)
		case tc.path != "-" && (m == nil || m.Path != tc.path || !strings.Contains(m.Reason, tc.says)):
			t.Errorf("%.100s: %v", tc.data, err)
		}
	}
}

// TestCompileRefuses: what fetches, loops or takes time without bound is no schema.
func TestCompileRefuses(t *testing.T) {
	var doubling strings.Builder // each of thirty parts leads to the next twice
	doubling.WriteString(`{"$ref": "#/$defs/a0", "$defs": {`)
	for i := range 30 {
		fmt.Fprintf(&doubling, `"a%d": {"allOf": [{"$ref": "#/$defs/a%d"}, {"$ref": "#/$defs/a%d"}]},`, i, i+1, i+1)
	}
	doubling.WriteString(`"a30": {"type": "string"}}}`)
	for name, tc := range map[string]struct{ document, says string }{
		"no JSON":                 {`{`, "no JSON"},
		"no schema":               {`{"type": "text"}`, "no JSON Schema"},
		"a regular expression":    {`{"pattern": "("}`, "no JSON Schema"},
		"fetched over HTTP":       {`{"$ref": "http://127.0.0.1:1/schema"}`, "nothing is fetched"},
		"of the metadata service": {`{"properties": {"a": {"$ref": "http://169.254.169.254/latest"}}}`, "nothing is fetched"},
		"of a file":               {`{"$ref": "file:///etc/passwd"}`, "nothing is fetched"},
		"by its id":               {`{"$id": "http://127.0.0.1:1/a", "$ref": "b"}`, "nothing is fetched"},
		"a schema of schemas":     {`{"$schema": "http://127.0.0.1:1/meta"}`, "nothing is fetched"},
		"a ring":                  {`{"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}`, "leads back"},
		"a dynamic $ref":          {`{"$dynamicAnchor": "x", "properties": {"a": {"$dynamicRef": "#x"}}}`, "$dynamicRef"},
		"doubling":                {doubling.String(), "too many ways"},
		"deep":                    {strings.Repeat(`{"not":`, 100) + `{}` + strings.Repeat(`}`, 100), "deep"},
		"a huge number":           {`{"multipleOf": 1e-999999999}`, "exponent"},
	} {
		_, err := Compile(spec(tc.document))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != "spec.json.document" || !strings.Contains(fe.Reason, tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Compile(&configv1.Schema{}); err == nil {
		t.Error("a format that is not known")
	}
	s := spec(`{}`)
	s.Mode = 99
	if _, err := Compile(s); err == nil {
		t.Error("a mode that is not known")
	}
}

// TestWork: data that would take time exponential in their depth are refused, and
// others of the same schema are not.
func TestWork(t *testing.T) {
	s, err := Compile(spec(`{"anyOf": [{"properties": {"x": {"$ref": "#"}}, "required": ["a"]}, {"properties": {"x": {"$ref": "#"}}, "required": ["b"]}, {"type": "string"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	nest := func(n int) string { return strings.Repeat(`{"b":1,"x":`, n) + `"end"` + strings.Repeat(`}`, n) }
	if err := s.Check(&event.Event{Data: []byte(nest(5))}); err != nil {
		t.Error(err)
	}
	if err := s.Check(&event.Event{Data: []byte(nest(40))}); err == nil || !strings.Contains(err.Error(), "too much work") {
		t.Errorf("deep data: %v", err)
	}
	// A tree is judged in one way at each place, however deep.
	s, err = Compile(spec(`{"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(&event.Event{Data: []byte(strings.Repeat(`{"left":`, 60) + `{}` + strings.Repeat(`}`, 60))}); err != nil {
		t.Error(err)
	}
}

// TestIncompatible: what may change and what may not. Where a change is found to be
// compatible, the examples bear it out.
func TestIncompatible(t *testing.T) {
	object := func(rest string) string { return `{"type": "object", "additionalProperties": false, ` + rest + `}` }
	a := object(`"properties": {"a": {"type": "string"}}`)
	for name, tc := range map[string]struct {
		old, now          string
		backward, forward string // what is said; "" is compatible
	}{
		"the same":                {order, order, "", ""},
		"annotations":             {`{"title": "x"}`, `{"description": "y"}`, "", ""},
		"an optional property":    {a, object(`"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}`), "", "/properties/b"},
		"of open objects":         {`{"properties": {}}`, `{"properties": {"b": {"type": "integer"}}}`, "/properties/b", ""},
		"a required property":     {a, object(`"required": ["a"], "properties": {"a": {"type": "string"}}`), `"a" is required`, ""},
		"a property gone":         {a, object(`"properties": {}`), "/properties/a", ""},
		"a wider type":            {`{"type": "integer"}`, `{"type": "number"}`, "", "number"},
		"one more type":           {`{"type": "string"}`, `{"type": ["string", "null"]}`, "", "null"},
		"another type":            {`{"type": "string"}`, `{"type": "integer"}`, "string", "integer"},
		"one more value":          {`{"enum": ["a"]}`, `{"enum": ["a", "b"]}`, "", `"b"`},
		"a constant":              {`{"const": 1}`, `{"enum": [1.0, 2]}`, "", "2"},
		"values for any":          {`{}`, `{"type": ["null", "boolean", "integer", "number", "string", "array", "object"], "enum": [1]}`, "some values", ""},
		"a minimum":               {`{"type": "number", "minimum": 1}`, `{"type": "number", "minimum": 0.5}`, "", "minimum"},
		"a longest":               {`{"maxLength": 3}`, `{"maxLength": 10000000000000000000000}`, "", "maxLength"},
		"a bound of other types":  {`{"type": "string"}`, `{"type": "string", "minimum": 3}`, "", ""},
		"a pattern":               {`{"pattern": "^a"}`, `{"pattern": "a"}`, "cannot be judged", "cannot be judged"},
		"a pattern taken away":    {`{"pattern": "^a"}`, `{}`, "", "cannot be judged"},
		"items":                   {`{"type": "array", "items": {"type": "integer"}}`, `{"type": "array", "items": {"type": "number"}}`, "", "/items"},
		"within":                  {order, strings.Replace(order, `"n": {"type": "integer"}`, `"n": {"type": "number"}`, 1), "", "/properties/lines/items/properties/n"},
		"combinations":            {`{"anyOf": [{"type": "string"}]}`, `{"anyOf": [{"type": "string"}, {"type": "null"}]}`, "cannot be judged", "cannot be judged"},
		"combinations that stay":  {`{"anyOf": [{"type": "string"}], "title": "x"}`, `{"anyOf": [{"type": "string"}]}`, "", ""},
		"what a $ref leads to":    {`{"anyOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"type": "string"}}}`, `{"anyOf": [{"$ref": "#/$defs/x"}], "$defs": {"x": {"type": "null"}}}`, "cannot be judged", "cannot be judged"},
		"then, of another if":     {`{"if": {"type": "string"}, "then": {"maxLength": 3}}`, `{"if": {"maxLength": 9}, "then": {"maxLength": 3}}`, "cannot be judged", "cannot be judged"},
		"everything":              {`true`, `{"type": "string"}`, "not allowed", ""},
		"nothing":                 {a, `false`, "nothing conforms", ""},
		"unique items":            {`{"type": "array"}`, `{"type": "array", "uniqueItems": true}`, "unique", ""},
		"patterns taken away":     {`{"patternProperties": {"^x": {}}, "additionalProperties": false}`, `{"additionalProperties": false}`, "/patternProperties/^x: nothing conforms", "cannot be judged"},
		"wider than patterns":     {`{"patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": false}`, `{"additionalProperties": {"type": "number"}}`, "", "cannot be judged"},
		"first items taken away":  {`{"prefixItems": [{}], "items": {"type": "string"}}`, `{"items": {"type": "string"}}`, "change of items cannot be judged", "change of prefixItems cannot be judged"},
		"a constant among others": {`{"const": 1}`, `{"const": 1, "enum": [2]}`, "the value 1", ""},
		"what is left over, of 2019-09": {`{"$schema": "https://json-schema.org/draft/2019-09/schema", "items": [{}], "additionalItems": true, "unevaluatedItems": false}`,
			`{"$schema": "https://json-schema.org/draft/2019-09/schema", "items": [{}], "unevaluatedItems": false}`, "unevaluatedItems cannot be judged", "cannot be judged"},
		"another draft": {`{"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {"a": ["b"]}}`, `{"dependentRequired": {"a": ["b"]}}`,
			"change of $schema cannot be judged", "change of $schema cannot be judged"},
		"a constant, of draft-04": {`{"$schema": "http://json-schema.org/draft-04/schema#", "const": 1}`, `{"$schema": "http://json-schema.org/draft-04/schema#", "const": 1, "minLength": 3}`,
			"minLength", ""},
		"what is left over, beside dependencies": {`{"$schema": "https://json-schema.org/draft/2019-09/schema", "dependencies": {"a": {"properties": {"b": {}}}}, "unevaluatedProperties": false}`,
			`{"$schema": "https://json-schema.org/draft/2019-09/schema", "unevaluatedProperties": false}`, "unevaluatedProperties cannot be judged", "cannot be judged"},
		"the same draft": {`{"type": "integer"}`, `{"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "number"}`, "", "number"},
		"a $ref within a resource": {`{"$defs": {"x": {}}, "properties": {"p": {"$id": "https://example.com/p", "$defs": {"x": {"type": "string"}}, "properties": {"q": {"$ref": "#/$defs/x"}}}}}`,
			`{"$defs": {"x": {}}, "properties": {"p": {"$id": "https://example.com/p", "$defs": {"x": {"type": "null"}}, "properties": {"q": {"$ref": "#/$defs/x"}}}}}`, "$ref cannot be judged", "$ref cannot be judged"},
		"a $ref to a resource": {`{"$defs": {"r": {"$id": "https://example.com/r", "type": "integer"}}, "items": {"$ref": "#/$defs/r"}}`,
			`{"$defs": {"r": {"$id": "https://example.com/r", "type": "number"}}, "items": {"$ref": "#/$defs/r"}}`, "", "number"},
		"a $ref in what a $ref leads to": {`{"$defs": {"x": {}, "r": {"$id": "https://example.com/r", "$defs": {"x": {"type": "integer"}}, "items": {"$ref": "#/$defs/x"}}}, "items": {"$ref": "#/$defs/r"}}`,
			`{"$defs": {"x": {}, "r": {"$id": "https://example.com/r", "$defs": {"x": {"type": "null"}}, "items": {"$ref": "#/$defs/x"}}}, "items": {"$ref": "#/$defs/r"}}`, "$ref cannot be judged", "$ref cannot be judged"},
		"a resource that is a $ref": {`{"$defs": {"x": {}}, "items": {"$id": "https://example.com/r", "$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}}`,
			`{"$defs": {"x": {}}, "items": {"$id": "https://example.com/r", "$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}}`, "$ref cannot be judged", "$ref cannot be judged"},
		"a resource":      {`{"items": {"$id": "https://example.com/p", "type": "integer"}}`, `{"items": {"$id": "https://example.com/p", "type": "number"}}`, "", "number"},
		"the root's $ref": {`{"$id": "https://example.com/p", "properties": {"p": {"$ref": "#"}, "n": {"type": "integer"}}}`, `{"$id": "https://example.com/p", "properties": {"p": {"$ref": "#"}, "n": {"type": "number"}}}`, "", "number"},
		"a name for a $id": {`{"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {"type": "integer"}}, "items": {"$id": "#p", "items": {"$ref": "#/definitions/x"}}}`,
			`{"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {"type": "number"}}, "items": {"$id": "#p", "items": {"$ref": "#/definitions/x"}}}`, "", "number"},
	} {
		for _, doc := range []string{tc.old, tc.now} {
			if _, err := Compile(spec(doc)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, d := range []struct {
			c    configv1.Compatibility
			want string
		}{{0, tc.backward}, {configv1.Compatibility_COMPATIBILITY_BACKWARD, tc.backward}, {configv1.Compatibility_COMPATIBILITY_FORWARD, tc.forward},
			{configv1.Compatibility_COMPATIBILITY_FULL, tc.backward + tc.forward}, {configv1.Compatibility_COMPATIBILITY_NONE, ""}} {
			now := spec(tc.now)
			now.Compatibility = d.c
			got := strings.Join(Incompatible(spec(tc.old), now), "; ")
			if d.c == configv1.Compatibility_COMPATIBILITY_FULL && tc.backward != "" {
				d.want = tc.backward
			}
			if (d.want == "") != (got == "") || !strings.Contains(got, d.want) {
				t.Errorf("%s, %v: %q, want %q", name, d.c, got, d.want)
			}
		}
	}
}

// FuzzIncompatible: where a change is found to be backward compatible, what conforms
// before conforms after; and no schema or data make it panic.
func FuzzIncompatible(f *testing.F) {
	f.Add(`{"type": "integer"}`, `{"type": "number"}`, `1`)
	f.Add(order, order, `{"id": "o-1", "lines": [{"parts": [{"n": 1}]}]}`)
	f.Add(`{"properties": {"a": {"const": 1}}, "additionalProperties": {"type": "null"}}`, `{"additionalProperties": {"type": ["integer", "null"]}}`, `{"a": 1, "b": null}`)
	f.Add(`{"prefixItems": [{"type": "string"}], "items": false}`, `{"prefixItems": [{"type": "string"}]}`, `["x"]`)
	f.Add(`{"minimum": 1, "patternProperties": {"^a": {"enum": [1, "a"]}}}`, `{"exclusiveMinimum": 0, "minProperties": 0}`, `{"a": "a"}`)
	f.Fuzz(func(t *testing.T, old, now, data string) {
		before, err := Compile(spec(old))
		if err != nil {
			return
		}
		after, err := Compile(spec(now))
		if err != nil {
			return
		}
		why := Incompatible(spec(old), spec(now))
		e := &event.Event{Data: []byte(data)}
		if len(why) == 0 && before.Check(e) == nil {
			if err := after.Check(e); err != nil && !strings.Contains(err.Error(), "too much work") {
				t.Errorf("%s to %s is compatible, and %s does not conform any more: %v", old, now, data, err)
			}
		}
	})
}

// FuzzScan: what is within bounds of depth is found to nest as deep as it does, and whether
// an object has a member twice.
func FuzzScan(f *testing.F) {
	f.Add([]byte(`{"a": [1, 2e3, "\"}"]}`))
	f.Add([]byte(`{"a": {"b": {":": 1, "c": []}}, "\u0061": [{}, {"d": 1, "d": 2}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := scan(b)
		if err != nil {
			return
		}
		var v any
		if json.Unmarshal(b, &v) != nil {
			return
		}
		again := twice(b)
		if (again != "") != (members(v) < found.members) {
			t.Errorf("%s: %d members, found %+v; %q is there twice", b, members(v), found, again)
		}
		if d, n := size(v); again == "" && d != found.depth || n > found.values { // else some of it is not in v
			t.Errorf("%s: %d deep with %d values, found %+v", b, d, n, found)
		}
	})
}

func size(v any) (depth, values int) {
	values = 1
	within := func(v any) {
		d, n := size(v)
		depth, values = max(depth, d), values+n
	}
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			within(x)
		}
		depth++
	case map[string]any:
		for _, x := range v {
			within(x)
		}
		depth++
	}
	return depth, values
}

func BenchmarkCheck(b *testing.B) {
	s, err := Compile(spec(order))
	if err != nil {
		b.Fatal(err)
	}
	e := &event.Event{Data: []byte(`{"id": "o-1", "total": 12.5, "lines": [{"sku": "x", "n": 1}, {"sku": "y", "n": 2, "parts": []}]}`)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(e); err != nil {
			b.Fatal(err)
		}
	}
}

// TestTwice: a member that is there twice is refused by its path: a schema judges one of them,
// and who reads the data may take the other.
func TestTwice(t *testing.T) {
	s, err := Compile(spec(`{"properties": {"amount": {"minimum": 0}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for data, at := range map[string]string{
		`{"amount": -5, "amount": 5}`:                                 "at /amount: ",
		`{"list": [0, {"a": {}, "b": [{}], "\u0061": 1}]}`:            "at /list/1/a: ",
		`{"a": {"b": 1}, "b": {"a": 1}, "c": [{"a": 1}, {"a": ":"}]}`: "",
	} {
		err := s.Check(&event.Event{Data: []byte(data)})
		if (err == nil) != (at == "") || err != nil && (!strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "twice")) {
			t.Errorf("%s: %v", data, err)
		}
	}
}

// TestNotUTF8: what is no UTF-8 is no JSON, whatever the schema asks.
func TestNotUTF8(t *testing.T) {
	s, err := Compile(spec(`{"enum": ["�"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(&event.Event{Data: []byte("\"\xff\"")}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%v", err)
	}
	if err := s.Check(&event.Event{Data: []byte(`"�"`)}); err != nil {
		t.Error(err)
	}
}
