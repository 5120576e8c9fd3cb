package eventcel

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/weft-mesh/weft/pkg/cloudevents"
)

// maxJSONDepth is how deep data nests that a transform reads or makes.
const maxJSONDepth = 64

// parseJSON gives data as CEL has it. Whole numbers within 64 bits are int, or uint
// where an int does not have them, others double.
func parseJSON(b []byte) (any, error) {
	if len(b) > MaxData {
		return nil, fmt.Errorf("data %w", errTooLarge)
	}
	if cloudevents.JSONDepth(b) > maxJSONDepth {
		return nil, fmt.Errorf("data nests more than %d deep", maxJSONDepth)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("data is not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data is not JSON: something follows the value")
	}
	return numbers(v)
}

// numbers turns the numbers of v into CEL's.
func numbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		if i, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return i, nil
		}
		if u, err := strconv.ParseUint(string(v), 10, 64); err == nil {
			return u, nil
		}
		f, err := v.Float64()
		if err != nil {
			return nil, fmt.Errorf("data has the number %.40s, which is beyond 64 bits", v)
		}
		return f, nil
	case map[string]any:
		for k, x := range v {
			if v[k], err = numbers(x); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, x := range v {
			if v[i], err = numbers(x); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// appendJSON writes v; the members of objects are sorted.
func appendJSON(b []byte, v ref.Val, level int) ([]byte, error) {
	if level > maxJSONDepth {
		return nil, fmt.Errorf("nests more than %d deep", maxJSONDepth)
	}
	if len(b) > MaxData {
		return nil, errTooLarge
	}
	var err error
	switch v := v.(type) {
	case types.Null:
		b = append(b, "null"...)
	case types.Bool:
		b = strconv.AppendBool(b, bool(v))
	case types.Int:
		b = strconv.AppendInt(b, int64(v), 10)
	case types.Uint:
		b = strconv.AppendUint(b, uint64(v), 10)
	case types.Double:
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, errors.New("has a number that JSON cannot have")
		}
		b, err = appendAny(b, float64(v))
	case types.String:
		b, err = appendAny(b, string(v))
	case types.Bytes:
		b, err = appendAny(b, base64.StdEncoding.EncodeToString(v))
	case types.Timestamp, types.Duration:
		b, err = appendAny(b, string(v.ConvertToType(types.StringType).(types.String)))
	case traits.Lister:
		b = append(b, '[')
		for it, first := v.Iterator(), true; it.HasNext() == types.True; first = false {
			if !first {
				b = append(b, ',')
			}
			if b, err = appendJSON(b, it.Next(), level+1); err != nil {
				return nil, err
			}
		}
		b = append(b, ']')
	case traits.Mapper:
		b, err = appendObject(b, v, level)
	default:
		return nil, fmt.Errorf("is a %s, which JSON does not have", v.Type().TypeName())
	}
	if err == nil && len(b) > MaxData {
		err = errTooLarge
	}
	return b, err
}

func appendObject(b []byte, m traits.Mapper, level int) ([]byte, error) {
	var keys []types.String
	for it := m.Iterator(); it.HasNext() == types.True; {
		k, ok := it.Next().(types.String)
		if !ok {
			return nil, errors.New("has an object with a key that is not a string")
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b types.String) int { return strings.Compare(string(a), string(b)) })
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = appendAny(b, string(k)); err != nil {
			return nil, err
		}
		if b, err = appendJSON(append(b, ':'), m.Get(k), level+1); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendAny(b []byte, v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...), nil
}
