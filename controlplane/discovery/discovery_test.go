package discovery

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestDeltas: everything at first, then what changed and is in scope, and
// nothing else.
func TestDeltas(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b", "other/x")
	all, demo, plain := w.connect(w.addr, nil), w.connect(w.addr, nil), w.connect(w.addr, nil)
	plain.plain = true
	all.ask("*")
	demo.ask("*/demo/*")
	plain.send(&discoveryv3.DeltaDiscoveryRequest{Node: plain.node()}) // without names: all, as Envoy's older clients ask
	all.wants("+demo/a +demo/b +other/x")
	demo.wants("+demo/a +demo/b")
	plain.wants("+demo/a +demo/b +other/x")
	if !all.last.Complete || len(all.last.Kinds) != 1 || all.last.Kinds[0].Count != 3 || demo.last.Kinds[0].Count != 2 {
		t.Errorf("%v, %v", all.last, demo.last)
	}
	// What is not of its scope, it does not hear of: the next it hears is b's.
	w.put("2", "other/x")
	all.wants("+other/x")
	w.put("3", "demo/b")
	all.wants("+demo/b")
	demo.wants("+demo/b")
	if demo.last.Complete {
		t.Error("a change says that it is all")
	}
	rev := w.remove("demo/a")
	all.wants("-demo/a")
	demo.wants("-demo/a")
	if demo.last.Revision != rev || demo.has["eventstore/demo/b"] == "" {
		t.Errorf("%v at %d: %v", demo.last, rev, demo.has)
	}
	// What comes while nobody answers is one delta, the newest of each.
	for i := range 50 {
		w.put(fmt.Sprint(i), "demo/b", "demo/c")
	}
	newest := w.put("new", "demo/c")
	for demo.has["eventstore/demo/c"] != strconv.FormatInt(newest, 10) {
		demo.next()
	}
}

// TestConflated: whoever does not answer is sent nothing more, and then what is
// newest, once.
func TestConflated(t *testing.T) {
	w := newWorld(t)
	w.put("0", "demo/a")
	p := w.connect(w.addr, nil)
	p.ask("*")
	first, _ := p.delta()
	for i := range 100 {
		w.put(fmt.Sprint(i), "demo/a", "demo/b", fmt.Sprintf("demo/gone-%d", i))
		w.remove(fmt.Sprintf("demo/gone-%d", i))
	}
	newest := w.put("new", "demo/a", "demo/b")
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.Nonce})
	_, said := p.delta()
	if !strings.HasPrefix(said, "+demo/a +demo/b -demo/gone-0 ") || strings.Count(said, "+") != 2 || p.has["eventstore/demo/a"] != strconv.FormatInt(newest, 10) {
		t.Errorf("%q, %v", said, p.has)
	}
}

// TestRefused: what a proxy refuses by name is not sent again on that stream,
// others are; a refusal without names is of the whole response.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b")
	p := w.connect(w.addr, nil)
	p.ask("*")
	resp, _ := p.delta()
	details, err := anypb.New(&discoveryv1.Rejections{Rejections: []*discoveryv1.Rejection{{Name: "eventstore/demo/a", Version: p.has["eventstore/demo/a"], Field: "spec", Reason: strings.Repeat("é", 5000)}}})
	w.must(err)
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no", Details: []*anypb.Any{details}}})
	w.put("2", "demo/b")
	p.wants("+demo/b")
	status := w.server.Proxies()
	if len(status) != 1 || len(status[0].Rejections) != 1 || status[0].Rejections[0].Name != "eventstore/demo/a" || len(status[0].Rejections[0].Reason) > maxReason {
		t.Fatalf("%v", status)
	}
	if _, err := proto.Marshal(status[0]); err != nil {
		t.Errorf("the status cannot be shown: %v", err)
	}
	// A newer version may be good.
	w.put("3", "demo/a")
	resp, said := p.delta()
	if said != "+demo/a" {
		t.Errorf("%q came", said)
	}
	if n := len(w.server.Proxies()[0].Rejections); n != 0 {
		t.Errorf("%d rejections of versions that are replaced", n)
	}
	// Without names: all that this response had.
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "nothing of it"}})
	w.put("4", "demo/b")
	p.wants("+demo/b")
	if s := w.server.Proxies()[0]; len(s.Rejections) != 1 || s.Rejections[0].Reason != "nothing of it" || s.Rejections[0].Name != "eventstore/demo/a" {
		t.Errorf("%v", s)
	}
	// Asked for by name, it comes all the same.
	p.ask("eventstore/demo/a")
	p.wants("+demo/a")
}

// TestNames: names on demand; an unknown one is said to be so, and comes when it
// is there; subscribing again sends again; a changed subscription counts
// whatever nonce it has.
func TestNames(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b", "demo/c")
	p := w.connect(w.addr, nil)
	p.plain = true
	p.ask("eventstore/demo/a", "eventstore/demo/later")
	p.wants("+demo/a -demo/later")
	w.put("2", "demo/b") // not its
	w.put("1", "demo/later")
	p.wants("+demo/later")
	p.ask("eventstore/demo/a")
	p.wants("+demo/a")
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "stale", ResourceNamesSubscribe: []string{"eventstore/demo/b"}, ResourceNamesUnsubscribe: []string{"eventstore/demo/a"}})
	p.wants("+demo/b")
	w.put("3", "demo/a") // not its any more
	w.put("3", "demo/b")
	p.wants("+demo/b")
	w.remove("demo/b")
	p.wants("-demo/b")
	// All of a namespace, beside: also what is there already.
	p.ask("*/demo/*")
	if got := p.next(); got != "+demo/a +demo/c +demo/later" {
		t.Errorf("%q", got)
	}
	// A wildcard and a name that is not there.
	p = w.connect(w.addr, nil)
	p.plain = true
	p.ask("*", "eventstore/other/none")
	p.wants("+demo/a +demo/c +demo/later -other/none")
}

// TestStaleNonce: an answer to an older response, or to none, acknowledges nothing and
// refuses nothing.
func TestStaleNonce(t *testing.T) {
	const clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	w := newWorld(t)
	before := w.put("1", "demo/a")
	p := w.connect(w.addr, nil)
	p.ask("*")
	old, _ := p.delta()
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: old.Nonce})
	w.put("2", "demo/a")
	resp, _ := p.delta()
	newest := w.put("3", "demo/a")
	for _, nonce := range []string{old.Nonce, "none", resp.Nonce + "0"} {
		p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce})
		p.send(nack(nonce))
		// Were it an answer, what is newest would come before this.
		p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusters, ResourceNamesSubscribe: []string{"c"}})
		if got := p.recv(); got.TypeUrl != clusters {
			t.Errorf("nonce %q is an answer: %v", nonce, got)
		}
		if s := w.server.Proxies()[0]; s.AckedRevision != before || len(s.Rejections) != 0 {
			t.Errorf("after nonce %q: %v", nonce, s)
		}
	}
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce})
	p.wants("+demo/a")
	if p.last.Revision != newest {
		t.Errorf("revision %d came, want %d", p.last.Revision, newest)
	}
}

// TestOtherTypes: whoever asks for a type of Envoy's, first or later, hears that
// there is nothing, once; and then for ours, is served.
func TestOtherTypes(t *testing.T) {
	const clusters = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	w := newWorld(t)
	w.put("1", "demo/a")
	p := w.connect(w.addr, nil)
	p.plain = true
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusters, Node: p.node(), ResourceNamesSubscribe: []string{"c1"}, InitialResourceVersions: map[string]string{"eventstore/demo/a": "7"}})
	resp := p.recv()
	if resp.TypeUrl != clusters || len(resp.Resources) != 0 || !slices.Equal(resp.RemovedResources, []string{"c1"}) || resp.Nonce == "" {
		t.Errorf("%v", resp)
	}
	p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusters, ResponseNonce: resp.Nonce}) // is not answered
	p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.node()})
	if resp, said := p.delta(); resp.TypeUrl != resource.TypeURL || said != "+demo/a" {
		t.Errorf("%q, %v", said, resp)
	}
}

// TestNothingRead: a control plane that has read nothing serves nothing.
func TestNothingRead(t *testing.T) {
	w := newWorld(t)
	_, addr := serve(t, Config{Source: configstore.New(configstore.Config{Client: w.etcd, Log: slog.New(slog.DiscardHandler)}), Log: slog.New(slog.DiscardHandler)})
	p := w.connect(addr, nil)
	p.ask("*")
	if err := p.ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

// TestBehindTheLog: whoever is further behind than the log of changes is told
// everything, and what is gone; by name too.
func TestBehindTheLog(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/gone")
	wild, named := w.connect(w.addr, nil), w.connect(w.addr, nil)
	wild.plain, named.plain = true, true
	wild.ask("*")
	named.ask("eventstore/demo/a", "eventstore/demo/gone")
	first, _ := wild.delta()
	also, _ := named.delta()
	w.remove("demo/gone")
	w.put("2", "demo/a")
	// The lineage changes: to these streams the log is as good as gone.
	_, err := w.etcd.Put(w.ctx, configstore.DefaultPrefix+"m/lineage", "2-restored")
	w.must(err)
	for {
		snap, changed := w.store.Snapshot()
		if snap.Lineage == "2-restored" {
			break
		}
		<-changed
	}
	wild.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: first.Nonce})
	named.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: also.Nonce})
	wild.wants("+demo/a -demo/gone")
	named.wants("+demo/a -demo/gone")
}

// TestChunks: a large configuration comes in responses of at most 1 MiB, its
// manifest last; one refused response is not the others.
func TestChunks(t *testing.T) {
	w := newWorld(t)
	blob := strings.Repeat("x", 60)
	var want int
	for i := range 40 {
		var c configstore.Change
		for j := range 100 {
			name := fmt.Sprintf("s-%02d-%02d-%s", i, j, blob)
			labels := map[string]string{}
			for k := range 8 {
				labels[fmt.Sprintf("label-%d", k)] = blob
			}
			c.Put = append(c.Put, &configv1.Resource{Name: "eventstore/demo/" + name, Metadata: &configv1.Metadata{Namespace: "demo", Name: name, Labels: labels},
				Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
			want++
		}
		w.commit(c)
	}
	p := w.connect(w.addr, nil)
	p.ask("*")
	resp := p.recv()
	if n := proto.Size(resp); n > maxChunk || n < maxChunk/2 {
		t.Errorf("the first response has %d bytes", n)
	}
	refused := len(resp.Resources)
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no"}})
	p.next()
	if got := len(p.has) + refused; got != want || p.last.Kinds[0].Count != uint32(want) {
		t.Errorf("%d resources, want %d; %v", got, want, p.last)
	}
	w.put("1", "demo/a")
	p.wants("+demo/a")
	if n := len(w.server.Proxies()[0].Rejections); n != min(refused, maxHeld) {
		t.Errorf("%d are held as refused, %d were", n, refused)
	}
}

// TestLimits: what a client says is bounded, and a wrong word ends its stream
// with what is wrong.
func TestLimits(t *testing.T) {
	w := newWorld(t)
	var many []string
	for i := range maxSubscribed + 1 {
		many = append(many, fmt.Sprintf("topic/demo/t%d", i))
	}
	meta := func(v *structpb.Value) *corev3.Node {
		return &corev3.Node{Id: "n", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"weft": v}}}
	}
	for name, tc := range map[string]struct {
		req  *discoveryv3.DeltaDiscoveryRequest
		code codes.Code
		says string
	}{
		"no node":        {&discoveryv3.DeltaDiscoveryRequest{}, codes.InvalidArgument, "node.id"},
		"long node id":   {&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: strings.Repeat("n", 129)}}, codes.InvalidArgument, "node.id"},
		"large node":     {&discoveryv3.DeltaDiscoveryRequest{Node: meta(structpb.NewStringValue(strings.Repeat("x", maxNode)))}, codes.InvalidArgument, "node has"},
		"metadata":       {&discoveryv3.DeltaDiscoveryRequest{Node: meta(structpb.NewStringValue("x"))}, codes.InvalidArgument, "node.metadata.weft"},
		"bad name":       {&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, ResourceNamesSubscribe: []string{"topic/../x"}}, codes.InvalidArgument, "resource_names_subscribe"},
		"bad wildcard":   {&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, ResourceNamesSubscribe: []string{"*/Demo/*"}}, codes.InvalidArgument, "resource_names_subscribe"},
		"too many names": {&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, ResourceNamesSubscribe: many}, codes.ResourceExhausted, "10000 names"},
	} {
		p := w.connect(w.addr, nil)
		p.send(tc.req)
		if err := p.ends(); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, token := range []string{"???", base64.RawURLEncoding.EncodeToString([]byte("\xff"))} {
		conn, err := grpc.NewClient(w.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		w.must(err)
		rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(metadata.AppendToOutgoingContext(w.ctx, ResumeHeader, token))
		w.must(err)
		p := &proxy{world: w, rpc: rpc}
		p.ask("*")
		if err := p.ends(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "token") {
			t.Errorf("token %q: %v", token, err)
		}
		_ = conn.Close()
	}
	if n := len(w.server.Proxies()); n != 0 {
		t.Errorf("%d streams are left", n)
	}
	// Whoever asks for the same again and again, and never answers, is kept once.
	st := &stream{server: w.server, fresh: map[string]bool{}}
	for range 100 {
		w.must(st.subscribe(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: many[:100]}))
	}
	if len(st.fresh) != 100 || len(st.scope.exact) != 100 {
		t.Errorf("%d names are to be sent, %d are subscribed to", len(st.fresh), len(st.scope.exact))
	}
	// One that asks for nothing and goes has done nothing wrong.
	nothing := w.connect(w.addr, nil)
	_ = nothing.rpc.CloseSend()
	if err := nothing.ends(); !errors.Is(err, io.EOF) {
		t.Errorf("nothing is asked: %v", err)
	}
	// Streams are bounded.
	_, one := serve(t, Config{Source: w.store, MaxStreams: 1, Log: slog.New(slog.DiscardHandler)})
	p := w.connect(one, nil)
	p.ask("*")
	p.next()
	second := w.connect(one, nil)
	second.ask("*")
	if err := second.ends(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second stream: %v", err)
	}
}

// TestRefusesItsOwn: what a proxy says to refuse of namespaces that it may not see is
// not shown, whether it says so in an answer or in a token.
func TestRefusesItsOwn(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "other/b")
	server, addr := serve(t, Config{Source: w.store, Log: slog.New(slog.DiscardHandler), Allowed: func(context.Context) (map[string]bool, error) { return map[string]bool{"demo": true}, nil }})
	refused := []*discoveryv1.Rejection{{Name: "eventstore/other/b", Version: w.version("other/b"), Reason: "slander"}, {Name: "eventstore/demo/a", Version: w.version("demo/a"), Reason: "no"}}
	is := func(what string) {
		t.Helper()
		if s := server.Proxies(); len(s) != 1 || len(s[0].Rejections) != 1 || s[0].Rejections[0].Name != "eventstore/demo/a" {
			t.Errorf("%s: %v", what, s)
		}
	}
	p := w.connect(addr, nil)
	p.ask("*")
	resp, _ := p.delta()
	details, err := anypb.New(&discoveryv1.Rejections{Rejections: refused})
	w.must(err)
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "no", Details: []*anypb.Any{details}}})
	w.put("2", "demo/c")
	p.wants("+demo/c")
	is("in an answer")
	p = w.connect(addr, &discoveryv1.ResumeToken{Lineage: p.last.Lineage, Revision: p.last.Revision, Scope: []string{"*"}, Digests: p.last.Kinds, Rejected: refused})
	p.ask("*")
	p.wants("")
	is("in a token")
}

// TestAllowed: a credential's namespaces are all that its stream sees, whatever
// it asks for.
func TestAllowed(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "other/x")
	_, addr := serve(t, Config{Source: w.store, Log: slog.New(slog.DiscardHandler), Allowed: func(context.Context) (map[string]bool, error) { return map[string]bool{"demo": true}, nil }})
	p := w.connect(addr, nil)
	p.ask("*", "*/other/*", "eventstore/other/x")
	p.wants("+demo/a -other/x")
	w.put("2", "other/x")
	w.put("2", "demo/a")
	p.wants("+demo/a")
	_, addr = serve(t, Config{Source: w.store, Log: slog.New(slog.DiscardHandler), Allowed: func(context.Context) (map[string]bool, error) { return nil, errors.New("who are you") }})
	p = w.connect(addr, nil)
	p.ask("*")
	if err := p.ends(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v", err)
	}
}

// TestNamespacesOfCredential: a node is about no namespace that its credential is not
// good for, also where it names others, or none.
func TestNamespacesOfCredential(t *testing.T) {
	w := newWorld(t)
	for _, named := range [][]string{nil, {"demo", "other", "more"}, {"other"}} {
		server, addr := serve(t, Config{Source: w.store, Log: slog.New(slog.DiscardHandler), Allowed: func(context.Context) (map[string]bool, error) {
			return map[string]bool{"demo": true, "shop": true}, nil
		}})
		want := []string{"demo", "shop"}
		if len(named) == 3 {
			want = []string{"demo"}
		}
		p := w.connect(addr, nil)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says("n", &discoveryv1.NodeInfo{Manifest: true, Namespaces: named}), ResourceNamesSubscribe: []string{"*"}})
		p.wants("")
		if s := server.Proxies(); len(s) != 1 || !slices.Equal(s[0].Info.Namespaces, want) {
			t.Errorf("named %v: %v", named, s)
		}
	}
}

// FuzzFirst: whatever a stream begins with is refused, or makes a stream within
// its bounds that may be shown.
func FuzzFirst(f *testing.F) {
	token, err := proto.Marshal(&discoveryv1.ResumeToken{Lineage: "1-x", Revision: 7, Scope: []string{"*"}, Rejected: []*discoveryv1.Rejection{{Name: "topic/demo/t", Version: "3", Reason: "no"}}})
	if err != nil {
		f.Fatal(err)
	}
	captured, err := os.ReadFile(filepath.Join("testdata", "captures", "proxy-request"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(captured, base64.RawURLEncoding.EncodeToString(token))
	f.Add([]byte(nil), "")
	f.Add(captured, "???")
	source := fixed{}
	f.Fuzz(func(t *testing.T, b []byte, token string) {
		req := &discoveryv3.DeltaDiscoveryRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		s := New(Config{Source: source, CatchUp: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(ResumeHeader, token))
		var st *stream
		var err error
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if st, err = s.open(ctx, req.GetNode(), nil); err == nil {
			if err = st.subscribe(req); err == nil {
				err = st.resume(req)
			}
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1024*uint64(len(b)+len(token))+1<<20 {
			t.Errorf("%d bytes for %d", n, len(b)+len(token))
		}
		if err != nil {
			if c := status.Code(err); c != codes.InvalidArgument && c != codes.Unavailable && c != codes.ResourceExhausted {
				t.Errorf("%v", err)
			}
			return
		}
		if n := len(st.nodeID); n == 0 || n > 128 || len(st.scope.exact)+len(st.scope.spaces) > maxSubscribed || len(st.rejected) > maxHeld {
			t.Errorf("node %q, %d names, %d rejections", st.nodeID, len(st.scope.exact), len(st.rejected))
		}
		for name := range st.scope.exact {
			if _, _, _, err := resource.Split(name); err != nil {
				t.Errorf("%q is subscribed to: %v", name, err)
			}
		}
		if _, err := proto.Marshal(st.status()); err != nil {
			t.Errorf("the status cannot be shown: %v", err)
		}
	})
}
