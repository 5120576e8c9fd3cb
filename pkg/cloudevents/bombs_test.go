package cloudevents

import (
	"bytes"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/fuzztest"
)

// TestBombs: what is small for its sender and large for who reads it is read within
// four times what a message may have, 8 MiB, or refused before.
func TestBombs(t *testing.T) {
	const limit = 8 << 20
	filled := func(begin, part, end string) []byte {
		return []byte(begin + strings.Repeat(part, (limit-len(begin)-len(end))/len(part)) + end)
	}
	head := `{"specversion":"1.0","id":"1","source":"/s","type":"t"`
	deep := func(n int) []byte {
		return []byte(head + `,"data":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}")
	}
	keys := bytes.NewBufferString(head)
	for i := 0; keys.Len() < limit-32; i++ {
		keys.WriteString(`,"k`)
		for n := i; ; n /= 26 {
			keys.WriteByte(byte('a' + n%26))
			if n < 26 {
				break
			}
		}
		keys.WriteString(`":1`)
	}
	keys.WriteString("}")
	for name, tc := range map[string]struct {
		b    []byte
		read bool // it is an event
	}{
		"nothing but depth":        {filled("", "[", ""), false},
		"objects in objects":       {filled("", `{"a":`, ""), false},
		"data that nest 10,000":    {deep(10_000), false},
		"data that nest 100":       {deep(100), true},
		"a number of 8 MiB":        {filled(head+`,"data":`, "9", "}"), true},
		"an attribute of a number": {filled(head+`,"a":`, "9", "}"), false},
		"an exponent":              {[]byte(head + `,"a":1e999999999}`), false},
		"a million attributes":     {keys.Bytes(), false},
		"an attribute twice":       {filled(head, `,"a":"1"`, "}"), false},
		"escapes":                  {filled(head+`,"data":"`, `\u0041`, `"}`), true},
		"base64":                   {filled(head+`,"data_base64":"`, "AAAA", `"}`), true},
		"a batch of nothing":       {filled("[", "{},", "{}]"), false},
		"a batch of numbers":       {filled("[", "1,", "1]"), false},
		"a batch of batches":       {filled("[", "[],", "[]]"), false},
		"spaces":                   {filled(head, " ", "}"), true},
	} {
		for kind, decode := range map[string]func() error{
			"alone": func() error { e, err := DecodeJSON(tc.b); return firstOf(err, e.Validate) },
			"batch": func() error {
				_, wrong, err := DecodeJSONBatch(tc.b)
				for _, w := range wrong {
					if err == nil {
						err = w
					}
				}
				return err
			},
		} {
			var err error
			if n := fuzztest.Allocated(func() { err = decode() }); n > 4*limit {
				t.Errorf("%s, %s: %d MiB for %d", name, kind, n>>20, len(tc.b))
			}
			if (err == nil) != (tc.read && kind == "alone") {
				t.Errorf("%s, %s: %.100v", name, kind, err)
			}
		}
	}
}

func firstOf(err error, next func() error) error {
	if err != nil {
		return err
	}
	return next()
}
