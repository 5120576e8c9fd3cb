package manifest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// YAML writes resources as documents that Decode reads.
func YAML(rs ...*configv1.Resource) ([]byte, error) {
	var b bytes.Buffer
	if len(rs) == 0 {
		return nil, nil // the encoder fails where it has nothing to write
	}
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	for _, r := range rs {
		if err := enc.Encode(node(r)); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), enc.Close()
}

// JSON writes one resource as an object that Decode reads.
func JSON(r *configv1.Resource) ([]byte, error) {
	var v any
	if err := node(r).Decode(&v); err != nil {
		return nil, err
	}
	return json.MarshalIndent(v, "", "  ")
}

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if n.Style == 0 {
		// What would read as something else gets quotes.
		var v any
		if yaml.Unmarshal([]byte(s), &v) == nil {
			if _, plain := v.(string); !plain {
				n.Style = yaml.DoubleQuotedStyle
			}
		} else {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
	return n
}

func plain(s, tag string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: s} }

func node(r *configv1.Resource) *yaml.Node {
	info, _ := resource.Lookup(string(resource.KindOf(r)))
	out := &yaml.Node{Kind: yaml.MappingNode}
	add := func(k string, v *yaml.Node) { out.Content = append(out.Content, text(k), v) }
	add("apiVersion", text(resource.APIVersion))
	add("kind", text(info.Title))
	add("metadata", messageNode(r.Metadata.ProtoReflect()))
	m := r.ProtoReflect()
	if f := m.Descriptor().Fields().ByName(protoreflect.Name(info.Field)); f != nil {
		add("spec", messageNode(m.Get(f).Message()))
	}
	return out
}

// messageNode writes the fields that are set, in the order of the proto.
func messageNode(m protoreflect.Message) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		out.Content = append(out.Content, text(string(f.Name())), fieldNode(f, m.Get(f)))
	}
	return out
}

func fieldNode(f protoreflect.FieldDescriptor, v protoreflect.Value) *yaml.Node {
	switch {
	case f.IsList():
		out := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.List().Len() {
			out.Content = append(out.Content, valueNode(f, v.List().Get(i)))
		}
		return out
	case f.IsMap():
		out := &yaml.Node{Kind: yaml.MappingNode}
		var keys []string
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k.String())
			return true
		})
		slices.Sort(keys)
		for _, k := range keys {
			out.Content = append(out.Content, text(k), valueNode(f.MapValue(), v.Map().Get(protoreflect.ValueOfString(k).MapKey())))
		}
		return out
	}
	return valueNode(f, v)
}

func valueNode(f protoreflect.FieldDescriptor, v protoreflect.Value) *yaml.Node {
	switch f.Kind() {
	case protoreflect.MessageKind:
		switch m := v.Message().Interface().(type) {
		case *durationpb.Duration:
			return text(m.AsDuration().String())
		case *timestamppb.Timestamp:
			return text(m.AsTime().Format(time.RFC3339Nano))
		}
		return messageNode(v.Message())
	case protoreflect.EnumKind:
		d := f.Enum().Values().ByNumber(v.Enum())
		if d == nil {
			return plain(strconv.Itoa(int(v.Enum())), "!!int")
		}
		return text(strings.ToLower(strings.TrimPrefix(string(d.Name()), enumPrefix(f.Enum()))))
	case protoreflect.BoolKind:
		return plain(strconv.FormatBool(v.Bool()), "!!bool")
	case protoreflect.StringKind:
		return text(v.String())
	case protoreflect.BytesKind:
		return text(base64.StdEncoding.EncodeToString(v.Bytes()))
	}
	return plain(v.String(), "!!int")
}
