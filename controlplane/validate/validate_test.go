package validate

import (
	"flag"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/manifest"
	"github.com/weft-mesh/weft/pkg/resource"
)

var update = flag.Bool("update", false, "write what is found into testdata")

// config is a View.
type config map[string]*configv1.Resource

func configOf(rs ...*configv1.Resource) config {
	c := config{}
	for _, r := range rs {
		c[resource.NameOf(r)] = r
	}
	return c
}

func (c config) Resource(name string) *configv1.Resource { return c[name] }

// Find looks at everything, in order.
func (c config) Find(key string) iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		for _, name := range slices.Sorted(maps.Keys(c)) {
			if r := c[name]; slices.Contains(Keys(r), key) && !yield(r) {
				return
			}
		}
	}
}

// a case of a file in testdata: sections that begin with "-- name", after a line
// "== title". "before" of the first case is that of all.
type testCase struct {
	title    string
	sections map[string]string
}

func read(t *testing.T, path string) []testCase {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var cases []testCase
	section := ""
	for line := range strings.Lines(string(b)) {
		text := strings.TrimSuffix(line, "\n")
		if title, ok := strings.CutPrefix(text, "== "); ok {
			cases = append(cases, testCase{title, map[string]string{}})
			continue
		}
		if s, ok := strings.CutPrefix(text, "-- "); ok {
			section = s
			continue
		}
		cases[len(cases)-1].sections[section] += line
	}
	return cases
}

func write(t *testing.T, path string, cases []testCase) {
	t.Helper()
	var b strings.Builder
	for _, c := range cases {
		b.WriteString("== " + c.title + "\n")
		for _, s := range []string{"before", "put", "gone", "problems"} {
			if text, ok := c.sections[s]; ok {
				b.WriteString("-- " + s + "\n" + text)
			}
		}
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, title, yaml string) []*configv1.Resource {
	t.Helper()
	if yaml == "" {
		return nil
	}
	docs, err := manifest.Decode(title, []byte(yaml), "demo")
	if err != nil {
		t.Fatal(err)
	}
	var out []*configv1.Resource
	for _, d := range docs {
		out = append(out, d.Resource)
	}
	return out
}

// text is problems as the files have them.
func text(problems []Problem) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.Resource+": "+p.Field+" ["+p.Rule+"]: "+p.Message+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// TestGolden: what is found wrong in the cases of testdata. alone.txt is about
// resources by themselves, together.txt about what they make of a configuration.
// With -update the files are written anew.
func TestGolden(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"alone", "together"} {
		path := filepath.Join("testdata", file+".txt")
		cases := read(t, path)
		before := configOf(decode(t, "before", cases[0].sections["before"])...)
		for i, c := range cases {
			put := decode(t, c.title, c.sections["put"])
			var problems []Problem
			for _, r := range put {
				problems = append(problems, v.Alone(r)...)
			}
			if file == "together" {
				if len(problems) > 0 {
					t.Errorf("%s is wrong alone: %v", c.title, problems)
				}
				problems = Together(before, put, strings.Fields(c.sections["gone"]))
			}
			got := text(problems)
			if *update {
				cases[i].sections["problems"] = got
			} else if got != c.sections["problems"] {
				t.Errorf("%s: %s: found\n%swant\n%s", file, c.title, got, c.sections["problems"])
			}
		}
		if *update {
			write(t, path, cases)
		}
	}
}

// TestUnknownFields: a field of another version is refused where it is, however
// deep; so is one that a user may not write.
func TestUnknownFields(t *testing.T) {
	v, err := New()
	if err != nil {
		t.Fatal(err)
	}
	strange := protowire.AppendVarint(protowire.AppendTag(nil, 1999, protowire.VarintType), 1)
	for want, change := range map[string]func(r *configv1.Resource){
		"spec":                     func(r *configv1.Resource) { r.ProtoReflect().SetUnknown(strange) },
		"metadata":                 func(r *configv1.Resource) { r.Metadata.ProtoReflect().SetUnknown(strange) },
		"spec.filter":              func(r *configv1.Resource) { r.GetSubscription().Filter.ProtoReflect().SetUnknown(strange) },
		"spec.filter.all[1].not":   func(r *configv1.Resource) { r.GetSubscription().Filter.All[1].Not.ProtoReflect().SetUnknown(strange) },
		"spec.push":                func(r *configv1.Resource) { r.GetSubscription().GetPush().ProtoReflect().SetUnknown(strange) },
		"spec.retry.min_backoff":   func(r *configv1.Resource) { r.GetSubscription().Retry.MinBackoff.ProtoReflect().SetUnknown(strange) },
		"metadata.created_at.what": nil,
	} {
		r := decode(t, "", `{apiVersion: weft/v1alpha1, kind: Subscription, metadata: {name: s}, spec: {topics: [a], push: {url: "https://x.example/"},
 filter: {all: [{exact: {type: a}}, {not: {exact: {type: b}}}]}, retry: {min_backoff: 1s}}}`)[0]
		if change == nil {
			if p := v.Alone(r); len(p) != 0 {
				t.Errorf("as it is: %v", p)
			}
			continue
		}
		change(r)
		p := v.Alone(r)
		if len(p) != 1 || p[0].Field != want || p[0].Rule != "unknown-field" || p[0].Resource != "subscription/demo/s" {
			t.Errorf("%s: %v", want, p)
		}
	}
	for _, k := range resource.Kinds() {
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "x"}}
		m := r.ProtoReflect()
		for f, i := m.Descriptor().Fields(), 0; i < f.Len(); i++ {
			if string(f.Get(i).Name()) == k.Field {
				m.Set(f.Get(i), m.NewField(f.Get(i)))
			}
		}
		found := slices.ContainsFunc(v.Alone(r), func(p Problem) bool { return p.Rule == "system-kind" })
		if found != k.System {
			t.Errorf("%s: refused as a kind of the system: %v", k.Kind, found)
		}
	}
	if p := v.Alone(&configv1.Resource{}); len(p) == 0 || p[0].Field != "spec" {
		t.Errorf("nothing: %v", p)
	}
}
