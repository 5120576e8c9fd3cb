package planes

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/store/binding"
)

// TestLeaveOnStop: a proxy that leaves when it stops is on the roster no more, and has
// nothing to start from; it is written down again when it comes back. One with an embedded
// store stays, and so does one that does not leave.
func TestLeaveOnStop(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	r := startReplica(ctx, t, startEtcd(ctx, t))
	listed := func() (ids []string) {
		t.Helper()
		resp, err := r.admin.ListNodes(ctx, &adminv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range resp.Nodes {
			ids = append(ids, n.NodeId)
		}
		return ids
	}
	dirs := map[string]string{"leaves": t.TempDir(), "stays": t.TempDir(), "has-store": t.TempDir()}
	kept := func(node string) int {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dirs[node], "config", "last-good.*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	// serves lets a proxy serve, and stops it.
	serves := func(node string, leaves bool) {
		t.Helper()
		p, err := proxy.New(proxy.Config{ControlPlane: []string{r.Addrs().Discovery}, NodeID: node, DataDir: dirs[node], LeaveOnStop: leaves,
			HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Drivers: binding.Drivers(), Options: binding.Options, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		pctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- p.Run(pctx) }()
		if err := p.Ready(ctx); err != nil {
			t.Error(err)
		}
		if got := listed(); !slices.Contains(got, node) {
			t.Errorf("%s serves, and the roster has %v", node, got)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		serves("leaves", true)
		if got := listed(); len(got) > 0 || kept("leaves") > 0 {
			t.Errorf("after it left the roster has %v, and its folder %d configurations", got, kept("leaves"))
		}
	}
	serves("stays", false)
	apply(ctx, t, r, eventStore("demo", "main", "1"))
	if err := os.MkdirAll(filepath.Join(dirs["has-store"], "stores", "some"), 0o700); err != nil {
		t.Fatal(err)
	}
	serves("has-store", true)
	if got := listed(); !slices.Equal(got, []string{"has-store", "stays"}) || kept("stays") == 0 || kept("has-store") == 0 {
		t.Errorf("the roster has %v, the folders %d and %d configurations", got, kept("stays"), kept("has-store"))
	}
}
