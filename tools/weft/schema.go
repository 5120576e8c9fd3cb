package weft

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/schema"
	"github.com/weft-mesh/weft/tools/proxycmd"
)

func schemaCommand() *cobra.Command {
	return group(&cobra.Command{Use: "schema", Short: "Check schemas before they are applied", Example: "  weft schema check examples/schemas/"},
		schemaCheckCommand())
}

// schemaCheck are the flags of weft schema check.
type schemaCheck struct {
	admin                     adminFlags
	namespace, name, message  string
	compatibility             string
	against                   []string
	applied                   bool
	data, contentType, events string
}

// compatibilities are the values of --compatibility.
var compatibilities = []string{"backward", "forward", "full", "none"}

func schemaCheckCommand() *cobra.Command {
	var f schemaCheck
	cmd := &cobra.Command{Use: "check FILE|FOLDER|- …", Short: "Check schemas, their changes and data against them, from files", Args: cobra.MinimumNArgs(1),
		Long: `Judges schemas as the control plane does, and as proxies judge data by them.
Of manifests (.yaml, .json, folders, - for standard input) their Schemas are taken; a
document may stand alone: JSON Schema (.json), Avro (.avsc), or the descriptors of
Protobuf (.binpb, .desc, .pb, .protoset) with --message.

With --against, what changes from the Schemas of other files must keep what the new
version's compatibility asks for; so with --applied, from those of the control plane.
With --data or --event, these are checked against the one schema that is given.

The exit status is 0 where all is right, 1 where something is not, 2 after an error.`,
		Example: `  weft schema check examples/schemas/
  weft schema check order.yaml --data @order.json
  weft schema check new.avsc --against old.avsc --compatibility full
  weft schema check order.yaml --applied`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wrong, err := f.run(cmd, args)
			switch {
			case err != nil:
				return exitStatus{trouble, err}
			case wrong:
				return exitStatus{code: differs}
			}
			return nil
		}}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.against, "against", nil, "file or folder with the versions before; may be repeated")
	flags.BoolVar(&f.applied, "applied", false, "the versions before are what the control plane has")
	flags.StringVar(&f.compatibility, "compatibility", "", "what a change must keep, instead of what the new version says: "+strings.Join(compatibilities, ", "))
	flags.StringVarP(&f.data, "data", "d", "", "data to check: text, @FILE, or - for standard input")
	flags.StringVar(&f.contentType, "content-type", "", "the data's media type; that of the schema's language when empty")
	flags.StringVar(&f.events, "event", "", "file with an event to check, a CloudEvent in JSON")
	flags.StringVar(&f.message, "message", "", "of descriptors: the full name of the message")
	flags.StringVar(&f.name, "name", "", "of a document that stands alone: the Schema's name, for --applied")
	flags.StringVarP(&f.namespace, "namespace", "n", proxycmd.Env("WEFT_NAMESPACE", "demo"), "namespace (WEFT_NAMESPACE)")
	f.admin.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("compatibility", cobra.FixedCompletions(compatibilities, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("content-type", cobra.FixedCompletions([]string{"application/avro", "application/json", "application/protobuf"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("name", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, r := range listed(cmd, &f.admin, string(resource.Schema), f.namespace) {
			out = append(out, r.Metadata.Name)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	})
	completeNamespace(cmd, &f.admin)
	badUse(cmd)
	return cmd
}

// run reports whether something is wrong, of which it has told on cmd's output.
func (f *schemaCheck) run(cmd *cobra.Command, files []string) (wrong bool, err error) {
	if f.compatibility != "" && !slices.Contains(compatibilities, f.compatibility) {
		return false, fmt.Errorf("--compatibility is %q; it is one of %s", f.compatibility, strings.Join(compatibilities, ", "))
	}
	if f.applied && len(f.against) > 0 {
		return false, errors.New("the versions before are those of --against or of --applied, not of both")
	}
	docs, err := f.read(cmd, files)
	if err != nil {
		return false, err
	}
	e, err := f.event(cmd, docs)
	if err != nil {
		return false, err
	}
	before, err := f.before(cmd, docs)
	if err != nil {
		return false, err
	}
	v, err := validate.New()
	if err != nil {
		return false, err
	}
	for _, d := range docs {
		old := before(d)
		said := judge(v, d, old, e)
		wrong = wrong || len(said) > 0
		switch {
		case len(said) > 0:
		case old == nil && (f.applied || len(f.against) > 0):
			said = []string{"is right, and has no version before"}
		default:
			said = []string{"is right"}
		}
		for _, s := range said {
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", place(d), s); err != nil {
				return false, err
			}
		}
	}
	return wrong, nil
}

// place is where a Schema stands, and its name where it has one.
func place(d manifest.Document) string {
	if standsAlone(d) {
		return d.File
	}
	return fmt.Sprintf("%s:%d: %s", d.File, d.Line, resource.NameOf(d.Resource))
}

// standsAlone: it is a document, not a Schema of a manifest.
func standsAlone(d manifest.Document) bool { return d.Line == 0 }

// judge tells what is wrong with a Schema, with its change from old, and with an
// event by it; old and e may be nil.
func judge(v *validate.Validator, d manifest.Document, old *configv1.Resource, e *event.Event) (said []string) {
	spec := d.Resource.GetSchema()
	for _, p := range v.Alone(d.Resource) {
		said = append(said, p.Field+": "+p.Message)
	}
	if len(said) > 0 {
		return said
	}
	if old != nil {
		for _, why := range schema.Incompatible(old.GetSchema(), spec) {
			said = append(said, schema.Field(spec)+": "+why)
		}
	}
	if e != nil {
		s, err := schema.Compile(spec)
		if err == nil {
			err = s.Check(e)
		}
		if err != nil {
			said = append(said, err.Error())
		}
	}
	return said
}

// before gives the version before of a Schema; nil where there is none.
func (f *schemaCheck) before(cmd *cobra.Command, docs []manifest.Document) (func(manifest.Document) *configv1.Resource, error) {
	old := map[string]*configv1.Resource{}
	switch {
	case f.applied:
		c, done, err := f.admin.dial()
		if err != nil {
			return nil, err
		}
		defer done()
		ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
		defer cancel()
		for _, d := range docs {
			if standsAlone(d) && f.name == "" {
				return nil, fmt.Errorf("%s has no name: --name says which Schema it is a version of", d.File)
			}
			name := resource.NameOf(d.Resource)
			got, err := c.Get(ctx, &adminv1.GetRequest{Name: name})
			if err != nil && status.Code(err) != codes.NotFound {
				return nil, err
			}
			old[name] = got.GetResource()
		}
	case len(f.against) > 0:
		was, err := f.read(cmd, f.against)
		if err != nil {
			return nil, fmt.Errorf("--against: %w", err)
		}
		for _, d := range was {
			// Of one that is none nothing can be said.
			if _, err := schema.Compile(d.Resource.GetSchema()); err != nil {
				return nil, fmt.Errorf("--against: %s: %w", place(d), err)
			}
			old[resource.NameOf(d.Resource)] = d.Resource
		}
		if len(docs) == 1 && len(was) == 1 { // whatever their names
			return func(manifest.Document) *configv1.Resource { return was[0].Resource }, nil
		}
		if slices.ContainsFunc(docs, standsAlone) || slices.ContainsFunc(was, standsAlone) {
			return nil, errors.New("documents without names are compared one with one: give one file and one --against")
		}
	}
	return func(d manifest.Document) *configv1.Resource { return old[resource.NameOf(d.Resource)] }, nil
}

// event is what is to be checked; nil for nothing.
func (f *schemaCheck) event(cmd *cobra.Command, docs []manifest.Document) (*event.Event, error) {
	data := cmd.Flags().Changed("data")
	switch {
	case data && f.events != "":
		return nil, errors.New("give --data or --event, not both")
	case !data && f.contentType != "":
		return nil, errors.New("--content-type is that of --data, which is not given")
	case !data && f.events == "":
		return nil, nil
	case len(docs) != 1:
		return nil, fmt.Errorf("the files have %d Schemas: data are checked against one, give its file", len(docs))
	case data:
		b, err := readData(cmd, f.data)
		if err != nil {
			return nil, err
		}
		media := "application/json"
		switch s := docs[0].Resource.GetSchema(); {
		case s.GetAvro() != nil:
			media = "application/avro"
		case s.GetProtobuf() != nil:
			media = "application/protobuf"
		}
		return &event.Event{DataContentType: cmp.Or(f.contentType, media), Data: b}, nil
	}
	b, err := readData(cmd, "@"+f.events)
	if err != nil {
		return nil, fmt.Errorf("--event: %w", err)
	}
	e, err := cloudevents.DecodeJSON(b)
	if err != nil {
		return nil, fmt.Errorf("--event: %w", err)
	}
	return &e, nil
}

// read reads the Schemas of files: of manifests, and documents that stand alone.
func (f *schemaCheck) read(cmd *cobra.Command, files []string) ([]manifest.Document, error) {
	var out []manifest.Document
	for _, file := range files {
		spec, err := f.document(file)
		if err != nil {
			return nil, err
		}
		if spec != nil {
			out = append(out, manifest.Document{File: file, Resource: &configv1.Resource{
				Metadata: &configv1.Metadata{Namespace: f.namespace, Name: cmp.Or(f.name, "document")}, Spec: &configv1.Resource_Schema{Schema: spec}}})
			continue
		}
		docs, err := readManifests(cmd, []string{file}, f.namespace)
		if err != nil {
			return nil, err
		}
		out = append(out, slices.DeleteFunc(docs, func(d manifest.Document) bool { return d.Resource.GetSchema() == nil })...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there are no Schemas in %s", strings.Join(files, ", "))
	}
	for _, d := range out {
		if f.compatibility != "" {
			d.Resource.GetSchema().Compatibility = configv1.Compatibility(configv1.Compatibility_value["COMPATIBILITY_"+strings.ToUpper(f.compatibility)])
		}
	}
	return out, nil
}

// document reads a schema that stands alone; it is nil where file is of manifests.
func (f *schemaCheck) document(file string) (*configv1.Schema, error) {
	ext := filepath.Ext(file)
	switch ext {
	case ".proto":
		return nil, fmt.Errorf("%s: descriptors are taken, not their source: protoc --include_imports --descriptor_set_out=FILE.binpb, or buf build, makes them", file)
	case ".json", ".avsc", ".binpb", ".desc", ".pb", ".protoset":
	default:
		return nil, nil
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return nil, nil
	}
	r, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, manifest.MaxBytes))
	if err != nil {
		return nil, err
	}
	switch ext {
	case ".json":
		var m struct{ APIVersion *string }
		if json.NewDecoder(bytes.NewReader(b)).Decode(&m) == nil && m.APIVersion != nil {
			return nil, nil
		}
		return &configv1.Schema{Format: &configv1.Schema_Json{Json: &configv1.JsonSchema{Document: string(b)}}}, nil
	case ".avsc":
		return &configv1.Schema{Format: &configv1.Schema_Avro{Avro: &configv1.AvroSchema{Document: string(b)}}}, nil
	}
	if f.message == "" {
		return nil, fmt.Errorf("%s has descriptors: --message says of which message data are", file)
	}
	return &configv1.Schema{Format: &configv1.Schema_Protobuf{Protobuf: &configv1.ProtobufSchema{Descriptors: b, Message: f.message}}}, nil
}
