package discovery

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Limits of one stream.
const (
	// maxChunk is the size of a response, resources and names.
	maxChunk = 1 << 20
	// maxSubscribed bounds names that a stream subscribes to.
	maxSubscribed = 10000
	// maxNode is the size of what a stream says of its node, which is kept.
	maxNode = 64 << 10
	// maxHeld bounds the rejections that a stream is remembered for.
	maxHeld = 1000
	// maxReason bounds the text of one.
	maxReason = 1024
)

// stream is the server's side of one proxy. Its fields belong to serve, but for
// those below mu, which the fleet view reads.
type stream struct {
	server *Server
	scope  scope
	nodeID string
	peer   string
	// credential is what the other end has shown.
	credential credential

	token *discoveryv1.ResumeToken

	// cursor is what the proxy has acknowledged; nil before the first
	// acknowledgement.
	cursor *configstore.Snapshot
	// resumed is the revision that a resume token gave; 0 without.
	resumed int64
	// asked is set once the proxy has asked for resources of ours.
	asked bool
	// full is set while the proxy must be sent its whole scope.
	full bool
	// fresh are names that were subscribed to, or again, and must be sent
	// whatever the cursor says.
	fresh map[string]bool
	// initial are the versions that a plain client says it has.
	initial map[string]string
	// rejected is the version of each resource that this proxy refused.
	rejected map[string]string
	// flight is the delta that is not acknowledged yet; nil for none.
	flight *flight
	nonce  uint64

	connected time.Time
	info      *discoveryv1.NodeInfo

	mu    sync.Mutex
	sent  int64
	acked int64
	held  map[string]*discoveryv1.Rejection
}

// flight is one delta on its way, in one or more responses.
type flight struct {
	at   *configstore.Snapshot
	sent time.Time
	// last is the nonce whose answer ends it.
	last string
	// parts has the resources of each response, for a NACK without details.
	parts map[string][]sentResource
}

type sentResource struct{ name, version string }

// scope is what a stream is about.
type scope struct {
	allowed map[string]bool // by credential; nil is all
	serves  map[string]bool // by NodeInfo; nil is all
	all     bool            // "*"
	spaces  map[string]bool // "*/ns/*"
	exact   map[string]bool
}

func (s *scope) has(name, namespace string) bool {
	if s.allowed != nil && !s.allowed[namespace] {
		return false
	}
	if s.exact[name] {
		return true
	}
	return (s.all || s.spaces[namespace]) && (s.serves == nil || s.serves[namespace])
}

// wild reports whether the scope has whole namespaces.
func (s *scope) wild() bool { return s.all || len(s.spaces) > 0 }

// serve runs the stream: it takes requests, waits for changes, and sends deltas,
// one at a time.
func (st *stream) serve(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer,
	first *discoveryv3.DeltaDiscoveryRequest, requests <-chan *discoveryv3.DeltaDiscoveryRequest, received <-chan error) error {
	if err := st.request(rpc, first); err != nil {
		return err
	}
	for {
		snap, changed := st.server.cfg.Source.Snapshot()
		if st.flight == nil {
			if err := st.send(rpc, snap); err != nil {
				return err
			}
		}
		if st.flight != nil {
			changed = nil // nothing more before the answer
		}
		select {
		case req := <-requests:
			if err := st.request(rpc, req); err != nil {
				return err
			}
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-changed:
		case <-rpc.Context().Done():
			return nil
		}
	}
}

// resume decides, at the start, whether the proxy continues from its token.
func (st *stream) resume(first *discoveryv3.DeltaDiscoveryRequest) {
	st.full = st.scope.wild()
	st.initial = first.InitialResourceVersions
	if st.token == nil {
		return
	}
	snap, _ := st.server.cfg.Source.Snapshot()
	asked := slices.Sorted(slices.Values(first.ResourceNamesSubscribe))
	if len(asked) == 0 {
		asked = []string{"*"}
	}
	if _, ok := snap.Since(st.token.Revision); !ok || st.token.Lineage != snap.Lineage || !slices.Equal(asked, st.token.Scope) {
		return
	}
	st.full, st.resumed = false, st.token.Revision
	clear(st.fresh)
	for _, r := range st.token.Rejected[:min(len(st.token.Rejected), maxHeld)] {
		st.reject(r)
	}
}

// request takes one request: subscriptions, and the answer to a response.
func (st *stream) request(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, req *discoveryv3.DeltaDiscoveryRequest) error {
	if req.TypeUrl != resource.TypeURL {
		// Whoever asks for a type that is not ours hears that there is none. An
		// answer to that is none to answer, or the two would never end.
		if req.ResponseNonce != "" && len(req.ResourceNamesSubscribe) == 0 {
			return nil
		}
		st.nonce++
		return rpc.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: strconv.FormatUint(st.nonce, 10),
			RemovedResources: req.ResourceNamesSubscribe})
	}
	// Changes of the subscription count whatever nonce they come with.
	if err := st.subscribe(req); err != nil {
		return err
	}
	if !st.asked {
		st.asked = true
		st.resume(req)
	}
	if req.ResponseNonce == "" || st.flight == nil {
		return nil
	}
	part, ours := st.flight.parts[req.ResponseNonce]
	if !ours {
		return nil // an answer to an older response
	}
	if e := req.ErrorDetail; e != nil {
		st.server.metrics.acks.WithLabelValues("nack").Inc()
		rejections := &discoveryv1.Rejections{}
		for _, d := range e.Details {
			if d.MessageIs(rejections) {
				if err := d.UnmarshalTo(rejections); err != nil {
					return status.Error(codes.InvalidArgument, "error_detail.details cannot be read")
				}
			}
		}
		if len(rejections.Rejections) == 0 {
			for _, r := range part {
				rejections.Rejections = append(rejections.Rejections, &discoveryv1.Rejection{Name: r.name, Version: r.version, Reason: e.Message})
			}
		}
		for _, r := range rejections.Rejections[:min(len(rejections.Rejections), maxHeld)] {
			st.reject(r)
			st.server.metrics.rejected.Inc()
		}
		st.server.cfg.Log.Warn("a proxy refused resources", "node", st.nodeID, "refused", len(rejections.Rejections), "reason", clip(e.Message))
	} else {
		st.server.metrics.acks.WithLabelValues("ack").Inc()
	}
	if req.ResponseNonce == st.flight.last {
		st.cursor, st.resumed = st.flight.at, 0
		st.mu.Lock()
		st.acked = st.flight.at.Revision
		st.mu.Unlock()
		st.server.metrics.seconds.Observe(time.Since(st.flight.sent).Seconds())
		st.flight = nil
		st.server.changed()
	}
	return nil
}

// clip shortens what a proxy said; it stays valid UTF-8, or it could not be shown.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxReason)], "") }

func (st *stream) reject(r *discoveryv1.Rejection) {
	if len(st.rejected) >= maxHeld || len(r.Name) > 160 || len(r.Version) > 20 {
		return
	}
	st.rejected[r.Name] = r.Version
	st.mu.Lock()
	defer st.mu.Unlock()
	st.held[r.Name] = &discoveryv1.Rejection{Name: r.Name, Version: r.Version, Field: clip(r.Field), Reason: clip(r.Reason)}
}

// subscribe changes the scope.
func (st *stream) subscribe(req *discoveryv3.DeltaDiscoveryRequest) error {
	sc := &st.scope
	add := req.ResourceNamesSubscribe
	if !st.asked && len(add) == 0 {
		add = []string{"*"} // the legacy wildcard: a first request without names
	}
	for _, n := range add {
		switch ns, ok := namespaceWildcard(n); {
		case n == "*":
			st.full = st.full || !sc.all
			sc.all = true
		case ok:
			if sc.spaces == nil {
				sc.spaces = map[string]bool{}
			}
			st.full = st.full || !sc.spaces[ns]
			sc.spaces[ns] = true
		default:
			if _, _, _, err := resource.Split(n); err != nil {
				return status.Errorf(codes.InvalidArgument, "resource_names_subscribe: %v", err)
			}
			if sc.exact == nil {
				sc.exact = map[string]bool{}
			}
			sc.exact[n], st.fresh[n] = true, true
		}
		if len(sc.exact)+len(sc.spaces) > maxSubscribed {
			return status.Errorf(codes.ResourceExhausted, "a stream may subscribe to %d names", maxSubscribed)
		}
	}
	for _, n := range req.ResourceNamesUnsubscribe {
		if ns, ok := namespaceWildcard(n); ok {
			delete(sc.spaces, ns)
		}
		if n == "*" {
			sc.all = false
		}
		delete(sc.exact, n)
		delete(st.fresh, n)
	}
	return nil
}

// namespaceWildcard is the namespace of "*/ns/*".
func namespaceWildcard(n string) (string, bool) {
	rest, ok := strings.CutPrefix(n, "*/")
	ns, ok2 := strings.CutSuffix(rest, "/*")
	return ns, ok && ok2 && names.CheckNamespace(ns) == nil
}

// delta is what the proxy lacks.
type delta struct {
	put     []*configstore.Entry
	removed []string
	// complete: put is the whole scope.
	complete bool
}

// delta is what leads from what the proxy has to snap.
func (st *stream) delta(snap *configstore.Snapshot) delta {
	changed, ok := st.changes(snap)
	if !ok {
		return st.whole(snap)
	}
	var d delta
	for name := range st.fresh {
		changed = append(changed, name)
	}
	slices.Sort(changed)
	for _, name := range slices.Compact(changed) {
		e := snap.Get(name)
		_, ns, _, err := resource.Split(name)
		switch {
		case err != nil || !st.scope.has(name, ns):
			// Not of this stream; a name that it may not see is said not to
			// exist.
			if st.fresh[name] {
				d.removed = append(d.removed, name)
			}
		case e == nil:
			d.removed = append(d.removed, name)
		case !st.knows(e) || st.fresh[name] && st.initial[name] != e.Version():
			d.put = append(d.put, e)
		}
	}
	return d
}

// changes names what changed since the proxy was told; not ok where it must be
// told everything.
func (st *stream) changes(snap *configstore.Snapshot) (names []string, ok bool) {
	since := st.resumed
	if st.cursor != nil {
		if st.cursor.Lineage != snap.Lineage {
			return nil, false
		}
		since = st.cursor.Revision
	}
	if st.full {
		return nil, false
	}
	if since == 0 && !st.scope.wild() {
		return nil, true // exact names alone, and the first time: they are fresh
	}
	return snap.Since(since)
}

// whole is everything of the scope.
func (st *stream) whole(snap *configstore.Snapshot) delta {
	d := delta{complete: st.scope.wild() && len(st.initial) == 0}
	st.server.metrics.fullSyncs.Inc()
	// The whole scope means the whole: also what was refused before.
	clear(st.rejected)
	st.mu.Lock()
	clear(st.held)
	st.mu.Unlock()
	for e := range snap.All("") {
		if st.scope.has(e.Name, e.Namespace) && !st.knows(e) {
			d.put = append(d.put, e)
		}
	}
	// What the proxy has, or asks for, and is not there any more, or not for it.
	missing := func(name string) {
		if _, ns, _, err := resource.Split(name); err != nil || snap.Get(name) == nil || !st.scope.has(name, ns) {
			d.removed = append(d.removed, name)
		}
	}
	for name := range st.initial {
		missing(name)
	}
	for name := range st.fresh {
		missing(name)
	}
	if st.cursor != nil {
		for e := range st.cursor.All("") {
			if st.scope.has(e.Name, e.Namespace) {
				missing(e.Name)
			}
		}
	}
	slices.Sort(d.removed)
	d.removed = slices.Compact(d.removed)
	return d
}

// knows reports whether the proxy has or has refused exactly this version.
func (st *stream) knows(e *configstore.Entry) bool {
	return st.rejected[e.Name] == e.Version() || st.initial[e.Name] == e.Version()
}

// send sends what the proxy lacks, if anything.
func (st *stream) send(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, snap *configstore.Snapshot) error {
	if !st.asked || st.cursor == snap && !st.full && len(st.fresh) == 0 {
		return nil
	}
	if st.cursor != nil && st.cursor.Lineage == snap.Lineage && snap.Revision < st.cursor.Revision {
		return nil // never back
	}
	d := st.delta(snap)
	first := st.cursor == nil
	if len(d.put)+len(d.removed) == 0 && !d.complete && !first {
		// Nothing of it is for this proxy.
		st.cursor = snap
		st.mu.Lock()
		st.acked, st.sent = snap.Revision, snap.Revision
		st.mu.Unlock()
		return nil
	}
	st.flight = &flight{at: snap, sent: time.Now(), parts: map[string][]sentResource{}}
	for _, e := range d.put {
		if v, ok := st.rejected[e.Name]; ok && v != e.Version() {
			delete(st.rejected, e.Name) // a newer version may be good
			st.mu.Lock()
			delete(st.held, e.Name)
			st.mu.Unlock()
		}
	}
	chunk := &discoveryv3.DeltaDiscoveryResponse{}
	size := 0
	flush := func() error {
		st.nonce++
		chunk.Nonce = strconv.FormatUint(st.nonce, 10)
		chunk.TypeUrl = resource.TypeURL
		chunk.SystemVersionInfo = versionInfo(snap.Lineage, snap.Revision)
		part := make([]sentResource, 0, len(chunk.Resources))
		for _, r := range chunk.Resources {
			if r.Name != resource.ManifestName {
				part = append(part, sentResource{r.Name, r.Version})
			}
		}
		st.flight.parts[chunk.Nonce], st.flight.last = part, chunk.Nonce
		err := rpc.Send(chunk)
		chunk, size = &discoveryv3.DeltaDiscoveryResponse{}, 0
		return err
	}
	room := func(n int) error {
		if size > 0 && size+n > maxChunk {
			return flush()
		}
		return nil
	}
	for _, e := range d.put {
		n := len(e.Bytes) + 2*len(e.Name) + 96
		if err := room(n); err != nil {
			return err
		}
		size += n
		st.server.metrics.bytes.Add(float64(len(e.Bytes)))
		chunk.Resources = append(chunk.Resources, &discoveryv3.Resource{Name: e.Name, Version: e.Version(),
			Resource: &anypb.Any{TypeUrl: resource.TypeURL, Value: e.Bytes}})
	}
	for _, name := range d.removed {
		if err := room(len(name) + 4); err != nil {
			return err
		}
		size += len(name) + 4
		chunk.RemovedResources = append(chunk.RemovedResources, name)
		delete(st.rejected, name)
		st.mu.Lock()
		delete(st.held, name)
		st.mu.Unlock()
	}
	if st.info.GetManifest() {
		m, err := st.manifest(snap, d.complete)
		if err != nil {
			return err
		}
		if err := room(proto.Size(m)); err != nil {
			return err
		}
		chunk.Resources = append(chunk.Resources, m)
	}
	st.server.metrics.sent.WithLabelValues("put").Add(float64(len(d.put)))
	st.server.metrics.sent.WithLabelValues("removed").Add(float64(len(d.removed)))
	if err := flush(); err != nil {
		return err
	}
	st.full, st.initial = false, nil
	clear(st.fresh)
	st.mu.Lock()
	st.sent = snap.Revision
	st.mu.Unlock()
	return nil
}

// manifest is the resource that closes a delta.
func (st *stream) manifest(snap *configstore.Snapshot, complete bool) (*discoveryv3.Resource, error) {
	m := &configv1.Manifest{Lineage: snap.Lineage, Revision: snap.Revision, Complete: complete}
	sums := map[resource.Kind]configstore.Digest{}
	if st.scope.wild() {
		for ns := range snap.Namespaces() {
			if st.scope.has("", ns) {
				for kind, d := range snap.Digests(ns) {
					sums[kind] = sums[kind].Add(d)
				}
			}
		}
	}
	for name := range st.scope.exact {
		kind, ns, _, err := resource.Split(name)
		if err != nil || !st.scope.has(name, ns) || st.wildHas(ns) {
			continue
		}
		if e := snap.Get(name); e != nil {
			sums[kind] = sums[kind].Add(configstore.DigestOf(e.Name, e.Version()))
		}
	}
	for kind, d := range sums {
		m.Kinds = append(m.Kinds, &configv1.KindDigest{Kind: string(kind), Count: d.Count, Digest: d.Bytes()})
	}
	slices.SortFunc(m.Kinds, func(a, b *configv1.KindDigest) int { return cmp.Compare(a.Kind, b.Kind) })
	b, err := proto.Marshal(&configv1.Resource{Name: resource.ManifestName, Spec: &configv1.Resource_Manifest{Manifest: m}})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &discoveryv3.Resource{Name: resource.ManifestName, Version: strconv.FormatInt(snap.Revision, 10),
		Resource: &anypb.Any{TypeUrl: resource.TypeURL, Value: b}}, nil
}

// wildHas reports whether a wildcard of the scope covers the namespace already.
func (st *stream) wildHas(ns string) bool {
	s := scope{allowed: st.scope.allowed, serves: st.scope.serves, all: st.scope.all, spaces: st.scope.spaces}
	return s.has("", ns)
}
