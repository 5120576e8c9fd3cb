package grpc

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestSurface: docs/surface.md has the code of every class.
func TestSurface(t *testing.T) {
	page, err := os.ReadFile("../../../docs/surface.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range fault.Classes() {
		if row := regexp.MustCompile(fmt.Sprintf(`\n\| %s \| \d+ \| %s \| `, c, code(c))); !row.Match(page) {
			t.Errorf("the page has no row %s", row)
		}
	}
}
