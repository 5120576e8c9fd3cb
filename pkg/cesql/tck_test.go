package cesql

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/cloudevents/sdk-go/v2"
	"go.yaml.in/yaml/v3"

	"github.com/weft-mesh/weft/pkg/event"
)

// full is what the conformance cases judge where they bring no event of their own.
func full() event.Event {
	return event.Event{ID: "full-event", Source: "/mock/source", Type: "com.example.FullEvent", Subject: "topic", Time: "2020-03-21T12:34:56.78Z",
		DataSchema: "http://example.com/schema", DataContentType: "text/json", Ext: []event.Attr{{Name: "exbool", Value: "true"}, {Name: "exint", Value: "42"}, {Name: "exstring", Value: "exstring"}}}
}

// TestConformance: the conformance cases of CloudEvents SQL, as the SDK's module
// has them, all pass.
func TestConformance(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudevents/sdk-go/sql/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "test", "tck", "*.yaml"))
	if err != nil || len(files) < 18 {
		t.Fatalf("%d files of cases: %v", len(files), err)
	}
	cases := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Name  string
			Tests []struct {
				Name, Expression, Error string
				Result                  any
				Event                   map[string]any
				EventOverrides          map[string]any `yaml:"eventOverrides"`
			}
		}
		if err := yaml.Unmarshal(b, &doc); err != nil {
			t.Fatal(err)
		}
		for _, tc := range doc.Tests {
			cases++
			what := doc.Name + "/" + tc.Name + ": " + tc.Expression
			e := full()
			if tc.Event != nil {
				e = event.Event{}
				override(&e, tc.Event)
			}
			override(&e, tc.EventOverrides)
			x, err := Compile(tc.Expression)
			if tc.Error == "parse" || tc.Error == "missingFunction" {
				if err == nil {
					t.Errorf("%s: is compiled", what)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			got, err := x.eval(&e)
			if class := classOf(err); class != tc.Error {
				t.Errorf("%s: error %q (%v), want %q", what, class, err, tc.Error)
			}
			if want := valueOf(tc.Result); !same(got, want) {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
		}
	}
	if cases < 150 {
		t.Errorf("%d cases", cases)
	}
}

// same compares with what is wanted; the mesh has attributes in their string form.
func same(got, want value) bool {
	got, err := got.cast(want.kind)
	return err == nil && got == want
}

func valueOf(v any) value {
	switch v := v.(type) {
	case bool:
		return boolean(v)
	case int:
		return integer(int32(v))
	case time.Time:
		return text(v.Format(time.RFC3339Nano))
	}
	return text(fmt.Sprint(v))
}

func classOf(err error) string {
	for class, is := range map[string]error{"math": ErrMath, "cast": ErrCast, "missingAttribute": ErrMissingAttribute, "functionEvaluation": ErrFunction} {
		if isErr(err, is) {
			return class
		}
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func override(e *event.Event, with map[string]any) {
	for k, v := range with {
		s := valueOf(v).toString().s
		for name, field := range map[string]*string{"id": &e.ID, "source": &e.Source, "type": &e.Type, "subject": &e.Subject, "time": &e.Time, "dataschema": &e.DataSchema, "datacontenttype": &e.DataContentType} {
			if name == k {
				*field = s
			}
		}
		switch k {
		case "id", "source", "type", "subject", "time", "dataschema", "datacontenttype", "specversion":
		default:
			e.Ext = event.With(e.Ext, k, s)
		}
	}
}

// toSDK is e as the SDK has it.
func toSDK(e *event.Event) sdk.Event {
	out := sdk.NewEvent()
	out.SetID(e.ID)
	out.SetSource(e.Source)
	out.SetType(e.Type)
	if e.Subject != "" {
		out.SetSubject(e.Subject)
	}
	for _, a := range e.Ext {
		out.SetExtension(a.Name, a.Value)
	}
	return out
}
