package kafka

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store"
)

// record is a record of topic t at offset 7 of partition 3.
func record(key, value []byte, kv ...string) *kgo.Record {
	r := &kgo.Record{Topic: "t", Partition: 3, Offset: 7, Key: key, Value: value}
	for i := 0; i < len(kv); i += 2 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: kv[i], Value: []byte(kv[i+1])})
	}
	return r
}

func headersOf(r *kgo.Record) map[string]string {
	out := map[string]string{}
	for _, h := range r.Headers {
		out[h.Key] = string(h.Value)
	}
	return out
}

var whole = event.Event{ID: "i", Source: "/s", Type: "t", Subject: "sub", Time: "2018-04-05T03:56:24Z", DataContentType: "application/avro", DataSchema: "/schema",
	Ext: []event.Attr{{Name: "contenttype", Value: "x"}, {Name: "partitionkey", Value: "k"}, {Name: "traceparent", Value: "00-1-2-01"}}, Data: []byte("x")}

// TestBinding: what is written is what CloudEvents' Kafka protocol binding says.
func TestBinding(t *testing.T) {
	r := encode(store.Outgoing{Event: &whole, Key: "k"}, "t")
	want := map[string]string{"ce_specversion": "1.0", "ce_id": "i", "ce_source": "/s", "ce_type": "t", "ce_subject": "sub", "ce_time": "2018-04-05T03:56:24Z", "ce_dataschema": "/schema",
		"content-type": "application/avro", "ce_contenttype": "x", "ce_partitionkey": "k", "ce_traceparent": "00-1-2-01"}
	if got := headersOf(r); !reflect.DeepEqual(got, want) || len(r.Headers) != len(want) {
		t.Errorf("headers are %v, want %v", got, want)
	}
	if r.Topic != "t" || string(r.Key) != "k" || string(r.Value) != "x" {
		t.Errorf("the record is %+v", r)
	}
	// A record always has a value, or it would remove others.
	if r := encode(store.Outgoing{Event: &event.Event{ID: "i", Source: "/s", Type: "t", Data: []byte{}}}, "t"); string(r.Value) != `{"specversion":"1.0","id":"i","source":"/s","type":"t"}` || r.Key != nil ||
		!reflect.DeepEqual(headersOf(r), map[string]string{"content-type": "application/cloudevents+json"}) {
		t.Errorf("an event without data and key is %+v", r)
	}
	// The key is of the record alone.
	if e := decode(encode(store.Outgoing{Event: &event.Event{ID: "i", Source: "/s", Type: "t"}, Key: "k"}, "t")); len(e.Ext) > 0 {
		t.Errorf("the record's key became an attribute: %+v", e)
	}
}

// TestRead: what others write in either mode is read.
func TestRead(t *testing.T) {
	want := event.Event{ID: "i", Source: "/s", Type: "t", Ext: []event.Attr{{Name: "a", Value: "1"}}, DataContentType: "text/plain", Data: []byte("x")}
	json := cloudevents.AppendJSON(nil, &want)
	proto := cloudevents.AppendProto(nil, &want)
	for name, r := range map[string]*kgo.Record{
		"binary":              record(nil, []byte("x"), "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "content-type", "text/plain", "other", "y"),
		"names in upper case": record(nil, []byte("x"), "ce_specversion", "1.0", "ce_ID", "i", "ce_source", "/s", "ce_type", "t", "ce_A", "1", "content-type", "text/plain"),
		"headers twice":       record(nil, []byte("x"), "ce_specversion", "0.3", "ce_id", "j", "ce_a", "0", "content-type", "x/y", "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "content-type", "text/plain"),
		"JSON":                record([]byte("k"), json, "content-type", "application/cloudevents+json"),
		"JSON, and headers":   record(nil, json, "content-type", "Application/CloudEvents+JSON ; charset=UTF-8", "ce_specversion", "1.0", "ce_id", "other"),
		"protobuf":            record(nil, proto, "content-type", "application/cloudevents+protobuf"),
	} {
		if got := decode(r); !reflect.DeepEqual(tidy(got), want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

// tidy is e with nil for what is empty.
func tidy(e event.Event) event.Event {
	if len(e.Ext) == 0 {
		e.Ext = nil
	}
	if len(e.Mesh) == 0 {
		e.Mesh = nil
	}
	return e
}

func TestRoundTrip(t *testing.T) {
	for name, e := range map[string]event.Event{
		"all of it":           whole,
		"no data":             {ID: "i", Source: "/s", Type: "t"},
		"no text":             {ID: "i", Source: "/s", Type: "t", Data: []byte{0, 255}},
		"nested":              {ID: "i", Source: "/s", Type: "t", DataContentType: "application/cloudevents+json; charset=utf-8", Data: []byte(`{"id":"inner"}`)},
		"nested batch":        {ID: "i", Source: "/s", Type: "t", DataContentType: "application/CloudEvents-batch+json", Data: []byte(`[]`)},
		"other letters":       {ID: "é%", Source: "/s", Type: "\u65e5\u672c", Data: []byte("x")},
		"headers of the mesh": {ID: "i", Source: "/s", Type: "t", Data: []byte("x"), Mesh: []event.Attr{{Name: "a", Value: "b\x01\n"}, {Name: "b", Value: "c"}}},
	} {
		r := encode(store.Outgoing{Event: &e, Key: "k"}, "t")
		if got := decode(r); !reflect.DeepEqual(tidy(got), e) {
			t.Errorf("%s: got %+v, want %+v", name, got, e)
		}
	}
}

// TestNative: a record that is no CloudEvent, or not a valid one, is delivered as it
// is, the same each time, with the reason where it says that it is one.
func TestNative(t *testing.T) {
	ok := []string{"ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t"}
	with := func(kv ...string) []string { return append(append([]string(nil), ok...), kv...) }
	many := ok
	for i := range 100 {
		many = append(many, fmt.Sprintf("ce_a%d", i), "x")
	}
	for name, c := range map[string]struct {
		headers []string
		why     string
	}{
		"native":                   {nil, ""},
		"native with headers":      {[]string{"trace", "x", "\xff", "\xff"}, ""},
		"no version":               {[]string{"ce_id", "i", "ce_source", "/s", "ce_type", "t"}, "ce_specversion is missing"},
		"empty version":            {[]string{"ce_specversion", "", "ce_id", "i"}, "ce_specversion is missing"},
		"unknown version":          {with("ce_specversion", "0.3"), `ce_specversion is "0.3"`},
		"no id":                    {[]string{"ce_specversion", "1.0", "ce_source", "/s", "ce_type", "t"}, `"id" is required`},
		"no type":                  {[]string{"ce_specversion", "1.0", "ce_source", "/s", "ce_id", "t"}, `"type" is required`},
		"empty id":                 {with("ce_id", ""), `"id" is required`},
		"not UTF-8":                {with("ce_id", "\xff"), "not valid UTF-8"},
		"control":                  {with("ce_subject", "a\nb"), "control character"},
		"not a time":               {with("ce_time", "yesterday"), "RFC 3339"},
		"not a name":               {with("ce_my-attr", "x"), "a name"},
		"no name":                  {with("ce_", "x"), "a name"},
		"name not UTF-8":           {with("ce_\xff", "x"), "a name"},
		"data as an attribute":     {with("ce_data", "x"), "context attribute"},
		"huge value":               {with("ce_a", strings.Repeat("x", 1<<20)), "bytes long"},
		"huge name":                {with("ce_"+strings.Repeat("x", 1<<20), "x"), "a name"},
		"many":                     {many, "one more than"},
		"not JSON":                 {[]string{"content-type", "application/cloudevents+json"}, "JSON object"},
		"not protobuf":             {[]string{"content-type", "application/cloudevents+protobuf"}, "protobuf"},
		"another format":           {[]string{"content-type", "application/cloudevents+avro"}, "does not read"},
		"a batch":                  {[]string{"content-type", "application/cloudevents-batch+json"}, "does not read"},
		"structured and in binary": {with("content-type", "application/cloudevents+json"), "JSON object"},
	} {
		r := record(nil, []byte("xyz"), c.headers...)
		e := decode(r)
		why, _ := event.Lookup(e.Mesh, headerUnreadable)
		if e.ID != "3-7" || e.Source != "/kafka/t" || e.Type != "org.apache.kafka.record" || string(e.Data) != "xyz" || e.DataContentType != "" || len(e.Ext) != 0 || e.Validate() != nil {
			t.Errorf("%s: got %+v", name, e)
		}
		if (c.why == "") != (why == "") || !strings.Contains(why, c.why) || len(why) > 400 {
			t.Errorf("%s: the reason is %.500q", name, why)
		}
		if !reflect.DeepEqual(e, decode(r)) {
			t.Errorf("%s: another event the second time", name)
		}
	}
	// Structured mode is not taken for valid because it is JSON.
	if e := decode(record(nil, []byte(`{"specversion":"1.0","id":"i","source":"/s"}`), "content-type", "application/cloudevents+json")); e.ID != "3-7" {
		t.Errorf("an event without a type: %+v", e)
	}
}

// TestNativeKey: records of one key are ordered, whatever the key is; a tombstone has
// no data.
func TestNativeKey(t *testing.T) {
	for key, want := range map[string]string{
		"":                         "",
		"k":                        "k",
		"\x00\x00\x00\x2a":         "AAAAKg==",
		"\xff":                     "/w==",
		strings.Repeat("k", 9<<10): strings.Repeat("a2tr", 4<<10/3) + "aw==",
	} {
		e := decode(record([]byte(key), nil, "content-type", "text/plain"))
		if e.Key("") != want || e.Data != nil || e.DataContentType != "text/plain" || e.Validate() != nil {
			t.Errorf("%.20q: got %.200v", key, e)
		}
	}
	if e := decode(record(nil, []byte("x"), "content-type", "no\ntype")); e.DataContentType != "" {
		t.Errorf("the content type is %q", e.DataContentType)
	}
}

// TestDeadLetterStaysAnEvent: what the mesh adds to an event that is as large as it
// may be does not make it one that is not valid.
func TestDeadLetterStaysAnEvent(t *testing.T) {
	e := event.Event{ID: "i", Source: "/s", Type: "t"}
	for i := range event.MaxAttributes {
		e.Ext = append(e.Ext, event.Attr{Name: fmt.Sprintf("a%02d", i), Value: strings.Repeat("x", 360)})
	}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		e.Ext = event.With(e.Ext, fmt.Sprintf("deadletter%d", i), strings.Repeat("x", 400))
	}
	r := encode(store.Outgoing{Event: &e}, "t")
	if got := decode(r); got.ID != "i" || len(got.Ext) != len(e.Ext) || r.Value == nil {
		t.Errorf("got %s with %d attributes, value %v", got.ID, len(got.Ext), r.Value)
	}
}

// TestBorrowed: an event holds on to nothing of the batch that its record came in.
func TestBorrowed(t *testing.T) {
	r := record([]byte("key"), []byte("value"), "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "weft_m", "2", "content-type", "a/b")
	for _, r := range []*kgo.Record{r, record(r.Key, r.Value, "content-type", "a/b"), record(nil, []byte(`{"specversion":"1.0","id":"i","source":"/s","type":"t","data":1}`), "content-type", "application/cloudevents+json")} {
		e := decode(r)
		was := fmt.Sprintf("%+v", e)
		for _, b := range append([][]byte{r.Key, r.Value}, values(r)...) {
			for i := range b {
				b[i] = '?'
			}
		}
		if is := fmt.Sprintf("%+v", e); is != was {
			t.Errorf("%s became %s", was, is)
		}
	}
}

func values(r *kgo.Record) (out [][]byte) {
	for _, h := range r.Headers {
		out = append(out, h.Value)
	}
	return out
}

// TestSize: size is never less than what a broker counts.
func TestSize(t *testing.T) {
	r := encode(store.Outgoing{Event: &whole, Key: "k"}, "t")
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 2*5 // their lengths, at most
	}
	if got := size(r); got < n+61+5*7 || got > n+256 {
		t.Errorf("%d bytes are said to be %d", n, got)
	}
}

// FuzzRecord: any record becomes an event that is valid, the same each time, which
// comes back as it is.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("k"), []byte("x"), []byte("ce_specversion\x001.0\x00ce_id\x00i\x00ce_source\x00/s\x00ce_type\x00t\x00weft_m\x00v"))
	f.Add([]byte(nil), []byte(`{"specversion":"1.0","id":"i","source":"/s","type":"t","data":{"a":1}}`), []byte("content-type\x00application/cloudevents+json"))
	f.Add([]byte{0}, []byte("\x0a\x01i\x12\x02/s\x1a\x031.0\x22\x01t"), []byte("content-type\x00application/cloudevents+protobuf"))
	f.Add([]byte("k"), []byte(nil), []byte("ce_specversion\x001.0\x00ce_specversion\x000.3\x00ce_id\x00\xff\x00ce_\x00\x00CE_ID\x00i"))
	f.Fuzz(func(t *testing.T, key, value, flat []byte) {
		parts := strings.Split(string(flat), "\x00")
		r := record(key, value, parts[:len(parts)/2*2]...)
		var e event.Event
		if n := fuzztest.Allocated(func() { e = decode(r) }); n > 64*uint64(len(key)+len(value)+len(flat))+64<<10 {
			t.Errorf("%d bytes for %d", n, len(key)+len(value)+len(flat))
		}
		if err := e.Conforms(); err != nil {
			t.Fatalf("%+v: %v", e, err)
		}
		if !reflect.DeepEqual(e, decode(r)) {
			t.Fatal("another event the second time")
		}
		if len(e.Ext) > event.MaxAttributes {
			return // JSON has room for these alone
		}
		again := encode(store.Outgoing{Event: &e}, "t")
		if got := decode(again); !cloudevents.IsEvent(e.DataContentType) && !reflect.DeepEqual(present(got), present(e)) {
			t.Fatalf("%+v became %+v", e, got)
		}
	})
}

// present is e without attributes that are empty, which JSON and headers may lose.
func present(e event.Event) event.Event {
	kept := func(attrs []event.Attr) (out []event.Attr) {
		for _, a := range attrs {
			if a.Value != "" {
				out = append(out, a)
			}
		}
		return out
	}
	e.Ext, e.Mesh = kept(e.Ext), kept(e.Mesh)
	return e
}

// TestAllocations: an event takes few allocations, in either direction.
func TestAllocations(t *testing.T) {
	e := event.Event{ID: "i", Source: "/s", Type: "t", Subject: "s", Time: "2018-04-05T03:56:24Z", DataContentType: "application/json", Data: bytes.Repeat([]byte("x"), 1024)}
	var r *kgo.Record
	if n := testing.AllocsPerRun(100, func() { r = encode(store.Outgoing{Event: &e, Key: "k"}, "t") }); n > 4 {
		t.Errorf("%.0f allocations to write", n)
	}
	if n := testing.AllocsPerRun(100, func() { decode(r) }); n > 4 {
		t.Errorf("%.0f allocations to read", n)
	}
}
