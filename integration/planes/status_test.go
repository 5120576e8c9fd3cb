package planes

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	cloudeventsv1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/tools/weft"
)

// awaitStatus asks a replica until the answer fits.
func awaitStatus(ctx context.Context, t *testing.T, r *replica, what string, req *adminv1.GetStatusRequest, fits func(*adminv1.GetStatusResponse) bool) *adminv1.GetStatusResponse {
	t.Helper()
	var st *adminv1.GetStatusResponse
	for {
		next, err := r.admin.GetStatus(ctx, req)
		if err != nil {
			t.Fatalf("%s: %v; last %v", what, err, st)
		}
		if st = next; fits(st) {
			return st
		}
	}
}

// run runs the command line against a replica.
func run(ctx context.Context, r *replica, args ...string) (out string, exit int) {
	var b strings.Builder
	exit = weft.Main(ctx, append(args, "--server", r.Addrs().Admin), strings.NewReader(""), &b, &b)
	return b.String(), exit
}

// stalled is a proxy that never answers what it is sent.
func stalled(ctx context.Context, t *testing.T, addr, node string) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: resource.TypeURL}); err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.Recv(); err != nil {
		t.Fatal(err)
	}
}

// TestFleetView: proxies at different replicas are one fleet, with what each
// reports, whichever replica is asked; one that goes is remembered with what it
// had; a replica that stops is no longer shown.
func TestFleetView(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	var rs []*replica
	for range 3 {
		rs = append(rs, startReplica(ctx, t, e))
	}
	apply(ctx, t, rs[0], eventStore("demo", "main", "1"), topic("demo", "orders"), policyOf(everything("local")))
	var gs []*gateway
	for i := range 2 {
		g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), rs[i].Addrs().Discovery)
		g.await("the topic", ready([]string{"orders"}, nil))
		gs = append(gs, g)
	}
	if code, body := gs[0].post("orders", "one", binary("1")); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	st := awaitStatus(ctx, t, rs[2], "both proxies at all replicas, one replica that provisions and one that moves topics", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool {
		held := 0
		for _, r := range st.Replicas {
			held += len(r.Offices)
		}
		return held == 2 && len(st.Replicas) == 3 && st.Fleet.Current == 2 && len(st.Proxies) == 2 && !slices.ContainsFunc(st.Proxies, func(p *adminv1.ProxyStatus) bool {
			return p.GetReport().GetConfig().GetRevision() == 0 || len(p.GetReport().GetStores()) > 0
		})
	})
	// A replica that has read etcd later, at a revision at which nothing was changed.
	if _, err := e.Client().Put(ctx, "anothers", ""); err != nil {
		t.Fatal(err)
	}
	late := startReplica(ctx, t, e)
	if st := awaitStatus(ctx, t, late, "both proxies at a replica that came later", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool {
		return st.Fleet.Connected == 2 && len(st.Replicas) == 4
	}); st.Fleet.Current != 2 {
		t.Errorf("of what a replica knows that came later: %v", st.Fleet)
	}
	late.stop()
	streams := uint32(0)
	for _, r := range st.Replicas {
		streams += r.Streams
		if r.Error != "" || r.Revision == 0 || r.Version == "" {
			t.Errorf("%v", r)
		}
	}
	if streams != 2 {
		t.Errorf("%d streams are open", streams)
	}
	for _, p := range st.Proxies {
		c := p.Report.Config
		if c.Source != discoveryv1.AppliedConfig_SOURCE_LIVE || c.Lineage != st.Lineage || c.ConfirmedAt == nil || len(c.Digests) == 0 || p.Report.Load.GetMemoryBytes() == 0 || p.Replica == "" {
			t.Errorf("%v", p)
		}
	}
	// What a replica knows by itself is its own; a node's detail is of any.
	if st, err := rs[2].admin.GetStatus(ctx, &adminv1.GetStatusRequest{Local: true}); err != nil || len(st.Proxies) != 0 || len(st.Replicas) != 1 {
		t.Errorf("local: %v %v", st, err)
	}
	id := gs[0].NodeID()
	if st, err := rs[2].admin.GetStatus(ctx, &adminv1.GetStatusRequest{NodeId: id}); err != nil || len(st.Proxies) != 1 || len(st.Proxies[0].Info.GetCapabilities()) == 0 {
		t.Errorf("one proxy: %v %v", st, err)
	}
	if out, exit := run(ctx, rs[2], "status", id); exit != 0 || !strings.Contains(out, "has all of it") || !strings.Contains(out, "from a control plane, confirmed") {
		t.Errorf("%d %s", exit, out)
	}
	if out, exit := run(ctx, rs[2], "status", "nobody"); exit != 1 || !strings.Contains(out, "no proxy nobody") {
		t.Errorf("%d %s", exit, out)
	}
	if out, exit := run(ctx, rs[2], "status", "-n", "nosuch"); exit != 0 || !strings.Contains(out, "Namespace nosuch has no resources") {
		t.Errorf("%d %s", exit, out)
	}
	had := int64(0)
	for _, p := range st.Proxies {
		if p.NodeId == id {
			had = p.AckedRevision
		}
	}
	for { // it is written down within seconds
		resp, err := e.Client().Get(ctx, "/weft/v1/s/proxy/"+id)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Count == 1 {
			break
		}
	}
	gs[0].stop()
	awaitStatus(ctx, t, rs[2], "the one that went", &adminv1.GetStatusRequest{NodeId: id, WithoutResources: true}, func(st *adminv1.GetStatusResponse) bool {
		return len(st.Proxies) == 1 && !st.Proxies[0].Connected && st.Proxies[0].AckedRevision >= had && st.Proxies[0].LastSeen != nil && st.Fleet.Disconnected == 1
	})
	rs[0].stop()
	st = awaitStatus(ctx, t, rs[2], "two replicas", &adminv1.GetStatusRequest{WithoutResources: true}, func(st *adminv1.GetStatusResponse) bool { return len(st.Replicas) == 2 })
	if st.Fleet.Known != 2 || st.Fleet.Current != 1 {
		t.Errorf("%v", st.Fleet)
	}
}

// TestWait: weft wait, and apply --wait, end well when every proxy has the
// revision, and else name the one that has not, and why.
func TestWait(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	one, other := startReplica(ctx, t, e), startReplica(ctx, t, e)
	if out, exit := run(ctx, one, "wait", "--timeout", "10ms"); exit != 1 || !strings.Contains(out, "no proxy is connected") {
		t.Errorf("without proxies: %d %s", exit, out)
	}
	resp := apply(ctx, t, one, eventStore("demo", "main", "1"))
	n := startNode(t, "", nil, nil, other.Addrs().Discovery)
	if out, exit := run(ctx, one, "wait", "--revision", fmt.Sprint(resp.Revision), "--timeout", "1m"); exit != 0 || !strings.Contains(out, "is in force at 1 proxy") {
		t.Errorf("%d %s", exit, out)
	}
	if out, exit := run(ctx, one, "wait", "--revision", fmt.Sprint(resp.Revision+1000), "--timeout", "10ms"); exit != 1 || !strings.Contains(out, "node-1 is about to be sent") {
		t.Errorf("a revision that is not there yet: %d %s", exit, out)
	}
	stalled(ctx, t, other.Addrs().Discovery, "stuck")
	resp = apply(ctx, t, one, eventStore("demo", "main", "2"))
	n.await(ctx, t, "the change", at("eventstore/demo/main", "2"))
	out, exit := run(ctx, one, "wait", "--revision", fmt.Sprint(resp.Revision), "--timeout", "3s")
	if exit != 1 || !strings.Contains(out, "1 of 2 proxies has not all of revision "+fmt.Sprint(resp.Revision)) || !strings.Contains(out, "stuck was sent, has not answered") || strings.Contains(out, "node-1") {
		t.Errorf("%d %s", exit, out)
	}
	n.stop()
	awaitStatus(ctx, t, one, "the node went", &adminv1.GetStatusRequest{NodeId: "node-1"}, func(st *adminv1.GetStatusResponse) bool { return st.Fleet.Disconnected == 1 })
	if out, exit := run(ctx, one, "wait", "--timeout", "10ms"); exit != 1 || !strings.Contains(out, "2 of 2") || !strings.Contains(out, "node-1 has not been connected for") {
		t.Errorf("%d %s", exit, out)
	}
	if out, exit := run(ctx, one, "wait", "--timeout", "10ms", "--connected-only"); exit != 1 || !strings.Contains(out, "1 of 1") || strings.Contains(out, "node-1") {
		t.Errorf("%d %s", exit, out)
	}
}

// TestDrainCommand: a proxy that is told to drain, through another replica than
// its own, stops gracefully: what it has acknowledged is there, and its supervisor
// sees it end well.
func TestDrainCommand(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	one, other := startReplica(ctx, t, e), startReplica(ctx, t, e)
	dir := filepath.Join(t.TempDir(), "data")
	g := startProxy(ctx, t, dir, other.Addrs().Discovery)
	apply(ctx, t, one, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	if out, exit := run(ctx, one, "admin", "drain", "nobody"); exit != 1 || !strings.Contains(out, "nobody") {
		t.Errorf("%d %s", exit, out)
	}
	if out, exit := run(ctx, one, "admin", "drain"); exit != 1 || !strings.Contains(out, "name the proxies") {
		t.Errorf("%d %s", exit, out)
	}
	awaitStatus(ctx, t, one, "its report", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool { return len(st.Proxies) == 1 && st.Proxies[0].Report != nil })
	acked := make(chan []string, 1)
	begun := make(chan struct{})
	go func() { // publishes until it is refused
		var ids []string
		for i := 0; ; i++ {
			id := fmt.Sprint(i)
			if _, err := g.events.Publish(ctx, &eventsv1.PublishRequest{Namespace: "demo", Topic: "orders", Event: &cloudeventsv1.CloudEvent{Id: id, Source: "/test", SpecVersion: "1.0", Type: "t",
				Data: &cloudeventsv1.CloudEvent_BinaryData{BinaryData: []byte("data")}}}); err != nil {
				acked <- ids
				return
			}
			if ids = append(ids, id); i == 20 {
				close(begun)
			}
		}
	}()
	<-begun
	if out, exit := run(ctx, one, "admin", "drain", g.NodeID()); exit != 0 || !strings.Contains(out, "was told") {
		t.Fatalf("%d %s", exit, out)
	}
	kept := <-acked
	g.stop() // waits until Run has returned nil; it has been told to already
	g = startProxy(ctx, t, dir, other.Addrs().Discovery)
	g.await("the topic again", ready([]string{"orders"}, []string{"billing"}))
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range kept {
		m.mustTake(id + "=data")
	}
}

// TestResyncCommand: a proxy that is told to syncs its whole scope again.
func TestResyncCommand(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, nil))
	awaitStatus(ctx, t, cp, "its report", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool { return len(st.Proxies) == 1 && st.Proxies[0].Report != nil })
	synced := func() float64 { return scrape(t, cp.Addrs().Ops).value("weft_controlplane_discovery_full_syncs_total") }
	before := synced()
	if out, exit := run(ctx, cp, "admin", "resync", "--all"); exit != 0 || !strings.Contains(out, g.NodeID()+" was told") {
		t.Fatalf("%d %s", exit, out)
	}
	for synced() < before+1 {
		if ctx.Err() != nil {
			t.Fatal("it has not synced again")
		}
	}
	awaitStatus(ctx, t, cp, "all of it again", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool { return st.Fleet.Current == 1 })
	if code, body := g.post("orders", "x", binary("1")); code != http.StatusOK {
		t.Errorf("meanwhile: %d %s", code, body)
	}
}

// TestReportCredential: only who holds the credential of a node's discovery stream
// reports for it; replicas reach each other with their admin certificates.
func TestReportCredential(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a := newAuthority(t)
	e := startEtcd(ctx, t)
	var addrs []server.Addrs
	for i := range 2 {
		s, err := server.New(server.Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
			AdminTLS: a.issue(fmt.Sprint("replica-", i), "spiffe://example.org/weft/controlplane"), DiscoveryTLS: a.issue("control"), Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		runFor(t, s.Run)
		if err := s.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, s.Addrs())
	}
	dial := func(addr string, f tlsconf.Files) *grpc.ClientConn {
		t.Helper()
		c, err := tlsconf.Client(f)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(c)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	owner, thief, bound := a.issue("owner"), a.issue("thief"), a.issue("bound", "spiffe://example.org/weft/proxy/node-2")
	if _, err := ask(ctx, t, addrs[0].Discovery, owner, "node-1", "*").Recv(); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		files tlsconf.Files
		node  string
		code  codes.Code
	}{
		"another certificate":       {thief, "node-1", codes.PermissionDenied},
		"another node's":            {bound, "node-1", codes.PermissionDenied},
		"a node without its stream": {bound, "node-2", codes.FailedPrecondition},
	} {
		rctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // one that is let in hears nothing
		defer cancel()
		rpc, err := discoveryv1.NewProxyStatusServiceClient(dial(addrs[0].Discovery, tc.files)).ReportStatus(rctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = rpc.Send(&discoveryv1.ReportStatusRequest{NodeId: tc.node, Draining: true}) // Recv says why
		if _, err := rpc.Recv(); status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	rpc, err := discoveryv1.NewProxyStatusServiceClient(dial(addrs[0].Discovery, owner)).ReportStatus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.Send(&discoveryv1.ReportStatusRequest{NodeId: "node-1", Draining: true}); err != nil {
		t.Fatal(err)
	}
	r := &replica{admin: adminv1.NewAdminServiceClient(dial(addrs[1].Admin, a.issue("operator")))}
	awaitStatus(ctx, t, r, "the report, through the other replica", &adminv1.GetStatusRequest{}, func(st *adminv1.GetStatusResponse) bool {
		return len(st.Replicas) == 2 && st.Replicas[0].Error+st.Replicas[1].Error == "" && len(st.Proxies) == 1 && st.Proxies[0].GetReport().GetDraining()
	})
}
