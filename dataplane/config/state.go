// Package config follows the configuration that a control plane streams, keeps
// the last good one on disk, and hands each state over as a whole.
package config

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/resource"
)

// State is the configuration at one revision. It is handed over whole and not
// changed afterwards.
type State struct {
	Lineage  string
	Revision int64
	// Set are the resources in force, by canonical name: the newest versions
	// or, where those were refused, the last good ones.
	Set map[string]snapshot.Versioned
	// Withheld exist, but no version of them was acceptable here, or the control
	// plane has not sent one.
	Withheld []string
	// Denied are namespaces in which something that says what is allowed is
	// withheld, of a kind that this version does not know; by what that is.
	Denied map[string]string
	// Origin is where it came from. One from disk or a file that a control plane
	// confirms is live.
	Origin snapshot.Origin
}

// kept is what the client knows of one resource.
type kept struct {
	offered   string          // the version that the control plane offered last
	digest    resource.Digest // of what was offered
	good      snapshot.Versioned
	bytes     []byte // of good
	rejection *discoveryv1.Rejection
}

// memory is the client's state between deltas.
type memory struct {
	lineage  string
	revision int64
	// scope are the wildcards that this is of, and names the names beside them of
	// which it is known what there is.
	scope     []string
	names     map[string]bool
	resources map[string]*kept
	// sums are the digests of what was offered, by kind; kinds that this version
	// does not know count too.
	sums map[string]resource.Digest
	// withheld exists and is not sent to this node.
	withheld []*configv1.Withheld
	// view is the last manifest's.
	view []byte
	// replaced is when a generation took the place of this one, on disk, that cannot be used.
	replaced time.Time
}

func newMemory() *memory {
	return &memory{names: map[string]bool{}, resources: map[string]*kept{}, sums: map[string]resource.Digest{}}
}

// count adds to the digests, or takes away, what was offered of a resource.
func (m *memory) count(name string, change func(resource.Digest) resource.Digest) {
	kind, _, _ := strings.Cut(name, "/")
	if d := change(m.sums[kind]); d != (resource.Digest{}) {
		m.sums[kind] = d
	} else {
		delete(m.sums, kind)
	}
}

func (m *memory) remove(name string) {
	if k := m.resources[name]; k != nil {
		m.count(name, func(d resource.Digest) resource.Digest { return d.Sub(k.digest) })
		delete(m.resources, name)
	}
}

// add takes in what is known of a resource; there is none of that name.
func (m *memory) add(name string, k *kept) {
	m.resources[name] = k
	m.count(name, func(d resource.Digest) resource.Digest { return d.Add(k.digest) })
}

// subscribed is the scope that this is of, with its names.
func (m *memory) subscribed() []string {
	return slices.Sorted(slices.Values(slices.Concat(m.scope, slices.Collect(maps.Keys(m.names)))))
}

// offer is a resource as it came.
type offer struct {
	name, version string
	bytes         []byte
}

// staged is a delta that is not complete yet.
type staged struct {
	put     []offer
	removed []string
	// withheld is of the manifests up to now.
	withheld []*configv1.Withheld
	bytes    int
}

// apply makes m what the delta says, and returns what of it was refused: those
// keep their last good version. check judges one resource.
func (m *memory) apply(d staged, man *configv1.Manifest, check func(*configv1.Resource) (field string, err error)) []*discoveryv1.Rejection {
	var refused []*discoveryv1.Rejection
	seen := map[string]bool{}
	for _, o := range d.put {
		seen[o.name] = true
		if r := m.put(o, check); r != nil {
			refused = append(refused, r)
		}
	}
	for _, name := range d.removed {
		if !seen[name] {
			m.remove(name)
		}
	}
	if man.Complete {
		for name := range m.resources {
			if !seen[name] {
				m.remove(name)
			}
		}
	}
	// What cannot be enforced here has no last good version either.
	m.withheld = man.Withheld
	for _, w := range man.Withheld {
		m.remove(w.Name)
	}
	m.lineage, m.revision, m.view = man.Lineage, man.Revision, man.View
	return refused
}

func (m *memory) put(o offer, check func(*configv1.Resource) (string, error)) *discoveryv1.Rejection {
	k := m.resources[o.name]
	if k == nil {
		k = &kept{}
		m.add(o.name, k)
	}
	offered := resource.DigestOf(o.name, o.version, o.bytes)
	m.count(o.name, func(d resource.Digest) resource.Digest { return d.Sub(k.digest).Add(offered) })
	k.offered, k.digest, k.rejection = o.version, offered, nil
	r := &configv1.Resource{}
	field := ""
	err := proto.Unmarshal(o.bytes, r)
	readable := err == nil
	if readable {
		field, err = check(r)
	}
	if err == nil && r.Name != o.name {
		field, err = "name", fmt.Errorf("is %q inside", r.Name)
	}
	if err == nil {
		k.good, k.bytes = snapshot.Versioned{Resource: r, Version: o.version}, o.bytes
		return nil
	}
	if uid := r.GetMetadata().GetUid(); readable && uid != "" && uid != k.good.Resource.GetMetadata().GetUid() {
		// It was deleted and created again: the old one is not an older
		// version of it. Bytes that cannot be read say nothing of that.
		k.good, k.bytes = snapshot.Versioned{}, nil
	}
	k.rejection = &discoveryv1.Rejection{Name: o.name, Version: o.version, Field: field, Reason: err.Error()}
	return k.rejection
}

// state is what is in force.
func (m *memory) state(origin snapshot.Origin) State {
	s := State{Lineage: m.lineage, Revision: m.revision, Set: make(map[string]snapshot.Versioned, len(m.resources)), Origin: origin}
	for name, k := range m.resources {
		if k.good.Resource != nil {
			s.Set[name] = k.good
		} else {
			s.Withheld = append(s.Withheld, name)
		}
	}
	for _, w := range m.withheld {
		s.Withheld = append(s.Withheld, w.Name)
		kind, rest, _ := strings.Cut(w.Name, "/")
		if _, known := resource.Lookup(kind); !known && w.Governs {
			if s.Denied == nil {
				s.Denied = map[string]string{}
			}
			ns, _, _ := strings.Cut(rest, "/")
			s.Denied[ns] = w.Name
		}
	}
	slices.Sort(s.Withheld)
	return s
}

// rejections are what was refused and is still offered, sorted by name.
func (m *memory) rejections() []*discoveryv1.Rejection {
	var out []*discoveryv1.Rejection
	for _, name := range slices.Sorted(maps.Keys(m.resources)) {
		if r := m.resources[name].rejection; r != nil {
			out = append(out, r)
		}
	}
	return out
}

// digests are of what was offered, as a manifest has them.
func (m *memory) digests() []*configv1.KindDigest {
	out := make([]*configv1.KindDigest, 0, len(m.sums))
	for _, kind := range slices.Sorted(maps.Keys(m.sums)) {
		out = append(out, &configv1.KindDigest{Kind: kind, Count: m.sums[kind].Count, Digest: m.sums[kind].Bytes()})
	}
	return out
}

// drift compares what was offered with the manifest's digests; "" where they
// agree.
func (m *memory) drift(man *configv1.Manifest) string {
	theirs := map[string]bool{}
	for _, d := range man.Kinds {
		theirs[d.Kind] = true
		if mine := m.sums[d.Kind]; mine.Count != d.Count || !bytes.Equal(mine.Bytes(), d.Digest) {
			return fmt.Sprintf("of kind %s this proxy has %d, the control plane %d", d.Kind, mine.Count, d.Count)
		}
	}
	for kind, mine := range m.sums {
		if !theirs[kind] {
			return fmt.Sprintf("of kind %s this proxy has %d, the control plane none", kind, mine.Count)
		}
	}
	return ""
}
