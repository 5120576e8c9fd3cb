package proxy

import (
	"regexp"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/names"
)

// TestDrawNodeID: a node id that is drawn begins with the host's name, whatever that has.
func TestDrawNodeID(t *testing.T) {
	for host, want := range map[string]string{"build-7": "build-7-", "a.example": "a.example-", "": "proxy-", "..": "proxy-", "b\u00fcro 3\n": "b-ro-3-", strings.Repeat("x", 300): strings.Repeat("x", 64) + "-"} {
		id, other := drawNodeID(host), drawNodeID(host)
		if !names.ValidNodeID(id) || !strings.HasPrefix(id, want) || id == other || !regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(id[len(want):]) {
			t.Errorf("of %q: %s, %s", host, id, other)
		}
	}
}
