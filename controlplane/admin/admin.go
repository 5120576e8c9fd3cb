// Package admin is the admin API: it decodes a change, has it validated, writes
// it, and shows what is there.
package admin

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Fleet tells which proxies there are.
type Fleet interface {
	Proxies() []*adminv1.ProxyStatus
}

// Config is what the API stands on.
type Config struct {
	Store     *configstore.Store
	Validator *validate.Validator
	Fleet     Fleet
	// Conditions tells what is known of stores; by canonical name.
	Conditions func(ctx context.Context) (map[string][]*adminv1.Condition, error)
	Version    string
	// Clock dates what is created.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
	// JoinTokens are those with which proxies join.
	JoinTokens *jointoken.Tokens
	// SnapshotKey signs exported snapshots; nil does not.
	SnapshotKey ed25519.PrivateKey
}

// Service implements AdminService.
type Service struct {
	adminv1.UnimplementedAdminServiceServer
	cfg     Config
	metrics metrics
	// exporting has a place for the one snapshot that is exported at a time: it is
	// in memory as a whole.
	exporting chan struct{}
}

// New makes the service.
func New(cfg Config) *Service {
	return &Service{cfg: cfg, metrics: newMetrics(cfg.Metrics), exporting: make(chan struct{}, 1)}
}

// maxTries bounds how often a write is decided anew because another one came
// first.
const maxTries = 8

// Apply creates or updates resources in one transaction.
func (s *Service) Apply(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	if n := len(req.Resources); n == 0 || n > 100 {
		return nil, status.Errorf(codes.InvalidArgument, "an Apply has 1 to 100 resources, this one has %d", n)
	}
	if size := proto.Size(req); size > configstore.MaxWriteBytes {
		return nil, status.Errorf(codes.InvalidArgument, "an Apply has at most %d bytes, this one has %d: split it", configstore.MaxWriteBytes, size)
	}
	var problems []validate.Problem
	for _, r := range req.Resources {
		problems = append(problems, s.cfg.Validator.Alone(r)...)
	}
	if len(problems) > 0 {
		return nil, s.metrics.refused(problems)
	}
	for range maxTries {
		snap, err := s.cfg.Store.Current()
		if err != nil {
			return nil, toStatus(err)
		}
		plan, err := s.plan(snap, req.Resources)
		if err != nil {
			return nil, err
		}
		if err := plan.change.Fits(); err != nil {
			return nil, toStatus(err)
		}
		if req.DryRun || len(plan.change.Put) == 0 {
			plan.resp.Revision = snap.Revision
			return plan.resp, nil
		}
		plan.change.Actor, plan.change.Peer = caller(ctx)
		rev, err := s.commit(ctx, snap, plan.change)
		if errors.Is(err, configstore.ErrConflict) {
			s.metrics.conflicts.Inc()
			continue
		}
		if err != nil {
			return nil, toStatus(err)
		}
		plan.resp.Revision = rev
		s.metrics.applied(plan.resp.Results)
		for _, res := range plan.resp.Results {
			if res.Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED {
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

// plan is what an Apply would do.
type plan struct {
	change configstore.Change
	resp   *adminv1.ApplyResponse
}

func (s *Service) plan(snap *configstore.Snapshot, in []*configv1.Resource) (plan, error) {
	p := plan{resp: &adminv1.ApplyResponse{}}
	now := timestamppb.New(s.cfg.Clock.Now())
	var put, stored []*configv1.Resource
	var problems []validate.Problem
	for _, r := range in {
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
			res.Outcome = adminv1.ApplyResult_OUTCOME_UPDATED
			if proto.Equal(next, old.Resource) {
				res.Outcome, res.Version = adminv1.ApplyResult_OUTCOME_UNCHANGED, old.Version()
			}
		}
		res.Uid = md.Uid
		put = append(put, next)
		if res.Outcome != adminv1.ApplyResult_OUTCOME_UNCHANGED {
			stored = append(stored, next)
		}
	}
	problems = append(problems, validate.Together(snap, put, nil)...)
	if len(problems) > 0 {
		return p, s.metrics.refused(problems)
	}
	p.change.Put = append(stored, bindings(snap, stored)...)
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

// Delete deletes resources in one transaction.
func (s *Service) Delete(ctx context.Context, req *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	if n := len(req.Targets); n == 0 || n > 100 {
		return nil, status.Errorf(codes.InvalidArgument, "a Delete has 1 to 100 targets, this one has %d", n)
	}
	for range maxTries {
		snap, err := s.cfg.Store.Current()
		if err != nil {
			return nil, toStatus(err)
		}
		var c configstore.Change
		for _, t := range req.Targets {
			e := snap.Get(t.Name)
			if e != nil && t.Version != "" && t.Version != e.Version() {
				return nil, status.Errorf(codes.Aborted, "%s is at version %s, not %s: get it and decide again", t.Name, e.Version(), t.Version)
			}
			c.Delete = append(c.Delete, t.Name)
		}
		if problems := validate.Together(snap, nil, c.Delete); len(problems) > 0 {
			if len(problems) == 1 && problems[0].Rule == "not-found" {
				return nil, status.Errorf(codes.NotFound, "%s does not exist", problems[0].Resource)
			}
			return nil, s.metrics.refused(problems)
		}
		c.Delete = append(c.Delete, companions(snap, c.Delete)...)
		if err := c.Fits(); err != nil {
			return nil, toStatus(err)
		}
		if req.DryRun {
			return &adminv1.DeleteResponse{Revision: snap.Revision}, nil
		}
		c.Actor, c.Peer = caller(ctx)
		rev, err := s.commit(ctx, snap, c)
		if errors.Is(err, configstore.ErrConflict) {
			s.metrics.conflicts.Inc()
			continue
		}
		if err != nil {
			return nil, toStatus(err)
		}
		for _, t := range req.Targets {
			s.metrics.changed(t.Name, "deleted")
		}
		return &adminv1.DeleteResponse{Revision: rev}, nil
	}
	return nil, status.Error(codes.Aborted, "others change the configuration all the time; try again")
}

// companions are the system resources that go with what is deleted.
func companions(snap *configstore.Snapshot, names []string) []string {
	var out []string
	add := func(kind resource.Kind, ns, name string) {
		if full := resource.Name(kind, ns, name); snap.Get(full) != nil {
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
		case resource.Subscription:
			add(resource.SubscriptionAdmission, ns, name)
		}
	}
	return out
}

// caller names who calls, for the audit record: the certificate's subject, or
// loopback.
func caller(ctx context.Context) (actor, from string) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "unknown", ""
	}
	actor = "anonymous"
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		actor = info.State.PeerCertificates[0].Subject.String()
	}
	return actor, p.Addr.String()
}

// refused is an INVALID_ARGUMENT or FAILED_PRECONDITION with every problem.
func refused(problems []validate.Problem) error {
	code := codes.InvalidArgument
	if precondition(problems) {
		code = codes.FailedPrecondition
	}
	lines := make([]string, len(problems))
	br := &errdetails.BadRequest{}
	for i, p := range problems {
		lines[i] = p.String()
		br.FieldViolations = append(br.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: p.Resource + ": " + p.Field, Description: p.Message, Reason: p.Rule})
	}
	head := "1 problem"
	if len(problems) > 1 {
		head = fmt.Sprintf("%d problems", len(problems))
	}
	st, err := status.New(code, head+": "+strings.Join(lines, "; ")).WithDetails(br)
	if err != nil {
		return status.Error(code, strings.Join(lines, "; "))
	}
	return st.Err()
}

// precondition reports whether only the state of other resources forbids it.
func precondition(problems []validate.Problem) bool {
	for _, p := range problems {
		switch p.Rule {
		case "reference", "in-use", "conflict", "not-found":
		default:
			return false
		}
	}
	return true
}

func toStatus(err error) error {
	f := fault.From(err)
	code := map[fault.Class]codes.Code{fault.Unavailable: codes.Unavailable, fault.Ambiguous: codes.DeadlineExceeded,
		fault.TooLarge: codes.InvalidArgument, fault.Canceled: codes.Canceled, fault.Invalid: codes.InvalidArgument}[f.Class]
	if code == codes.OK {
		code = codes.Internal
	}
	msg := f.Msg
	if msg == "" {
		msg = f.Reason
	}
	return status.Error(code, msg)
}
