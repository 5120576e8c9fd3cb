package schema

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// protoSpec is a Schema of a file's messages, of which M counts.
func protoSpec(tb testing.TB, messages string) *configv1.Schema {
	tb.Helper()
	var f descriptorpb.FileDescriptorProto
	if err := prototext.Unmarshal([]byte(`name: "m.proto" package: "shop" `+messages), &f); err != nil {
		tb.Fatal(err)
	}
	b, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{&f}})
	if err != nil {
		tb.Fatal(err)
	}
	return &configv1.Schema{Format: &configv1.Schema_Protobuf{Protobuf: &configv1.ProtobufSchema{Descriptors: b, Message: "shop.M"}}}
}

func fieldOf(name, number, kind, rest string) string {
	return `field { name: "` + name + `" number: ` + number + ` type: TYPE_` + kind + ` ` + rest + ` } `
}

const optional, repeated, mandatory = "label: LABEL_OPTIONAL", "label: LABEL_REPEATED", "label: LABEL_REQUIRED"

func messageOf(name, fields string) string {
	return `message_type { name: "` + name + `" ` + fields + ` } `
}

var protoOrder = messageOf("M", fieldOf("id", "1", "STRING", mandatory)+fieldOf("total", "2", "DOUBLE", optional)+
	fieldOf("lines", "3", "MESSAGE", repeated+` type_name: ".shop.Line"`)+fieldOf("codes", "4", "SINT32", repeated)) +
	messageOf("Line", fieldOf("sku", "1", "STRING", optional)+fieldOf("parts", "2", "MESSAGE", repeated+` type_name: ".shop.Line"`)+fieldOf("raw", "3", "BYTES", optional))

// aMessage is one in the encoding of a library that is not ours.
func aMessage(tb testing.TB) []byte {
	tb.Helper()
	m, _, err := compileProto(protoSpec(tb, protoOrder).GetProtobuf())
	if err != nil {
		tb.Fatal(err)
	}
	d := dynamicpb.NewMessage(m)
	if err := protojson.Unmarshal([]byte(`{"id": "o-1", "total": 12.5, "codes": [1, -2], "lines": [{"sku": "x"}, {"sku": "y", "parts": [{"sku": "p", "raw": "/w=="}]}]}`), d); err != nil {
		tb.Fatal(err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// nested are parts of parts, in the encoding of Protobuf.
func nested(deep int) []byte {
	var b []byte
	for range deep {
		b = append(binary.AppendUvarint([]byte{0x12}, uint64(len(b))), b...)
	}
	return append(binary.AppendUvarint([]byte("\x0a\x01i\x1a"), uint64(len(b))), b...)
}

// TestProtobuf: data conform, or the error says where they do not.
func TestProtobuf(t *testing.T) {
	s, err := Compile(protoSpec(t, protoOrder))
	if err != nil {
		t.Fatal(err)
	}
	order := string(aMessage(t))
	for name, tc := range map[string]struct{ media, data, path, says string }{
		"an order":             {"", order, "", ""},
		"another media type":   {"application/x-protobuf; v=1", order, "", ""},
		"JSON":                 {"application/json", `{}`, "", "application/json"},
		"nothing":              {"", "", "", "required field id"},
		"packed":               {"", "\x0a\x01i\x22\x02\x01\x02", "", ""},
		"a broken packed one":  {"", "\x0a\x01i\x22\x02\x01\x80", "/codes/0", "packed"},
		"a field it lacks":     {"", order + "\x48\x01", "", ""},
		"a broken one":         {"", order + "\x4a\x7f", "/9", "field 9 is broken"},
		"cut":                  {"", order[:len(order)-1], "", "broken"},
		"no tag":               {"", order + "\x80", "", "no Protobuf"},
		"another wire type":    {"", "\x0a\x01i\x10\x01", "/total", "want double"},
		"not UTF-8":            {"", strings.Replace(order, "\x01p", "\x01\xff", 1), "/lines/1/parts/0/sku", "not UTF-8"},
		"as deep as it may be": {"", string(nested(maxDepth - 1)), "", ""},
		"too deep":             {"", string(nested(maxDepth)), "", "64 deep"},
		"too many":             {"", "\x0a\x01i" + strings.Repeat("\x1a\x00", maxValues), "", "65536 values"},
	} {
		if tc.media == "" {
			tc.media = "application/protobuf"
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := s.Check(&event.Event{DataContentType: tc.media, Data: []byte(tc.data)})
		runtime.ReadMemStats(&after)
		var m *Mismatch
		switch errors.As(err, &m); {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (m == nil || tc.path != "" && m.Path != tc.path || !strings.Contains(m.Reason, tc.says)):
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 512<<10 {
			t.Errorf("%s: %d bytes are taken", name, got)
		}
	}
	bad := protoSpec(t, protoOrder)
	bad.GetProtobuf().Message = "shop.Other"
	for name, spec := range map[string]*configv1.Schema{
		"no message shop.Other": bad,
		"no FileDescriptorSet":  {Format: &configv1.Schema_Protobuf{Protobuf: &configv1.ProtobufSchema{Descriptors: []byte("\x0a\x7f"), Message: "shop.M"}}},
		"do not fit together":   protoSpec(t, messageOf("M", fieldOf("a", "1", "MESSAGE", optional+` type_name: ".other.X"`))),
		"shop.M is no message":  protoSpec(t, `enum_type { name: "M" value { name: "A" number: 0 } }`),
	} {
		var fe *FieldError
		if _, err := Compile(spec); !errors.As(err, &fe) || fe.Field != "spec.protobuf" || !strings.Contains(fe.Reason, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProtobufIncompatible: what may change and what may not.
func TestProtobufIncompatible(t *testing.T) {
	a := fieldOf("a", "1", "INT32", optional)
	one := messageOf("M", a)
	kind := func(k string) string { return messageOf("M", fieldOf("a", "1", k, optional)) }
	for name, tc := range map[string]struct {
		old, now          string
		backward, forward string // what is said; "" is compatible
	}{
		"the same":           {protoOrder, protoOrder, "", ""},
		"a field more":       {one, messageOf("M", a+fieldOf("b", "2", "STRING", optional)), "", ""},
		"a required one":     {one, messageOf("M", a+fieldOf("b", "2", "STRING", mandatory)), "b is required", ""},
		"another name":       {one, messageOf("M", fieldOf("b", "1", "INT32", optional)), "", ""},
		"gone":               {one, messageOf("M", ""), "not reserved", "not reserved"},
		"gone and reserved":  {one, messageOf("M", "reserved_range { start: 1 end: 2 }"), "", ""},
		"reserved no more":   {messageOf("M", "reserved_range { start: 1 end: 4 }"), messageOf("M", "reserved_range { start: 1 end: 2 } reserved_range { start: 3 end: 9 }"), "number 2 is reserved no more", "number 2"},
		"reserved, then one": {messageOf("M", "reserved_range { start: 1 end: 2 }"), one, "number 1 is reserved no more", "number 1"},
		"reserved in parts":  {messageOf("M", "reserved_range { start: 2 end: 536870912 }"), messageOf("M", a+"reserved_range { start: 9 end: 536870912 } reserved_range { start: 2 end: 9 }"), "", ""},
		"a wider number":     {one, kind("INT64"), "", "int32 does not read int64"},
		"unsigned, wider":    {kind("UINT32"), kind("INT64"), "", "uint32 does not read int64"},
		"of zigzag, wider":   {kind("SINT32"), kind("SINT64"), "", "sint32 does not read sint64"},
		"without a sign":     {one, kind("UINT64"), "uint64 does not read int32", "int32 does not read uint64"},
		"a sign, fixed":      {kind("FIXED32"), kind("SFIXED32"), "sfixed32 does not read fixed32", "fixed32 does not read sfixed32"},
		"true is 1":          {kind("BOOL"), kind("INT32"), "", "bool does not read int32"},
		"another encoding":   {one, kind("SINT32"), "at /a: field 1: sint32 does not read int32", "int32"},
		"another wire type":  {one, kind("STRING"), "string does not read int32", "int32 does not read string"},
		"bytes":              {kind("STRING"), kind("BYTES"), "", "string does not read bytes"},
		"repeated":           {one, messageOf("M", fieldOf("a", "1", "INT32", repeated)), "repeated", "repeated"},
		"in a oneof":         {one, messageOf("M", fieldOf("a", "1", "INT32", optional+" oneof_index: 0")+`oneof_decl { name: "x" }`), "oneof", "oneof"},
		"within":             {protoOrder, strings.Replace(protoOrder, "BYTES", "INT32", 1), "at /lines/raw", "at /lines/raw"},
	} {
		for c, want := range map[configv1.Compatibility]string{configv1.Compatibility_COMPATIBILITY_BACKWARD: tc.backward, configv1.Compatibility_COMPATIBILITY_FORWARD: tc.forward,
			configv1.Compatibility_COMPATIBILITY_NONE: ""} {
			now := protoSpec(t, tc.now)
			now.Compatibility = c
			got := strings.Join(Incompatible(protoSpec(t, tc.old), now), "; ")
			if (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%s, %v: %q, want %q", name, c, got, want)
			}
		}
	}
}

// FuzzProtobuf: no data make it panic, and what conforms is read by a library that is
// not ours.
func FuzzProtobuf(f *testing.F) {
	s, err := Compile(protoSpec(f, protoOrder))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(aMessage(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		why := checkProto(s.proto, data)
		if err := proto.Unmarshal(data, dynamicpb.NewMessage(s.proto)); why == nil && err != nil {
			t.Errorf("%x conforms, and cannot be read: %v", data, err)
		}
	})
}

func BenchmarkCheckProtobuf(b *testing.B) {
	s, err := Compile(protoSpec(b, protoOrder))
	if err != nil {
		b.Fatal(err)
	}
	e := &event.Event{DataContentType: "application/protobuf", Data: aMessage(b)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(e); err != nil {
			b.Fatal(err)
		}
	}
}
