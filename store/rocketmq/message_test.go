package rocketmq

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store"
)

// stored is a message as a broker's answer has it.
func stored(flags int32, offset int64, body []byte, properties string) []byte {
	b := make([]byte, 4, 128)
	b = append(b, 0xda, 0xa3, 0x20, 0xa7, 0, 0, 0, 0) // magic, CRC
	b = binary.BigEndian.AppendUint32(b, 3)           // queue
	b = binary.BigEndian.AppendUint32(b, 0)           // flag
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(flags))
	b = binary.BigEndian.AppendUint64(b, 0)
	b = append(b, 127, 0, 0, 1, 0, 0, 0, 1)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Unix(1_700_000_000, 0).UnixMilli()))
	b = append(b, 127, 0, 0, 1, 0, 0, 0, 1)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	b = append(append(b, 1), 't')
	b = binary.BigEndian.AppendUint16(b, uint16(len(properties)))
	b = append(b, properties...)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func property(kv ...string) string {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		b.WriteString(kv[i] + nameSeparator + kv[i+1] + propSeparator)
	}
	return b.String()
}

// messages are all messages of a pull's answer.
func messages(b []byte) (out []message, err error) {
	err = decodeMessages(b, func(m *message) bool {
		out = append(out, *m)
		return true
	})
	return out, err
}

func read(t *testing.T, b []byte) event.Event {
	t.Helper()
	ms, err := messages(b)
	if err != nil || len(ms) != 1 {
		t.Fatalf("%d messages, %v", len(ms), err)
	}
	return decode(&ms[0], "t", "b/3")
}

// TestStoredKey: a message group, or sharding key, orders a message that does not say its own.
func TestStoredKey(t *testing.T) {
	ce := []string{"CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "t"}
	for name, c := range map[string]struct {
		properties []string
		want       string
	}{
		"message group":   {append([]string{"__SHARDINGKEY", "g"}, ce...), "g"},
		"sharding key":    {append([]string{"SHARDING_KEY", "g"}, ce...), "g"},
		"no CloudEvent":   {[]string{"__SHARDINGKEY", "g"}, "g"},
		"none":            {ce, ""},
		"the event's own": {append([]string{"__SHARDINGKEY", "g", "CE_partitionkey", "p"}, ce...), ""},
	} {
		p := puller{topic: "t"}
		got, _, err := p.decode(stored(0, 7, []byte("x"), property(c.properties...)))
		if err != nil || len(got) != 1 || got[0].StoredKey != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestJavaSDK: what the CloudEvents SDK for Java writes is read, and what it
// reads is written.
func TestJavaSDK(t *testing.T) {
	base := []string{"CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "t"}
	want := event.Event{ID: "i", Source: "/s", Type: "t", DataContentType: "text/plain", Data: []byte("x")}
	if got := read(t, stored(0, 7, []byte("x"), property(append(base, "CE_contenttype", "text/plain", "UNIQ_KEY", "u")...))); !reflect.DeepEqual(got, want) {
		t.Errorf("binary: got %+v, want %+v", got, want)
	}
	if got := read(t, stored(0, 7, []byte{0}, property(base...))); got.Data != nil {
		t.Errorf("its empty body is read as %v", got.Data)
	}
	if got := read(t, stored(0, 7, cloudevents.AppendJSON(nil, &want), property("CE_contenttype", "application/cloudevents+json; charset=utf-8"))); !reflect.DeepEqual(got, want) {
		t.Errorf("structured: got %+v, want %+v", got, want)
	}
	if props, _ := encode(&want, time.Time{}); !strings.Contains(props, "CE_contenttype\x01text/plain\x02") || strings.Contains(props, "CE_datacontenttype") {
		t.Errorf("properties are %q", props)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, e := range map[string]event.Event{
		"no data":             {ID: "i", Source: "/s", Type: "t"},
		"a zero byte":         {ID: "i", Source: "/s", Type: "t", Data: []byte{0}},
		"its own content":     {ID: "i", Source: "/s", Type: "t", Ext: []event.Attr{{Name: "contenttype", Value: "x"}}, DataContentType: "text/plain", Data: []byte("x")},
		"structured, nested":  {ID: "i", Source: "/s", Type: "t", DataContentType: "application/cloudevents+json; charset=utf-8", Data: []byte(`{"id":"inner"}`)},
		"of another format":   {ID: "i", Source: "/s", Type: "t", DataContentType: "application/cloudevents+protobuf", Data: []byte("x")},
		"headers of the mesh": {ID: "i", Source: "/s", Type: "t", Data: []byte("x"), Mesh: []event.Attr{{Name: "a", Value: "b"}}},
	} {
		props, body := encode(&e, time.Time{})
		if got := read(t, stored(0, 7, body, props)); !reflect.DeepEqual(got, e) {
			t.Errorf("%s: got %+v, want %+v", name, got, e)
		}
		// What the message is called is how it is to be read, by whoever reads it.
		if strings.Contains(props, "CE_contenttype\x01application/cloudevents") && !strings.Contains(props, "CE_contenttype\x01application/cloudevents+json\x02") {
			t.Errorf("%s: properties are %q", name, props)
		}
	}
}

// TestMeshHeaderForgesNothing: the mesh's headers and attributes quote strangers.
func TestMeshHeaderForgesNothing(t *testing.T) {
	e := event.Event{ID: "i", Source: "/s", Type: "t", Data: []byte("x"), Mesh: []event.Attr{{Name: "why", Value: "no\x02TRAN_MSG\x01true\x02CE_id\x01forged"}}}
	props, body := encode(&e, time.Time{})
	ms, err := messages(stored(0, 7, body, props))
	if err != nil {
		t.Fatal(err)
	}
	if ms[0].property("TRAN_MSG") != "" || ms[0].property("CE_id") != "i" {
		t.Errorf("a header became properties: %q", ms[0].properties)
	}
	e.Subject, e.Mesh = "s\x02TRAN_MSG\x01true", nil
	props, body = encode(&e, time.Time{})
	if ms, err = messages(stored(0, 7, body, props)); err != nil || ms[0].property("TRAN_MSG") != "" || ms[0].property("CE_id") != "" {
		t.Errorf("an attribute became properties: %q %v", ms[0].properties, err)
	}
}

// TestUnreadable: a message that cannot be read is delivered as it is, the same
// each time, and does not take those beside it with it.
func TestUnreadable(t *testing.T) {
	good := stored(0, 8, []byte("x"), property("CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "t"))
	for name, bad := range map[string][]byte{
		"LZ4":        stored(flagCompressed|1<<8, 7, []byte("xyz"), ""),
		"not zlib":   stored(flagCompressed, 7, []byte("xyz"), ""),
		"not JSON":   stored(0, 7, []byte("xyz"), property("CE_contenttype", "application/cloudevents+json")),
		"incomplete": stored(0, 7, []byte("xyz"), property("CE_specversion", "1.0", "CE_id", "only")),
		"version":    stored(0, 7, []byte("xyz"), property("CE_specversion", "0.3", "CE_id", "i", "CE_source", "/s", "CE_type", "t")),
		"control":    stored(0, 7, []byte("xyz"), property("CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "a\nb")),
		"not UTF-8":  stored(0, 7, []byte("xyz"), property("CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "a\xff")),
		"native":     stored(0, 7, []byte("xyz"), property("KEYS", "k")),
	} {
		ms, err := messages(append(bytes.Clone(bad), good...))
		if err != nil || len(ms) != 2 {
			t.Errorf("%s: %d messages, %v", name, len(ms), err)
			continue
		}
		e := decode(&ms[0], "t", "b/3")
		if e.ID != "b/3-7" || e.Source != "/rocketmq/t" || string(e.Data) != "xyz" || e.Validate() != nil {
			t.Errorf("%s: got %+v", name, e)
		}
		if !reflect.DeepEqual(e, decode(&ms[0], "t", "b/3")) {
			t.Errorf("%s: another event the second time", name)
		}
	}
}

// TestPadding: an event in a body that is hardly more than blanks does not hold that.
func TestPadding(t *testing.T) {
	want := event.Event{ID: "i", Source: "/s", Type: "t", DataContentType: "application/json", Data: []byte(`{"a":1}`)}
	body := append(cloudevents.AppendJSON(nil, &want), bytes.Repeat([]byte(" "), 1<<20)...)
	ms, err := messages(stored(0, 7, body, property("CE_contenttype", cloudevents.TypeJSON)))
	if err != nil {
		t.Fatal(err)
	}
	e := decode(&ms[0], "t", "b/3")
	clear(ms[0].body)
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got %+v, want %+v", e, want)
	}
}

// FuzzMessages: any answer is refused or gives messages that lie within it.
func FuzzMessages(f *testing.F) {
	f.Add(stored(0, 7, []byte("x"), property("CE_specversion", "1.0", "CE_id", "i", "CE_source", "/s", "CE_type", "t")))
	f.Add(stored(flagCompressed, 7, []byte("x"), "a\x01b\x02"))
	f.Add(stored(flagBornHostV6|flagStoreHostV6, 7, nil, ""))
	f.Add([]byte{0, 0, 0, 71})
	fuzztest.Seeds(f, "pull-*")
	f.Fuzz(func(t *testing.T, b []byte) {
		p := puller{topic: "t", q: queue{"b", 0}}
		var out []store.Message
		var err error
		// A compressed body inflates to at most a thousand times its length.
		if n := fuzztest.Allocated(func() { out, _, err = p.decode(b) }); n > 4096*uint64(len(b))+1<<20 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		if len(out)*(minMessage-20) > len(b) {
			t.Fatalf("%d messages in %d bytes", len(out), len(b))
		}
		size := 0
		for i := range out {
			e := &out[i].Event
			if e.ID == "" || e.Source == "" || e.Type == "" {
				t.Fatalf("an event without what it must have: %+v", e)
			}
			size += e.Size()
		}
		if size > prefetchBytes+max(maxInflatedBytes, len(b))+1<<10 {
			t.Errorf("%d bytes are taken", size)
		}
	})
}

// TestRoute: what a name server really answers, in both forms.
func TestRoute(t *testing.T) {
	for _, name := range []string{"answer-route", "answer-route-standard"} {
		b, err := os.ReadFile(filepath.Join("testdata", "captures", name))
		if err != nil {
			t.Fatal(err)
		}
		r, err := decodeRoute(b, time.Time{})
		if err != nil || len(r.read) != 1 || len(r.write) != 1 || r.write[0] != (queue{"broker-a", 0}) || !strings.HasPrefix(r.brokers["broker-a"], "127.0.0.1:") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for _, bad := range []string{`{"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":2000000000}],"brokerDatas":[{"brokerName":"b","brokerAddrs":{0:"a:1"}}]}`, "{", ""} {
		if r, err := decodeRoute([]byte(bad), time.Time{}); err == nil {
			t.Errorf("%s is %d queues", bad, len(r.read))
		}
	}
	var got map[string]string
	if err := decodeJSON([]byte(`{"a":",1:\\",2:"{3:4,\"5:"}`), &got); err != nil || got["a"] != ",1:\\" || got["2"] != `{3:4,"5:` {
		t.Errorf("what stands in strings is %q, %v", got, err)
	}
}

// FuzzAnswer: what is JSON is read as it is, numbers as keys change nothing
// else, and a route has no more queues than it may.
func FuzzAnswer(f *testing.F) {
	fuzztest.Seeds(f, "answer-*")
	f.Add([]byte(`{0:{1:"a,2:b"}, "x\\":[{3:4}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var plain, got any
		var err error
		if n := fuzztest.Allocated(func() { err = decodeJSON(b, &got) }); n > 512*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if json.Unmarshal(b, &plain) == nil {
			var quoted any
			if qerr := json.Unmarshal(quoteKeys(b), &quoted); err != nil || qerr != nil || !reflect.DeepEqual(got, plain) || !reflect.DeepEqual(quoted, plain) {
				t.Errorf("%v becomes %v and %v, %v %v", plain, got, quoted, err, qerr)
			}
		}
		r, err := decodeRoute(b, time.Time{})
		if err == nil && len(r.read)+len(r.write) > 5*maxQueues {
			t.Errorf("%d queues", len(r.read)+len(r.write))
		}
	})
}

// TestBufferIsBounded: what is pulled ahead is bounded in messages and in bytes.
func TestBufferIsBounded(t *testing.T) {
	for _, c := range []struct {
		messages, size int
		want           bool
	}{{0, 0, false}, {prefetch - 1, 10, false}, {prefetch, 10, true}, {3, 1 << 20, false}, {4, 1 << 20, true}, {2, 4 << 20, true}} {
		buffer := make([]store.Message, c.messages)
		for i := range buffer {
			buffer[i].Data = make([]byte, c.size)
		}
		if got := enoughBuffered(buffer); got != c.want {
			t.Errorf("%d messages of %d bytes are enough: %v", c.messages, c.size, got)
		}
	}
}

// TestPropertiesTwice: of a property that is there twice the last one counts,
// whatever it is.
func TestPropertiesTwice(t *testing.T) {
	ms, err := messages(stored(0, 7, []byte("x"), property("CE_specversion", "1.0", "CE_id", "a", "CE_x", "1", "WEFT_m", "1", "CE_source", "/s", "CE_id", "b", "CE_a", "2", "CE_type", "t", "CE_x", "3", "WEFT_m", "4")))
	if err != nil {
		t.Fatal(err)
	}
	e := decode(&ms[0], "t", "b/0")
	want := event.Event{ID: "b", Source: "/s", Type: "t", Ext: []event.Attr{{Name: "a", Value: "2"}, {Name: "x", Value: "3"}}, Mesh: []event.Attr{{Name: "m", Value: "4"}}, Data: []byte("x")}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("%+v", e)
	}
}

// pulled is an answer with 32 messages of 1 KiB.
func pulled() (b []byte) {
	for i := range 32 {
		b = append(b, stored(0, int64(i), make([]byte, 1024), property("CE_specversion", "1.0", "CE_id", fmt.Sprint(i), "CE_source", "/s", "CE_type", "t", "CE_subject", "s", "UNIQ_KEY", "0A", "WAIT", "true"))...)
	}
	return b
}

// TestDecodeAllocations: a message that is pulled takes few allocations.
func TestDecodeAllocations(t *testing.T) {
	b := pulled()
	if n := testing.AllocsPerRun(100, func() {
		ms, err := messages(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range ms {
			decode(&ms[i], "t", "b/0")
		}
	}); n > 32*4 {
		t.Errorf("%.0f allocations for 32 messages", n)
	}
}

func BenchmarkDecodeMessages(b *testing.B) {
	in := pulled()
	b.ReportAllocs()
	for b.Loop() {
		ms, err := messages(in)
		if err != nil {
			b.Fatal(err)
		}
		for i := range ms {
			decode(&ms[i], "t", "b/0")
		}
	}
}
