package unixaddr

import (
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	longest := "/" + strings.Repeat("a", maxPath-1)
	for _, tc := range []struct{ addr, path, err string }{
		{"unix:/run/weft/http.sock", "/run/weft/http.sock", ""},
		{"unix:///run//weft/../http.sock", "/run/http.sock", ""},
		{Of(longest), longest, ""},
		{Of(longest + "a"), "", "has at most 107 bytes"},
		{"unix:http.sock", "", "absolute path"},
		{"unix:", "", "absolute path"},
		{"unix:/", "", "absolute path"},
		{"unix:/run/weft/", "", "absolute path"},
		{"unix:@abstract", "", "absolute path"},
		{"unix:/a\x00b", "", "absolute path"},
		{"127.0.0.1:7410", "", "absolute path"},
		{"/run/weft/http.sock", "", "absolute path"},
	} {
		path, err := Path(tc.addr)
		if path != tc.path || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%q: %q, %v", tc.addr, path, err)
		}
	}
	if !Is("unix:x") || Is("unix") || Is("127.0.0.1:1") || Is("") {
		t.Error("what is meant for a Unix socket is not told from what is not")
	}
}
