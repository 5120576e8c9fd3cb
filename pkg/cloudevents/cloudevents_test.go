package cloudevents

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	sdk "github.com/cloudevents/sdk-go/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
)

func full() event.Event {
	return event.Event{ID: "1 %\"ž🐎", Source: "urn:x:1", Type: "com.example.t", Subject: "a/b", Time: "2026-01-02T03:04:05.123456789Z",
		DataContentType: "application/json", DataSchema: "https://example.com/s", Data: []byte(`{"a":[1,2,"x"]}`),
		Ext: []event.Attr{{Name: "partitionkey", Value: "k"}, {Name: "traceparent", Value: "00-a-b-01"}}}
}

func TestRoundTrips(t *testing.T) {
	text, binary, none := full(), full(), full()
	text.DataContentType, text.Data = "text/plain; charset=utf-8", []byte("žluť\n\"quoted\"")
	binary.DataContentType, binary.Data = "application/octet-stream", []byte{0, 1, 2, 0xff}
	none.DataContentType, none.Data, none.Ext = "", nil, nil
	for _, want := range []event.Event{full(), text, binary, none} {
		got, err := DecodeJSON(AppendJSON(nil, &want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("JSON: %+v, %v\nwant %+v", got, err, want)
		}
		got, err = DecodeProto(AppendProto(nil, &want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("protobuf: %+v, %v\nwant %+v", got, err, want)
		}
		h := http.Header{}
		EncodeBinary(h, &want)
		got, err = DecodeBinary(h, want.Data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("binary: %+v, %v\nwant %+v", got, err, want)
		}
		var theirs sdk.Event
		if err := json.Unmarshal(AppendJSON(nil, &want), &theirs); err != nil {
			t.Fatal(err)
		}
		if theirs.ID() != want.ID || theirs.Subject() != want.Subject || !bytes.Equal(theirs.Data(), want.Data) || len(theirs.Extensions()) != len(want.Ext) {
			t.Errorf("the SDK reads %v", theirs)
		}
	}
}

// TestDeadLetters: an event with as many attributes as it may have, and those that the mesh
// adds to it, is read in each format; one with more is not.
func TestDeadLetters(t *testing.T) {
	want := full()
	want.Ext = nil
	for i := range event.MaxAttributes + event.MaxAdded {
		want.Ext = append(want.Ext, event.Attr{Name: fmt.Sprintf("a%02d", i), Value: "v"})
	}
	more := want
	more.Ext = event.With(want.Ext, "more", "v")
	read := func(e *event.Event) map[string]func() (event.Event, error) {
		return map[string]func() (event.Event, error){
			"JSON":     func() (event.Event, error) { return DecodeJSON(AppendJSON(nil, e)) },
			"protobuf": func() (event.Event, error) { return DecodeProto(AppendProto(nil, e)) },
			"binary": func() (event.Event, error) {
				h := http.Header{}
				EncodeBinary(h, e)
				return DecodeBinary(h, e.Data)
			},
		}
	}
	for format, decode := range read(&want) {
		got, err := decode()
		if err == nil {
			err = got.Conforms()
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %d attributes, %v", format, len(got.Ext), err)
		}
	}
	for format, decode := range read(&more) {
		if _, err := decode(); err == nil {
			t.Errorf("%s: any number of attributes is read", format)
		}
	}
}

func TestDecodeJSONRefuses(t *testing.T) {
	const ok = `"specversion":"1.0","id":"1","source":"s","type":"t"`
	for name, in := range map[string]string{
		"empty": "", "array": "[]", "number": "5", "cut short": "{" + ok, "no specversion": `{"id":"1","source":"s","type":"t"}`,
		"another version": `{"specversion":"0.3","id":"1"}`, "twice": "{" + ok + `,"id":"2"}`, "object attribute": "{" + ok + `,"a":{}}`,
		"float": "{" + ok + `,"a":1.5}`, "huge number": "{" + ok + `,"a":4294967296}`, "both data": "{" + ok + `,"data":1,"data_base64":"AA=="}`,
		"bad base64": "{" + ok + `,"data_base64":"!"}`, "base64 number": "{" + ok + `,"data_base64":5}`, "trailing": "{" + ok + "}{}",
		"bad UTF-8": "{" + ok + ",\"a\":\"\xff\"}", "deep": "{" + ok + `,"data":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + "}",
	} {
		if _, err := DecodeJSON([]byte(in)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if b, wrong, err := DecodeJSONBatch([]byte("[{" + ok + "},{},3,{" + ok + "}]")); err != nil || len(b) != 4 || len(wrong) != 4 || wrong[0] != nil || wrong[3] != nil ||
		wrong[1] == nil || !strings.Contains(wrong[1].Error(), "specversion") || wrong[2] == nil {
		t.Errorf("the error does not name the event: %v", err)
	}
	if b, _, err := DecodeJSONBatch([]byte("[{" + ok + "},{" + ok + "}]")); err != nil || len(b) != 2 {
		t.Errorf("%v %v", b, err)
	}
}

func TestDecodeBinaryRefuses(t *testing.T) {
	for name, h := range map[string]http.Header{
		"no version":      {"Ce-Id": {"1"}},
		"another version": {"Ce-Specversion": {"0.3"}},
		"twice":           {"Ce-Specversion": {"1.0"}, "Ce-Id": {"1", "2"}},
		"bad percent":     {"Ce-Specversion": {"1.0"}, "Ce-Id": {"%4"}},
		"content type":    {"Ce-Specversion": {"1.0"}, "Ce-Datacontenttype": {"x"}},
	} {
		if _, err := DecodeBinary(h, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestProtoTypes: every attribute type becomes its canonical string.
func TestProtoTypes(t *testing.T) {
	b, err := proto.Marshal(&cev1.CloudEvent{Id: "1", Source: "s", SpecVersion: "1.0", Type: "t", Attributes: map[string]*cev1.CloudEventAttributeValue{
		"b": {Attr: &cev1.CloudEventAttributeValue_CeBoolean{CeBoolean: true}}, "i": {Attr: &cev1.CloudEventAttributeValue_CeInteger{CeInteger: -5}},
		"y": {Attr: &cev1.CloudEventAttributeValue_CeBytes{CeBytes: []byte{1, 2}}}, "u": {Attr: &cev1.CloudEventAttributeValue_CeUri{CeUri: "https://x"}},
		"time": {Attr: &cev1.CloudEventAttributeValue_CeTimestamp{CeTimestamp: &timestamppb.Timestamp{Seconds: 1, Nanos: 5}}},
	}, Data: &cev1.CloudEvent_TextData{TextData: "hello"}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := DecodeProto(b)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"b": "true", "i": "-5", "y": "AQI=", "u": "https://x", "time": "1970-01-01T00:00:01.000000005Z"} {
		if got, _ := e.Attribute(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if string(e.Data) != "hello" {
		t.Errorf("%q", e.Data)
	}
}

// FuzzJSON: what decodes and is valid round-trips.
func FuzzJSON(f *testing.F) {
	e := full()
	f.Add(AppendJSON(nil, &e))
	fuzztest.Seeds(f, "*-structured.json")
	f.Add([]byte(`{"specversion":"1.0","id":"1","source":"s","type":"t","data":"x","datacontenttype":"text/plain"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e event.Event
		var err error
		if n := fuzztest.Allocated(func() { e, err = DecodeJSON(b) }); n > 64*uint64(len(b))+slack {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil || e.Validate() != nil {
			return
		}
		again, err := DecodeJSON(AppendJSON(nil, &e))
		if err != nil {
			t.Fatalf("%v\n%s", err, AppendJSON(nil, &e))
		}
		again.Data, e.Data = nil, nil // white space in JSON data may go
		if !reflect.DeepEqual(again, e) && e.DataContentType != "" {
			t.Errorf("%+v\n%+v", e, again)
		}
	})
}

// FuzzProto compares the hand-written decoder with the generated code.
func FuzzProto(f *testing.F) {
	e := full()
	f.Add(AppendProto(nil, &e))
	fuzztest.Seeds(f, "*.pb")
	f.Fuzz(func(t *testing.T, b []byte) {
		var e event.Event
		var err error
		if n := fuzztest.Allocated(func() { e, err = DecodeProto(b) }); n > 64*uint64(len(b))+slack {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil || e.Validate() != nil {
			return
		}
		var gen cev1.CloudEvent
		if err := proto.Unmarshal(b, &gen); err != nil {
			return // an unknown field's content is not looked at here
		}
		if gen.Id != e.ID || gen.Source != e.Source || gen.Type != e.Type {
			t.Errorf("%v\n%+v", &gen, e)
		}
		again, err := DecodeProto(AppendProto(nil, &e))
		if err != nil || again.ID != e.ID || !bytes.Equal(again.Data, e.Data) || !reflect.DeepEqual(again.Ext, e.Ext) {
			t.Errorf("%v\n%+v\n%+v", err, e, again)
		}
	})
}

// FuzzBinary: what decodes and is valid round-trips over headers.
func FuzzBinary(f *testing.F) {
	f.Add("1", "/s", "t", "ext", "a%20b")
	f.Fuzz(func(t *testing.T, id, source, typ, name, value string) {
		h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {source}, "Ce-Type": {typ}}
		h.Set("ce-"+name, value)
		e, err := DecodeBinary(h, nil)
		if err != nil || e.Validate() != nil {
			return
		}
		out := http.Header{}
		EncodeBinary(out, &e)
		again, err := DecodeBinary(out, nil)
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Errorf("%v\n%+v\n%+v", err, e, again)
		}
	})
}

func BenchmarkDecodeProto(b *testing.B) {
	e := full()
	e.Data = make([]byte, 1024)
	wire := AppendProto(nil, &e)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeProto(wire); err != nil {
			b.Fatal(err)
		}
	}
}

// jsonBatch is 16 events of 1 KiB.
func jsonBatch() []byte {
	one := `{"specversion":"1.0","id":"1","source":"/bench","type":"bench","subject":"a/b","datacontenttype":"text/plain","data":"` + strings.Repeat("x", 1024) + `"}`
	return []byte("[" + one + strings.Repeat(","+one, 15) + "]")
}

// TestJSONAllocations: what a batch takes does not grow with its events.
func TestJSONAllocations(t *testing.T) {
	batch := jsonBatch()
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := DecodeJSONBatch(batch); err != nil {
			t.Fatal(err)
		}
	}); n > 25 {
		t.Errorf("%.0f allocations for 16 events", n)
	}
}

func BenchmarkDecodeJSONBatch(b *testing.B) {
	batch := jsonBatch()
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		if events, wrong, err := DecodeJSONBatch(batch); err != nil || wrong != nil || len(events) != 16 {
			b.Fatal(len(events), wrong, err)
		}
	}
}

// batchOf is n events as one client sends them, encoded.
func batchOf(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		e := full()
		e.ID = fmt.Sprintf("id-%d", i)
		e.Data = make([]byte, 1024)
		out[i] = AppendProto(nil, &e)
	}
	return out
}

// BenchmarkDecodeProtoBatch decodes the 100 events of one message.
func BenchmarkDecodeProtoBatch(b *testing.B) {
	batch := batchOf(100)
	b.ReportAllocs()
	for b.Loop() {
		var d ProtoDecoder
		for _, wire := range batch {
			var e event.Event
			if err := d.Decode(wire, &e); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkAppendProto(b *testing.B) {
	e := full()
	e.Data = make([]byte, 1024)
	buf := AppendProto(nil, &e)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendProto(buf[:0], &e)
	}
}

// TestProtoAllocations: events of one message share the memory of their
// attributes, and encoding takes none.
func TestProtoAllocations(t *testing.T) {
	batch := batchOf(100)
	events := make([]event.Event, len(batch))
	decode := func() {
		var d ProtoDecoder
		clear(events)
		for i, wire := range batch {
			if err := d.Decode(wire, &events[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(100, decode); n > 20 {
		t.Errorf("%.0f allocations for %d events", n, len(batch))
	}
	if n := fuzztest.Allocated(decode); n > 150*uint64(len(batch)) {
		t.Errorf("%d bytes for %d events", n, len(batch))
	}
	buf := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() { buf = AppendProto(buf[:0], &events[0]) }); n > 0 {
		t.Errorf("%.0f allocations to encode an event", n)
	}
}
