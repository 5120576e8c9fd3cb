package census

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
)

var quiet = slog.New(slog.DiscardHandler)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func etcd(ctx context.Context, t *testing.T) *clientv3.Client {
	t.Helper()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e.Client()
}

// replicaOf makes a replica's part without running it: the test writes for it.
func replicaOf(ctx context.Context, t *testing.T, client *clientv3.Client, forget time.Duration) (*Mesh, *recorder) {
	t.Helper()
	m := New(Config{Etcd: client, StatusKey: func(n string) string { return "/weft/s/" + n }, Address: "127.0.0.1:1",
		Connected: func() []*adminv1.ProxyStatus { return nil }, Report: func(string) *discoveryv1.ReportStatusRequest { return nil }, Offices: &election.Offices{},
		Forget: forget, Log: quiet})
	lease, err := client.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	return m, &recorder{mesh: m, lease: lease.ID, written: map[string]written{}}
}

func record(ctx context.Context, t *testing.T, r *recorder, connected ...*adminv1.ProxyStatus) {
	t.Helper()
	if err := r.record(ctx, connected); err != nil {
		t.Fatal(err)
	}
}

func others(ctx context.Context, m *Mesh) map[string]*adminv1.ProxyStatus {
	m.mu.Lock()
	m.records.at = time.Time{} // read again
	m.mu.Unlock()
	out := map[string]*adminv1.ProxyStatus{}
	for _, p := range m.Others(ctx, &adminv1.GetStatusRequest{Local: true}).Proxies {
		out[p.NodeId] = p
	}
	return out
}

// TestRecords: a proxy that goes is remembered, with what it had; one that went to
// another replica is that one's, whichever writes last; after the forget time it is
// forgotten. Nothing is written while nothing happens.
func TestRecords(t *testing.T) {
	ctx := testContext(t)
	client := etcd(ctx, t)
	a, ra := replicaOf(ctx, t, client, time.Second)
	_, rb := replicaOf(ctx, t, client, time.Second)
	began := time.Now()
	record(ctx, t, ra, proxy("stays"), proxy("goes"), proxy("moves/x"))
	revision := func() int64 {
		resp, err := client.Get(ctx, "x")
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	before := revision()
	record(ctx, t, ra, proxy("stays"), proxy("goes"), proxy("moves/x", func(p *adminv1.ProxyStatus) { p.AckedRevision = 11 }))
	if after := revision(); after != before {
		t.Errorf("etcd's revision went from %d to %d for nothing of note", before, after)
	}
	// It is there at the other before it is seen to have gone here.
	record(ctx, t, rb, proxy("moves/x", func(p *adminv1.ProxyStatus) { p.ConnectedAt = at(5) }))
	record(ctx, t, ra, proxy("stays"))
	got := others(ctx, a)
	if p := got["goes"]; p.GetConnected() || p.GetAckedRevision() != 10 || p.GetLastSeen().AsTime().Before(began.Add(-time.Second)) {
		t.Errorf("the one that went: %v", p)
	}
	if p := got["moves/x"]; p.GetReplica() != rb.mesh.id || !p.GetConnectedAt().AsTime().Equal(at(5).AsTime()) {
		t.Errorf("the one that moved: %v", p)
	}
	for len(others(ctx, a)) != 2 {
		if ctx.Err() != nil {
			t.Fatal("the one that went is not forgotten")
		}
	}
	// A replica that stops says so of all it has; the other's stays.
	if err := ra.gone(ctx, nil); err != nil {
		t.Fatal(err)
	}
	record(ctx, t, rb, proxy("moves/x", func(p *adminv1.ProxyStatus) { p.ConnectedAt = at(5) }))
	for len(others(ctx, a)) != 1 {
		if ctx.Err() != nil {
			t.Fatal("what a stopped replica had is not forgotten")
		}
	}
}

// TestReplicaGone: a replica that died is shown as one that does not answer, and
// is not asked for ever; its proxies were there as long as it was.
func TestReplicaGone(t *testing.T) {
	ctx := testContext(t)
	client := etcd(ctx, t)
	m, _ := replicaOf(ctx, t, client, 0)
	_, dead := replicaOf(ctx, t, client, 0)
	record(ctx, t, dead, proxy("p"))
	seen := time.Now().Add(time.Hour) // its clock is another one
	b, err := json.Marshal(replica{ID: dead.mesh.id, Address: "127.0.0.1:1", Seen: seen})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, m.cfg.StatusKey(replicaKeys+dead.mesh.id), string(b)); err != nil {
		t.Fatal(err)
	}
	v := m.Others(ctx, &adminv1.GetStatusRequest{Local: true})
	if len(v.Replicas) != 1 || !strings.Contains(v.Replicas[0].Error, "does not answer") {
		t.Errorf("%v", v.Replicas)
	}
	if len(v.Proxies) != 1 || v.Proxies[0].Connected || !v.Proxies[0].LastSeen.AsTime().Equal(seen) {
		t.Errorf("%v", v.Proxies)
	}
	// It has been silent for long, by this replica's watch.
	m.mu.Lock()
	m.records.replicas[0].heard = time.Now().Add(-missed - time.Second)
	m.mu.Unlock()
	if v := m.Others(ctx, &adminv1.GetStatusRequest{Local: true}); len(v.Replicas) != 1 || !strings.Contains(v.Replicas[0].Error, "last sign of life") {
		t.Errorf("%v", v.Replicas)
	}
	// Others on other machines are not asked in the clear.
	if _, err := m.peer("10.1.2.3:7420"); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("another machine without TLS: %v", err)
	}
}

// TestReplicaReplaced: a replica that was killed and started again, with its address, is shown
// as the one that it is; where nobody lives at an address, each that was there is shown.
func TestReplicaReplaced(t *testing.T) {
	now := time.Now()
	silent := now.Add(-missed - time.Second)
	for name, tc := range map[string]struct {
		known []replica
		shown string
	}{
		"started again":   {[]replica{{ID: "again", Address: "127.0.0.1:1", heard: now}, {ID: "killed", Address: "127.0.0.1:1", heard: silent}}, "again"},
		"killed":          {[]replica{{ID: "killed", Address: "127.0.0.1:1", heard: silent}, {ID: "other", Address: "127.0.0.1:2", heard: now}}, "killed other"},
		"killed twice":    {[]replica{{ID: "again", Address: "127.0.0.1:1", heard: silent}, {ID: "killed", Address: "127.0.0.1:1", heard: silent}}, "again killed"},
		"a moment before": {[]replica{{ID: "again", Address: "127.0.0.1:1", heard: now}, {ID: "killed", Address: "127.0.0.1:1", heard: now}}, "again killed"},
	} {
		m := New(Config{Log: quiet})
		m.records = records{replicas: tc.known, at: now.Add(time.Hour)} // not read again
		var shown []string
		for _, r := range m.Others(testContext(t), &adminv1.GetStatusRequest{Local: true}).Replicas {
			shown = append(shown, r.Id)
		}
		if got := strings.Join(shown, " "); got != tc.shown {
			t.Errorf("%s: %s are shown, not %s", name, got, tc.shown)
		}
	}
}

// TestEtcdLost: without etcd a status says so, from the time on at which it was
// lost, and has what was read before.
func TestEtcdLost(t *testing.T) {
	ctx := testContext(t)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	client := e.Client()
	m, r := replicaOf(ctx, t, client, 0)
	record(ctx, t, r, proxy("p"))
	if v := m.Others(ctx, &adminv1.GetStatusRequest{Local: true}); len(v.Proxies) != 1 || len(v.Alarms) != 0 {
		t.Errorf("%v", v)
	}
	e.Close()
	var since time.Time
	for range 2 {
		if err := m.beat(ctx, r.lease); err == nil {
			t.Error("it could write that it lives")
		}
		v := m.Others(ctx, &adminv1.GetStatusRequest{Local: true})
		if len(v.Proxies) != 1 || len(v.Alarms) != 1 || v.Alarms[0].Reason != "EtcdUnreachable" {
			t.Errorf("%v", v)
		}
		if at := v.Alarms[0].Since.AsTime(); since.IsZero() {
			since = at
		} else if !at.Equal(since) {
			t.Errorf("it is lost since %v, and since %v", since, at)
		}
	}
}

// world is a server for reports; whoever reports as "thief" is refused.
type world struct {
	*testing.T
	ctx     context.Context
	reports *Reports
	client  discoveryv1.ProxyStatusServiceClient
}

func newWorld(t *testing.T, streams int) *world {
	t.Helper()
	w := &world{T: t, ctx: testContext(t)}
	w.reports = NewReports(ReportsConfig{MaxStreams: streams, Log: quiet, Authorize: func(_ context.Context, node string) error {
		if node == "thief" {
			return status.Error(codes.PermissionDenied, "the certificate is not of thief")
		}
		return nil
	}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	discoveryv1.RegisterProxyStatusServiceServer(s, w.reports)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	w.client = discoveryv1.NewProxyStatusServiceClient(conn)
	return w
}

type stream = grpc.BidiStreamingClient[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse]

// report opens a stream with a first report.
func (w *world) report(r *discoveryv1.ReportStatusRequest) stream {
	w.Helper()
	s, err := w.client.ReportStatus(w.ctx)
	if err == nil {
		err = s.Send(r)
	}
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// await waits until a node's report fits.
func (w *world) await(node, what string, fits func(*discoveryv1.ReportStatusRequest) bool) {
	w.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !fits(w.reports.Report(node)) {
		select {
		case <-again.C:
		case <-w.ctx.Done():
			w.Fatalf("%s: %v", what, w.reports.Report(node))
		}
	}
}

// TestReports: the newest report of each node is kept as long as it reports;
// commands reach it.
func TestReports(t *testing.T) {
	w := newWorld(t, 0)
	s := w.report(&discoveryv1.ReportStatusRequest{NodeId: "a", Info: &discoveryv1.NodeInfo{Zone: "z"}, Load: &discoveryv1.Load{Streams: 1}})
	w.await("a", "the first report", func(r *discoveryv1.ReportStatusRequest) bool { return r.GetLoad().GetStreams() == 1 && r.Info == nil })
	if err := s.Send(&discoveryv1.ReportStatusRequest{Load: &discoveryv1.Load{Streams: 2}, Draining: true}); err != nil {
		t.Fatal(err)
	}
	w.await("a", "the second", func(r *discoveryv1.ReportStatusRequest) bool { return r.GetLoad().GetStreams() == 2 && r.Draining })
	resync := &discoveryv1.ReportStatusResponse{Command: &discoveryv1.ReportStatusResponse_Resync{Resync: &discoveryv1.Resync{}}}
	if told := w.reports.Command("resync", resync, []string{"b", "a", "a"}); len(told) != 1 || told[0] != "a" {
		t.Errorf("told %v", told)
	}
	if c, err := s.Recv(); err != nil || c.GetResync() == nil {
		t.Errorf("%v %v", c, err)
	}
	// It came again, before its last stream was seen to end.
	newer := w.report(&discoveryv1.ReportStatusRequest{NodeId: "a", Load: &discoveryv1.Load{Streams: 3}})
	for {
		if _, err := s.Recv(); err != nil {
			if status.Code(err) != codes.Aborted {
				t.Errorf("the older stream ends with %v", err)
			}
			break
		}
	}
	w.await("a", "the newer stream's", func(r *discoveryv1.ReportStatusRequest) bool { return r.GetLoad().GetStreams() == 3 })
	if told := w.reports.Command("resync", resync, nil); len(told) != 1 {
		t.Errorf("all are told: %v", told)
	}
	if err := newer.CloseSend(); err != nil {
		t.Fatal(err)
	}
	w.await("a", "it left", func(r *discoveryv1.ReportStatusRequest) bool { return r == nil })
}

// TestReportsRefused: another's node id, too much, too often and too many end the
// stream; nothing of it is kept.
func TestReportsRefused(t *testing.T) {
	w := newWorld(t, 2)
	long := strings.Repeat("x", maxReport)
	for name, tc := range map[string]struct {
		reports []*discoveryv1.ReportStatusRequest
		code    codes.Code
	}{
		"no node id":       {[]*discoveryv1.ReportStatusRequest{{}}, codes.InvalidArgument},
		"a long node id":   {[]*discoveryv1.ReportStatusRequest{{NodeId: long[:129]}}, codes.InvalidArgument},
		"another's":        {[]*discoveryv1.ReportStatusRequest{{NodeId: "thief"}}, codes.PermissionDenied},
		"another's, later": {[]*discoveryv1.ReportStatusRequest{{NodeId: "a"}, {NodeId: "b"}}, codes.PermissionDenied},
		"too much":         {[]*discoveryv1.ReportStatusRequest{{NodeId: "a", Stores: []*discoveryv1.StoreState{{Message: long}}}}, codes.ResourceExhausted},
		"too often":        {make([]*discoveryv1.ReportStatusRequest, 3*reportBurst), codes.ResourceExhausted},
	} {
		s := w.report(first(tc.reports))
		for _, r := range tc.reports[1:] {
			if r == nil {
				r = &discoveryv1.ReportStatusRequest{}
			}
			if s.Send(r) != nil {
				break // it has ended; Recv says why
			}
		}
		if _, err := s.Recv(); status.Code(err) != tc.code {
			t.Errorf("%s: %v", name, err)
		}
		w.await("a", name, func(r *discoveryv1.ReportStatusRequest) bool { return r == nil })
	}
	for _, node := range []string{"one", "two"} {
		w.report(&discoveryv1.ReportStatusRequest{NodeId: node})
		w.await(node, node, func(r *discoveryv1.ReportStatusRequest) bool { return r != nil })
	}
	if _, err := w.report(&discoveryv1.ReportStatusRequest{NodeId: "three"}).Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	// What is too long is cut.
	r := &discoveryv1.ReportStatusRequest{Config: &discoveryv1.AppliedConfig{Withheld: make([]string, 2*maxNames)}}
	for range 2 * maxRejections {
		r.Config.Rejections = append(r.Config.Rejections, &discoveryv1.Rejection{Reason: long})
	}
	bound(r)
	if len(r.Config.Withheld) != maxNames || len(r.Config.Rejections) != maxRejections || len(r.Config.Rejections[0].Reason) != maxText {
		t.Error("a long report is kept whole")
	}
}

// first is a stream's first report.
func first(rs []*discoveryv1.ReportStatusRequest) *discoveryv1.ReportStatusRequest {
	if rs[0] == nil {
		return &discoveryv1.ReportStatusRequest{NodeId: "a"}
	}
	return rs[0]
}
