package schema

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/event"
)

// TestKeys: two values have one key where the library, in "const", takes them for one.
func TestKeys(t *testing.T) {
	docs := []string{`null`, `true`, `false`, `"true"`, `"null"`, `"n"`, `0`, `-0`, `0.0`, `-0e3`, `1`, `-1`, `1.0`, `10e-1`, `0.1e1`, `1e2`, `100`, `1E+2`, `0.5`, `5e-1`, `-0.5`, `1e-999`, `1e999`,
		`10000000000000000000000000001`, `10000000000000000000000000002`, `"1"`, `""`, `"1;"`, `[]`, `{}`, `[[]]`, `[[],[]]`, `[1,-1]`, `[-1,1]`, `[1.0,-1]`, `["a","b"]`, `["a\u0004b"]`, `["ab"]`, `["", "ab"]`,
		`[11]`, `[1,1]`, `{"a":1,"b":2}`, `{"b":2.0,"a":1}`, `{"a":2,"b":1}`, `{"a":"b"}`, `["a","b",1]`, `{"a":{"b":1}}`, `{"a":{},"b":1}`}
	for _, a := range docs {
		s, err := Compile(spec(`{"const": ` + a + `}`))
		if err != nil {
			t.Fatal(err)
		}
		v, err := parse([]byte(a))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range docs {
			w, err := parse([]byte(b))
			if err != nil {
				t.Fatal(err)
			}
			if one := s.Check(&event.Event{Data: []byte(b)}) == nil; (keyOf(v) == keyOf(w)) != one {
				t.Errorf("%s has the key %q, %s has %q", a, keyOf(v), b, keyOf(w))
			}
			if k, ok := appendKey(nil, w, 10); ok != (len(keyOf(w)) <= 10) || ok && string(k) != keyOf(w) {
				t.Errorf("within 10 bytes %s has the key %q, %v", b, k, ok)
			}
		}
	}
}

// TestEnum: of an enum and of items that are unique, the work grows with the data, not
// with how many values there are to compare with, and the error says what is wrong.
func TestEnum(t *testing.T) {
	const n = 512
	numbers := make([]string, n)
	signs := make([]string, n)
	for i := range n {
		numbers[i] = fmt.Sprint(1000 + i)
		var list []string
		for bit := range 9 { // numbers that differ in their signs alone
			list = append(list, fmt.Sprint(1-2*(i>>bit&1)))
		}
		signs[i] = "[" + strings.Join(list, ",") + "]"
	}
	all := strings.Join(numbers, ",")
	backwards := slices.Clone(numbers)
	slices.Reverse(backwards)
	for name, tc := range map[string]struct{ schema, good, bad, path, says string }{
		"enum":   {`{"items": {"enum": [` + all + `]}}`, strings.Join(backwards, ","), `1000, 1.5e3, 1512`, "/2", "one of 1000, 1001"},
		"unique": {`{"uniqueItems": true}`, strings.Join(signs, ","), `[1, -1], [-1, 1], [1.0, -1]`, "", "items at 0 and 2 are equal"},
	} {
		s, err := Compile(spec(tc.schema))
		if err != nil {
			t.Fatal(err)
		}
		good := &event.Event{Data: []byte("[" + tc.good + "]")}
		work := testing.AllocsPerRun(1, func() {
			if err := s.Check(good); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		if work > 30*n {
			t.Errorf("%s: of %d values %.0f are allocated", name, n, work)
		}
		bad, _ := s.Check(&event.Event{Data: []byte("[" + tc.bad + "]")}).(*Mismatch) //nolint:errorlint // of Check
		if bad == nil || bad.Path != tc.path || !strings.Contains(bad.Reason, tc.says) {
			t.Errorf("%s: %v", name, bad)
		}
	}
}

// ring is a schema of n parts, each of which leads to four others.
func ring(n, step int) string {
	var parts []string
	for i := range n {
		var to []string
		for j := range 4 {
			to = append(to, fmt.Sprintf(`"p%d":{"$ref":"#/$defs/d%d"}`, j, (i*step+j)%n))
		}
		parts = append(parts, fmt.Sprintf(`"d%d":{"properties":{%s}}`, i, strings.Join(to, ",")))
	}
	return `{"$ref":"#/$defs/d1","$defs":{` + strings.Join(parts, ",") + `}}`
}

// TestCompareBounds: to compare two versions takes bounded work, whatever they hold.
func TestCompareBounds(t *testing.T) {
	said := Incompatible(spec(ring(140, 3)), spec(ring(141, 5)))
	if len(said) == 0 || !strings.Contains(said[len(said)-1], "too much to compare") {
		t.Errorf("%d are told, %.300q", len(said), said[max(0, len(said)-1):])
	}
	const n = 500
	var numbers []string
	for i := range n {
		numbers = append(numbers, fmt.Sprint(1000+i))
	}
	old := spec(`{"enum": [` + strings.Join(numbers, ",") + `]}`)
	slices.Reverse(numbers)
	now := spec(`{"enum": [` + strings.Join(numbers, ",") + `, 9]}`)
	work := testing.AllocsPerRun(1, func() {
		if said := Incompatible(old, now); len(said) > 0 {
			t.Error(said)
		}
	})
	if work > 50*n {
		t.Errorf("of enums with %d values %.0f are allocated", n, work)
	}
	if said := Incompatible(now, old); len(said) != 1 || !strings.Contains(said[0], "9") {
		t.Error(said)
	}
}
