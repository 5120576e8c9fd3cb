package pipeline

import (
	"testing"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/pkg/fault"
)

// TestFailure: of a publish that failed is remembered whether it may have been kept.
func TestFailure(t *testing.T) {
	for class, want := range map[fault.Class]bool{fault.Ambiguous: true, fault.Unavailable: false, fault.Throttled: false, fault.Invalid: false} {
		f := facts.Fact{}
		f.Kind, f.Detail = failure(fault.New(class, "op", "reason", "why"))
		if f.Kind != facts.Failed || f.MayBeKept() != want {
			t.Errorf("%v is remembered as %+v, which may be kept: %v", class, f, f.MayBeKept())
		}
	}
}
