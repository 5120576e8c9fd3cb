package schema

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weft-mesh/weft/pkg/names"
)

// checkProtoJSON judges data in Protobuf's JSON mapping, without making a message of
// them. Names that the message lacks are passed over, as numbers are in the binary
// encoding. Types finds what Any and extensions name.
func checkProtoJSON(m protoreflect.MessageDescriptor, types *dynamicpb.Types, data []byte) error {
	if _, err := scan(data); err != nil {
		return &Mismatch{Reason: err.Error()}
	}
	if !json.Valid(data) || !utf8.Valid(data) {
		return &Mismatch{Reason: "they are no JSON"}
	}
	r := protoJSONReader{data: data, types: types}
	miss := r.message(m)
	if miss == nil {
		return nil
	}
	slices.Reverse(miss.path)
	return &Mismatch{Path: names.Text(pointer(miss.path), maxMessage), Reason: names.Text(miss.reason, maxMessage)}
}

// protoJSONReader walks over data which are JSON within bounds: their depth bounds
// its own.
type protoJSONReader struct {
	data  []byte
	at    int
	types *dynamicpb.Types
	// partial: within an Any, where nothing is required.
	partial bool
}

// next is the byte that the next value begins with; space before it, and what stands
// between values, is passed over.
func (r *protoJSONReader) next() byte {
	for strings.IndexByte(" \t\r\n,:", r.data[r.at]) >= 0 {
		r.at++
	}
	return r.data[r.at]
}

// value takes a whole value as it stands there.
func (r *protoJSONReader) value() []byte {
	r.next()
	from, depth := r.at, 0
	for r.at < len(r.data) {
		switch c := r.data[r.at]; {
		case c == '"':
			for r.at++; r.data[r.at] != '"'; r.at++ {
				if r.data[r.at] == '\\' {
					r.at++
				}
			}
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth < 0 {
				return r.data[from:r.at]
			}
		case depth == 0 && strings.IndexByte(" \t\r\n,:", c) >= 0:
			return r.data[from:r.at]
		}
		r.at++
		if depth == 0 && strings.IndexByte(`"}]`, r.data[r.at-1]) >= 0 {
			break
		}
	}
	return r.data[from:r.at]
}

// null takes a null, if there is one.
func (r *protoJSONReader) null() bool {
	if r.next() != 'n' {
		return false
	}
	r.value()
	return true
}

// skip passes over a value that nothing is known of: its strings must be some.
func (r *protoJSONReader) skip() *dataMiss {
	for raw := r.value(); ; {
		i := bytes.IndexByte(raw, '"')
		if i < 0 {
			return nil
		}
		s := (&protoJSONReader{data: raw, at: i}).value()
		if _, why := read(s); why != nil {
			return why
		}
		raw = raw[i+len(s):]
	}
}

// read is the string that stands in JSON.
func read(raw []byte) (string, *dataMiss) {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s wrapperspb.StringValue
	if protojson.Unmarshal(raw, &s) != nil {
		return "", miss("a string has half a surrogate pair")
	}
	return s.Value, nil
}

// object takes an object, and with each name that it has calls field, which takes
// the value.
func (r *protoJSONReader) object(field func(name string) *dataMiss) *dataMiss {
	if c := r.next(); c != '{' {
		return miss("want an object")
	}
	r.at++
	for r.next() != '}' {
		name, why := read(r.value())
		if why != nil {
			return why
		}
		if why := field(name); why != nil {
			return why.in(name)
		}
	}
	r.at++
	return nil
}

// list takes an array.
func (r *protoJSONReader) list(element func() *dataMiss) *dataMiss {
	if r.next() != '[' {
		return miss("want an array")
	}
	r.at++
	for i := 0; r.next() != ']'; i++ {
		if why := element(); why != nil {
			return why.in(strconv.Itoa(i))
		}
	}
	r.at++
	return nil
}

// unique gives what tells of names that come twice in an object.
func unique[K comparable]() func(K) *dataMiss {
	var seen map[K]bool
	return func(k K) *dataMiss {
		if seen[k] {
			return miss("it is there twice")
		}
		if seen == nil {
			seen = map[K]bool{}
		}
		seen[k] = true
		return nil
	}
}

func (r *protoJSONReader) message(m protoreflect.MessageDescriptor) *dataMiss {
	if special := wellKnown(m); special != nil {
		return special(r)
	}
	return r.fields(m, false)
}

// fields takes an object of a message's fields; in an Any beside its type.
func (r *protoJSONReader) fields(m protoreflect.MessageDescriptor, inAny bool) *dataMiss {
	missing := required(m)
	fields, oneofs := unique[protoreflect.FieldNumber](), unique[protoreflect.Name]()
	why := r.object(func(name string) *dataMiss {
		f := r.named(m, name)
		if f == nil || inAny && name == typeName {
			return r.skip()
		}
		if f.ContainingMessage().FullName() != m.FullName() {
			return miss("%s is no extension of %s", f.FullName(), m.FullName())
		}
		if why := fields(f.Number()); why != nil {
			return why
		}
		if !takesNull(f) && r.null() {
			return nil
		}
		delete(missing, f.Number())
		switch o := f.ContainingOneof(); {
		case f.IsList():
			return r.list(func() *dataMiss { return r.single(f) })
		case f.IsMap():
			return r.entries(f)
		case o != nil:
			if why := oneofs(o.Name()); why != nil {
				return miss("another field of the oneof %s is there", o.Name())
			}
		}
		return r.single(f)
	})
	if why != nil || r.partial {
		return why
	}
	for number := range missing {
		return miss("the required field %s is missing", m.Fields().ByNumber(number).Name())
	}
	return nil
}

// named is the field of a message, or its extension, that a name in JSON is of; nil
// for none.
func (r *protoJSONReader) named(m protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
		if x, err := r.types.FindExtensionByName(protoreflect.FullName(name[1 : len(name)-1])); err == nil {
			return x.TypeDescriptor()
		}
		return nil
	}
	if f := m.Fields().ByJSONName(name); f != nil {
		return f
	}
	return m.Fields().ByTextName(name)
}

// takesNull: null is a value of the field, not its absence.
func takesNull(f protoreflect.FieldDescriptor) bool {
	return f.Message() != nil && f.Message().FullName() == "google.protobuf.Value" || isNullValue(f)
}

func isNullValue(f protoreflect.FieldDescriptor) bool {
	return f.Enum() != nil && f.Enum().FullName() == "google.protobuf.NullValue"
}

// single takes one value of a field.
func (r *protoJSONReader) single(f protoreflect.FieldDescriptor) *dataMiss {
	var as proto.Message
	switch k := f.Kind(); k {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return r.message(f.Message())
	case protoreflect.EnumKind:
		switch c := r.next(); {
		case c == '"': // one that the enum lacks is passed over
			return r.skip()
		case c == 'n' && isNullValue(f):
			return r.skip()
		case c == '-' || c >= '0' && c <= '9':
			return r.like(&wrapperspb.Int32Value{}, "a number of "+string(f.Enum().FullName()))
		}
		return miss("want a value of %s", f.Enum().FullName())
	case protoreflect.BoolKind:
		as = &wrapperspb.BoolValue{}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		as = &wrapperspb.Int32Value{}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		as = &wrapperspb.Int64Value{}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		as = &wrapperspb.UInt32Value{}
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		as = &wrapperspb.UInt64Value{}
	case protoreflect.FloatKind:
		as = &wrapperspb.FloatValue{}
	case protoreflect.DoubleKind:
		as = &wrapperspb.DoubleValue{}
	case protoreflect.BytesKind:
		as = &wrapperspb.BytesValue{}
	default:
		as = &wrapperspb.StringValue{}
	}
	what := f.Kind().String()
	if f.Kind() == protoreflect.BytesKind {
		what += " in base64"
	}
	return r.like(as, what)
}

// shown is how much of a value an error shows.
const shown = 40

// like takes a value that the library reads as one of a message whose JSON is no
// object.
func (r *protoJSONReader) like(as proto.Message, what string) *dataMiss {
	raw := r.value()
	if protojson.Unmarshal(raw, as) == nil {
		return nil
	}
	return miss("want %s, got %s", what, names.Text(string(raw), shown))
}

// entries takes an object that is a map.
func (r *protoJSONReader) entries(f protoreflect.FieldDescriptor) *dataMiss {
	keys := unique[string]()
	return r.object(func(name string) *dataMiss {
		k, ok := mapKey(f.MapKey().Kind(), name)
		if !ok {
			return miss("want a key that is %s", f.MapKey().Kind())
		}
		if why := keys(k); why != nil {
			return why
		}
		return r.single(f.MapValue())
	})
}

// mapKey is the key that a name stands for, as text that is the same for the same key.
func mapKey(k protoreflect.Kind, name string) (string, bool) {
	signed := func(bits int) (string, bool) {
		n, err := strconv.ParseInt(name, 10, bits)
		return strconv.FormatInt(n, 10), err == nil
	}
	unsigned := func(bits int) (string, bool) {
		n, err := strconv.ParseUint(name, 10, bits)
		return strconv.FormatUint(n, 10), err == nil
	}
	switch k {
	case protoreflect.BoolKind:
		return name, name == "true" || name == "false"
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return signed(32)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return signed(64)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return unsigned(32)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return unsigned(64)
	}
	return name, true
}
