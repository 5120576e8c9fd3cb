package cloudevents

import (
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/pkg/event"
)

// AppendProto appends e as an io.cloudevents.v1.CloudEvent. Attributes are
// strings, but for dataschema, which is a URI, and time, which is a timestamp;
// data is binary.
func AppendProto(b []byte, e *event.Event) []byte {
	return append(AppendProtoHead(b, e), e.Data...)
}

// AppendProtoHead appends what AppendProto does but for the bytes of the data, which come
// last: who sends these from where they are has no copy of them.
func AppendProtoHead(b []byte, e *event.Event) []byte {
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
		b = protowire.AppendVarint(b, uint64(len(e.Data)))
	}
	return b
}

func appendField(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}

func appendAttribute[V string | []byte](b []byte, name string, kind protowire.Number, value V) []byte {
	inner := protowire.SizeTag(kind) + protowire.SizeBytes(len(value))
	size := protowire.SizeTag(1) + protowire.SizeBytes(len(name)) + protowire.SizeTag(2) + protowire.SizeBytes(inner)
	b = protowire.AppendTag(b, fieldAttributes, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), name)
	b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.BytesType), uint64(inner))
	b = protowire.AppendVarint(protowire.AppendTag(b, kind, protowire.BytesType), uint64(len(value)))
	return append(b, value...)
}

// appendTime appends time as a timestamp; one that a timestamp cannot hold, as
// a string.
func appendTime(b []byte, value string) []byte {
	t, err := time.Parse(time.RFC3339Nano, value)
	if err != nil || t.Unix() < 0 || t.Unix() > math.MaxInt32*64 {
		return appendAttribute(b, event.AttrTime, valueString, value)
	}
	var buf [2 * (1 + 10)]byte
	ts := buf[:0]
	if s := t.Unix(); s != 0 {
		ts = protowire.AppendVarint(protowire.AppendTag(ts, 1, protowire.VarintType), uint64(s))
	}
	if n := t.Nanosecond(); n != 0 {
		ts = protowire.AppendVarint(protowire.AppendTag(ts, 2, protowire.VarintType), uint64(n))
	}
	return appendAttribute(b, event.AttrTime, valueTimestamp, ts)
}
