package cutover

import (
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/event"
)

func TestMarker(t *testing.T) {
	const uid = "0b1f6c0e-7a44-4d6e-9d0a-5a6c1f0a2b3c"
	seen := map[string]bool{}
	for _, of := range []struct {
		uid            string
		epoch, attempt uint32
	}{{uid, 1, 1}, {uid, 1, 2}, {uid, 2, 1}, {uid, 12, 1}, {uid, 1, 21}, {"other", 1, 1}, {uid, 1<<32 - 1, 1<<32 - 1}} {
		m := Marker(of.uid, of.epoch, of.attempt)
		if err := m.Validate(); err != nil {
			t.Errorf("%+v: %v", of, err)
		}
		if !IsMarker(m) {
			t.Errorf("%+v: it is none", of)
		}
		if seen[m.ID] {
			t.Errorf("%+v: its id %s is that of another", of, m.ID)
		}
		seen[m.ID] = true
		if m.Type != "io.weft.cut" || !strings.Contains(m.Source, of.uid) {
			t.Errorf("%+v: got %+v", of, m)
		}
	}
}

// What clients send has no headers of the mesh, and what the mesh sends on has others.
func TestIsMarker(t *testing.T) {
	for name, tc := range map[string]struct {
		e    event.Event
		want bool
	}{
		"a marker with another header": {event.Event{Type: MarkerType, Mesh: []event.Attr{{Name: "cut", Value: "a"}, {Name: "retry-attempt", Value: "1"}}}, true},
		"an event":                     {event.Event{Type: "order"}, false},
		"an event of the type":         {event.Event{Type: MarkerType, Ext: []event.Attr{{Name: "cut", Value: "a"}}}, false},
		"a retry of the type":          {event.Event{Type: MarkerType, Mesh: []event.Attr{{Name: "retry-attempt", Value: "1"}}}, false},
		"a header alone":               {event.Event{Type: "order", Mesh: []event.Attr{{Name: "cut", Value: "a"}}}, false},
	} {
		if got := IsMarker(&tc.e); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
