// Package discovery streams the configuration to proxies over Envoy's delta
// discovery protocol (envoy.service.discovery.v3). What it adds to Envoy's
// messages is in proto/weft/discovery.
//
// For each stream the server keeps a subscription and a cursor in the log of
// changes, and beside them only what the proxy has rejected. What a slow stream
// misses is conflated, never queued. A resource's bytes are those of etcd and
// are shared by all streams.
package discovery

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/clock"
)

// ResumeHeader is the stream metadata that has a resume token.
const ResumeHeader = "weft-resume"

// Source is where the configuration comes from.
type Source interface {
	Snapshot() (*configstore.Snapshot, <-chan struct{})
	WaitFor(ctx context.Context, revision int64) (*configstore.Snapshot, error)
}

// Config of a Server.
type Config struct {
	Source Source
	// Allowed gives the namespaces that a peer may see; nil means all. Those of
	// its certificate when unset.
	Allowed func(ctx context.Context) (map[string]bool, error)
	// MaxStreams bounds open streams; 20,000 when 0.
	MaxStreams int
	// CatchUp bounds the wait for a revision that a proxy has and this
	// replica has not; 2 s when 0.
	CatchUp time.Duration
	// Clock dates streams, for people.
	Clock   clock.Clock
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Changed is called, if set, when a stream begins or ends or its node
	// says something new.
	Changed func()
}

// Server implements Envoy's AggregatedDiscoveryService, delta.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	metrics serverMetrics

	mu      sync.Mutex
	streams map[*stream]struct{}
	nodes   map[string]*stream // the newest stream of each node id
}

type serverMetrics struct {
	streams   prometheus.Gauge
	sent      *prometheus.CounterVec
	bytes     prometheus.Counter
	acks      *prometheus.CounterVec
	rejected  prometheus.Counter
	fullSyncs prometheus.Counter
	seconds   prometheus.Histogram
	behind    prometheus.GaugeFunc
}

// New makes a server.
func New(cfg Config) *Server {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 20000
	}
	if cfg.CatchUp == 0 {
		cfg.CatchUp = 2 * time.Second
	}
	if cfg.Allowed == nil {
		cfg.Allowed = byCertificate
	}
	s := &Server{cfg: cfg, streams: map[*stream]struct{}{}, nodes: map[string]*stream{}, metrics: serverMetrics{
		streams:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_streams", Help: "Open discovery streams."}),
		sent:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_resources_sent_total", Help: "Resources sent to proxies, by what was said of them."}, []string{"change"}),
		bytes:     prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_discovery_sent_bytes_total", Help: "Bytes of resources sent to proxies."}),
		acks:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_answers_total", Help: "Answers of proxies to deltas."}, []string{"answer"}),
		rejected:  prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_discovery_rejected_resources_total", Help: "Resources that proxies refused."}),
		fullSyncs: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_discovery_full_syncs_total", Help: "Streams that were sent their whole scope."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_controlplane_discovery_answer_duration_seconds", Help: "Time from sending a delta to the proxy's answer to all of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
	}}
	s.metrics.behind = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_proxies_behind", Help: "Connected proxies that have not acknowledged the newest revision sent to them."}, func() float64 {
		n := 0
		for _, p := range s.Proxies() {
			if p.AckedRevision < p.SentRevision {
				n++
			}
		}
		return float64(n)
	})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(s.metrics.streams, s.metrics.sent, s.metrics.bytes, s.metrics.acks, s.metrics.rejected, s.metrics.fullSyncs, s.metrics.seconds, s.metrics.behind)
	}
	return s
}

// DeltaAggregatedResources serves one proxy until its stream ends.
func (s *Server) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx := rpc.Context()
	if snap, _ := s.cfg.Source.Snapshot(); snap == nil {
		return status.Error(codes.Unavailable, "this control plane has not read the configuration yet")
	}
	allowed, err := s.cfg.Allowed(ctx)
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	first, err := rpc.Recv()
	if errors.Is(err, io.EOF) {
		return nil // it asks for nothing
	}
	if err != nil {
		return err
	}
	st, err := s.open(ctx, first, allowed)
	if err != nil {
		return err
	}
	defer s.close(st)

	// One goroutine reads, this one decides and writes.
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	received := make(chan error, 1)
	go func() {
		for {
			req, err := rpc.Recv()
			if err != nil {
				received <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				received <- ctx.Err()
				return
			}
		}
	}()
	return st.serve(rpc, first, requests, received)
}

// open makes the stream's state from its first request.
func (s *Server) open(ctx context.Context, first *discoveryv3.DeltaDiscoveryRequest, allowed map[string]bool) (*stream, error) {
	st := &stream{server: s, fresh: map[string]bool{}, rejected: map[string]string{}, held: map[string]*discoveryv1.Rejection{}, connected: s.cfg.Clock.Now()}
	st.scope.allowed = allowed
	if p, ok := peer.FromContext(ctx); ok {
		st.peer = p.Addr.String()
	}
	if n := len(first.GetNode().GetId()); n == 0 || n > 128 {
		return nil, status.Error(codes.InvalidArgument, "node.id must have 1 to 128 characters")
	}
	st.nodeID = first.Node.Id
	st.info = &discoveryv1.NodeInfo{}
	if n := proto.Size(first.Node); n > maxNode {
		return nil, status.Errorf(codes.InvalidArgument, "node has %d bytes, the most is %d", n, maxNode)
	}
	if f := first.Node.GetMetadata().GetFields()["weft"]; f != nil {
		b, err := f.MarshalJSON()
		if err == nil {
			err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, st.info)
		}
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "node.metadata.weft is not a NodeInfo: %v", err)
		}
	}
	if len(st.info.Namespaces) > 0 {
		st.scope.serves = map[string]bool{}
		for _, ns := range st.info.Namespaces {
			st.scope.serves[ns] = true
		}
	}
	if values := metadata.ValueFromIncomingContext(ctx, ResumeHeader); len(values) > 0 {
		token := &discoveryv1.ResumeToken{}
		b, err := base64.RawURLEncoding.DecodeString(values[0])
		if err == nil {
			err = proto.Unmarshal(b, token)
		}
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "the resume token cannot be read")
		}
		if err := s.awaitRevision(ctx, token); err != nil {
			return nil, err
		}
		st.token = token
	}
	var err error
	if st.credential, err = credentialOf(ctx); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if err := s.admit(st); err != nil {
		return nil, err
	}
	s.metrics.streams.Inc()
	s.changed()
	return st, nil
}

// admit takes a stream in, if there is room and its node id is its own: the one of
// its certificate, and of nobody else who is connected.
func (s *Server) admit(st *stream) error {
	if own := st.credential.node; own != "" && own != st.nodeID {
		return status.Errorf(codes.PermissionDenied, "the certificate is of node %s, not of %s", own, st.nodeID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= s.cfg.MaxStreams {
		return status.Errorf(codes.ResourceExhausted, "this control plane has %d streams; try another", s.cfg.MaxStreams)
	}
	if other := s.nodes[st.nodeID]; other != nil && other.credential.subject != st.credential.subject {
		return status.Errorf(codes.PermissionDenied, "node %s is connected with another certificate", st.nodeID)
	}
	s.streams[st] = struct{}{}
	s.nodes[st.nodeID] = st
	return nil
}

// awaitRevision is the fence: a proxy that has a newer revision than this replica
// is never shown an older one.
func (s *Server) awaitRevision(ctx context.Context, token *discoveryv1.ResumeToken) error {
	snap, _ := s.cfg.Source.Snapshot()
	if token.Lineage != snap.Lineage || token.Revision <= snap.Revision {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CatchUp)
	defer cancel()
	if _, err := s.cfg.Source.WaitFor(ctx, token.Revision); err != nil {
		return status.Errorf(codes.Unavailable, "this control plane has read up to revision %d, the proxy has %d; try another", snap.Revision, token.Revision)
	}
	return nil
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	if s.nodes[st.nodeID] == st {
		delete(s.nodes, st.nodeID)
	}
	s.mu.Unlock()
	s.metrics.streams.Dec()
	s.changed()
}

func (s *Server) changed() {
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

// Proxies tells of every node that is connected: where it has come again before
// its last stream was seen to end, of the newer one.
func (s *Server) Proxies() []*adminv1.ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*adminv1.ProxyStatus
	for _, st := range s.nodes {
		out = append(out, st.status())
	}
	return out
}

// StreamAggregatedResources is State-of-the-World, which this server does not
// speak.
func (s *Server) StreamAggregatedResources(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "use DeltaAggregatedResources")
}

// status is the stream as the fleet view shows it.
func (st *stream) status() *adminv1.ProxyStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := &adminv1.ProxyStatus{NodeId: st.nodeID, Info: st.info, Peer: st.peer, ConnectedAt: timestamppb.New(st.connected),
		SentRevision: st.sent, AckedRevision: st.acked}
	for _, r := range st.held {
		p.Rejections = append(p.Rejections, r)
	}
	return p
}

func versionInfo(lineage string, revision int64) string {
	return fmt.Sprintf("%s/%d", lineage, revision)
}
