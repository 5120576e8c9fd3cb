package configstore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestFind: after any edits each key finds the resources that have it, and a
// snapshot goes on finding what was in it.
func TestFind(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	there := map[string]*configv1.Resource{}
	keys := map[string]bool{}
	check := func(s *Snapshot, there map[string]*configv1.Resource) {
		for key := range keys {
			var want, got []string
			for _, name := range slices.Sorted(maps.Keys(there)) {
				if slices.Contains(validate.Keys(there[name]), key) {
					want = append(want, name)
				}
			}
			for r := range s.Find(key) {
				got = append(got, resource.NameOf(r))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s finds %v, want %v", key, got, want)
			}
		}
	}
	snap := Empty("x", 0)
	var old *Snapshot
	var oldThere map[string]*configv1.Resource
	for i := range int64(400) {
		if i == 200 {
			old, oldThere = snap, maps.Clone(there)
		}
		r := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: fmt.Sprintf("t%d", rnd.IntN(12))},
			Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: fmt.Sprintf("s%d", rnd.IntN(3)), PhysicalName: []string{"", "P", "Q"}[rnd.IntN(3)]}}}
		name := resource.NameOf(r)
		x := snap.edit()
		if rnd.IntN(3) == 0 {
			x.put(name, nil, i)
			delete(there, name)
		} else {
			x.put(name, newEntry(name, resource.Topic, "demo", r, nil, i), i)
			there[name] = r
			for _, k := range validate.Keys(r) {
				keys[k] = true
			}
		}
		snap = x.commit(i)
		check(snap, there)
	}
	check(old, oldThere)
}

// BenchmarkTogether judges one new Topic beside 100,000 resources.
func BenchmarkTogether(b *testing.B) {
	x := Empty("x", 0).edit()
	topic := func(i int) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Namespace: fmt.Sprintf("n%d", i%100), Name: fmt.Sprintf("t%d", i)}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "main"}}}
	}
	for i := range 100_000 {
		r := topic(i)
		x.put(resource.NameOf(r), newEntry(resource.NameOf(r), resource.Topic, r.Metadata.Namespace, r, nil, 1), 1)
	}
	snap := x.commit(1)
	for b.Loop() {
		validate.Together(snap, []*configv1.Resource{topic(100_001)}, nil)
	}
}
