package schema

import (
	"bytes"
	"errors"
	"fmt"
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
	if _, _, err := scan(doc); err != nil {
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
	if _, _, err := scan(data); err != nil {
		return &Mismatch{Reason: err.Error()}
	}
	if !utf8.Valid(data) { // what reads them would make U+FFFD of it
		return &Mismatch{Reason: "they are no JSON: they are not UTF-8"}
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return &Mismatch{Reason: "they are no JSON: " + names.Text(err.Error(), maxMessage)}
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

// scan finds how deep JSON nests and how many values it has at most, without
// allocating: before anything is made of it. It does not find all that is no JSON.
func scan(b []byte) (depth, values int, err error) {
	at, number, exponent := 0, 0, -1
	values = 1
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case c >= '0' && c <= '9' || c == '.' || c == '+' || c == '-' || c == 'e' || c == 'E':
			if number++; number > maxNumber {
				return 0, 0, fmt.Errorf("a number has more than %d characters", maxNumber)
			}
			switch {
			case c == 'e' || c == 'E':
				exponent = 0
			case exponent >= 0 && c >= '0' && c <= '9':
				if exponent++; exponent > maxExponent {
					return 0, 0, fmt.Errorf("a number has an exponent of more than %d digits", maxExponent)
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
				return 0, 0, fmt.Errorf("they nest more than %d deep", maxDepth)
			}
			depth = max(depth, at)
			values++
		case c == '}' || c == ']':
			at--
		case c == ',':
			values++
		}
		if values > maxValues {
			return 0, 0, fmt.Errorf("they have more than %d values", maxValues)
		}
		number, exponent = 0, -1
	}
	return depth, values, nil
}
