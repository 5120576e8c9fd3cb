package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/regex"
)

// maxWork bounds, in steps, what judging one event may take. A step is about what the
// library takes to hold one value against one small part of a schema.
const maxWork = 1 << 20

// perStep are the bytes that are copied, or held against one instruction of a regular
// expression, in a step.
const perStep = 64

// part is a part of a schema, as the meter walks over it.
type part struct {
	schema *jsonschema.Schema
	same   []*part // judge the value that this one does

	names    map[string]*part // of an object
	patterns []namePattern
	others   []*part // any property that names do not have
	every    []*part // any property
	nameOf   *part   // the names themselves
	required int64   // names that are looked for

	first []*part // items by their place
	items []*part // any item

	values  int64 // what enum and const take
	unique  bool
	numbers bool  // numbers are compared
	pattern int64 // instructions
}

// namePattern is one of patternProperties.
type namePattern struct {
	size int64
	of   *part
}

// metered are the parts of a schema, of which list is all, for the meter.
func metered(root *jsonschema.Schema, list []*jsonschema.Schema) *part {
	parts := make(map[*jsonschema.Schema]*part, len(list))
	for _, s := range list {
		parts[s] = &part{schema: s}
	}
	all := func(list ...*jsonschema.Schema) (out []*part) {
		for _, s := range list {
			if s != nil {
				out = append(out, parts[s])
			}
		}
		return out
	}
	for _, s := range list {
		p := parts[s]
		p.same = all(same(s)...)
		p.names = make(map[string]*part, len(s.Properties))
		for name, of := range s.Properties {
			p.names[name] = parts[of]
		}
		for re, of := range s.PatternProperties {
			p.patterns = append(p.patterns, namePattern{sizeOf(re), parts[of]})
		}
		if of, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
			p.others = all(of)
		}
		p.every = all(s.UnevaluatedProperties)
		p.nameOf = parts[s.PropertyNames]
		p.required = int64(len(s.Required) + len(s.Dependencies) + len(s.DependentSchemas))
		for _, list := range s.DependentRequired {
			p.required += int64(1 + len(list))
		}
		for _, of := range s.Dependencies {
			if list, ok := of.([]string); ok {
				p.required += int64(len(list))
			}
		}
		p.items = all(s.Contains, s.Items2020, s.UnevaluatedItems)
		p.first = all(s.PrefixItems...)
		for _, v := range []any{s.Items, s.AdditionalItems} {
			switch v := v.(type) {
			case *jsonschema.Schema:
				p.items = append(p.items, parts[v])
			case []*jsonschema.Schema:
				p.first = all(v...)
			}
		}
		if s.Const != nil {
			p.values = 1 + int64(len(keyOf(*s.Const)))/16
		}
		for _, ext := range s.Extensions {
			switch ext := ext.(type) {
			case *enum:
				p.values += 1 + int64(ext.longest)/16
			case uniqueItems:
				p.unique = true
			}
		}
		p.numbers = s.Minimum != nil || s.Maximum != nil || s.ExclusiveMinimum != nil || s.ExclusiveMaximum != nil || s.MultipleOf != nil || s.Types != nil
		if s.Pattern != nil {
			p.pattern = sizeOf(s.Pattern)
		}
	}
	return parts[root]
}

// meter counts the steps that judging takes, before it is done.
type meter struct {
	left  int64
	spent map[string]int64 // by place in the schema; nil where nobody asks
}

// measure refuses a value that is too much work.
func measure(root *part, v any) error {
	if (&meter{left: maxWork}).judge(root, v, 0) {
		return nil
	}
	m := meter{left: maxWork, spent: map[string]int64{}}
	m.judge(root, v, 0)
	most := ""
	for at, n := range m.spent {
		// The smallest of those that take the same, so that the answer is one.
		if c := cmp.Compare(n, m.spent[most]); c > 0 || c == 0 && at < most {
			most = at
		}
	}
	return fmt.Errorf("they are too much work: they take more than %d steps, most of them by %s of the schema", maxWork, names.Text(most, 200))
}

// spend reports whether there is anything left.
func (m *meter) spend(p *part, keyword string, steps int64) bool {
	if m.spent != nil {
		at := strings.TrimPrefix(p.schema.Location, location)
		if keyword == "" { // the parts of an anyOf are one
			at = strings.TrimSuffix(strings.TrimRight(at, "0123456789"), "/")
		} else {
			at += "/" + keyword
		}
		m.spent[at] += steps
	}
	m.left -= min(steps, m.left+1)
	return m.left >= 0
}

// judge spends what judging a value, which nests within depth others, takes. It walks
// where the library may, also where that stops at the first thing that is wrong.
func (m *meter) judge(p *part, v any, depth int64) bool {
	// An error has the path to the value.
	if !m.spend(p, "", 1+depth/4) || p.values > 0 && !m.spend(p, "enum", p.values) {
		return false
	}
	for _, to := range p.same {
		if !m.judge(to, v, depth) {
			return false
		}
	}
	switch v := v.(type) {
	case string:
		n := int64(len(v))
		return m.spend(p, "", n/perStep) && (p.pattern == 0 || m.spend(p, "pattern", 1+p.pattern*n/perStep))
	case json.Number:
		switch {
		case !p.numbers:
		case strings.ContainsAny(string(v), "eE"): // up to a thousand digits
			return m.spend(p, "", 64)
		default:
			return m.spend(p, "", 2)
		}
	case []any:
		return m.list(p, v, depth)
	case map[string]any:
		return m.object(p, v, depth)
	}
	return true
}

func (m *meter) list(p *part, v []any, depth int64) bool {
	if !m.spend(p, "", int64(len(v))) || p.unique && !m.extent(p, v) {
		return false
	}
	for i, item := range v {
		if i < len(p.first) && !m.judge(p.first[i], item, depth+1) {
			return false
		}
		for _, to := range p.items {
			if !m.judge(to, item, depth+1) {
				return false
			}
		}
	}
	return true
}

func (m *meter) object(p *part, v map[string]any, depth int64) bool {
	if !m.spend(p, "", int64(len(v))) || !m.spend(p, "required", p.required) {
		return false
	}
	for name, of := range v {
		if p.nameOf != nil && !m.judge(p.nameOf, name, depth+1) {
			return false
		}
		for _, re := range p.patterns {
			if !m.spend(p, "patternProperties", 1+re.size*int64(len(name))/perStep) || !m.judge(re.of, of, depth+1) {
				return false
			}
		}
		to, named := p.names[name]
		if named && !m.judge(to, of, depth+1) {
			return false
		}
		for _, to := range p.every {
			if !m.judge(to, of, depth+1) {
				return false
			}
		}
		for _, to := range p.others {
			if !named && !m.judge(to, of, depth+1) {
				return false
			}
		}
	}
	return true
}

// extent spends what making the key of a value takes.
func (m *meter) extent(p *part, v any) bool {
	steps := int64(1)
	switch v := v.(type) {
	case string:
		steps += int64(len(v)) / perStep
	case []any:
		for _, item := range v {
			if !m.extent(p, item) {
				return false
			}
		}
	case map[string]any:
		for name, item := range v {
			if !m.spend(p, "uniqueItems", 1+int64(len(name))/perStep) || !m.extent(p, item) {
				return false
			}
		}
	}
	return m.spend(p, "uniqueItems", steps)
}

// maxPatterns bounds the instructions of all regular expressions of a schema.
const maxPatterns = 1 << 16

// pattern is a regular expression, and how many instructions it has at most.
type pattern struct {
	*regexp.Regexp
	size int64
}

// sizeOf is how many instructions one has.
func sizeOf(re jsonschema.Regexp) int64 {
	if p, ok := re.(pattern); ok {
		return p.size
	}
	return math.MaxInt32 // there is no other
}

// patterns are the regular expressions of one schema, by their text.
type patterns struct {
	known map[string]pattern
	left  int64 // instructions
	err   error // that there are too many
}

// compile compiles one.
func (p *patterns) compile(text string) (jsonschema.Regexp, error) {
	if re, ok := p.known[text]; ok {
		return re, nil
	}
	n, err := regex.Instructions(text)
	if err != nil {
		return nil, err
	}
	if p.left -= n; p.left < 0 {
		p.err = fmt.Errorf("the regular expressions have more than %d instructions together, %s among them %d", maxPatterns, names.Text(text, 100), n)
		return nil, p.err
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	p.known[text] = pattern{re, n}
	return p.known[text], nil
}
