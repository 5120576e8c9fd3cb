// Command resourcedocs writes docs/resources.md: every kind of resource with
// every field, from the comments and rules of proto/. It reads an image with comments, as
// `buf build -o -` writes it, from standard input.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/weft-mesh/weft/pkg/resource"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "resourcedocs:", err)
		os.Exit(1)
	}
}

const head = `# Resources

<!-- Made from the comments and rules of proto/weft/config/v1alpha1 by ` + "`make generate`" + `. -->

A mesh's configuration is a set of named resources, written in YAML or JSON:

    apiVersion: weft/v1alpha1
    kind: Topic
    metadata: {namespace: demo, name: orders}
    spec: {store: main, retention: {max_age: 168h}}

` + "`weft apply`" + ` creates and updates, all or none; ` + "`weft get KIND NAME -o yaml`" + ` gives back
what it takes. A field that is not listed here is refused with its line; ackTimeout is
another spelling of ack_timeout, and so of the others. Words are of any case (allow, ALLOW).
Durations are written as 30s, 5m or 168h, sizes as numbers or as 64KiB, 1GiB; times in RFC 3339.

`

func run(in io.Reader, out io.Writer) error {
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		return fmt.Errorf("standard input is no image: %w", err)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return err
	}
	d, err := files.FindDescriptorByName("weft.config.v1alpha1.Resource")
	if err != nil {
		return err
	}
	res, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return fmt.Errorf("%s is no message", d.FullName())
	}
	var page bytes.Buffer
	page.WriteString(head)
	contents(&page)
	p := printer{&page}
	p.section("## Metadata", res.Fields().ByName("metadata").Message())
	for _, system := range []bool{false, true} {
		if system {
			page.WriteString("## The system's own\n\nWritten by the control plane alone; `weft get` shows them.\n\n")
		}
		for _, k := range resource.Kinds() {
			if k.System == system {
				p.kind(k.Title, res.Fields().ByName(protoreflect.Name(k.Field)).Message())
			}
		}
	}
	_, err = out.Write(append(bytes.TrimRight(page.Bytes(), "\n"), '\n'))
	return err
}

// contents writes where each kind is on the page.
func contents(page *bytes.Buffer) {
	links := []string{"[Metadata](#metadata)"}
	for _, k := range resource.Kinds() {
		links = append(links, fmt.Sprintf("[%s](#%s)", k.Title, strings.ToLower(k.Title)))
	}
	fmt.Fprintf(page, "On this page: %s.\n\n", strings.Join(links, " · "))
}

type printer struct{ *bytes.Buffer }

// kind writes a kind and the messages that only its fields lead to, each once.
func (p printer) kind(title string, m protoreflect.MessageDescriptor) {
	p.section("## "+title, m)
	seen := []protoreflect.FullName{m.FullName()}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			sub := m.Fields().Get(i).Message()
			if m.Fields().Get(i).IsMap() {
				sub = m.Fields().Get(i).MapValue().Message()
			}
			if sub == nil || !strings.HasPrefix(string(sub.FullName()), "weft.") || slices.Contains(seen, sub.FullName()) {
				continue
			}
			seen = append(seen, sub.FullName())
			p.section("### "+title+": "+string(sub.Name()), sub)
			walk(sub)
		}
	}
	walk(m)
}

func (p printer) section(heading string, m protoreflect.MessageDescriptor) {
	fmt.Fprintf(p, "%s\n\n%s\n\n", heading, comment(m))
	if m.Fields().Len() == 0 {
		p.WriteString("It has no fields: write `{}`.\n\n")
		return
	}
	p.WriteString("| field | type | meaning |\n| --- | --- | --- |\n")
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		text := strings.ReplaceAll(comment(f), "\n", " ")
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			var others []string
			for j := range o.Fields().Len() {
				if o.Fields().Get(j) != f {
					others = append(others, "`"+string(o.Fields().Get(j).Name())+"`")
				}
			}
			if len(others) > 0 {
				text += " Excludes " + strings.Join(others, ", ")
				if r, _ := proto.GetExtension(o.Options(), validate.E_Oneof).(*validate.OneofRules); r.GetRequired() {
					text += "; one of them is required"
				}
				text += "."
			}
		}
		text += rules(f, text)
		if e := f.Enum(); e != nil {
			text += " " + values(e)
		}
		fmt.Fprintf(p, "| `%s` | %s | %s |\n", f.Name(), typeOf(f), strings.ReplaceAll(text, "|", `\|`))
	}
	p.WriteString("\n")
}

// values lists the values of an enumeration as YAML has them.
func values(e protoreflect.EnumDescriptor) string {
	prefix := strings.TrimSuffix(string(e.Values().ByNumber(0).Name()), "UNSPECIFIED")
	var out []string
	for i := range e.Values().Len() {
		if v := e.Values().Get(i); v.Number() != 0 {
			out = append(out, fmt.Sprintf("`%s`: %s", strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix)), strings.ReplaceAll(comment(v), "\n", " ")))
		}
	}
	return strings.Join(out, " ")
}

func typeOf(f protoreflect.FieldDescriptor) string {
	if f.IsMap() {
		return "map of " + scalar(f.MapValue())
	}
	if f.IsList() {
		return "list of " + scalar(f)
	}
	return scalar(f)
}

func scalar(f protoreflect.FieldDescriptor) string {
	switch m := f.Message(); {
	case m != nil && m.FullName() == "google.protobuf.Duration":
		return "duration"
	case m != nil && m.FullName() == "google.protobuf.Timestamp":
		return "time"
	case m != nil:
		return string(m.Name())
	}
	switch f.Kind() {
	case protoreflect.EnumKind:
		return "word"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind:
		return "text"
	case protoreflect.BytesKind:
		return "bytes"
	}
	return "number"
}

// comment is what stands above a declaration.
func comment(d protoreflect.Descriptor) string {
	return strings.TrimSpace(strings.ReplaceAll(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments, "\n ", "\n"))
}
