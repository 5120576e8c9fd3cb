package admin

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Bounds of the records of refusals, on each replica: what somebody may do who
// may do nothing. Within them each refusal has its record; beyond, refusals are
// counted, and the next record of the same caller says how many there were, or one
// that is written for it: every flushEvery, and when the replica stops. In 90 days
// that is at most 210,000 records of less than a kilobyte.
const (
	// refusalBurst are written at once, and one more each refusalEvery.
	refusalBurst = 200
	refusalEvery = time.Minute
	// callerBurst of them may be one caller's, and one more each callerEvery.
	callerBurst = 20
	callerEvery = 10 * time.Minute
	// maxCallers are told apart; all others count as one.
	maxCallers = 1000
	// flushEvery is how often what was counted and has no record gets one: each of
	// the flushRecords callers with the most, and one for all others.
	flushEvery   = 10 * time.Minute
	flushRecords = 5
	// maxReason and maxNames bound one record.
	maxReason = 512
	maxNames  = 10
)

// noteTimeout bounds the writing of a record.
const noteTimeout = 2 * time.Second

// bucket has tokens; one comes back in each every, up to most.
type bucket struct {
	used float64
	at   time.Time
}

func (b *bucket) take(now time.Time, most int, every time.Duration) bool {
	b.used = max(0, b.used-now.Sub(b.at).Seconds()/every.Seconds())
	b.at = now
	if b.used+1 > float64(most) {
		return false
	}
	b.used++
	return true
}

// spent reports whether the bucket is not full again.
func (b *bucket) spent(now time.Time, every time.Duration) bool {
	return b.used > now.Sub(b.at).Seconds()/every.Seconds()
}

// refusals decides which refusals are written down.
type refusals struct {
	mu      sync.Mutex
	all     bucket
	callers map[string]*refusedCaller
}

type refusedCaller struct {
	bucket
	// repeats counts refusals that have no record; last is the last of them.
	repeats uint32
	last    configstore.AuditRecord
}

func newRefusals() refusals { return refusals{callers: map[string]*refusedCaller{}} }

// take reports whether a refusal of who is to be written, and how many before it
// were not.
func (r *refusals) take(who string, rec configstore.AuditRecord, now time.Time) (repeats uint32, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(who, now)
	if !c.take(now, callerBurst, callerEvery) || !r.all.take(now, refusalBurst, refusalEvery) {
		c.repeats++
		c.last = rec
		return 0, false
	}
	repeats, c.repeats = c.repeats, 0
	return repeats, true
}

// of is what is known of a caller, or of all those that there are too many of.
func (r *refusals) of(who string, now time.Time) *refusedCaller {
	c := r.callers[who]
	if c == nil {
		if len(r.callers) >= maxCallers {
			for name, c := range r.callers {
				if c.repeats == 0 && !c.spent(now, callerEvery) {
					delete(r.callers, name)
				}
			}
		}
		if len(r.callers) >= maxCallers {
			who = ""
		}
		if c = r.callers[who]; c == nil {
			c = &refusedCaller{}
			r.callers[who] = c
		}
	}
	return c
}

// again counts refusals whose record could not be written.
func (r *refusals) again(who string, n uint32, rec configstore.AuditRecord, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.of(who, now)
	c.repeats += n
	c.last = rec
}

// mergedRefusals is a record of refusals that have none of their own, and how many of them
// are whose.
type mergedRefusals struct {
	record configstore.AuditRecord
	of     map[string]uint32
}

// drain makes records of what was counted: as many as most, and one more.
func (r *refusals) drain(most int) []mergedRefusals {
	r.mu.Lock()
	defer r.mu.Unlock()
	var who []string
	for name, c := range r.callers {
		if c.repeats > 0 {
			who = append(who, name)
		}
	}
	slices.SortFunc(who, func(a, b string) int {
		return cmp.Or(cmp.Compare(r.callers[b].repeats, r.callers[a].repeats), strings.Compare(a, b))
	})
	var out []mergedRefusals
	for i, name := range who {
		c := r.callers[name]
		if i <= most {
			// The record is that of the last one, after all others.
			m := mergedRefusals{c.last, map[string]uint32{name: c.repeats}}
			m.record.Repeats = c.repeats - 1
			out = append(out, m)
		} else {
			m := &out[most]
			m.of[name] = c.repeats
			m.record.Repeats += c.repeats
		}
		c.repeats, c.last = 0, configstore.AuditRecord{}
	}
	for i := range out {
		m := &out[i]
		if n := len(m.of); n > 1 {
			m.record = configstore.AuditRecord{Actor: "several", Repeats: m.record.Repeats,
				Refused: clip(fmt.Sprintf("calls of %d callers, among them %s", n, strings.Join(who[most:min(len(who), most+maxNames)], ", ")))}
		} else if _, all := m.of[""]; all {
			m.record.Refused = clip("with others of callers that are too many to be told apart: " + m.record.Refused)
		}
	}
	return out
}

// Run writes down, every now and then, which refusals were counted, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(s.flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.Flush(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// Flush writes down which refusals were counted and have no record yet. What
// cannot be written stays counted, and is logged.
func (s *Service) Flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*noteTimeout)
	defer cancel()
	for _, m := range s.refusals.drain(flushRecords) {
		err := s.cfg.Store.Note(ctx, m.record)
		if err == nil {
			continue
		}
		s.cfg.Log.Error("refusals that were counted could not be written down", "actor", m.record.Actor, "refused", m.record.Refused, "refusals", m.record.Repeats+1, "error", err)
		for who, n := range m.of {
			s.refusals.again(who, n, m.record, s.cfg.Clock.Now())
		}
	}
}

// audit writes down what became of a call that changes something, or was to: a
// refusal, or an act that left no record with its change.
func (s *Service) audit(ctx context.Context, method string, req any, err error) {
	who := callerOf(ctx)
	caller := who.Subject + " " + who.host()
	r := configstore.AuditRecord{Actor: who.Subject, Peer: who.Peer, Method: path.Base(method), Detail: clip(act(req))}
	for _, name := range namesOf(req) {
		if len(r.Changes) == maxNames {
			break
		}
		r.Changes = append(r.Changes, configstore.AuditChange{Name: name})
	}
	if err != nil {
		if !isRefusal(err, writes(req)) || isDryRun(req) {
			return
		}
		st := status.Convert(err)
		r.Refused = clip(st.Code().String() + ": " + st.Message())
		var room bool
		if r.Repeats, room = s.refusals.take(caller, r, s.cfg.Clock.Now()); !room {
			s.metrics.unwritten.Inc()
			return
		}
	} else if !writes(req) || recorded(req) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := s.cfg.Store.Note(ctx, r); err != nil {
		s.cfg.Log.Error("an audit record could not be written", "actor", r.Actor, "peer", r.Peer, "method", r.Method, "refused", r.Refused, "error", err)
		if r.Refused != "" {
			s.refusals.again(caller, r.Repeats+1, r, s.cfg.Clock.Now())
		}
	}
}

// clip makes of what a caller said a text that can be written down and shown.
func clip(s string) string { return names.Text(s, maxReason) }

// isRefusal: the call was decided against; not that something failed. Who only
// reads is refused where he may not, not where there is nothing.
func isRefusal(err error, writes bool) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		return true
	case codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound, codes.AlreadyExists, codes.OutOfRange:
		return writes
	}
	return false
}

// act tells what a call does beside changing the configuration; "" for others.
func act(req any) string {
	switch r := req.(type) {
	case *adminv1.DeclareRestoreRequest:
		return r.Reason
	case *adminv1.CommandProxiesRequest:
		what := strings.ToLower(strings.TrimPrefix(r.Command.String(), "COMMAND_"))
		if len(r.NodeIds) == 0 {
			return what + " of all"
		}
		return what + " of " + strings.Join(r.NodeIds, ", ")
	case *adminv1.CreateJoinTokenRequest:
		return fmt.Sprintf("for node %s, namespaces %v", r.NodeId, r.Namespaces)
	case *adminv1.RevokeJoinTokensRequest:
		return strings.Join(r.Ids, ", ")
	case *adminv1.DeclareNodeDeadRequest:
		return names.Text(r.NodeId, 128) + " is dead: " + names.Text(r.Reason, maxNodeReason)
	case *adminv1.ReviveNodeRequest:
		return names.Text(r.NodeId, 128) + " is not dead"
	case *adminv1.ForgetNodesRequest:
		all := make([]string, len(r.NodeIds))
		for i, id := range r.NodeIds {
			all[i] = names.Text(id, 128)
		}
		return strings.Join(all, ", ")
	}
	return ""
}

// writes: the call changes something, the configuration or else.
func writes(req any) bool {
	switch req.(type) {
	case *adminv1.ApplyRequest, *adminv1.DeleteRequest, *adminv1.RollbackRequest,
		*adminv1.DeclareRestoreRequest, *adminv1.CommandProxiesRequest, *adminv1.CreateJoinTokenRequest, *adminv1.RevokeJoinTokensRequest,
		*adminv1.DeclareNodeDeadRequest, *adminv1.ReviveNodeRequest, *adminv1.ForgetNodesRequest:
		return true
	}
	return false
}

// recorded: the change has its record already, of the same transaction.
func recorded(req any) bool {
	switch req.(type) {
	case *adminv1.ApplyRequest, *adminv1.DeleteRequest, *adminv1.RollbackRequest, *adminv1.DeclareRestoreRequest:
		return true
	}
	return false
}

func isDryRun(req any) bool {
	r, ok := req.(interface{ GetDryRun() bool })
	return ok && r.GetDryRun()
}

// namesOf are the resources that a call is about.
func namesOf(req any) []string {
	var out []string
	add := func(targets []*adminv1.DeleteTarget) {
		for _, t := range targets {
			out = append(out, t.Name)
		}
	}
	switch r := req.(type) {
	case *adminv1.ApplyRequest:
		for _, r := range r.Resources {
			out = append(out, resource.NameOf(r))
		}
		add(r.Delete)
	case *adminv1.DeleteRequest:
		add(r.Targets)
	case *adminv1.RollbackRequest:
		if r.Name != "" {
			out = append(out, r.Name)
		}
	}
	for i, name := range out {
		out[i] = names.Text(name, 160)
	}
	return out
}
