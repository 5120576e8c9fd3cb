package rest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
)

// Rule is a compiled HttpRule. It is immutable and safe for concurrent use.
type Rule struct {
	Method string
	// Topic is the topic of the namespace that the event enters.
	Topic string
	// Reply is set where the call waits for the reply to its event, at most for Timeout;
	// 0 is how long requests wait.
	Reply   bool
	Timeout time.Duration
	// written is the path as it was written.
	written    string
	path       pattern
	attributes []named
}

// method is the one of a rule.
func method(m string) string { return cmp.Or(m, http.MethodPost) }

func (r *Rule) String() string { return r.Method + " " + r.written }

// Kinds of variables of a rule, beside those of the path.
const (
	kindQuery  = "query"
	kindHeader = "header"
)

// CompileRule compiles r. Errors are *FieldError.
func CompileRule(r *configv1.HttpRule) (*Rule, error) {
	out := &Rule{Method: method(r.Method), Topic: r.Topic, Reply: r.Reply != nil, Timeout: r.Reply.GetTimeout().AsDuration(), written: r.Path}
	if !knownMethod(out.Method) {
		return nil, &FieldError{"method", "must be one of " + strings.Join(Methods(), ", ")}
	}
	if out.Method == http.MethodGet && !out.Reply {
		return nil, &FieldError{"method", "GET needs reply: what a call that only asks is answered with"}
	}
	if err := names.CheckName("topic", r.Topic); err != nil {
		return nil, &FieldError{"topic", err.Error()}
	}
	var err error
	if out.path, err = parsePattern(r.Path); err != nil {
		return nil, &FieldError{"path", err.Error()}
	}
	for _, name := range []string{event.AttrType, event.AttrSource} {
		if r.Attributes[name] == "" {
			return nil, &FieldError{"attributes." + name, "is required"}
		}
	}
	n := 0
	for _, name := range slices.Sorted(maps.Keys(r.Attributes)) {
		field := "attributes." + name
		switch {
		case !event.ValidName(name):
			return nil, &FieldError{field, "is not the name of an attribute ([a-z0-9])"}
		case name == event.AttrSpecVersion || name == event.AttrDataContentType || name == "data":
			return nil, &FieldError{field, "is not for a template: the call itself has it"}
		}
		t, err := ParseText(r.Attributes[name], out.variable)
		if err != nil {
			return nil, &FieldError{field, err.Error()}
		}
		for i, p := range t.parts {
			if p.variable == nil {
				continue
			}
			if n++; n > maxVariables {
				return nil, &FieldError{field, fmt.Sprintf("is beyond %d variables in all", maxVariables)}
			}
			if p.variable.Kind == kindHeader { // as requests have it
				t.parts[i].variable = &Variable{kindHeader, textproto.CanonicalMIMEHeaderKey(p.variable.Name)}
			}
		}
		out.attributes = append(out.attributes, named{name, t})
	}
	return out, nil
}

// variable judges a variable.
func (r *Rule) variable(v Variable) error {
	switch v.Kind {
	case "":
		if r.path.variable(v.Name) < 0 {
			return errors.New("is no variable of the path")
		}
	case kindQuery:
		if v.Name == "" {
			return errors.New("names no parameter")
		}
	case kindHeader:
		switch c := textproto.CanonicalMIMEHeaderKey(v.Name); {
		case !validHeader(v.Name):
			return errors.New("does not name a header")
		case c == "Authorization" || c == "Proxy-Authorization" || c == "Cookie":
			return errors.New("is a secret of the caller's, which belongs in no event")
		}
	default:
		return errors.New("is neither of the path nor of query or header")
	}
	return nil
}

// Event makes the event of a call: all but its data. An id that is empty is for the
// caller to give. The error, for callers, says what the call lacks.
func (r *Rule) Event(path *Path, query url.Values, h http.Header) (event.Event, error) {
	e := event.Event{DataContentType: h.Get("Content-Type")}
	if len(h["Content-Type"]) > 1 {
		return e, errors.New("header Content-Type is there twice")
	}
	for _, a := range r.attributes {
		var twice error
		s, missing := a.text.Expand(func(v Variable) (string, bool) {
			var values []string
			switch v.Kind {
			case kindQuery:
				values = query[v.Name]
			case kindHeader:
				values = h[v.Name]
			default:
				s, ok := r.path.value(v.Name, path)
				if a.name == event.AttrSource {
					s = escape(s)
				}
				return s, ok
			}
			if len(values) > 1 {
				twice = fmt.Errorf("%s, which attribute %s needs, is there %d times", v, a.name, len(values))
			}
			if len(values) != 1 || values[0] == "" {
				return "", false
			}
			if a.name == event.AttrSource {
				return url.PathEscape(values[0]), true
			}
			return values[0], true
		})
		switch {
		case twice != nil:
			return e, twice
		case missing != nil && (a.name == event.AttrType || a.name == event.AttrSource):
			return e, fmt.Errorf("the call has no %s, which attribute %s needs", *missing, a.name)
		case missing == nil:
			e.Set(a.name, s)
		}
	}
	return e, nil
}

// escape escapes the segments of a path.
func escape(s string) string {
	parts := strings.Split(s, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// Reads reports whether the event needs the query.
func (r *Rule) Reads() bool {
	return slices.ContainsFunc(r.attributes, func(a named) bool {
		return slices.ContainsFunc(a.text.parts, func(p part) bool { return p.variable != nil && p.variable.Kind == kindQuery })
	})
}

// CheckBinding tells whether the rules of a binding can be carried out, also beside
// each other. It yields everything that is wrong; each has a *FieldError's field.
func CheckBinding(b *configv1.HttpBinding, yield func(*FieldError)) {
	for i, r := range b.Rules {
		at := fmt.Sprintf("rules[%d].", i)
		if _, err := CompileRule(r); err != nil {
			if f, ok := errors.AsType[*FieldError](err); ok {
				yield(&FieldError{at + f.Field, f.Reason})
			}
			continue
		}
		for j, o := range b.Rules[:i] {
			if Conflict(r.Method, r.Path, o.Method, o.Path) {
				yield(&FieldError{at + "path", fmt.Sprintf("fits paths that %s %s of rules[%d] fits, and neither is more specific", method(o.Method), o.Path, j)})
			}
		}
	}
}
