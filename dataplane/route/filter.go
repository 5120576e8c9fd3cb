// Package route decides by an event's attributes: whether a filter matches, and
// which topic keeps an event that enters another. Everything is compiled when
// the configuration changes.
package route

import (
	"fmt"
	"strings"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cesql"
	"github.com/weft-mesh/weft/pkg/event"
)

// Filter is a compiled filter expression of the CloudEvents Subscriptions API.
// It is immutable; a nil Filter matches everything.
type Filter struct {
	op       op
	attrs    []event.Attr // exact, prefix, suffix
	children []*Filter    // all, any, not
	sql      *cesql.Expression
}

type op uint8

const (
	opExact op = iota
	opPrefix
	opSuffix
	opAll
	opAny
	opNot
	opSQL
)

// MaxDepth bounds how deep filter expressions nest.
const MaxDepth = 8

// MaxNodes bounds the expressions of one filter, nested ones among them.
const MaxNodes = 256

// A FieldError names the field that is wrong, relative to what was compiled.
type FieldError struct {
	Field  string
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// CompileFilter compiles f; nil gives nil. path is the field's own name, for
// errors, which are *FieldError.
func CompileFilter(f *configv1.Filter, path string) (*Filter, error) {
	if f == nil {
		return nil, nil
	}
	nodes := 0
	return compile(f, path, 1, &nodes)
}

func compile(f *configv1.Filter, path string, depth int, nodes *int) (*Filter, error) {
	if depth > MaxDepth {
		return nil, &FieldError{path, fmt.Sprintf("filters may nest %d deep", MaxDepth)}
	}
	if *nodes++; *nodes > MaxNodes {
		return nil, &FieldError{path, fmt.Sprintf("a filter may have %d expressions", MaxNodes)}
	}
	var out *Filter
	dialects := 0
	attrs := func(o op, name string, m map[string]string) error {
		if len(m) == 0 {
			return nil
		}
		dialects++
		out = &Filter{op: o}
		for k, v := range m {
			if !event.ValidName(k) {
				return &FieldError{path + "." + name, fmt.Sprintf("%q is not the name of an attribute", k)}
			}
			if v == "" {
				return &FieldError{path + "." + name + "." + k, "must not be empty"}
			}
			out.attrs = append(out.attrs, event.Attr{Name: k, Value: v})
		}
		event.SortAttrs(out.attrs)
		return nil
	}
	nested := func(o op, name string, fs []*configv1.Filter) error {
		if len(fs) == 0 {
			return nil
		}
		dialects++
		out = &Filter{op: o}
		for i, c := range fs {
			p := path + "." + name
			if o != opNot {
				p = fmt.Sprintf("%s[%d]", p, i)
			}
			child, err := compile(c, p, depth+1, nodes)
			if err != nil {
				return err
			}
			out.children = append(out.children, child)
		}
		return nil
	}
	var not []*configv1.Filter
	if f.Not != nil {
		not = []*configv1.Filter{f.Not}
	}
	for _, err := range []error{
		attrs(opExact, "exact", f.Exact), attrs(opPrefix, "prefix", f.Prefix), attrs(opSuffix, "suffix", f.Suffix),
		nested(opAll, "all", f.All), nested(opAny, "any", f.Any), nested(opNot, "not", not),
	} {
		if err != nil {
			return nil, err
		}
	}
	if f.Sql != "" {
		dialects++
		x, err := cesql.Compile(f.Sql)
		if err != nil {
			return nil, &FieldError{path + ".sql", err.Error()}
		}
		out = &Filter{op: opSQL, sql: x}
	}
	if dialects != 1 {
		return nil, &FieldError{path, "must have exactly one of exact, prefix, suffix, all, any, not, sql"}
	}
	return out, nil
}

// Match reports whether e matches. failed, if it is not nil, is told of each
// expression that cannot be evaluated for e, which then does not match. It borrows e
// and does not allocate, unless a function of an expression makes a string.
func (f *Filter) Match(e *event.Event, failed func(error)) bool {
	if f == nil {
		return true
	}
	switch f.op {
	case opAll:
		for _, c := range f.children {
			if !c.Match(e, failed) {
				return false
			}
		}
		return true
	case opAny:
		for _, c := range f.children {
			if c.Match(e, failed) {
				return true
			}
		}
		return false
	case opNot:
		return !f.children[0].Match(e, failed)
	case opSQL:
		ok, err := f.sql.Match(e)
		if err != nil && failed != nil {
			failed(err)
		}
		return ok
	}
	for i := range f.attrs {
		a := &f.attrs[i]
		v, ok := e.Attribute(a.Name)
		if !ok {
			return false
		}
		switch f.op {
		case opExact:
			ok = v == a.Value
		case opPrefix:
			ok = strings.HasPrefix(v, a.Value)
		case opSuffix:
			ok = strings.HasSuffix(v, a.Value)
		}
		if !ok {
			return false
		}
	}
	return true
}
