package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// everyKind is a message M with fields of every kind, and of every message that has a
// JSON of its own.
func everyKind(tb testing.TB) *configv1.Schema {
	tb.Helper()
	var fields strings.Builder
	n := 0
	add := func(name, kind, rest string) {
		n++
		fields.WriteString(fieldOf(name, fmt.Sprint(n), kind, rest))
	}
	for _, k := range []string{"BOOL", "INT32", "SINT32", "SFIXED32", "INT64", "SINT64", "SFIXED64", "UINT32", "FIXED32", "UINT64", "FIXED64", "FLOAT", "DOUBLE", "STRING", "BYTES"} {
		add("one_"+strings.ToLower(k), k, optional)
		add("many_"+strings.ToLower(k), k, repeated)
	}
	files := []protoreflect.FileDescriptor{anypb.File_google_protobuf_any_proto, durationpb.File_google_protobuf_duration_proto, emptypb.File_google_protobuf_empty_proto,
		fieldmaskpb.File_google_protobuf_field_mask_proto, structpb.File_google_protobuf_struct_proto, timestamppb.File_google_protobuf_timestamp_proto, wrapperspb.File_google_protobuf_wrappers_proto}
	var set descriptorpb.FileDescriptorSet
	var imports strings.Builder
	for _, f := range files {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
		fmt.Fprintf(&imports, "dependency: %q ", f.Path())
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			of, name := ` type_name: ".`+string(m.FullName())+`"`, strings.ToLower(string(m.Name()))
			add("known_"+name, "MESSAGE", optional+of)
			add("knowns_"+name, "MESSAGE", repeated+of)
		}
	}
	add("color", "ENUM", optional+` type_name: ".shop.Color"`)
	add("colors", "ENUM", repeated+` type_name: ".shop.Color"`)
	add("nothing", "ENUM", optional+` type_name: ".google.protobuf.NullValue"`)
	add("self", "MESSAGE", optional+` type_name: ".shop.M"`)
	add("first", "INT32", optional+" oneof_index: 0")
	add("second", "STRING", optional+" oneof_index: 0")
	add("strict", "MESSAGE", optional+` type_name: ".shop.Strict"`)
	var maps strings.Builder
	for _, e := range [][2]string{{"STRING", "type: TYPE_INT32"}, {"BOOL", "type: TYPE_STRING"}, {"INT32", `type: TYPE_MESSAGE type_name: ".shop.M"`}, {"UINT64", `type: TYPE_ENUM type_name: ".shop.Color"`}} {
		key, value := e[0], e[1]
		name := "By" + key[:1] + strings.ToLower(key[1:])
		add("by_"+strings.ToLower(key), "MESSAGE", repeated+` type_name: ".shop.M.`+name+`Entry"`)
		fmt.Fprintf(&maps, `nested_type { name: "%sEntry" options { map_entry: true } %s field { name: "value" number: 2 label: LABEL_OPTIONAL %s } } `, name, fieldOf("key", "1", key, optional), value)
	}
	var f descriptorpb.FileDescriptorProto
	text := `name: "m.proto" package: "shop" ` + imports.String() + messageOf("M", fields.String()+maps.String()+`oneof_decl { name: "choice" } extension_range { start: 1000 end: 2000 } `) +
		messageOf("Strict", fieldOf("id", "1", "STRING", mandatory)) + `enum_type { name: "Color" value { name: "RED" number: 0 } value { name: "BLUE" number: 7 } } ` +
		`extension { name: "extra" number: 1000 type: TYPE_INT32 label: LABEL_OPTIONAL extendee: ".shop.M" } `
	if err := prototext.Unmarshal([]byte(text), &f); err != nil {
		tb.Fatal(err)
	}
	set.File = append(set.File, &f)
	b, err := proto.Marshal(&set)
	if err != nil {
		tb.Fatal(err)
	}
	return &configv1.Schema{Format: &configv1.Schema_Protobuf{Protobuf: &configv1.ProtobufSchema{Descriptors: b, Message: "shop.M", Json: true}}}
}

// foreignJSON reads data as the library does that is not ours.
func foreignJSON(s *Schema, data []byte) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true, Resolver: s.protoTypes}.Unmarshal(data, dynamicpb.NewMessage(s.proto))
}

// draw is a random message's JSON, as a value: of some fields, with right values for
// the most part.
func draw(r *rand.Rand, m protoreflect.MessageDescriptor, depth int) any {
	odd := []any{nil, true, "true", 0, 7, -1, 1.5, 1e30, 3000000000.0, "3000000000", "1e2", " 1", "18446744073709551615", "NaN", "x", "", "RED", "AA==", "_-8", "A", "2024-02-30T00:00:00Z",
		"2024-02-03T04:05:06.7Z", "-1.5s", "1", "a.b,cD", "a_b", []any{}, []any{nil}, map[string]any{}, map[string]any{"a": 1, "b": []any{nil, "x"}},
		map[string]any{"@type": "x/shop.Strict"}, map[string]any{"@type": "x/shop.None", "id": "1"}, map[string]any{"@type": "x/google.protobuf.Duration", "value": "1s"},
		map[string]any{"@type": "x/google.protobuf.Empty"}, map[string]any{"@type": 1}, map[string]any{"id": "1"}, map[string]any{"@type": "x/shop.M", "oneInt32": "x"}}
	pick := func() any { return odd[r.IntN(len(odd))] }
	if m.FullName().Parent() == "google.protobuf" || depth == 0 {
		return pick()
	}
	single := func(f protoreflect.FieldDescriptor) any {
		switch {
		case r.IntN(12) == 0:
			return pick()
		case f.Message() != nil:
			return draw(r, f.Message(), depth-1)
		case f.Kind() == protoreflect.BoolKind:
			return r.IntN(2) == 0
		case f.Kind() == protoreflect.StringKind:
			return "text"
		case f.Kind() == protoreflect.BytesKind:
			return "AAAA"
		}
		return r.IntN(10)
	}
	out := map[string]any{}
	for range r.IntN(4) {
		f := m.Fields().Get(r.IntN(m.Fields().Len()))
		name := f.JSONName()
		if r.IntN(4) == 0 {
			name = f.TextName()
		}
		switch {
		case f.IsList():
			list := []any{}
			for range r.IntN(3) {
				list = append(list, single(f))
			}
			out[name] = list
		case f.IsMap():
			entries := map[string]any{}
			for range r.IntN(3) {
				entries[[]string{"1", "true", "x", "-1"}[r.IntN(4)]] = single(f.MapValue())
			}
			out[name] = entries
		default:
			out[name] = single(f)
		}
	}
	switch r.IntN(20) {
	case 0:
		out["unknown"] = pick()
	case 1:
		out["[shop.extra]"] = pick()
	}
	return out
}

// TestProtobufJSONDrawn: of drawn data those conform which a library that is not ours
// reads.
func TestProtobufJSONDrawn(t *testing.T) {
	s, err := Compile(everyKind(t))
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // reproducible
	right := 0
	const rounds = 20000
	for range rounds {
		data, err := json.Marshal(draw(r, s.proto, 4))
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := checkProtoJSON(s.proto, s.protoTypes, data), foreignJSON(s, data)
		if (ours == nil) != (theirs == nil) {
			t.Fatalf("seed %d: %s: we say %v, they %v", seed, data, ours, theirs)
		}
		if ours == nil {
			right++
		}
	}
	if right < rounds/10 || right > rounds*9/10 {
		t.Errorf("%d of %d conform: too few of one or the other", right, rounds)
	}
}

// TestProtobufJSON: where data in JSON do not conform is told, and nothing takes more
// memory than it may.
func TestProtobufJSON(t *testing.T) {
	s, err := Compile(everyKind(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ data, path, says string }{
		"a number":            {`{"self": {"manyInt64": [1, "2", 3.5]}}`, "/self/manyInt64/2", "want int64, got 3.5"},
		"a name as written":   {`{"one_bool": 1}`, "/one_bool", "want bool"},
		"in a map":            {`{"byInt32": {"7": {"oneBytes": "?"}}}`, "/byInt32/7/oneBytes", "base64"},
		"a key":               {`{"byUint64": {"-1": "RED"}}`, "/byUint64/-1", "want a key that is uint64"},
		"a key twice":         {`{"byInt32": {"7": {}, "07": {}}}`, "/byInt32/07", "twice"},
		"a name twice":        {`{"oneBool": true, "one_bool": true}`, "/one_bool", "twice"},
		"two of a oneof":      {`{"first": 1, "second": ""}`, "/second", "oneof choice"},
		"required":            {`{"strict": {"id": null}}`, "/strict", "the required field id is missing"},
		"a time":              {`{"knownTimestamp": "today"}`, "/knownTimestamp", "RFC 3339"},
		"an unknown name":     {`{"x": [{"y": "\"}"}], "oneInt32": "x"}`, "/oneInt32", "int32"},
		"half a pair":         {`{"x": "\ud800"}`, "/x", "surrogate"},
		"an Any":              {`{"knownAny": {"oneInt32": [], "@type": "a/shop.M"}}`, "/knownAny/oneInt32", "int32"},
		"an Any of any":       {`{"knownAny": {"@type": "a/shop.X"}}`, "/knownAny/@type", "a/shop.X is not among the descriptors"},
		"an Any of no value":  {`{"knownAny": {"@type": "a/google.protobuf.Duration"}}`, "/knownAny", "value"},
		"no list":             {`{"manyBool": true}`, "/manyBool", "want an array"},
		"no message":          {`[]`, "", "want an object"},
		"no JSON":             {`{"x": 1,}`, "", "no JSON"},
		"nothing":             {``, "", "no JSON"},
		"no UTF-8":            {"{\"x\": \"\xff\"}", "", "no JSON"},
		"right":               {` { "oneDouble" : "NaN" , "knownsValue":[null,{"a":[1]}], "color": "GREEN", "nothing": null } `, "", ""},
		"as deep as may be":   {strings.Repeat(`{"self":`, maxDepth-1) + "{}" + strings.Repeat("}", maxDepth-1), "", ""},
		"too deep":            {strings.Repeat(`{"self":`, maxDepth) + "{}" + strings.Repeat("}", maxDepth), "", "64 deep"},
		"Any in Any":          {strings.Repeat(`{"@type":"a/google.protobuf.Any","value":`, maxDepth) + "{}" + strings.Repeat("}", maxDepth), "", "64 deep"},
		"too many":            {`{"manyBool":[` + strings.Repeat("true,", maxValues) + "true]}", "", "65536 values"},
		"many":                {`{"knownsStruct":[` + strings.Repeat("{},", maxValues/3) + "{}]}", "", ""},
		"a long number":       {`{"oneDouble": 1` + strings.Repeat("0", maxNumber) + "}", "", "64 characters"},
		"a long one, as text": {`{"oneInt64": "1` + strings.Repeat("0", 1000) + `"}`, "/oneInt64", "want int64"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := s.Check(&event.Event{DataContentType: "application/json", Data: []byte(tc.data)})
		runtime.ReadMemStats(&after)
		var m *Mismatch
		switch errors.As(err, &m); {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (m == nil || m.Path != tc.path || !strings.Contains(m.Reason, tc.says)):
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("%s: %d bytes are taken", name, got)
		}
	}
	binary := everyKind(t)
	binary.GetProtobuf().Json = false
	if s, err = Compile(binary); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(&event.Event{DataContentType: "application/json", Data: []byte("{}")}); err == nil {
		t.Error("JSON is taken without having been asked for")
	}
}

// TestProtobufJSONIncompatible: where JSON is taken, names count in a change too.
func TestProtobufJSONIncompatible(t *testing.T) {
	field := func(name, kind string) string { return messageOf("M", fieldOf(name, "1", kind, optional)) }
	enum := func(values string) string {
		return messageOf("M", fieldOf("a", "1", "ENUM", optional+` type_name: ".shop.E"`)) + `enum_type { name: "E" value { name: "A" number: 0 } ` + values + "}"
	}
	const b = `value { name: "B" number: 1 } `
	for name, tc := range map[string]struct {
		old, now          string
		backward, forward string // what is said; "" is compatible
	}{
		"the same":              {protoOrder, protoOrder, "", ""},
		"another name":          {field("a", "INT32"), field("b", "INT32"), "another name", "another name"},
		"a wider number":        {field("a", "INT32"), field("a", "INT64"), "", "int32 does not read int64"},
		"unsigned, wider":       {field("a", "UINT32"), field("a", "INT64"), "", "uint32 does not read int64"},
		"a sign":                {field("a", "FIXED32"), field("a", "SFIXED32"), "sfixed32 does not read fixed32", "fixed32 does not read sfixed32"},
		"true is no 1":          {field("a", "BOOL"), field("a", "INT32"), "in JSON", "bool does not read int32"},
		"text is not in base64": {field("a", "STRING"), field("a", "BYTES"), "in JSON", "bytes"},
		"gone":                  {field("a", "INT32"), messageOf("M", "reserved_range { start: 1 end: 2 }"), "its name is not reserved", "its name is not reserved"},
		"gone for good":         {field("a", "INT32"), messageOf("M", `reserved_range { start: 1 end: 2 } reserved_name: "a"`), "", ""},
		"a name no more":        {messageOf("M", `reserved_name: "a"`), messageOf("M", ""), "name a is reserved no more", "name a"},
		"the name of another": {messageOf("M", fieldOf("foo_bar", "1", "INT32", optional)), messageOf("M", fieldOf("fooBar", "2", "STRING", optional)+`reserved_range { start: 1 end: 2 } reserved_name: "foo_bar"`),
			"/foo_bar: field 1 has the name in JSON of field 2", "/fooBar: field 2 has the name in JSON of field 1"},
		"a value more": {enum(""), enum(b), "", "lacks B"},
		"a value less": {enum(b), enum(""), "lacks B", ""},
	} {
		for c, want := range map[configv1.Compatibility]string{configv1.Compatibility_COMPATIBILITY_BACKWARD: tc.backward, configv1.Compatibility_COMPATIBILITY_FORWARD: tc.forward} {
			old, now := protoSpec(t, tc.old), protoSpec(t, tc.now)
			now.Compatibility, now.GetProtobuf().Json, old.GetProtobuf().Json = c, true, true
			got := strings.Join(Incompatible(old, now), "; ")
			if (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%s, %v: %q, want %q", name, c, got, want)
			}
		}
	}
	// What is in an Any is one of the descriptors, each of which counts then.
	inAny := func(message string) string {
		return messageOf("M", fieldOf("a", "1", "MESSAGE", optional+` type_name: ".google.protobuf.Any"`)) + message
	}
	for now, want := range map[string]string{
		messageOf("X", fieldOf("v", "1", "INT32", optional)):  "",
		messageOf("X", fieldOf("v", "1", "STRING", optional)): "string does not read int32",
		messageOf("Y", fieldOf("v", "1", "INT32", optional)):  "shop.X is gone",
	} {
		withAny := func(message string) *configv1.Schema {
			s := protoSpec(t, "")
			var f descriptorpb.FileDescriptorProto
			if err := prototext.Unmarshal([]byte(`name: "m.proto" package: "shop" dependency: "google/protobuf/any.proto" `+inAny(message)), &f); err != nil {
				t.Fatal(err)
			}
			b, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(anypb.File_google_protobuf_any_proto), &f}})
			if err != nil {
				t.Fatal(err)
			}
			s.GetProtobuf().Descriptors, s.GetProtobuf().Json = b, true
			return s
		}
		got := strings.Join(Incompatible(withAny(messageOf("X", fieldOf("v", "1", "INT32", optional))), withAny(now)), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("in an Any, %s: %q, want %q", now, got, want)
		}
	}
	plain, withJSON := protoSpec(t, protoOrder), protoSpec(t, protoOrder)
	withJSON.GetProtobuf().Json = true
	if got := Incompatible(plain, withJSON); len(got) > 0 {
		t.Errorf("JSON as well: %v", got)
	}
	if got := Incompatible(withJSON, plain); len(got) != 1 || !strings.Contains(got[0], "data in JSON") {
		t.Errorf("JSON no more: %v", got)
	}
}

// FuzzProtobufJSON: no data make it panic, and what conforms is read by a library that
// is not ours.
func FuzzProtobufJSON(f *testing.F) {
	s, err := Compile(everyKind(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"self": {"manyInt64": [1, "2"], "byInt32": {"7": {"oneBytes": "AA=="}}}, "knownAny": {"@type": "a/shop.M", "color": "RED"}, "x": [null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours := checkProtoJSON(s.proto, s.protoTypes, data)
		if theirs := foreignJSON(s, data); ours == nil && theirs != nil {
			t.Errorf("%q conforms, and cannot be read: %v", data, theirs)
		}
	})
}

func BenchmarkCheckProtobufJSON(b *testing.B) {
	spec := protoSpec(b, protoOrder)
	spec.GetProtobuf().Json = true
	s, err := Compile(spec)
	if err != nil {
		b.Fatal(err)
	}
	e := &event.Event{DataContentType: "application/json", Data: []byte(`{"id": "o-1", "total": 12.5, "codes": [1, -2], "lines": [{"sku": "x"}, {"sku": "y", "parts": [{"sku": "p", "raw": "/w=="}]}]}`)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(e); err != nil {
			b.Fatal(err)
		}
	}
}
