package report

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/clock"
)

// TestReportFits: a proxy where a lot goes wrong reports as much of it as a control plane
// takes at once, 256 KiB, and something of each.
func TestReportFits(t *testing.T) {
	for _, source := range []discoveryv1.AppliedConfig_Source{discoveryv1.AppliedConfig_SOURCE_LIVE, discoveryv1.AppliedConfig_SOURCE_DISK} {
		state := &discoveryv1.ReportStatusRequest{Config: &discoveryv1.AppliedConfig{Lineage: "l", Revision: 7, Source: source}, Draining: true}
		why := strings.Repeat("x", 500)
		for i := range 2000 {
			name := fmt.Sprint("subscription/demo/", i)
			state.Stores = append(state.Stores, &discoveryv1.StoreState{Name: name, Message: why})
			state.Targets = append(state.Targets, &discoveryv1.TargetState{Name: name, Message: why})
			state.Denied = append(state.Denied, &discoveryv1.DeniedState{Name: name, Message: why})
			state.Blocked = append(state.Blocked, &discoveryv1.BlockedState{Name: name, Position: why})
			state.Config.Rejections = append(state.Config.Rejections, &discoveryv1.Rejection{Name: name, Reason: why})
			state.Config.Withheld = append(state.Config.Withheld, name)
		}
		before := proto.CloneOf(state)
		r := New(Config{NodeID: "p", Info: &discoveryv1.NodeInfo{Version: "v"}, Load: func() *discoveryv1.Load { return &discoveryv1.Load{} }, Clock: clock.Clock(nil), Log: slog.New(slog.DiscardHandler)})
		got := r.report(state, true)
		if n := proto.Size(got); n > 256<<10 {
			t.Errorf("the report has %d bytes", n)
		}
		c := got.Config
		if len(got.Stores) == 0 || len(got.Targets) == 0 || len(got.Denied) == 0 || len(got.Blocked) == 0 || len(c.Rejections) == 0 || len(c.Withheld) == 0 || c.Revision != 7 || c.Source != source || !got.Draining {
			t.Errorf("of something nothing is left: %d stores, %d targets, %d denied, %d blocked, %d rejections, %d withheld, %v %v", len(got.Stores), len(got.Targets), len(got.Denied), len(got.Blocked), len(c.Rejections), len(c.Withheld), c.Revision, c.Source)
		}
		if !proto.Equal(state, before) {
			t.Error("the state was changed")
		}
	}
}
