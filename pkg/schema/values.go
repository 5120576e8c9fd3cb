package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/weft-mesh/weft/pkg/names"
)

// The library finds a value in an enum by comparing it with each, numbers as fractions,
// and items that are there twice by hashes which can be made to collide. Here values
// have keys: two are one where their keys are.

// quicken has enum and uniqueItems judged by keys, and format by nothing: the library
// would in drafts before 2019-09, by regular expressions of the data's own among others.
func quicken(schemas []*jsonschema.Schema) {
	for _, s := range schemas {
		s.Format = nil
		if s.Enum != nil {
			e := &enum{values: s.Enum.Values, keys: keysOf(s.Enum.Values)}
			for k := range e.keys {
				e.longest = max(e.longest, len(k))
			}
			s.Enum, s.Extensions = nil, append(s.Extensions, e)
		}
		if s.UniqueItems {
			s.UniqueItems, s.Extensions = false, append(s.Extensions, uniqueItems{})
		}
	}
}

// maxNested bounds the lists and objects among those of a schema that the library
// compares with each other, to find one that is there twice, before it compiles.
const maxNested = 64

// fewNested refuses a document that has more, in whichever keyword compares them; v is
// the value of keyword.
func fewNested(v any, keyword string) error {
	switch v := v.(type) {
	case map[string]any:
		for k, of := range v {
			if keyword == "dependentRequired" || keyword == "dependencies" {
				k = keyword // whatever the property is called
			}
			if err := fewNested(of, k); err != nil {
				return err
			}
		}
	case []any:
		if keyword == "examples" || keyword == "default" || keyword == "const" {
			return nil
		}
		n := 0
		for _, item := range v {
			switch item.(type) {
			case map[string]any, []any:
				n++
			}
			if err := fewNested(item, ""); err != nil {
				return err
			}
		}
		switch keyword {
		case "allOf", "anyOf", "oneOf", "prefixItems", "items":
			return nil
		}
		if n > maxNested {
			return fmt.Errorf("%s has more than %d lists and objects", cmp.Or(names.Text(keyword, 100), "a list in a list"), maxNested)
		}
	}
	return nil
}

// enum is the keyword.
type enum struct {
	values  []any
	keys    map[string]bool
	longest int // of keys, in bytes
}

// Validate adds an error where v is none of the values.
func (e *enum) Validate(ctx *jsonschema.ValidatorContext, v any) {
	if k, ok := appendKey(nil, v, e.longest); !ok || !e.keys[string(k)] {
		ctx.AddError(&kind.Enum{Got: v, Want: e.values})
	}
}

// uniqueItems is the keyword.
type uniqueItems struct{}

// Validate adds an error where v is an array that has an item twice.
func (uniqueItems) Validate(ctx *jsonschema.ValidatorContext, v any) {
	list, _ := v.([]any)
	at, buf := make(map[string]int, len(list)), []byte(nil)
	for i, item := range list {
		buf, _ = appendKey(buf[:0], item, math.MaxInt)
		if j, twice := at[string(buf)]; twice {
			ctx.AddError(&kind.UniqueItems{Duplicates: [2]int{j, i}})
			return
		}
		at[string(buf)] = i
	}
}

// keysOf are the keys of values.
func keysOf(values []any) map[string]bool {
	keys := make(map[string]bool, len(values))
	for _, v := range values {
		keys[keyOf(v)] = true
	}
	return keys
}

func keyOf(v any) string {
	k, _ := appendKey(nil, v, math.MaxInt)
	return string(k)
}

// appendKey appends the key of a value that was read from JSON; not ok where it would
// be longer than most, which it finds without making it.
func appendKey(b []byte, v any, most int) (_ []byte, ok bool) {
	switch v := v.(type) {
	case nil:
		b = append(b, 'n')
	case bool:
		b = strconv.AppendBool(b, v)
	case json.Number:
		b = appendNumber(append(b, '#'), string(v))
	case string:
		if len(v) > most-len(b) {
			return b, false
		}
		b = append(strconv.AppendInt(append(b, '"'), int64(len(v)), 10), ':')
		b = append(b, v...)
	case []any:
		b = append(strconv.AppendInt(append(b, '['), int64(len(v)), 10), ':')
		for _, item := range v {
			if b, ok = appendKey(b, item, most); !ok {
				return b, false
			}
		}
	case map[string]any:
		if len(v) > most-len(b) {
			return b, false
		}
		b = append(strconv.AppendInt(append(b, '{'), int64(len(v)), 10), ':')
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if b, ok = appendKey(b, name, most); !ok {
				return b, false
			}
			if b, ok = appendKey(b, v[name], most); !ok {
				return b, false
			}
		}
	}
	return b, len(b) <= most
}

// appendNumber appends a number, in one way however it is written, and what ends it.
func appendNumber(b []byte, s string) []byte {
	if strings.ContainsAny(s, ".eE") || s == "-0" {
		if r, ok := new(big.Rat).SetString(s); ok && r.IsInt() {
			s = r.Num().String()
		} else if ok {
			s = r.String()
		}
	}
	return append(append(b, s...), ';')
}
