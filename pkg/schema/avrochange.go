package schema

import (
	"fmt"
	"slices"
	"strings"
)

// avroUnreadable tells why a reader of one schema cannot read all that is written by
// another; "" where it can. The rules are those of Avro's schema resolution.
func avroUnreadable(reader, writer *avroType) string {
	c := avroChange{failed: map[[2]*avroType]string{}}
	for {
		// Types that lead to themselves are assumed to fit until they are seen not to.
		known := len(c.failed)
		c.seen = map[[2]*avroType]bool{}
		why := c.reads("", reader, writer)
		if c.work > maxWork {
			return "cannot be judged: it is too large"
		}
		if len(c.failed) == known || why != "" {
			return why
		}
	}
}

type avroChange struct {
	seen   map[[2]*avroType]bool
	failed map[[2]*avroType]string
	work   int
}

func (c *avroChange) reads(at string, r, w *avroType) string {
	k := [2]*avroType{r, w}
	if why, ok := c.failed[k]; ok {
		return why
	}
	if c.work++; c.seen[k] || c.work > maxWork || len(c.seen) > maxValues {
		if len(c.seen) > maxValues {
			c.work = maxWork + 1
		}
		return ""
	}
	c.seen[k] = true
	why := c.fits(at, r, w)
	if why != "" {
		c.failed[k] = why
	}
	return why
}

// promotes are what a reader takes for what was written.
var promotes = map[string][]string{"int": {"long", "float", "double"}, "long": {"float", "double"}, "float": {"double"}, "string": {"bytes"}, "bytes": {"string"}}

func (c *avroChange) fits(at string, r, w *avroType) string {
	no := func(format string, args ...any) string {
		return misfit(at, format, args...).Error()
	}
	switch {
	case w.kind == "union":
		for _, b := range w.branches {
			if why := c.reads(at, r, b); why != "" {
				return why
			}
		}
		return ""
	case r.kind == "union":
		first := ""
		for _, b := range r.branches {
			why := c.reads(at, b, w)
			if why == "" {
				return ""
			}
			if b.kind == w.kind && b.name == w.name {
				first = why
			}
		}
		if first != "" {
			return first
		}
		return no("the union has nothing that reads %s", w)
	case r.kind != w.kind:
		if slices.Contains(promotes[w.kind], r.kind) {
			return ""
		}
		return no("%s does not read %s", r, w)
	case r.name != "" && last(r.name) != last(w.name) && !slices.Contains(r.aliases, w.name):
		return no("%s is no alias of %s", w, r)
	case r.decimal != w.decimal && r.decimal != "" && w.decimal != "":
		return no("a decimal of %s reads none of %s", r.decimal, w.decimal)
	}
	switch r.kind {
	case "fixed":
		if r.size != w.size {
			return no("%s has %d bytes, not %d", r, r.size, w.size)
		}
	case "enum":
		for _, s := range w.symbols {
			if !slices.Contains(r.symbols, s) && !r.fallback {
				return no("%s has no symbol %s, and no default", r, s)
			}
		}
	case "array", "map":
		return c.reads(at+"/"+map[string]string{"array": "items", "map": "values"}[r.kind], r.items, w.items)
	case "record":
		for _, f := range r.fields {
			i := slices.IndexFunc(w.fields, func(g avroField) bool { return g.name == f.name })
			if i < 0 {
				i = slices.IndexFunc(w.fields, func(g avroField) bool { return slices.Contains(f.aliases, g.name) })
			}
			if i < 0 {
				if !f.fallback {
					return no("the field %s is not in what is read, and has no default", f.name)
				}
				continue
			}
			if why := c.reads(at+"/"+f.name, f.of, w.fields[i].of); why != "" {
				return why
			}
		}
	}
	return ""
}

// String names a type.
func (t *avroType) String() string { return strings.TrimSpace(fmt.Sprintf("%s %s", t.kind, t.name)) }

func last(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }
