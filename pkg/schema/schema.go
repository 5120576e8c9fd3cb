// Package schema judges the data of events by the Schemas of topics, and changes of
// these Schemas. Nothing is compiled when an event arrives, and nothing is ever
// fetched.
package schema

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"mime"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/weakcache"
)

// Schema is a compiled Schema. It is immutable and safe for concurrent use.
type Schema struct {
	// Shadowed: what does not conform is counted, not refused.
	Shadowed bool
	// One of them is there.
	json  *jsonSchema
	avro  *avroType
	proto protoreflect.MessageDescriptor
	// protoTypes are what is among proto's descriptors, where its JSON is taken.
	protoTypes *dynamicpb.Types
}

// A FieldError names the field of a Schema that is wrong.
type FieldError struct {
	Field  string // "spec.json.document"
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Field is the path of what a Schema says of data, for errors of it.
func Field(spec *configv1.Schema) string {
	switch spec.GetFormat().(type) {
	case *configv1.Schema_Json:
		return "spec.json.document"
	case *configv1.Schema_Avro:
		return "spec.avro.document"
	case *configv1.Schema_Protobuf:
		return "spec.protobuf"
	}
	return "spec"
}

// compiled are the Schemas that are in use, by what they say.
var compiled weakcache.Cache[Schema]

// Compile compiles a Schema, or finds it where it is in use. The error is a *FieldError.
func Compile(spec *configv1.Schema) (*Schema, error) {
	said, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return nil, &FieldError{Field(spec), err.Error()}
	}
	sum := sha256.Sum256(said)
	return compiled.Get(string(sum[:]), func() (*Schema, error) { return compile(spec) })
}

func compile(spec *configv1.Schema) (*Schema, error) {
	s := &Schema{Shadowed: spec.GetMode() == configv1.Mode_MODE_SHADOWED}
	switch spec.GetMode() {
	case configv1.Mode_MODE_UNSPECIFIED, configv1.Mode_MODE_ENFORCED, configv1.Mode_MODE_SHADOWED:
	default:
		return nil, &FieldError{"spec.mode", "is not a mode that this version enforces"}
	}
	var err error
	switch f := spec.GetFormat().(type) {
	case *configv1.Schema_Json:
		s.json, err = compileJSON(f.Json.GetDocument())
	case *configv1.Schema_Avro:
		s.avro, err = compileAvro(f.Avro.GetDocument())
	case *configv1.Schema_Protobuf:
		var files *protoregistry.Files
		if s.proto, files, err = compileProto(f.Protobuf); files != nil {
			s.protoTypes = dynamicpb.NewTypes(files)
		}
	default:
		return nil, &FieldError{Field(spec), "has no format that this version knows"}
	}
	if err != nil {
		return nil, &FieldError{Field(spec), names.Text(err.Error(), maxMessage)}
	}
	return s, nil
}

// maxMessage bounds, in bytes, what is said of what is wrong.
const maxMessage = 512

// A Mismatch is why data does not conform.
type Mismatch struct {
	// Path is where in the data, as a JSON pointer of names, keys and indices; "" is
	// the whole.
	Path   string
	Reason string
}

func (m *Mismatch) Error() string {
	if m.Path == "" {
		return "the data do not conform: " + m.Reason
	}
	return fmt.Sprintf("the data do not conform at %s: %s", m.Path, m.Reason)
}

// Check judges the data of an event, which it borrows. The error is a *Mismatch.
func (s *Schema) Check(e *event.Event) error {
	media := e.DataContentType
	switch {
	case s.avro != nil && isAvro(media):
		return checkAvro(s.avro, e.Data)
	case s.proto != nil && isProto(media):
		return checkProto(s.proto, e.Data)
	case s.protoTypes != nil && isJSON(media):
		return checkProtoJSON(s.proto, s.protoTypes, e.Data)
	case s.avro != nil:
		return otherMedia(media, "Avro")
	case s.proto != nil:
		return otherMedia(media, "Protobuf")
	case !isJSON(media):
		return otherMedia(media, "JSON")
	}
	if len(e.Data) == 0 {
		return &Mismatch{Reason: "there are none"}
	}
	return s.json.check(e.Data)
}

func otherMedia(media, schema string) error {
	return &Mismatch{Reason: "datacontenttype is " + names.Text(cmp.Or(media, "not given"), 100) + ", the schema is of " + schema}
}

// dataMiss is why data do not conform; its path is from within.
type dataMiss struct {
	path   []string
	reason string
}

func miss(format string, args ...any) *dataMiss {
	return &dataMiss{reason: fmt.Sprintf(format, args...)}
}

func (m *dataMiss) in(step string) *dataMiss {
	m.path = append(m.path, step)
	return m
}

// isJSON reports whether a media type is JSON, as data without one are.
func isJSON(media string) bool {
	switch media {
	case "", "application/json":
		return true
	}
	t, _, err := mime.ParseMediaType(media)
	return err == nil && (t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json"))
}
