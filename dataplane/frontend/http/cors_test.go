package http

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
)

// asLocal authenticates everyone as local, and does nothing else.
type asLocal struct{ frontend.Mesh }

func (asLocal) Authenticate(context.Context, policy.Credentials) (*policy.Principal, error) {
	return &policy.Principal{Name: policy.Local}, nil
}

// TestCORS: pages of allowed origins may ask and read, others not; none may use what
// loopback is trusted with, and without origins nothing of it is there.
func TestCORS(t *testing.T) {
	const page = "https://shop.example"
	for name, tc := range map[string]struct {
		allowed        []string
		origin, method string
		code           int
		allows         string
	}{
		"preflight":                {[]string{page}, page, http.MethodOptions, 204, page},
		"preflight of another":     {[]string{page}, "https://evil.example", http.MethodOptions, 405, ""},
		"preflight of a prefix":    {[]string{page}, page + ".evil.example", http.MethodOptions, 405, ""},
		"preflight of null":        {[]string{page}, "null", http.MethodOptions, 405, ""},
		"preflight where it's off": {nil, page, http.MethodOptions, 405, ""},
		"publish as local":         {[]string{page}, page, http.MethodPost, 401, page},
		"publish of another":       {[]string{page}, "https://evil.example", http.MethodPost, 401, ""},
	} {
		s := New(Config{Mesh: asLocal{}, Origins: tc.allowed})
		r := httptest.NewRequest(tc.method, "http://127.0.0.1:7410/v1/demo/topics/orders", nil)
		r.Header.Set("Origin", tc.origin)
		if tc.method == http.MethodOptions {
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Access-Control-Request-Headers", "authorization,ce-id,ce-any")
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		h := w.Header()
		if w.Code != tc.code || h.Get("Access-Control-Allow-Origin") != tc.allows || h.Get("Access-Control-Allow-Credentials") != "" || (h.Get("Vary") == "Origin") != (tc.allowed != nil) {
			t.Errorf("%s: %d %v", name, w.Code, h)
		}
		if (h.Get("Access-Control-Expose-Headers") == "*") != (tc.allows != "") {
			t.Errorf("%s: a page reads %q", name, h.Get("Access-Control-Expose-Headers"))
		}
		if tc.code == 204 && (h.Get("Access-Control-Allow-Headers") != "authorization,ce-id,ce-any" || h.Get("Access-Control-Allow-Methods") != "DELETE, GET, PATCH, POST, PUT") {
			t.Errorf("%s: %v", name, h)
		}
	}
}

// asBilling authenticates everyone as demo/billing, and does nothing else.
type asBilling struct{ frontend.Mesh }

func (asBilling) Authenticate(context.Context, policy.Credentials) (*policy.Principal, error) {
	return &policy.Principal{Namespace: "demo", Name: "billing"}, nil
}

func (asBilling) Bound(*policy.Principal, frontend.Call) (frontend.Bound, error) {
	return frontend.Bound{Allow: []string{http.MethodPut}}, nil
}

// TestPageWithCertificate: what a page sends counts by the key or token that the page shows,
// never by the certificate that its browser adds, also where its origin may ask.
func TestPageWithCertificate(t *testing.T) {
	const page = "https://shop.example"
	s := New(Config{Mesh: asBilling{}, Origins: []string{page}})
	for name, tc := range map[string]struct {
		header []string
		code   int
	}{
		"no page":                 {nil, 405},
		"typed by the user":       {[]string{"Sec-Fetch-Site", "none"}, 405},
		"a page of another site":  {[]string{"Sec-Fetch-Site", "cross-site"}, 401},
		"a form of another site":  {[]string{"Origin", "https://evil.example"}, 401},
		"a page that may ask":     {[]string{"Origin", page}, 401},
		"a page that shows a key": {[]string{"Origin", page, "Authorization", "Bearer weft_x_y"}, 405},
	} {
		r := httptest.NewRequest(http.MethodPost, "https://proxy.example:7410/rest/demo/orders", nil)
		for i := 0; i < len(tc.header); i += 2 {
			r.Header.Set(tc.header[i], tc.header[i+1])
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		var d details
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != tc.code || (d.Reason == "cross-site") != (tc.code == 401) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
