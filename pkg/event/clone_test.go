package event

import (
	"reflect"
	"runtime"
	"testing"
	"unsafe"
)

// TestClone: a clone is equal, and shares no memory with what it was made of.
func TestClone(t *testing.T) {
	memory := []byte("0123456789abcdefghij")
	text := func(i int) string { return unsafe.String(&memory[i], 1) }
	e := Event{ID: text(0), Source: text(1), Type: text(2), Subject: text(3), Time: text(4), DataContentType: text(5), DataSchema: text(6),
		Ext: []Attr{{text(7), text(8)}, {text(9), text(10)}}, Mesh: []Attr{{text(11), text(12)}}, Data: memory[13:16]}
	want := Event{ID: "0", Source: "1", Type: "2", Subject: "3", Time: "4", DataContentType: "5", DataSchema: "6",
		Ext: []Attr{{"7", "8"}, {"9", "a"}}, Mesh: []Attr{{"b", "c"}}, Data: []byte("def")}
	got := e.Clone()
	clear(memory)
	e.Ext[0], e.Mesh[0] = Attr{}, Attr{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, e := range []Event{{}, {ID: "i", Data: []byte{}}} {
		if got := e.Clone(); got.ID != e.ID || got.Ext != nil || got.Mesh != nil || got.Data != nil {
			t.Errorf("%+v became %+v", e, got)
		}
	}
	large := Event{ID: "i", Source: "/s", Type: "t", Data: make([]byte, 1024)}
	if n := testing.AllocsPerRun(100, func() { got = large.Clone() }); n > 2 {
		t.Errorf("%.0f allocations", n)
	}

	// Who keeps a text, as one that is remembered, keeps no data.
	large.Data = make([]byte, 1<<20)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) //nolint:gosec // it is small
	}
	before, kept := heap(), make([]string, 64)
	for i := range kept {
		kept[i] = large.Clone().ID
	}
	if more := heap() - before; more > 8<<20 {
		t.Errorf("%d texts hold %d bytes", len(kept), more)
	}
	runtime.KeepAlive(kept)
}
