package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Guard bounds what one change may remove without saying that it means to: an
// empty folder in a pipeline, or half a listing, is not to empty a mesh. What is
// one change is not told by calls: neither in stages nor bit by bit is more
// removed than at once.
type Guard struct {
	// Share of what exists in a namespace, or in the mesh, that may go at once:
	// above 0, up to 1, which bounds nothing; 0.2 when 0.
	Share float64
	// Least is how many resources may always go; 10 when 0.
	Least int
	// Window is how long what somebody has removed counts with what he removes
	// next: at most a day; 10 min when 0.
	Window time.Duration
}

// What a Guard is by default.
const (
	DefaultRemovalShare  = 0.2
	DefaultRemovalLeast  = 10
	DefaultRemovalWindow = 10 * time.Minute
)

// Check tells whether the guard is one.
func (g Guard) Check() error {
	if g.Share < 0 || g.Share > 1 || g.Least < 0 || g.Window < 0 || g.Window > 24*time.Hour {
		return errors.New("what a change may remove is a share above 0, up to 1, a number of resources that is not negative, and a window of at most a day")
	}
	return nil
}

// removals are what a change is judged by.
type removals struct {
	// gone are what this call removes.
	gone []string
	// planned are how many resources the change still removes, this call among
	// it, by namespace, where that is more.
	planned map[string]uint32
	// before are what who has removed within the Guard's window and what was not
	// made again: by namespace.
	before map[string]int
	who    string
}

// any reports whether there is something to judge.
func (r removals) any() bool { return len(r.gone)+len(r.planned) > 0 }

// check refuses a change that removes too much. What the control plane writes
// itself counts on neither side.
func (g Guard) check(snap *configstore.Snapshot, r removals) error {
	if !r.any() {
		return nil
	}
	share, least := cmp.Or(g.Share, DefaultRemovalShare), cmp.Or(g.Least, DefaultRemovalLeast)
	now := map[string]int{}
	for _, name := range r.gone {
		_, ns, _, err := resource.Split(name)
		if err != nil {
			continue // there is no such resource
		}
		now[ns]++
	}
	staged := false
	for ns, n := range r.planned {
		if int(n) > now[ns] {
			now[ns], staged = int(n), true
		}
	}
	refuse := func(n, before, there int, where string) error {
		what := "the change"
		if staged {
			what = "the change, of which this is a part,"
		}
		if before > 0 {
			what = strings.TrimSuffix(what, ",") + fmt.Sprintf(", with the %d that %s has removed within %s,", before, r.who, cmp.Or(g.Window, DefaultRemovalWindow))
		}
		return status.Errorf(codes.FailedPrecondition, "%s removes %d of the %d resources %s, more than %g %%: nothing was changed. "+
			"Where that is meant, allow it (--allow-mass-removal, allow_mass_removal)", what, n+before, there+before, where, share*100)
	}
	tooMany := func(n, of int) bool { return n > least && float64(n) > share*float64(of) }
	all, allBefore, allNow := 0, 0, 0
	for _, n := range r.before {
		allBefore += n // also of a namespace of which nothing is left
	}
	for ns := range snap.Namespaces() {
		there := 0
		for kind, d := range snap.Digests(ns) {
			if info, _ := resource.Lookup(string(kind)); !info.System {
				there += int(d.Count)
			}
		}
		n, before := min(now[ns], there), r.before[ns]
		all, allNow = all+there, allNow+n
		if n > 0 && tooMany(n+before, there+before) {
			return refuse(n, before, there, "of namespace "+ns)
		}
	}
	if tooMany(allNow+allBefore, all+allBefore) {
		return refuse(allNow, allBefore, all, "of the mesh")
	}
	return nil
}

// removed knows what was removed lately without that being said to be meant, by
// whom: from the audit record, so that any replica knows of what others let go.
type removed struct {
	// turn has a place for the one who looks.
	turn chan struct{}
	// Everything up to this revision of this lineage was looked at.
	lineage  string
	revision int64
	// When which resource went, by who removed it.
	by map[string]map[string]time.Time
}

// lookTime bounds the reading of what was removed.
const lookTime = 5 * time.Second

// before is what who has removed since a time and what is not there now, by
// namespace. What was made after that time counts for nothing: who makes and
// removes what he needs for a while empties nothing. It does not wait for etcd for
// longer than a change does: others wait for their turn.
func (r *removed) before(ctx context.Context, store *configstore.Store, snap *configstore.Snapshot, who string, since time.Time) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, fault.Wrap(fault.Unavailable, "admin.guard", "etcd", ctx.Err())
	}
	if r.lineage != snap.Lineage || r.by == nil {
		r.lineage, r.revision, r.by = snap.Lineage, 0, map[string]map[string]time.Time{}
	}
	newest := r.revision
	for rec, err := range store.Audit(ctx, "") {
		if err != nil {
			return nil, err
		}
		if !rec.Change {
			continue
		}
		if rec.Revision <= r.revision || rec.Time.Before(since) {
			break
		}
		newest = max(newest, rec.Revision)
		if !rec.AllowMassRemoval {
			r.add(rec.AuditRecord, since)
		}
	}
	r.revision = newest
	out := map[string]int{}
	for actor, names := range r.by {
		for name, at := range names {
			if at.Before(since) {
				delete(names, name)
			} else if actor == who && snap.Get(name) == nil {
				_, ns, _, _ := resource.Split(name)
				out[ns]++
			}
		}
		if len(names) == 0 {
			delete(r.by, actor)
		}
	}
	return out, nil
}

func (r *removed) add(rec configstore.AuditRecord, since time.Time) {
	for _, c := range rec.Changes {
		kind, _, _, err := resource.Split(c.Name)
		if info, _ := resource.Lookup(string(kind)); err != nil || info.System || c.New != nil {
			continue
		}
		names := r.by[rec.Actor]
		if names == nil {
			names = map[string]time.Time{}
			r.by[rec.Actor] = names
		}
		var old configv1.Resource
		if err := proto.Unmarshal(c.Old, &old); err == nil && old.Metadata.GetCreatedAt().AsTime().After(since) && names[c.Name].IsZero() {
			continue
		}
		if names[c.Name].Before(rec.Time) {
			names[c.Name] = rec.Time
		}
	}
}
