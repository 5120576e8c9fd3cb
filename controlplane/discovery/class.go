package discovery

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"weak"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// class is the streams that are shown the same: they share a view of each
// snapshot, and the bytes of what is sent. What a stream has beside, names of its
// own and refusals, is the stream's.
type class struct {
	key string
	// scope has no exact names.
	scope scope
	// can is what its nodes enforce; declared is false for those who have not
	// said so, who are shown everything.
	can      resource.Features
	declared bool
	// manifest: a manifest closes each delta.
	manifest bool
	// seen is what the manifest says as view.
	seen []byte

	streams int // guarded by Server.mu

	mu   sync.Mutex
	view *view
	// bundles to view's snapshot, by the revision that they begin at, 0 for
	// nothing, or theWorld. They live as long as a stream has one on its way.
	bundles map[int64]weak.Pointer[bundle]
}

// view is what a class is shown of a snapshot. It is a function of the two alone,
// so that all replicas agree, and immutable.
type view struct {
	*class
	snap *configstore.Snapshot
	// withheld is what the class's nodes are not sent, sorted by name.
	withheld []*configv1.Withheld
	sums     map[resource.Kind]resource.Digest
}

// of gives the class's view of a snapshot.
func (c *class) of(snap *configstore.Snapshot) *view {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view != nil && c.view.snap.Lineage == snap.Lineage && c.view.snap.Revision > snap.Revision {
		return newView(c, snap) // others are further already
	}
	if c.view == nil || c.view.snap != snap {
		c.view, c.bundles = newView(c, snap), map[int64]weak.Pointer[bundle]{}
	}
	return c.view
}

func newView(c *class, snap *configstore.Snapshot) *view {
	v := &view{class: c, snap: snap, sums: map[resource.Kind]resource.Digest{}}
	if c.scope.wild() {
		for ns := range c.scope.namespaces(snap) {
			for kind, d := range snap.Digests(ns) {
				if c.scope.covers(kind, ns) {
					v.sums[kind] = v.sums[kind].Add(d)
				}
			}
		}
	}
	if !c.manifest {
		return v
	}
	for name, q := range snap.Quarantined() {
		if e := snap.Get(name); q.Instead == nil && c.scope.covers(e.Kind, e.Namespace) {
			v.withheld = append(v.withheld, v.withholds(name))
		}
	}
	if c.declared && !resource.FeaturesOf(resource.AllFeatures()).Without(c.can).Empty() {
		for ns := range c.scope.namespaces(snap) {
			for e := range snap.Within(ns) {
				if served, _ := snap.Served(e.Name); served != nil && c.scope.covers(e.Kind, ns) && !c.shows(served.Mark) {
					v.sums[e.Kind] = v.sums[e.Kind].Sub(served.Mark.Digest)
					v.withheld = append(v.withheld, v.withholds(e.Name))
				}
			}
		}
	}
	slices.SortFunc(v.withheld, func(a, b *configv1.Withheld) int { return strings.Compare(a.Name, b.Name) })
	return v
}

// shows reports whether the class's nodes are sent what has this mark.
func (c *class) shows(m *configstore.Mark) bool {
	return !c.declared || m.Requires.Without(c.can).Empty()
}

// get is what a node is sent under a name that is of its scope; nil for nothing.
func (v *view) get(name string) *configstore.Entry {
	if e, _ := v.snap.Served(name); e != nil && v.shows(e.Mark) {
		return e
	}
	return nil
}

// withholds tells why a node is not sent what exists under a name; nil where it is,
// or there is nothing.
func (v *view) withholds(name string) *configv1.Withheld {
	e := v.snap.Get(name)
	if e == nil || !resource.Streamed(e.Kind) {
		return nil
	}
	served, quarantine := v.snap.Served(name)
	w := &configv1.Withheld{Name: name, Version: e.Version(), Governs: resource.Governs(e.Kind)}
	switch {
	case served == nil:
		w.Reason = "is quarantined, and there is no version before it: " + quarantine.GetReason()
	case !v.shows(served.Mark):
		w.Version = served.Version()
		w.Reason = "this node lacks " + strings.Join(served.Mark.Requires.Without(v.can).Names(), ", ")
	default:
		return nil
	}
	return w
}

// delta is what leads from one state of a node to a view.
type delta struct {
	put      []*configstore.Entry
	removed  []string
	withheld bool // something of it is withheld now
	// complete: put is the whole scope.
	complete bool
}

// empty: a node need not hear of it.
func (d *delta) empty() bool {
	return len(d.put)+len(d.removed) == 0 && !d.withheld && !d.complete
}

// add says what there is under a name.
func (d *delta) add(v *view, name string) {
	switch e := v.get(name); {
	case e != nil:
		d.put = append(d.put, e)
	case v.manifest && v.withholds(name) != nil:
		d.withheld = true
	default:
		d.removed = append(d.removed, name)
	}
}

// since is what changed in a scope after a revision that the log reaches.
func (v *view) since(sc *scope, changes []configstore.Changed) delta {
	var d delta
	for _, c := range changes {
		if kind, ns, _, err := resource.Split(c.Name); err == nil && sc.has(kind, c.Name, ns) {
			d.add(v, c.Name)
		}
	}
	return d
}

// touched reports whether any of what changed is of a scope.
func touched(sc *scope, changes []configstore.Changed) bool {
	return slices.ContainsFunc(changes, func(c configstore.Changed) bool {
		kind, ns, _, err := resource.Split(c.Name)
		return err == nil && sc.has(kind, c.Name, ns)
	})
}

// whole is everything that a scope's wildcards have.
func (v *view) whole(sc *scope) delta {
	d := delta{complete: sc.wild()}
	if !sc.wild() {
		return d
	}
	for ns := range sc.namespaces(v.snap) {
		for e := range v.snap.Within(ns) {
			if shown := v.get(e.Name); shown != nil && sc.covers(e.Kind, ns) {
				d.put = append(d.put, shown)
			}
		}
	}
	return d
}

// at is the digests, by kind, of what a node of this class was shown of a scope at
// the revision that changes begin at. sums are those of now.
func (v *view) at(sc *scope, sums map[resource.Kind]resource.Digest, changes []configstore.Changed) map[resource.Kind]resource.Digest {
	sums = maps.Clone(sums)
	for _, c := range changes {
		kind, ns, _, err := resource.Split(c.Name)
		if err != nil || !sc.has(kind, c.Name, ns) {
			continue
		}
		if now := v.get(c.Name); now != nil {
			sums[kind] = sums[kind].Sub(now.Mark.Digest)
		}
		if c.Before != nil && v.shows(c.Before) {
			sums[kind] = sums[kind].Add(c.Before.Digest)
		}
	}
	return sums
}

// digestsOf are digests as they are sent, sorted by kind.
func digestsOf(sums map[resource.Kind]resource.Digest) []*configv1.KindDigest {
	var out []*configv1.KindDigest
	for kind, d := range sums {
		if d != (resource.Digest{}) {
			out = append(out, &configv1.KindDigest{Kind: string(kind), Count: d.Count, Digest: d.Bytes()})
		}
	}
	slices.SortFunc(out, func(a, b *configv1.KindDigest) int { return cmp.Compare(a.Kind, b.Kind) })
	return out
}

// sameDigests compares digests as they are sent, in any order.
func sameDigests(a, b []*configv1.KindDigest) bool {
	have := map[string]string{}
	for _, d := range a {
		have[d.Kind] = strconv.Itoa(int(d.Count)) + " " + string(d.Digest)
	}
	for _, d := range b {
		if have[d.Kind] != strconv.Itoa(int(d.Count))+" "+string(d.Digest) {
			return false
		}
		delete(have, d.Kind)
	}
	return len(have) == 0
}

// bundle is a delta as it goes over the wire, in one response or more. It is
// immutable and shared by the streams that it is for.
type bundle struct {
	to    *configstore.Snapshot
	parts []part
	// put is what it has, sorted by name, and part the response that has it.
	put     []sent
	removed []string
	bytes   int
	full    bool
	// withheld is all that the node is not sent.
	withheld []*configv1.Withheld
}

type part struct {
	nonce string
	bytes frame
}

// sent is one resource of a bundle.
type sent struct {
	name, version string
	part          int
}

func sortSent(list []sent) {
	slices.SortFunc(list, func(x, y sent) int { return strings.Compare(x.name, y.name) })
}

// find reports whether a version of a resource is in it.
func (b *bundle) find(name, version string) bool {
	i := sort.Search(len(b.put), func(i int) bool { return b.put[i].name >= name })
	return i < len(b.put) && b.put[i].name == name && b.put[i].version == version
}

// nonces make each bundle's nonces its own within this process.
var nonces atomic.Uint64

// bundle is what leads streams of the class from a revision (0: from nothing) to
// v's snapshot, of which changes is the log.
func (v *view) bundle(from int64, changes []configstore.Changed) (*bundle, error) {
	return v.shared(from, func() (*bundle, error) {
		d := v.since(&v.scope, changes)
		if from == 0 {
			d = v.whole(&v.scope)
		}
		return v.encode(d, shown{sums: v.sums, withheld: v.withheld})
	})
}

// theWorld is where State-of-the-World bundles begin among a class's bundles.
const theWorld = -1

// shared is the class's bundle from a revision, or theWorld; it is made where there is
// none.
func (v *view) shared(from int64, make func() (*bundle, error)) (*bundle, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	current := v.class.view == v
	if current {
		if b := v.bundles[from].Value(); b != nil {
			return b, nil
		}
	}
	b, err := make()
	if err == nil && current && len(v.bundles) < maxBundles {
		v.bundles[from] = weak.Make(b)
	}
	return b, err
}

// shown is what a manifest says that a node has been shown, and of which names of
// its own.
type shown struct {
	sums     map[resource.Kind]resource.Digest
	withheld []*configv1.Withheld
	names    []byte
}

// maxBundles bounds what a class remembers; streams that begin elsewhere have
// their own.
const maxBundles = 256

// encode makes the bundle of a delta, in responses of at most maxChunk.
func (v *view) encode(d delta, of shown) (*bundle, error) {
	b := &bundle{to: v.snap, removed: d.removed, full: d.complete, withheld: of.withheld, put: make([]sent, 0, len(d.put))}
	id := strconv.FormatUint(nonces.Add(1), 36) + "."
	chunk, size := &discoveryv3.DeltaDiscoveryResponse{}, 0
	flush := func() error {
		p := part{nonce: id + strconv.Itoa(len(b.parts))}
		chunk.Nonce, chunk.TypeUrl = p.nonce, resource.TypeURL
		chunk.SystemVersionInfo = versionInfo(v.snap)
		var err error
		p.bytes, err = proto.Marshal(chunk)
		b.parts = append(b.parts, p)
		chunk, size = &discoveryv3.DeltaDiscoveryResponse{}, 0
		return err
	}
	room := func(n int) error {
		if size > 0 && size+n > maxChunk {
			if err := flush(); err != nil {
				return err
			}
		}
		size += n
		return nil
	}
	for _, e := range d.put {
		if err := room(len(e.Bytes) + 2*len(e.Name) + 96); err != nil {
			return nil, err
		}
		b.bytes += len(e.Bytes)
		b.put = append(b.put, sent{e.Name, e.Version(), len(b.parts)})
		chunk.Resources = append(chunk.Resources, wire(e))
	}
	sortSent(b.put)
	for _, name := range d.removed {
		if err := room(len(name) + 4); err != nil {
			return nil, err
		}
		chunk.RemovedResources = append(chunk.RemovedResources, name)
	}
	if v.manifest {
		parts := parts(of.withheld)
		for i, part := range parts {
			m := &configv1.Manifest{Lineage: v.snap.Lineage, Revision: v.snap.Revision, Withheld: part, Continues: i < len(parts)-1}
			if !m.Continues {
				m.Complete, m.Kinds, m.Names, m.View = d.complete, digestsOf(of.sums), of.names, v.seen
			}
			body, err := proto.Marshal(&configv1.Resource{Name: resource.ManifestName, Spec: &configv1.Resource_Manifest{Manifest: m}})
			if err != nil {
				return nil, err
			}
			if err := room(len(body) + 128); err != nil {
				return nil, err
			}
			chunk.Resources = append(chunk.Resources, &discoveryv3.Resource{Name: resource.ManifestName, Version: strconv.FormatInt(v.snap.Revision, 10),
				Resource: &anypb.Any{TypeUrl: resource.TypeURL, Value: body}})
			if m.Continues {
				if err := flush(); err != nil {
					return nil, err
				}
			}
		}
	}
	return b, flush()
}

// maxWithheld bounds what one manifest names as withheld, in bytes; digests have the
// rest of maxChunk.
const maxWithheld = maxChunk - 64<<10

// parts cuts what is withheld into what one manifest takes; the last part may be
// empty, and is there always.
func parts(withheld []*configv1.Withheld) [][]*configv1.Withheld {
	var out [][]*configv1.Withheld
	from, size := 0, 0
	for i, w := range withheld {
		n := proto.Size(w) + 4
		if size+n > maxWithheld {
			out, from, size = append(out, withheld[from:i]), i, 0
		}
		size += n
	}
	return append(out, withheld[from:])
}

// wire is an entry as delta streams have it.
func wire(e *configstore.Entry) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: e.Name, Version: e.Version(), Resource: &anypb.Any{TypeUrl: resource.TypeURL, Value: e.Bytes}}
}

func versionInfo(snap *configstore.Snapshot) string {
	return snap.Lineage + "/" + strconv.FormatInt(snap.Revision, 10)
}
