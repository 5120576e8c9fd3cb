package admin

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// scope is a part of the configuration, of which the caller sees what he may.
type scope struct {
	who             *Caller
	kind            resource.Kind // every one when empty
	namespace, name string        // the same; name is canonical
	system          bool
}

// scopeOf reads what History, Diff and Rollback select.
func scopeOf(ctx context.Context, kind, namespace, name string) (scope, error) {
	sc := scope{who: callerOf(ctx), namespace: namespace, name: name}
	if kind != "" {
		info, ok := resource.Lookup(kind)
		if !ok {
			return sc, status.Errorf(codes.InvalidArgument, "%q is not a kind", kind[:min(len(kind), 40)])
		}
		sc.kind, sc.system = info.Kind, info.System
	}
	if namespace != "" {
		if err := names.CheckNamespace(namespace); err != nil {
			return sc, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if name != "" {
		k, _, _, err := resource.Split(name)
		if err != nil {
			return sc, status.Error(codes.InvalidArgument, err.Error())
		}
		info, _ := resource.Lookup(string(k))
		sc.system = info.System
	}
	return sc, nil
}

// has reports whether a resource is in the scope. What the control plane itself
// writes is only where it is asked for by kind or name.
func (sc scope) has(name string) bool {
	if sc.name != "" && name != sc.name {
		return false
	}
	kind, ns, _, err := resource.Split(name)
	if err != nil {
		return false
	}
	info, _ := resource.Lookup(string(kind))
	return (!info.System || sc.system) && (sc.kind == "" || kind == sc.kind) && (sc.namespace == "" || ns == sc.namespace) && sc.who.sees(ns)
}

// all reports whether the scope is the whole mesh.
func (sc scope) all() bool { return sc.kind == "" && sc.namespace == "" && sc.name == "" }

// Page sizes of ListHistory.
const (
	defaultRecords = 100
	maxRecords     = 1000
	// maxWalk bounds the records that one page is looked for in.
	maxWalk = 4096
)

// ListHistory returns a page of audit records, newest first.
func (s *Service) ListHistory(ctx context.Context, req *adminv1.ListHistoryRequest) (*adminv1.ListHistoryResponse, error) {
	sc, err := scopeOf(ctx, req.Kind, req.Namespace, req.Name)
	if err != nil {
		return nil, err
	}
	from, err := base64.RawURLEncoding.DecodeString(req.PageToken)
	if err != nil || len(from) > 128 {
		return nil, status.Error(codes.InvalidArgument, "page_token is not one that ListHistory gave")
	}
	size := min(int(req.PageSize), maxRecords)
	if size == 0 {
		size = defaultRecords
	}
	resp := &adminv1.ListHistoryResponse{}
	last, walked := string(from), 0
	for r, err := range s.cfg.Store.Audit(ctx, string(from)) {
		if err != nil {
			return nil, toStatus(err)
		}
		if len(resp.Records) == size || walked == maxWalk {
			resp.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		if req.Since != nil && r.Time.Before(req.Since.AsTime()) {
			break
		}
		last = r.Next
		walked++
		if req.ChangesOnly && !r.Change {
			continue
		}
		if shown := sc.record(r.AuditRecord); shown != nil {
			resp.Records = append(resp.Records, shown)
		}
	}
	return resp, nil
}

// record is what a scope has of a record; nil for nothing. One that names no
// resource is of the mesh.
func (sc scope) record(r configstore.AuditRecord) *adminv1.AuditRecord {
	out := &adminv1.AuditRecord{Revision: r.Revision, Time: timestamppb.New(r.Time), Actor: r.Actor, Peer: r.Peer, Method: r.Method, Detail: r.Detail, Refused: r.Refused, Repeats: r.Repeats, AllowMassRemoval: r.AllowMassRemoval}
	for _, c := range r.Changes {
		if !sc.has(c.Name) {
			continue
		}
		change := &adminv1.AuditChange{Name: c.Name}
		switch {
		case !r.Change:
		case c.Old == nil:
			change.Outcome = adminv1.ApplyResult_OUTCOME_CREATED
		case c.New == nil:
			change.Outcome = adminv1.ApplyResult_OUTCOME_DELETED
		default:
			change.Outcome = adminv1.ApplyResult_OUTCOME_UPDATED
		}
		out.Changes = append(out.Changes, change)
	}
	ofMesh := len(r.Changes) == 0 && sc.all() && sc.who.sees(mesh)
	if len(out.Changes) == 0 && !ofMesh {
		return nil
	}
	// One that names as many as it may was perhaps about more.
	if r.Refused != "" && (len(out.Changes) < len(r.Changes) || len(r.Changes) == maxNames) && !sc.who.sees(mesh) {
		out.Refused = "refused, with others that are not shown"
	}
	return out
}

// past is what resources of a scope were at a revision, marshalled, by canonical
// name; nil for what was not there. Only what changed since is in it.
type past map[string][]byte

// pasts walks back once and tells what was at each of some revisions.
func (s *Service) pasts(ctx context.Context, snap *configstore.Snapshot, sc scope, older, newer int64) (atOlder, atNewer past, err error) {
	at := past{}
	for r, err := range s.cfg.Store.ChangesSince(ctx, snap, older) {
		if err != nil {
			return nil, nil, toStatus(err)
		}
		if atNewer == nil && r.Revision <= newer {
			atNewer = maps.Clone(at)
		}
		for _, c := range r.Changes {
			if sc.has(c.Name) {
				at[c.Name] = c.Old
			}
		}
	}
	if atNewer == nil {
		atNewer = maps.Clone(at)
	}
	return at, atNewer, nil
}

// Bounds of what a Diff tells.
const (
	maxDiffs     = 10000
	maxDiffBytes = 8 << 20
)

// diff is what differs between two revisions up to snap's, by canonical name.
func (s *Service) diff(ctx context.Context, snap *configstore.Snapshot, sc scope, older, newer int64) ([]*adminv1.ResourceDiff, error) {
	if older > newer {
		return nil, status.Errorf(codes.InvalidArgument, "revision %d is not older than %d", older, newer)
	}
	was, is, err := s.pasts(ctx, snap, sc, older, newer)
	if err != nil {
		return nil, err
	}
	read := func(b []byte) (*configv1.Resource, error) {
		if b == nil {
			return nil, nil
		}
		r := &configv1.Resource{}
		return r, proto.Unmarshal(b, r)
	}
	var out []*adminv1.ResourceDiff
	bytes := 0
	for _, name := range slices.Sorted(maps.Keys(was)) {
		now, ok := is[name]
		if !ok {
			if e := snap.Get(name); e != nil {
				now = e.Bytes
			}
		}
		if string(was[name]) == string(now) && (was[name] == nil) == (now == nil) {
			continue
		}
		if bytes += len(was[name]) + len(now); len(out) == maxDiffs || bytes > maxDiffBytes {
			return nil, status.Errorf(codes.FailedPrecondition, "more than %d resources or %d MiB differ; select a kind, a namespace or one resource", maxDiffs, maxDiffBytes>>20)
		}
		before, err := read(was[name])
		if err != nil {
			return nil, status.Errorf(codes.Internal, "%s in the audit records: %v", name, err)
		}
		after, err := read(now)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "%s: %v", name, err)
		}
		out = append(out, &adminv1.ResourceDiff{Name: name, Before: before, After: after})
	}
	return out, nil
}

// Diff tells what differs between two revisions.
func (s *Service) Diff(ctx context.Context, req *adminv1.DiffRequest) (*adminv1.DiffResponse, error) {
	sc, err := scopeOf(ctx, req.Kind, req.Namespace, req.Name)
	if err != nil {
		return nil, err
	}
	sc.system = false
	if req.FromRevision < 1 || req.ToRevision < 0 {
		return nil, status.Error(codes.InvalidArgument, "revisions are above 0")
	}
	snap, err := s.cfg.Store.Current()
	if err != nil {
		return nil, toStatus(err)
	}
	to := req.ToRevision
	if to == 0 {
		to = snap.Revision
	}
	if newest := max(to, req.FromRevision); newest > snap.Revision {
		return nil, status.Errorf(codes.InvalidArgument, "revision %d is not there yet, the newest is %d", newest, snap.Revision)
	}
	changes, err := s.diff(ctx, snap, sc, req.FromRevision, to)
	if err != nil {
		return nil, err
	}
	return &adminv1.DiffResponse{Changes: changes, ToRevision: to}, nil
}
