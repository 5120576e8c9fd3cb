package config

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// TestLeave: a node has nothing to start from before it is off the roster, whatever that
// answers, and follows nobody from then on, who would give it something; where the control
// plane does not know of nodes that leave, it goes on as it was.
func TestLeave(t *testing.T) {
	for name, tc := range map[string]struct {
		entry  string
		err    error
		leaves bool
	}{
		"it is off the roster":      {entry: "7", leaves: true},
		"it has joined since":       {entry: "7", err: status.Error(codes.FailedPrecondition, "it has joined again"), leaves: true},
		"of a control plane before": {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files := func() int {
				found, err := filepath.Glob(filepath.Join(dir, filePrefix+"*"))
				if err != nil {
					t.Error(err)
				}
				return len(found)
			}
			asked := 0
			srv := startDelta(t, "127.0.0.1:0", func(s *deltaServer) {
				s.entry, s.leave = tc.entry, func(req *discoveryv1.LeaveRequest) error {
					if asked++; req.NodeId != "n1" || req.Entry != 7 || files() > 0 {
						t.Errorf("%v leaves, with %d configurations", req, files())
					}
					return tc.err
				}
			})
			f := follow(t, dir, srv.addr)
			st := srv.accept(t)
			st.send([]*discoveryv3.Resource{wire(storeRes("a", "1", testUID), "5"), closing("1-x", 5, true, map[string]string{nameA: "5"})})
			st.send([]*discoveryv3.Resource{wire(storeRes("a", "2", testUID), "6"), closing("1-x", 6, false, map[string]string{nameA: "6"})})
			if files() != 2 {
				t.Fatalf("%d configurations are kept", files())
			}
			ctx, cancel := context.WithTimeout(t.Context(), testPatience)
			defer cancel()
			if err := f.Leave(ctx); (err == nil) != (tc.leaves && tc.err == nil) {
				t.Errorf("it leaves: %v", err)
			}
			if !tc.leaves {
				st.send([]*discoveryv3.Resource{wire(storeRes("a", "3", testUID), "7"), closing("1-x", 7, false, map[string]string{nameA: "7"})})
				if asked > 0 || files() != generations {
					t.Errorf("it asked %d times, and has %d configurations", asked, files())
				}
				return
			}
			select {
			case <-srv.streams:
				t.Error("it follows the control plane again")
			case <-time.After(2 * minRetry):
			}
			f.stop()
			if asked != 1 || files() > 0 {
				t.Errorf("it asked %d times, and has %d configurations", asked, files())
			}
		})
	}
}
