package embedded

import (
	"reflect"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
)

func full() event.Event {
	return event.Event{ID: "id-1", Source: "/source", Type: "com.example.t", Subject: "sub", Time: "2026-01-02T03:04:05Z", DataContentType: "application/json",
		Ext: []event.Attr{{Name: "partitionkey", Value: "k"}, {Name: "traceparent", Value: "00-1-2-01"}}, Data: make([]byte, 1024)}
}

// TestRecordAllocations: reading a record takes one copy of its attributes and one
// of its data, which are the reader's own.
func TestRecordAllocations(t *testing.T) {
	e := full()
	b := appendRecord(nil, &e, time.Unix(1, 2))
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := decodeRecord(b); err != nil {
			t.Fatal(err)
		}
	}); n > 3 {
		t.Errorf("%.0f allocations to read a record", n)
	}
	got, _, err := decodeRecord(b)
	for i := range b {
		b[i] = 0xdb
	}
	if err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("%v %+v", err, got)
	}
	slab := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(100, func() { slab = appendRecord(slab[:0], &e, time.Unix(1, 2)) }); n > 0 {
		t.Errorf("%.0f allocations to write a record", n)
	}
}

func BenchmarkDecodeRecord(b *testing.B) {
	e := full()
	record := appendRecord(nil, &e, time.Unix(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := decodeRecord(record); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendRecord(b *testing.B) {
	e := full()
	slab := make([]byte, 0, 2048)
	b.ReportAllocs()
	for b.Loop() {
		slab = appendRecord(slab[:0], &e, time.Unix(1, 2))
	}
}
