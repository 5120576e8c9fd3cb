package eventcel

import (
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/weft-mesh/weft/pkg/event"
)

// attributes is an event's attributes as a map of CEL. Looking one up reads the
// event in place; whatever needs them all copies references to them.
type attributes struct{ e *event.Event }

var _ traits.Mapper = attributes{}

// Find looks an attribute up.
func (a attributes) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	v, ok := a.e.Attribute(string(name))
	if !ok {
		return nil, false
	}
	return types.String(v), true
}

// Get is Find, or an error.
func (a attributes) Get(key ref.Val) ref.Val {
	v, ok := a.Find(key)
	switch {
	case ok:
		return v
	case v != nil:
		return v
	}
	return types.NewErr("the event has no attribute %v", key)
}

// Contains reports whether the event has an attribute.
func (a attributes) Contains(key ref.Val) ref.Val {
	v, ok := a.Find(key)
	if !ok && v != nil {
		return v
	}
	return types.Bool(ok)
}

func (a attributes) all() traits.Mapper {
	m := make(map[string]string, len(a.e.Ext)+8)
	for _, name := range []string{event.AttrID, event.AttrSource, event.AttrSpecVersion, event.AttrType, event.AttrSubject, event.AttrTime, event.AttrDataContentType, event.AttrDataSchema} {
		if v, ok := a.e.Attribute(name); ok {
			m[name] = v
		}
	}
	for _, x := range a.e.Ext {
		m[x.Name] = x.Value
	}
	return types.NewStringStringMap(types.DefaultTypeAdapter, m)
}

// Iterator goes over the names.
func (a attributes) Iterator() traits.Iterator { return a.all().Iterator() }

// Size is the number of attributes.
func (a attributes) Size() ref.Val { return a.all().Size() }

// ConvertToNative makes a Go map.
func (a attributes) ConvertToNative(t reflect.Type) (any, error) { return a.all().ConvertToNative(t) }

// ConvertToType makes another type of it.
func (a attributes) ConvertToType(t ref.Type) ref.Val { return a.all().ConvertToType(t) }

// Equal compares with another map.
func (a attributes) Equal(other ref.Val) ref.Val { return a.all().Equal(other) }

// Type is map.
func (a attributes) Type() ref.Type { return types.MapType }

// Value is the map.
func (a attributes) Value() any { return a.all().Value() }
