package resource

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

// UnknownField is the path of the first message in r that has fields which this
// version does not know ("spec.rules[2]"); "" when there is none.
func UnknownField(r *configv1.Resource) string { return unknown(r.ProtoReflect(), "") }

func unknown(m protoreflect.Message, path string) string {
	if len(m.GetUnknown()) > 0 {
		if path == "" {
			return "spec"
		}
		return path
	}
	found := ""
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsMap() && f.MapValue().Message() == nil {
			return true
		}
		name := string(f.Name())
		if path != "" {
			name = path + "." + name
		} else if f.ContainingOneof() != nil {
			name = "spec" // the kinds, in paths
		}
		switch {
		case f.IsList():
			for i := range v.List().Len() {
				if found = unknown(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", name, i)); found != "" {
					return false
				}
			}
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				found = unknown(v.Message(), name+"."+k.String())
				return found == ""
			})
		default:
			found = unknown(v.Message(), name)
		}
		return found == ""
	})
	return found
}
