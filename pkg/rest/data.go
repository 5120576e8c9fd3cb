package rest

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth bounds how deep variables reach into data.
const maxDepth = 16

// member is a member of data that is a variable, or has some below it: a tree,
// so that data is read once.
type member struct {
	name   string // the variable's; "" where there is none
	wanted bool
	below  map[string]*member
}

// want adds a variable.
func (m *member) want(path []string) {
	at := m
	for _, p := range path {
		if at.below == nil {
			at.below = map[string]*member{}
		}
		next := at.below[p]
		if next == nil {
			next = &member{name: p}
			if at.name != "" {
				next.name = at.name + "." + p
			}
			at.below[p] = next
		}
		at = next
	}
	at.wanted = true
}

// read gives the values of the variables that are strings, numbers or booleans
// in data; none where data is not JSON as a whole, or names a member twice.
func (m *member) read(data []byte) map[string]string {
	out := map[string]string{}
	d := jsontext.NewDecoder(bytes.NewReader(data))
	if err := m.scan(d, out); err != nil {
		return nil
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil // there is more
	}
	return out
}

func (m *member) scan(d *jsontext.Decoder, out map[string]string) error {
	switch kind := d.PeekKind(); {
	case kind == '{' && m.below != nil:
		if _, err := d.ReadToken(); err != nil {
			return err
		}
		for d.PeekKind() == '"' {
			name, err := d.ReadToken()
			if err != nil {
				return err
			}
			next := m.below[name.String()]
			if next == nil {
				err = d.SkipValue()
			} else {
				err = next.scan(d, out)
			}
			if err != nil {
				return err
			}
		}
		_, err := d.ReadToken()
		return err
	case m.wanted && (kind == '"' || kind == '0' || kind == 't' || kind == 'f'):
		v, err := d.ReadToken()
		if err == nil {
			out[m.name] = v.String()
		}
		return err
	}
	return d.SkipValue()
}
