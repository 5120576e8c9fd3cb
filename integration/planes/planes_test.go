// Package planes tests the walk of one change: admin API, etcd, snapshot,
// discovery stream, proxy. Both planes are real and in this process; etcd is
// embedded, so that these tests are quick and can hold one replica back.
package planes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/latest"
)

var quiet = slog.New(slog.DiscardHandler)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startEtcd(ctx context.Context, t *testing.T) *embedetcd.Server {
	t.Helper()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// replica is a running control plane.
type replica struct {
	*server.Server
	admin adminv1.AdminServiceClient
	stop  func()
}

func startReplica(ctx context.Context, t *testing.T, e *embedetcd.Server, change ...func(*server.Config)) *replica {
	t.Helper()
	cfg := server.Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		DrainTime: time.Millisecond, Log: quiet}
	for _, c := range change {
		c(&cfg)
	}
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(rctx) }()
	r := &replica{Server: s, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})}
	t.Cleanup(r.stop)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.admin = adminv1.NewAdminServiceClient(conn)
	return r
}

// node is a proxy's configuration client.
type node struct {
	states *latest.Value[config.State]
	stop   func()
}

// startNode starts a client that refuses what refuse says.
func startNode(t *testing.T, dir string, refuse func(*configv1.Resource) bool, info *discoveryv1.NodeInfo, addrs ...string) *node {
	t.Helper()
	n := &node{states: latest.New(config.State{})}
	if info == nil {
		info = &discoveryv1.NodeInfo{}
	}
	info.Manifest = true
	c := config.New(config.Config{Addresses: addrs, NodeID: "node-1", Info: info, Dir: dir, Log: quiet,
		Check: func(r *configv1.Resource) (string, error) {
			if refuse != nil && refuse(r) {
				return "spec", errors.New("not to this node's taste")
			}
			return snapshot.Check(r)
		},
		Apply: func(_ context.Context, s config.State) { n.states.Store(s) }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// await waits for a state that fits.
func (n *node) await(ctx context.Context, t *testing.T, what string, fits func(config.State) bool) config.State {
	t.Helper()
	for {
		s, changed := n.states.Load()
		if fits(s) {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: revision %d, %d resources, withheld %v", what, s.Revision, len(s.Set), s.Withheld)
		}
	}
}

func at(name, want string) func(config.State) bool {
	return func(s config.State) bool {
		v, ok := s.Set[name]
		return ok == (want != "") && v.Resource.GetMetadata().GetLabels()["v"] == want
	}
}

func eventStore(ns, name, label string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
}

func topic(ns, name string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name},
		Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}}
}

func apply(ctx context.Context, t *testing.T, r *replica, rs ...*configv1.Resource) *adminv1.ApplyResponse {
	t.Helper()
	resp, err := r.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: rs})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// TestOneChange walks a change from the admin API to a proxy and back as an
// acknowledgement.
func TestOneChange(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	n := startNode(t, t.TempDir(), nil, nil, cp.Addrs().Discovery)
	resp := apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"))
	for _, r := range resp.Results {
		if r.Outcome != adminv1.ApplyResult_OUTCOME_CREATED || r.Uid == "" {
			t.Errorf("%v", r)
		}
	}
	s := n.await(ctx, t, "the topic's admission", func(s config.State) bool { return s.Set["topicadmission/demo/orders"].Resource != nil })
	snap := snapshot.Compile(snapshot.Input{Set: s.Set})
	if got := snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}]; got.NotReady != "" || got.Written().Physical != "demo_orders" || got.AtProxy == nil {
		t.Errorf("%+v", got)
	}
	again := apply(ctx, t, cp, eventStore("demo", "main", "1"))
	if again.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED {
		t.Errorf("applying the same again: %v", again)
	}
	apply(ctx, t, cp, eventStore("demo", "main", "2"))
	n.await(ctx, t, "the update", at("eventstore/demo/main", "2"))
	if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "topic/demo/orders"}}}); err != nil {
		t.Fatal(err)
	}
	s = n.await(ctx, t, "the removal", func(s config.State) bool { return s.Set["topic/demo/orders"].Resource == nil })
	for name := range s.Set {
		if strings.HasPrefix(name, "topic") {
			t.Errorf("%s is left behind", name)
		}
	}
	for { // the acknowledgement follows the application
		st, err := cp.admin.GetStatus(ctx, &adminv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Proxies) == 1 && st.Proxies[0].AckedRevision >= st.Revision && st.Proxies[0].NodeId == "node-1" {
			break
		}
	}
}

// TestRefusalsOfApply: a change that is wrong is refused as a whole, with every
// problem.
func TestRefusalsOfApply(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	bad := topic("demo", "a..b")
	_, err := cp.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore("demo", "main", ""), bad, eventStore("Demo", "x", "")}})
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "a..b") || !strings.Contains(st.Message(), "Demo") || len(st.Details()) != 1 {
		t.Errorf("%v %v", st.Message(), st.Details())
	}
	if _, err := cp.admin.Get(ctx, &adminv1.GetRequest{Name: "eventstore/demo/main"}); status.Code(err) != codes.NotFound {
		t.Errorf("a part of a refused change is there: %v", err)
	}
	if _, err := cp.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "orders")}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a topic without its store: %v", err)
	}
	apply(ctx, t, cp, eventStore("demo", "main", ""), topic("demo", "orders"))
	if _, err := cp.admin.Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "eventstore/demo/main"}}}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a store that is used is deleted: %v", err)
	}
	stale := eventStore("demo", "main", "2")
	stale.Metadata.Version = "1"
	if _, err := cp.admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{stale}}); status.Code(err) != codes.Aborted {
		t.Errorf("a change of an older version: %v", err)
	}
	dry, err := cp.admin.Apply(ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{eventStore("demo", "other", "")}})
	if err != nil || dry.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_CREATED {
		t.Errorf("%v %v", dry, err)
	}
	if _, err := cp.admin.Get(ctx, &adminv1.GetRequest{Name: "eventstore/demo/other"}); status.Code(err) != codes.NotFound {
		t.Errorf("a dry run wrote: %v", err)
	}
}

// TestLastGood: a refused version leaves the last good one in force; others go
// on. That holds over a resync, at another replica, and over a restart from
// disk; a newer good version ends it.
func TestLastGood(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	first := startReplica(ctx, t, e)
	dir := t.TempDir()
	refuse := func(r *configv1.Resource) bool { return r.Metadata.Labels["v"] == "bad" }
	const poisoned, fine, never = "eventstore/demo/poisoned", "eventstore/demo/fine", "eventstore/demo/never"
	holds := func(fineAt string) func(config.State) bool {
		return func(s config.State) bool {
			return at(poisoned, "1")(s) && at(fine, fineAt)(s) && len(s.Withheld) == 1 && s.Withheld[0] == never
		}
	}
	apply(ctx, t, first, eventStore("demo", "poisoned", "1"), eventStore("demo", "fine", "1"))
	n := startNode(t, dir, refuse, nil, first.Addrs().Discovery)
	n.await(ctx, t, "the start", at(poisoned, "1"))
	apply(ctx, t, first, eventStore("demo", "poisoned", "bad"), eventStore("demo", "never", "bad"), eventStore("demo", "fine", "2"))
	n.await(ctx, t, "the refusal", holds("2"))
	for {
		st, err := first.admin.GetStatus(ctx, &adminv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Proxies) == 1 && len(st.Proxies[0].Rejections) == 2 && st.Proxies[0].Rejections[0].Reason != "" {
			break
		}
	}

	// At another replica, and resumed.
	n.stop()
	second := startReplica(ctx, t, e)
	n = startNode(t, dir, refuse, nil, second.Addrs().Discovery)
	n.await(ctx, t, "the other replica", func(s config.State) bool { return holds("2")(s) && s.Origin == snapshot.Live })

	// From disk, with no control plane at all.
	n.stop()
	n = startNode(t, dir, refuse, nil, "127.0.0.1:1")
	n.await(ctx, t, "the disk", func(s config.State) bool { return holds("2")(s) && s.Origin == snapshot.FromDisk })
	n.stop()

	// A lineage that nobody has announced: everything is synced from nothing.
	if _, err := e.Client().Put(ctx, "/weft/v1/m/lineage", "2-restored"); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, dir, refuse, nil, second.Addrs().Discovery)
	n.await(ctx, t, "the resync", func(s config.State) bool { return s.Lineage == "2-restored" && holds("2")(s) })

	apply(ctx, t, second, eventStore("demo", "poisoned", "3"))
	n.await(ctx, t, "the good version", at(poisoned, "3"))
}

// TestScope: a proxy gets the namespaces that it serves and nothing else.
func TestScope(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, cp, eventStore("a", "x", "1"), eventStore("b", "x", "1"))
	n := startNode(t, "", nil, &discoveryv1.NodeInfo{Namespaces: []string{"a"}}, cp.Addrs().Discovery)
	n.await(ctx, t, "its namespace", at("eventstore/a/x", "1"))
	apply(ctx, t, cp, eventStore("b", "x", "2"))
	apply(ctx, t, cp, eventStore("a", "x", "2"))
	s := n.await(ctx, t, "the change", at("eventstore/a/x", "2"))
	if len(s.Set) != 1 {
		t.Errorf("it has %d resources, of other namespaces too", len(s.Set))
	}
}

// TestManyChunks: a sync that takes several responses is applied as a whole.
func TestManyChunks(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	big := strings.Repeat("x", 63)
	total := 0
	for range 50 {
		var rs []*configv1.Resource
		for range 100 {
			r := eventStore("demo", "s"+string(rune('a'+total%26))+strings.Repeat("y", total/26%40)+"-"+string(rune('a'+total/1040)), "1")
			for i := range 8 {
				r.Metadata.Labels["l"+string(rune('a'+i))] = big
			}
			rs = append(rs, r)
			total++
		}
		apply(ctx, t, cp, rs...)
	}
	n := startNode(t, t.TempDir(), nil, nil, cp.Addrs().Discovery)
	s := n.await(ctx, t, "everything", func(s config.State) bool { return s.Revision > 0 })
	if len(s.Set) != total {
		t.Errorf("the first state has %d of %d resources", len(s.Set), total)
	}
}

// TestDamagedDisk: a damaged generation is noticed and the one before it is
// used; without any the proxy has no configuration.
func TestDamagedDisk(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	dir := t.TempDir()
	n := startNode(t, dir, nil, nil, cp.Addrs().Discovery)
	for _, v := range []string{"1", "2", "3", "4", "5"} {
		apply(ctx, t, cp, eventStore("demo", "main", v))
		n.await(ctx, t, v, at("eventstore/demo/main", v))
	}
	n.stop()
	files, err := filepath.Glob(filepath.Join(dir, "last-good.*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%d generations: %v", len(files), err)
	}
	for i, want := range []string{"5", "4", "3", ""} {
		n := startNode(t, dir, nil, nil, "127.0.0.1:1")
		if want == "" {
			// Nothing to start from: Run goes on to connect, and no state comes.
			n.stop()
			if s := n.states.Get(); s.Revision != 0 {
				t.Errorf("a damaged configuration is in force: %v", s)
			}
			break
		}
		n.await(ctx, t, "generation "+want, at("eventstore/demo/main", want))
		n.stop()
		b, err := os.ReadFile(files[2-i])
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			b[len(b)/2] ^= 1 // a flipped bit
		case 1:
			b = b[:len(b)-7] // cut short
		case 2:
			b = nil
		}
		if err := os.WriteFile(files[2-i], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedDiskMended: with a control plane there, a proxy has the newest
// configuration again, however many of its generations are damaged, goes on the way
// from the newest that is whole, and writes good ones.
func TestDamagedDiskMended(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	dir := t.TempDir()
	n := startNode(t, dir, nil, nil, cp.Addrs().Discovery)
	for _, v := range []string{"1", "2", "3", "4", "5"} {
		apply(ctx, t, cp, eventStore("demo", "main", v))
		n.await(ctx, t, v, at("eventstore/demo/main", v))
	}
	n.stop()
	for damaged := range 4 {
		mine := filepath.Join(t.TempDir(), "config")
		if err := os.CopyFS(mine, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(mine, "last-good.*"))
		if err != nil || len(files) != 3 {
			t.Fatalf("%d generations: %v", len(files), err)
		}
		for _, file := range files[3-damaged:] {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, b[:len(b)-1], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n := startNode(t, mine, nil, nil, cp.Addrs().Discovery)
		n.await(ctx, t, fmt.Sprintf("the newest with %d damaged", damaged), at("eventstore/demo/main", "5"))
		next := fmt.Sprint(6 + damaged)
		apply(ctx, t, cp, eventStore("demo", "main", next))
		n.await(ctx, t, next, at("eventstore/demo/main", next))
		n.stop()
		n = startNode(t, mine, nil, nil, "127.0.0.1:1")
		n.await(ctx, t, next+" from disk", at("eventstore/demo/main", next))
		n.stop()
		apply(ctx, t, cp, eventStore("demo", "main", "5"))
	}
}

// TestEmptiedEtcd: a control plane whose etcd lost everything empties no proxy, until
// somebody declares that this is so.
func TestEmptiedEtcd(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a, b := startReplica(ctx, t, startEtcd(ctx, t)), startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, a, eventStore("demo", "main", "1"))
	dir := t.TempDir()
	n := startNode(t, dir, nil, nil, a.Addrs().Discovery)
	before := n.await(ctx, t, "the configuration", func(s config.State) bool { return len(s.Set) > 0 })
	n.stop()
	a.stop()
	n = startNode(t, dir, nil, nil, b.Addrs().Discovery)
	n.await(ctx, t, "the configuration on its disk", func(s config.State) bool { return s.Revision == before.Revision })
	suspected := func() bool {
		st, err := b.admin.GetStatus(ctx, &adminv1.GetStatusRequest{Local: true})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(st.Alarms, func(a *adminv1.Alarm) bool {
			return a.Reason == "RestoreSuspected" && strings.Contains(a.Message, before.Lineage)
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !suspected() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("nobody is told")
		}
	}
	if now := n.states.Get(); now.Lineage != before.Lineage || len(now.Set) != len(before.Set) {
		t.Errorf("the proxy has %s and %d resources", now.Lineage, len(now.Set))
	}
	resp, err := b.admin.DeclareRestore(ctx, &adminv1.DeclareRestoreRequest{Reason: "begin anew"})
	if err != nil {
		t.Fatal(err)
	}
	n.await(ctx, t, "the end of the configuration", func(s config.State) bool { return s.Lineage == resp.Lineage && len(s.Set) == 0 })
}
