package schema

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// compileProto finds the message that a schema names among its descriptors, which are
// nil where its JSON is not taken.
func compileProto(spec *configv1.ProtobufSchema) (protoreflect.MessageDescriptor, *protoregistry.Files, error) {
	var set descriptorpb.FileDescriptorSet
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(spec.GetDescriptors(), &set); err != nil {
		return nil, nil, fmt.Errorf("the descriptors are no FileDescriptorSet: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, nil, fmt.Errorf("the descriptors do not fit together (are all imports among them?): %w", err)
	}
	d, err := files.FindDescriptorByName(protoreflect.FullName(spec.GetMessage()))
	if err != nil {
		return nil, nil, fmt.Errorf("no message %s is among the descriptors", spec.GetMessage())
	}
	m, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, nil, errors.New(spec.GetMessage() + " is no message")
	}
	if !spec.GetJson() {
		return m, nil, nil
	}
	return m, files, nil
}

// isProto reports whether a media type is Protobuf's binary encoding.
func isProto(media string) bool {
	if media == "application/protobuf" {
		return true
	}
	t, _, err := mime.ParseMediaType(media)
	return err == nil && (t == "application/protobuf" || t == "application/x-protobuf" || t == "application/vnd.google.protobuf")
}

// checkProto judges data in Protobuf's binary encoding, without making anything of
// them. Fields that the message lacks are passed over, as its readers do.
func checkProto(m protoreflect.MessageDescriptor, data []byte) error {
	r := protoReader{values: maxValues}
	miss := r.message(m, data, 0)
	if miss == nil {
		return nil
	}
	slices.Reverse(miss.path)
	return &Mismatch{Path: names.Text(pointer(miss.path), maxMessage), Reason: names.Text(miss.reason, maxMessage)}
}

// protoReader walks over data.
type protoReader struct {
	values int // how many more fields there may be
}

// message walks over one message, which nests within depth others.
func (r *protoReader) message(m protoreflect.MessageDescriptor, data []byte, depth int) *dataMiss {
	if depth > maxDepth {
		return miss("they nest more than %d deep", maxDepth)
	}
	missing := required(m)
	for rest := data; len(rest) > 0; {
		if r.values--; r.values < 0 {
			return miss("they have more than %d values", maxValues)
		}
		start := len(data) - len(rest)
		number, wire, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return miss("they are no Protobuf: %v", protowire.ParseError(n))
		}
		rest = rest[n:]
		if n = protowire.ConsumeFieldValue(number, wire, rest); n < 0 {
			return within(miss("field %d is broken: %v", number, protowire.ParseError(n)), m, data[:start], number)
		}
		f := m.Fields().ByNumber(number)
		if f != nil {
			delete(missing, number)
			if why := r.field(f, wire, rest[:n], depth); why != nil {
				return within(why, m, data[:start], number)
			}
		}
		rest = rest[n:]
	}
	for number := range missing {
		return miss("the required field %s is missing", m.Fields().ByNumber(number).Name())
	}
	return nil
}

// field judges the value of one field, which is whole by its wire type.
func (r *protoReader) field(f protoreflect.FieldDescriptor, wire protowire.Type, b []byte, depth int) *dataMiss {
	want := wireOf(f.Kind())
	if wire != want {
		if wire == protowire.BytesType && f.IsList() && want != protowire.StartGroupType && want != protowire.BytesType {
			return packed(want, b)
		}
		return miss("want %s, got wire type %d", f.Kind(), wire)
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		if text, _ := protowire.ConsumeBytes(b); !utf8.Valid(text) {
			return miss("a string is not UTF-8")
		}
	case protoreflect.MessageKind:
		part, _ := protowire.ConsumeBytes(b)
		return r.message(f.Message(), part, depth+1)
	case protoreflect.GroupKind:
		part, _ := protowire.ConsumeGroup(f.Number(), b)
		return r.message(f.Message(), part, depth+1)
	}
	return nil
}

// packed judges numbers that stand one behind the other.
func packed(wire protowire.Type, b []byte) *dataMiss {
	b, _ = protowire.ConsumeBytes(b)
	for len(b) > 0 {
		n := protowire.ConsumeFieldValue(1, wire, b)
		if n < 0 {
			return miss("packed numbers are broken: %v", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return nil
}

// required are the fields that must be there; nil where none must.
func required(m protoreflect.MessageDescriptor) map[protowire.Number]bool {
	list := m.RequiredNumbers()
	if list.Len() == 0 {
		return nil
	}
	out := make(map[protowire.Number]bool, list.Len())
	for i := range list.Len() {
		out[list.Get(i)] = true
	}
	return out
}

// within says in which field the miss is, and in which of its values where it is
// repeated.
func within(why *dataMiss, m protoreflect.MessageDescriptor, before []byte, number protowire.Number) *dataMiss {
	f := m.Fields().ByNumber(number)
	if f == nil {
		return why.in(strconv.Itoa(int(number)))
	}
	if f.Cardinality() == protoreflect.Repeated {
		at := 0
		for len(before) > 0 {
			other, _, n := protowire.ConsumeField(before)
			if before = before[n:]; other == number {
				at++
			}
		}
		why = why.in(strconv.Itoa(at))
	}
	return why.in(string(f.Name()))
}

// wireOf is how a kind is written.
func wireOf(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		return protowire.StartGroupType
	}
	return protowire.VarintType
}
