package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// says makes the proxy declare something of itself.
func (p *proxy) says(id string, info *discoveryv1.NodeInfo) *corev3.Node {
	p.Helper()
	b, err := protojson.Marshal(info)
	p.must(err)
	s := &structpb.Struct{}
	p.must(protojson.Unmarshal(b, s))
	return &corev3.Node{Id: id, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"weft": structpb.NewStructValue(s)}}}
}

// TestResumeDigests: a token whose digests are of another content than etcd had at
// its revision brings everything, and an alarm; one that agrees does not; and where
// the log does not reach back, one that agrees with what was there where it begins goes
// on from there.
func TestResumeDigests(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "demo/b", "other/x")
	p := w.connect(w.addr, nil)
	p.ask("*/demo/*")
	p.next()
	token := func(change func(*discoveryv1.ResumeToken)) *discoveryv1.ResumeToken {
		tok := &discoveryv1.ResumeToken{Lineage: p.last.Lineage, Revision: p.last.Revision, Scope: []string{"*/demo/*"}, Digests: p.last.Kinds}
		change(tok)
		return tok
	}
	same := func(*discoveryv1.ResumeToken) {}
	other := func(tok *discoveryv1.ResumeToken) {
		one := resource.DigestOf("eventstore/demo/a", "1", []byte("of before the restore"))
		tok.Digests = []*configv1.KindDigest{{Kind: "eventstore", Count: 2, Digest: one.Bytes()}}
	}
	w.put("2", "demo/b")
	w.put("1", "demo/c")
	w.remove("demo/a")
	resumes := func(addr string, tok *discoveryv1.ResumeToken, want string, complete bool) {
		t.Helper()
		p := w.connect(addr, tok)
		p.ask("*/demo/*")
		if got := p.next(); got != want || p.last.Complete != complete {
			t.Errorf("%q came, want %q; complete %v", got, want, p.last.Complete)
		}
	}
	resumes(w.addr, token(same), "+demo/b +demo/c -demo/a", false)
	if a := w.server.Alarms(); len(a) != 0 {
		t.Errorf("without a reason: %v", a)
	}
	resumes(w.addr, token(other), "+demo/b +demo/c", true)
	resumes(w.addr, token(func(tok *discoveryv1.ResumeToken) { tok.Digests[0].Count++ }), "+demo/b +demo/c", true)
	if a := w.server.Alarms(); len(a) != 1 || a[0].Reason != restoreSuspected || !strings.Contains(a[0].Message, "node-1") {
		t.Errorf("the alarms are %v", a)
	}
	// A replica that has just started knows nothing of the past.
	p = w.connect(w.addr, nil)
	p.ask("*/demo/*")
	p.next()
	w.put("2", "other/x")
	young := configstore.New(configstore.Config{Client: w.etcd, Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- young.Run(ctx) }()
	t.Cleanup(func() { stop(); w.must(<-ended) })
	_, err := young.WaitFor(w.ctx, 0)
	w.must(err)
	s, addr := serve(t, Config{Source: young, Log: slog.New(slog.DiscardHandler)})
	resumes(addr, token(same), "", false)
	resumes(addr, token(other), "+demo/b +demo/c", true)
	if a := s.Alarms(); len(a) != 0 {
		t.Errorf("of what it cannot know: %v", a)
	}
	_, err = young.WaitFor(w.ctx, w.put("4", "demo/b"))
	w.must(err)
	resumes(addr, token(same), "+demo/b", false)
	resumes(addr, token(other), "+demo/b +demo/c", true)
	// The alarm ends with the lineage.
	_, err = w.etcd.Put(w.ctx, configstore.DefaultPrefix+"m/lineage", "2-restored")
	w.must(err)
	for len(w.server.Alarms()) > 0 {
		_, changed := w.store.Snapshot()
		if len(w.server.Alarms()) > 0 {
			<-changed
		}
	}
}

// TestCapabilities: a node is never sent what it has said it lacks; the manifest
// and the status name it, the digests leave it out; whoever has not said is sent
// everything.
func TestCapabilities(t *testing.T) {
	w := newWorld(t)
	sub := func(name string, filter *configv1.Filter) *configv1.Resource {
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name, Uid: "u"}, Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"t"}, Filter: filter}}}
		r.Name = resource.NameOf(r)
		return r
	}
	policy := &configv1.Resource{Name: "accesspolicy/demo/p", Metadata: &configv1.Metadata{Namespace: "demo", Name: "p"}, Spec: &configv1.Resource_AccessPolicy{AccessPolicy: &configv1.AccessPolicy{}}}
	w.put("1", "demo/a")
	w.commit(configstore.Change{Put: []*configv1.Resource{sub("plain", nil), sub("filtered", &configv1.Filter{Not: &configv1.Filter{}}), policy}})
	lacking := slices.DeleteFunc(resource.AllFeatures(), func(f string) bool { return f == "filter.not" || f == "kind/accesspolicy" })
	old, new_, tool := w.connect(w.addr, nil), w.connect(w.addr, nil), w.connect(w.addr, nil)
	old.send(&discoveryv3.DeltaDiscoveryRequest{Node: old.says("old", &discoveryv1.NodeInfo{Manifest: true, Capabilities: append(lacking, "kind/of-later")}), ResourceNamesSubscribe: []string{"*"}})
	new_.send(&discoveryv3.DeltaDiscoveryRequest{Node: new_.says("new", &discoveryv1.NodeInfo{Manifest: true, Capabilities: resource.AllFeatures()}), ResourceNamesSubscribe: []string{"*"}})
	tool.plain = true
	tool.send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "tool"}})
	const everything = "+accesspolicy/demo/p +demo/a +subscription/demo/filtered +subscription/demo/plain"
	old.wants("+demo/a +subscription/demo/plain")
	new_.wants(everything)
	tool.wants(everything)
	names := func(p *proxy) (out []string) {
		for _, l := range p.last.Withheld {
			out = append(out, l.Name)
		}
		return out
	}
	if got := names(old); !slices.Equal(got, []string{"accesspolicy/demo/p", "subscription/demo/filtered"}) || !old.last.Withheld[0].Governs || old.last.Withheld[1].Governs ||
		!strings.Contains(old.last.Withheld[1].Reason, "lacks filter.not") || len(names(new_)) != 0 {
		t.Errorf("withheld is %v, of the new one %v", old.last.Withheld, new_.last.Withheld)
	}
	snap, err := w.store.Current()
	w.must(err)
	want := digestsOf(map[resource.Kind]resource.Digest{resource.EventStore: snap.Get("eventstore/demo/a").Mark.Digest, resource.Subscription: snap.Get("subscription/demo/plain").Mark.Digest})
	if !sameDigests(old.last.Kinds, want) || len(new_.last.Kinds) != 3 {
		t.Errorf("the digests are %v, want %v", old.last.Kinds, want)
	}
	for _, s := range w.server.Proxies() {
		if n := map[string]int{"old": 2}[s.NodeId]; len(s.Withheld) != n {
			t.Errorf("the status of %s has %v", s.NodeId, s.Withheld)
		}
	}
	// It resumes by what it has.
	resumed := w.connect(w.addr, &discoveryv1.ResumeToken{Lineage: old.last.Lineage, Revision: old.last.Revision, Scope: []string{"*"}, Digests: old.last.Kinds})
	// What comes to need it is withheld, and what no longer does is sent.
	w.commit(configstore.Change{Put: []*configv1.Resource{sub("plain", &configv1.Filter{Not: &configv1.Filter{}}), sub("filtered", nil)}})
	resumed.send(&discoveryv3.DeltaDiscoveryRequest{Node: resumed.says("old-2", &discoveryv1.NodeInfo{Manifest: true, Capabilities: lacking}), ResourceNamesSubscribe: []string{"*"}})
	for _, p := range []*proxy{old, resumed} {
		p.wants("+subscription/demo/filtered")
		if got := names(p); p.last.Complete || !slices.Equal(got, []string{"accesspolicy/demo/p", "subscription/demo/plain"}) {
			t.Errorf("withheld is %v", got)
		}
	}
	new_.wants("+subscription/demo/filtered +subscription/demo/plain")
	// Withheld alone is worth a manifest, and so is a removal of what was.
	w.commit(configstore.Change{Put: []*configv1.Resource{sub("plain", &configv1.Filter{Not: &configv1.Filter{Not: &configv1.Filter{}}})}})
	old.wants("")
	w.commit(configstore.Change{Delete: []string{"subscription/demo/plain"}})
	old.wants("-subscription/demo/plain")
	if got := names(old); len(got) != 1 {
		t.Errorf("withheld is %v", got)
	}
	// Names on demand are no way around.
	named := w.connect(w.addr, nil)
	named.send(&discoveryv3.DeltaDiscoveryRequest{Node: named.says("named", &discoveryv1.NodeInfo{Manifest: true, Capabilities: lacking}), ResourceNamesSubscribe: []string{"accesspolicy/demo/p", "eventstore/demo/a"}})
	named.wants("+demo/a")
	if got := names(named); !slices.Equal(got, []string{"accesspolicy/demo/p"}) || len(named.last.Kinds) != 1 {
		t.Errorf("withheld is %v, digests %v", got, named.last.Kinds)
	}
	// Of what governs, only what does is named.
	governed := w.connect(w.addr, nil)
	governed.send(&discoveryv3.DeltaDiscoveryRequest{Node: governed.says("governed", &discoveryv1.NodeInfo{Manifest: true, Capabilities: lacking}), ResourceNamesSubscribe: []string{"governing/demo/*"}})
	governed.wants("")
	if got := names(governed); !slices.Equal(got, []string{"accesspolicy/demo/p"}) || !governed.last.Withheld[0].Governs || len(governed.last.Kinds) != 0 {
		t.Errorf("withheld is %v, digests %v", governed.last.Withheld, governed.last.Kinds)
	}
}

// TestManyWithheld: more names than a response takes are told in several; each is as
// small as any, and none is missing.
func TestManyWithheld(t *testing.T) {
	w := newWorld(t)
	const many = 10050
	w.put("1", "demo/old")
	filler, want := strings.Repeat("x", 50), []string{}
	for from := 0; from < many; from += 100 {
		var c configstore.Change
		for i := from; i < min(from+100, many); i++ {
			r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: fmt.Sprintf("t-%05d-%s", i, filler), Uid: "u"}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{}}}
			r.Name = resource.NameOf(r)
			c.Put, want = append(c.Put, r), append(want, r.Name)
		}
		w.commit(c)
	}
	p := w.connect(w.addr, nil)
	p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says("old", &discoveryv1.NodeInfo{Manifest: true,
		Capabilities: slices.DeleteFunc(resource.AllFeatures(), func(f string) bool { return f == "kind/topic" })}), ResourceNamesSubscribe: []string{"*"}})
	told := func(complete bool) {
		t.Helper()
		var got []string
		for _, l := range p.last.Withheld {
			got = append(got, l.Name)
		}
		if !slices.Equal(got, want) || p.last.Complete != complete || len(p.last.Kinds) != 1 {
			t.Errorf("%d are withheld, want %d; %v, %v", len(got), len(want), p.last.Complete, p.last.Kinds)
		}
	}
	p.wants("+demo/old")
	told(true)
	if s := w.server.Proxies()[0]; len(s.Withheld) != many {
		t.Errorf("the status has %d", len(s.Withheld))
	}
	// In the next too, and with less than it was.
	w.put("2", "demo/old")
	p.wants("+demo/old")
	told(false)
	w.commit(configstore.Change{Delete: want[:1]})
	want = want[1:]
	p.wants("-topic/demo/t-00000-" + filler)
	told(false)
	if most := parts(p.last.Withheld); len(most) < 2 {
		t.Errorf("%d parts", len(most))
	}
}

// valueOf is the value of a counter or gauge.
func valueOf(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func nack(nonce string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce, ErrorDetail: &rpcstatus.Status{Code: 3, Message: "not to its taste"}}
}

// TestQuarantine: what several nodes refuse is kept from the others: they get the
// version before it, or nothing and a word about it.
func TestQuarantine(t *testing.T) {
	w := newWorld(t)
	reg := prometheus.NewRegistry()
	s, addr := serve(t, Config{Source: w.store, Quarantine: w.store.Quarantine, Metrics: reg, Log: slog.New(slog.DiscardHandler)})
	good := strconv.FormatInt(w.put("good", "demo/a"), 10)
	var ps []*proxy
	join := func(id string, names ...string) *proxy {
		p := w.connect(addr, nil)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says(id, &discoveryv1.NodeInfo{Manifest: true}), ResourceNamesSubscribe: names})
		return p
	}
	onDemand := []string{"governing/demo/*", "eventstore/demo/a", "eventstore/demo/b"}
	for i := range 3 { // one of which has it by name
		names, first := []string{"*"}, "+demo/a"
		if i == 2 {
			names, first = onDemand, "+demo/a -demo/b"
		}
		ps = append(ps, join(fmt.Sprint("n", i), names...))
		ps[i].wants(first)
	}
	w.put("bad", "demo/a", "demo/b")
	refuse := func(p *proxy) {
		resp, said := p.delta()
		if said != "+demo/a +demo/b" {
			t.Errorf("%q came", said)
		}
		p.send(nack(resp.Nonce))
	}
	refuse(ps[0])
	refuse(ps[1])
	// The same node again is not another one.
	again := join("n0", "*")
	resp, _ := again.delta()
	again.send(nack(resp.Nonce))
	for s.Proxies()[0].AckedRevision < s.Proxies()[0].SentRevision {
		w.must(w.ctx.Err())
	}
	if snap, _ := w.store.Snapshot(); snap.Get(configstore.QuarantineName("demo", "eventstore/demo/a")) != nil {
		t.Error("two nodes are enough")
	}
	refuse(ps[2])
	for {
		snap, changed := w.store.Snapshot()
		if len(maps.Collect(snap.Quarantined())) == 2 {
			break
		}
		<-changed
	}
	// Those who have the version are given the one before, and b is not there.
	for _, p := range ps {
		for p.has["eventstore/demo/a"] != good || len(p.last.Withheld) != 1 {
			p.next()
		}
	}
	late, tool := join("late", "*"), w.connect(addr, nil)
	late.wants("+demo/a")
	if late.has["eventstore/demo/a"] != good || len(late.last.Withheld) != 1 || late.last.Withheld[0].Name != "eventstore/demo/b" || !strings.Contains(late.last.Withheld[0].Reason, "quarantined") {
		t.Errorf("%v, withheld %v", late.has, late.last.Withheld)
	}
	named := join("named", onDemand...)
	named.wants("+demo/a")
	if named.has["eventstore/demo/a"] != good || len(named.last.Withheld) != 1 || named.last.Kinds[0].Count != 1 {
		t.Errorf("by names: %v, the manifest says %v", named.has, named.last)
	}
	tool.plain = true
	tool.send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "tool"}, ResourceNamesSubscribe: []string{"*", "eventstore/demo/b", configstore.QuarantineName("demo", "eventstore/demo/a")}})
	tool.wants("+demo/a -demo/b -" + configstore.QuarantineName("demo", "eventstore/demo/a"))
	if a := s.Alarms(); len(a) != 2 || a[0].Reason != quarantined || !strings.Contains(a[0].Message, "n0, n1, n2") {
		t.Errorf("the alarms are %v", a)
	}
	if n := valueOf(t, s.metrics.quarantines); n != 2 {
		t.Errorf("%v quarantines are counted", n)
	}
	// The next version is judged anew.
	w.put("better", "demo/a", "demo/b")
	late.wants("+demo/a +demo/b")
	if len(late.last.Withheld) != 0 || len(s.Alarms()) != 0 {
		t.Errorf("withheld is %v, alarms %v", late.last.Withheld, s.Alarms())
	}
}

// TestAge: a stream ends in good order at its age, and all when the server drains,
// which takes no more.
func TestAge(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	_, addr := serve(t, Config{Source: w.store, MaxAge: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	p := w.connect(addr, nil)
	p.ask("*")
	if err := p.ends(); !errors.Is(err, io.EOF) {
		t.Errorf("at its age: %v", err)
	}
	p = w.connect(w.addr, nil)
	p.ask("*")
	p.next()
	w.server.Drain()
	if err := p.ends(); !errors.Is(err, io.EOF) {
		t.Errorf("at the drain: %v", err)
	}
	p = w.connect(w.addr, nil)
	p.ask("*")
	if err := p.ends(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "try another") {
		t.Errorf("after the drain: %v", err)
	}
}

// TestAges: no two streams that began together end together: each is as old as
// MaxAge, or up to a fifth younger or older.
func TestAges(t *testing.T) {
	const streams, age = 200, time.Hour
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Source: still{snap: configstore.Empty("1-x", 7)}, MaxAge: age, Log: slog.New(slog.DiscardHandler)})
		began, ages := time.Now(), make(chan time.Duration, streams)
		for i := range streams {
			go func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				rpc := &acking{taken: taken{ctx: ctx}, requests: make(chan request, 2)}
				rpc.requests <- deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: fmt.Sprint("n", i)}, TypeUrl: resource.TypeURL}}
				if err := s.serve(rpc, nil, rpc.next); err != nil {
					t.Error(err)
				}
				ages <- time.Since(began)
			}()
		}
		var all []time.Duration
		for range streams {
			all = append(all, <-ages)
		}
		slices.Sort(all)
		first, last := all[0], all[streams-1]
		if first < age*4/5 || last > age*6/5 || last-first < age/5 || len(slices.Compact(all)) < streams/2 {
			t.Errorf("they ended after %s to %s", first, last)
		}
	})
}

// TestFullSyncTurns: while others are sent their whole scope a stream waits for its
// turn; one that resumes does not.
func TestFullSyncTurns(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	s, addr := serve(t, Config{Source: w.store, FullSyncs: 1, Log: slog.New(slog.DiscardHandler)})
	first := w.connect(addr, nil)
	first.ask("*")
	first.next()
	release, err := s.fullSync(w.ctx)
	w.must(err)
	waits := w.connect(addr, nil)
	waits.ask("*")
	for valueOf(t, s.metrics.waiting) != 1 {
		w.must(w.ctx.Err())
	}
	resumes := w.connect(addr, &discoveryv1.ResumeToken{Lineage: first.last.Lineage, Revision: first.last.Revision, Scope: []string{"*"}, Digests: first.last.Kinds})
	resumes.ask("*")
	resumes.wants("")
	w.put("2", "demo/a")
	first.wants("+demo/a")
	if n := valueOf(t, s.metrics.waiting); n != 1 {
		t.Errorf("%v streams wait", n)
	}
	release()
	waits.wants("+demo/a")
}

// TestFullSyncTurnEnds: whoever has his turn and does not read keeps the others
// waiting for a bounded time.
func TestFullSyncTurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Source: fixed{}, FullSyncs: 1, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		first, err := s.fullSync(ctx)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		second, err := s.fullSync(ctx)
		if err != nil || time.Since(began) != fullSyncTurn {
			t.Errorf("the next is let in after %s, %v", time.Since(began), err)
		}
		// The first one's end gives away nobody's turn but its own.
		first()
		third := make(chan error, 1)
		go func() {
			_, err := s.fullSync(ctx)
			third <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-third; !errors.Is(err, context.Canceled) {
			t.Errorf("a third beside the second: %v", err)
		}
		second()
	})
}

// TestShared: streams that are shown the same are sent the same bytes, marshalled
// once; the classes go with their streams.
func TestShared(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "other/x")
	var ps []*proxy
	for i := range 6 {
		p := w.connect(w.addr, nil)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says(fmt.Sprint("n", i), &discoveryv1.NodeInfo{Manifest: true, Capabilities: resource.AllFeatures()}), ResourceNamesSubscribe: []string{[]string{"*", "*/demo/*"}[i%2]}})
		p.next()
		ps = append(ps, p)
	}
	w.put("2", "demo/a")
	seen := map[string]int{}
	for _, p := range ps {
		resp := p.recv()
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
		w.must(err)
		seen[resp.Nonce+string(b)]++
	}
	w.server.mu.Lock()
	classes := len(w.server.classes)
	w.server.mu.Unlock()
	if len(seen) != 2 || classes != 2 {
		t.Errorf("%d different responses, %d classes", len(seen), classes)
	}
	for _, p := range ps {
		w.must(p.rpc.CloseSend())
		if err := p.ends(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	if len(w.server.classes) != 0 || len(w.server.streams) != 0 {
		t.Errorf("%d classes and %d streams are left", len(w.server.classes), len(w.server.streams))
	}
}

// TestSharedWorld: so are those of State-of-the-World, marshalled once; one that asks
// for names has its own.
func TestSharedWorld(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a", "other/x")
	var all []*sotwClient
	// seen gives how many different responses all receive.
	seen := func() int {
		t.Helper()
		different, acks := map[string]bool{}, []func(){}
		for _, c := range all {
			resp, _ := c.next()
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
			w.must(err)
			different[resp.Nonce+string(b)] = true
			acks = append(acks, func() {
				c.send(&discoveryv3.DiscoveryRequest{VersionInfo: resp.VersionInfo, ResponseNonce: resp.Nonce, ResourceNames: c.asked})
			})
		}
		for _, ack := range acks { // they live until then
			ack()
		}
		return len(different)
	}
	for i := range 7 {
		c := w.sotw(w.addr)
		c.asked = [][]string{{"*"}, {"*/demo/*"}, {"eventstore/demo/a"}}[min(i/3, 2)]
		c.send(&discoveryv3.DiscoveryRequest{ResourceNames: c.asked})
		all = append(all, c)
	}
	for i := range 3 {
		if n := seen(); n != 3 {
			t.Errorf("%d different responses after %d changes", n, i)
		}
		w.put(fmt.Sprint(2+i), "demo/a")
	}
	seen()
	if n := valueOf(t, w.server.metrics.fullSyncs); n != 7 {
		t.Errorf("%v full syncs are counted", n)
	}
}
