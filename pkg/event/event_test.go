package event

import (
	"strings"
	"testing"
)

func valid() Event {
	return Event{ID: "1", Source: "/s", Type: "t", Ext: []Attr{{"a", "1"}, {"partitionkey", "k"}}}
}

func TestValidate(t *testing.T) {
	many := make([]Attr, MaxAttributes+1)
	for i := range many {
		many[i] = Attr{Name: "a" + strings.Repeat("a", i%60) + string(rune('a'+i/60)), Value: "v"}
	}
	SortAttrs(many)
	for name, tc := range map[string]struct {
		change func(*Event)
		wrong  string // the attribute that is named; "" for a valid event
	}{
		"as it is":          {func(*Event) {}, ""},
		"unicode":           {func(e *Event) { e.Subject = "žluťoučký/🐎" }, ""},
		"time":              {func(e *Event) { e.Time = "2026-01-02T03:04:05.678+09:00" }, ""},
		"no id":             {func(e *Event) { e.ID = "" }, "id"},
		"no source":         {func(e *Event) { e.Source = "" }, "source"},
		"no type":           {func(e *Event) { e.Type = "" }, "type"},
		"bad time":          {func(e *Event) { e.Time = "yesterday" }, "time"},
		"control character": {func(e *Event) { e.ID = "a\nb" }, "id"},
		"delete character":  {func(e *Event) { e.Subject = "a\x7f" }, "subject"},
		"C1 control":        {func(e *Event) { e.Subject = "a\u0085" }, "subject"},
		"noncharacter":      {func(e *Event) { e.Type = "a\ufffe" }, "type"},
		"bad UTF-8":         {func(e *Event) { e.Source = "a\xff" }, "source"},
		"upper-case name":   {func(e *Event) { e.Ext[0].Name = "Abc" }, "Abc"},
		"empty name":        {func(e *Event) { e.Ext[0].Name = "" }, ""},
		"long name":         {func(e *Event) { e.Ext[0].Name = strings.Repeat("a", 65) }, strings.Repeat("a", 65)},
		"context as ext":    {func(e *Event) { e.Ext[0].Name = "id" }, "id"},
		"data as ext":       {func(e *Event) { e.Ext[0].Name = "data" }, "data"},
		"twice":             {func(e *Event) { e.Ext[1].Name = "a" }, "a"},
		"long value":        {func(e *Event) { e.Ext[0].Value = strings.Repeat("v", MaxAttributeValue+1) }, "a"},
		"many":              {func(e *Event) { e.Ext = many }, many[MaxAttributes].Name},
		"much": {func(e *Event) {
			e.ID, e.Source, e.Type, e.Subject = strings.Repeat("i", 8000), strings.Repeat("s", 8000), strings.Repeat("t", 8000), strings.Repeat("u", 8000)
		}, "*"},
	} {
		e := valid()
		tc.change(&e)
		err := e.Validate()
		if name == "as it is" || name == "unicode" || name == "time" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		ae, ok := err.(*AttributeError) //nolint:errorlint // the contract is the type itself
		if !ok || ae.Name != tc.wrong {
			t.Errorf("%s: got %v, want a problem of %q", name, err, tc.wrong)
		}
	}
}

func TestKey(t *testing.T) {
	e := valid()
	e.Subject = "sub"
	if got := e.Key("subject"); got != "k" {
		t.Errorf("partitionkey must win, got %q", got)
	}
	e.Ext = e.Ext[:1]
	for from, want := range map[string]string{"subject": "sub", "a": "1", "": "", "none": "", "type": "t"} {
		if got := e.Key(from); got != want {
			t.Errorf("Key(%q) = %q, want %q", from, got, want)
		}
	}
}

func TestWith(t *testing.T) {
	a := []Attr{{"b", "1"}, {"d", "2"}}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		got := With(a, name, "x")
		if v, ok := Lookup(got, name); !ok || v != "x" {
			t.Errorf("With(%q): %v", name, got)
		}
		for i := 1; i < len(got); i++ {
			if got[i-1].Name >= got[i].Name {
				t.Errorf("With(%q) is not sorted: %v", name, got)
			}
		}
	}
	if a[0].Value != "1" || a[1].Value != "2" {
		t.Error("With changed its input")
	}
}

// TestPrintable: every byte at every place, in values of every length, is looked at.
func TestPrintable(t *testing.T) {
	for n := range 40 {
		for at := range n {
			for c := range 256 {
				v := []byte(strings.Repeat("~ aZ", 10)[:n])
				v[at] = byte(c)
				if want := c >= 0x20 && c < 0x7f; printable(string(v)) != want {
					t.Fatalf("%q is printable: %v", v, !want)
				}
			}
		}
	}
	if !printable("") {
		t.Error("nothing is not printable")
	}
}

func BenchmarkValidate(b *testing.B) {
	for name, e := range map[string]Event{"short": valid(), "long": {ID: "0b8c4a46-6bb4-4b4e-8d12-000000000001", Source: "https://shop.example.com/orders/europe", Type: "com.example.shop.order.created",
		Subject: "orders/2026/11/30/0815", DataContentType: "application/json"}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := e.Validate(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
