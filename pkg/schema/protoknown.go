package schema

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// wellKnown is how a message with a JSON of its own is taken; nil for others.
func wellKnown(m protoreflect.MessageDescriptor) func(*protoJSONReader) *dataMiss {
	if m.FullName().Parent() != "google.protobuf" {
		return nil
	}
	as := func(v proto.Message, what string) func(*protoJSONReader) *dataMiss {
		return func(r *protoJSONReader) *dataMiss { return r.like(v, what) }
	}
	switch m.Name() {
	case "Any":
		return (*protoJSONReader).any
	case "Timestamp":
		return as(&timestamppb.Timestamp{}, "a time as in RFC 3339")
	case "Duration":
		return as(&durationpb.Duration{}, `a duration like "1.5s"`)
	case "FieldMask":
		return as(&fieldmaskpb.FieldMask{}, "paths of fields")
	case "BoolValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue", "StringValue", "BytesValue":
		value := m.Fields().ByNumber(1)
		if value == nil || value.Message() != nil {
			return nil
		}
		return func(r *protoJSONReader) *dataMiss { return r.single(value) }
	case "Struct":
		return (*protoJSONReader).structure
	case "ListValue":
		return func(r *protoJSONReader) *dataMiss { return r.list(r.dynamic) }
	case "Value":
		return (*protoJSONReader).dynamic
	}
	return nil
}

func (r *protoJSONReader) structure() *dataMiss {
	keys := unique[string]()
	return r.object(func(name string) *dataMiss {
		if why := keys(name); why != nil {
			return why
		}
		return r.dynamic()
	})
}

// dynamic takes a google.protobuf.Value.
func (r *protoJSONReader) dynamic() *dataMiss {
	switch c := r.next(); {
	case c == '{':
		return r.structure()
	case c == '[':
		return r.list(r.dynamic)
	case c == '-' || c >= '0' && c <= '9':
		return r.like(&wrapperspb.DoubleValue{}, "double")
	}
	return r.skip()
}

// typeName is the name in an Any of what it is.
const typeName = "@type"

func (r *protoJSONReader) any() *dataMiss {
	// Its type may stand behind what it is the type of.
	ahead := *r
	url, members := "", 0
	types := unique[string]()
	why := ahead.object(func(name string) *dataMiss {
		members++
		if name != typeName {
			return ahead.skip()
		}
		if why := types(name); why != nil {
			return why
		}
		if ahead.next() != '"' {
			return miss("want a type's URL")
		}
		var why *dataMiss
		if url, why = read(ahead.value()); why == nil && url == "" {
			why = miss("want a type's URL")
		}
		return why
	})
	if why != nil {
		return why
	}
	if url == "" { // empty, or of nothing that is known
		r.at = ahead.at
		return nil
	}
	t, err := r.types.FindMessageByURL(url)
	if err != nil {
		return miss("%s is not among the descriptors", url).in(typeName)
	}
	defer func(was bool) { r.partial = was }(r.partial)
	r.partial = true
	m := t.Descriptor()
	special := wellKnown(m)
	if special == nil && m.FullName() != "google.protobuf.Empty" {
		return r.fields(m, true)
	}
	found := unique[string]()
	there := false
	why = r.object(func(name string) *dataMiss {
		if name != "value" {
			return r.skip()
		}
		if why := found(name); why != nil {
			return why
		}
		there = true
		return r.message(m)
	})
	if why == nil && !there && special != nil {
		return miss("the value of %s is missing", m.FullName())
	}
	return why
}
