package rest

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// A FieldError names the field of a message that is wrong, relative to it.
type FieldError struct {
	Field  string // "headers.X-Tenant"
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Request is a compiled RestRequest. It is immutable and safe for concurrent use.
type Request struct {
	method  string
	path    []*Text // segments
	query   []named
	headers []named
	body    configv1.RestBody
	data    *member // of the variables of data; nil without
}

type named struct {
	name string
	text *Text
}

// maxVariables bounds the variables of a request together.
const maxVariables = 64

// CompileRequest compiles r. Errors are *FieldError.
func CompileRequest(r *configv1.RestRequest) (*Request, error) {
	out := &Request{method: r.Method, body: r.Body}
	if out.method == "" {
		out.method = http.MethodPost
	}
	if out.body == configv1.RestBody_REST_BODY_UNSPECIFIED {
		out.body = configv1.RestBody_REST_BODY_DATA
		if out.method == http.MethodGet || out.method == http.MethodDelete {
			out.body = configv1.RestBody_REST_BODY_NONE
		}
	}
	if out.body != configv1.RestBody_REST_BODY_NONE && out.method == http.MethodGet {
		return nil, &FieldError{"body", "must be none with GET"}
	}
	n := 0
	compile := func(field, s string) (*Text, error) {
		t, err := ParseText(s, eventVariable)
		if err != nil {
			return nil, &FieldError{field, err.Error()}
		}
		for _, v := range t.Variables() {
			if n++; n > maxVariables {
				return nil, &FieldError{field, fmt.Sprintf("is beyond %d variables in all", maxVariables)}
			}
			if v.Kind == kindData {
				if out.data == nil {
					out.data = &member{}
				}
				out.data.want(strings.Split(v.Name, "."))
			}
		}
		return t, nil
	}
	if err := out.compilePath(r.Path, compile); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		field string
		from  map[string]string
		to    *[]named
	}{{"query", r.Query, &out.query}, {"headers", r.Headers, &out.headers}} {
		for _, name := range slices.Sorted(maps.Keys(m.from)) {
			field := m.field + "." + name
			t, err := compile(field, m.from[name])
			if err != nil {
				return nil, err
			}
			if m.field == "headers" {
				if err := CheckHeader(name); err != nil {
					return nil, &FieldError{field, err.Error()}
				}
				name = textproto.CanonicalMIMEHeaderKey(name)
				if slices.ContainsFunc(out.headers, func(h named) bool { return h.name == name }) {
					return nil, &FieldError{field, "is there twice: names of headers do not differ by case"}
				}
			}
			*m.to = append(*m.to, named{name, t})
		}
	}
	return out, nil
}

func (r *Request) compilePath(path string, compile func(field, s string) (*Text, error)) error {
	if path == "" {
		return nil
	}
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return &FieldError{"path", "must begin with /"}
	}
	segments := strings.Split(rest, "/")
	if len(segments) > MaxSegments {
		return &FieldError{"path", fmt.Sprintf("has more than %d segments", MaxSegments)}
	}
	for i, s := range segments {
		if s == "" && i == len(segments)-1 {
			r.path = append(r.path, &Text{}) // ends with a slash
			continue
		}
		t, err := compile("path", s)
		if err != nil {
			return err
		}
		for _, p := range t.parts {
			if strings.ContainsAny(p.text, "?#%\\") {
				return &FieldError{"path", "must have no query, no fragment and no escapes: what is written is escaped by the proxy"}
			}
		}
		if len(t.Variables()) == 0 {
			if err := CheckSegment(t.plain()); err != nil {
				return &FieldError{"path", err.Error()}
			}
		}
		r.path = append(r.path, t)
	}
	return nil
}

func (t *Text) plain() string {
	if len(t.parts) == 0 {
		return ""
	}
	return t.parts[0].text
}

// Kinds of variables.
const kindData = "data"

// eventVariable judges the variables of a request.
func eventVariable(v Variable) error {
	switch {
	case v.Kind == kindData:
		for name := range strings.SplitSeq(v.Name, ".") {
			if name == "" || strings.ContainsAny(name, "{}") {
				return errors.New("is not the path of a member of data, such as {data.order.id}")
			}
		}
		if strings.Count(v.Name, ".") >= maxDepth {
			return fmt.Errorf("is more than %d members deep", maxDepth)
		}
		return nil
	case v.Kind != "":
		return errors.New("is neither an attribute nor of data")
	case !event.ValidName(v.Name) || v.Name == kindData:
		return errors.New("is not the name of an attribute ([a-z0-9])")
	}
	return nil
}

// Call is what is sent. Body is lent as long as the event.
type Call struct {
	Method string
	// Path is escaped; "" or with a slash at its beginning.
	Path string
	// Query is escaped; "" without one.
	Query string
	// Header is the caller's to change.
	Header http.Header
	Body   []byte
}

// Make makes the request of an event, which it borrows. The error, for people,
// says why there is none: it is so at every attempt.
func (r *Request) Make(e *event.Event) (Call, error) {
	var data map[string]string
	if r.data != nil {
		data = r.data.read(e.Data)
	}
	value := func(v Variable) (string, bool) {
		if v.Kind == kindData {
			s, ok := data[v.Name]
			return s, ok
		}
		return e.Attribute(v.Name)
	}
	c := Call{Method: r.method, Header: make(http.Header, len(r.headers)+8)}
	var path strings.Builder
	for i, t := range r.path {
		s, missing := t.Expand(value)
		if missing != nil {
			return c, fmt.Errorf("the event has no %s, which the path needs", *missing)
		}
		if err := within(s); err != nil && (s != "" || i < len(r.path)-1 || len(t.parts) > 0) {
			return c, err
		}
		path.WriteByte('/')
		path.WriteString(url.PathEscape(s))
	}
	c.Path = path.String()
	var query strings.Builder
	for _, q := range r.query {
		s, missing := q.text.Expand(value)
		if missing != nil {
			continue
		}
		if query.Len() > 0 {
			query.WriteByte('&')
		}
		query.WriteString(url.QueryEscape(q.name))
		query.WriteByte('=')
		query.WriteString(url.QueryEscape(s))
	}
	c.Query = query.String()
	switch r.body {
	case configv1.RestBody_REST_BODY_EVENT:
		c.Body = cloudevents.AppendJSON(nil, e)
		c.Header["Content-Type"] = []string{cloudevents.TypeJSON}
	case configv1.RestBody_REST_BODY_DATA:
		c.Body = e.Data
		if e.DataContentType != "" {
			c.Header["Content-Type"] = []string{HeaderValue(e.DataContentType)}
		}
	}
	for _, h := range r.headers {
		if s, missing := h.text.Expand(value); missing == nil {
			c.Header[h.name] = []string{HeaderValue(s)}
		}
	}
	return c, nil
}

// within tells whether a value can be one segment, whoever reads the path: also
// where somebody takes an escaped slash for a slash.
func within(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("a value in the path is not UTF-8")
	}
	if s == "" {
		return errors.New("a value in the path is empty")
	}
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '/' || r == '\\' }) {
		part, _, _ = strings.Cut(part, ";")
		if part == "." || part == ".." {
			return errors.New(`a value in the path has a segment "." or ".."`)
		}
	}
	if strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 }) >= 0 {
		return errors.New("a value in the path has a control character")
	}
	return nil
}
