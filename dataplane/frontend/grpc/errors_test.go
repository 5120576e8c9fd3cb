package grpc

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/pkg/fault"
)

// TestNilError: an error that somebody made of a nil *fault.Error is told as a bug here,
// and stops nothing but its call.
func TestNilError(t *testing.T) {
	var err error = (*fault.Error)(nil)
	for what, got := range map[string]codes.Code{
		"a call":      status.Code(toStatus(err)),
		"an event":    codes.Code(toError(err).Code), //nolint:gosec // codes are below 17
		"what it was": status.Code(ended(t.Context(), err)),
	} {
		if got != codes.Internal {
			t.Errorf("of %s it is told as %v", what, got)
		}
	}
}
