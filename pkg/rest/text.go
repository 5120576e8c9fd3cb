// Package rest has the templates with which events become REST calls: texts with
// variables, and what answers mean. Both planes use it: one to judge what a user
// writes, the other to carry it out.
package rest

import (
	"fmt"
	"strings"
)

// Bounds of a template: its bytes, the variables in it, and the segments of a
// path.
const (
	MaxBytes     = 2048
	MaxVariables = 16
	MaxSegments  = 32
)

// Variable is what a text has in braces: {subject} has the name alone,
// {data.order.id} the kind data and the name order.id.
type Variable struct{ Kind, Name string }

func (v Variable) String() string {
	if v.Kind == "" {
		return "{" + v.Name + "}"
	}
	return "{" + v.Kind + "." + v.Name + "}"
}

// Text is a text with variables. It is immutable and safe for concurrent use.
type Text struct{ parts []part }

// part is a variable, or text without one.
type part struct {
	text     string
	variable *Variable
}

// ParseText parses a text: variables stand in braces, {{ is a brace itself and
// so is }}. Which variables there are known says, whose error is about the name.
func ParseText(s string, known func(Variable) error) (*Text, error) {
	if len(s) > MaxBytes {
		return nil, fmt.Errorf("has %d bytes, a template may have %d", len(s), MaxBytes)
	}
	t, n := &Text{}, 0
	var plain strings.Builder
	flush := func() {
		if plain.Len() > 0 {
			t.parts = append(t.parts, part{text: plain.String()})
			plain.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c < 0x20 || c == 0x7f:
			return nil, fmt.Errorf("has the control character U+%04X", c)
		case (c == '{' || c == '}') && i+1 < len(s) && s[i+1] == c:
			plain.WriteByte(c)
			i++
		case c == '}':
			return nil, fmt.Errorf("has a closing brace without an opening one; a brace itself is }}")
		case c != '{':
			plain.WriteByte(c)
		default:
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return nil, fmt.Errorf("has an opening brace without a closing one; a brace itself is {{")
			}
			v := variable(s[i+1 : i+end])
			if err := known(v); err != nil {
				return nil, fmt.Errorf("%s: %w", v, err)
			}
			if n++; n > MaxVariables {
				return nil, fmt.Errorf("has more than %d variables", MaxVariables)
			}
			flush()
			t.parts = append(t.parts, part{variable: &v})
			i += end
		}
	}
	flush()
	return t, nil
}

func variable(s string) Variable {
	if kind, name, ok := strings.Cut(s, "."); ok {
		return Variable{kind, name}
	}
	return Variable{Name: s}
}

// Variables are those in the text, in their order.
func (t *Text) Variables() []Variable {
	var out []Variable
	for _, p := range t.parts {
		if p.variable != nil {
			out = append(out, *p.variable)
		}
	}
	return out
}

// Expand puts the values of variables in. Missing, if it is not nil, is one that
// has none: then there is no text.
func (t *Text) Expand(value func(Variable) (string, bool)) (text string, missing *Variable) {
	if len(t.parts) == 1 && t.parts[0].variable == nil {
		return t.parts[0].text, nil
	}
	var b strings.Builder
	for _, p := range t.parts {
		if p.variable == nil {
			b.WriteString(p.text)
			continue
		}
		v, ok := value(*p.variable)
		if !ok {
			return "", p.variable
		}
		b.WriteString(v)
	}
	return b.String(), nil
}
