package schema

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-mesh/weft/pkg/names"
)

// avroType is a type of an Avro schema; a recursive one leads back to itself.
type avroType struct {
	kind     string // "record", "union", or the name of the type in Avro
	name     string // in full; of a record, an enum, a fixed
	aliases  []string
	fields   []avroField // of a record
	symbols  []string    // of an enum
	fallback bool        // an enum has a default, which stands for a symbol that it lacks
	size     int         // of a fixed, in bytes
	items    *avroType   // of an array or a map
	branches []*avroType // of a union
	decimal  string      // precision and scale, where they are given
}

// avroField is a field of a record.
type avroField struct {
	name     string
	aliases  []string
	of       *avroType
	fallback bool // has a default
}

// primitives are the types of Avro that are named and nothing more.
var primitives = []string{"null", "boolean", "int", "long", "float", "double", "bytes", "string"}

// avroParser reads one schema.
type avroParser struct {
	named    map[string]*avroType
	defaults []avroDefault
}

// avroDefault is judged once all types are known: it may be of one that is not whole.
type avroDefault struct {
	at    string
	of    *avroType
	value any
}

func compileAvro(document string) (*avroType, error) {
	doc, err := parse([]byte(document))
	if err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	p := avroParser{named: map[string]*avroType{}}
	t, err := p.parse("", doc, "")
	if err != nil {
		return nil, fmt.Errorf("is no Avro schema: %w", err)
	}
	for _, d := range p.defaults {
		if !isDefault(d.of, d.value) {
			return nil, fmt.Errorf("is no Avro schema: at %s: the default is no value of its type", d.at)
		}
	}
	return t, nil
}

func misfit(at, format string, args ...any) error {
	if at == "" {
		return fmt.Errorf("at the root: "+format, args...)
	}
	return fmt.Errorf("at "+at+": "+format, args...)
}

// parse reads a type which stands in a namespace.
func (p *avroParser) parse(at string, v any, ns string) (*avroType, error) {
	switch v := v.(type) {
	case string:
		if slices.Contains(primitives, v) {
			return &avroType{kind: v}, nil
		}
		if t := p.named[inNamespace(v, ns)]; t != nil {
			return t, nil
		}
		if t := p.named[v]; t != nil {
			return t, nil
		}
		return nil, misfit(at, "%q is no type, nor one that is defined before", names.Text(v, 100))
	case []any:
		return p.union(at, v, ns)
	case map[string]any:
		kind, ok := v["type"].(string)
		switch {
		case !ok:
			if v["type"] == nil {
				return nil, misfit(at, "has no type")
			}
			return p.parse(at+"/type", v["type"], ns)
		case kind == "record" || kind == "error" || kind == "enum" || kind == "fixed":
			return p.definition(at, kind, v, ns)
		case kind == "array" || kind == "map":
			key := map[string]string{"array": "items", "map": "values"}[kind]
			items, err := p.parse(at+"/"+key, v[key], ns)
			return &avroType{kind: kind, items: items}, err
		}
		t, err := p.parse(at+"/type", kind, ns)
		if err == nil && t.kind == "bytes" {
			t.decimal = decimal(v)
		}
		return t, err
	}
	return nil, misfit(at, "is no type: neither a name, an object nor a list")
}

func (p *avroParser) union(at string, list []any, ns string) (*avroType, error) {
	t, seen := &avroType{kind: "union"}, map[string]bool{}
	for i, v := range list {
		b, err := p.parse(at+"/"+strconv.Itoa(i), v, ns)
		if err != nil {
			return nil, err
		}
		// Of what has no name there may be one of a kind.
		id := b.kind + " " + b.name
		if b.kind == "union" || seen[id] {
			return nil, misfit(at, "a union has one of each unnamed type, and no union within")
		}
		seen[id] = true
		t.branches = append(t.branches, b)
	}
	if len(t.branches) == 0 {
		return nil, misfit(at, "a union has no types")
	}
	return t, nil
}

// definition reads a type that has a name.
func (p *avroParser) definition(at, kind string, m map[string]any, ns string) (*avroType, error) {
	name, _ := m["name"].(string)
	if own, ok := m["namespace"].(string); ok {
		ns = own
	}
	t := &avroType{kind: kind, name: inNamespace(name, ns)}
	if kind == "error" {
		t.kind = "record"
	}
	switch {
	case !isFullName(t.name) || slices.Contains(primitives, name):
		return nil, misfit(at, "%q is no name", names.Text(name, 100))
	case p.named[t.name] != nil:
		return nil, misfit(at, "%s is defined twice", t.name)
	}
	p.named[t.name] = t
	ns = t.name[:max(0, strings.LastIndexByte(t.name, '.'))]
	aliases, err := list(at, m, "aliases", isFullName)
	if err != nil {
		return nil, err
	}
	for _, a := range aliases {
		t.aliases = append(t.aliases, inNamespace(a, ns))
	}
	switch kind {
	case "enum":
		if t.symbols, err = list(at, m, "symbols", isName); err != nil {
			return nil, err
		}
		d, ok := m["default"]
		if s, _ := d.(string); ok && !slices.Contains(t.symbols, s) {
			return nil, misfit(at, "the default is no symbol")
		}
		t.fallback = ok
	case "fixed":
		n, _ := m["size"].(json.Number)
		size, err := strconv.ParseInt(n.String(), 10, 32)
		if err != nil || size < 0 {
			return nil, misfit(at, "the size is no number of bytes")
		}
		t.size, t.decimal = int(size), decimal(m)
	default:
		return t, p.fields(at, t, m, ns)
	}
	return t, nil
}

// fields reads those of a record.
func (p *avroParser) fields(at string, t *avroType, m map[string]any, ns string) error {
	fields, ok := m["fields"].([]any)
	if !ok {
		return misfit(at, "a record has no list of fields")
	}
	seen := map[string]bool{}
	for i, v := range fields {
		at := at + "/fields/" + strconv.Itoa(i)
		f, _ := v.(map[string]any)
		name, _ := f["name"].(string)
		if !isName(name) || seen[name] {
			return misfit(at, "%q is no name, or another field's", names.Text(name, 100))
		}
		seen[name] = true
		of, err := p.parse(at+"/type", f["type"], ns)
		if err != nil {
			return err
		}
		aliases, err := list(at, f, "aliases", isName)
		if err != nil {
			return err
		}
		d, has := f["default"]
		if has {
			p.defaults = append(p.defaults, avroDefault{at, of, d})
		}
		t.fields = append(t.fields, avroField{name: name, aliases: aliases, of: of, fallback: has})
	}
	return nil
}

// list reads names, none twice.
func list(at string, m map[string]any, key string, ok func(string) bool) ([]string, error) {
	values, is := m[key].([]any)
	if !is && m[key] != nil {
		return nil, misfit(at+"/"+key, "is no list")
	}
	seen, out := map[string]bool{}, make([]string, 0, len(values))
	for _, v := range values {
		s, _ := v.(string)
		if !ok(s) || seen[s] {
			return nil, misfit(at+"/"+key, "%q is no name, or there twice", names.Text(s, 100))
		}
		seen[s] = true
		out = append(out, s)
	}
	return out, nil
}

// decimal is what decides how a decimal reads, "" of something else.
func decimal(m map[string]any) string {
	if m["logicalType"] != "decimal" {
		return ""
	}
	scale := m["scale"]
	if scale == nil {
		scale = 0
	}
	return fmt.Sprintf("precision %v, scale %v", m["precision"], scale)
}

func inNamespace(name, ns string) string {
	if ns == "" || strings.Contains(name, ".") {
		return name
	}
	return ns + "." + name
}

var fullName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$`)

func isFullName(s string) bool { return fullName.MatchString(s) }

func isName(s string) bool { return fullName.MatchString(s) && !strings.Contains(s, ".") }

// isDefault reports whether JSON is a default for a type. Of a union it takes the
// first type that JSON of this kind can be of, so that the work is that of reading it.
func isDefault(t *avroType, v any) bool {
	if t.kind == "union" {
		i := slices.IndexFunc(t.branches, func(b *avroType) bool { return likely(b.kind, v) })
		return i >= 0 && isDefault(t.branches[i], v)
	}
	if !likely(t.kind, v) {
		return false
	}
	switch t.kind {
	case "int", "long":
		n, err := strconv.ParseInt(string(v.(json.Number)), 10, 64)
		return err == nil && (t.kind == "long" || n >= math.MinInt32 && n <= math.MaxInt32)
	case "enum":
		return slices.Contains(t.symbols, v.(string))
	case "fixed":
		return len([]rune(v.(string))) == t.size
	case "array":
		return !slices.ContainsFunc(v.([]any), func(v any) bool { return !isDefault(t.items, v) })
	case "map":
		for _, v := range v.(map[string]any) {
			if !isDefault(t.items, v) {
				return false
			}
		}
	case "record":
		m := v.(map[string]any)
		for _, f := range t.fields {
			v, has := m[f.name]
			if has && !isDefault(f.of, v) || !has && !f.fallback {
				return false
			}
		}
	}
	return true
}

// likely reports whether JSON of this kind can be a default of a type of this kind.
func likely(kind string, v any) bool {
	switch v.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case json.Number:
		return kind == "int" || kind == "long" || kind == "float" || kind == "double"
	case string:
		return kind == "string" || kind == "bytes" || kind == "enum" || kind == "fixed"
	case []any:
		return kind == "array"
	}
	return kind == "record" || kind == "map"
}
