package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/weft-mesh/weft/pkg/names"
)

// jsonSchema is a compiled JSON Schema.
type jsonSchema struct {
	compiled *jsonschema.Schema
	meter    *part
	printer  *message.Printer
}

// location is the document's own; nothing is there to be fetched.
const location = "weft:schema"

// noLoader fetches nothing.
type noLoader struct{}

func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("%q is outside of the document: nothing is fetched", names.Text(url, 200))
}

// parse reads JSON within bounds.
func parse(doc []byte) (any, error) {
	if _, err := scan(doc); err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(doc))
}

func compileJSON(document string) (*jsonSchema, error) {
	doc, err := parse([]byte(document))
	if err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	if err := fewNested(doc, ""); err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.UseLoader(noLoader{})
	re := patterns{known: map[string]pattern{}, left: maxPatterns}
	c.UseRegexpEngine(re.compile)
	if err := c.AddResource(location, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(location)
	switch {
	case re.err != nil:
		return nil, re.err
	case err != nil:
		return nil, fmt.Errorf("is no JSON Schema: %w", err)
	}
	parts, err := reachable(s)
	if err == nil {
		err = count(s, parts)
	}
	if err != nil {
		return nil, err
	}
	quicken(parts)
	return &jsonSchema{s, metered(s, parts), message.NewPrinter(language.English)}, nil
}

// check judges data.
func (s *jsonSchema) check(data []byte) error {
	found, err := scan(data)
	if err != nil {
		return &Mismatch{Reason: err.Error()}
	}
	if !utf8.Valid(data) { // what reads them would make U+FFFD of it
		return &Mismatch{Reason: "they are no JSON: they are not UTF-8"}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return &Mismatch{Reason: "they are no JSON: " + names.Text(err.Error(), maxMessage)}
	}
	if members(v) < found.members {
		return &Mismatch{Path: names.Text(twice(data), maxMessage), Reason: "this member is there twice: those who read it do not all take the same one"}
	}
	if err := measure(s.meter, v); err != nil {
		return &Mismatch{Reason: err.Error()}
	}
	err = s.compiled.Validate(v)
	if err == nil {
		return nil
	}
	var ve *jsonschema.ValidationError
	if !errors.As(err, &ve) {
		return &Mismatch{Reason: names.Text(err.Error(), maxMessage)}
	}
	for len(ve.Causes) > 0 {
		ve = ve.Causes[0]
	}
	return &Mismatch{Path: names.Text(pointer(ve.InstanceLocation), maxMessage), Reason: names.Text(ve.ErrorKind.LocalizedString(s.printer), maxMessage)}
}

// pointer is a JSON pointer (RFC 6901).
func pointer(path []string) string {
	var b strings.Builder
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	for _, p := range path {
		b.WriteByte('/')
		b.WriteString(escape.Replace(p))
	}
	return b.String()
}

// Bounds of JSON that is judged: beyond, it would cost more than an event may.
const (
	maxDepth    = 64
	maxValues   = 1 << 16
	maxNumber   = 64 // characters of a number
	maxExponent = 3  // digits of its exponent
)

// scanned is what there is in JSON, at most.
type scanned struct{ depth, values, members int }

// scan finds how deep JSON nests and how much there is in it at most, without
// allocating: before anything is made of it. It does not find all that is no JSON.
func scan(b []byte) (found scanned, err error) {
	at, number, exponent := 0, 0, -1
	found.values = 1
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case c >= '0' && c <= '9' || c == '.' || c == '+' || c == '-' || c == 'e' || c == 'E':
			if number++; number > maxNumber {
				return scanned{}, fmt.Errorf("a number has more than %d characters", maxNumber)
			}
			switch {
			case c == 'e' || c == 'E':
				exponent = 0
			case exponent >= 0 && c >= '0' && c <= '9':
				if exponent++; exponent > maxExponent {
					return scanned{}, fmt.Errorf("a number has an exponent of more than %d digits", maxExponent)
				}
			}
			continue
		case c == '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case c == '{' || c == '[':
			if at++; at > maxDepth {
				return scanned{}, fmt.Errorf("they nest more than %d deep", maxDepth)
			}
			found.depth = max(found.depth, at)
			found.values++
		case c == '}' || c == ']':
			at--
		case c == ',':
			found.values++
		case c == ':':
			found.members++
		}
		if found.values > maxValues {
			return scanned{}, fmt.Errorf("they have more than %d values", maxValues)
		}
		number, exponent = 0, -1
	}
	return found, nil
}

// members is how many members all objects of v have.
func members(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		n = len(v)
		for _, m := range v {
			n += members(m)
		}
	case []any:
		for _, m := range v {
			n += members(m)
		}
	}
	return n
}

// twice is where in JSON a member is that its object had before; "" where none is.
func twice(data []byte) string {
	dec := json.NewDecoder(bytes.NewReader(data))
	var next func(path []string) []string
	next = func(path []string) []string {
		t, err := dec.Token()
		if err != nil {
			return nil
		}
		had := map[string]bool{}
		for i := 0; (t == json.Delim('{') || t == json.Delim('[')) && dec.More(); i++ {
			at := strconv.Itoa(i)
			if t == json.Delim('{') {
				name, err := dec.Token()
				if err != nil {
					return nil
				}
				if at, _ = name.(string); had[at] {
					return append(path, at)
				}
				had[at] = true
			}
			if found := next(append(path, at)); found != nil {
				return found
			}
		}
		if _, nests := t.(json.Delim); nests {
			_, _ = dec.Token() // its end
		}
		return nil
	}
	return pointer(next(nil))
}
