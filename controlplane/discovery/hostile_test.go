package discovery

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/resource"
)

// taken is a stream's transport that keeps what is sent.
type taken struct {
	ctx  context.Context
	sent []any
}

func (s *taken) Context() context.Context   { return s.ctx }
func (*taken) SetHeader(metadata.MD) error  { return nil }
func (*taken) SendHeader(metadata.MD) error { return nil }
func (*taken) SetTrailer(metadata.MD)       {}
func (*taken) RecvMsg(any) error            { return io.EOF }
func (s *taken) SendMsg(m any) error        { s.sent = append(s.sent, m); return nil }

// still is a Source whose snapshot stays.
type still struct {
	fixed
	snap *configstore.Snapshot
}

func (s still) Snapshot() (*configstore.Snapshot, <-chan struct{}) { return s.snap, nil }

// FuzzStream: whatever is asked on a stream, in whatever order, it stays within its
// bounds and is never shown what its credential does not allow.
func FuzzStream(f *testing.F) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(f.TempDir(), "etcd"))
	if err != nil {
		f.Fatal(err)
	}
	defer e.Close()
	store := configstore.New(configstore.Config{Client: e.Client(), Log: slog.New(slog.DiscardHandler)})
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- store.Run(rctx) }()
	snap, err := store.WaitFor(ctx, 0)
	if err != nil {
		f.Fatal(err)
	}
	var c configstore.Change
	for _, n := range []string{"demo/a", "demo/b", "other/secret"} {
		ns, name, _ := strings.Cut(n, "/")
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name}, Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{}}}
		r.Name = resource.NameOf(r)
		c.Put = append(c.Put, r)
	}
	rev, err := store.Commit(ctx, snap, c)
	if err == nil {
		snap, err = store.WaitFor(ctx, rev)
	}
	stop()
	if err = errors.Join(err, <-ended); err != nil {
		f.Fatal(err)
	}
	// An input is requests, each behind its length in two bytes.
	join := func(list ...proto.Message) (out []byte) {
		for _, m := range list {
			b, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			out = append(append(out, byte(len(b)>>8), byte(len(b))), b...)
		}
		return out
	}
	node := &corev3.Node{Id: "n"}
	f.Add(false, join(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*", "*/other/*", "eventstore/other/secret"}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL, ResponseNonce: "1.0", ResourceNamesUnsubscribe: []string{"*"}, ResourceNamesSubscribe: []string{"eventstore/demo/a"}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "x", ResourceNamesSubscribe: []string{"eventstore/../other/secret"}}))
	f.Add(false, join(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: resource.TypeURL, InitialResourceVersions: map[string]string{"eventstore/other/secret": "3", "x": ""}}))
	f.Add(true, join(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: resource.TypeURL}, &discoveryv3.DiscoveryRequest{TypeUrl: resource.TypeURL, ResourceNames: []string{"eventstore/other/secret", "*/demo/*"}}))
	captured, err := os.ReadFile(filepath.Join("testdata", "captures", "proxy-request"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(false, append([]byte{byte(len(captured) >> 8), byte(len(captured))}, captured...))
	f.Fuzz(func(t *testing.T, world bool, in []byte) {
		s := New(Config{Source: still{snap: snap}, CatchUp: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
		rpc := &taken{ctx: t.Context()}
		var st *stream
		for len(in) >= 2 {
			n := min(int(in[0])<<8|int(in[1]), len(in)-2)
			b := in[2 : 2+n]
			in = in[2+n:]
			var req request
			if m := (&discoveryv3.DiscoveryRequest{}); world {
				if proto.Unmarshal(b, m) != nil {
					return
				}
				req = sotwRequest{m}
			} else if m := (&discoveryv3.DeltaDiscoveryRequest{}); proto.Unmarshal(b, m) != nil {
				return
			} else {
				req = deltaRequest{m}
			}
			if st == nil {
				var err error
				if st, err = s.open(t.Context(), req.GetNode(), map[string]bool{"demo": true}); err != nil {
					return
				}
				if st.rpc = rpc; world {
					st.sotw = &sotw{}
				}
				over, err := s.admit(st)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					select {
					case err := <-over:
						if status.Code(err) == codes.Internal {
							t.Error("it meets a defect")
						}
					default:
					}
				}()
				defer s.close(st)
				defer func() {
					if st.late != nil {
						st.late.Stop()
					}
				}()
			}
			st.turn.Lock()
			if err := req.take(st); err != nil {
				st.turn.Unlock()
				if c := status.Code(err); c != codes.InvalidArgument && c != codes.ResourceExhausted {
					t.Errorf("%v", err)
				}
				break
			}
			st.work()
			st.turn.Lock()
			if len(st.scope.exact)+len(st.scope.spaces) > maxSubscribed || len(st.rejected) > maxHeld || len(st.held) > maxHeld || len(st.fresh) > len(st.scope.exact) {
				t.Errorf("%d names, %d to be sent, %d rejections", len(st.scope.exact), len(st.fresh), len(st.rejected))
			}
			st.turn.Unlock()
		}
		for _, m := range rpc.sent {
			b, ok := m.(frame)
			if !ok {
				continue // an answer about another type
			}
			if strings.Contains(string(b), "secret") {
				var named discoveryv3.DeltaDiscoveryResponse
				var whole discoveryv3.DiscoveryResponse
				if world && proto.Unmarshal(b, &whole) == nil {
					t.Errorf("what is of another namespace is shown: %v", &whole)
				} else if err := proto.Unmarshal(b, &named); err != nil {
					t.Error(err)
				}
				for _, r := range named.Resources {
					if strings.Contains(r.String(), "other") {
						t.Errorf("what is of another namespace is shown: %v", r)
					}
				}
			}
		}
	})
}

// attacker is a connection that keeps nothing of what comes and gives no more room for
// it than it says.
type attacker struct {
	*http2.Framer
	conn    net.Conn
	streams uint32
	// mu is of writing, ended of the streams that the other side has ended.
	mu    sync.Mutex
	ended map[uint32]string // grpc-status, or "reset"
	news  *sync.Cond
}

// attack connects; window is the room that each stream has for what comes.
func (w *world) attack(addr string, window uint32) *attacker {
	w.Helper()
	conn, err := net.Dial("tcp", addr)
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, http2.ClientPreface)
	w.must(err)
	a := &attacker{Framer: http2.NewFramer(conn, conn), conn: conn, ended: map[uint32]string{}}
	a.news = sync.NewCond(&a.mu)
	a.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.must(a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	go a.read(window)
	return a
}

// read drains the connection until it ends. A byte makes room for a byte.
func (a *attacker) read(window uint32) {
	defer a.news.Broadcast()
	for {
		f, err := a.ReadFrame()
		if err != nil {
			return
		}
		a.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = a.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = a.WritePing(true, f.Data)
			}
		case *http2.DataFrame:
			if n := uint32(len(f.Data())); n > 0 && window > 0 {
				err = errors.Join(a.WriteWindowUpdate(0, n), a.WriteWindowUpdate(f.StreamID, 1))
			}
		case *http2.RSTStreamFrame:
			if a.ended[f.StreamID] == "" {
				a.ended[f.StreamID] = "reset"
			}
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" {
					a.ended[f.StreamID] = h.Value
				}
			}
		}
		a.mu.Unlock()
		a.news.Broadcast()
		if err != nil {
			return
		}
	}
}

// open opens a stream and asks, as node, for everything; "" asks nothing.
func (a *attacker) open(t *testing.T, node string) (id uint32) {
	t.Helper()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	id = 2*a.streams + 1
	a.streams++
	err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true})
	if node != "" && err == nil {
		var b []byte
		if b, err = proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: resource.TypeURL}); err == nil {
			err = a.WriteData(id, false, append([]byte{0, byte(len(b) >> 24), byte(len(b) >> 16), byte(len(b) >> 8), byte(len(b))}, b...))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// over waits until the other side has ended a stream and gives its status; "" where ctx
// ends before.
func (a *attacker) over(ctx context.Context, id uint32) string {
	defer context.AfterFunc(ctx, a.news.Broadcast)()
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.ended[id] == "" && ctx.Err() == nil {
		a.news.Wait()
	}
	return a.ended[id]
}

// TestSlowStreams: ten thousand streams that do not read, read a byte at a time, do not
// answer or do not even ask hold up nobody, and what waits for them does not grow with
// what happens.
func TestSlowStreams(t *testing.T) {
	const streams, connections = 10000, 20
	w := newWorld(t)
	large := strings.Repeat("x", 60)
	for i := range 10 {
		w.put("1", fmt.Sprintf("demo/a%d-%s", i, large))
	}
	s, addr := serve(t, Config{Source: w.store, FirstRequest: time.Hour, Log: slog.New(slog.DiscardHandler)})
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	asking := 0
	for i := range connections {
		a := w.attack(addr, []uint32{0, 1, 64 << 10}[i%3])
		for j := range streams / connections {
			node := fmt.Sprintf("slow-%d-%d", i, j)
			if j%10 == 0 {
				node = ""
			} else {
				asking++
			}
			a.open(t, node)
		}
	}
	sent := func() int {
		n := 0
		for _, p := range s.Proxies() {
			if p.SentRevision > 0 {
				n++
			}
		}
		return n
	}
	for sent() < asking {
		w.must(w.ctx.Err())
		runtime.Gosched()
	}
	good := w.connect(addr, nil)
	good.ask("*")
	good.next()
	open := memory()
	if each := (open - before) / streams; each > 64<<10 {
		t.Errorf("%d bytes a stream", each)
	}
	goroutines := runtime.NumGoroutine()
	for i := range 50 {
		w.put(fmt.Sprint(i), fmt.Sprintf("demo/a%d-%s", i%10, large), "demo/"+large+fmt.Sprint(i))
		good.next()
	}
	if n := runtime.NumGoroutine(); n > goroutines+50 {
		t.Errorf("%d goroutines, there were %d", n, goroutines)
	}
	if after := memory(); after > open+streams*8<<10 {
		t.Errorf("%d bytes in use, there were %d", after, open)
	}
}

// TestSlowEnd: streams that do not ask, or do not answer, end after a time, also where
// they do not read that; what they had is free.
func TestSlowEnd(t *testing.T) {
	w := newWorld(t)
	for i := range 8 { // two responses: the second is not sent while nobody reads
		var list []string
		for j := range 20 {
			list = append(list, fmt.Sprintf("demo/a-%d-%d", i, j))
		}
		w.put(strings.Repeat("x", 10<<10), list...)
	}
	s, addr := serve(t, Config{Source: w.store, FirstRequest: 20 * time.Millisecond, Answer: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	deadline := strconv.Itoa(int(codes.DeadlineExceeded))
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Minute)
	defer cancel()
	reads, blind := w.attack(addr, 1<<24), w.attack(addr, 0)
	if got := reads.over(ctx, reads.open(t, "")); got != deadline {
		t.Errorf("who asks nothing: status %s", got)
	}
	if got := reads.over(ctx, reads.open(t, "n1")); got != deadline {
		t.Errorf("who does not answer: status %s", got)
	}
	blind.open(t, "n2")
	open := func() (left, nodes int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.streams), len(s.perNode)
	}
	for valueOf(t, s.metrics.fullSyncs) < 2 {
		w.must(ctx.Err())
		runtime.Gosched()
	}
	for left, nodes := open(); left+nodes > 0; left, nodes = open() {
		w.must(ctx.Err())
		runtime.Gosched()
	}
}

// TestStreamsOfANode: one node has so many streams and no more; others are let in.
func TestStreamsOfANode(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	_, addr := serve(t, Config{Source: w.store, NodeStreams: 2, Log: slog.New(slog.DiscardHandler)})
	join := func(id string) *proxy {
		p := w.connect(addr, nil)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says(id, &discoveryv1.NodeInfo{Manifest: true}), ResourceNamesSubscribe: []string{"*"}})
		return p
	}
	first := join("n")
	first.wants("+demo/a")
	join("n").wants("+demo/a")
	if err := join("n").ends(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "node n has 2 streams") {
		t.Errorf("a third: %v", err)
	}
	join("other").wants("+demo/a")
	w.must(first.rpc.CloseSend())
	if err := first.ends(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	join("n").wants("+demo/a")
}

// TestGiant: a request beyond the bounds ends its stream and no other.
func TestGiant(t *testing.T) {
	w := newWorld(t)
	w.put("1", "demo/a")
	good := w.connect(w.addr, nil)
	good.ask("*")
	good.next()
	initial := map[string]string{}
	for i := range maxInitial + 1 {
		initial[fmt.Sprint("n", i)] = ""
	}
	for name, req := range map[string]*discoveryv3.DeltaDiscoveryRequest{
		"versions": {Node: good.node(), InitialResourceVersions: initial},
		"message":  {Node: good.node(), ResourceNamesSubscribe: []string{strings.Repeat("x", 5<<20)}},
	} {
		p := w.connect(w.addr, nil)
		p.send(req)
		if err := p.ends(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.put("2", "demo/a")
	good.wants("+demo/a")
}

// TestNobodysClass: what a node says of itself never makes another one's
// subscription into its own, whatever characters it is written in.
func TestNobodysClass(t *testing.T) {
	w := newWorld(t)
	w.put("1", "a/x", "b/x")
	joins := func(id string, namespaces ...string) *proxy {
		p := w.connect(w.addr, nil)
		p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says(id, &discoveryv1.NodeInfo{Manifest: true, Namespaces: namespaces}), ResourceNamesSubscribe: []string{"*"}})
		return p
	}
	hostile := joins("hostile", "a b")
	if err := hostile.ends(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a namespace that cannot be: %v", err)
	}
	joins("node", "a", "b").wants("+a/x +b/x")
	// And should one get there all the same, its class is another.
	one, two := scope{all: true, serves: map[string]bool{"a b": true}}, scope{all: true, serves: map[string]bool{"a": true, "b": true}}
	if one.key() == two.key() {
		t.Errorf("%q is the key of both", one.key())
	}
}

// TestForgedNode: who may be one node alone says nothing of another: not even an
// alarm comes of it, nor a question to etcd.
func TestForgedNode(t *testing.T) {
	w := newWorld(t)
	rev := w.put("1", "demo/a")
	snap, err := w.store.Current()
	w.must(err)
	b, err := proto.Marshal(&discoveryv1.ResumeToken{Lineage: snap.Lineage, Revision: rev + 1<<40, Scope: []string{"*"}})
	w.must(err)
	ctx := context.WithValue(w.ctx, credentialKey{}, credential{subject: "join token x", node: "own"})
	ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(ResumeHeader, base64.RawURLEncoding.EncodeToString(b)))
	if _, err := w.server.open(ctx, &corev3.Node{Id: "other"}, nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another node: %v", err)
	}
	if a := w.server.Alarms(); len(a) != 0 {
		t.Errorf("%v", a)
	}
	if _, err := w.server.open(ctx, &corev3.Node{Id: "own"}, nil); status.Code(err) != codes.Unavailable {
		t.Errorf("a revision that never was: %v", err)
	}
	if a := w.server.Alarms(); len(a) != 1 || a[0].Reason != restoreSuspected {
		t.Errorf("%v", a)
	}
	// What a proxy claims stops nobody.
	w.put("2", "demo/a")
}

// TestNodeID: a node id that MoveService refuses gets no configuration: it would be on the
// roster, and topics that move would wait for it for ever.
func TestNodeID(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"", "a\nb", "a/b", "a b", "a~b", "ä", strings.Repeat("a", 129)} {
		if _, err := w.server.open(w.ctx, &corev3.Node{Id: id}, nil); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"a", "A.b_c-9", strings.Repeat("a", 128)} {
		if _, err := w.server.open(w.ctx, &corev3.Node{Id: id}, nil); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// TestTextStaysInItsLine: what a node says of itself commands nobody's terminal.
func TestTextStaysInItsLine(t *testing.T) {
	w := newWorld(t)
	p := w.connect(w.addr, nil)
	p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.says("n", &discoveryv1.NodeInfo{Manifest: true, Version: "1\x1b[2J", Zone: "z\n"}), ResourceNamesSubscribe: []string{"*"}})
	p.next()
	if all := w.server.Proxies(); len(all) != 1 || all[0].Info.Version != "1?[2J" || all[0].Info.Zone != "z?" {
		t.Errorf("%v", all)
	}
}
