package cloudevents

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	sdk "github.com/cloudevents/sdk-go/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
)

// TestDataComesBack: data is what came in, whatever its content type says of it.
func TestDataComesBack(t *testing.T) {
	for _, contentType := range []string{"", "application/json", "application/json; charset=utf-8", "application/vnd.x+json", "text/json", "text/x+json", "text/plain",
		"TEXT/plain", "application/xml", "application/octet-stream", "not a type", ";", "text/"} {
		for _, data := range []string{"not json", `"a string"`, `{"a":1}`, `null`, `5`, "{\"a\":\"\xff\"}", "\xff\xfe", "\u2028\"", "\r\n\r\n", `{"a":1}{"b":2}`, strings.Repeat("[", 20000),
			`{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":"\ud83d\ude00\/"}`, strings.Repeat("[", 10000) + strings.Repeat("]", 10000)} {
			want := event.Event{ID: "1", Source: "s", Type: "t", DataContentType: contentType, Data: []byte(data)}
			wire := AppendJSON(nil, &want)
			if !json.Valid(wire) || bytes.ContainsAny(wire, "\r\n") {
				t.Errorf("%q %q: %q", contentType, clip(data), clip(string(wire)))
			}
			got, err := DecodeJSON(wire)
			if err != nil || string(got.Data) != data || got.DataContentType != contentType {
				t.Errorf("JSON of %q %q: %q, %v", contentType, clip(data), clip(string(got.Data)), err)
			}
			if got, err = DecodeProto(AppendProto(nil, &want)); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("protobuf of %q %q: %+v, %v", contentType, clip(data), got, err)
			}
			if strings.HasSuffix(contentType, "+json") {
				continue // JSON by the format's 3.1.1, but not to this SDK
			}
			var theirs sdk.Event
			if err := json.Unmarshal(wire, &theirs); err != nil || string(theirs.Data()) != data {
				t.Errorf("the SDK reads %q %q as %q, %v", contentType, clip(data), clip(string(theirs.Data())), err)
			}
		}
	}
}

// TestHeaders: the binding's own examples, and what must not pass.
func TestHeaders(t *testing.T) {
	for value, want := range map[string]string{"Euro%20%E2%82%AC%20%F0%9F%98%80": "Euro € 😀", `"quoted"`: "quoted", `"a\"b"`: `a"b`, "a%25b": "a%b", "a+b": "a+b", "%c3%bc": "ü", `"`: `"`, "": ""} {
		if got, err := decodeHeader(value); err != nil || got != want {
			t.Errorf("%s: %q, %v", value, got, err)
		}
	}
	if got := encodeHeader("Euro € 😀"); got != "Euro%20%E2%82%AC%20%F0%9F%98%80" {
		t.Error(got)
	}
	for _, value := range []string{"%", "%4", "%zz", "%-1", "a%"} {
		if got, err := decodeHeader(value); err == nil {
			t.Errorf("%s is %q", value, got)
		}
	}
	// What the escapes hide is judged like anything else.
	for _, value := range []string{"%ff", "%0a", "%00", "%C2%80", "%EF%BF%BF"} {
		e, err := DecodeBinary(http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {value}, "Ce-Source": {"s"}, "Ce-Type": {"t"}}, nil)
		if err == nil {
			err = e.Validate()
		}
		if err == nil {
			t.Errorf("%s is a valid id", value)
		}
	}
}

// TestDecodeProtoRefuses: every cut of a valid event is refused or a shorter
// valid message, never a panic; and what is wrong is said.
func TestDecodeProtoRefuses(t *testing.T) {
	e := full()
	wire := AppendProto(nil, &e)
	for i := range wire {
		mine, err := DecodeProto(wire[:i])
		var gen cev1.CloudEvent
		if gerr := proto.Unmarshal(wire[:i], &gen); gerr != nil && err == nil {
			t.Errorf("cut at %d: %+v, the generated code says %v", i, mine, gerr)
		}
	}
	attr := func(name string, v *cev1.CloudEventAttributeValue) []byte {
		b, err := proto.Marshal(&cev1.CloudEvent{Id: "1", Source: "s", Type: "t", SpecVersion: "1.0", Attributes: map[string]*cev1.CloudEventAttributeValue{name: v}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text := &cev1.CloudEventAttributeValue{Attr: &cev1.CloudEventAttributeValue_CeString{CeString: "x"}}
	for name, b := range map[string][]byte{
		"empty":       nil,
		"version":     protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), "0.3"),
		"id twice":    attr("id", text),
		"specversion": attr("specversion", text),
		"upper case":  attr("Bad", text),
		"no name":     attr("", text),
		"data":        attr("data", text),
		"bad time":    attr("time", text),
	} {
		e, err := DecodeProto(b)
		if err == nil {
			err = e.Validate()
		}
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	// A length that promises more than is there allocates nothing for it.
	huge := protowire.AppendVarint(protowire.AppendTag(nil, fieldBinary, protowire.BytesType), math.MaxInt32)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := DecodeProto(huge); err == nil {
		t.Error("a length without its bytes is accepted")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("it allocated %d bytes", n)
	}
}

// TestProtoData: the three forms of data.
func TestProtoData(t *testing.T) {
	event := func(c *cev1.CloudEvent) []byte {
		c.Id, c.Source, c.Type, c.SpecVersion = "1", "s", "t", "1.0"
		b, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for want, in := range map[string]*cev1.CloudEvent{
		"text":  {Data: &cev1.CloudEvent_TextData{TextData: "text"}},
		"bytes": {Data: &cev1.CloudEvent_BinaryData{BinaryData: []byte("bytes")}},
		"any":   {Data: &cev1.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "type.googleapis.com/x.Y", Value: []byte("any")}}},
		"":      {},
	} {
		e, err := DecodeProto(event(in))
		if err != nil || string(e.Data) != want {
			t.Errorf("%q: %+v %v", want, e, err)
		}
		if want == "any" && (e.DataSchema != "type.googleapis.com/x.Y" || e.DataContentType != "application/protobuf") {
			t.Errorf("%+v", e)
		}
	}
}

// TestTimes: a time keeps its instant through protobuf, to the nanosecond.
func TestTimes(t *testing.T) {
	for _, in := range []string{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000001+02:00", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00Z"} {
		want, err := time.Parse(time.RFC3339Nano, in)
		if err != nil {
			t.Fatal(err)
		}
		e := event.Event{ID: "1", Source: "s", Type: "t", Time: in}
		wire := AppendProto(nil, &e)
		got, err := DecodeProto(wire)
		if err != nil {
			t.Fatal(err)
		}
		if when, err := got.ParseTime(); err != nil || !when.Equal(want) {
			t.Errorf("%s became %s, %v", in, got.Time, err)
		}
		var gen cev1.CloudEvent
		if err := proto.Unmarshal(wire, &gen); err != nil {
			t.Errorf("%s: the generated code says %v", in, err)
		}
		if ts := gen.Attributes["time"].GetCeTimestamp(); ts != nil && !ts.AsTime().Equal(want) {
			t.Errorf("%s: the generated code reads %s", in, ts.AsTime())
		}
	}
}

// FuzzJSONBatch: what decodes is at most MaxBatch events, and costs memory in
// proportion to what came; an event has the error that it has alone.
func FuzzJSONBatch(f *testing.F) {
	e := full()
	f.Add([]byte("[]"))
	f.Add([]byte(`[{},5,null]`))
	fuzztest.Seeds(f, "*-batch.json")
	f.Add(append(append([]byte("["), AppendJSON(nil, &e)...), ']'))
	f.Add([]byte(`[{"specversion":"1.0","id":"1","source":"/curl","type":"t","data":{"a":1}},{"specversion":"1.0","id":"2","source":"/curl","type":"t","data_base64":"AAE="}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var list []event.Event
		var wrong []error
		var err error
		if n := fuzztest.Allocated(func() { list, wrong, err = DecodeJSONBatch(b) }); n > 512*uint64(len(b))+slack {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		if len(list) > MaxBatch || wrong != nil && len(wrong) != len(list) {
			t.Fatalf("%d events, %d errors", len(list), len(wrong))
		}
		var raw []json.RawMessage
		if err := json.Unmarshal(b, &raw); err != nil || len(raw) != len(list) {
			t.Fatalf("%d events of %d, %v", len(list), len(raw), err)
		}
		for i := range raw {
			alone, err := DecodeJSON(raw[i])
			if (err == nil) != (wrong == nil || wrong[i] == nil) || err == nil && !reflect.DeepEqual(alone, list[i]) {
				t.Errorf("event %d is %+v (%v), alone %+v (%v)", i, list[i], wrong, alone, err)
			}
		}
		size := 0
		for i := range list {
			size += list[i].Size()
		}
		if size > 2*len(b)+len("application/json")*len(list) {
			t.Errorf("%d bytes of events from %d", size, len(b))
		}
	})
}

// slack is what may be allocated beside.
const slack = 256 << 10

// FuzzEncode: whatever is valid comes back from each format, and the SDK reads
// the JSON as the same event.
func FuzzEncode(f *testing.F) {
	f.Add("1", "/s", "t", "sub", "application/json", "k", []byte(`{"a":1}`))
	f.Add("%", "é", `"`, "", "text/plain", "", []byte("\xff"))
	f.Add("1", "s", "t", "", "text/json", "", []byte("no json"))
	f.Fuzz(func(t *testing.T, id, source, typ, subject, contentType, key string, data []byte) {
		want := event.Event{ID: id, Source: source, Type: typ, Subject: subject, DataContentType: contentType, Data: data, Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: key}}}
		if len(data) == 0 {
			want.Data = nil
		}
		if want.Validate() != nil {
			return
		}
		got, err := DecodeProto(AppendProto(nil, &want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("protobuf: %v\n%+v\n%+v", err, want, got)
		}
		wire := AppendJSON(nil, &want)
		got, err = DecodeJSON(wire)
		if err != nil || !sameData(got.Data, want.Data) {
			t.Fatalf("JSON: %v\n%+v\n%s", err, want, wire)
		}
		got.Data = want.Data
		if !reflect.DeepEqual(got, want) {
			t.Errorf("JSON:\n%+v\n%+v", want, got)
		}
		h := http.Header{}
		EncodeBinary(h, &want)
		got, err = DecodeBinary(h, want.Data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("binary: %v\n%+v\n%+v", err, want, got)
		}
	})
}

// sameData: white space in JSON may go.
func sameData(a, b []byte) bool {
	var ca, cb bytes.Buffer
	if json.Compact(&ca, a) == nil && json.Compact(&cb, b) == nil {
		return bytes.Equal(ca.Bytes(), cb.Bytes())
	}
	return bytes.Equal(a, b)
}

// TestNullData: null is a value of JSON alone, and nothing beside data_base64; what is
// JSON is so whatever follows the media type.
func TestNullData(t *testing.T) {
	for in, want := range map[string]string{
		`"datacontenttype":"text/plain","data":null`:                  "",
		`"datacontenttype":"application/octet-stream","data":null`:    "",
		`"data":null,"data_base64":"AQ=="`:                            "\x01",
		`"datacontenttype":"application/json","data":null`:            "null",
		`"datacontenttype":"a/b+json","data":null,"data_base64":null`: "null",
		`"datacontenttype":"application/json; charset","data":"x"`:    `"x"`,
		`"datacontenttype":"text/plain; charset","data":"x"`:          "x",
	} {
		e, err := DecodeJSON([]byte(`{"specversion":"1.0","id":"1","source":"s","type":"t",` + in + `}`))
		if err != nil || string(e.Data) != want {
			t.Errorf("%s: %q %v, want %q", in, e.Data, err, want)
		}
	}
}
