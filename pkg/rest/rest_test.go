package rest

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/event"
)

// FuzzMake: whatever an event has, the request stays within what the template
// says: one line of a path of as many segments, one value a header.
func FuzzMake(f *testing.F) {
	for _, s := range []string{"42", "a/b", "..", "a/../b", "a\\..\\b", "..;x", "%2e%2e", "x\r\nHost: evil", "?q#f", "ü", "\xff", "", "{id}", "http://evil/", "\x00"} {
		f.Add(s, `{"a":{"b":"`+strings.ToValidUTF8(s, "")+`"}}`)
	}
	r, err := CompileRequest(&configv1.RestRequest{Path: "/v/{subject}/w{data.a.b}", Query: map[string]string{"q": "{subject}"}, Headers: map[string]string{"X-A": "a {subject} {data.a.b}"}})
	if err != nil {
		f.Fatal(err)
	}
	pathless, err := CompileRequest(&configv1.RestRequest{Headers: map[string]string{"X-A": "a {subject} {data.a.b}", "X-B": "{subject}"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, subject, data string) {
		e := event.Event{ID: "1", Source: "s", Type: "t", Subject: subject, DataContentType: subject, Data: []byte(data)}
		if c, err := pathless.Make(&e); err != nil {
			t.Fatal(err)
		} else {
			inOneLine(t, c.Header)
		}
		c, err := r.Make(&e)
		if err != nil {
			return
		}
		u, err := url.Parse("http://host/base" + c.Path + "?" + c.Query)
		if err != nil || u.Host != "host" || strings.Count(u.EscapedPath(), "/") != 4 || u.Fragment != "" || u.Query().Get("q") != subject || len(u.Query()) != 1 {
			t.Fatalf("%q, %q: %v", c.Path, c.Query, err)
		}
		for part := range strings.SplitSeq(u.Path, "/") {
			if part == ".." || part == "." {
				t.Fatalf("%q leads elsewhere", c.Path)
			}
		}
		inOneLine(t, c.Header)
	})
}

func inOneLine(t *testing.T, h http.Header) {
	for name, values := range h {
		if len(values) != 1 || strings.ContainsAny(values[0], "\r\n\x00") {
			t.Fatalf("%s: %q", name, values)
		}
	}
}

// TestRequestRefused: errors name the field.
func TestRequestRefused(t *testing.T) {
	for field, r := range map[string]*configv1.RestRequest{
		"path":                  {Path: "orders"},
		"path ":                 {Path: "/a/../b"},
		"path  ":                {Path: "/a//b"},
		"path   ":               {Path: "/a?b"},
		"path    ":              {Path: "/{Subject}"},
		"path     ":             {Path: "/{subject"},
		"path      ":            {Path: "/a%2fb"},
		"path       ":           {Path: "/{data}"},
		"path        ":          {Path: "/{header.x}"},
		"path         ":         {Path: "/{data.a..b}"},
		"headers.Authorization": {Headers: map[string]string{"Authorization": "x"}},
		"headers.host":          {Headers: map[string]string{"host": "x"}},
		"headers.A B":           {Headers: map[string]string{"A B": "x"}},
		"headers.X":             {Headers: map[string]string{"X": "a\r\nb"}},
		"headers.x-a":           {Headers: map[string]string{"X-A": "1", "x-a": "2"}},
		"headers.Webhook-Id":    {Headers: map[string]string{"Webhook-Id": "x"}},
		"query.q":               {Query: map[string]string{"q": strings.Repeat("{id}", MaxVariables+1)}},
		"body":                  {Method: http.MethodGet, Body: configv1.RestBody_REST_BODY_DATA},
	} {
		_, err := CompileRequest(r)
		fe, ok := err.(*FieldError) //nolint:errorlint // the contract is the type itself
		if !ok || fe.Field != strings.TrimSpace(field) {
			t.Errorf("%v: got %v, want a problem at %s", r, err, field)
		}
	}
}

// TestData: variables are strings, numbers and booleans of JSON that is whole and
// names nothing twice.
func TestData(t *testing.T) {
	r, err := CompileRequest(&configv1.RestRequest{Path: "/{data.a}/{data.b.c}{{}}"})
	if err != nil {
		t.Fatal(err)
	}
	for data, want := range map[string]string{
		`{"x":[1,{"a":2}],"b":{"c":1.50,"a":3},"a":"é"}`: "/%C3%A9/1.50%7B%7D",
		`{"a":true,"b":{"c":false}}`:                     "/true/false%7B%7D",
		`{"a":1,"a":2,"b":{"c":1}}`:                      "",
		`{"a":1,"b":{"c":1}} x`:                          "",
		`{"a":null,"b":{"c":1}}`:                         "",
		`{"a":{},"b":{"c":1}}`:                           "",
		`[]`:                                             "",
		``:                                               "",
	} {
		c, err := r.Make(&event.Event{Data: []byte(data)})
		if c.Path != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", data, c.Path, err, want)
		}
	}
}

// TestCheckPush: a secret does not cross the network in the clear.
func TestCheckPush(t *testing.T) {
	auth := &configv1.PushAuthorization{Secret: "s"}
	for i, tc := range []struct {
		p    *configv1.PushDelivery
		want string
	}{
		{&configv1.PushDelivery{Url: "https://a/", Authorization: auth}, ""},
		{&configv1.PushDelivery{Url: "http://127.0.0.1:80/", Authorization: auth}, ""},
		{&configv1.PushDelivery{Url: "http://a/", Authorization: auth}, "authorization"},
		{&configv1.PushDelivery{Url: "https://a/", Authorization: &configv1.PushAuthorization{}}, "authorization.secret"},
		{&configv1.PushDelivery{Url: "ftp://a/"}, "url"},
		{&configv1.PushDelivery{Url: "https://a/", Handshake: &configv1.PushHandshake{}}, "handshake.origin"},
		{&configv1.PushDelivery{Service: &configv1.ServiceTarget{Name: "a"}, Handshake: &configv1.PushHandshake{Origin: "a"}}, "handshake"},
		{&configv1.PushDelivery{Url: "https://u:p@a/"}, "url"},
		{&configv1.PushDelivery{Url: "https://a/", SettleOn: []string{"409"}, RejectOn: []string{"400", "409"}}, "reject_on[1]"},
		{&configv1.PushDelivery{Url: "https://a/", SettleOn: []string{"200"}}, "settle_on[0]"},
		{&configv1.PushDelivery{Url: "https://a/", Request: &configv1.RestRequest{Path: "x"}}, "request.path"},
	} {
		got := ""
		CheckPush(tc.p, func(f *FieldError) { got = f.Field })
		if got != tc.want {
			t.Errorf("%d: a problem at %q, want %q", i, got, tc.want)
		}
	}
}
