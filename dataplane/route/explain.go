package route

import (
	"fmt"
	"strings"

	"github.com/weft-mesh/weft/pkg/cesql"
	"github.com/weft-mesh/weft/pkg/event"
)

// Bounds of what is shown of expressions, in bytes, and of the event.
const (
	maxExpression = 256
	maxValue      = 64
	maxValues     = 8
)

// Refuses says which expression of the filter, whose field is path, keeps e from
// matching; "" where it matches. It is for people: an attribute's value is shown as far
// as 64 bytes of it. It borrows e.
func (f *Filter) Refuses(e *event.Event, path string) string {
	if f == nil || f.Match(e, nil) {
		return ""
	}
	switch f.op {
	case opAll:
		for i, c := range f.children {
			if why := c.Refuses(e, fmt.Sprintf("%s.all[%d]", path, i)); why != "" {
				return why
			}
		}
	case opAny:
		return path + ".any: none of its expressions matches"
	case opNot:
		return path + ".not: its expression matches"
	case opSQL:
		if _, err := f.sql.Match(e); err != nil {
			return fmt.Sprintf("%s.sql: %s cannot be evaluated: %v%s", path, shown(f.sql.String(), maxExpression), err, values(f.sql, e))
		}
		return fmt.Sprintf("%s.sql: %s is not true%s", path, shown(f.sql.String(), maxExpression), values(f.sql, e))
	}
	name := map[op]string{opExact: "exact", opPrefix: "prefix", opSuffix: "suffix"}[f.op]
	for i := range f.attrs {
		a := &f.attrs[i]
		v, ok := e.Attribute(a.Name)
		if !ok {
			return fmt.Sprintf("%s.%s.%s: wants %q, the event has no attribute %s", path, name, a.Name, a.Value, a.Name)
		}
		if f.op == opExact && v != a.Value || f.op == opPrefix && !strings.HasPrefix(v, a.Value) || f.op == opSuffix && !strings.HasSuffix(v, a.Value) {
			return fmt.Sprintf("%s.%s.%s: wants %q, the event has %q", path, name, a.Name, a.Value, v[:min(len(v), maxValue)])
		}
	}
	return path + ": it does not match"
}

// values are the attributes of e that an expression looks at, the first of them.
func values(x *cesql.Expression, e *event.Event) string {
	var has []string
	all := x.Attributes()
	for _, name := range all[:min(len(all), maxValues)] {
		if v, ok := e.Attribute(name); ok {
			has = append(has, fmt.Sprintf("%s %q", name, v[:min(len(v), maxValue)]))
		} else {
			has = append(has, "no "+name)
		}
	}
	if n := len(all) - maxValues; n > 0 {
		has = append(has, fmt.Sprintf("and %d more", n))
	}
	if len(has) == 0 {
		return ""
	}
	return "; the event has " + strings.Join(has, ", ")
}

// shown is the beginning of a text, in one line.
func shown(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
