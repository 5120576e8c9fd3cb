package http

import (
	"context"
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
