package admin

import (
	"cmp"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Guard bounds what one change may remove without saying that it means to: an
// empty folder in a pipeline, or half a listing, is not to empty a mesh.
type Guard struct {
	// Share of what exists in a namespace, or in the mesh, that may go at once:
	// above 0, up to 1, which bounds nothing; 0.2 when 0.
	Share float64
	// Least is how many resources may always go; 10 when 0.
	Least int
}

// What a Guard is by default.
const (
	DefaultRemovalShare = 0.2
	DefaultRemovalLeast = 10
)

// Check tells whether the guard is one.
func (g Guard) Check() error {
	if g.Share < 0 || g.Share > 1 || g.Least < 0 {
		return errors.New("what a change may remove is a share above 0, up to 1, and a number of resources that is not negative")
	}
	return nil
}

// check refuses a change that removes too much. What the control plane writes
// itself counts on neither side.
func (g Guard) check(snap *configstore.Snapshot, gone []string) error {
	if len(gone) <= cmp.Or(g.Least, DefaultRemovalLeast) {
		return nil
	}
	share, least := cmp.Or(g.Share, DefaultRemovalShare), cmp.Or(g.Least, DefaultRemovalLeast)
	removed := map[string]int{}
	for _, name := range gone {
		_, ns, _, err := resource.Split(name)
		if err != nil {
			continue // there is no such resource
		}
		removed[ns]++
	}
	refuse := func(n, of int, where string) error {
		return status.Errorf(codes.FailedPrecondition, "the change removes %d of the %d resources %s, more than %g %%: nothing was changed. "+
			"Where that is meant, allow it (--allow-mass-removal, allow_mass_removal)", n, of, where, share*100)
	}
	all := 0
	for ns := range snap.Namespaces() {
		there := 0
		for kind, d := range snap.Digests(ns) {
			if info, _ := resource.Lookup(string(kind)); !info.System {
				there += int(d.Count)
			}
		}
		all += there
		if n := removed[ns]; n > least && float64(n) > share*float64(there) {
			return refuse(n, there, "of namespace "+ns)
		}
	}
	if n := len(gone); n > least && float64(n) > share*float64(all) {
		return refuse(n, all, "of the mesh")
	}
	return nil
}
