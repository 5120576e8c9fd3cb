package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// alone is the view of a replica that has no others, and of proxies what connected says.
func alone(etcd *clientv3.Client, store *configstore.Store, connected func() []*adminv1.ProxyStatus) *census.Mesh {
	return census.New(census.Config{Etcd: etcd, StatusKey: store.StatusKey, Connected: connected,
		Report: func(id string) *discoveryv1.ReportStatusRequest {
			for _, p := range connected() {
				if p.NodeId == id {
					return p.Report
				}
			}
			return nil
		}, Offices: &election.Offices{}, Log: slog.New(slog.DiscardHandler)})
}

// world is the API of some replicas above a real etcd.
type world struct {
	testing.TB
	ctx      context.Context
	etcd     *clientv3.Client
	api      []adminv1.AdminServiceClient
	stores   []*configstore.Store
	services []*Service
	conns    []*grpc.ClientConn
	// connected are the proxies that are connected to each replica.
	connected atomic.Pointer[[]*adminv1.ProxyStatus]
	// ahead is how far the replicas' clocks are, in nanoseconds.
	ahead atomic.Int64
}

// proxies are copies: they are sorted and shortened in place.
func (w *world) proxies() []*adminv1.ProxyStatus {
	var out []*adminv1.ProxyStatus
	if list := w.connected.Load(); list != nil {
		for _, p := range *list {
			out = append(out, proto.Clone(p).(*adminv1.ProxyStatus))
		}
	}
	return out
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func newWorld(t testing.TB, replicas int) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	if _, fuzzing := t.(*testing.F); fuzzing {
		ctx, cancel = context.WithCancel(context.Background())
	}
	t.Cleanup(cancel)
	w := &world{TB: t, ctx: ctx}
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	w.must(err)
	t.Cleanup(e.Close)
	w.etcd = e.Client()
	for range replicas {
		w.replica()
	}
	return w
}

// replica adds one that reads what is there.
func (w *world) replica() {
	w.Helper()
	validator, err := validate.New()
	w.must(err)
	store := configstore.New(configstore.Config{Client: w.etcd, Clock: w.now, Log: slog.New(slog.DiscardHandler)})
	rctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 4)
	go func() { ended <- store.Run(rctx) }()
	if _, err := store.WaitFor(w.ctx, 0); err != nil {
		w.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	access, err := NewAccess(AccessConfig{})
	w.must(err)
	joins := jointoken.New(jointoken.Config{Etcd: w.etcd, Prefix: store.JoinTokens(), Lineage: store.LineageKey(), Log: slog.New(slog.DiscardHandler)})
	go func() { ended <- joins.Run(rctx) }()
	nodes := roster.New(roster.Config{Etcd: w.etcd, Prefix: store.StatusKey("node/"), Lineage: store.LineageKey(), Head: store.Changed, Log: slog.New(slog.DiscardHandler)})
	go func() { ended <- nodes.Run(rctx) }()
	service := New(Config{Store: store, Clock: w.now, Validator: validator, Mesh: alone(w.etcd, store, w.proxies), Commands: census.NewReports(census.ReportsConfig{Log: slog.New(slog.DiscardHandler)}),
		JoinTokens: joins, Roster: nodes, Log: slog.New(slog.DiscardHandler),
		Conditions: func(context.Context) (map[string][]*adminv1.Condition, error) { return nil, nil }})
	srv := grpc.NewServer(service.ServerOptions(access)...)
	adminv1.RegisterAdminServiceServer(srv, service)
	go func() { ended <- srv.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.conns = append(w.conns, conn)
	w.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		stop()
		for range cap(ended) {
			<-ended
		}
	})
	w.api, w.stores, w.services = append(w.api, adminv1.NewAdminServiceClient(conn)), append(w.stores, store), append(w.services, service)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func eventStore(ns, name, label string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
}

func topic(ns, name string) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}}
}

func (w *world) apply(rs ...*configv1.Resource) *adminv1.ApplyResponse {
	w.Helper()
	resp, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: rs})
	w.must(err)
	return resp
}

func targets(names ...string) *adminv1.DeleteRequest {
	req := &adminv1.DeleteRequest{}
	for _, n := range names {
		req.Targets = append(req.Targets, &adminv1.DeleteTarget{Name: n})
	}
	return req
}

// names are all resources that there are.
func (w *world) names() []string {
	w.Helper()
	snap, err := w.stores[0].Current()
	w.must(err)
	var out []string
	for e := range snap.All("") {
		out = append(out, e.Name)
	}
	return out
}

// TestRefusals: each has its code and says what is wrong; nothing is written.
func TestRefusals(t *testing.T) {
	w := newWorld(t, 1)
	first := w.apply(eventStore("demo", "main", "1"), topic("demo", "orders"))
	there := w.names()
	many := make([]*configv1.Resource, 101)
	topics := make([]*configv1.Resource, 100)
	large := make([]*configv1.Resource, 100)
	for i := range many {
		many[i] = eventStore("demo", fmt.Sprintf("s%d", i), "")
	}
	for i := range topics {
		topics[i] = topic("demo", fmt.Sprintf("t%d", i))
		large[i] = &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: fmt.Sprintf("i%d", i)},
			Spec: &configv1.Resource_Identity{Identity: &configv1.Identity{Method: &configv1.Identity_Mtls{Mtls: &configv1.MutualTls{CaCertificates: strings.Repeat("x", 20<<10)}}}}}
	}
	with := func(change func(*configv1.Metadata)) []*configv1.Resource {
		r := eventStore("demo", "main", "2")
		change(r.Metadata)
		return []*configv1.Resource{r}
	}
	for name, tc := range map[string]struct {
		rs   []*configv1.Resource
		code codes.Code
		says string
	}{
		"none":             {nil, codes.InvalidArgument, "1 to 100 resources"},
		"too many":         {many, codes.InvalidArgument, "this one has 101"},
		"too many writes":  {topics, codes.InvalidArgument, "200 writes"},
		"too large":        {large, codes.InvalidArgument, "at most 1048576 bytes"},
		"nothing in it":    {[]*configv1.Resource{{}}, codes.InvalidArgument, "no kind"},
		"no metadata":      {[]*configv1.Resource{{Spec: topic("", "").Spec}}, codes.InvalidArgument, "metadata"},
		"system kind":      {[]*configv1.Resource{{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{}}}}, codes.InvalidArgument, "only the control plane writes"},
		"manifest":         {[]*configv1.Resource{{Metadata: &configv1.Metadata{Namespace: "demo", Name: "x"}, Spec: &configv1.Resource_Manifest{Manifest: &configv1.Manifest{}}}}, codes.InvalidArgument, "only the control plane writes"},
		"older version":    {with(func(m *configv1.Metadata) { m.Version = "1" }), codes.Aborted, "is at version " + first.Results[0].Version},
		"another uid":      {with(func(m *configv1.Metadata) { m.Uid = "0190a0b0-0000-7000-8000-000000000001" }), codes.FailedPrecondition, "created again"},
		"gone":             {with(func(m *configv1.Metadata) { m.Name, m.Version = "gone", "1" }), codes.FailedPrecondition, "does not exist any more"},
		"twice":            {[]*configv1.Resource{eventStore("demo", "x", "1"), eventStore("demo", "x", "2")}, codes.InvalidArgument, "twice"},
		"one of two wrong": {[]*configv1.Resource{eventStore("demo", "x", "1"), topic("demo", "a..b")}, codes.InvalidArgument, "a..b"},
		"reference":        {[]*configv1.Resource{topic("other", "x")}, codes.FailedPrecondition, "no EventStore main"},
		"a name that lies": {[]*configv1.Resource{{Name: "topic/demo/y", Metadata: &configv1.Metadata{Namespace: "demo", Name: "x"}, Spec: topic("", "").Spec}}, codes.InvalidArgument, "kind and metadata say"},
	} {
		for _, dry := range []bool{false, true} {
			_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: tc.rs, DryRun: dry})
			if name == "too many writes" && dry {
				continue // only the write counts them
			}
			if status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// Problems come with their fields, for programs too.
	_, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "a..b"), topic("Demo", "x")}})
	fields := map[string]bool{}
	for _, d := range status.Convert(err).Details() {
		if br, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range br.FieldViolations {
				fields[v.Field] = v.Description != "" && v.Reason != ""
			}
		}
	}
	if !fields["topic/demo/a..b: metadata.name"] || !fields["topic/Demo/x: metadata.namespace"] {
		t.Errorf("%v, %v", err, fields)
	}
	for name, tc := range map[string]struct {
		req  *adminv1.DeleteRequest
		code codes.Code
		says string
	}{
		"none":          {targets(), codes.InvalidArgument, "1 to 100 targets"},
		"too many":      {targets(make([]string, 101)...), codes.InvalidArgument, "101"},
		"not there":     {targets("topic/demo/none"), codes.NotFound, "topic/demo/none does not exist"},
		"no name":       {targets("orders"), codes.NotFound, "does not exist"},
		"used":          {targets("eventstore/demo/main"), codes.FailedPrecondition, "topic/demo/orders"},
		"system kind":   {targets("topicbinding/demo/orders"), codes.InvalidArgument, "only the control plane writes"},
		"twice":         {targets("topic/demo/orders", "topic/demo/orders"), codes.InvalidArgument, "twice"},
		"older version": {&adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "topic/demo/orders", Version: "1"}}}, codes.Aborted, "get it and decide again"},
		"one not there": {targets("topic/demo/orders", "topic/demo/none"), codes.NotFound, "topic/demo/none"},
	} {
		if _, err := w.api[0].Delete(w.ctx, tc.req); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("deleting %s: %v", name, err)
		}
	}
	if _, err := w.api[0].Delete(w.ctx, &adminv1.DeleteRequest{Targets: targets("topic/demo/orders").Targets, DryRun: true}); err != nil {
		t.Errorf("a dry run: %v", err)
	}
	if got := w.names(); !slices.Equal(got, there) {
		t.Errorf("%v are there, before it were %v", got, there)
	}
	for _, name := range []string{"", "orders", "topic/demo", "topic/../x", "TOPIC/demo/orders", "topic/demo/" + strings.Repeat("x", 4<<10), "topic/demo/a\x00b"} {
		if _, err := w.api[0].Get(w.ctx, &adminv1.GetRequest{Name: name}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("getting %.40q: %v", name, err)
		}
	}
}

// TestLife: created, unchanged, updated, deleted with what belongs to it,
// created again as another.
func TestLife(t *testing.T) {
	w := newWorld(t, 1)
	r := w.apply(eventStore("demo", "main", "1"), topic("demo", "orders"))
	if !slices.Equal(w.names(), []string{"eventstore/demo/main", "topic/demo/orders", "topicbinding/demo/orders"}) || r.Results[0].Version != fmt.Sprint(r.Revision) {
		t.Errorf("%v: %v", w.names(), r)
	}
	same := w.apply(eventStore("demo", "main", "1"))
	if same.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED || same.Results[0].Version != r.Results[0].Version {
		t.Errorf("%v", same)
	}
	dry, err := w.api[0].Apply(w.ctx, &adminv1.ApplyRequest{DryRun: true, Resources: []*configv1.Resource{eventStore("demo", "main", "2"), eventStore("demo", "new", "")}})
	if err != nil || dry.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_UPDATED || dry.Results[1].Outcome != adminv1.ApplyResult_OUTCOME_CREATED {
		t.Errorf("%v %v", dry, err)
	}
	up := w.apply(eventStore("demo", "main", "2"))
	if up.Results[0].Outcome != adminv1.ApplyResult_OUTCOME_UPDATED || up.Results[0].Uid != r.Results[0].Uid || up.Revision <= r.Revision {
		t.Errorf("%v", up)
	}
	got, err := w.api[0].Get(w.ctx, &adminv1.GetRequest{Name: "eventstore/demo/main"})
	w.must(err)
	if md := got.Resource.Metadata; md.Version != up.Results[0].Version || md.Labels["v"] != "2" || md.CreatedAt == nil || md.Uid != r.Results[0].Uid {
		t.Errorf("%v", got)
	}
	if _, err := w.api[0].Delete(w.ctx, targets("topic/demo/orders")); err != nil {
		t.Fatal(err)
	}
	if got := w.names(); !slices.Equal(got, []string{"eventstore/demo/main"}) {
		t.Errorf("%v are left", got)
	}
	if again := w.apply(topic("demo", "orders")); again.Results[0].Uid == r.Results[1].Uid {
		t.Error("what was created again has the old uid")
	}
}

// TestRace: replicas that decide on what they both saw never leave what
// contradicts itself: one deletes a store, the other adds its topic.
func TestRace(t *testing.T) {
	w := newWorld(t, 2)
	for i := range 20 {
		w.apply(eventStore("demo", "main", fmt.Sprint(i)))
		snap, err := w.stores[0].Current()
		w.must(err)
		_, err = w.stores[1].WaitFor(w.ctx, snap.Revision)
		w.must(err)
		var wg sync.WaitGroup
		var errs [2]error
		wg.Go(func() { _, errs[0] = w.api[0].Delete(w.ctx, targets("eventstore/demo/main")) })
		wg.Go(func() {
			_, errs[1] = w.api[1].Apply(w.ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{topic("demo", "orders")}})
		})
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("deleting the store: %v; adding its topic: %v", errs[0], errs[1])
		}
		if err := errors.Join(errs[:]...); !strings.Contains(err.Error(), codes.FailedPrecondition.String()) {
			t.Errorf("%v", err)
		}
		if errs[0] == nil {
			continue
		}
		if _, err := w.api[1].Delete(w.ctx, targets("topic/demo/orders", "eventstore/demo/main")); err != nil {
			t.Fatal(err)
		}
		snap, err = w.stores[1].Current()
		w.must(err)
		_, err = w.stores[0].WaitFor(w.ctx, snap.Revision)
		w.must(err)
	}
}

// TestList: pages lead through all, each once, in order; filters hold; what is
// no page token is refused.
func TestList(t *testing.T) {
	w := newWorld(t, 1)
	for _, ns := range []string{"a", "a-b", "b"} {
		rs := []*configv1.Resource{eventStore(ns, "main", "")}
		for i := range 10 {
			rs = append(rs, topic(ns, fmt.Sprintf("t%d", i)))
		}
		w.apply(rs...)
	}
	all := w.names()
	for _, tc := range []struct{ kind, namespace, prefix, part string }{{"", "", "", ""}, {"topic", "", "topic/", ""}, {"Topics", "a", "topic/a/", ""}, {"", "b", "", "/b/"}, {"route", "", "route/", ""}, {"topic", "none", "topic/none/", ""}} {
		var want []string
		for _, n := range all {
			if strings.HasPrefix(n, tc.prefix) && strings.Contains(n, tc.part) {
				want = append(want, n)
			}
		}
		for _, size := range []uint32{0, 1, 7, 1 << 31} {
			var got []string
			req := &adminv1.ListRequest{Kind: tc.kind, Namespace: tc.namespace, PageSize: size}
			for {
				resp, err := w.api[0].List(w.ctx, req)
				w.must(err)
				if size > 0 && len(resp.Resources) > int(size) {
					t.Errorf("a page of %d has %d", size, len(resp.Resources))
				}
				for _, r := range resp.Resources {
					got = append(got, r.Name)
					if r.Metadata.Version == "" {
						t.Errorf("%s has no version", r.Name)
					}
				}
				if req.PageToken = resp.NextPageToken; req.PageToken == "" {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%+v in pages of %d: %v, want %v", tc, size, got, want)
			}
		}
	}
	for name, req := range map[string]*adminv1.ListRequest{
		"a kind that is none": {Kind: "topik"},
		"namespace":           {Namespace: "../x"},
		"token":               {PageToken: "???"},
		"long token":          {PageToken: strings.Repeat("A", 1000)},
		"token of another":    {Kind: "topic", PageToken: "cm91dGUv"}, // route/
	} {
		if _, err := w.api[0].List(w.ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWatch: what there is, then each change once; what is not asked for is not
// told, and no message is larger than a client takes.
func TestWatch(t *testing.T) {
	w := newWorld(t, 1)
	w.apply(eventStore("demo", "main", "1"), topic("demo", "orders"), eventStore("other", "main", "1"))
	watch := func(req *adminv1.WatchRequest) func() string {
		ctx, cancel := context.WithCancel(w.ctx)
		w.Cleanup(cancel)
		st, err := w.api[0].Watch(ctx, req)
		w.must(err)
		return func() string {
			t.Helper()
			r, err := st.Recv()
			if err != nil {
				return err.Error()
			}
			var said []string
			for _, c := range r.Changed {
				said = append(said, "+"+c.Name)
				if c.Metadata.Version == "" {
					t.Errorf("%s has no version", c.Name)
				}
			}
			for _, d := range r.Deleted {
				said = append(said, "-"+d)
			}
			if r.InitialEnd {
				said = append(said, "all")
			}
			return strings.Join(said, " ")
		}
	}
	topics, demo, none := watch(&adminv1.WatchRequest{Kind: "topic"}), watch(&adminv1.WatchRequest{Namespace: "demo"}), watch(&adminv1.WatchRequest{Kind: "route"})
	for _, tc := range []struct {
		next func() string
		want string
	}{{topics, "+topic/demo/orders all"}, {demo, "+eventstore/demo/main +topic/demo/orders +topicbinding/demo/orders all"}, {none, "all"}} {
		if got := tc.next(); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	w.apply(eventStore("other", "main", "2")) // for none of them
	w.apply(eventStore("demo", "main", "2"))
	if got := demo(); got != "+eventstore/demo/main" {
		t.Errorf("%q", got)
	}
	if _, err := w.api[0].Delete(w.ctx, targets("topic/demo/orders")); err != nil {
		t.Fatal(err)
	}
	if got := topics(); got != "-topic/demo/orders" {
		t.Errorf("%q", got)
	}
	if got := demo(); got != "-topic/demo/orders -topicbinding/demo/orders" {
		t.Errorf("%q", got)
	}
	for _, req := range []*adminv1.WatchRequest{{Kind: "topik"}, {Namespace: "A"}} {
		if got := watch(req)(); !strings.Contains(got, "InvalidArgument") {
			t.Errorf("%v: %q", req, got)
		}
	}
	// More than 4 MiB, which is what clients take in a message.
	snap, err := w.stores[0].Current()
	w.must(err)
	for i := range 6 {
		r := eventStore("demo", fmt.Sprintf("large%d", i), strings.Repeat("x", 900<<10))
		r.Name = resource.NameOf(r)
		rev, err := w.stores[0].Commit(w.ctx, snap, configstore.Change{Put: []*configv1.Resource{r}})
		w.must(err)
		snap, err = w.stores[0].WaitFor(w.ctx, rev)
		w.must(err)
	}
	st, err := w.api[0].Watch(w.ctx, &adminv1.WatchRequest{Kind: "eventstore"})
	w.must(err)
	for n := 0; ; {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) || err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
		if n += len(r.Changed); r.InitialEnd {
			if n != 8 {
				t.Errorf("%d came, 8 are there", n)
			}
			break
		}
	}
}
