package cloudevents

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/pkg/event"
)

// Field numbers of io.cloudevents.v1.CloudEvent and its attribute values.
const (
	fieldID, fieldSource, fieldSpecVersion, fieldType, fieldAttributes = 1, 2, 3, 4, 5
	fieldBinary, fieldText, fieldProto                                 = 6, 7, 8

	valueBoolean, valueInteger, valueString, valueBytes, valueURI, valueURIRef, valueTimestamp = 1, 2, 3, 4, 5, 6, 7
)

var errProto = errors.New("not a valid CloudEvent in the protobuf format")

// DecodeProto decodes an io.cloudevents.v1.CloudEvent. Data of the event is part
// of b, which must not be changed afterwards. The event is not validated.
func DecodeProto(b []byte) (event.Event, error) {
	var d ProtoDecoder
	var e event.Event
	err := d.Decode(b, &e)
	return e, err
}

// ProtoDecoder decodes the events of one message, which share the memory of their
// attributes: what an event has like the one before it is not copied again. It
// gives what generated code and a walk over its maps would give, at a fraction of
// the cost. The zero value is ready; one goroutine uses it.
type ProtoDecoder struct {
	text    texts
	ext     []event.Attr // what is left of a slab for Ext
	last    event.Event  // as it was decoded; nothing of its data
	extSlab int          // size of the last slab for Ext
}

// maxExt is the largest slab for Ext that events share.
const maxExt = 64

// Decode decodes an io.cloudevents.v1.CloudEvent into e, which is empty. Data of
// the event is part of b, which must not be changed while e is used; nothing else
// of e is. The event is not validated.
func (d *ProtoDecoder) Decode(b []byte, e *event.Event) error {
	version := ""
	var packed []byte // an Any: of several kinds of data the last one counts
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errProto
		}
		b = b[n:]
		if typ != protowire.BytesType || num > fieldProto {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errProto
			}
			b = b[n:]
			continue // a field that is not known, as protobuf asks
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errProto
		}
		b = b[n:]
		switch num {
		case fieldID:
			e.ID = d.text.string(v, "")
		case fieldSource:
			e.Source = d.text.string(v, d.last.Source)
		case fieldSpecVersion:
			version = d.text.string(v, event.SpecVersion)
		case fieldType:
			e.Type = d.text.string(v, d.last.Type)
		case fieldAttributes:
			if err := d.attribute(e, v, b); err != nil {
				return err
			}
		case fieldBinary, fieldText:
			e.Data, packed = v, nil
		case fieldProto: // several are one, by protobuf's rule
			if packed == nil {
				packed = slices.Clip(v)
			} else {
				packed = append(slices.Grow(packed, len(v)+len(b)), v...)
			}
		}
	}
	if packed != nil {
		if err := d.any(e, packed); err != nil {
			return err
		}
	}
	if version != event.SpecVersion {
		return fmt.Errorf("spec_version is %q; this is for version 1.0", clip(version))
	}
	event.SortAttrs(e.Ext)
	d.last = *e
	d.last.Data = nil
	return nil
}

// room makes room in e for one extension attribute; rest is what follows of the
// event's message.
func (d *ProtoDecoder) room(e *event.Event, rest []byte) {
	if len(e.Ext) < cap(e.Ext) || len(e.Ext) >= maxExtensions {
		return
	}
	n := len(e.Ext) + 1
	for len(rest) > 0 && n < maxExtensions {
		num, typ, m := protowire.ConsumeTag(rest)
		if m < 0 {
			break
		}
		v := protowire.ConsumeFieldValue(num, typ, rest[m:])
		if v < 0 {
			break
		}
		if rest = rest[m+v:]; num == fieldAttributes {
			n++
		}
	}
	if n > len(d.ext) {
		d.extSlab = max(n, min(2*d.extSlab, maxExt))
		d.ext = make([]event.Attr, d.extSlab)
	}
	kept := e.Ext
	e.Ext = append(d.ext[:0:n], kept...)
	d.ext = d.ext[n:]
}

// any takes a google.protobuf.Any as data: its value, with the type as the schema.
func (d *ProtoDecoder) any(e *event.Event, b []byte) error {
	url, value, err := keyValue(b)
	if err != nil {
		return err
	}
	e.Data = value
	e.DataSchema = first(e.DataSchema, d.text.string(url, d.last.DataSchema))
	e.DataContentType = first(e.DataContentType, "application/protobuf")
	return nil
}

// keyValue reads a message whose fields 1 and 2 are bytes.
func keyValue(b []byte) (k, v []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, nil, errProto
		}
		b = b[n:]
		if typ != protowire.BytesType || num > 2 {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return nil, nil, errProto
			}
			b = b[n:]
			continue
		}
		f, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil, nil, errProto
		}
		b = b[n:]
		if num == 1 {
			k = f
		} else {
			v = f
		}
	}
	return k, v, nil
}

// attribute decodes an attribute; rest is what follows of the event's message.
func (d *ProtoDecoder) attribute(e *event.Event, b, rest []byte) error {
	k, v, err := keyValue(b)
	if err != nil {
		return err
	}
	name, like, known := contextAttribute(k, &d.last)
	if !known {
		// Events of one message mostly have the same extensions.
		if i := len(e.Ext); i < len(d.last.Ext) {
			name, like = d.last.Ext[i].Name, d.last.Ext[i].Value
		}
		name = d.text.string(k, name)
	}
	value, err := d.value(v, like)
	if err != nil {
		return fmt.Errorf("attribute %q: %w", clip(name), err)
	}
	switch name {
	case event.AttrID, event.AttrSource, event.AttrType, event.AttrSpecVersion:
		return fmt.Errorf("attribute %q is a field of its own in the protobuf format", name)
	}
	if !known {
		d.room(e, rest)
	}
	return set(e, name, value)
}

// contextAttribute is the name of a context attribute that is not a field of its
// own, and its value in last.
func contextAttribute(name []byte, last *event.Event) (n, like string, known bool) {
	switch string(name) {
	case event.AttrSubject:
		return event.AttrSubject, last.Subject, true
	case event.AttrTime:
		return event.AttrTime, last.Time, true
	case event.AttrDataContentType:
		return event.AttrDataContentType, last.DataContentType, true
	case event.AttrDataSchema:
		return event.AttrDataSchema, last.DataSchema, true
	}
	return "", "", false
}

// value is the string form of a CloudEventAttributeValue, which is like where the
// two are equal.
func (d *ProtoDecoder) value(b []byte, like string) (string, error) {
	value := ""
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", errProto
		}
		b = b[n:]
		switch {
		case typ == protowire.VarintType && (num == valueBoolean || num == valueInteger):
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return "", errProto
			}
			b = b[n:]
			if num == valueBoolean {
				value = strconv.FormatBool(v != 0)
			} else {
				value = strconv.Itoa(int(int32(v))) //nolint:gosec // an int32 on the wire is its sign-extended varint
			}
		case typ == protowire.BytesType && num >= valueString && num <= valueTimestamp:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return "", errProto
			}
			b = b[n:]
			switch num {
			case valueBytes:
				value = base64.StdEncoding.EncodeToString(v)
			case valueTimestamp:
				var buf [len(time.RFC3339Nano)]byte
				t, err := appendTimestamp(buf[:0], v)
				if err != nil {
					return "", err
				}
				value = d.text.string(t, like)
			default:
				value = d.text.string(v, like)
			}
		default:
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return "", errProto
			}
			b = b[n:]
		}
	}
	return value, nil
}

// appendTimestamp appends the RFC 3339 form of a google.protobuf.Timestamp, which
// b is.
func appendTimestamp(to, b []byte) ([]byte, error) {
	var sec, nano int64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, errProto
		}
		b = b[n:]
		if typ != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return nil, errProto
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, errProto
		}
		b = b[n:]
		switch num {
		case 1:
			sec = int64(v) //nolint:gosec // an int64 on the wire is its two's complement
		case 2:
			nano = int64(int32(v)) //nolint:gosec // likewise
		}
	}
	const year1, year10000 = -62135596800, 253402300800
	if sec < year1 || sec >= year10000 || nano < 0 || nano > 999_999_999 {
		return nil, errors.New("is not a timestamp of the years 1 to 9999")
	}
	return time.Unix(sec, nano).UTC().AppendFormat(to, time.RFC3339Nano), nil
}
