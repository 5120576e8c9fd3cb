// Package cloudevents turns events into the formats and bindings of CloudEvents
// 1.0 and back: JSON (single and batch), the HTTP binding's binary mode, and
// the protobuf format. Decoders take outside bytes: they bound what they
// allocate by what they were given, and say what is wrong.
package cloudevents

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/weft-mesh/weft/pkg/event"
)

// Media types of the formats.
const (
	TypeJSON  = "application/cloudevents+json"
	TypeBatch = "application/cloudevents-batch+json"
	// typePrefix begins those of all formats, as the HTTP binding has it.
	typePrefix = "application/cloudevents"
)

// headerPrefix begins the names of attribute headers, in canonical form.
const headerPrefix = "Ce-"

// DecodeBinary makes an event of the headers and the body of an HTTP message in
// binary mode (HTTP binding, 3.1). It keeps body. The event is not validated.
func DecodeBinary(h http.Header, body []byte) (event.Event, error) {
	e := event.Event{Data: body, DataContentType: h.Get("Content-Type")}
	version := false
	for name, values := range h {
		attr, ok := attributeOf(name)
		if !ok {
			continue
		}
		if len(values) != 1 {
			return e, fmt.Errorf("header ce-%s is there %d times", clip(attr), len(values))
		}
		value, err := decodeHeader(values[0])
		if err != nil {
			return e, fmt.Errorf("header ce-%s: %w", clip(attr), err)
		}
		if attr == event.AttrSpecVersion {
			version = true
			if value != event.SpecVersion {
				return e, fmt.Errorf("ce-specversion is %q; this is for version 1.0", clip(value))
			}
			continue
		}
		if attr == event.AttrDataContentType {
			return e, fmt.Errorf("ce-datacontenttype is not a header of binary mode: it is Content-Type")
		}
		if err := set(&e, attr, value); err != nil {
			return e, err
		}
	}
	if !version {
		return e, fmt.Errorf("header ce-specversion is missing: a CloudEvent in binary mode has ce-specversion, ce-id, ce-source and ce-type; structured mode has Content-Type %s", TypeJSON)
	}
	event.SortAttrs(e.Ext)
	return e, nil
}

// attributeOf is the attribute that a header has.
func attributeOf(header string) (attr string, ok bool) {
	switch header { // those of every event take no memory
	case "Ce-Id":
		return event.AttrID, true
	case "Ce-Source":
		return event.AttrSource, true
	case "Ce-Specversion":
		return event.AttrSpecVersion, true
	case "Ce-Type":
		return event.AttrType, true
	case "Ce-Subject":
		return event.AttrSubject, true
	case "Ce-Time":
		return event.AttrTime, true
	}
	attr, ok = strings.CutPrefix(header, headerPrefix)
	return strings.ToLower(attr), ok
}

// maxExtensions are read of an event, which may have what the mesh has added: whether it
// may have them all is judged later.
const maxExtensions = event.MaxAttributes + event.MaxAdded

// set sets an attribute by name.
func set(e *event.Event, name, value string) error {
	switch name {
	case event.AttrID:
		e.ID = value
	case event.AttrSource:
		e.Source = value
	case event.AttrType:
		e.Type = value
	case event.AttrSubject:
		e.Subject = value
	case event.AttrTime:
		e.Time = value
	case event.AttrDataContentType:
		e.DataContentType = value
	case event.AttrDataSchema:
		e.DataSchema = value
	default:
		if len(e.Ext) >= maxExtensions {
			return fmt.Errorf("the event has more than %d extension attributes", maxExtensions)
		}
		e.Ext = append(e.Ext, event.Attr{Name: name, Value: value})
	}
	return nil
}

// EncodeHTTP sets the headers of a message that has e, and gives its body: in binary mode,
// where that is e.Data, or in structured mode where the data are themselves an event in some
// format: whoever gets their media type would take them for e, and what the event inside
// says of itself for true.
func EncodeHTTP(h http.Header, e *event.Event) (body []byte) {
	if IsEvent(e.DataContentType) {
		h["Content-Type"] = []string{TypeJSON}
		return AppendJSON(nil, e)
	}
	EncodeBinary(h, e)
	return e.Data
}

// IsEvent reports whether data of a media type are an event in some format.
func IsEvent(media string) bool {
	media = strings.TrimSpace(media)
	return len(media) >= len(typePrefix) && strings.EqualFold(media[:len(typePrefix)], typePrefix)
}

// EncodeBinary sets the headers of binary mode; the body is e.Data.
func EncodeBinary(h http.Header, e *event.Event) {
	h["Ce-Specversion"] = []string{event.SpecVersion}
	for _, a := range [...]struct{ header, value string }{{"Ce-Id", e.ID}, {"Ce-Source", e.Source}, {"Ce-Type", e.Type},
		{"Ce-Subject", e.Subject}, {"Ce-Time", e.Time}, {"Ce-Dataschema", e.DataSchema}} {
		if a.value != "" {
			h[a.header] = []string{encodeHeader(a.value)}
		}
	}
	if e.DataContentType != "" {
		h["Content-Type"] = []string{e.DataContentType}
	}
	for i := range e.Ext {
		h[http.CanonicalHeaderKey(headerPrefix+e.Ext[i].Name)] = []string{encodeHeader(e.Ext[i].Value)}
	}
}

// encodeHeader percent-encodes what HTTP binding 3.1.3.2 asks for: everything
// but printable ASCII, and space, double quote and percent.
func encodeHeader(s string) string {
	plain := true
	for i := 0; i < len(s); i++ {
		if escaped(s[i]) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; escaped(c) {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func escaped(c byte) bool { return c <= 0x20 || c >= 0x7f || c == '"' || c == '%' }

// decodeHeader undoes it. A value in double quotes is taken without them, as
// the binding's version 1.0 asks receivers to.
func decodeHeader(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = unquote(s[1 : len(s)-1])
	}
	if !strings.Contains(s, "%") {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) || unhex(s[i+1]) > 15 || unhex(s[i+2]) > 15 {
			return "", fmt.Errorf("%% is not followed by two hexadecimal digits")
		}
		b = append(b, unhex(s[i+1])<<4|unhex(s[i+2]))
		i += 2
	}
	return string(b), nil
}

func unquote(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}

func clip(s string) string {
	if len(s) > 80 {
		s = s[:80]
	}
	return strings.ToValidUTF8(s, "?")
}
