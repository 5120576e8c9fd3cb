package discovery

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/listener"
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
	// maxInitial bounds what a plain client says that it has.
	maxInitial = 100000
)

// stream is the server's side of one proxy. Whoever has turn works on it: the
// goroutine that reads requests, or one that a new snapshot has started. The
// fields below mu are also read by the fleet view.
type stream struct {
	server *Server
	rpc    grpc.ServerStream
	nodeID string
	peer   string
	// credential is what the other end has shown.
	credential credential
	connected  time.Time

	turn sync.Mutex
	// closed: nothing may be sent any more.
	closed bool
	scope  scope
	// class is what the stream has in common with others; set with the
	// subscription.
	class    *class
	can      resource.Features
	declared bool
	// seen is what the manifest says as view.
	seen     []byte
	manifest bool
	// sotw is set for State-of-the-World streams.
	sotw *sotw

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
	// initial are the versions that a plain client says it has, until it is
	// answered.
	initial map[string]string
	// rejected is the version of each resource that this proxy refused.
	rejected map[string]string
	// flight is the bundle that is not acknowledged yet; nil for none.
	flight     *bundle
	flightSent time.Time
	// late ends the stream where the flight is not answered.
	late *time.Timer

	mu       sync.Mutex
	info     *discoveryv1.NodeInfo
	sent     int64
	acked    int64
	held     map[string]*discoveryv1.Rejection
	withheld []*configv1.Withheld
}

// work sends what there is to send. The caller has turn and gives it away.
func (st *stream) work() {
	for {
		snap, _ := st.server.cfg.Source.Snapshot()
		err := st.surviving(func() error { return st.advance(snap) })
		waits := err != nil || st.flight != nil || !st.asked || st.closed
		st.turn.Unlock()
		if err != nil {
			st.server.end(st, err)
		}
		if waits {
			return
		}
		// A snapshot that came meanwhile found the stream busy.
		if newer, _ := st.server.cfg.Source.Snapshot(); newer == snap || !st.turn.TryLock() {
			return
		}
	}
}

// surviving does what is done in goroutines of their own, whose panics gRPC does not
// see: one ends the stream, and no other.
func (st *stream) surviving(f func() error) (err error) {
	defer listener.Survive(st.rpc.Context(), st.server.cfg.Log, &err)
	return f()
}

// poke looks whether a new snapshot has something for the stream, and if so sends
// it from a goroutine of its own: a proxy that does not read holds up nobody.
func (st *stream) poke(snap *configstore.Snapshot) {
	if !st.turn.TryLock() {
		return // whoever has it will see the snapshot
	}
	if st.flight != nil || !st.asked || st.closed {
		st.turn.Unlock()
		return
	}
	if changes, ok := st.changes(snap); ok && st.cursor != nil && len(st.fresh) == 0 && !touched(&st.scope, changes) {
		st.advanced(snap)
		st.turn.Unlock()
		return
	}
	go st.work()
}

// advanced: snap has nothing for the proxy beyond what it has.
func (st *stream) advanced(snap *configstore.Snapshot) {
	if st.cursor.Lineage == snap.Lineage && snap.Revision < st.cursor.Revision {
		return // never back
	}
	st.cursor = snap
	st.mu.Lock()
	st.acked, st.sent = snap.Revision, snap.Revision
	st.mu.Unlock()
}

// changes is what changed since the proxy was told; not ok where it must be told
// everything.
func (st *stream) changes(snap *configstore.Snapshot) (changes []configstore.Changed, ok bool) {
	since := st.since()
	if st.full || st.cursor != nil && st.cursor.Lineage != snap.Lineage {
		return nil, false
	}
	if since == 0 && !st.scope.wild() {
		return nil, true // exact names alone, and the first time: they are fresh
	}
	return snap.Log(since)
}

// since is the revision that the proxy has; 0 for none.
func (st *stream) since() int64 {
	if st.cursor != nil {
		return st.cursor.Revision
	}
	return st.resumed
}

// advance sends what the proxy lacks of snap, if anything, unless an answer is
// awaited.
func (st *stream) advance(snap *configstore.Snapshot) error {
	if !st.asked || st.closed || st.flight != nil || st.cursor == snap && !st.full && len(st.fresh) == 0 {
		return nil
	}
	if st.cursor != nil && st.cursor.Lineage == snap.Lineage && snap.Revision < st.cursor.Revision {
		return nil // never back
	}
	changes, ok := st.changes(snap)
	if ok && st.cursor != nil && len(st.fresh) == 0 && !touched(&st.scope, changes) {
		st.advanced(snap)
		return nil
	}
	if !ok {
		release, err := st.server.fullSync(st.rpc.Context())
		if err != nil {
			return err
		}
		defer release()
		// The whole scope means the whole: also what was refused before.
		st.forget(func(string, string) bool { return true })
	}
	b, err := st.bundle(st.class.of(snap), changes, ok)
	if err != nil {
		return err
	}
	if b == nil {
		st.advanced(snap)
		return nil
	}
	return st.send(b)
}

// bundle is what leads the proxy to v: the class's, where it has no part in what
// is this proxy's alone; nil for nothing. whole: changes is everything.
func (st *stream) bundle(v *view, changes []configstore.Changed, known bool) (*bundle, error) {
	switch {
	case st.sotw != nil:
		return st.sotw.bundle(st, v)
	case len(st.scope.exact) > 0 || len(st.initial) > 0 || !known && !st.manifest && st.cursor != nil:
		return st.own(v, changes, known)
	}
	from := int64(0)
	if known {
		from = st.since()
	}
	b, err := v.bundle(from, changes)
	if err != nil || !known {
		return b, err
	}
	for name, version := range st.rejected {
		if b.find(name, version) {
			return st.own(v, changes, known)
		}
	}
	return b, nil
}

// own is a bundle for this proxy alone.
func (st *stream) own(v *view, changes []configstore.Changed, known bool) (*bundle, error) {
	d := v.since(&st.scope, changes)
	if !known {
		d = v.whole(&st.scope)
		d.complete = d.complete && len(st.initial) == 0
		for name := range st.scope.exact {
			if kind, ns, _, err := resource.Split(name); err == nil && st.scope.has(kind, name, ns) && !st.scope.covers(kind, ns) && v.get(name) != nil {
				d.add(v, name)
			}
		}
	}
	said := map[string]bool{}
	for _, e := range d.put {
		said[e.Name] = true
	}
	for _, name := range d.removed {
		said[name] = true
	}
	say := func(name string) {
		if kind, ns, _, err := resource.Split(name); said[name] {
			return
		} else if err != nil || !st.scope.has(kind, name, ns) {
			d.removed = append(d.removed, name) // a name that it may not see is said not to exist
		} else {
			d.add(v, name)
		}
		said[name] = true
	}
	for name := range st.fresh {
		say(name)
	}
	// What it has, or has been shown, and is not there any more, or not for it.
	gone := func(name string) {
		if kind, ns, _, err := resource.Split(name); err != nil || !st.scope.has(kind, name, ns) || v.get(name) == nil {
			say(name)
		}
	}
	if !known {
		for name := range st.initial {
			gone(name)
		}
	}
	if !known && st.cursor != nil {
		for e := range st.cursor.All("") {
			if st.scope.has(e.Kind, e.Name, e.Namespace) {
				gone(e.Name)
			}
		}
	}
	d.put = slices.DeleteFunc(d.put, func(e *configstore.Entry) bool {
		have := st.initial[e.Name] == e.Version()
		return have || st.rejected[e.Name] == e.Version() && !st.fresh[e.Name]
	})
	slices.SortFunc(d.put, func(a, b *configstore.Entry) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.removed)
	if d.empty() && st.cursor != nil {
		return nil, nil
	}
	of := shown{sums: v.sums, withheld: v.withheld}
	if st.manifest && len(st.scope.exact) > 0 {
		of = st.beside(v)
	}
	return v.encode(d, of)
}

// beside is what the manifest says where names of this proxy's own are beside the
// class's namespaces.
func (st *stream) beside(v *view) shown {
	sums, withheld := make(map[resource.Kind]resource.Digest, len(v.sums)), slices.Clone(v.withheld)
	for kind, d := range v.sums {
		sums[kind] = d
	}
	for name := range st.scope.exact {
		kind, ns, _, err := resource.Split(name)
		if err != nil || !st.scope.has(kind, name, ns) || st.scope.covers(kind, ns) {
			continue
		}
		if e := v.get(name); e != nil {
			sums[kind] = sums[kind].Add(e.Mark.Digest)
		} else if w := v.withholds(name); w != nil {
			withheld = append(withheld, w)
		}
	}
	slices.SortFunc(withheld, func(a, b *configv1.Withheld) int { return strings.Compare(a.Name, b.Name) })
	return shown{sums, withheld, st.scope.names.Bytes()}
}

// send sends a bundle; it stands until its last response is answered.
func (st *stream) send(b *bundle) error {
	st.flight, st.flightSent = b, time.Now()
	st.late = time.AfterFunc(st.server.cfg.Answer, func() {
		st.server.end(st, status.Errorf(codes.DeadlineExceeded, "what was sent is not answered since %s", st.server.cfg.Answer))
	})
	if len(st.rejected) > 0 {
		// A newer version may be good, and what is gone is not refused.
		put := map[string]string{}
		for _, s := range b.put {
			put[s.name] = s.version
		}
		for _, name := range b.removed {
			put[name] = ""
		}
		for _, w := range b.withheld {
			put[w.Name] = ""
		}
		st.forget(func(name, version string) bool { now, is := put[name]; return is && now != version })
	}
	full := b.full || st.sotw != nil && st.full
	st.full, st.initial = false, nil
	clear(st.fresh)
	st.mu.Lock()
	st.sent, st.withheld = b.to.Revision, b.withheld
	st.mu.Unlock()
	m := &st.server.metrics
	m.put.Add(float64(len(b.put)))
	m.removed.Add(float64(len(b.removed)))
	m.bytes.Add(float64(b.bytes))
	if full {
		m.fullSyncs.Inc()
	}
	for _, p := range b.parts {
		if err := st.rpc.SendMsg(p.bytes); err != nil {
			return err
		}
	}
	return nil
}

// forget drops the rejections that drop picks.
func (st *stream) forget(drop func(name, version string) bool) {
	for name, version := range st.rejected {
		if drop(name, version) {
			delete(st.rejected, name)
			st.mu.Lock()
			delete(st.held, name)
			st.mu.Unlock()
		}
	}
}

// resume decides, at the start, whether the proxy continues from its token.
func (st *stream) resume(first *discoveryv3.DeltaDiscoveryRequest) error {
	st.full = st.scope.wild()
	if n := len(first.InitialResourceVersions); n > maxInitial {
		return status.Errorf(codes.ResourceExhausted, "initial_resource_versions has %d names, the most is %d: send a resume token, or nothing", n, maxInitial)
	}
	st.initial = first.InitialResourceVersions
	t := st.token
	if t == nil {
		return nil
	}
	st.token = nil
	snap, _ := st.server.cfg.Source.Snapshot()
	other := len(t.View) > 0 && !bytes.Equal(t.View, st.seen) // it is sent something else now, perhaps
	if t.Lineage != snap.Lineage || t.Revision > snap.Revision || !st.scope.is(t) || other && len(t.Digests) == 0 {
		return nil
	}
	from := t.Revision
	v := st.class.of(snap)
	sums := v.sums
	if len(st.scope.exact) > 0 {
		sums = st.beside(v).sums
	}
	switch changes, ok := snap.Log(from); {
	case ok && len(t.Digests) > 0 && !sameDigests(digestsOf(v.at(&st.scope, sums, changes)), t.Digests):
		if other {
			return nil
		}
		st.server.metrics.mismatches.Inc()
		st.server.alarms.raise(st.server.cfg.Clock.Now(), snap.Lineage, restoreSuspected, "node "+st.nodeID+" says that it has revision "+strconv.FormatInt(from, 10)+
			" with another content than etcd had then: if that is so, etcd was restored from a backup, or written around the control plane. The proxy was sent everything; \"weft admin restore\" declares that what etcd has is in force")
		st.server.cfg.Log.Error("a proxy has another content than etcd at the same revision; it is sent everything", "node", st.nodeID, "revision", from)
		return nil
	case !ok:
		// The log does not reach so far: where nothing has changed in between,
		// the proxy has what was there where it begins, as when a replica starts.
		from = snap.Reach(from)
		changes, _ = snap.Log(from)
		if len(t.Digests) == 0 || !sameDigests(digestsOf(v.at(&st.scope, sums, changes)), t.Digests) {
			return nil
		}
	}
	st.full, st.resumed = false, from
	st.server.metrics.resumes.Inc()
	clear(st.fresh)
	for _, r := range t.Rejected[:min(len(t.Rejected), maxHeld)] {
		st.reject(r)
	}
	return nil
}

// delta takes one request of a delta stream: subscriptions, and the answer to a
// response.
func (st *stream) delta(req *discoveryv3.DeltaDiscoveryRequest) error {
	if req.TypeUrl != resource.TypeURL {
		// Whoever asks for a type that is not ours hears that there is none. An
		// answer to that is none to answer, or the two would never end.
		if req.ResponseNonce != "" && len(req.ResourceNamesSubscribe) == 0 {
			return nil
		}
		return st.rpc.SendMsg(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: strconv.FormatUint(nonces.Add(1), 36),
			RemovedResources: req.ResourceNamesSubscribe})
	}
	// Changes of the subscription count whatever nonce they come with.
	if err := st.subscribe(req); err != nil {
		return err
	}
	if !st.asked {
		st.asked = true
		if err := st.resume(req); err != nil {
			return err
		}
	}
	return st.answer(req.ResponseNonce, req.ErrorDetail)
}

// answer takes the answer to a response.
func (st *stream) answer(nonce string, e *rpcstatus.Status) error {
	if nonce == "" || st.flight == nil {
		return nil
	}
	i := slices.IndexFunc(st.flight.parts, func(p part) bool { return p.nonce == nonce })
	if i < 0 {
		return nil // an answer to an older response
	}
	if e != nil {
		st.server.metrics.nacks.Inc()
		rejections := &discoveryv1.Rejections{}
		for _, d := range e.Details {
			if d.MessageIs(rejections) {
				if err := d.UnmarshalTo(rejections); err != nil {
					return status.Error(codes.InvalidArgument, "error_detail.details cannot be read")
				}
			}
		}
		if len(rejections.Rejections) == 0 {
			for _, s := range st.flight.put {
				if s.part == i {
					rejections.Rejections = append(rejections.Rejections, &discoveryv1.Rejection{Name: s.name, Version: s.version, Reason: e.Message})
				}
			}
		}
		for _, r := range rejections.Rejections[:min(len(rejections.Rejections), maxHeld)] {
			st.reject(r)
			st.server.metrics.rejected.Inc()
			st.server.refusals.add(st, r)
		}
		st.server.cfg.Log.Warn("a proxy refused resources", "node", st.nodeID, "refused", len(rejections.Rejections), "reason", clip(e.Message))
	} else {
		st.server.metrics.acks.Inc()
	}
	if i == len(st.flight.parts)-1 {
		st.cursor, st.resumed = st.flight.to, 0
		st.mu.Lock()
		st.acked = st.flight.to.Revision
		st.mu.Unlock()
		st.server.metrics.seconds.Observe(time.Since(st.flightSent).Seconds())
		st.flight = nil
		st.late.Stop()
		st.server.changed()
	}
	return nil
}

// clip makes of what a proxy said a text that can be shown.
func clip(s string) string { return names.Text(s, maxReason) }

// reject remembers what the proxy refuses of what is its to have.
func (st *stream) reject(r *discoveryv1.Rejection) {
	if len(st.rejected) >= maxHeld || len(r.Name) > 160 || len(r.Version) > 20 {
		return
	}
	if kind, ns, _, err := resource.Split(r.Name); err != nil || !st.scope.has(kind, r.Name, ns) {
		return
	}
	st.rejected[r.Name] = r.Version
	st.mu.Lock()
	defer st.mu.Unlock()
	st.held[r.Name] = &discoveryv1.Rejection{Name: clip(r.Name), Version: clip(r.Version), Field: clip(r.Field), Reason: clip(r.Reason)}
}

// subscribe changes the scope.
func (st *stream) subscribe(req *discoveryv3.DeltaDiscoveryRequest) error {
	sc := &st.scope
	add := req.ResourceNamesSubscribe
	if !st.asked && len(add) == 0 {
		add = []string{"*"} // the legacy wildcard: a first request without names
	}
	for _, n := range add {
		if err := sc.add(n, func(wild bool) {
			if wild {
				st.full = true
			} else {
				st.fresh[n] = true
			}
		}); err != nil {
			return err
		}
	}
	for _, n := range req.ResourceNamesUnsubscribe {
		sc.remove(n)
		delete(st.fresh, n)
	}
	if len(add)+len(req.ResourceNamesUnsubscribe) > 0 || st.class == nil {
		st.server.classify(st)
	}
	return nil
}
