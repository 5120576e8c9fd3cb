package resource

import (
	"cmp"
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// UnknownField is the path of the first message in r that has fields which this
// version does not know ("spec.rules[2]"); "" when there is none.
func UnknownField(r *configv1.Resource) string {
	return first(r.ProtoReflect(), "", func(m protoreflect.Message, path string) string {
		if len(m.GetUnknown()) > 0 {
			return cmp.Or(path, "spec")
		}
		return ""
	})
}

// UnknownValue is the path of a field in r that is one of several names, and has one which
// this version does not know ("spec.rules[2].effect"); "" when there is none.
func UnknownValue(r *configv1.Resource) string {
	return first(r.ProtoReflect(), "", func(m protoreflect.Message, path string) (found string) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if f.Enum() == nil || f.IsMap() {
				return true
			}
			values := []protoreflect.Value{v}
			if f.IsList() {
				values = values[:0]
				for i := range v.List().Len() {
					values = append(values, v.List().Get(i))
				}
			}
			for _, v := range values {
				if f.Enum().Values().ByNumber(v.Enum()) == nil {
					found = within(path, f)
				}
			}
			return found == ""
		})
		return found
	})
}

// within is the path of a field.
func within(path string, f protoreflect.FieldDescriptor) string {
	switch {
	case path != "":
		return path + "." + string(f.Name())
	case f.ContainingOneof() != nil:
		return "spec" // the kinds, in paths
	}
	return string(f.Name())
}

// first is what look has to say of m, or of the first message in it of which it has.
func first(m protoreflect.Message, path string, look func(m protoreflect.Message, path string) string) string {
	found := look(m, path)
	if found != "" {
		return found
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsMap() && f.MapValue().Message() == nil {
			return true
		}
		name := within(path, f)
		switch {
		case f.IsList():
			for i := range v.List().Len() {
				if found = first(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", name, i), look); found != "" {
					return false
				}
			}
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				found = first(v.Message(), name+"."+k.String(), look)
				return found == ""
			})
		default:
			found = first(v.Message(), name, look)
		}
		return found == ""
	})
	return found
}
