package memory

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) { registrytest.Run(t, New(), "mesh") }
