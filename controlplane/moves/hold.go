package moves

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/nodestream"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Limits of what a proxy may say.
const (
	// maxRequest bounds one request, in bytes.
	maxRequest = 512 << 10
	// Requests of a stream may come this often, and so many ahead of it.
	requestEvery = 200 * time.Millisecond
	requestBurst = 50
	// Most topics of a request, and what is kept of each: partitions of a cut, groups
	// that have settled, the size of a text.
	maxMoves   = 1000
	maxCut     = 2048
	maxSettled = 2000
	maxText    = 1024
	// maxName bounds names of partitions and groups.
	maxName = 256
	// maxVersion bounds a version.
	maxVersion = 20
)

// readTime bounds one reading of places in etcd.
const readTime = 2 * time.Second

// HoldsConfig is what Holds stands on.
type HoldsConfig struct {
	Store *configstore.Store
	// Authorize refuses, as a gRPC status, whoever is not the node that it says it
	// is. It is asked for each request.
	Authorize func(ctx context.Context, nodeID string) error
	// May reports whether a node may have configuration of a namespace: by what it was
	// sent at any time, and by the credential that the peer of ctx has shown now.
	May func(ctx context.Context, node, namespace string) bool
	// Leave takes a node off the roster, by what it was told when it joined.
	Leave func(ctx context.Context, node string, entry int64) error
	// MaxStreams bounds open streams; 20,000 when 0.
	MaxStreams int
	Metrics    prometheus.Registerer
	Log        *slog.Logger
}

// Holds implements MoveService: it grants leases, by what etcd says while the request
// waits, and writes down in etcd what proxies say, for the office. Its methods are safe
// for concurrent use; Run must run.
type Holds struct {
	discoveryv1.UnimplementedMoveServiceServer
	cfg    HoldsConfig
	places reader
	words  words
	// streams are told to words as they come and go.
	streams *nodestream.Set[struct{}]
	leases  *prometheus.CounterVec
}

type stream = nodestream.Stream[struct{}]

// NewHolds makes a server without streams.
func NewHolds(cfg HoldsConfig) *Holds {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 20000
	}
	open := prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_move_streams", Help: "Proxies that say here where they are with topics that move."})
	h := &Holds{cfg: cfg,
		leases: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_move_leases_total", Help: "Leases that proxies asked for to write to topics that move: granted, refused (not in this phase), or failed (etcd did not answer)."}, []string{"outcome"})}
	for _, outcome := range []string{"granted", "refused", "failed"} {
		h.leases.WithLabelValues(outcome)
	}
	h.places = reader{read: h.read}
	h.words = newWords(cfg.Store, cfg.Log)
	h.streams = nodestream.New[struct{}](nodestream.Config{Verb: "hold", Max: cfg.MaxStreams, Every: requestEvery, Burst: requestBurst, Open: open, Come: h.words.come, Gone: h.words.gone})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(open, h.leases)
	}
	return h
}

// Run writes down what proxies say until ctx ends.
func (h *Holds) Run(ctx context.Context) error { return h.words.run(ctx) }

// Hold answers the requests of one proxy until its stream ends.
func (h *Holds) Hold(rpc grpc.BidiStreamingServer[discoveryv1.HoldRequest, discoveryv1.HoldResponse]) error {
	first, err := rpc.Recv()
	if err != nil {
		return err
	}
	if !names.ValidNodeID(first.NodeId) {
		return status.Error(codes.InvalidArgument, "node_id of a stream's first request must have 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
	}
	if err := h.cfg.Authorize(rpc.Context(), first.NodeId); err != nil {
		return err
	}
	me, err := h.streams.Admit(first.NodeId, struct{}{})
	if err != nil {
		return err
	}
	defer me.Leave()
	ended := make(chan error, 1)
	go func() { ended <- h.serve(rpc, me, first) }()
	select {
	case err := <-ended:
		return err
	case <-me.Replaced():
		return me.ErrReplaced()
	case <-rpc.Context().Done(): // also where its credential was taken back
		return status.FromContextError(rpc.Context().Err()).Err()
	}
}

// leaveTime bounds the wait for etcd when a node leaves.
const leaveTime = 5 * time.Second

// Leave takes a node off the roster that has written for the last time.
func (h *Holds) Leave(ctx context.Context, req *discoveryv1.LeaveRequest) (*discoveryv1.LeaveResponse, error) {
	if !names.ValidNodeID(req.NodeId) {
		return nil, status.Error(codes.InvalidArgument, "node_id must have 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
	}
	if err := h.cfg.Authorize(ctx, req.NodeId); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	switch err := h.cfg.Leave(ctx, req.NodeId, req.Entry); {
	case err == nil:
		h.cfg.Log.Info("a proxy stops, and is on the roster no more", "node", req.NodeId)
		return &discoveryv1.LeaveResponse{}, nil
	case fault.ClassOf(err) == fault.Precondition:
		return nil, status.Error(codes.FailedPrecondition, fault.From(err).Msg)
	default:
		return nil, status.Error(codes.Unavailable, fault.From(err).Msg)
	}
}

// serve answers requests, one after the other.
func (h *Holds) serve(rpc grpc.BidiStreamingServer[discoveryv1.HoldRequest, discoveryv1.HoldResponse], me *stream, req *discoveryv1.HoldRequest) (err error) {
	defer listener.Survive(rpc.Context(), h.cfg.Log, &err) // it has a goroutine of its own
	for {
		resp, err := h.answer(rpc.Context(), me, req)
		if err != nil {
			return err
		}
		if err := rpc.Send(resp); err != nil {
			return err
		}
		if req, err = rpc.Recv(); err != nil {
			return err
		}
		if err := me.Said(req.NodeId); err != nil {
			return err
		}
		if err := h.cfg.Authorize(rpc.Context(), me.Node); err != nil {
			return err // it went, or it is not let in any more
		}
	}
}

// answer takes what a proxy says and grants what it asks for.
func (h *Holds) answer(ctx context.Context, me *stream, req *discoveryv1.HoldRequest) (*discoveryv1.HoldResponse, error) {
	if err := check(me.Node, req); err != nil {
		return nil, err
	}
	snap, err := h.cfg.Store.Current()
	if err != nil {
		return nil, status.Error(codes.Unavailable, "this control plane has not read the configuration yet; try another")
	}
	said := map[string]*discoveryv1.Held{}
	var wants []string
	epochs := map[string]uint32{} // that are asked for
	for _, held := range req.Moves {
		res := snap.Resource(held.Binding)
		b := res.GetTopicBinding()
		if b.GetMove() == nil || !h.cfg.May(ctx, me.Node, res.Metadata.Namespace) {
			continue // it has come to its end, or is none of the node's
		}
		if held.Wants {
			wants = append(wants, held.Binding)
			epochs[held.Binding] = held.Epoch
			held.Wants, held.Epoch = false, 0
		}
		said[b.TopicUid] = bound(held, me.Node, snap, res)
	}
	if err := me.Do(func() { h.words.say(me.Node, said) }); err != nil {
		return nil, err
	}
	resp := &discoveryv1.HoldResponse{}
	if req.Lists {
		resp.Moving = h.moving(ctx, snap, me.Node)
	}
	if len(wants) == 0 {
		return resp, nil
	}
	places, err := h.places.places(ctx, wants)
	if err != nil {
		h.leases.WithLabelValues("failed").Add(float64(len(wants)))
		return resp, nil //nolint:nilerr // nothing is granted; it asks again
	}
	for _, name := range wants {
		if at, moves := places[name]; moves && cutover.Grants(at.phase) && at.epoch == epochs[name] {
			resp.Granted = append(resp.Granted, name)
		}
	}
	h.leases.WithLabelValues("granted").Add(float64(len(resp.Granted)))
	h.leases.WithLabelValues("refused").Add(float64(len(wants) - len(resp.Granted)))
	return resp, nil
}

// bound leaves of a word what a move can need of a node: markers and their trouble of the
// one that is to write them, groups that there are. Words are kept in etcd, as often as
// they change.
func bound(held *discoveryv1.Held, node string, snap *configstore.Snapshot, res *configv1.Resource) *discoveryv1.Held {
	b := res.GetTopicBinding()
	if b.Move.Phase != configv1.Move_PHASE_MARKING || b.Move.Marker != node {
		held.Cut, held.Attempt, held.Trouble = nil, 0, ""
	}
	if topic := snap.Resource(resource.Name(resource.Topic, res.Metadata.Namespace, res.Metadata.Name)); len(held.Settled) > 0 {
		var all []item
		if topic.GetMetadata().GetUid() == b.TopicUid && len(b.Epochs) > 1 {
			all, _ = items(snap, topic, b)
		}
		held.Settled = slices.DeleteFunc(held.Settled, func(s *discoveryv1.Settled) bool {
			return !slices.ContainsFunc(all, func(at item) bool { return at.local && at.epoch == s.Epoch && at.group == s.Group })
		})
	}
	return held
}

// moving are the topics that move, of those that a node may have, as many as it may
// speak of.
func (h *Holds) moving(ctx context.Context, snap *configstore.Snapshot, node string) (out []string) {
	for res := range snap.Find(validate.Moving) {
		if e := snap.Get(resource.NameOf(res)); h.cfg.May(ctx, node, e.Namespace) && len(out) < maxMoves {
			out = append(out, e.Name)
		}
	}
	return out
}

// check refuses what is beyond the limits, and cuts texts.
func check(node string, req *discoveryv1.HoldRequest) error {
	refuse := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, "node "+node+": "+format, args...)
	}
	if n := proto.Size(req); n > maxRequest {
		return refuse("a request has at most %d bytes, this one has %d", maxRequest, n)
	}
	if n := len(req.Moves); n > maxMoves {
		return refuse("moves: there are %d, the most is %d", n, maxMoves)
	}
	seen := map[string]bool{}
	for i, held := range req.Moves {
		at := fmt.Sprintf("moves[%d]", i)
		kind, _, _, err := resource.Split(held.Binding)
		switch {
		case err != nil || kind != resource.TopicBinding:
			return refuse("%s.binding: is not the name of a TopicBinding", at)
		case seen[held.Binding]:
			return refuse("%s.binding: %s is there twice", at, held.Binding)
		case len(held.Version) > maxVersion:
			return refuse("%s.version: has more than %d characters", at, maxVersion)
		case len(held.Cut) > maxCut:
			return refuse("%s.cut: there are %d partitions, the most is %d", at, len(held.Cut), maxCut)
		case len(held.Settled) > maxSettled:
			return refuse("%s.settled: there are %d, the most is %d", at, len(held.Settled), maxSettled)
		case slices.ContainsFunc(held.Settled, func(s *discoveryv1.Settled) bool { return len(s.Group) > maxName }):
			return refuse("%s.settled: a group's name has more than %d characters", at, maxName)
		}
		seen[held.Binding] = true
		parts := map[string]bool{}
		for _, c := range held.Cut {
			if len(c.Partition) > maxName || parts[c.Partition] {
				return refuse("%s.cut: a partition is there twice, or its name has more than %d characters", at, maxName)
			}
			parts[c.Partition] = true
		}
		held.Trouble = names.Text(held.Trouble, maxText)
	}
	return nil
}

// place is how far the move of a topic is, and the epoch that it leaves.
type place struct {
	phase cutover.Phase
	epoch uint32
}

// read reads the places of topics in etcd.
func (h *Holds) read(names []string) (map[string]place, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readTime)
	defer cancel()
	found, err := h.cfg.Store.Fresh(ctx, names)
	if err != nil {
		return nil, err
	}
	out := make(map[string]place, len(found))
	for name, r := range found {
		b := r.GetTopicBinding()
		if phase, moves := cutover.PhaseOf(b.GetMove()); moves && len(b.Epochs) > 1 {
			out[name] = place{phase, b.Epochs[len(b.Epochs)-2].Number}
		}
	}
	return out, nil
}

// reader reads places for many who ask at once with one reading after the other: each
// is answered by one that began after it had asked.
type reader struct {
	read func(names []string) (map[string]place, error)

	mu      sync.Mutex
	next    *reading // is joined by who asks now
	reading bool
}

type reading struct {
	names  map[string]bool
	done   chan struct{}
	places map[string]place
	err    error
}

// places are what was there after the call; it may have more than what was asked for.
func (r *reader) places(ctx context.Context, names []string) (map[string]place, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &reading{names: map[string]bool{}, done: make(chan struct{})}
	}
	mine := r.next
	for _, name := range names {
		mine.names[name] = true
	}
	if !r.reading {
		r.reading = true
		go r.work()
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.places, mine.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// work reads as long as somebody waits.
func (r *reader) work() {
	for {
		r.mu.Lock()
		now := r.next
		if r.next = nil; now == nil {
			r.reading = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		now.places, now.err = r.read(slices.Sorted(maps.Keys(now.names)))
		close(now.done)
	}
}
