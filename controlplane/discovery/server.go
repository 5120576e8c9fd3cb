// Package discovery streams the configuration to proxies over Envoy's discovery
// protocol (envoy.service.discovery.v3), delta and State-of-the-World. What it adds
// to Envoy's messages is in proto/weft/discovery.
//
// For each stream the server keeps a subscription and a cursor in the log of
// changes, and beside them only what the proxy has rejected. Streams that are shown
// the same are a class: what leads them from one revision to another is marshalled
// once, and its bytes are shared. What a slow stream misses is conflated, never
// queued: one response is on its way at most, and the next leads from there to what
// is newest then.
package discovery

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/listener"
)

// ResumeHeader is the stream metadata that has a resume token.
const ResumeHeader = "weft-resume"

// EntryHeader is the stream metadata that tells a node that leaves when it stops what to
// say then.
const EntryHeader = "weft-entry"

// Source is where the configuration comes from; a configstore.Store.
type Source interface {
	Snapshot() (*configstore.Snapshot, <-chan struct{})
	// Head is what etcd has now, whatever this replica has read.
	Head(ctx context.Context) (lineage string, revision int64, err error)
	// CatchUp moves Snapshot on, before long, to what etcd has now, also where that is
	// no change of the configuration.
	CatchUp()
	// Suspected tells why and since when etcd is believed to be restored
	// without anybody having said so; "" where it is not.
	Suspected() (message string, since time.Time)
}

// Roster is the list of those who may have configuration; a roster.Roster. Its errors
// are of class Precondition, Throttled and Unavailable.
type Roster interface {
	Join(ctx context.Context, node roster.Joining) (roster.At, error)
	Refusal(node string) error
	Entry(node, incarnation string) int64
}

// Config of a Server.
type Config struct {
	Source Source
	// Allowed gives the namespaces that a peer may see; nil means all. Those of
	// its certificate when unset.
	Allowed func(ctx context.Context) (map[string]bool, error)
	// Roster, if set, has every node that is sent anything.
	Roster Roster
	// MaxStreams bounds open streams; 20,000 when 0.
	MaxStreams int
	// NodeStreams bounds those of one node id; 16 when 0.
	NodeStreams int
	// FirstRequest bounds the wait for a stream's first request; 30 s when 0.
	FirstRequest time.Duration
	// Answer bounds the wait for the answer to what was sent, which a stream
	// keeps in memory until then; 5 min when 0.
	Answer time.Duration
	// CatchUp bounds the wait for a revision that a proxy has and this
	// replica has not; 2 s when 0.
	CatchUp time.Duration
	// MaxAge, or up to a fifth more or less, is how long a stream lasts; then
	// it ends with OK, and the proxy comes again, to whoever is there, with a
	// credential that is judged anew. 1 h when 0.
	MaxAge time.Duration
	// FullSyncs bounds the streams that are being sent their whole scope; the
	// others wait for their turn, streams that resume do not. 16 when 0.
	FullSyncs int
	// Quarantine is called, if set, when QuarantineAfter nodes (3 when 0) have
	// refused one version of a resource that is in force.
	Quarantine      func(ctx context.Context, name, version, reason string, nodes []string) error
	QuarantineAfter int
	// Clock dates streams, for people.
	Clock   clock.Clock
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Changed is called, if set, when a stream begins or ends or its node
	// says something new.
	Changed func()
}

// Server implements Envoy's AggregatedDiscoveryService, delta and
// State-of-the-World. A gRPC server for it is made with ServerOptions. Its methods
// are safe for concurrent use.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg      Config
	metrics  serverMetrics
	alarms   alarms
	refusals refusals
	// heads is one question to etcd for all who ask it at a time.
	heads singleflight.Group
	// syncing has a place for each full sync.
	syncing chan struct{}

	mu       sync.Mutex
	streams  map[*stream]chan error // to end each with
	nodes    map[string]*stream     // the newest stream of each node id
	perNode  map[string]int         // how many there are
	classes  map[string]*class
	interned map[string][]string
	stop     func() // ends the pusher; nil while there is no stream
	draining bool
}

// New makes a server.
func New(cfg Config) *Server {
	cfg.MaxStreams = cmp.Or(cfg.MaxStreams, 20000)
	cfg.NodeStreams = cmp.Or(cfg.NodeStreams, 16)
	cfg.FirstRequest = cmp.Or(cfg.FirstRequest, 30*time.Second)
	cfg.Answer = cmp.Or(cfg.Answer, 5*time.Minute)
	cfg.CatchUp = cmp.Or(cfg.CatchUp, 2*time.Second)
	cfg.MaxAge = cmp.Or(cfg.MaxAge, time.Hour)
	cfg.FullSyncs = cmp.Or(cfg.FullSyncs, 16)
	cfg.QuarantineAfter = cmp.Or(cfg.QuarantineAfter, 3)
	if cfg.Allowed == nil {
		cfg.Allowed = byCertificate
	}
	s := &Server{cfg: cfg, streams: map[*stream]chan error{}, nodes: map[string]*stream{}, perNode: map[string]int{}, classes: map[string]*class{}, interned: map[string][]string{},
		syncing: make(chan struct{}, cfg.FullSyncs)}
	s.refusals.server = s
	s.metrics = newMetrics(cfg.Metrics, func() float64 {
		n := 0
		for _, p := range s.Proxies() {
			if p.AckedRevision < p.SentRevision {
				n++
			}
		}
		return float64(n)
	})
	return s
}

// request is what both kinds of stream receive.
type request interface {
	GetNode() *corev3.Node
	// take makes of it what there is to do; the caller has the stream's turn.
	take(*stream) error
}

type deltaRequest struct {
	*discoveryv3.DeltaDiscoveryRequest
}

func (r deltaRequest) take(st *stream) error { return st.delta(r.DeltaDiscoveryRequest) }

// DeltaAggregatedResources serves one proxy until its stream ends.
func (s *Server) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(rpc, nil, func() (request, error) {
		req, err := rpc.Recv()
		return deltaRequest{req}, err
	})
}

// serve serves one stream. One goroutine reads and works; this one waits for a
// reason to end it.
func (s *Server) serve(rpc grpc.ServerStream, w *sotw, next func() (request, error)) error {
	ctx := rpc.Context()
	if snap, _ := s.cfg.Source.Snapshot(); snap == nil {
		return status.Error(codes.Unavailable, "this control plane has not read the configuration yet")
	}
	allowed, err := s.cfg.Allowed(ctx)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	read := func() (req request, err error) {
		defer listener.Survive(ctx, s.cfg.Log, &err) // it has a goroutine of its own
		return next()
	}
	first, err := s.first(read)
	if errors.Is(err, io.EOF) {
		return nil // it asks for nothing
	}
	if err != nil {
		return err
	}
	st, err := s.open(ctx, first.GetNode(), allowed)
	if err != nil {
		return err
	}
	st.rpc, st.sotw = rpc, w
	if err := s.enrol(ctx, st); err != nil {
		return err
	}
	if p, ok := s.cfg.Source.(*Paced); ok {
		p.catchUp(ctx)
	}
	ended, err := s.admit(st)
	if err != nil {
		return err
	}
	s.metrics.streams.Inc()
	s.changed()
	defer s.close(st)
	if err := s.refusal(st.nodeID); err != nil { // said between enrol and admit
		return err
	}
	go func() {
		for req := first; ; {
			st.turn.Lock()
			if st.closed {
				st.turn.Unlock()
				return
			}
			if err := st.surviving(func() error { return req.take(st) }); err != nil {
				st.turn.Unlock()
				s.end(st, err)
				return
			}
			st.work()
			var err error
			if req, err = read(); errors.Is(err, io.EOF) {
				s.end(st, nil)
				return
			} else if err != nil {
				s.end(st, err)
				return
			}
		}
	}()
	age := time.NewTimer(s.cfg.MaxAge*4/5 + rand.N(s.cfg.MaxAge*2/5+1))
	defer age.Stop()
	select {
	case err = <-ended:
	case <-age.C:
	case <-ctx.Done():
	}
	// What is being sent is sent, and nothing after it. Whoever does not read is not
	// waited for: what is being sent fails when this returns.
	over := make(chan struct{})
	go func() {
		defer close(over)
		st.turn.Lock()
		st.closed = true
		if st.late != nil {
			st.late.Stop()
		}
		st.turn.Unlock()
	}()
	reads := time.NewTimer(lastWords)
	defer reads.Stop()
	select {
	case <-over:
	case <-reads.C:
	case <-ctx.Done():
	}
	return err
}

// lastWords bounds the wait, at the end of a stream, for what is being sent.
const lastWords = time.Second

// first waits for the first request of a stream, for a bounded time: until then it
// counts among no node's streams. Where it does not come, the stream's end ends next.
func (s *Server) first(next func() (request, error)) (request, error) {
	type received struct {
		request
		err error
	}
	got := make(chan received, 1)
	go func() {
		req, err := next()
		got <- received{req, err}
	}()
	late := time.NewTimer(s.cfg.FirstRequest)
	defer late.Stop()
	select {
	case r := <-got:
		return r.request, r.err
	case <-late.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "nothing was asked within %s", s.cfg.FirstRequest)
	}
}

// end ends a stream, with OK where err is nil. The first reason counts.
func (s *Server) end(st *stream, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ended := s.streams[st]; ended != nil {
		select {
		case ended <- err:
		default:
		}
	}
}

// Drain ends all streams with OK, so that their proxies go to other replicas, and
// takes no more.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for _, ended := range s.streams {
		select {
		case ended <- nil:
		default:
		}
	}
}

// push tells the streams of every new snapshot until stopped.
func (s *Server) push(stopped <-chan struct{}) {
	for {
		snap, changed := s.cfg.Source.Snapshot()
		s.mu.Lock()
		streams := slices.Collect(maps.Keys(s.streams))
		s.mu.Unlock()
		for _, st := range streams {
			st.poke(snap)
		}
		select {
		case <-changed:
		case <-stopped:
			return
		}
	}
}

// fullSyncTurn bounds how long a proxy that does not read keeps others waiting.
const fullSyncTurn = 10 * time.Second

// fullSync waits for a turn to send a whole scope.
func (s *Server) fullSync(ctx context.Context) (release func(), err error) {
	s.metrics.waiting.Inc()
	defer s.metrics.waiting.Dec()
	select {
	case s.syncing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	once := sync.OnceFunc(func() { <-s.syncing })
	late := time.AfterFunc(fullSyncTurn, once)
	return func() { late.Stop(); once() }, nil
}

func (s *Server) changed() {
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}
