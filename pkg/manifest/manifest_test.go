package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
)

const good = `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: main, labels: {team: "1"}}
spec:
  embedded:
---
# a comment, and an empty document
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata:
  name: billing
spec:
  topics: [orders, "audit.>"]
  filter: {all: [{exact: {type: a}}, {not: {prefix: {subject: b}}}]}
  start: beginning
  push: {url: "http://127.0.0.1:1/", timeout: 500ms}
  ack_timeout: 1m30s
  maxInFlight: 10
  retry: {max_attempts: 3}
---
{"apiVersion": "weft/v1alpha1", "kind": "Topic", "metadata": {"namespace": "demo", "name": "orders"},
 "spec": {"store": "main", "max_event_bytes": "64KiB", "retention": {"max_bytes": "2GiB", "max_age": "24h"}, "needs": {"durability": "DISK"}}}
`

func TestDecode(t *testing.T) {
	docs, err := Decode("f.yaml", []byte(good), "demo")
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 3 || docs[0].Resource.GetEventStore().GetEmbedded() == nil || docs[1].Resource.Name != "subscription/demo/billing" {
		t.Fatalf("%v", docs)
	}
	s := docs[1].Resource.GetSubscription()
	if s.AckTimeout.AsDuration().Seconds() != 90 || s.MaxInFlight != 10 || s.Start != configv1.Start_START_BEGINNING || s.GetPush().Timeout.AsDuration().Milliseconds() != 500 || len(s.Filter.All) != 2 {
		t.Errorf("%v", s)
	}
	if r := docs[2].Resource.GetTopic(); r.Retention.MaxBytes != 2<<30 || r.MaxEventBytes != 64<<10 || r.Needs.Durability != configv1.Durability_DURABILITY_DISK {
		t.Errorf("%v", r)
	}
	for _, d := range docs {
		y, err := YAML(d.Resource)
		if err != nil {
			t.Fatal(err)
		}
		j, err := JSON(d.Resource)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{y, j} {
			again, err := Decode("again", b, "")
			if err != nil || !proto.Equal(again[0].Resource, d.Resource) {
				t.Errorf("%v\n%s", err, b)
			}
		}
	}
}

func TestDecodeProblems(t *testing.T) {
	const head = "apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: x}\n"
	for name, tc := range map[string]struct{ in, want string }{
		"unknown field":     {head + "spec:\n  store: main\n  partitons: 4\n", "f.yaml:6:3: spec.partitons: is not a field; did you mean partitions?"},
		"unknown top field": {head + "specs: {}\n", "f.yaml:4:1: specs: is not a field of a resource; did you mean spec?"},
		"wrong type":        {head + "spec:\n  partitions: many\n", "f.yaml:5:15: spec.partitions: must be a number"},
		"not a list":        {"apiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: demo, name: x}\nspec:\n  topics: orders\n", "f.yaml:5:11: spec.topics: must be a list"},
		"number for text":   {head + "spec:\n  store: 5\n", "put it in quotes"},
		"bad duration":      {head + "spec:\n  retention: {max_age: 5 days}\n", "must be a duration"},
		"bad enum":          {head + "spec:\n  needs: {durability: eternal}\n", "must be one of process, disk, replicated"},
		"two of a oneof":    {"apiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: demo, name: x}\nspec:\n  embedded: {}\n  rocketmq: {name_servers: [a]}\n", "stands beside embedded"},
		"twice":             {head + "spec:\n  store: a\n  store: b\n", "f.yaml:6:3: spec.store: is there twice"},
		"kind":              {"apiVersion: weft/v1alpha1\nkind: Topik\n", `"Topik" is not a kind; did you mean Topic?`},
		"no kind":           {"apiVersion: weft/v1alpha1\nmetadata: {namespace: demo, name: x}\n", "kind: is missing"},
		"version":           {"apiVersion: weft/v9\nkind: Topic\nmetadata: {namespace: demo, name: x}\n", "this program knows weft/v1alpha1"},
		"no namespace":      {"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {name: x}\n", "--namespace"},
		"syntax":            {"apiVersion: weft/v1alpha1\n  kind: [\n", "f.yaml:2:1"},
		"alias":             {head + "spec: &a\n  store: main\n", "anchors and aliases"},
		"bad UTF-8":         {head + "spec:\n  store: \"ü\xff\"\n", "f.yaml:5:12: is not UTF-8"},
		"control character": {head + "spec:\n  store: a\x00b\n", "f.yaml:5:11: has the control character U+0000"},
		"no text at all":    {"\x1f\x8b\x08\x00", "f.yaml:1:1: has the control character"},
		"open bracket":      {head + "spec: {store: [}\n", "f.yaml:4:1: did not find expected node content"},
		"wrong indentation": {head + "spec:\n   store: a\n  partitions: 1\n", "f.yaml:6:1: did not find expected key"},
		"tab":               {head + "spec:\n\tstore: a\n", "f.yaml:5:1: found character that cannot start any token"},
		"too large":         {head + strings.Repeat("# comment\n", MaxBytes/10), "f.yaml:1:1: has more than 8388608 bytes"},
		"too deep":          {"apiVersion: weft/v1alpha1\nkind: Route\nmetadata: {namespace: demo, name: x}\nspec:\n  topic: a\n  rules: [{filter: " + strings.Repeat("{not: ", 40) + "{exact: {a: b}}" + strings.Repeat("}", 40) + "}]\n", "f.yaml:6:"},
		"number too large":  {head + "spec:\n  partitions: 99999999999\n", "f.yaml:5:15: spec.partitions: must be a number from 0 to 4294967295"},
		"size too large":    {head + "spec:\n  max_event_bytes: 4GiB\n", `f.yaml:5:20: spec.max_event_bytes: must be a number from 0 to 4294967295, or a size such as "64KiB" or "1MiB", not "4GiB"`},
		"no size":           {head + "spec:\n  partitions: 1KiB\n", `f.yaml:5:15: spec.partitions: must be a number from 0 to 4294967295, not "1KiB"`},
		"merge key":         {head + "spec:\n  <<: {store: x}\n", "f.yaml:5:3: spec.<<: is not a field"},
		"list":              {"- 1\n- 2\n", "must be a mapping"},
	} {
		_, err := Decode("f.yaml", []byte(tc.in), "")
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v\nwant %s", name, err, tc.want)
		}
	}
	// All at once.
	_, err := Decode("f.yaml", []byte(head+"spec:\n  a: 1\n  b: 2\n---\n"+head+"spec:\n  c: 3\n"), "")
	if n := strings.Count(err.Error(), "is not a field"); n != 3 {
		t.Errorf("%d of 3 problems are named: %v", n, err)
	}
}

// FuzzDecode: what decodes can be written and decodes to the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	examples, err := filepath.Glob("../../examples/*/*.yaml")
	if err != nil || len(examples) == 0 {
		f.Fatal(examples, err)
	}
	for _, name := range examples {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		docs, err := Decode("f", b, "demo")
		if err != nil {
			return
		}
		for _, d := range docs {
			y, err := YAML(d.Resource)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode("again", y, "")
			if err != nil || len(again) != 1 || !proto.Equal(again[0].Resource, d.Resource) {
				t.Fatalf("%v\n%s\n%v", err, y, d.Resource)
			}
		}
	})
}

// TestJSONObjects: objects that follow each other are documents, with the lines
// that they stand on.
func TestJSONObjects(t *testing.T) {
	const one = `{"apiVersion": "weft/v1alpha1", "kind": "Topic", "metadata": {"namespace": "demo", "name": "NAME"}, "spec": {"store": "main"}}`
	a, b := strings.Replace(one, "NAME", "a", 1), strings.Replace(one, "NAME", "b", 1)
	for in, line := range map[string]int{a + "\n" + b: 2, "\n" + a + "\n\n" + b + "\n": 4, a: 0, a + " " + b: 0, a + b: 0, a + "\n  " + b: 2} {
		docs, err := Decode("x.json", []byte(in), "")
		want := strings.Count(in, "kind")
		if err != nil || len(docs) != want || line > 0 && docs[1].Line != line {
			t.Errorf("%q: %v %v", in, docs, err)
		}
	}
	bad := strings.Replace(b, "store", "stroe", 1)
	if _, err := Decode("x.json", []byte(a+"\n"+bad), ""); err == nil || !strings.HasPrefix(err.Error(), "x.json:2:") {
		t.Errorf("%v", err)
	}
}

// TestJSONSurrogates: JSON may write a character as a pair of surrogates, as many programs do.
func TestJSONSurrogates(t *testing.T) {
	const in = `{"apiVersion": "weft/v1alpha1", "kind": "Topic", "metadata": {"namespace": "demo", "name": "a", "labels": {"x": "TEXT"}}, "spec": {"store": "main"}}`
	for text, want := range map[string]string{`\ud83d\uDE00!`: "\U0001F600!", `\\ud83d\\ude00`: `\ud83d\ude00`, `\\\ud83d\ude00`: "\\\U0001F600", `\u00e9\n`: "é\n", `\"\ud83d\ude00\"`: "\"\U0001F600\""} {
		docs, err := Decode("x.json", []byte(strings.Replace(in, "TEXT", text, 1)), "")
		if err != nil || docs[0].Resource.Metadata.Labels["x"] != want {
			t.Errorf("%s: %v %v", text, docs, err)
		}
	}
	for _, half := range []string{`\ud83d`, `\ud83dx`, `\ude00\ud83d`, `\ud83d\u0041`} {
		if docs, err := Decode("x.json", []byte(strings.Replace(in, "TEXT", half, 1)), ""); err == nil {
			t.Errorf("%s: %v", half, docs)
		}
	}
}
