package discovery

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/resource"
)

// world is a discovery server above a real etcd.
type world struct {
	*testing.T
	ctx    context.Context
	etcd   *clientv3.Client
	store  *configstore.Store
	server *Server
	addr   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return newWorldOf(ctx, t, e.Client())
}

func newWorldOf(ctx context.Context, t *testing.T, etcd *clientv3.Client) *world {
	t.Helper()
	w := &world{T: t, ctx: ctx, etcd: etcd}
	w.store = w.replica(etcd)
	w.server, w.addr = serve(t, Config{Source: w.store, Log: slog.New(slog.DiscardHandler)})
	return w
}

// replica is a replica's store, which has read everything.
func (w *world) replica(etcd *clientv3.Client) *configstore.Store {
	w.Helper()
	s := configstore.New(configstore.Config{Client: etcd, Log: slog.New(slog.DiscardHandler)})
	w.Cleanup(w.run(s))
	_, err := s.WaitFor(w.ctx, 0)
	w.must(err)
	return s
}

// run has a store follow etcd until stop.
func (w *world) run(s *configstore.Store) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		w.must(<-ended)
	})
}

func serve(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, srv := New(cfg), grpc.NewServer(append(ServerOptions(), grpc.MaxHeaderListSize(64<<10))...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, s)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		<-ended
	})
	return s, l.Addr().String()
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// put writes EventStores, given as ns/name, with a label, and gives the revision.
func (w *world) put(label string, list ...string) int64 {
	w.Helper()
	var c configstore.Change
	for _, n := range list {
		ns, name, _ := strings.Cut(n, "/")
		c.Put = append(c.Put, &configv1.Resource{Name: "eventstore/" + n, Metadata: &configv1.Metadata{Namespace: ns, Name: name, Uid: "u", Labels: map[string]string{"v": label}},
			Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	}
	return w.commit(c)
}

func (w *world) remove(list ...string) int64 {
	w.Helper()
	var c configstore.Change
	for _, n := range list {
		c.Delete = append(c.Delete, "eventstore/"+n)
	}
	return w.commit(c)
}

func (w *world) commit(c configstore.Change) int64 {
	w.Helper()
	snap, err := w.store.Current()
	w.must(err)
	rev, err := w.store.Commit(w.ctx, snap, c)
	w.must(err)
	_, err = w.store.WaitFor(w.ctx, rev)
	w.must(err)
	return rev
}

// proxy is a raw client of the protocol.
type proxy struct {
	*world
	rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	// has is what it was given: versions by name.
	has map[string]string
	// plain is without manifests.
	plain bool
	last  *configv1.Manifest
}

// connect opens a stream; nothing is asked yet.
func (w *world) connect(addr string, token *discoveryv1.ResumeToken) *proxy {
	w.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	ctx := w.ctx
	if token != nil {
		b, err := proto.Marshal(token)
		w.must(err)
		ctx = metadata.AppendToOutgoingContext(ctx, ResumeHeader, base64.RawURLEncoding.EncodeToString(b))
	}
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	w.must(err)
	return &proxy{world: w, rpc: rpc, has: map[string]string{}}
}

func (p *proxy) node() *corev3.Node {
	n := &corev3.Node{Id: "node-1"}
	if !p.plain {
		n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"weft": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"manifest": structpb.NewBoolValue(true)}})}}
	}
	return n
}

func (p *proxy) send(req *discoveryv3.DeltaDiscoveryRequest) {
	p.Helper()
	if req.TypeUrl == "" {
		req.TypeUrl = resource.TypeURL
	}
	if err := p.rpc.Send(req); !errors.Is(err, io.EOF) { // it has ended; Recv says why
		p.must(err)
	}
}

func (p *proxy) ask(names ...string) {
	p.Helper()
	p.send(&discoveryv3.DeltaDiscoveryRequest{Node: p.node(), ResourceNamesSubscribe: names})
}

func (p *proxy) recv() *discoveryv3.DeltaDiscoveryResponse {
	p.Helper()
	resp, err := p.rpc.Recv()
	if err != nil {
		p.Fatal(err)
	}
	return resp
}

// next receives one delta, in as many responses as it takes, and acknowledges
// it; it gives what it said, sorted: "+name" and "-name".
func (p *proxy) next() string {
	p.Helper()
	resp, said := p.delta()
	p.send(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.Nonce})
	return said
}

// delta receives one delta and gives its last response.
func (p *proxy) delta() (*discoveryv3.DeltaDiscoveryResponse, string) {
	p.Helper()
	var said []string
	var withheld []*configv1.Withheld
	manifests := 0
	for {
		resp := p.recv()
		if n := proto.Size(resp); n > maxChunk {
			p.Errorf("a response of %d bytes", n)
		}
		closed := p.plain
		for _, r := range resp.Resources {
			if r.Name == resource.ManifestName {
				var body configv1.Resource
				p.must(r.Resource.UnmarshalTo(&body))
				p.last = body.GetManifest()
				withheld = append(withheld, p.last.Withheld...)
				p.last.Withheld, closed = withheld, !p.last.Continues
				manifests++
				continue
			}
			if manifests > 0 {
				p.Errorf("%s comes behind the manifest", r.Name)
			}
			said, p.has[r.Name] = append(said, "+"+strings.TrimPrefix(r.Name, "eventstore/")), r.Version
		}
		for _, name := range resp.RemovedResources {
			said = append(said, "-"+strings.TrimPrefix(name, "eventstore/"))
			delete(p.has, name)
		}
		if closed {
			slices.Sort(said)
			return resp, strings.Join(said, " ")
		}
	}
}

func (p *proxy) wants(want string) {
	p.Helper()
	if got := p.next(); got != want {
		p.Errorf("%q came, want %q", got, want)
	}
}

// ends waits until the stream ends and gives why.
func (p *proxy) ends() error {
	p.Helper()
	for {
		if _, err := p.rpc.Recv(); err != nil {
			return err
		}
	}
}

// fixed is a Source with one empty snapshot.
type fixed struct{}

func (fixed) Snapshot() (*configstore.Snapshot, <-chan struct{}) {
	return configstore.Empty("1-x", 7), nil
}

func (fixed) Head(context.Context) (string, int64, error) { return "1-x", 7, nil }

func (fixed) CatchUp() {}

func (fixed) Suspected() (string, time.Time) { return "", time.Time{} }
