package route

import (
	"fmt"
	"strings"

	"github.com/weft-mesh/weft/pkg/event"
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
			return fmt.Sprintf("%s.sql: it cannot be evaluated: %v", path, err)
		}
		return path + ".sql: it is not true"
	}
	name := map[op]string{opExact: "exact", opPrefix: "prefix", opSuffix: "suffix"}[f.op]
	for i := range f.attrs {
		a := &f.attrs[i]
		v, ok := e.Attribute(a.Name)
		if !ok {
			return fmt.Sprintf("%s.%s.%s: wants %q, the event has no attribute %s", path, name, a.Name, a.Value, a.Name)
		}
		if f.op == opExact && v != a.Value || f.op == opPrefix && !strings.HasPrefix(v, a.Value) || f.op == opSuffix && !strings.HasSuffix(v, a.Value) {
			return fmt.Sprintf("%s.%s.%s: wants %q, the event has %q", path, name, a.Name, a.Value, v[:min(len(v), 64)])
		}
	}
	return path + ": it does not match"
}
