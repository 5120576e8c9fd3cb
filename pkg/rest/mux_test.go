package rest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

func rule(method, path string) *configv1.HttpRule {
	return &configv1.HttpRule{Method: method, Path: path, Topic: "t", Attributes: map[string]string{"type": "a", "source": "/s"}}
}

func compiled(t testing.TB, r *configv1.HttpRule) *Rule {
	t.Helper()
	out, err := CompileRule(r)
	if err != nil {
		t.Fatalf("%v: %v", r, err)
	}
	return out
}

// TestMuxAgainstServeMux: what conflicts, and which rule is the most specific, is as
// net/http.ServeMux has it, on drawn patterns and paths.
func TestMuxAgainstServeMux(t *testing.T) {
	conflicts, matches := 0, 0
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
		draw := func() (method, path string) {
			for i := range 1 + rnd.IntN(4) {
				path += "/" + pick("a", "b", "c", fmt.Sprintf("{v%d}", i))
			}
			if rnd.IntN(4) == 0 {
				path += "/{rest...}"
			}
			return pick("POST", "POST", "PUT"), path
		}
		theirs, ours := http.NewServeMux(), &Mux{}
		var list [][2]string
		for range 6 {
			m, p := draw()
			var clash any
			func() {
				defer func() { clash = recover() }()
				theirs.Handle(m+" "+p, http.NotFoundHandler())
			}()
			mine := false
			for _, o := range list {
				mine = mine || Conflict(m, p, o[0], o[1])
			}
			if mine != (clash != nil) {
				t.Fatalf("seed %d: %s %s beside %v: conflict %v, of ServeMux %v", seed, m, p, list, mine, clash)
			}
			if mine {
				conflicts++
				continue
			}
			list = append(list, [2]string{m, p})
			if err := ours.Add(compiled(t, rule(m, p))); err != nil {
				t.Fatal(err)
			}
		}
		for range 30 {
			m, path := draw()
			path = strings.NewReplacer("{", "x", "}", "x", ".", "x").Replace(path)
			req := &http.Request{Method: m, URL: &url.URL{Path: path}, Host: "h"}
			_, want := theirs.Handler(req)
			if strings.Count(want, "/") > strings.Count(path, "/") {
				continue // it would redirect to the same path with a slash
			}
			p, err := ReadPath(path)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if r := ours.Find(m, p); r != nil {
				got = r.String()
				matches++
			}
			if got != want {
				t.Fatalf("seed %d: %s %s of %v: %q, of ServeMux %q", seed, m, path, list, got, want)
			}
		}
	}
	if conflicts < 500 || matches < 5000 {
		t.Errorf("%d conflicts, %d matches: the draw shows nothing", conflicts, matches)
	}
}

// TestMuxAll: the methods that a path takes.
func TestMuxAll(t *testing.T) {
	m := &Mux{}
	for _, r := range []*configv1.HttpRule{rule("", "/orders/{id}"), rule("DELETE", "/orders/{id}"), rule("PUT", "/orders/new"), rule("PATCH", "/{all...}"), rule("PUT", "/")} {
		if err := m.Add(compiled(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Add(compiled(t, rule("POST", "/orders/{other}"))); err == nil {
		t.Error("two rules of the same paths are there")
	}
	for path, want := range map[string]string{"/orders/new": "DELETE /orders/{id}, PATCH /{all...}, POST /orders/{id}, PUT /orders/new", "/orders": "PATCH /{all...}", "/": "PUT /", "/orders/new/x": "PATCH /{all...}"} {
		p, err := ReadPath(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range m.All(p) {
			got = append(got, r.String())
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%s: %s, want %s", path, s, want)
		}
	}
}

// TestRuleRefused: errors name the field.
func TestRuleRefused(t *testing.T) {
	with := func(name, text string) *configv1.HttpRule {
		r := rule("", "/orders/{id}")
		r.Attributes[name] = text
		return r
	}
	noTime := rule("GET", "/")
	noTime.Reply = &configv1.HttpReply{}
	if r := compiled(t, noTime); !r.Reply || r.Timeout != 0 {
		t.Errorf("%+v", r)
	}
	topic := rule("", "/")
	topic.Topic = "a/b"
	for i, tc := range []struct {
		field string
		r     *configv1.HttpRule
	}{
		{"method", rule("GET", "/")}, {"method", rule("post", "/")}, {"topic", topic},
		{"path", rule("", "")}, {"path", rule("", "a")}, {"path", rule("", "//")}, {"path", rule("", "/a/")}, {"path", rule("", "/a//b")}, {"path", rule("", "/a/../b")},
		{"path", rule("", "/a%2fb")}, {"path", rule("", "/a?b")}, {"path", rule("", `/a\b`)}, {"path", rule("", "/{}")}, {"path", rule("", "/{a")}, {"path", rule("", "/a{b}")}, {"path", rule("", "/{a}b")},
		{"path", rule("", "/{a...}/b")}, {"path", rule("", "/{a}/{a}")}, {"path", rule("", "/{a}/{a...}")}, {"path", rule("", "/{a.b}")}, {"path", rule("", "/{...}")}, {"path", rule("", "/{"+strings.Repeat("a", 65)+"}")},
		{"path", rule("", strings.Repeat("/a", MaxSegments+1))},
		{"attributes.type", with("type", "")}, {"attributes.source", with("source", "")}, {"attributes.subject", with("subject", "{other}")}, {"attributes.subject", with("subject", "{id")},
		{"attributes.subject", with("subject", "{data.x}")}, {"attributes.subject", with("subject", "{query.}")}, {"attributes.subject", with("subject", "{header.a b}")},
		{"attributes.subject", with("subject", "{header.authorization}")}, {"attributes.subject", with("subject", "{header.Cookie}")},
		{"attributes.Big", with("Big", "x")}, {"attributes.specversion", with("specversion", "1.0")}, {"attributes.datacontenttype", with("datacontenttype", "a/b")}, {"attributes.data", with("data", "x")},
	} {
		_, err := CompileRule(tc.r)
		fe, ok := err.(*FieldError) //nolint:errorlint // the contract is the type itself
		if !ok || fe.Field != tc.field {
			t.Errorf("%d: %v: got %v, want a problem at %s", i, tc.r, err, tc.field)
		}
	}
	got := ""
	CheckBinding(&configv1.HttpBinding{Rules: []*configv1.HttpRule{rule("", "/a/{b}"), rule("PUT", "/{a}/b"), rule("POST", "/{a}/b")}}, func(f *FieldError) { got += f.Field + ": " + f.Reason })
	if !strings.HasPrefix(got, "rules[2].path: ") || !strings.Contains(got, "POST /a/{b} of rules[0]") {
		t.Errorf("two rules of one path: %q", got)
	}
}

// TestRuleEvent: attributes are of the path, the query and headers; what is given
// twice is nothing to choose from.
func TestRuleEvent(t *testing.T) {
	r := rule("PUT", "/orders/{id}/files/{file...}")
	r.Attributes = map[string]string{"type": "order.{query.kind}", "source": "/shop/{file}", "subject": "{id}", "id": "{header.idempotency-key}", "partitionkey": "{id}", "tenant": "{header.X-Tenant}"}
	c := compiled(t, r)
	p, err := ReadPath("/orders/4%20%3F2/files/a%20b/%C3%BC")
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{"Content-Type": {"text/plain"}, "Idempotency-Key": {"k-1"}}
	e, err := c.Event(p, url.Values{"kind": {"made"}}, h)
	if err != nil || e.Type != "order.made" || e.Source != "/shop/a%20b/%C3%BC" || e.Subject != "4 ?2" || e.ID != "k-1" || e.Key("") != "4 ?2" || e.DataContentType != "text/plain" || len(e.Ext) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	h.Del("Idempotency-Key")
	if e, err := c.Event(p, url.Values{"kind": {"made"}}, h); err != nil || e.ID != "" {
		t.Errorf("%+v, %v", e, err)
	}
	for name, values := range map[string]url.Values{"missing": nil, "empty": {"kind": {""}}, "twice": {"kind": {"a", "b"}}} {
		if e, err := c.Event(p, values, h); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
	h["X-Tenant"] = []string{"a", "b"}
	if e, err := c.Event(p, url.Values{"kind": {"made"}}, h); err == nil {
		t.Errorf("a header that is there twice: %+v", e)
	}
	h["X-Tenant"], h["Content-Type"] = []string{"a"}, []string{"a/a", "b/b"}
	if e, err := c.Event(p, url.Values{"kind": {"made"}}, h); err == nil {
		t.Errorf("a content type that is there twice: %+v", e)
	}
}

// FuzzReadPath: a path that is taken is taken as one thing: its segments are in it
// each between slashes, and written as they read they are the same path again.
func FuzzReadPath(f *testing.F) {
	for _, s := range []string{"/orders/42", "/", "//", "/a//b", "/a/", "/a/./b", "/a/../b", "/a/%2e%2e/b", "/a/%2E/b", "/a/..;x/b", "/a/;x", "/a%2fb", "/a%2Fb", "/a%5cb", `/a\b`, "/a%00b", "/%6frders", "/%256f", "/a%", "/a%2", "/%ff", "/ü", "/a%0d%0a", "/a?b", "a", "", strings.Repeat("/a", 40)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ReadPath(s)
		if err != nil {
			return
		}
		if n := strings.Count(s, "/"); s != "/" && n != len(p.Segments()) {
			t.Fatalf("%q has %d slashes, %q", s, n, p.Segments())
		}
		again := ""
		for _, seg := range p.Segments() {
			if seg == "" || seg == "." || seg == ".." || strings.ContainsAny(seg, "/\\\x00\r\n") || !utf8.ValidString(seg) {
				t.Fatalf("%q: %q", s, seg)
			}
			again += "/" + url.PathEscape(seg)
		}
		if again == "" {
			again = "/"
		}
		q, err := ReadPath(again)
		if err != nil || fmt.Sprint(q.Segments()) != fmt.Sprint(p.Segments()) {
			t.Fatalf("%q is %q, written as %q is %v, %v", s, p.Segments(), again, q, err)
		}
		r := compiled(t, rule("", "/{a}/{b...}"))
		if r.path.variable("b") == 1 && len(p.Segments()) > 1 {
			if v, _ := r.path.value("b", p); v != strings.Join(p.Segments()[1:], "/") {
				t.Fatalf("%q: b is %q", s, v)
			}
		}
	})
}

// thousand has 1,000 rules.
func thousand(t testing.TB) *Mux {
	m := &Mux{}
	for i := range 1000 {
		if err := m.Add(compiled(t, rule("", fmt.Sprintf("/api/v%d/things-%d/{id}/lines/{line}", i%10, i)))); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// TestMuxAllocations: finding a rule takes no memory.
func TestMuxAllocations(t *testing.T) {
	m := thousand(t)
	p, err := ReadPath("/api/v7/things-777/42/lines/3")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if m.Find("POST", p) == nil {
			t.Error("not found")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = ReadPath("/api/v7/things-777/42/lines/3") }); n > 1 {
		t.Errorf("reading a path: %v allocations", n)
	}
}

// BenchmarkMux is the way of a path to its rule, of 1,000.
func BenchmarkMux(b *testing.B) {
	m := thousand(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := ReadPath("/api/v7/things-777/42/lines/3")
		if err != nil || m.Find("POST", p) == nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRuleEvent is what a call becomes.
func BenchmarkRuleEvent(b *testing.B) {
	r := rule("", "/orders/{id}")
	r.Attributes["subject"], r.Attributes["id"] = "{id}", "{header.Idempotency-Key}"
	c := compiled(b, r)
	p, err := ReadPath("/orders/42")
	if err != nil {
		b.Fatal(err)
	}
	h := http.Header{"Idempotency-Key": {"k"}, "Content-Type": {"application/json"}}
	var e event.Event
	b.ReportAllocs()
	for b.Loop() {
		if e, err = c.Event(p, nil, h); err != nil || e.ID != "k" {
			b.Fatal(err)
		}
	}
}
