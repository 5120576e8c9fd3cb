package kafka

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store"
)

// record is a record of topic t at offset 7 of partition 3.
func fetched(key, value []byte, kv ...string) *kgo.Record {
	r := &kgo.Record{Topic: "t", Partition: 3, Offset: 7, Key: key, Value: value}
	for i := 0; i < len(kv); i += 2 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: kv[i], Value: []byte(kv[i+1])})
	}
	return r
}

// written is the record of an event, as Kafka's other clients read the batch.
func written(t testing.TB, o store.Outgoing) *kgo.Record {
	t.Helper()
	r, _ := encode(o, nil)
	b := batch{events: []*outgoing{{Event: r}}}
	return readBatch(t, b.append(nil))[0]
}

// readBatch reads a batch by generated code.
func readBatch(t testing.TB, raw []byte) (out []*kgo.Record) {
	t.Helper()
	var b kmsg.RecordBatch
	if err := b.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	if int(b.Length) != len(raw)-12 || uint32(b.CRC) != crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)) { //nolint:gosec // it is a sum
		t.Fatalf("the batch of %d bytes says that it has %d, and sum %x", len(raw), b.Length, b.CRC)
	}
	for rest := b.Records; len(rest) > 0; {
		n, used := kbin.Varint(rest)
		var r kmsg.Record
		if err := r.ReadFrom(rest[:used+int(n)]); err != nil || int(r.OffsetDelta) != len(out) {
			t.Fatalf("record %d: %+v, %v", len(out), r, err)
		}
		rest = rest[used+int(n):]
		k := &kgo.Record{Topic: "t", Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			k.Headers = append(k.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
		}
		out = append(out, k)
	}
	if len(out) != int(b.NumRecords) || int(b.LastOffsetDelta) != len(out)-1 {
		t.Fatalf("the batch says that it has %d records, of which the last is %d; it has %d", b.NumRecords, b.LastOffsetDelta, len(out))
	}
	return out
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
	r := written(t, store.Outgoing{Event: &whole, Key: "k"})
	want := map[string]string{"ce_specversion": "1.0", "ce_id": "i", "ce_source": "/s", "ce_type": "t", "ce_subject": "sub", "ce_time": "2018-04-05T03:56:24Z", "ce_dataschema": "/schema",
		"content-type": "application/avro", "ce_contenttype": "x", "ce_partitionkey": "k", "ce_traceparent": "00-1-2-01"}
	if got := headersOf(r); !reflect.DeepEqual(got, want) || len(r.Headers) != len(want) {
		t.Errorf("headers are %v, want %v", got, want)
	}
	if string(r.Key) != "k" || string(r.Value) != "x" {
		t.Errorf("the record is %+v", r)
	}
	// A record always has a value, or it would remove others.
	if r := written(t, store.Outgoing{Event: &event.Event{ID: "i", Source: "/s", Type: "t", Data: []byte{}}}); string(r.Value) != `{"specversion":"1.0","id":"i","source":"/s","type":"t"}` || r.Key != nil ||
		!reflect.DeepEqual(headersOf(r), map[string]string{"content-type": "application/cloudevents+json"}) {
		t.Errorf("an event without data and key is %+v", r)
	}
	// The key is of the record alone.
	if e := decode(written(t, store.Outgoing{Event: &event.Event{ID: "i", Source: "/s", Type: "t"}, Key: "k"})); len(e.Ext) > 0 {
		t.Errorf("the record's key became an attribute: %+v", e)
	}
}

// TestRead: what others write in either mode is read.
func TestRead(t *testing.T) {
	want := event.Event{ID: "i", Source: "/s", Type: "t", Ext: []event.Attr{{Name: "a", Value: "1"}}, DataContentType: "text/plain", Data: []byte("x")}
	json := cloudevents.AppendJSON(nil, &want)
	proto := cloudevents.AppendProto(nil, &want)
	for name, r := range map[string]*kgo.Record{
		"binary":              fetched(nil, []byte("x"), "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "content-type", "text/plain", "other", "y"),
		"names in upper case": fetched(nil, []byte("x"), "ce_specversion", "1.0", "ce_ID", "i", "ce_source", "/s", "ce_type", "t", "ce_A", "1", "content-type", "text/plain"),
		"headers twice":       fetched(nil, []byte("x"), "ce_specversion", "0.3", "ce_id", "j", "ce_a", "0", "content-type", "x/y", "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "content-type", "text/plain"),
		"JSON":                fetched([]byte("k"), json, "content-type", "application/cloudevents+json"),
		"JSON, and headers":   fetched(nil, json, "content-type", "Application/CloudEvents+JSON ; charset=UTF-8", "ce_specversion", "1.0", "ce_id", "other"),
		"protobuf":            fetched(nil, proto, "content-type", "application/cloudevents+protobuf"),
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
		r := written(t, store.Outgoing{Event: &e, Key: "k"})
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
		"data as an attribute":     {with("ce_data", "x"), "kept for the data"},
		"huge value":               {with("ce_a", strings.Repeat("x", 1<<20)), "bytes long"},
		"huge name":                {with("ce_"+strings.Repeat("x", 1<<20), "x"), "a name"},
		"many":                     {many, "one more than"},
		"not JSON":                 {[]string{"content-type", "application/cloudevents+json"}, "JSON object"},
		"not protobuf":             {[]string{"content-type", "application/cloudevents+protobuf"}, "protobuf"},
		"another format":           {[]string{"content-type", "application/cloudevents+avro"}, "does not read"},
		"a batch":                  {[]string{"content-type", "application/cloudevents-batch+json"}, "does not read"},
		"structured and in binary": {with("content-type", "application/cloudevents+json"), "JSON object"},
	} {
		r := fetched(nil, []byte("xyz"), c.headers...)
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
	if e := decode(fetched(nil, []byte(`{"specversion":"1.0","id":"i","source":"/s"}`), "content-type", "application/cloudevents+json")); e.ID != "3-7" {
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
		e := decode(fetched([]byte(key), nil, "content-type", "text/plain"))
		if e.Key("") != want || e.Data != nil || e.DataContentType != "text/plain" || e.Validate() != nil {
			t.Errorf("%.20q: got %.200v", key, e)
		}
	}
	if e := decode(fetched(nil, []byte("x"), "content-type", "no\ntype")); e.DataContentType != "" {
		t.Errorf("the content type is %q", e.DataContentType)
	}
}

// TestStoredKey: a record's key orders an event that does not say its own; it is no attribute.
func TestStoredKey(t *testing.T) {
	ce := []string{"ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t"}
	for name, c := range map[string]struct {
		r    *kgo.Record
		want string
	}{
		"binary":          {fetched([]byte("k"), []byte("x"), ce...), "k"},
		"structured":      {fetched([]byte("k"), []byte(`{"specversion":"1.0","id":"i","source":"/s","type":"t"}`), "content-type", "application/cloudevents+json"), "k"},
		"no text":         {fetched([]byte{0, 0, 0, 42}, []byte("x"), ce...), "AAAAKg=="},
		"none":            {fetched(nil, []byte("x"), ce...), ""},
		"the event's own": {fetched([]byte("k"), []byte("x"), append([]string{"ce_partitionkey", "p"}, ce...)...), ""},
		"no CloudEvent":   {fetched([]byte("k"), []byte("x")), ""},
	} {
		m := message(c.r)
		if c.r.Key = append(c.r.Key[:0], "#"...); m.StoredKey != c.want {
			t.Errorf("%s: it is stored with %q, not %q", name, m.StoredKey, c.want)
		}
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
	r := written(t, store.Outgoing{Event: &e})
	if got := decode(r); got.ID != "i" || len(got.Ext) != len(e.Ext) || r.Value == nil {
		t.Errorf("got %s with %d attributes, value %v", got.ID, len(got.Ext), r.Value)
	}
}

// TestBorrowed: the message of a record that may be kept holds on to nothing of the batch
// that it came in.
func TestBorrowed(t *testing.T) {
	r := fetched([]byte("key"), []byte("value"), "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t", "ce_a", "1", "weft_m", "2", "content-type", "a/b")
	for _, r := range []*kgo.Record{r, fetched(r.Key, r.Value, "content-type", "a/b"), fetched(nil, []byte(`{"specversion":"1.0","id":"i","source":"/s","type":"t","data":1}`), "content-type", "application/cloudevents+json")} {
		m := message(r)
		was := fmt.Sprintf("%+v", m)
		overwrite(r)
		if is := fmt.Sprintf("%+v", m); is != was {
			t.Errorf("%s became %s", was, is)
		}
	}
}

// overwrite writes over what came with a record.
func overwrite(r *kgo.Record) {
	for _, b := range append([][]byte{r.Key, r.Value}, values(r)...) {
		for i := range b {
			b[i] = '?'
		}
	}
}

// TestTailOwns: the events of a tail have memory of their own where that is asked for, and
// else cost none.
func TestTailOwns(t *testing.T) {
	for _, own := range []bool{false, true} {
		tl := &tail{own: own, parts: map[int32]*tailPartition{3: {}}}
		r, some := fetched(nil, []byte("value"), "ce_specversion", "1.0", "ce_id", "i", "ce_source", "/s", "ce_type", "t"), make([]store.Message, 1)
		tl.rest = []kgo.FetchPartition{{Partition: 3, Records: []*kgo.Record{r}}}
		if tl.give(some) != 1 {
			t.Fatal("nothing is given")
		}
		overwrite(r)
		if got := string(some[0].Data); own && got != "value" || !own && got != "?????" {
			t.Errorf("own %t: %s", own, got)
		}
	}
}

func values(r *kgo.Record) (out [][]byte) {
	for _, h := range r.Headers {
		out = append(out, h.Value)
	}
	return out
}

// TestSize: the size of a record is never less than what it takes of a batch, of which it
// may be the only one, nor that of an event's headers.
func TestSize(t *testing.T) {
	for _, e := range []event.Event{whole, {ID: "i", Source: "/s", Type: "t"}, {ID: "i", Source: "/s", Type: "t", Data: make([]byte, 1<<20), Mesh: []event.Attr{{Name: strings.Repeat("n", 200), Value: strings.Repeat("v", 70_000)}}}} {
		r, headers := encode(store.Outgoing{Event: &e, Key: "k"}, nil)
		b := batch{events: []*outgoing{{Event: r}}}
		if got, n := r.size(), len(b.append(nil)); got < n || got > n+256 {
			t.Errorf("%d bytes are said to be %d", n, got)
		}
		if got := headerBytes(&e); got < len(headers) || got > len(headers)+512 {
			t.Errorf("headers of %d bytes are said to be %d", len(headers), got)
		}
	}
}

// TestRequest: a batch that is encoded where its request is written is what generated
// code makes of both, in every version that has batches.
func TestRequest(t *testing.T) {
	var events []*outgoing
	for i := range 200 {
		e := whole
		e.ID, e.Data = strconv.Itoa(i), bytes.Repeat([]byte("x"), i+1)
		r, _ := encode(store.Outgoing{Event: &e, Key: strings.Repeat("k", i%3)}, nil)
		events = append(events, &outgoing{Event: r})
	}
	b := batch{events: events, producer: 7, epoch: 3, sequence: 100, now: 1_700_000_000_000}
	raw := b.append(nil)
	if n := b.size(); n != len(raw) {
		t.Fatalf("%d bytes are said to be %d", len(raw), n)
	}
	for i, r := range readBatch(t, raw) {
		if headersOf(r)["ce_id"] != strconv.Itoa(i) || len(r.Value) != i+1 || len(r.Key) != i%3 {
			t.Errorf("record %d is %+v", i, r)
		}
	}
	for v := int16(3); v <= (&kmsg.ProduceRequest{}).MaxVersion(); v++ {
		ask := func() *kmsg.ProduceRequest {
			req := kmsg.NewPtrProduceRequest()
			req.Version, req.Acks, req.TimeoutMillis = v, -1, 5
			req.Topics = []kmsg.ProduceRequestTopic{{Topic: "t", TopicID: [16]byte{1}, Partitions: []kmsg.ProduceRequestTopicPartition{{Partition: 2}}}}
			return req
		}
		want := ask()
		want.Topics[0].Partitions[0].Records = raw
		p := &produce{ProduceRequest: ask(), batch: b}
		if !bytes.Equal(p.AppendTo([]byte("head")), want.AppendTo([]byte("head"))) {
			t.Errorf("version %d: the request is another", v)
		}
		if !p.end() {
			t.Errorf("version %d: no broker is said to have what was written", v)
		}
		// One that its sender has given up is not written any more: another may have settled
		// its events, which are not as they were then.
		p = &produce{ProduceRequest: ask(), batch: b}
		if p.end() || !bytes.Equal(p.AppendTo(nil), ask().AppendTo(nil)) || p.end() {
			t.Errorf("version %d: the request is written when it is over", v)
		}
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
		r := fetched(key, value, parts[:len(parts)/2*2]...)
		before := bytes.Clone(value)
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
		if !bytes.Equal(value, before) {
			t.Fatal("what was fetched was changed: others read it")
		}
		if len(e.Ext) > event.MaxAttributes {
			return // JSON has room for these alone
		}
		again := written(t, store.Outgoing{Event: &e})
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
	o := store.Outgoing{Event: &e, Key: "k"}
	room, dst := make([]byte, 0, headerBytes(&e)), make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() {
		r, _ := encode(o, room)
		dst = r.append(dst[:0], 0)
	}); n > 0 {
		t.Errorf("%.0f allocations to write", n)
	}
	r := written(t, o)
	if n := testing.AllocsPerRun(100, func() { decode(r) }); n > 4 {
		t.Errorf("%.0f allocations to read", n)
	}
}
