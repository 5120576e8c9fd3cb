// Package event defines the canonical event: CloudEvents 1.0 attributes and
// opaque bytes. Every protocol is decoded into it and every store is fed with
// it.
//
// # Who owns the bytes
//
// Three words are used wherever the mesh touches an Event:
//
//   - borrows: the callee may read the event until it returns, no longer.
//   - takes: the callee owns it from the call on; the caller must not touch it.
//   - lends: the result is valid until the stated moment.
//
// Data and the attributes are never modified by anyone, so they may be shared.
package event

import (
	"slices"
	"strings"
	"time"
)

// SpecVersion is the only CloudEvents version that the mesh takes and gives.
const SpecVersion = "1.0"

// Names of the context attributes that are fields of Event (CloudEvents 1.0,
// "Context Attributes"), and of the extensions that the mesh knows.
const (
	AttrID              = "id"
	AttrSource          = "source"
	AttrSpecVersion     = "specversion"
	AttrType            = "type"
	AttrSubject         = "subject"
	AttrTime            = "time"
	AttrDataContentType = "datacontenttype"
	AttrDataSchema      = "dataschema"
	// AttrPartitionKey is the partitioning extension: the ordering key.
	AttrPartitionKey = "partitionkey"
	// AttrTraceParent and AttrTraceState are the distributed tracing
	// extension (W3C trace context).
	AttrTraceParent = "traceparent"
	AttrTraceState  = "tracestate"
	// AttrReplyTo and AttrReplyBy are of a request: where its reply goes, which the
	// reply repeats, and until when somebody waits for it (RFC 3339).
	AttrReplyTo = "replyto"
	AttrReplyBy = "replyby"
	// AttrHTTPStatus is of a reply: the status that a call of a REST API is answered.
	AttrHTTPStatus = "httpstatus"
)

// Event is one event. It is a value; copying it copies references only. The
// zero value is not valid: ID, Source and Type are required.
type Event struct {
	ID      string
	Source  string
	Type    string
	Subject string
	// Time is the time attribute as it came in, RFC 3339; "" is absent. Parse
	// it with ParseTime.
	Time            string
	DataContentType string
	DataSchema      string
	// Ext are the extension attributes in their string form, sorted by name,
	// without duplicates; partitionkey, traceparent and tracestate among them.
	Ext []Attr
	// Mesh are headers of the mesh itself ("retry-attempt"), sorted by name.
	// Stores carry them apart from attributes; clients never see or set them.
	Mesh []Attr
	// Data is opaque to the mesh. nil and empty are both "no data".
	Data []byte
}

// Attr is a named string.
type Attr struct{ Name, Value string }

// Attribute returns the attribute called name in its string form, and whether
// the event has it. Context attributes and extensions are looked up alike.
func (e *Event) Attribute(name string) (string, bool) {
	var v string
	switch name {
	case AttrID:
		v = e.ID
	case AttrSource:
		v = e.Source
	case AttrType:
		v = e.Type
	case AttrSpecVersion:
		v = SpecVersion
	case AttrSubject:
		v = e.Subject
	case AttrTime:
		v = e.Time
	case AttrDataContentType:
		v = e.DataContentType
	case AttrDataSchema:
		v = e.DataSchema
	default:
		return Lookup(e.Ext, name)
	}
	return v, v != ""
}

// Set sets an attribute, or removes it where value is "". The slice of extensions
// that e has is left as it is. specversion is not set: there is one.
func (e *Event) Set(name, value string) {
	switch name {
	case AttrID:
		e.ID = value
	case AttrSource:
		e.Source = value
	case AttrType:
		e.Type = value
	case AttrSpecVersion:
	case AttrSubject:
		e.Subject = value
	case AttrTime:
		e.Time = value
	case AttrDataContentType:
		e.DataContentType = value
	case AttrDataSchema:
		e.DataSchema = value
	default:
		if value != "" {
			e.Ext = With(e.Ext, name, value)
		} else if _, has := Lookup(e.Ext, name); has {
			e.Ext = slices.DeleteFunc(slices.Clone(e.Ext), func(a Attr) bool { return a.Name == name })
		}
	}
}

// Add is Set for who builds an event up: value is not "", the event is the caller's
// alone, and its extensions are neither sorted nor looked through. LastOfEach ends it.
func (e *Event) Add(name, value string) {
	if isContext(name) {
		e.Set(name, value)
	} else {
		e.Ext = append(e.Ext, Attr{name, value})
	}
}

// Key returns the ordering key: the partitionkey extension, else the attribute
// keyFrom ("" for none), else "", which is no key.
func (e *Event) Key(keyFrom string) string {
	if k, ok := Lookup(e.Ext, AttrPartitionKey); ok && k != "" {
		return k
	}
	if keyFrom == "" {
		return ""
	}
	v, _ := e.Attribute(keyFrom)
	return v
}

// Size is what the event counts against limits, in bytes: data and attributes.
func (e *Event) Size() int {
	n := len(e.Data) + len(e.ID) + len(e.Source) + len(e.Type) + len(e.Subject) +
		len(e.Time) + len(e.DataContentType) + len(e.DataSchema)
	for i := range e.Ext {
		n += len(e.Ext[i].Name) + len(e.Ext[i].Value)
	}
	return n
}

// Held is what the event keeps of memory, in bytes, more or less: Size and the mesh's own
// attributes, which other producers may have written.
func (e *Event) Held() int {
	n := e.Size()
	for i := range e.Mesh {
		n += len(e.Mesh[i].Name) + len(e.Mesh[i].Value)
	}
	return n
}

// Clone is e with memory of its own, one piece for its texts and one for its data: what holds
// on to it holds on to nothing that e came in, and who keeps a text keeps no data.
func (e *Event) Clone() Event {
	var b strings.Builder
	b.Grow(e.Held() - len(e.Data))
	text := func(s string) string {
		from := b.Len()
		b.WriteString(s)
		return b.String()[from:]
	}
	attrs := func(list []Attr) []Attr {
		if len(list) == 0 {
			return nil
		}
		out := make([]Attr, len(list))
		for i, a := range list {
			out[i] = Attr{text(a.Name), text(a.Value)}
		}
		return out
	}
	out := Event{ID: text(e.ID), Source: text(e.Source), Type: text(e.Type), Subject: text(e.Subject), Time: text(e.Time),
		DataContentType: text(e.DataContentType), DataSchema: text(e.DataSchema), Ext: attrs(e.Ext), Mesh: attrs(e.Mesh)}
	if len(e.Data) > 0 {
		out.Data = slices.Clone(e.Data)
	}
	return out
}

// ParseTime parses the time attribute (RFC 3339); the zero time when absent.
func (e *Event) ParseTime() (time.Time, error) {
	if e.Time == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339Nano, e.Time)
}

// Lookup finds name in attrs, which are sorted by name.
func Lookup(attrs []Attr, name string) (string, bool) {
	// Events have a handful of extensions: a scan beats a search.
	for i := range attrs {
		if attrs[i].Name == name {
			return attrs[i].Value, true
		}
	}
	return "", false
}

// With returns attrs with name set to value, sorted. attrs itself is left as
// it is.
func With(attrs []Attr, name, value string) []Attr {
	i, found := slices.BinarySearchFunc(attrs, name, func(a Attr, n string) int { return strings.Compare(a.Name, n) })
	out := make([]Attr, 0, len(attrs)+1)
	out = append(out, attrs[:i]...)
	out = append(out, Attr{name, value})
	if found {
		i++
	}
	return append(out, attrs[i:]...)
}

// LastOfEach sorts attrs by name in place and keeps, of those with one name, the last.
func LastOfEach(attrs []Attr) []Attr {
	slices.SortStableFunc(attrs, func(a, b Attr) int { return strings.Compare(a.Name, b.Name) })
	kept := attrs[:0]
	for i := range attrs {
		if n := len(kept); n > 0 && kept[n-1].Name == attrs[i].Name {
			kept = kept[:n-1]
		}
		kept = append(kept, attrs[i])
	}
	return kept
}

// SortAttrs sorts attrs by name in place.
func SortAttrs(attrs []Attr) {
	slices.SortFunc(attrs, func(a, b Attr) int { return strings.Compare(a.Name, b.Name) })
}
