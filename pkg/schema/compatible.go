package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"sync"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// Incompatible tells what of a change from one Schema to another breaks the
// compatibility that the new one asks for; nothing where it keeps it. Both are
// accepted by Compile. What cannot be judged counts as broken.
func Incompatible(old, now *configv1.Schema) []string {
	backward, forward := false, false
	switch now.GetCompatibility() {
	case configv1.Compatibility_COMPATIBILITY_NONE:
	case configv1.Compatibility_COMPATIBILITY_FORWARD:
		forward = true
	case configv1.Compatibility_COMPATIBILITY_FULL:
		backward, forward = true, true
	default:
		backward = true
	}
	if !backward && !forward {
		return nil
	}
	if Field(old) != Field(now) {
		return []string{"is another format than before: what is in the topic cannot be read by it"}
	}
	unread, err := readers(old, now)
	if err != nil {
		return nil // is told of by Compile
	}
	var out []string
	if backward {
		for _, p := range unread(false) {
			out = append(out, "not backward compatible: "+p)
		}
	}
	if forward {
		for _, p := range unread(true) {
			out = append(out, "not forward compatible: "+p)
		}
	}
	return out
}

// readers gives what tells why a reader of the new Schema cannot read all that was
// written by the old one; or the other way around.
func readers(old, now *configv1.Schema) (unread func(forward bool) []string, err error) {
	if now.GetAvro() != nil {
		was, err := compileAvro(old.GetAvro().GetDocument())
		if err != nil {
			return nil, err
		}
		is, err := compileAvro(now.GetAvro().GetDocument())
		return func(forward bool) []string {
			reader, writer := is, was
			if forward {
				reader, writer = was, is
			}
			if why := avroUnreadable(reader, writer); why != "" {
				return []string{names.Text(why, maxMessage)}
			}
			return nil
		}, err
	}
	if now.GetProtobuf() != nil {
		was, wasJSON, err := compileProto(old.GetProtobuf())
		if err != nil {
			return nil, err
		}
		is, isJSON, err := compileProto(now.GetProtobuf())
		return func(forward bool) []string {
			reader, writer, json, writerJSON := is, was, isJSON, wasJSON
			if forward {
				reader, writer, json, writerJSON = was, is, wasJSON, isJSON
			}
			if writerJSON != nil && json == nil {
				return []string{"data in JSON are taken by one alone"}
			}
			return append(protoUnreadable(reader, writer, json, writerJSON), dropped(is, was, isJSON != nil)...)
		}, err
	}
	was, err := parse([]byte(old.GetJson().GetDocument()))
	if err != nil {
		return nil, err
	}
	is, err := parse([]byte(now.GetJson().GetDocument()))
	return func(forward bool) []string {
		if forward {
			return includes(is, was)
		}
		return includes(was, is)
	}, err
}

// maxFound bounds what is told of one direction.
const maxFound = 20

// includes tells why not all that conforms to one schema conforms to another: it
// finds nothing only where it does.
func includes(small, large any) []string {
	c := comparison{roots: [2]any{small, large}, seen: map[[2]string]bool{}}
	c.same = sync.OnceValue(func() bool { return reflect.DeepEqual(small, large) })
	if draftOf(small) != draftOf(large) {
		c.add("", "a change of $schema cannot be judged: keywords have another meaning there")
		return c.found
	}
	if c.includes("", small, large, 0); c.work > maxCompared {
		return append(c.found, "the change cannot be judged: there is too much to compare; take compatibility NONE")
	}
	return c.found
}

type comparison struct {
	roots [2]any      // the documents, in which $ref leads
	same  func() bool // whether they are one
	seen  map[[2]string]bool
	found []string
	work  int // how many pairs of schemas and values were looked at
	apart int // how many schemas that are resources of their own the pair stands in
}

// maxCompared bounds the work of one direction: the $ref of two documents may lead to
// as many pairs as the product of their sizes.
const maxCompared = 1 << 16

func (c *comparison) add(path, format string, args ...any) {
	if p := strings.TrimSuffix("at "+path, "/"); len(c.found) < maxFound {
		if path == "" {
			p = "at the root"
		}
		c.found = append(c.found, p+": "+fmt.Sprintf(format, args...))
	}
}

// annotations say nothing of what conforms.
var annotations = map[string]bool{"title": true, "description": true, "default": true, "examples": true, "deprecated": true, "readOnly": true, "writeOnly": true,
	"$comment": true, "$schema": true, "$id": true, "id": true, "$defs": true, "definitions": true, "$anchor": true, "format": true,
	"contentEncoding": true, "contentMediaType": true, "contentSchema": true}

// of is which types a keyword is about; all where it is not here.
var of = map[string]string{"minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number", "multipleOf": "number",
	"minLength": "string", "maxLength": "string", "pattern": "string",
	"minItems": "array", "maxItems": "array", "uniqueItems": "array", "items": "array", "prefixItems": "array", "contains": "array", "additionalItems": "array",
	"minContains": "array", "maxContains": "array", "unevaluatedItems": "array",
	"required": "object", "properties": "object", "additionalProperties": "object", "patternProperties": "object", "propertyNames": "object",
	"minProperties": "object", "maxProperties": "object", "dependentRequired": "object", "dependentSchemas": "object", "dependencies": "object", "unevaluatedProperties": "object"}

// draftOf is the draft that a document is of, as $schema names it; without one it is the library's own.
func draftOf(doc any) string {
	m, _ := doc.(map[string]any)
	draft, ok := m["$schema"].(string)
	if !ok {
		return "json-schema.org/draft/2020-12/schema"
	}
	_, draft, _ = strings.Cut(strings.TrimSuffix(draft, "#"), "://")
	return draft
}

// isResource reports whether a schema within a document is a resource of its own: #/… in it does not begin at
// the document's root. An $id that begins with "#" is a name alone, as an anchor.
func isResource(root, s any) bool {
	m, _ := s.(map[string]any)
	if all, _ := root.(map[string]any); reflect.ValueOf(m).Pointer() == reflect.ValueOf(all).Pointer() {
		return false // the document itself
	}
	for _, k := range []string{"$id", "id"} {
		if id, ok := m[k].(string); ok && !strings.HasPrefix(id, "#") {
			return true
		}
	}
	return false
}

// resolve follows $ref within a document; ok is false where one has something beside its $ref, or leads where
// only the library finds it.
func resolve(root, s any) (out any, ok bool) {
	for range maxDepth {
		m, is := s.(map[string]any)
		ref, has := m["$ref"].(string)
		if !is || !has {
			return s, true
		}
		for k := range m {
			if k != "$ref" && !annotations[k] || isResource(root, m) {
				return s, false
			}
		}
		rest, local := strings.CutPrefix(ref, "#")
		if !local || rest != "" && !strings.HasPrefix(rest, "/") || strings.Contains(rest, "%") {
			return s, false
		}
		if s = root; rest == "" {
			continue
		}
		for _, step := range strings.Split(rest[1:], "/") {
			m, is := s.(map[string]any)
			next, has := m[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
			if !is || !has || isResource(root, m) {
				return s, false
			}
			s = next
		}
	}
	return s, false
}

func (c *comparison) includes(path string, small, large any, depth int) {
	if c.work++; c.work > maxCompared {
		return // is told at the end
	}
	from, _ := small.(map[string]any)
	to, _ := large.(map[string]any)
	a, ok := resolve(c.roots[0], small)
	b, ok2 := resolve(c.roots[1], large)
	if !ok || !ok2 || depth > maxDepth || c.apart > 0 && (from["$ref"] != nil || to["$ref"] != nil) {
		if !c.same() {
			c.add(path, "this $ref cannot be judged: only a plain $ref to #/… can, where no $id is around it but the root's")
		}
		return
	}
	if from["$ref"] != nil && to["$ref"] != nil {
		// Pairs that were begun are as good as they turn out to be.
		key := [2]string{fmt.Sprint(from["$ref"]), fmt.Sprint(to["$ref"])}
		if c.seen[key] {
			return
		}
		c.seen[key] = true
	}
	if b == true || a == false {
		return
	}
	if b == false {
		c.add(path, "nothing conforms any more")
		return
	}
	if isResource(c.roots[0], a) || isResource(c.roots[1], b) {
		c.apart++
		defer func() { c.apart-- }()
	}
	am := c.keywords(a)
	bm := c.keywords(b) // of a schema "true" nothing
	types := typesOf(am)
	if wider := without(types, typesOf(bm)); len(wider) > 0 {
		c.add(path, "the type %s is not allowed", strings.Join(wider, ", "))
		return
	}
	for _, k := range slices.Sorted(maps.Keys(bm)) {
		if about, ok := of[k]; k == "type" || k == "$ref" || annotations[k] || ok && !slices.Contains(types, about) && (about != "number" || !slices.Contains(types, "integer")) {
			continue
		}
		c.keyword(path, k, am, bm, depth)
	}
}

// keywords are those of a schema, without what is none in the documents' draft.
func (c *comparison) keywords(s any) map[string]any {
	m, _ := s.(map[string]any)
	if _, ok := m["const"]; ok && strings.Contains(draftOf(c.roots[0]), "draft-04") {
		m = maps.Clone(m)
		delete(m, "const")
	}
	return m
}

// keyword judges one keyword of the larger schema.
func (c *comparison) keyword(path, k string, a, b map[string]any, depth int) {
	switch k {
	case "enum", "const":
		have, want := valuesOf(a), valuesOf(map[string]any{k: b[k]}) // there may be both
		if have == nil {
			c.add(path, "%s allows only some values", k)
			return
		}
		c.work += len(have) + len(want)
		allowed := keysOf(want)
		for _, v := range have {
			if !allowed[keyOf(v)] {
				c.add(path, "the value %s is not allowed", text(v))
			}
		}
	case "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties":
		if !atLeast(a[k], b[k]) && !reflect.DeepEqual(a[k], b[k]) {
			c.add(path, "%s is %s", k, text(b[k]))
		}
	case "maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties":
		if !atLeast(b[k], a[k]) && !reflect.DeepEqual(a[k], b[k]) {
			c.add(path, "%s is %s", k, text(b[k]))
		}
	case "uniqueItems":
		if b[k] == true && a[k] != true {
			c.add(path, "items must be unique")
		}
	case "required":
		have, _ := a[k].([]any)
		list, _ := b[k].([]any)
		for _, r := range list {
			if !slices.Contains(have, r) {
				c.add(path, "the property %s is required", text(r))
			}
		}
	case "properties":
		of, _ := b[k].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(of)) {
			c.includes(path+"/properties/"+escape(name), property(a, name), of[name], depth+1)
		}
	case "additionalProperties":
		if b["patternProperties"] != nil && !reflect.DeepEqual(a["patternProperties"], b["patternProperties"]) {
			c.add(path, "patternProperties cannot be judged where they change")
			return
		}
		if b["patternProperties"] == nil {
			patterns, _ := a["patternProperties"].(map[string]any)
			for _, re := range slices.Sorted(maps.Keys(patterns)) {
				c.includes(path+"/patternProperties/"+escape(re), patterns[re], b[k], depth+1)
			}
		}
		named, _ := b["properties"].(map[string]any)
		had, _ := a["properties"].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(had)) {
			if _, still := named[name]; !still {
				c.includes(path+"/properties/"+escape(name), had[name], b[k], depth+1)
			}
		}
		c.includes(path+"/additionalProperties", orTrue(a["additionalProperties"]), b[k], depth+1)
	case "items":
		_, list := b[k].([]any)
		if list || a["prefixItems"] != nil || b["prefixItems"] != nil {
			c.unchanged(path, k, a, b)
			return
		}
		if _, list := a[k].([]any); list {
			c.unchanged(path, k, a, b)
			return
		}
		c.includes(path+"/items", orTrue(a[k]), b[k], depth+1)
	default:
		c.unchanged(path, k, a, b)
	}
}

// unchanged is for keywords that cannot be judged one by one: they must stay as
// they are, with all that their $ref lead to.
func (c *comparison) unchanged(path, k string, a, b map[string]any) {
	same := reflect.DeepEqual(a[k], b[k])
	if same && strings.Contains(text(b[k]), `$ref`) {
		same = c.same()
	}
	for _, with := range map[string][]string{"if": {"then", "else"}, "then": {"if"}, "else": {"if"}, "contains": {"minContains", "maxContains"}, "items": {"prefixItems"}, "prefixItems": {"items"}, "additionalItems": {"items"},
		"unevaluatedProperties": {"properties", "patternProperties", "additionalProperties", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas", "dependencies"},
		"unevaluatedItems":      {"items", "prefixItems", "additionalItems", "contains", "allOf", "anyOf", "oneOf", "if", "then", "else"}}[k] {
		same = same && reflect.DeepEqual(a[with], b[with])
	}
	if !same {
		c.add(path, "a change of %s cannot be judged: leave it as it is, or take compatibility NONE", k)
	}
}

func orTrue(s any) any {
	if s == nil {
		return true
	}
	return s
}

// property is the schema of a property in an object that conforms to a.
func property(a map[string]any, name string) any {
	named, _ := a["properties"].(map[string]any)
	if p, ok := named[name]; ok {
		return p
	}
	if a["patternProperties"] != nil {
		return true
	}
	return orTrue(a["additionalProperties"])
}

var allTypes = []string{"null", "boolean", "integer", "number", "string", "array", "object"}

// typesOf are the types that may conform; a number may be an integer.
func typesOf(s map[string]any) []string {
	var out []string
	switch t := s["type"].(type) {
	case string:
		out = []string{t}
	case []any:
		for _, v := range t {
			out = append(out, fmt.Sprint(v))
		}
	default:
		values := valuesOf(s)
		if values == nil {
			return allTypes
		}
		for _, v := range values {
			out = append(out, typeOf(v))
		}
	}
	if slices.Contains(out, "number") && !slices.Contains(out, "integer") {
		out = append(out, "integer")
	}
	return out
}

func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	default:
		if r, ok := rat(v); ok && r.IsInt() {
			return "integer"
		}
		return "number"
	}
}

// valuesOf are the only values that may conform; nil where there are others.
func valuesOf(s map[string]any) []any {
	if v, ok := s["const"]; ok {
		return []any{v}
	}
	list, _ := s["enum"].([]any)
	return list
}

func without(list, of []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(t string) bool { return slices.Contains(of, t) })
}

func rat(v any) (*big.Rat, bool) {
	if v == nil {
		return nil, false
	}
	if _, ok := v.(json.Number); !ok {
		return nil, false
	}
	return new(big.Rat).SetString(fmt.Sprint(v))
}

// atLeast reports whether both are numbers and the first is no less.
func atLeast(a, b any) bool {
	x, ok := rat(a)
	y, ok2 := rat(b)
	return ok && ok2 && x.Cmp(y) >= 0
}

func text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(v) != nil {
		return "?"
	}
	return strings.TrimSpace(b.String())
}

func escape(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }
