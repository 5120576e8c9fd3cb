package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/hamba/avro/v2"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

func avroSpec(document string) *configv1.Schema {
	return &configv1.Schema{Format: &configv1.Schema_Avro{Avro: &configv1.AvroSchema{Document: document}}}
}

const avroOrder = `{"type": "record", "name": "Order", "namespace": "shop", "fields": [
	{"name": "id", "type": "string"},
	{"name": "total", "type": ["null", "double"], "default": null},
	{"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"], "default": "NEW"}, "default": "NEW"},
	{"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 4}},
	{"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
		{"name": "sku", "type": "string"}, {"name": "n", "type": "int"}, {"name": "parts", "type": {"type": "map", "values": "Line"}}]}}}]}`

// anOrder is one in the encoding of a library that is not ours.
func anOrder(tb testing.TB) []byte {
	tb.Helper()
	part := map[string]any{"sku": "p", "n": 7, "parts": map[string]any{}}
	data, err := avro.Marshal(avro.MustParse(avroOrder), map[string]any{"id": "o-1", "total": 12.5, "state": "PAID", "hash": [4]byte{1, 2, 3, 4},
		"lines": []any{map[string]any{"sku": "x", "n": 1, "parts": map[string]any{"a/b": part}}, map[string]any{"sku": "y", "n": -2, "parts": map[string]any{}}}})
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// longs are numbers in Avro's encoding.
func longs(list ...int64) []byte {
	var out []byte
	for _, n := range list {
		out = binary.AppendVarint(out, n)
	}
	return out
}

// TestAvro: data conform, or the error says where they do not.
func TestAvro(t *testing.T) {
	order := anOrder(t)
	replace := func(old, now string) []byte { return []byte(strings.Replace(string(order), old, now, 1)) }
	array := `{"type": "array", "items": "int"}`
	for name, tc := range map[string]struct {
		schema, media string
		data          []byte
		path, says    string // says "" conforms
	}{
		"an order":             {avroOrder, "application/avro", order, "", ""},
		"with a parameter":     {avroOrder, "avro/binary; v=1", order, "", ""},
		"JSON":                 {avroOrder, "application/json", []byte(`{}`), "", "application/json"},
		"no media type":        {avroOrder, "", order, "", "not given"},
		"bytes left over":      {avroOrder, "", append(order[:len(order):len(order)], 0), "", "1 bytes are left over"},
		"cut":                  {avroOrder, "", order[:len(order)-1], "/lines", "the data end"},
		"not UTF-8":            {avroOrder, "", replace("\x02p", "\x02\xff"), "/lines/0/parts/a~1b/sku", "not UTF-8"},
		"no such symbol":       {avroOrder, "", replace("\x02\x01\x02\x03\x04", "\x04\x01\x02\x03\x04"), "/state", "no symbol 2"},
		"no such type":         {avroOrder, "", replace("o-1\x02", "o-1\x04"), "/total", "no type 2"},
		"nothing, of null":     {`"null"`, "", nil, "", ""},
		"nothing, of a number": {`"int"`, "", nil, "", "the data end"},
		"a boolean":            {`"boolean"`, "", []byte{2}, "", "want boolean"},
		"the largest int":      {`"int"`, "", longs(math.MaxInt32), "", ""},
		"beyond an int":        {`"int"`, "", longs(math.MaxInt32 + 1), "", "beyond an int"},
		"beyond a long":        {`"long"`, "", []byte(strings.Repeat("\xff", 10) + "\x01"), "", "beyond 64 bits"},
		"a negative length":    {`"bytes"`, "", longs(-1), "", "-1 bytes"},
		"a length":             {`"bytes"`, "", longs(math.MaxInt64), "", "bytes, 0 are there"},
		"two blocks":           {array, "", longs(1, 5, -2, 2, 6, 7, 0), "", ""},
		"within a block":       {array, "", longs(1, 5, -2, 6, 6, 1<<40, 0), "/2", "beyond an int"},
		"a short block":        {array, "", longs(-2, 1, 6, 7, 0), "", "does not end where it says"},
		"a long block":         {array, "", longs(-2, 1<<40, 6, 7, 0), "", "longer than the data"},
		"the least count":      {array, "", longs(math.MinInt64, 0, 0), "", "longer than the data"},
		"a recursive type":     {`{"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}`, "", longs(1, 1, 1, 0), "", ""},
		"a map":                {`{"type": "map", "values": "boolean"}`, "", []byte("\x02\x02k\x05\x00"), "/k", "want boolean"},
	} {
		if tc.media == "" && name != "no media type" {
			tc.media = "application/vnd.apache.avro"
		}
		s, err := Compile(avroSpec(tc.schema))
		if err != nil {
			t.Fatal(err)
		}
		err = s.Check(&event.Event{DataContentType: tc.media, Data: tc.data})
		var m *Mismatch
		switch errors.As(err, &m); {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.says != "" && (m == nil || m.Path != tc.path && name != "cut" || !strings.Contains(m.Reason, tc.says)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAvroBombs: data that claim to be huge, or to nest without end, are refused, and
// cost no memory to speak of.
func TestAvroBombs(t *testing.T) {
	var doubling strings.Builder // 2^40 values of one byte each, the last of which has none
	doubling.WriteString(`{"type": "record", "name": "r0", "fields": [`)
	for i := 1; i < 20; i++ {
		fmt.Fprintf(&doubling, `{"name": "a", "type": {"type": "record", "name": "r%d", "fields": [`, i)
	}
	doubling.WriteString(`]}`)
	for i := 19; i > 0; i-- {
		fmt.Fprintf(&doubling, `}, {"name": "b", "type": "r%d"}, {"name": "c", "type": "r%d"}]}`, i, i)
	}
	for name, tc := range map[string]struct {
		schema string
		data   []byte
		says   string
	}{
		"nulls":               {`{"type": "array", "items": "null"}`, longs(1<<24, 0), "65536 values"},
		"blocks of nulls":     {`{"type": "array", "items": "null"}`, longs(append(slicesOf(60000, 2), 0)...), "65536 values"},
		"empty records":       {`{"type": "array", "items": {"type": "record", "name": "e", "fields": []}}`, longs(1<<24, 0), "65536 values"},
		"numbers":             {`{"type": "array", "items": "long"}`, longs(math.MaxInt64), "the data end"},
		"a record of itself":  {`{"type": "record", "name": "r", "fields": [{"name": "r", "type": "r"}]}`, nil, "64 deep"},
		"a list":              {`{"type": "record", "name": "r", "fields": [{"name": "r", "type": ["null", "r"]}]}`, longs(slicesOf(100000, 1)...), "64 deep"},
		"records that double": {doubling.String(), nil, "65536 values"},
	} {
		s, err := Compile(avroSpec(tc.schema))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = s.Check(&event.Event{DataContentType: "application/avro", Data: tc.data})
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
			t.Errorf("%s: %d bytes are taken", name, got)
		}
	}
}

func slicesOf(n int, v int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// TestAvroRefuses: what is no Avro schema, and where.
func TestAvroRefuses(t *testing.T) {
	for document, says := range map[string]string{
		`{`:                               "no JSON",
		`"text"`:                          `at the root: "text" is no type`,
		`12`:                              "is no type",
		`{}`:                              "has no type",
		`[]`:                              "a union has no types",
		`["int", "int"]`:                  "one of each",
		`["int", ["null"]]`:               "no union within",
		`{"type": "array"}`:               "at /items: is no type",
		`{"type": "record"}`:              "is no name",
		`{"type": "record", "name": "r"}`: "no list of fields",
		`{"type": "record", "name": "r", "fields": [{"name": "a-b", "type": "int"}]}`:                      "at /fields/0",
		`{"type": "record", "name": "r", "fields": [{"name": "a", "type": "Other"}]}`:                      `at /fields/0/type: "Other"`,
		`{"type": "record", "name": "r", "fields": [{"name": "a", "type": "int", "default": null}]}`:       "at /fields/0: the default",
		`{"type": "record", "name": "r", "fields": [{"name": "a", "type": "int", "default": 3000000000}]}`: "at /fields/0: the default",
		`[{"type": "fixed", "name": "f", "size": 1}, {"type": "enum", "name": "f", "symbols": ["A"]}]`:     "defined twice",
		`{"type": "fixed", "name": "f", "size": -1}`:                                                       "number of bytes",
		`{"type": "enum", "name": "int", "symbols": ["A"]}`:                                                "is no name",
		`{"type": "enum", "name": "e", "symbols": ["A", "A"]}`:                                             "there twice",
		`{"type": "enum", "name": "e", "symbols": ["A"], "default": 1}`:                                    "no symbol",
		strings.Repeat(`[`, 100) + strings.Repeat(`]`, 100):                                                "deep",
	} {
		_, err := Compile(avroSpec(document))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != "spec.avro.document" || !strings.Contains(fe.Reason, says) {
			t.Errorf("%s: %v", document, err)
		}
	}
}

// TestAvroIncompatible: what may change and what may not.
func TestAvroIncompatible(t *testing.T) {
	record := func(fields string) string {
		return `{"type": "record", "name": "r", "fields": [{"name": "a", "type": "int"}` + fields + `]}`
	}
	enum := func(rest string) string { return `{"type": "enum", "name": "e", "symbols": [` + rest + `}` }
	for name, tc := range map[string]struct {
		old, now          string
		backward, forward string // what is said; "" is compatible
	}{
		"the same":                     {avroOrder, avroOrder, "", ""},
		"a field with a default":       {record(``), record(`, {"name": "b", "type": "int", "default": 1}`), "", ""},
		"a field without":              {record(``), record(`, {"name": "b", "type": "int"}`), "the field b", ""},
		"a field renamed":              {record(`, {"name": "b", "type": "int"}`), record(`, {"name": "c", "type": "int", "aliases": ["b"]}`), "", "the field b"},
		"a wider number":               {record(``), strings.Replace(record(``), `"int"`, `"long"`, 1), "", "at /a: int does not read long"},
		"another type":                 {record(``), strings.Replace(record(``), `"int"`, `"string"`, 1), "at /a: string does not read int", "at /a: int"},
		"text or bytes":                {`"string"`, `"bytes"`, "", ""},
		"one more type":                {`["null", "int"]`, `["null", "int", "string"]`, "", "string"},
		"nullable":                     {`"int"`, `["null", "int"]`, "", "int does not read null"},
		"one more symbol":              {enum(`"A"]`), enum(`"A", "B"]`), "", "no symbol B"},
		"with a default":               {enum(`"A"], "default": "A"`), enum(`"A", "B"], "default": "A"`), "", ""},
		"another size":                 {`{"type": "fixed", "name": "f", "size": 1}`, `{"type": "fixed", "name": "f", "size": 2}`, "2 bytes, not 1", "1 bytes"},
		"another name":                 {`{"type": "fixed", "name": "f", "size": 1}`, `{"type": "fixed", "name": "g", "size": 1}`, "no alias", "no alias"},
		"another name, an alias":       {`{"type": "fixed", "name": "f", "size": 1}`, `{"type": "fixed", "name": "g", "aliases": ["f"], "size": 1}`, "", "no alias"},
		"another scale":                {`{"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}`, `{"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 3}`, "decimal", "decimal"},
		"items":                        {`{"type": "array", "items": "int"}`, `{"type": "array", "items": "double"}`, "", "at /items"},
		"values":                       {`{"type": "map", "values": "int"}`, `{"type": "map", "values": "string"}`, "at /values", "at /values"},
		"within what leads to itself":  {avroOrder, strings.Replace(avroOrder, `"type": "int"`, `"type": "long"`, 1), "", "at /lines/items/n"},
		"what leads to itself, broken": {avroOrder, strings.Replace(avroOrder, `{"name": "n", "type": "int"}, `, ``, 1) /* n has no default */, "", "the field n"},
	} {
		for c, want := range map[configv1.Compatibility]string{configv1.Compatibility_COMPATIBILITY_BACKWARD: tc.backward, configv1.Compatibility_COMPATIBILITY_FORWARD: tc.forward,
			configv1.Compatibility_COMPATIBILITY_NONE: ""} {
			now := avroSpec(tc.now)
			now.Compatibility = c
			got := strings.Join(Incompatible(avroSpec(tc.old), now), "; ")
			if (want == "") != (got == "") || !strings.Contains(got, want) {
				t.Errorf("%s, %v: %q, want %q", name, c, got, want)
			}
		}
		// The library that is not ours agrees; it does not look at scales.
		if err := avro.NewSchemaCompatibility().Compatible(foreign(tc.now), foreign(tc.old)); name != "another scale" && (err == nil) != (tc.backward == "") {
			t.Errorf("%s: hamba/avro says %v", name, err)
		}
	}
	if got := Incompatible(spec(`{}`), avroSpec(`"int"`)); len(got) != 1 || !strings.Contains(got[0], "another format") {
		t.Errorf("another format: %v", got)
	}
}

func foreign(document string) avro.Schema {
	s, err := avro.ParseWithCache(document, "", &avro.SchemaCache{})
	if err != nil {
		panic(err)
	}
	return s
}

// FuzzAvro: no schema or data make it panic, and every schema reads itself.
func FuzzAvro(f *testing.F) {
	f.Add(avroOrder, avroOrder, anOrder(f))
	f.Add(`["null", {"type": "map", "values": "bytes"}]`, `{"type": "array", "items": "int"}`, longs(1, 1, 0, 0, 0))
	f.Fuzz(func(t *testing.T, old, now string, data []byte) {
		was, err := compileAvro(old)
		if err != nil {
			return
		}
		is, err := compileAvro(now)
		if err != nil {
			return
		}
		if avroUnreadable(was, was) != "" && !strings.Contains(avroUnreadable(was, was), "too large") {
			t.Errorf("%s does not read itself: %s", old, avroUnreadable(was, was))
		}
		_ = avroUnreadable(is, was)
		_ = checkAvro(was, data)
	})
}

func BenchmarkCheckAvro(b *testing.B) {
	s, err := Compile(avroSpec(avroOrder))
	if err != nil {
		b.Fatal(err)
	}
	e := &event.Event{DataContentType: "application/avro", Data: anOrder(b)}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Check(e); err != nil {
			b.Fatal(err)
		}
	}
}
