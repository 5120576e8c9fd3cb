package eventcel

import (
	"fmt"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

func sample() *event.Event {
	return &event.Event{ID: "1", Source: "/shop", Type: "order.created", Subject: "eu/7", DataContentType: "application/json", Ext: []event.Attr{{Name: "debug", Value: "x"}, {Name: "region", Value: "eu"}},
		Data: []byte(`{"id":9007199254740993,"total":12.5,"items":[{"sku":"a","n":2},{"sku":"b","n":1}],"note":"ä<>"}`)}
}

func TestCondition(t *testing.T) {
	a := Access{Event: sample(), Principal: "demo/alice", Groups: []string{"demo/staff"}, Action: "publish", Topic: "orders"}
	for src, want := range map[string]string{
		"event.type == 'order.created'":                                                     "true",
		"event['region'] in ['eu', 'us'] && topic == 'orders'":                              "true",
		"has(event.zone)":                                                                   "false",
		"has(event.region) && !has(event.dataschema)":                                       "true",
		"'demo/staff' in groups && principal.endsWith('/alice')":                            "true",
		"action == 'subscribe'":                                                             "false",
		"event.subject.split('/')[0] == event.region":                                       "true",
		"event.exists(k, k == 'debug') && size(event) == 8":                                 "true",
		"event.type.matches('^order[.][a-z]+$')":                                            "true",
		"event.zone == 'x'":                                                                 "error",
		"event.zone == 'x' || event.region == 'eu'":                                         "true",
		"event.exists(a, event.exists(b, event.exists(c, event.exists(d, a+b+c+d == ''))))": "error",
		"event == event":                                                                    "true",
	} {
		c, err := CompileCondition(src)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		got := "error"
		if ok, err := c.Holds(a); err == nil {
			got = fmt.Sprint(ok)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", src, got, want)
		}
	}
	for src, want := range map[string]string{
		"":                                      "Syntax error",
		"event.type":                            "is a string, must be a bool",
		"event.type == 1":                       "line 1, column 12",
		"data.x == 1":                           "undeclared reference to 'data'",
		"event.type.matches('(')":               "matches",
		"event.type.matches('(a{1000}){1000}')": "matches",
		strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200):                                       "recursion",
		strings.Repeat(" ", MaxLength) + "true":                                                            "an expression may have 4096",
		strings.Repeat("[1,2,3,4,5,6,7,8,9,10].map(x, ", 5) + "x" + strings.Repeat(")", 5) + ".size() > 0": "costs at least",
	} {
		if _, err := CompileCondition(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", src, err, want)
		}
	}
}

func transform(attributes map[string]string, data string) *configv1.Transform {
	return &configv1.Transform{Language: &configv1.Transform_Cel{Cel: &configv1.CelTransform{Attributes: attributes, Data: data}}}
}

func TestTransform(t *testing.T) {
	tr, err := CompileTransform(transform(map[string]string{"type": "event.type + '.v2'", "debug": "null", "items": "data.items.size()", "subject": "null", "big": "data.total > 10.0"},
		"{'id': data.id, 'double': data.total * 2.0, 'skus': data.items.map(i, i.sku), 'note': data.note, 'none': null, 'type': event.type}"))
	if err != nil {
		t.Fatal(err)
	}
	e := sample()
	got, err := tr.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Data) != `{"double":25,"id":9007199254740993,"none":null,"note":"ä<>","skus":["a","b"],"type":"order.created"}` {
		t.Errorf("%s", got.Data)
	}
	if got.Type != "order.created.v2" || got.Subject != "" || got.ID != "1" || got.Source != "/shop" || fmt.Sprint(got.Ext) != "[{big true} {items 2} {region eu}]" || got.DataContentType != "application/json" {
		t.Errorf("%+v", got)
	}
	if fmt.Sprint(e) != fmt.Sprint(sample()) {
		t.Errorf("the event itself has changed: %+v", e)
	}
	// Without data nothing of it is looked at.
	tr, err = CompileTransform(transform(map[string]string{"region": "'us'"}, ""))
	if err != nil {
		t.Fatal(err)
	}
	e.Data, e.DataContentType = []byte{0xff}, "image/png"
	if got, err = tr.Apply(e); err != nil || &got.Data[0] != &e.Data[0] || got.DataContentType != "image/png" {
		t.Errorf("%+v %v", got, err)
	}
	if tr, err := CompileTransform(nil); tr != nil || err != nil {
		t.Error(tr, err)
	}
	// What is beyond an int of 64 bits stays as it is as far as a uint has it.
	if tr, err = CompileTransform(transform(nil, "{'id': data.id, 'same': data.id == 18446744073709551615u, 'n': data.n}")); err != nil {
		t.Fatal(err)
	}
	e.Data, e.DataContentType = []byte(`{"id": 18446744073709551615, "n": -9223372036854775808}`), ""
	if got, err = tr.Apply(e); err != nil || string(got.Data) != `{"id":18446744073709551615,"n":-9223372036854775808,"same":true}` {
		t.Errorf("%s %v", got.Data, err)
	}
	var none *Transform
	if got, err := none.Apply(e); got != e || err != nil {
		t.Error(got, err)
	}
}

// TestTransformFull: an event that has as many attributes as a publisher may give it, and
// what the mesh has added, is transformed; a transform adds no more than a publisher may.
func TestTransformFull(t *testing.T) {
	compile := func(name string) *Transform {
		tr, err := CompileTransform(&configv1.Transform{Language: &configv1.Transform_Cel{Cel: &configv1.CelTransform{Attributes: map[string]string{name: "'x'"}}}})
		if err != nil {
			t.Fatal(err)
		}
		return tr
	}
	e := &event.Event{ID: "1", Source: "/s", Type: "t"}
	for i := range event.MaxAttributes {
		e.Ext = event.With(e.Ext, fmt.Sprintf("a%02d", i), "v")
	}
	if _, err := compile("more").Apply(e); err == nil {
		t.Error("a transform gives an event more attributes than it may have")
	}
	e.Ext = event.With(e.Ext, event.AttrTraceParent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if out, err := compile("type").Apply(e); err != nil || out.Type != "x" {
		t.Errorf("%v, %v", out, err)
	}
}

func TestTransformFails(t *testing.T) {
	for name, tc := range map[string]struct {
		attributes map[string]string
		data, in   string
		kind, want string
	}{
		"not JSON":        {nil, "data", "{", "application/json", "data is not JSON"},
		"more than JSON":  {nil, "data", "{} {}", "application/json", "something follows"},
		"other data":      {nil, "data", "{}", "text/plain", "not JSON by datacontenttype"},
		"missing":         {nil, "data.x", "{}", "a/b+json", "no such key"},
		"deep":            {nil, "data", strings.Repeat("[", 65) + strings.Repeat("]", 65), "", "64 deep"},
		"large":           {nil, "data", `"` + strings.Repeat("a", MaxData) + `"`, "", "1 MiB"},
		"made large":      {nil, "[data, data, data]", `"` + strings.Repeat("a", MaxData/2) + `"`, "", "1 MiB"},
		"a number":        {nil, "data", "1e999", "", "beyond 64 bits"},
		"no number":       {nil, "0.0 / 0.0", "", "", "JSON cannot have"},
		"no key":          {nil, "{1: 2}", "", "", "key that is not a string"},
		"a type":          {nil, "string", "", "", "JSON does not have"},
		"empty":           {map[string]string{"type": "''"}, "", "", "", "attribute type: is empty"},
		"removes type":    {map[string]string{"type": "null"}, "", "", "", `attribute "type" is required`},
		"a list":          {map[string]string{"x": "[1]"}, "", "", "", "attribute x: is a list"},
		"a bad value":     {map[string]string{"x": `"a\nb"`}, "", "", "", "control character"},
		"a bad time":      {map[string]string{"time": "'now'"}, "", "", "", "RFC 3339"},
		"grows":           {nil, "data.map(a, data.map(b, data.map(c, a + b + c)))", "[" + strings.Repeat("1,", 200) + "1]", "", "cost limit"},
		"grows as string": {nil, "data.map(a, data.map(b, a + b + b + b + b))", "[" + strings.Repeat(`"`+strings.Repeat("x", 1000)+`",`, 100) + `""]`, "", "cost limit"},
	} {
		tr, err := CompileTransform(transform(tc.attributes, tc.data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e := sample()
		e.Data, e.DataContentType = []byte(tc.in), tc.kind
		if _, err := tr.Apply(e); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	for field, tr := range map[string]*configv1.Transform{
		"cel":                   {},
		"cel.attributes.id":     transform(map[string]string{"id": "'x'"}, ""),
		"cel.attributes.source": transform(map[string]string{"source": "'x'"}, ""),
		"cel.attributes.Bad":    transform(map[string]string{"Bad": "'x'"}, ""),
		"cel.attributes.data":   transform(map[string]string{"data": "'x'"}, ""),
		// No event may have it, so that each would be a dead letter.
		"cel.attributes.database64": transform(map[string]string{"database64": "'x'"}, ""),
		"cel.attributes.x":          transform(map[string]string{"x": "principal"}, ""),
		"cel.data":                  transform(nil, "data."),
	} {
		_, err := CompileTransform(tr)
		if fe, ok := err.(*FieldError); !ok || fe.Field != field || fe.Reason == "" { //nolint:errorlint // the contract is the type itself
			t.Errorf("%s: %v", field, err)
		}
	}
}

// FuzzCompile: whatever is written is refused or can be evaluated, within bounds.
func FuzzCompile(f *testing.F) {
	for _, src := range []string{"event.type == 'a' && has(event.region)", "data.items.map(i, i.sku)", "{'a': [1u, 2.5, null, b'x', timestamp('2020-01-01T00:00:00Z')]}", "event.type.matches(event.subject)", "'%s'.format([event])", "groups.exists(g, g == principal)"} {
		f.Add(src, `{"items":[{"sku":"a"}]}`)
	}
	f.Fuzz(func(t *testing.T, src, data string) {
		e := sample()
		e.Data = []byte(data)
		if c, err := CompileCondition(src); err == nil {
			if ok, err := c.Holds(Access{Event: e, Principal: "demo/a", Action: "publish", Topic: "t"}); ok && err != nil {
				t.Errorf("%q holds with %v", src, err)
			}
		}
		if tr, err := CompileTransform(transform(map[string]string{"x": src}, src)); src != "" && err == nil {
			if got, err := tr.Apply(e); err == nil && (got.Validate() != nil || got.ID != e.ID) {
				t.Errorf("%q makes %+v", src, got)
			}
		}
	})
}

func BenchmarkTransform(b *testing.B) {
	tr, err := CompileTransform(transform(map[string]string{"type": "event.type + '.v2'"}, "{'id': data.id, 'skus': data.items.map(i, i.sku)}"))
	if err != nil {
		b.Fatal(err)
	}
	e := sample()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tr.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDear: what an event may cost.
func BenchmarkDear(b *testing.B) {
	c, err := CompileCondition("event.exists(a, event.exists(b, event.exists(c, event.exists(d, a+b+c+d == ''))))")
	if err != nil {
		b.Fatal(err)
	}
	r, err := CompileCondition("event.subject.matches(event.region) || event.subject.matches('(x+x+)+y')")
	if err != nil {
		b.Fatal(err)
	}
	e := sample()
	e.Subject = strings.Repeat("x", event.MaxAttributeValue)
	for name, c := range map[string]*Condition{"nested": c, "regular": r} {
		b.Run("condition "+name, func(b *testing.B) {
			for b.Loop() {
				_, _ = c.Holds(Access{Event: e, Topic: "t"})
			}
		})
	}
	tr, err := CompileTransform(transform(nil, "data.map(a, data.map(b, data.map(c, a + b + c)))"))
	if err != nil {
		b.Fatal(err)
	}
	e.Data = []byte("[" + strings.Repeat("1,", 200) + "1]")
	b.Run("transform", func(b *testing.B) {
		for b.Loop() {
			_, _ = tr.Apply(e)
		}
	})
}
