package schema

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/event"
)

// drawSchema draws a schema of all that is judged, and of what only may stay as it is.
func drawSchema(r *rand.Rand, draft string, depth int) any {
	if depth == 0 || r.IntN(12) == 0 {
		return []any{true, false, map[string]any{}, map[string]any{"type": "integer"}}[r.IntN(4)]
	}
	within := func() any { return drawSchema(r, draft, depth-1) }
	list := func() []any { return []any{within(), within()}[:1+r.IntN(2)] }
	named := func(keys ...string) map[string]any {
		m := map[string]any{}
		for _, k := range keys {
			if r.IntN(2) == 0 {
				m[k] = within()
			}
		}
		return m
	}
	type keyword struct {
		name string
		draw func() any
	}
	value := func() any { return drawValue(r, 1) }
	number := func() any { return r.IntN(4) }
	all := []keyword{
		{"type", func() any {
			return []any{"integer", "number", "string", "object", "array", []any{"null", "number"}}[r.IntN(6)]
		}},
		{"enum", func() any { return []any{value(), value(), value()}[:1+r.IntN(3)] }}, {"const", value},
		{"minimum", number}, {"maximum", number}, {"exclusiveMaximum", func() any { return map[bool]any{true: true, false: r.IntN(4)}[draft == "draft-04"] }}, {"minLength", number}, {"maxItems", number}, {"minProperties", number}, {"multipleOf", func() any { return 1 + r.IntN(3) }},
		{"required", func() any { return []any{"a", "b"}[:1+r.IntN(2)] }}, {"uniqueItems", func() any { return r.IntN(2) == 0 }},
		{"properties", func() any { return named("a", "b", "c") }}, {"properties", func() any { return named("a", "b", "c") }},
		{"patternProperties", func() any { return named("^a", "b") }}, {"additionalProperties", within}, {"propertyNames", within},
		{"items", within}, {"items", within}, {"contains", within}, {"minContains", number}, {"maxContains", number},
		{"anyOf", func() any { return list() }}, {"allOf", func() any { return list() }}, {"oneOf", func() any { return list() }}, {"not", within},
		{"if", within}, {"then", within}, {"else", within},
		{"dependentRequired", func() any { return map[string]any{"a": []any{"b"}} }}, {"dependentSchemas", func() any { return named("a") }},
		{"unevaluatedProperties", within}, {"unevaluatedItems", within}, {"title", func() any { return "t" }},
		{"$ref", func() any { return "#/$defs/" + []string{"x", "y"}[r.IntN(2)] }}, {"$ref", func() any { return "#" + []string{"", "n"}[r.IntN(2)] }},
	}
	switch draft {
	case "2020-12":
		all = append(all, keyword{"prefixItems", func() any { return list() }})
	case "2019-09", "draft-07":
		all = append(all, keyword{"items", func() any { return list() }}, keyword{"additionalItems", within}, keyword{"dependencies", func() any { return map[string]any{"a": []any{"b"}, "b": within()} }})
	case "draft-04":
		all = append(all, keyword{"exclusiveMinimum", func() any { return r.IntN(2) == 0 }}, keyword{"items", func() any { return list() }})
	}
	m := map[string]any{}
	for range 1 + r.IntN(3) {
		k := all[r.IntN(len(all))]
		m[k.name] = k.draw()
	}
	return m
}

// drawDocument draws a schema with what its $ref lead to.
func drawDocument(r *rand.Rand, draft string) map[string]any {
	m, ok := drawSchema(r, draft, 3).(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	m["$defs"] = map[string]any{"x": drawSchema(r, draft, 2), "y": drawSchema(r, draft, 2), "n": map[string]any{"$anchor": "n", "type": "integer"}}
	m["$schema"] = "https://json-schema.org/draft/" + draft + "/schema"
	if number, old := strings.CutPrefix(draft, "draft-"); old {
		m["$schema"] = "http://json-schema.org/draft-" + number + "/schema#"
	}
	return m
}

// drawChange changes a schema within, at few places.
func drawChange(r *rand.Rand, draft string, s any) any {
	switch s := s.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, v := range s {
			switch {
			case strings.HasPrefix(k, "$") && k != "$defs":
				m[k] = v
			case r.IntN(16) == 0: // is gone
			default:
				m[k] = drawChange(r, draft, v)
			}
		}
		if more, ok := drawSchema(r, draft, 1).(map[string]any); ok && r.IntN(16) == 0 {
			for k, v := range more {
				m[k] = v
			}
		}
		return m
	case []any:
		out := make([]any, len(s))
		for i := range s {
			out[i] = drawChange(r, draft, s[i])
		}
		return out
	case string:
		if s == "integer" && r.IntN(3) == 0 {
			return []any{"number", "string"}[r.IntN(2)]
		}
	case int:
		if r.IntN(4) == 0 {
			return r.IntN(4)
		}
	}
	return s
}

func drawValue(r *rand.Rand, depth int) any {
	if depth > 0 && r.IntN(3) != 0 {
		if r.IntN(2) == 0 {
			out := []any{}
			for range r.IntN(4) {
				out = append(out, drawValue(r, depth-1))
			}
			return out
		}
		m := map[string]any{}
		for _, k := range []string{"a", "b", "c", "ab"} {
			if r.IntN(2) == 0 {
				m[k] = drawValue(r, depth-1)
			}
		}
		return m
	}
	return []any{nil, true, 0, 1, 2, 3, 1.5, json.Number("2.0"), "", "a", "abc"}[r.IntN(11)]
}

// drawn is how many schemas are drawn.
const drawn = 4000

// TestIncompatibleDrawn: of drawn schemas, where a change is found to be compatible, all drawn data
// that conform before conform after.
func TestIncompatibleDrawn(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible
	compatible, conform := 0, 0
	for range drawn {
		draft := []string{"2020-12", "2019-09", "draft-07", "draft-04"}[r.IntN(4)]
		was := drawDocument(r, draft)
		old, now := text(was), text(drawChange(r, draft, was))
		before, err := Compile(spec(old))
		if err != nil {
			continue
		}
		after, err := Compile(spec(now))
		if err != nil || len(Incompatible(spec(old), spec(now))) > 0 {
			continue
		}
		if compatible++; old == now {
			continue
		}
		for range 60 {
			data, err := json.Marshal(drawValue(r, 3))
			if err != nil {
				t.Fatal(err)
			}
			e := &event.Event{Data: data}
			if before.Check(e) != nil {
				continue
			}
			conform++
			if err := after.Check(e); err != nil && !strings.Contains(err.Error(), "too much work") {
				t.Fatalf("seed %d:\n%s\nto\n%s\nis compatible, and %s does not conform any more: %v", seed, old, now, data, err)
			}
		}
	}
	if compatible < drawn/50 || conform < drawn/2 {
		t.Errorf("seed %d: of %d schemas %d changes are compatible, %d data conform", seed, drawn, compatible, conform)
	}
}
