package admin

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// Rollback makes a selection what it was at a revision: a change like an Apply,
// judged by what is right now. Bindings and admissions follow from it; Migrations stay as
// they are.
func (s *Service) Rollback(ctx context.Context, req *adminv1.RollbackRequest) (*adminv1.RollbackResponse, error) {
	sc, err := scopeOf(ctx, req.Kind, req.Namespace, req.Name)
	if err != nil {
		return nil, err
	}
	if sc.system {
		return nil, status.Error(codes.InvalidArgument, "what the control plane itself writes is not rolled back: it follows from the rest")
	}
	stays := func(name string) bool {
		kind, _, _, err := resource.Split(name)
		return err == nil && !resource.RolledBack(kind)
	}
	if stays(sc.name) || !resource.RolledBack(sc.kind) {
		return nil, status.Error(codes.InvalidArgument, "a Migration is not rolled back: it would begin a move, or end one; weft migrate changes it")
	}
	if req.ToRevision < 1 {
		return nil, status.Error(codes.InvalidArgument, "revisions are above 0")
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return nil, toStatus(err)
	}
	if req.ToRevision > snap.Revision {
		return nil, status.Errorf(codes.InvalidArgument, "revision %d is not there yet, the newest is %d; weft history lists them", req.ToRevision, snap.Revision)
	}
	differs, err := s.diff(ctx, snap, sc, req.ToRevision, snap.Revision)
	if err != nil {
		return nil, err
	}
	differs = slices.DeleteFunc(differs, func(d *adminv1.ResourceDiff) bool { return stays(d.Name) })
	if n := len(differs); n > maxChange {
		return nil, status.Errorf(codes.FailedPrecondition, "%d resources differ from revision %d, one transaction changes at most %d: "+
			"roll back less (a namespace, a kind, a resource), or in stages (weft rollback --stages)", n, req.ToRevision, maxChange)
	}
	c := change{method: "Rollback", dryRun: req.DryRun, allowMassRemoval: req.AllowMassRemoval}
	resp := &adminv1.RollbackResponse{Revision: snap.Newest()}
	var lacking []need
	for _, d := range differs {
		if n := toWrite(d.Name); !n.metBy(sc.who) {
			lacking = append(lacking, n)
		}
		now := snap.Get(d.Name)
		if d.Before == nil {
			c.remove = append(c.remove, &adminv1.DeleteTarget{Name: d.Name, Version: now.Version()})
		} else {
			// What is there keeps its uid, what comes back gets another.
			next := proto.Clone(d.Before).(*configv1.Resource)
			next.Metadata.Version, next.Metadata.Uid, next.Metadata.CreatedAt = "", "", nil
			if now != nil {
				next.Metadata.Version = now.Version()
				if t := next.GetTopic(); t != nil && d.Before.Metadata.Uid == now.Resource.Metadata.Uid {
					t.Store = now.Resource.GetTopic().Store // which says where it was, or is; only a move moves it
				}
			}
			c.put = append(c.put, next)
		}
		resp.Changes = append(resp.Changes, &adminv1.ResourceDiff{Name: d.Name, Before: d.After, After: d.Before})
	}
	if len(lacking) > 0 {
		return nil, denied(sc.who, "Rollback", lacking)
	}
	if len(differs) == 0 {
		return resp, nil
	}
	done, err := s.execute(ctx, c)
	if err != nil {
		return nil, err
	}
	resp.Revision = done.Revision
	// What was deleted and came back the same differs in its uid alone, which
	// stays.
	same := map[string]bool{}
	for _, r := range done.Results {
		same[r.Name] = r.Outcome == adminv1.ApplyResult_OUTCOME_UNCHANGED
	}
	resp.Changes = slices.DeleteFunc(resp.Changes, func(d *adminv1.ResourceDiff) bool { return same[d.Name] })
	return resp, nil
}
