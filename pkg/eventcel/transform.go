package eventcel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/weakcache"
)

// MaxData bounds the data that a transform reads or makes, in bytes.
const MaxData = 1 << 20

// Transform makes another event of an event. It is immutable and safe for
// concurrent use; a nil Transform leaves events as they are.
type Transform struct {
	attributes []named
	data       cel.Program
	reads      bool // an expression uses data
}

type named struct {
	name    string
	program cel.Program
}

// A FieldError names the field of a transform that is wrong.
type FieldError struct {
	Field  string // "cel.attributes.region"
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// CompileTransform compiles t; nil gives nil. The error is a *FieldError.
func CompileTransform(t *configv1.Transform) (*Transform, error) {
	if t == nil {
		return nil, nil
	}
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(t)
	if err != nil {
		return nil, &FieldError{"cel", err.Error()}
	}
	return compiledTransforms.Get(string(key), func() (*Transform, error) { return compileTransform(t) })
}

var compiledTransforms weakcache.Cache[Transform]

func compileTransform(t *configv1.Transform) (*Transform, error) {
	in := t.GetCel()
	if in == nil || len(in.Attributes) == 0 && in.Data == "" {
		return nil, &FieldError{"cel", "must set attributes, data or both"}
	}
	out := &Transform{}
	reads := func(ast *cel.Ast) {
		for _, r := range ast.NativeRep().ReferenceMap() {
			out.reads = out.reads || r.Name == "data"
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.Attributes)) {
		field := "cel.attributes." + name
		switch {
		case name == event.AttrID || name == event.AttrSource || name == event.AttrSpecVersion:
			return nil, &FieldError{field, "is the event's identity and cannot change"}
		case !event.ValidName(name) || name == "data" || name == "database64": // which no event has
			return nil, &FieldError{field, "is not the name of an attribute ([a-z0-9])"}
		}
		p, ast, err := compile(transforms, in.Attributes[name], maxTransformCost)
		if err != nil {
			return nil, &FieldError{field, err.Error()}
		}
		reads(ast)
		out.attributes = append(out.attributes, named{name, p})
	}
	if in.Data != "" {
		p, ast, err := compile(transforms, in.Data, maxTransformCost)
		if err != nil {
			return nil, &FieldError{"cel.data", err.Error()}
		}
		reads(ast)
		out.data = p
	}
	return out, nil
}

// Apply makes the event that e becomes, and borrows e: what it makes shares what
// did not change. The error says why there is none; it is the same each time.
func (t *Transform) Apply(e *event.Event) (*event.Event, error) {
	if t == nil {
		return e, nil
	}
	vars := map[string]any{"event": attributes{e}}
	if t.reads {
		if !isJSON(e.DataContentType) {
			return nil, fmt.Errorf("the transform reads data, which is not JSON by datacontenttype %q", e.DataContentType)
		}
		data, err := parseJSON(e.Data)
		if err != nil {
			return nil, err
		}
		vars["data"] = data
	}
	out := *e
	for _, a := range t.attributes {
		v, _, err := a.program.Eval(vars)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", a.name, err)
		}
		value := ""
		switch v := v.(type) {
		case types.Null: // removes it
		case types.String:
			if value = string(v); value == "" {
				return nil, fmt.Errorf("attribute %s: is empty; null removes an attribute", a.name)
			}
		case types.Int, types.Uint, types.Bool, types.Timestamp:
			value = string(v.ConvertToType(types.StringType).(types.String))
		default:
			return nil, fmt.Errorf("attribute %s: is a %s, must be a string, int, bool, timestamp or null", a.name, v.Type().TypeName())
		}
		out.Set(a.name, value)
	}
	if t.data != nil {
		v, _, err := t.data.Eval(vars)
		if err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		if out.Data, err = appendJSON(nil, v, 1); err != nil {
			return nil, fmt.Errorf("data: %w", err)
		}
		if !isJSON(out.DataContentType) {
			out.DataContentType = "application/json"
		}
	}
	err := out.Validate()
	if err != nil && e.Validate() != nil {
		err = out.Conforms() // it came with what the mesh has added
	}
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// isJSON tells media types of JSON; without one CloudEvents' data is JSON.
func isJSON(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	return media == "" || media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}

var errTooLarge = errors.New("is larger than 1 MiB")
