package cloudevents

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
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
//
// It is what generated code and a walk over its maps would give, at a fraction
// of the cost.
func DecodeProto(b []byte) (event.Event, error) {
	var e event.Event
	version := ""
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return e, errProto
		}
		b = b[n:]
		if typ != protowire.BytesType || num > fieldProto {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return e, errProto
			}
			b = b[n:]
			continue // a field that is not known, as protobuf asks
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return e, errProto
		}
		b = b[n:]
		switch num {
		case fieldID:
			e.ID = string(v)
		case fieldSource:
			e.Source = string(v)
		case fieldSpecVersion:
			version = string(v)
		case fieldType:
			e.Type = string(v)
		case fieldAttributes:
			if err := decodeAttribute(&e, v); err != nil {
				return e, err
			}
		case fieldBinary, fieldText:
			e.Data = v
		case fieldProto:
			if err := decodeAny(&e, v); err != nil {
				return e, err
			}
		}
	}
	if version != event.SpecVersion {
		return e, fmt.Errorf("spec_version is %q; this is for version 1.0", clip(version))
	}
	event.SortAttrs(e.Ext)
	return e, nil
}

// decodeAny takes a google.protobuf.Any as data: its value, with the type as
// the schema.
func decodeAny(e *event.Event, b []byte) error {
	url, value, err := keyValue(b)
	if err != nil {
		return err
	}
	e.Data = value
	e.DataSchema = first(e.DataSchema, string(url))
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

func decodeAttribute(e *event.Event, b []byte) error {
	k, v, err := keyValue(b)
	if err != nil {
		return err
	}
	name := string(k)
	value, err := attributeValue(v)
	if err != nil {
		return fmt.Errorf("attribute %q: %w", clip(name), err)
	}
	switch name {
	case event.AttrID, event.AttrSource, event.AttrType, event.AttrSpecVersion:
		return fmt.Errorf("attribute %q is a field of its own in the protobuf format", name)
	}
	return set(e, name, value)
}

// attributeValue is the string form of a CloudEventAttributeValue.
func attributeValue(b []byte) (string, error) {
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
				t, err := timestamp(v)
				if err != nil {
					return "", err
				}
				value = t
			default:
				value = string(v)
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

// timestamp is the RFC 3339 form of a google.protobuf.Timestamp.
func timestamp(b []byte) (string, error) {
	var sec, nano int64
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", errProto
		}
		b = b[n:]
		if typ != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return "", errProto
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return "", errProto
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
		return "", errors.New("is not a timestamp of the years 1 to 9999")
	}
	return time.Unix(sec, nano).UTC().Format(time.RFC3339Nano), nil
}

// AppendProto appends e as an io.cloudevents.v1.CloudEvent. Attributes are
// strings, but for dataschema, which is a URI, and time, which is a timestamp;
// data is binary.
func AppendProto(b []byte, e *event.Event) []byte {
	b = appendField(b, fieldID, e.ID)
	b = appendField(b, fieldSource, e.Source)
	b = appendField(b, fieldSpecVersion, event.SpecVersion)
	b = appendField(b, fieldType, e.Type)
	for _, a := range [...]event.Attr{{Name: event.AttrSubject, Value: e.Subject}, {Name: event.AttrDataContentType, Value: e.DataContentType}} {
		if a.Value != "" {
			b = appendAttribute(b, a.Name, valueString, a.Value)
		}
	}
	if e.DataSchema != "" {
		b = appendAttribute(b, event.AttrDataSchema, valueURI, e.DataSchema)
	}
	if e.Time != "" {
		b = appendTime(b, e.Time)
	}
	for i := range e.Ext {
		b = appendAttribute(b, e.Ext[i].Name, valueString, e.Ext[i].Value)
	}
	if len(e.Data) > 0 {
		b = protowire.AppendTag(b, fieldBinary, protowire.BytesType)
		b = protowire.AppendBytes(b, e.Data)
	}
	return b
}

func appendField(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendAttribute(b []byte, name string, kind protowire.Number, value string) []byte {
	inner := protowire.SizeTag(kind) + protowire.SizeBytes(len(value))
	size := protowire.SizeTag(1) + protowire.SizeBytes(len(name)) + protowire.SizeTag(2) + protowire.SizeBytes(inner)
	b = protowire.AppendTag(b, fieldAttributes, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), name)
	b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.BytesType), uint64(inner))
	return protowire.AppendString(protowire.AppendTag(b, kind, protowire.BytesType), value)
}

// appendTime appends time as a timestamp; one that a timestamp cannot hold, as
// a string.
func appendTime(b []byte, value string) []byte {
	t, err := time.Parse(time.RFC3339Nano, value)
	if err != nil || t.Unix() < 0 || t.Unix() > math.MaxInt32*64 {
		return appendAttribute(b, event.AttrTime, valueString, value)
	}
	var ts []byte
	if s := t.Unix(); s != 0 {
		ts = protowire.AppendVarint(protowire.AppendTag(ts, 1, protowire.VarintType), uint64(s))
	}
	if n := t.Nanosecond(); n != 0 {
		ts = protowire.AppendVarint(protowire.AppendTag(ts, 2, protowire.VarintType), uint64(n))
	}
	return appendAttribute(b, event.AttrTime, valueTimestamp, string(ts))
}
