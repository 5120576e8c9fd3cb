package route

import (
	"math/bits"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/pkg/event"
)

// MaxRules bounds the rules of a Route; a ruleSet holds as many.
const MaxRules = 1000

// indexFrom is how many rules a Route has at least for an index: fewer are tried faster.
const indexFrom = 4

// index finds the rules of a Route whose filters an event may match, without trying the
// others. Each rule stands under conditions of which one must hold for its filter to
// match: of several that must all hold, those that fewest rules have. A rule without
// such conditions may match any event. Where a filter is nothing but a condition that
// holds, it is not tried again.
type index struct {
	core  []attribute // that are fields of an event
	ext   []attribute // extensions
	byExt map[string]int
	// rest are the rules that stand under no condition; tried is set where there is a
	// rule that a condition alone does not make match.
	rest  posting
	tried bool
}

// attribute has the conditions on one attribute.
type attribute struct {
	name     string
	exact    table[posting]
	prefixes ends
	suffixes ends
}

// posting are the rules that stand under a condition, by their numbers.
type posting struct {
	match int32   // the first that matches where the condition holds; MaxRules for none
	may   []int32 // those before it, which may
}

// found is what is known of the rules for an event.
type found struct {
	match int32       // the first that is known to match; MaxRules for none
	some  uint16      // which words of may are not 0
	may   *[16]uint64 // rules that may match; nil where none is tried
}

func (f *found) add(p *posting) {
	f.match = min(f.match, p.match)
	for _, i := range p.may {
		f.some |= 1 << (i / 64)
		f.may[i/64%16] |= 1 << (i % 64)
	}
}

// condition is one on an attribute, exact, prefix or suffix.
type condition struct {
	op op
	event.Attr
}

// newIndex makes the index of rules, at most MaxRules, whose order stays.
func newIndex(rules []rule) *index {
	count := map[condition]int{}
	for i := range rules {
		seen := map[condition]bool{}
		rules[i].filter.conditions(func(c condition) { seen[c] = true })
		for c := range seen {
			count[c]++
		}
	}
	x := &index{byExt: map[string]int{}, rest: posting{match: MaxRules}}
	posted := map[condition]*posting{}
	for i := range rules {
		f := rules[i].filter
		cover, ok := f.cover(count)
		if !ok {
			x.rest.post(int32(i), f == nil)
		}
		for _, c := range cover {
			if posted[c] == nil {
				posted[c] = &posting{match: MaxRules}
			}
			posted[c].post(int32(i), f.is(c))
		}
	}
	x.tried = len(x.rest.may) > 0
	attrs := map[string]map[op]map[string]posting{}
	for c, p := range posted {
		if attrs[c.Name] == nil {
			attrs[c.Name] = map[op]map[string]posting{opExact: {}, opPrefix: {}, opSuffix: {}}
		}
		attrs[c.Name][c.op][c.Value] = *p
		x.tried = x.tried || len(p.may) > 0
	}
	for name, ops := range attrs {
		a := attribute{name: name, exact: newTable(ops[opExact]), prefixes: newEnds(ops[opPrefix], false), suffixes: newEnds(ops[opSuffix], true)}
		if slices.Contains(coreAttributes, name) {
			x.core = append(x.core, a)
			continue
		}
		x.byExt[name] = len(x.ext)
		x.ext = append(x.ext, a)
	}
	return x
}

// post adds a rule, in the order of their numbers. It matches for sure, or it may.
func (p *posting) post(rule int32, matches bool) {
	switch {
	case p.match < rule: // comes first whatever this one does
	case matches:
		p.match = rule
	default:
		p.may = append(p.may, rule)
	}
}

// is reports whether f matches every event for which c holds.
func (f *Filter) is(c condition) bool {
	switch f.op {
	case opExact, opPrefix, opSuffix:
		return f.op == c.op && len(f.attrs) == 1 && f.attrs[0] == c.Attr
	case opAny:
		return slices.ContainsFunc(f.children, func(child *Filter) bool { return child.is(c) })
	}
	return false
}

var coreAttributes = []string{event.AttrID, event.AttrSource, event.AttrSpecVersion, event.AttrType, event.AttrSubject,
	event.AttrTime, event.AttrDataContentType, event.AttrDataSchema}

// conditions calls found with each condition on an attribute that f has.
func (f *Filter) conditions(found func(condition)) {
	if f == nil {
		return
	}
	for _, a := range f.attrs {
		found(condition{f.op, a})
	}
	for _, c := range f.children {
		c.conditions(found)
	}
}

// cover gives conditions of which at least one holds for every event that f matches,
// and false where there are none such. count is how many rules have a condition.
func (f *Filter) cover(count map[condition]int) (best []condition, ok bool) {
	if f == nil {
		return nil, false
	}
	most := func(cs []condition) int {
		n := 0
		for _, c := range cs {
			n += count[c]
		}
		return n
	}
	better := func(cs []condition) {
		if !ok || most(cs) < most(best) {
			best, ok = cs, true
		}
	}
	switch f.op {
	case opExact, opPrefix, opSuffix:
		for _, a := range f.attrs {
			better([]condition{{f.op, a}})
		}
	case opAll:
		for _, c := range f.children {
			if cs, some := c.cover(count); some {
				better(cs)
			}
		}
	case opAny:
		for _, c := range f.children {
			cs, some := c.cover(count)
			if !some {
				return nil, false
			}
			best = append(best, cs...)
		}
		slices.SortFunc(best, func(a, b condition) int {
			if a.op != b.op {
				return int(a.op) - int(b.op)
			}
			return strings.Compare(a.Name+"="+a.Value, b.Name+"="+b.Value)
		})
		return slices.Compact(best), true
	}
	return best, ok
}

// first is the number of the first of rules whose filter matches e, as trying each of
// them would find it; -1 where none does. failed is as for Filter.Match, of the
// filters that are tried.
func (x *index) first(rules []rule, e *event.Event, failed func(error)) int {
	known := found{match: MaxRules}
	if x.tried {
		known.may = &[16]uint64{}
	}
	known.add(&x.rest)
	for i := range x.core {
		if v, ok := e.Attribute(x.core[i].name); ok {
			x.core[i].find(v, &known)
		}
	}
	if len(x.ext) <= len(e.Ext) {
		for i := range x.ext {
			if v, ok := event.Lookup(e.Ext, x.ext[i].name); ok {
				x.ext[i].find(v, &known)
			}
		}
	} else if len(x.ext) > 0 {
		for _, a := range e.Ext {
			if i, ok := x.byExt[a.Name]; ok {
				x.ext[i].find(a.Value, &known)
			}
		}
	}
	for ; known.some != 0; known.some &= known.some - 1 {
		at := bits.TrailingZeros16(known.some)
		for word := known.may[at%16]; word != 0; word &= word - 1 {
			i := at*64 + bits.TrailingZeros64(word)
			if i > int(known.match) {
				return int(known.match)
			}
			if rules[i].filter.Match(e, failed) {
				return i
			}
		}
	}
	if known.match == MaxRules {
		return -1
	}
	return int(known.match)
}

// find adds the rules that stand under conditions that v meets.
func (a *attribute) find(v string, known *found) {
	if len(a.exact.slots) > 0 {
		if p := a.exact.get(v); p != nil {
			known.add(p)
		}
	}
	if n := a.prefixes.shared; n > 0 && len(v) >= n {
		if h := a.prefixes.heads.get(v[:n]); h != nil {
			known.add(&h.rules)
			h.more.prefixes(v[n:], known)
		}
	}
	if n := a.suffixes.shared; n > 0 && len(v) >= n {
		if h := a.suffixes.heads.get(v[len(v)-n:]); h != nil {
			known.add(&h.rules)
			h.more.suffixes(v[:len(v)-n], known)
		}
	}
}
