package weft

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
)

const orderSchema = `
apiVersion: weft/v1alpha1
kind: Schema
metadata: {namespace: demo, name: order}
spec:
  json: {document: '{"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "n": {"type": "integer"}}}'}
`

// TestSchemaCheck: schemas, their changes and data are judged from files as the
// control plane and proxies judge them, with where they are wrong and an exit status.
func TestSchemaCheck(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	order := write("order.yaml", orderSchema)
	other := strings.Replace(orderSchema, "name: order", "name: other", 1)
	two := write("mesh/two.yaml", orderSchema+"---"+other)
	narrower := write("narrower.yaml", strings.Replace(orderSchema, `["id"]`, `["id", "n"]`, 1)+"---"+other)
	broken := write("broken.yaml", strings.Replace(orderSchema, `"object"`, `"thing"`, 1))
	topic := write("mesh/topic.yaml", "apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: a}\nspec: {store: main}\n")
	event := write("event.json", `{"specversion": "1.0", "id": "7", "source": "/s", "type": "t", "data": {"id": 1}}`)
	document := write("order.json", `{"type": "string"}`)
	wider := write("wider.json", `{"type": ["string", "null"]}`)
	avro := write("reading.avsc", `"int"`)
	set, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(durationpb.File_google_protobuf_duration_proto)}})
	if err != nil {
		t.Fatal(err)
	}
	binpb, empty := write("duration.binpb", string(set)), write("empty", "")

	for name, tc := range map[string]struct {
		args string
		code int
		says string
	}{
		"right":                 {order, 0, order + ":2: schema/demo/order: is right\n"},
		"no schema":             {broken, 1, "schema/demo/order: spec.json.document: is no JSON Schema"},
		"a folder":              {filepath.Dir(two), 0, "schema/demo/other: is right\n"},
		"other kinds alone":     {topic, 2, "weft: there are no Schemas in " + topic},
		"no file":               {dir + "/none.avsc", 2, "no such file"},
		"no manifest":           {dir + "/none.yaml", 2, "no such file"},
		"no argument":           {"", 2, "usage: weft schema check FILE"},
		"no flag":               {order + " --colour", 2, "weft schema check --help"},
		"a document":            {document, 0, document + ": is right\n"},
		"its source":            {dir + "/a.proto", 2, "--include_imports"},
		"data":                  {order + ` --data {"id":"1"}`, 0, "is right\n"},
		"other data":            {order + ` --data {"id":"1","n":1.5}`, 1, "the data do not conform at /n: got number, want integer"},
		"another media type":    {order + ` --data <id/> --content-type text/xml`, 1, "datacontenttype is text/xml, the schema is of JSON"},
		"an event":              {order + " --event " + event, 1, "at /id: got number, want string"},
		"data of two":           {two + " --data 1", 2, "the files have 2 Schemas"},
		"data twice":            {order + " --data 1 --event " + event, 2, "not both"},
		"a media type alone":    {order + " --content-type a/b", 2, "which is not given"},
		"Avro":                  {avro + " --data 2", 0, "is right\n"},
		"no Avro":               {avro + " --data @" + order, 1, "do not conform"},
		"Protobuf":              {binpb + " --message google.protobuf.Duration --data @" + empty, 0, binpb + ": is right\n"},
		"data of no file":       {order + " --data @" + dir + "/none", 2, "--data: "},
		"of no message":         {binpb, 2, "--message says"},
		"of another message":    {binpb + " --message a.B", 1, "spec.protobuf: no message a.B"},
		"no Protobuf":           {binpb + " --message google.protobuf.Duration --data 1", 1, "do not conform"},
		"wider":                 {wider + " --against " + document, 0, "is right\n"},
		"wider, of full":        {wider + " --against " + document + " --compatibility full", 1, wider + ": spec.json.document: not forward compatible: "},
		"no compatibility":      {wider + " --compatibility none --against " + avro, 0, "is right\n"},
		"a compatibility":       {wider + " --compatibility some", 2, `--compatibility is "some"; it is one of backward, forward, full, none`},
		"another format":        {wider + " --against " + avro, 1, "another format"},
		"by name":               {narrower + " --against " + two, 1, `schema/demo/order: spec.json.document: not backward compatible: at the root: the property "n" is required`},
		"by name, as it was":    {narrower + " --against " + two, 1, "schema/demo/other: is right\n"},
		"nothing before":        {narrower + " --against " + order, 1, "schema/demo/other: is right, and has no version before\n"},
		"two of one":            {two + " --against " + document, 2, "one with one"},
		"a broken one before":   {order + " --against " + broken, 2, "--against: " + broken + ":2: schema/demo/order: spec.json.document"},
		"two kinds of before":   {order + " --applied --against " + two, 2, "not of both"},
		"applied, without name": {document + " --applied", 2, "--name says which Schema"},
		"no control plane":      {order + " --applied --server 127.0.0.1:1", 2, "weft: "},
	} {
		out, errOut, code := run(t.Context(), append([]string{"schema", "check"}, strings.Fields(tc.args)...)...)
		if code != tc.code || !strings.Contains(out+errOut, tc.says) {
			t.Errorf("%s: status %d, want %d and %q in\n%s%s", name, code, tc.code, tc.says, out, errOut)
		}
	}
	if _, errOut, code := run(t.Context(), "diff", "--colour"); code != 2 {
		t.Errorf("weft diff ends with %d: %s", code, errOut)
	}
}

// TestSchemaCheckApplied: what a change breaks is told from what the control plane
// has, and nothing is changed.
func TestSchemaCheckApplied(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	order := file(t, "order.yaml", orderSchema)
	m.want(0, []string{"schema", "check", order, "--applied"}, "is right, and has no version before")
	m.must("apply", "-f", order)
	narrower := file(t, "narrower.yaml", strings.Replace(orderSchema, `["id"]`, `["id", "n"]`, 1))
	m.want(1, []string{"schema", "check", narrower, "--applied"}, "not backward compatible")
	m.want(0, []string{"schema", "check", narrower, "--applied", "--compatibility", "forward"}, "schema/demo/order: is right\n")
	m.want(0, []string{"schema", "check", file(t, "any.json", "true"), "--applied", "--name", "order"}, "is right\n")
	m.want(1, []string{"schema", "check", file(t, "none.json", "false"), "--applied", "--name", "order"}, "not backward compatible")
}
