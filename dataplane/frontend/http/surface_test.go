package http

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestSurface: docs/surface.md has the status of every class.
func TestSurface(t *testing.T) {
	page, err := os.ReadFile("../../../docs/surface.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range fault.Classes() {
		if row := fmt.Sprintf("\n| %s | %d | ", c, status(c)); !strings.Contains(string(page), row) {
			t.Errorf("the page has no row that begins with %q", row)
		}
	}
}
