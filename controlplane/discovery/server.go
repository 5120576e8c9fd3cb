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
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/lineage"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// ResumeHeader is the stream metadata that has a resume token.
const ResumeHeader = "weft-resume"

// Source is where the configuration comes from; a configstore.Store.
type Source interface {
	Snapshot() (*configstore.Snapshot, <-chan struct{})
	// Head is what etcd has now, whatever this replica has read.
	Head(ctx context.Context) (lineage string, revision int64, err error)
	// Suspected tells why and since when etcd is believed to be restored
	// without anybody having said so; "" where it is not.
	Suspected() (message string, since time.Time)
}

// Config of a Server.
type Config struct {
	Source Source
	// Allowed gives the namespaces that a peer may see; nil means all. Those of
	// its certificate when unset.
	Allowed func(ctx context.Context) (map[string]bool, error)
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

type serverMetrics struct {
	streams                                               prometheus.Gauge
	put, removed, bytes, acks, nacks                      prometheus.Counter
	rejected, fullSyncs, resumes, mismatches, quarantines prometheus.Counter
	seconds                                               prometheus.Histogram
	waiting                                               prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, behind func() float64) serverMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_discovery_" + name, Help: help})
	}
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_resources_sent_total", Help: "Resources sent to proxies, by what was said of them."}, []string{"change"})
	answers := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_discovery_answers_total", Help: "Answers of proxies to deltas."}, []string{"answer"})
	m := serverMetrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_streams", Help: "Open discovery streams."}),
		put:     sent.WithLabelValues("put"), removed: sent.WithLabelValues("removed"),
		acks: answers.WithLabelValues("ack"), nacks: answers.WithLabelValues("nack"),
		bytes:       counter("sent_bytes_total", "Bytes of resources sent to proxies."),
		rejected:    counter("rejected_resources_total", "Resources that proxies refused."),
		fullSyncs:   counter("full_syncs_total", "Streams that were sent their whole scope."),
		resumes:     counter("resumes_total", "Streams that went on from what their proxy had."),
		mismatches:  counter("resume_mismatches_total", "Proxies that had another content than etcd at the same revision; each was sent everything."),
		quarantines: counter("quarantines_total", "Versions of resources that this replica put in quarantine."),
		waiting:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_full_syncs_waiting", Help: "Streams that wait for their turn to be sent their whole scope."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_controlplane_discovery_answer_duration_seconds", Help: "Time from sending a delta to the proxy's answer to all of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}),
	}
	if reg != nil {
		reg.MustRegister(m.streams, sent, m.bytes, answers, m.rejected, m.fullSyncs, m.resumes, m.mismatches, m.quarantines, m.waiting, m.seconds,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_discovery_proxies_behind", Help: "Connected proxies that have not acknowledged the newest revision sent to them."}, behind))
	}
	return m
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
	first, err := s.first(next)
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
	go func() {
		for req := first; ; {
			st.turn.Lock()
			if st.closed {
				st.turn.Unlock()
				return
			}
			if err := req.take(st); err != nil {
				st.turn.Unlock()
				s.end(st, err)
				return
			}
			st.work()
			var err error
			if req, err = next(); errors.Is(err, io.EOF) {
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

// maxInterned bounds the lists of capabilities that streams share.
const maxInterned = 64

// intern gives equal lists of capabilities one memory.
func (s *Server) intern(list []string) []string {
	key := strings.Join(list, "\x00")
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.interned[key]; ok {
		return known
	}
	if len(s.interned) < maxInterned {
		s.interned[key] = list
	}
	return list
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

// classify gives a stream, whose turn the caller has, the class of its
// subscription.
func (s *Server) classify(st *stream) {
	c := &class{scope: scope{allowed: st.scope.allowed, serves: st.scope.serves, all: st.scope.all, spaces: maps.Clone(st.scope.spaces), governing: maps.Clone(st.scope.governing)},
		can: st.can, declared: st.declared, manifest: st.manifest}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %t %t %s", c.can, c.declared, c.manifest, c.scope.key()))
	c.key = string(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave(st.class)
	if known := s.classes[c.key]; known != nil {
		c = known
	} else {
		s.classes[c.key] = c
	}
	c.streams++
	st.class = c
}

// leave is called with mu held.
func (s *Server) leave(c *class) {
	if c == nil {
		return
	}
	if c.streams--; c.streams == 0 {
		delete(s.classes, c.key)
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

// open makes the stream's state from what its first request says of the node.
func (s *Server) open(ctx context.Context, node *corev3.Node, allowed map[string]bool) (*stream, error) {
	st := &stream{server: s, fresh: map[string]bool{}, rejected: map[string]string{}, held: map[string]*discoveryv1.Rejection{}, connected: s.cfg.Clock.Now()}
	st.scope.allowed = allowed
	if p, ok := peer.FromContext(ctx); ok {
		st.peer = p.Addr.String()
	}
	if n := len(node.GetId()); n == 0 || n > 128 || names.Text(node.Id, n) != node.Id {
		return nil, status.Error(codes.InvalidArgument, "node.id must have 1 to 128 characters, and no control characters")
	}
	st.nodeID = node.Id
	// Before anything else that it says of the node is believed.
	var err error
	if st.credential, err = credentialOf(ctx); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if own := st.credential.node; own != "" && own != st.nodeID {
		return nil, status.Errorf(codes.PermissionDenied, "the certificate or join token is of node %s, not of %s", own, st.nodeID)
	}
	st.info = &discoveryv1.NodeInfo{}
	if n := proto.Size(node); n > maxNode {
		return nil, status.Errorf(codes.InvalidArgument, "node has %d bytes, the most is %d", n, maxNode)
	}
	if f := node.GetMetadata().GetFields()["weft"]; f != nil {
		if err := readInfo(f, st.info); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "node.metadata.weft is not a NodeInfo: %v", err)
		}
	}
	st.manifest = st.info.Manifest
	if st.declared = st.manifest && len(st.info.Capabilities) > 0; st.declared {
		st.can = resource.FeaturesOf(st.info.Capabilities)
		st.info.Capabilities = s.intern(st.info.Capabilities)
	}
	for _, text := range []*string{&st.info.Version, &st.info.Zone, &st.info.AdvertiseHost, &st.info.Incarnation} {
		*text = clip(*text)
	}
	if len(st.info.Namespaces) > 0 {
		st.scope.serves = map[string]bool{}
		for i, ns := range st.info.Namespaces {
			if err := names.CheckNamespace(ns); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "node.metadata.weft.namespaces[%d]: %v", i, err)
			}
			st.scope.serves[ns] = true
		}
	}
	if allowed != nil {
		// How a resource stands is counted among those that are about its namespace.
		own := slices.DeleteFunc(st.info.Namespaces, func(ns string) bool { return !allowed[ns] })
		if len(own) == 0 {
			own = slices.Sorted(maps.Keys(allowed))
		}
		st.info.Namespaces = own
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
		if err := s.awaitRevision(ctx, st.nodeID, token); err != nil {
			return nil, err
		}
		st.token = token
	}
	return st, nil
}

// readInfo reads what a node says of itself. Its capabilities, which are many, do not
// take the way over JSON.
func readInfo(v *structpb.Value, info *discoveryv1.NodeInfo) error {
	const capabilities = "capabilities"
	var can []string
	if list, ok := v.GetStructValue().GetFields()[capabilities].GetKind().(*structpb.Value_ListValue); ok {
		can = make([]string, 0, len(list.ListValue.Values))
		for _, c := range list.ListValue.Values {
			if _, ok := c.Kind.(*structpb.Value_StringValue); !ok {
				return errors.New("capabilities are not strings")
			}
			can = append(can, c.GetStringValue())
		}
		delete(v.GetStructValue().Fields, capabilities)
	}
	b, err := v.MarshalJSON()
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, info)
	}
	if can != nil {
		info.Capabilities = can
	}
	return err
}

// admit takes a stream in, if there is room and nobody with another credential is
// connected as its node. A reason to end the stream is sent to ended.
func (s *Server) admit(st *stream) (ended <-chan error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return nil, status.Error(codes.Unavailable, "this control plane is stopping; try another")
	}
	if len(s.streams) >= s.cfg.MaxStreams {
		return nil, status.Errorf(codes.ResourceExhausted, "this control plane has %d streams; try another", s.cfg.MaxStreams)
	}
	if other := s.nodes[st.nodeID]; other != nil && other.credential.subject != st.credential.subject {
		return nil, status.Errorf(codes.PermissionDenied, "node %s is connected with another certificate", st.nodeID)
	}
	if s.perNode[st.nodeID] >= s.cfg.NodeStreams {
		return nil, status.Errorf(codes.ResourceExhausted, "node %s has %d streams", st.nodeID, s.cfg.NodeStreams)
	}
	if len(s.streams) == 0 {
		stopped := make(chan struct{})
		s.stop = func() { close(stopped) }
		go s.push(stopped)
	}
	end := make(chan error, 1)
	s.streams[st] = end
	s.nodes[st.nodeID] = st
	s.perNode[st.nodeID]++
	return end, nil
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	if s.nodes[st.nodeID] == st {
		delete(s.nodes, st.nodeID)
	}
	if s.perNode[st.nodeID]--; s.perNode[st.nodeID] == 0 {
		delete(s.perNode, st.nodeID)
	}
	s.leave(st.class)
	if len(s.streams) == 0 {
		s.stop()
	}
	s.mu.Unlock()
	s.metrics.streams.Dec()
	s.changed()
}

// awaitRevision is the fence: a proxy that has a newer revision than this replica,
// or another lineage that does not come before this one, is never shown an older
// one. Where etcd itself has not, it went back: that is for people to see.
func (s *Server) awaitRevision(ctx context.Context, nodeID string, token *discoveryv1.ResumeToken) error {
	wctx, cancel := context.WithTimeout(ctx, s.cfg.CatchUp)
	defer cancel()
	snap, changed := s.cfg.Source.Snapshot()
	for !shows(snap, token) {
		select {
		case <-changed:
			snap, changed = s.cfg.Source.Snapshot()
			continue
		case <-wctx.Done():
		}
		break
	}
	if shows(snap, token) {
		return nil
	}
	type head struct {
		lineage  string
		revision int64
	}
	asked, err, _ := s.heads.Do("", func() (any, error) {
		hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CatchUp)
		defer cancel()
		lineage, revision, err := s.cfg.Source.Head(hctx)
		return head{lineage, revision}, err
	})
	if h, ok := asked.(head); err == nil && ok && h.lineage == token.Lineage && h.revision < token.Revision {
		s.alarms.raise(s.cfg.Clock.Now(), snap.Lineage, restoreSuspected, fmt.Sprintf("node %s says that it has revision %d, and etcd has only %d: if that is so, etcd was restored from a backup. "+
			"The proxy keeps its configuration; \"weft admin restore\" declares that what etcd has is in force", nodeID, token.Revision, h.revision))
		s.cfg.Log.Error("a proxy has a newer revision than etcd", "node", nodeID, "revision", token.Revision, "etcd", h.revision)
		return status.Errorf(codes.Unavailable, "etcd is at revision %d, the proxy has %d: etcd was restored from a backup", h.revision, token.Revision)
	} else if err == nil && ok && !lineage.Follows(h.lineage, token.Lineage) {
		s.alarms.raise(s.cfg.Clock.Now(), snap.Lineage, restoreSuspected, fmt.Sprintf("node %s says that it is of lineage %s, which etcd's, %s, does not follow: if that is so, etcd was emptied or restored from a backup, or the proxy was of another mesh. "+
			"The proxy keeps its configuration; \"weft admin restore\" declares that what etcd has is in force", nodeID, names.Text(token.Lineage, 100), h.lineage))
		s.cfg.Log.Error("a proxy is of a lineage that etcd's does not follow", "node", nodeID, "lineage", token.Lineage, "etcd", h.lineage)
		return status.Errorf(codes.Unavailable, "etcd is of lineage %s, the proxy of %s: etcd was emptied or restored from a backup, or the proxy is of another mesh", h.lineage, token.Lineage)
	}
	if token.Lineage != snap.Lineage {
		return status.Errorf(codes.Unavailable, "this control plane has not read of lineage %s yet, which the proxy has; try another", token.Lineage)
	}
	return status.Errorf(codes.Unavailable, "this control plane has read up to revision %d, the proxy has %d; try another", snap.Revision, token.Revision)
}

// shows reports whether a proxy with this token may be shown a snapshot.
func shows(snap *configstore.Snapshot, token *discoveryv1.ResumeToken) bool {
	if snap.Lineage == token.Lineage {
		return snap.Revision >= token.Revision
	}
	return lineage.Follows(snap.Lineage, token.Lineage)
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

// status is the stream as the fleet view shows it.
func (st *stream) status() *adminv1.ProxyStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := &adminv1.ProxyStatus{NodeId: st.nodeID, Info: st.info, Peer: st.peer, ConnectedAt: timestamppb.New(st.connected),
		SentRevision: st.sent, AckedRevision: st.acked, Withheld: st.withheld}
	for _, r := range st.held {
		p.Rejections = append(p.Rejections, r)
	}
	return p
}
