package config

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/resource"
)

// deltaServer speaks the protocol as a test says, over a real connection.
type deltaServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	discoveryv1.UnimplementedMoveServiceServer
	// leave takes a node off the roster, and entry is the header that it needs; none of an
	// older version.
	leave   func(*discoveryv1.LeaveRequest) error
	entry   string
	addr    string
	streams chan *serverStream
	stop    func()
}

// serverStream is one stream of a client, in the test's hands.
type serverStream struct {
	t     *testing.T
	rpc   discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	token *discoveryv1.ResumeToken // nil without
	first *discoveryv3.DeltaDiscoveryRequest
	nonce int
	end   chan error
}

func (s *deltaServer) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	st := &serverStream{rpc: rpc, end: make(chan error, 1)}
	if v := metadata.ValueFromIncomingContext(rpc.Context(), resumeHeader); len(v) > 0 {
		st.token = &discoveryv1.ResumeToken{}
		b, err := base64.RawURLEncoding.DecodeString(v[0])
		if err == nil {
			err = proto.Unmarshal(b, st.token)
		}
		if err != nil {
			return err
		}
	}
	var err error
	if st.first, err = rpc.Recv(); err != nil {
		return err
	}
	if s.entry != "" {
		if err := rpc.SetHeader(metadata.Pairs(entryHeader, s.entry)); err != nil {
			return err
		}
	}
	select {
	case s.streams <- st:
	case <-rpc.Context().Done():
		return nil
	}
	select {
	case err := <-st.end:
		return err
	case <-rpc.Context().Done():
		return nil
	}
}

func (s *deltaServer) Leave(_ context.Context, req *discoveryv1.LeaveRequest) (*discoveryv1.LeaveResponse, error) {
	return &discoveryv1.LeaveResponse{}, s.leave(req)
}

func startDelta(t *testing.T, addr string, how ...func(*deltaServer)) *deltaServer {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &deltaServer{addr: l.Addr().String(), streams: make(chan *serverStream)}
	for _, f := range how {
		f(s)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	discoveryv1.RegisterMoveServiceServer(g, s)
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(l) }()
	s.stop = sync.OnceFunc(func() {
		g.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

const testPatience = 10 * time.Second

func (s *deltaServer) accept(t *testing.T) *serverStream {
	t.Helper()
	select {
	case st := <-s.streams:
		st.t = t
		return st
	case <-time.After(testPatience):
		t.Fatal("no stream came")
		return nil
	}
}

// send sends one response and gives the client's answer to it.
func (s *serverStream) send(rs []*discoveryv3.Resource, removed ...string) *discoveryv3.DeltaDiscoveryRequest {
	s.t.Helper()
	s.offer(rs, removed...)
	for {
		req, err := s.rpc.Recv()
		if err != nil {
			s.t.Fatalf("the stream ended instead of an answer: %v", err)
		}
		if req.ResponseNonce == strconv.Itoa(s.nonce) {
			return req
		}
	}
}

func (s *serverStream) offer(rs []*discoveryv3.Resource, removed ...string) {
	s.t.Helper()
	s.nonce++
	if err := s.rpc.Send(&discoveryv3.DeltaDiscoveryResponse{Nonce: strconv.Itoa(s.nonce), TypeUrl: resource.TypeURL, Resources: rs, RemovedResources: removed}); err != nil {
		s.t.Fatal(err)
	}
}

// refused sends one response, which the client must answer by leaving.
func (s *serverStream) refused(rs []*discoveryv3.Resource, removed ...string) {
	s.t.Helper()
	s.offer(rs, removed...)
	for {
		req, err := s.rpc.Recv()
		if err != nil {
			s.end <- nil
			return
		}
		if req.ResponseNonce == strconv.Itoa(s.nonce) {
			s.t.Fatalf("the client answered (error %v) what it must refuse", req.ErrorDetail)
		}
	}
}

func wire(r *configv1.Resource, version string) *discoveryv3.Resource {
	b, err := resource.Marshal(r)
	if err != nil {
		panic(err)
	}
	return raw(r.Name, version, b)
}

// offered has the bytes that were made last of each version of a name.
var offered sync.Map

func raw(name, version string, b []byte) *discoveryv3.Resource {
	offered.Store(name+"\x00"+version, b)
	return &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: resource.TypeURL, Value: b}}
}

const testUID = "0190a0b0-0000-7000-8000-000000000001"

func storeRes(name, label, uid string) *configv1.Resource {
	r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: name, Uid: uid, Labels: map[string]string{"v": label}},
		Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}}
	r.Name = resource.NameOf(r)
	return r
}

// closing is the manifest over what the scope holds: names and versions, with the
// content that was made last for them. It has an arithmetic of its own.
func closing(lineage string, revision int64, complete bool, holds map[string]string) *discoveryv3.Resource {
	type sum struct {
		n uint32
		d *big.Int
	}
	sums := map[string]*sum{}
	mod := new(big.Int).Lsh(big.NewInt(1), 128)
	for name, version := range holds {
		kind, _, _ := strings.Cut(name, "/")
		s := sums[kind]
		if s == nil {
			s = &sum{d: new(big.Int)}
			sums[kind] = s
		}
		content, _ := offered.Load(name + "\x00" + version)
		b, _ := content.([]byte)
		h := sha256.Sum256([]byte(name + "\x00" + version + "\x00" + string(b)))
		s.n++
		s.d.Add(s.d, new(big.Int).SetBytes(h[:16])).Mod(s.d, mod)
	}
	m := &configv1.Manifest{Lineage: lineage, Revision: revision, Complete: complete}
	for kind, s := range sums {
		m.Kinds = append(m.Kinds, &configv1.KindDigest{Kind: kind, Count: s.n, Digest: s.d.FillBytes(make([]byte, 16))})
	}
	slices.SortFunc(m.Kinds, func(a, b *configv1.KindDigest) int { return strings.Compare(a.Kind, b.Kind) })
	return wire(&configv1.Resource{Name: resource.ManifestName, Spec: &configv1.Resource_Manifest{Manifest: m}}, strconv.FormatInt(revision, 10))
}

// follower is a running client.
type follower struct {
	*Client
	t      *testing.T
	states *latest.Value[State]
	reg    *prometheus.Registry
	stop   func()
}

// metric is the value of a metric without labels.
func (f *follower) metric(name string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, mf := range families {
		if mf.GetName() == name {
			m := mf.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	f.t.Fatalf("there is no metric %s", name)
	return 0
}

// follow runs a client that refuses labels "bad".
func follow(t *testing.T, dir string, addrs ...string) *follower {
	t.Helper()
	f := &follower{t: t, states: latest.New(State{}), reg: prometheus.NewRegistry()}
	f.Client = New(Config{Addresses: addrs, NodeID: "n1", Times: Times{AnswerTimeout: 500 * time.Millisecond}, Info: &discoveryv1.NodeInfo{Manifest: true}, Dir: dir, Metrics: f.reg,
		Log: slog.New(slog.DiscardHandler), Check: tasteful,
		Apply: func(_ context.Context, s State) { f.states.Store(s) }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

func tasteful(r *configv1.Resource) (string, error) {
	if r.GetMetadata().GetLabels()["v"] == "bad" {
		return "metadata.labels", errors.New("is not to this proxy's taste " + r.Metadata.Labels["why"])
	}
	return snapshot.Check(r)
}

func (f *follower) await(what string, fits func(State) bool) State {
	f.t.Helper()
	limit := time.After(testPatience)
	for {
		s, changed := f.states.Load()
		if fits(s) {
			return s
		}
		select {
		case <-changed:
		case <-limit:
			f.t.Fatalf("%s does not come; there is revision %d with %d resources, withheld %v", what, s.Revision, len(s.Set), s.Withheld)
		}
	}
}

func (s State) label(name string) string { return s.Set[name].Resource.GetMetadata().GetLabels()["v"] }
