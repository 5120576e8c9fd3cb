package planes

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
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

// TestNobodyWaitsForWhoIsGone: a proxy that left, or was declared dead, is not shown and not
// waited for; one that is merely away is, as it was when it went.
func TestNobodyWaitsForWhoIsGone(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	r := startReplica(ctx, t, e)
	startNode(t, "", nil, nil, r.Addrs().Discovery).await(ctx, t, "the start", func(config.State) bool { return true })
	// gone starts a proxy and stops it, once it is written down that it was there.
	gone := func(node string, leaves bool) {
		t.Helper()
		p, err := proxy.New(proxy.Config{ControlPlane: []string{r.Addrs().Discovery}, NodeID: node, DataDir: t.TempDir(), LeaveOnStop: leaves,
			HTTPAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", HealthAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Drivers: binding.Drivers(), Options: binding.Options, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		pctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- p.Run(pctx) }()
		for written := int64(0); written == 0; {
			resp, err := e.Client().Get(ctx, "/weft/v1/s/proxy/"+node)
			if err != nil {
				t.Fatal(err)
			}
			written = resp.Count
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		awaitStatus(ctx, t, r, node+" is away", &adminv1.GetStatusRequest{NodeId: node}, func(st *adminv1.GetStatusResponse) bool {
			return len(st.Proxies) == 1 && !st.Proxies[0].Connected
		})
	}
	waits := func(name string) {
		t.Helper()
		switch out, exit := run(ctx, r, "wait", "--timeout", "1s"); {
		case name == "" && (exit != 0 || !strings.Contains(out, "is in force at 1 proxy")):
			t.Errorf("who is gone is waited for: %d %s", exit, out)
		case name != "" && (exit != 1 || !strings.Contains(out, name+" has not been connected for")):
			t.Errorf("%s is not waited for: %d %s", name, exit, out)
		}
	}
	gone("leaves", true)
	waits("")
	gone("dies", false)
	waits("dies")
	if out, exit := run(ctx, r, "proxies", "declare-dead", "dies", "--reason", "test", "--yes"); exit != 0 {
		t.Fatal(out)
	}
	waits("")
	if out, exit := run(ctx, r, "proxies", "revive", "dies"); exit != 0 {
		t.Fatal(out)
	}
	awaitStatus(ctx, t, r, "it counts again", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool {
		return slices.ContainsFunc(st.Proxies, func(p *adminv1.ProxyStatus) bool { return p.NodeId == "dies" })
	})
	waits("dies")
	// What is written down of one that is gone may be where etcd was.
	record, err := proto.Marshal(&adminv1.ProxyStatus{NodeId: "ahead", AckedRevision: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Client().Put(ctx, "/weft/v1/s/proxy/ahead", string(record)); err != nil {
		t.Fatal(err)
	}
	st := awaitStatus(ctx, t, r, "one that is ahead", &adminv1.GetStatusRequest{NodeId: "ahead"}, func(st *adminv1.GetStatusResponse) bool { return len(st.Proxies) == 1 })
	if had := st.Proxies[0].AckedRevision; had > st.Revision {
		t.Errorf("it had revision %d, and the newest is %d", had, st.Revision)
	}
}
