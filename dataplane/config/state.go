// Package config follows the configuration that a control plane streams, keeps
// the last good one on disk, and hands each state over as a whole.
package config

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
)

// State is the configuration at one revision. It is handed over whole and not
// changed afterwards.
type State struct {
	Lineage  string
	Revision int64
	// Set are the resources in force, by canonical name: the newest versions
	// or, where those were refused, the last good ones.
	Set map[string]snapshot.Versioned
	// Withheld exist, but no version of them was acceptable.
	Withheld []string
	// FromDisk: no control plane has confirmed it since the process started.
	FromDisk bool
}

// kept is what the client knows of one resource.
type kept struct {
	offered   string // the version that the control plane offered last
	good      snapshot.Versioned
	bytes     []byte // of good
	rejection *discoveryv1.Rejection
}

// memory is the client's state between deltas.
type memory struct {
	lineage   string
	revision  int64
	resources map[string]*kept
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
	bytes   int
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
			delete(m.resources, name)
		}
	}
	if man.Complete {
		for name := range m.resources {
			if !seen[name] {
				delete(m.resources, name)
			}
		}
	}
	m.lineage, m.revision = man.Lineage, man.Revision
	return refused
}

func (m *memory) put(o offer, check func(*configv1.Resource) (string, error)) *discoveryv1.Rejection {
	k := m.resources[o.name]
	if k == nil {
		k = &kept{}
		m.resources[o.name] = k
	}
	k.offered, k.rejection = o.version, nil
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
func (m *memory) state(fromDisk bool) State {
	s := State{Lineage: m.lineage, Revision: m.revision, Set: make(map[string]snapshot.Versioned, len(m.resources)), FromDisk: fromDisk}
	for name, k := range m.resources {
		if k.good.Resource != nil {
			s.Set[name] = k.good
		} else {
			s.Withheld = append(s.Withheld, name)
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

// drift compares what was offered with the manifest's digests; "" where they
// agree.
func (m *memory) drift(man *configv1.Manifest) string {
	type sum struct {
		count  uint32
		hi, lo uint64
	}
	sums := map[string]sum{}
	for name, k := range m.resources {
		// Kinds that this version does not know count too.
		kind, _, _ := strings.Cut(name, "/")
		h := sha256.Sum256([]byte(name + "\x00" + k.offered))
		s := sums[kind]
		var carry uint64
		s.lo, carry = bits.Add64(s.lo, binary.BigEndian.Uint64(h[8:16]), 0)
		s.hi, _ = bits.Add64(s.hi, binary.BigEndian.Uint64(h[:8]), carry)
		s.count++
		sums[kind] = s
	}
	for _, d := range man.Kinds {
		s := sums[d.Kind]
		mine := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s.hi), s.lo)
		if s.count != d.Count || string(mine) != string(d.Digest) {
			return fmt.Sprintf("of kind %s this proxy has %d, the control plane %d", d.Kind, s.count, d.Count)
		}
		delete(sums, d.Kind)
	}
	for kind, s := range sums {
		return fmt.Sprintf("of kind %s this proxy has %d, the control plane none", kind, s.count)
	}
	return ""
}
