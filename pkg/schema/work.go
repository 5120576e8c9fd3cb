package schema

import (
	"errors"
	"maps"
	"slices"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// minDepth is how deep data must be able to nest by any schema: one that judges a value
// no deeper in too many ways is refused as such, beyond that the meter has the say.
const minDepth = 4

// counts are how often schemas are evaluated.
type counts map[*jsonschema.Schema]int64

// add adds n times what o has.
func (c counts) add(o counts, n int64) {
	for s, m := range o {
		c[s] = min(c[s]+min(n, maxWork)*m, maxWork+1)
	}
}

// maxSpread bounds what the schemas that judge one value together lead to.
const maxSpread = 1 << 17

// count refuses a schema by how often a value may be judged: one that leads to a value
// in several ways (allOf, anyOf, $ref) at each level may take time exponential in the
// depth of the data. order is all that is reachable.
func count(root *jsonschema.Schema, order []*jsonschema.Schema) error {
	// spread are the schemas that judge a value because one does, itself among them.
	spread, size := map[*jsonschema.Schema]counts{}, 0
	for _, sch := range order {
		c := counts{sch: 1}
		for _, to := range same(sch) {
			c.add(spread[to], 1)
		}
		spread[sch] = c
		if size += len(c); size > maxSpread {
			return errTooMany
		}
	}
	here := spread[root]
	for range minDepth + 1 {
		total := int64(0)
		for _, n := range here {
			if total += n; total > maxWork {
				return errTooMany
			}
		}
		// Of a value within, only those of one property of each schema count.
		within, named := counts{}, map[string]counts{}
		for sch, n := range here {
			for _, to := range inside(sch) {
				within.add(spread[to], n)
			}
			for k, to := range sch.Properties {
				if named[k] == nil {
					named[k] = counts{}
				}
				named[k].add(spread[to], n)
			}
		}
		byName := counts{}
		for _, c := range named {
			for to, n := range c {
				byName[to] = max(byName[to], n)
			}
		}
		within.add(byName, 1)
		here = within
	}
	return nil
}

var errTooMany = errors.New("judges a value in too many ways: its allOf, anyOf, oneOf and $ref multiply")

// reachable are all parts of a schema, each behind those that judge the same value
// because of it.
func reachable(root *jsonschema.Schema) ([]*jsonschema.Schema, error) {
	const entered, left = 1, 2
	state := map[*jsonschema.Schema]int{}
	var order, next []*jsonschema.Schema
	var visit func(*jsonschema.Schema) error
	visit = func(s *jsonschema.Schema) error {
		switch state[s] {
		case entered:
			return errors.New("a $ref leads back to itself")
		case left:
			return nil
		}
		if s.DynamicRef != nil || s.RecursiveRef != nil {
			return errors.New("$dynamicRef and $recursiveRef are not taken: use $ref")
		}
		state[s] = entered
		for _, to := range same(s) {
			if err := visit(to); err != nil {
				return err
			}
		}
		state[s] = left
		order = append(order, s)
		next = append(next, inside(s)...)
		next = append(next, slices.Collect(maps.Values(s.Properties))...)
		return nil
	}
	for next = append(next, root); len(next) > 0; {
		s := next[0]
		next = next[1:]
		if err := visit(s); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// same are the schemas that judge the value which s judges.
func same(s *jsonschema.Schema) []*jsonschema.Schema {
	out := slices.Concat(s.AllOf, s.AnyOf, s.OneOf, some(s.Ref, s.Not, s.If, s.Then, s.Else), slices.Collect(maps.Values(s.DependentSchemas)))
	for _, d := range s.Dependencies {
		if d, ok := d.(*jsonschema.Schema); ok {
			out = append(out, d)
		}
	}
	return out
}

// inside are the schemas that judge values within the one which s judges, but for
// its properties by name.
func inside(s *jsonschema.Schema) []*jsonschema.Schema {
	out := slices.Concat(s.PrefixItems, some(s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.Items2020, s.UnevaluatedItems, s.ContentSchema), slices.Collect(maps.Values(s.PatternProperties)))
	for _, v := range []any{s.AdditionalProperties, s.AdditionalItems, s.Items} {
		switch v := v.(type) {
		case *jsonschema.Schema:
			out = append(out, some(v)...)
		case []*jsonschema.Schema:
			out = append(out, v...)
		}
	}
	return out
}

func some(list ...*jsonschema.Schema) []*jsonschema.Schema {
	return slices.DeleteFunc(list, func(s *jsonschema.Schema) bool { return s == nil })
}
