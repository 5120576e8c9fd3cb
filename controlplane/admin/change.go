package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/resource"
)

// change is what a call wants: all of it, or nothing.
type change struct {
	method           string
	put              []*configv1.Resource
	remove           []*adminv1.DeleteTarget
	dryRun           bool
	allowMassRemoval bool
	// planned are the removals of the whole of which this is a part.
	planned map[string]uint32
}

// maxChange is how many resources one change may have.
const maxChange = 100

// maxPlanned is how many namespaces the removals of one change are told of.
const maxPlanned = 1000

// maxTries bounds how often a write is decided anew because another one came
// first.
const maxTries = 8

// Apply creates, updates and deletes resources in one transaction.
func (s *Service) Apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	if n := len(req.Resources) + len(req.Delete); n == 0 || n > maxChange {
		return nil, status.Errorf(codes.InvalidArgument, "an Apply has 1 to %d resources, this one has %d", maxChange, n)
	}
	if size := proto.Size(req); size > configstore.MaxWriteBytes {
		return nil, status.Errorf(codes.InvalidArgument, "an Apply has at most %d bytes, this one has %d: split it", configstore.MaxWriteBytes, size)
	}
	if n := len(req.PlannedRemovals); n > maxPlanned {
		return nil, status.Errorf(codes.InvalidArgument, "planned_removals has %d namespaces, the most is %d", n, maxPlanned)
	}
	return s.execute(ctx, change{"Apply", req.Resources, req.Delete, req.DryRun, req.AllowMassRemoval, req.PlannedRemovals})
}

// Delete deletes resources in one transaction.
func (s *Service) Delete(ctx context.Context, req *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	if n := len(req.Targets); n == 0 || n > maxChange {
		return nil, status.Errorf(codes.InvalidArgument, "a Delete has 1 to %d targets, this one has %d", maxChange, n)
	}
	resp, err := s.execute(ctx, change{"Delete", nil, req.Targets, req.DryRun, req.AllowMassRemoval, nil})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteResponse{Revision: resp.Revision}, nil
}

// execute decides a change against what is there and writes it, again and again
// while others change that.
func (s *Service) execute(ctx context.Context, c change) (*adminv1.ApplyResponse, error) {
	var problems []validate.Problem
	for _, r := range c.put {
		problems = append(problems, s.cfg.Validator.Alone(r)...)
	}
	if len(problems) > 0 {
		return nil, s.metrics.refused(problems)
	}
	who := callerOf(ctx)
	if !c.dryRun {
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-ctx.Done():
			return nil, status.Error(codes.Unavailable, "others change the configuration, and the time was up before it was this call's turn; nothing was changed")
		}
	}
	for range maxTries {
		snap, err := s.cfg.Store.Current()
		if err != nil {
			return nil, toStatus(err)
		}
		r := removals{planned: c.planned, who: who.Subject}
		for _, t := range c.remove {
			r.gone = append(r.gone, t.Name)
		}
		if r.any() && !c.allowMassRemoval {
			since := s.cfg.Clock.Now().Add(-cmp.Or(s.cfg.Guard.Window, DefaultRemovalWindow))
			if r.before, err = s.removed.before(ctx, s.cfg.Store, snap, r.who, since); err != nil {
				return nil, toStatus(err)
			}
		}
		plan, err := s.plan(snap, c, r)
		if err != nil {
			return nil, err
		}
		s.answer(ctx, snap, plan)
		if c.dryRun || len(plan.change.Put)+len(plan.change.Delete) == 0 {
			plan.resp.Revision = snap.Newest()
			return plan.resp, nil
		}
		plan.change.Actor, plan.change.Peer, plan.change.Method = who.Subject, who.Peer, c.method
		plan.change.AllowMassRemoval = c.allowMassRemoval
		rev, err := s.commit(ctx, snap, plan.change)
		if errors.Is(err, configstore.ErrConflict) {
			s.metrics.conflicts.Inc()
			continue
		}
		if err != nil {
			return nil, toStatus(err)
		}
		plan.resp.Revision = rev
		for _, res := range plan.resp.Results {
			s.metrics.applied(res)
			if res.Outcome == adminv1.ApplyResult_OUTCOME_CREATED || res.Outcome == adminv1.ApplyResult_OUTCOME_UPDATED {
				res.Version = fmt.Sprint(rev)
			}
		}
		return plan.resp, nil
	}
	return nil, status.Error(codes.Aborted, "others change the configuration all the time; try again")
}

// commit writes and, whether that was made or another change came first, waits
// until this replica has seen it, so that callers read what they wrote.
func (s *Service) commit(ctx context.Context, snap *configstore.Snapshot, c configstore.Change) (int64, error) {
	rev, err := s.cfg.Store.Commit(ctx, snap, c)
	wait := rev
	if errors.Is(err, configstore.ErrConflict) {
		wait = snap.Revision + 1
	} else if err != nil {
		return 0, err
	}
	wctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, werr := s.cfg.Store.WaitFor(wctx, wait); werr != nil && err != nil {
		return 0, werr
	}
	return rev, err
}

// plan is what a change would do.
type plan struct {
	put    []*configv1.Resource // what is asked for, changed or not
	change configstore.Change
	resp   *adminv1.ApplyResponse
}

func (s *Service) plan(snap *configstore.Snapshot, c change, r removals) (plan, error) {
	p := plan{resp: &adminv1.ApplyResponse{}}
	now := timestamppb.New(s.cfg.Clock.Now())
	var put, stored []*configv1.Resource
	var problems []validate.Problem
	room := maxPageBytes
	before := func(e *configstore.Entry) *configv1.Resource {
		if room -= len(e.Bytes); room < 0 {
			return nil
		}
		return e.Resource
	}
	for _, r := range c.put {
		name := resource.NameOf(r)
		next := proto.Clone(r).(*configv1.Resource)
		next.Name = name
		md := next.Metadata
		version := md.Version
		md.Version = ""
		old := snap.Get(name)
		res := &adminv1.ApplyResult{Name: name}
		p.resp.Results = append(p.resp.Results, res)
		switch {
		case old == nil && (version != "" || md.Uid != ""):
			problems = append(problems, validate.Problem{Resource: name, Field: "metadata.version", Rule: "conflict", Message: "the resource does not exist any more; leave version and uid out to create it"})
			continue
		case old != nil && md.Uid != "" && md.Uid != old.Resource.Metadata.Uid:
			problems = append(problems, validate.Problem{Resource: name, Field: "metadata.uid", Rule: "conflict", Message: "it was deleted and created again meanwhile"})
			continue
		case old != nil && version != "" && version != old.Version():
			return p, status.Errorf(codes.Aborted, "%s is at version %s, the change was made on version %s: get it and apply again", name, old.Version(), version)
		case old == nil:
			md.Uid, md.CreatedAt = uuid.NewString(), now
			res.Outcome = adminv1.ApplyResult_OUTCOME_CREATED
		default:
			md.Uid, md.CreatedAt = old.Resource.Metadata.Uid, old.Resource.Metadata.CreatedAt
			res.Outcome, res.Before = adminv1.ApplyResult_OUTCOME_UPDATED, before(old)
			if proto.Equal(next, old.Resource) {
				res.Outcome, res.Version = adminv1.ApplyResult_OUTCOME_UNCHANGED, old.Version()
			}
		}
		if old != nil && res.Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED {
			// Whoever got it here has not seen the field.
			if path := resource.UnknownField(old.Resource); path != "" {
				problems = append(problems, validate.Problem{Resource: name, Field: path, Rule: "newer", Message: "what is there has a field that this version does not know, and would lose it: apply at a control plane of the newer version"})
				continue
			}
		}
		res.Uid = md.Uid
		put = append(put, next)
		if res.Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED {
			stored = append(stored, next)
		}
	}
	p.put = put
	var gone []string
	for _, t := range c.remove {
		e := snap.Get(t.Name)
		if e != nil && t.Version != "" && t.Version != e.Version() {
			return p, status.Errorf(codes.Aborted, "%s is at version %s, not %s: get it and decide again", t.Name, e.Version(), t.Version)
		}
		gone = append(gone, t.Name)
		if e != nil { // else there is a problem
			p.resp.Results = append(p.resp.Results, &adminv1.ApplyResult{Name: t.Name, Outcome: adminv1.ApplyResult_OUTCOME_DELETED, Version: e.Version(), Uid: e.Resource.Metadata.Uid, Before: before(e)})
		}
	}
	problems = append(problems, validate.Together(snap, put, gone)...)
	if len(problems) == 1 && problems[0].Rule == "not-found" {
		return p, status.Errorf(codes.NotFound, "%s does not exist", problems[0].Resource)
	}
	if len(problems) > 0 {
		return p, s.metrics.refused(problems)
	}
	if !c.allowMassRemoval {
		if err := s.cfg.Guard.check(snap, r); err != nil {
			return p, err
		}
	}
	p.change.Put = append(stored, bindings(snap, stored)...)
	p.change.Delete = append(gone, companions(snap, gone)...)
	if err := p.change.Fits(); err != nil {
		return p, toStatus(err)
	}
	return p, nil
}

// bindings are the TopicBindings of topics that are new: which store holds them
// is settled in the transaction that creates them.
func bindings(snap *configstore.Snapshot, put []*configv1.Resource) []*configv1.Resource {
	uidOf := func(ns, name string) string {
		full := resource.Name(resource.EventStore, ns, name)
		for _, r := range put {
			if r.Name == full {
				return r.Metadata.Uid
			}
		}
		return snap.Resource(full).GetMetadata().GetUid()
	}
	var out []*configv1.Resource
	for _, r := range put {
		t := r.GetTopic()
		if t == nil || snap.Get(r.Name) != nil {
			continue
		}
		md := r.Metadata
		b := &configv1.Resource{
			Metadata: &configv1.Metadata{Namespace: md.Namespace, Name: md.Name, CreatedAt: md.CreatedAt},
			Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: md.Uid, Epochs: []*configv1.Epoch{{
				Number: 1, Store: t.Store, StoreUid: uidOf(md.Namespace, t.Store), PhysicalName: validate.PhysicalName(r)}}}},
		}
		b.Name = resource.NameOf(b)
		out = append(out, b)
	}
	return out
}

// companions are the resources that go with what is deleted: the system's, and a
// topic's Migration.
func companions(snap *configstore.Snapshot, names []string) []string {
	var out []string
	add := func(kind resource.Kind, ns, name string) {
		if full := resource.Name(kind, ns, name); snap.Get(full) != nil && !slices.Contains(names, full) {
			out = append(out, full)
		}
	}
	for _, n := range names {
		kind, ns, name, err := resource.Split(n)
		if err != nil {
			continue
		}
		switch kind {
		case resource.Topic:
			add(resource.TopicBinding, ns, name)
			add(resource.TopicAdmission, ns, name)
			add(resource.Migration, ns, name)
		case resource.Subscription:
			add(resource.SubscriptionAdmission, ns, name)
		}
	}
	return out
}
