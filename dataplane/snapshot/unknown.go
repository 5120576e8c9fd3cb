package snapshot

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// unknownField is the path of the first message below m that has fields which
// this version does not know; "" when there is none.
func unknownField(m protoreflect.Message, path string) string {
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
		// The oneof of kinds is "spec" in paths.
		if path == "" && f.ContainingOneof() != nil {
			name = "spec"
		}
		if path != "" {
			name = path + "." + name
		}
		switch {
		case f.IsList():
			for i := range v.List().Len() {
				if found = unknownField(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", name, i)); found != "" {
					return false
				}
			}
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				found = unknownField(v.Message(), name+"."+k.String())
				return found == ""
			})
		default:
			found = unknownField(v.Message(), name)
		}
		return found == ""
	})
	return found
}
