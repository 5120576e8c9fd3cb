package position

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weft-mesh/weft/store"
)

// TestStart: positions of the topic come first; the rest begins where it is said.
func TestStart(t *testing.T) {
	const other = "00000000-0000-4000-8000-000000000009"
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	at := timestamppb.New(noon)
	here := store.Position{Partition: "a/0", Offset: 7}
	tokens := []string{Token{other, 3, here}.String(), Token{uid, 2, here}.String()}
	for name, tc := range map[string]struct {
		beginning bool
		at        *timestamppb.Timestamp
		tokens    []string
		want      store.Start
	}{
		"nothing":              {want: store.Start{End: true}},
		"the beginning":        {beginning: true, want: store.Start{}},
		"a time":               {at: at, want: store.Start{At: noon}},
		"a later topic":        {beginning: true, at: at, want: store.Start{}},
		"positions":            {beginning: true, tokens: tokens, want: store.Start{After: []store.Position{here}}},
		"positions and a time": {at: at, tokens: tokens, want: store.Start{At: noon, After: []store.Position{here}}},
		"others' positions":    {tokens: tokens[:1], want: store.Start{End: true}},
		"of another epoch":     {tokens: []string{Token{uid, 1, here}.String()}, want: store.Start{End: true}},
	} {
		if got, err := Start(tc.beginning, tc.at, tc.tokens, uid, 2); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
	if _, err := Start(false, nil, []string{"nonsense"}, uid, 2); err == nil {
		t.Error("a token that is none is taken")
	}
}

// TestStarts: which epochs are read, and which of them from their beginning, whatever
// the Subscription says of where it begins.
func TestStarts(t *testing.T) {
	const other = "00000000-0000-4000-8000-000000000009"
	at := timestamppb.New(time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC))
	of := func(epochs ...uint32) (tokens []string) {
		for _, e := range epochs {
			tokens = append(tokens, Token{uid, e, store.Position{Partition: "a/0", Offset: 7}}.String())
		}
		return append(tokens, Token{other, 9, store.Position{}}.String())
	}
	for name, tc := range map[string]struct {
		beginning bool
		at        *timestamppb.Timestamp
		tokens    []string
		written   uint32
		want      []Begin // of epochs 2, 3 and 4
	}{
		"the beginning":                      {beginning: true, written: 3, want: []Begin{{2, true}, {3, true}, {4, true}}},
		"the end, before the cut":            {written: 3, want: []Begin{{3, false}, {4, true}}},
		"the end, after it":                  {written: 4, want: []Begin{{4, false}}},
		"a time":                             {at: at, written: 3, want: []Begin{{2, false}, {3, false}, {4, false}}},
		"a place":                            {tokens: of(3), written: 4, want: []Begin{{3, false}, {4, true}}},
		"a place, the rest at the beginning": {beginning: true, tokens: of(3), written: 4, want: []Begin{{3, true}, {4, true}}},
		"a place, the rest at a time":        {at: at, tokens: of(3), written: 4, want: []Begin{{3, false}, {4, true}}},
		"places in two":                      {tokens: of(4, 2), written: 4, want: []Begin{{2, false}, {3, true}, {4, true}}},
		"a place in one that is not kept":    {tokens: of(1), written: 4, want: []Begin{{2, true}, {3, true}, {4, true}}},
		"a place in that and in one that is": {tokens: of(1, 3), written: 4, want: []Begin{{2, true}, {3, true}, {4, true}}},
		"a place in another topic":           {tokens: of(), written: 4, want: []Begin{{4, false}}},
	} {
		got, err := Starts(tc.beginning, tc.at, tc.tokens, uid, []uint32{2, 3, 4}, tc.written)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
	for name, tokens := range map[string][]string{"of an epoch to come": of(5), "none": {"nonsense"}} {
		if _, err := Starts(false, nil, tokens, uid, []uint32{2, 3, 4}, 4); err == nil {
			t.Errorf("a token %s is taken", name)
		}
	}
}
