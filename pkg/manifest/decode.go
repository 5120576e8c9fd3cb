// Package manifest reads and writes resources as people write them: YAML (and
// so JSON) documents with apiVersion, kind, metadata and spec.
package manifest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// Limits of what is read.
const (
	MaxBytes     = 8 << 20
	MaxDocuments = 10000
	maxDepth     = 32
)

// Problem is something wrong at a place of a file.
type Problem struct {
	File         string
	Line, Column int
	// Path is the field ("spec.rules[0].to").
	Path    string
	Message string
}

func (p Problem) Error() string {
	s := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Path != "" {
		s += p.Path + ": "
	}
	return s + p.Message
}

// Document is one resource and where it stands.
type Document struct {
	Resource *configv1.Resource
	File     string
	Line     int
}

// marked puts the mark of a YAML document before each JSON object of b but the
// first, so that objects that follow each other, as `weft get -o json` writes
// them, are documents. Lines stay. What is not JSON is left as it is.
func marked(b []byte) []byte {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return b
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	var out []byte
	from := int64(0)
	for {
		var skip json.RawMessage
		err := dec.Decode(&skip)
		if errors.Is(err, io.EOF) {
			return append(out, b[from:]...)
		}
		if err != nil {
			return b
		}
		object := bytes.TrimLeft(b[from:dec.InputOffset()], " \t\r\n")
		space := b[from : dec.InputOffset()-int64(len(object))]
		if from > 0 {
			// The mark stands where a line begins.
			if space = bytes.TrimRight(space, " \t\r"); !bytes.HasSuffix(space, []byte("\n")) {
				space = []byte("\n")
			}
			space = append(bytes.Clone(space), "--- "...)
		}
		out = append(append(out, space...), joined(object)...)
		from = dec.InputOffset()
	}
}

// joined is JSON with the characters that it writes as two surrogates, such as \ud83d\ude00,
// as they are: YAML has no such pairs.
func joined(b []byte) []byte {
	if !bytes.Contains(b, []byte(`\u`)) {
		return b
	}
	var out []byte
	for len(b) > 0 {
		switch {
		case b[0] != '\\':
			out, b = append(out, b[0]), b[1:]
		case utf16.DecodeRune(escape(b), escape(b[min(len(b), escapeLen):])) != utf8.RuneError:
			out = utf8.AppendRune(out, utf16.DecodeRune(escape(b), escape(b[escapeLen:])))
			b = b[2*escapeLen:]
		default:
			out, b = append(out, b[:2]...), b[2:]
		}
	}
	return out
}

// escapeLen is the length of \uXXXX.
const escapeLen = 6

// escape is what the \uXXXX means that b begins with; 0 where it does not.
func escape(b []byte) rune {
	if len(b) < escapeLen || b[0] != '\\' || b[1] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(b[2:escapeLen]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(n)
}

// Decode reads every document of b. namespace is for those that name none;
// "" makes that a problem. The error joins all Problems; nothing is returned
// beside one.
func Decode(file string, b []byte, namespace string) ([]Document, error) {
	if len(b) > MaxBytes {
		return nil, Problem{File: file, Line: 1, Column: 1, Message: fmt.Sprintf("has more than %d bytes", MaxBytes)}
	}
	if err := checkText(file, b); err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(marked(b)))
	var docs []Document
	var problems []error
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(append(problems, yamlProblem(file, err))...)
		}
		if len(n.Content) == 0 || n.Content[0].Kind == yaml.ScalarNode && n.Content[0].Tag == "!!null" {
			continue // an empty document
		}
		if len(docs) == MaxDocuments {
			return nil, Problem{File: file, Line: n.Line, Column: n.Column, Message: fmt.Sprintf("has more than %d documents", MaxDocuments)}
		}
		d := decoder{file: file}
		r := d.document(n.Content[0], namespace)
		problems = append(problems, d.problems...)
		docs = append(docs, Document{r, file, n.Content[0].Line})
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return docs, nil
}

// checkText checks that b is text: the parser says of what is not only that it is
// somewhere.
func checkText(file string, b []byte) error {
	line, start := 1, 0
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		what := ""
		switch {
		case r == utf8.RuneError && n == 1:
			what = "is not UTF-8"
		case r == '\n':
			line, start = line+1, i+1
		case r < ' ' && r != '\t' && r != '\r' || r >= 0x7f && r < 0xa0 && r != 0x85:
			what = fmt.Sprintf("has the control character %U", r)
		}
		if what != "" {
			return Problem{File: file, Line: line, Column: utf8.RuneCount(b[start:i]) + 1, Message: what}
		}
		i += n
	}
	return nil
}

// yamlProblem turns the parser's "yaml: line 3: …" into a Problem.
func yamlProblem(file string, err error) error {
	p := Problem{File: file, Line: 1, Column: 1, Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if rest, ok := strings.CutPrefix(p.Message, "line "); ok {
		if num, msg, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(num); err == nil {
				p.Line, p.Message = n, msg
				if strings.HasPrefix(msg, "did not find expected") {
					p.Line++ // these it counts from 0
				}
			}
		}
	}
	return p
}

type decoder struct {
	file     string
	problems []error
}

func (d *decoder) bad(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, n.Line, n.Column, path, fmt.Sprintf(format, args...)})
}

// pairs yields the members of a mapping, each once.
func (d *decoder) pairs(n *yaml.Node, path string, f func(k, v *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.bad(n, path, "must be a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode:
			d.bad(k, path, "a key must be plain")
		case seen[k.Value]:
			d.bad(k, join(path, k.Value), "is there twice")
		case v.Kind == yaml.AliasNode || v.Anchor != "":
			d.bad(v, join(path, k.Value), "anchors and aliases are not used here")
		default:
			seen[k.Value] = true
			f(k, v)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *decoder) document(n *yaml.Node, namespace string) *configv1.Resource {
	r := &configv1.Resource{Metadata: &configv1.Metadata{}}
	var spec *yaml.Node
	var info resource.Info
	version := ""
	d.pairs(n, "", func(k, v *yaml.Node) {
		switch k.Value {
		case "apiVersion":
			if version = v.Value; version != resource.APIVersion {
				d.bad(v, k.Value, "is %q; this program knows %s", v.Value, resource.APIVersion)
			}
		case "kind":
			for _, i := range resource.Kinds() {
				if i.Title == v.Value {
					info = i
				}
			}
			if info.Title == "" {
				d.bad(v, k.Value, "%q is not a kind%s", v.Value, suggest(v.Value, titles()))
			}
		case "metadata":
			d.message(v, r.Metadata.ProtoReflect(), "metadata", 1)
		case "spec":
			spec = v
		case "status":
			// What a printed resource may have; it only describes.
		default:
			d.bad(k, k.Value, "is not a field of a resource%s", suggest(k.Value, []string{"apiVersion", "kind", "metadata", "spec"}))
		}
	})
	if version == "" {
		d.bad(n, "apiVersion", "is missing; it is %s", resource.APIVersion)
	}
	if r.Metadata.Namespace == "" {
		r.Metadata.Namespace = namespace
	}
	if r.Metadata.Namespace == "" {
		d.bad(n, "metadata.namespace", "is missing; name it here or with --namespace")
	}
	if info.Title == "" {
		if len(d.problems) == 0 {
			d.bad(n, "kind", "is missing")
		}
		return r
	}
	m := r.ProtoReflect()
	body := m.Mutable(m.Descriptor().Fields().ByName(protoreflect.Name(info.Field))).Message()
	if spec != nil && (spec.Kind != yaml.ScalarNode || spec.Tag != "!!null") {
		d.message(spec, body, "spec", 1)
	}
	r.Name = resource.NameOf(r)
	return r
}

func titles() []string {
	var out []string
	for _, i := range resource.Kinds() {
		out = append(out, i.Title)
	}
	return out
}

// message decodes a mapping into m.
func (d *decoder) message(n *yaml.Node, m protoreflect.Message, path string, depth int) {
	if depth > maxDepth {
		d.bad(n, path, "is nested deeper than %d", maxDepth)
		return
	}
	fields := m.Descriptor().Fields()
	d.pairs(n, path, func(k, v *yaml.Node) {
		f := fields.ByName(protoreflect.Name(k.Value))
		if f == nil {
			f = fields.ByJSONName(k.Value)
		}
		p := join(path, k.Value)
		if f == nil {
			var known []string
			for i := range fields.Len() {
				known = append(known, string(fields.Get(i).Name()))
			}
			d.bad(k, p, "is not a field%s", suggest(k.Value, known))
			return
		}
		if o := f.ContainingOneof(); o != nil && m.WhichOneof(o) != nil {
			d.bad(k, p, "stands beside %s; only one of them may", m.WhichOneof(o).Name())
			return
		}
		d.field(v, m, f, p, depth)
	})
}

func (d *decoder) field(n *yaml.Node, m protoreflect.Message, f protoreflect.FieldDescriptor, path string, depth int) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		if f.Message() != nil && !f.IsList() && !f.IsMap() && f.ContainingOneof() != nil {
			m.Mutable(f) // "embedded:" without anything names the choice
		}
	case f.IsMap():
		out := m.Mutable(f).Map()
		d.pairs(n, path, func(k, v *yaml.Node) {
			if x, ok := d.value(v, f.MapValue(), nil, join(path, k.Value), depth); ok {
				out.Set(protoreflect.ValueOfString(k.Value).MapKey(), x)
			}
		})
	case f.IsList():
		if n.Kind != yaml.SequenceNode {
			d.bad(n, path, "must be a list")
			return
		}
		out := m.Mutable(f).List()
		for i, item := range n.Content {
			p := fmt.Sprintf("%s[%d]", path, i)
			if item.Kind == yaml.AliasNode || item.Anchor != "" {
				d.bad(item, p, "anchors and aliases are not used here")
				continue
			}
			if x, ok := d.value(item, f, func() protoreflect.Value { return out.NewElement() }, p, depth); ok {
				out.Append(x)
			}
		}
	default:
		if x, ok := d.value(n, f, func() protoreflect.Value { return m.NewField(f) }, path, depth); ok {
			m.Set(f, x)
		}
	}
}

// value decodes one value; fresh makes a new message.
func (d *decoder) value(n *yaml.Node, f protoreflect.FieldDescriptor, fresh func() protoreflect.Value, path string, depth int) (out protoreflect.Value, ok bool) {
	if md := f.Message(); md != nil {
		switch md.FullName() {
		case "google.protobuf.Duration":
			v, err := time.ParseDuration(n.Value)
			if n.Kind != yaml.ScalarNode || err != nil {
				d.bad(n, path, `must be a duration, such as "500ms", "30s" or "1h30m"`)
				return out, false
			}
			return protoreflect.ValueOfMessage(durationpb.New(v).ProtoReflect()), true
		case "google.protobuf.Timestamp":
			v, err := time.Parse(time.RFC3339Nano, n.Value)
			if n.Kind != yaml.ScalarNode || err != nil {
				d.bad(n, path, `must be a time, such as "2026-01-31T12:00:00Z"`)
				return out, false
			}
			return protoreflect.ValueOfMessage(timestamppb.New(v).ProtoReflect()), true
		}
		v := fresh()
		before := len(d.problems)
		d.message(n, v.Message(), path, depth+1)
		return v, len(d.problems) == before
	}
	if n.Kind != yaml.ScalarNode {
		d.bad(n, path, "must be a single value")
		return out, false
	}
	out, want := scalar(n, f)
	if want != "" {
		d.bad(n, path, "must be %s, not %q", want, n.Value)
		return out, false
	}
	return out, true
}

// scalar decodes a plain value; want says what it must be where it is not.
func scalar(n *yaml.Node, f protoreflect.FieldDescriptor) (out protoreflect.Value, want string) {
	switch f.Kind() {
	case protoreflect.StringKind:
		if n.Tag != "!!str" && n.Tag != "!!timestamp" {
			return out, "a text (put it in quotes)"
		}
		return protoreflect.ValueOfString(n.Value), ""
	case protoreflect.BoolKind:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || n.Tag != "!!bool" {
			return out, "true or false"
		}
		return protoreflect.ValueOfBool(b), ""
	case protoreflect.Uint32Kind:
		v, err := strconv.ParseUint(n.Value, 10, 32)
		if strings.Contains(string(f.Name()), "bytes") {
			bytes, ok := size(n.Value)
			if !ok || bytes > math.MaxUint32 {
				return out, `a number from 0 to 4294967295, or a size such as "64KiB" or "1MiB"`
			}
			v, err = bytes, nil
		}
		if err != nil {
			return out, "a number from 0 to 4294967295"
		}
		return protoreflect.ValueOfUint32(uint32(v)), ""
	case protoreflect.Uint64Kind:
		v, ok := size(n.Value)
		if !ok {
			return out, `a number, or a size such as "64KiB" or "10GiB"`
		}
		return protoreflect.ValueOfUint64(v), ""
	case protoreflect.Int64Kind:
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil {
			return out, "a whole number"
		}
		return protoreflect.ValueOfInt64(v), ""
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.DecodeString(n.Value)
		if err != nil {
			return out, "base64"
		}
		return protoreflect.ValueOfBytes(b), ""
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		prefix := enumPrefix(f.Enum())
		for i := range values.Len() {
			name := string(values.Get(i).Name())
			short := strings.ToLower(strings.TrimPrefix(name, prefix))
			if n.Value == name || strings.EqualFold(n.Value, short) {
				return protoreflect.ValueOfEnum(values.Get(i).Number()), ""
			}
		}
		return out, "one of " + strings.Join(resource.Words(f.Enum()), ", ")
	}
	return out, "something that this version cannot read"
}

// enumPrefix is what all names of an enum begin with: "ACTION_".
func enumPrefix(e protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(e.Values().ByNumber(0).Name()), "UNSPECIFIED")
}

// size reads a number of bytes.
func size(s string) (uint64, bool) {
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if num, ok := strings.CutSuffix(s, unit); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(num), 10, 64)
			shift := 10 * (i + 1)
			return v << shift, err == nil && v <= math.MaxUint64>>shift
		}
	}
	v, err := strconv.ParseUint(s, 10, 64)
	return v, err == nil
}

// suggest names the nearest of known, if one is near.
func suggest(got string, known []string) string {
	best, at := "", 4
	for _, k := range known {
		if n := distance(strings.ToLower(got), strings.ToLower(k)); n < at {
			best, at = k, n
		}
	}
	if best == "" {
		return "; there are " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// distance is Levenshtein's.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 99
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			last, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, last+cost)
		}
	}
	return row[len(b)]
}

// Equal reports whether two resources say the same, whatever the control plane
// has set.
func Equal(a, b *configv1.Resource) bool {
	strip := func(r *configv1.Resource) *configv1.Resource {
		c := proto.Clone(r).(*configv1.Resource)
		c.Name = ""
		c.Metadata.Uid, c.Metadata.Version, c.Metadata.CreatedAt = "", "", nil
		return c
	}
	return proto.Equal(strip(a), strip(b))
}
