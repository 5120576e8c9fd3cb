package admin

import (
	"context"
	"fmt"
	"path"
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
// counted and the next record of the same caller says how many there were. In 90
// days that is at most 130,000 records of less than a kilobyte.
const (
	// refusalBurst are written at once, and one more each refusalEvery.
	refusalBurst = 200
	refusalEvery = time.Minute
	// callerBurst of them may be one caller's, and one more each callerEvery.
	callerBurst = 20
	callerEvery = 10 * time.Minute
	// maxCallers are told apart; all others count as one.
	maxCallers = 1000
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
	repeats uint32
}

func newRefusals() refusals { return refusals{callers: map[string]*refusedCaller{}} }

// take reports whether a refusal of who is to be written, and how many before it
// were not.
func (r *refusals) take(who string, now time.Time) (repeats uint32, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
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
	if !c.take(now, callerBurst, callerEvery) || !r.all.take(now, refusalBurst, refusalEvery) {
		c.repeats++
		return 0, false
	}
	repeats, c.repeats = c.repeats, 0
	return repeats, true
}

// audit writes down what became of a call that changes something, or was to: a
// refusal, or an act that left no record with its change.
func (s *Service) audit(ctx context.Context, method string, req any, err error) {
	who := callerOf(ctx)
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
		repeats, room := s.refusals.take(who.Subject+" "+who.host(), s.cfg.Clock.Now())
		if !room {
			s.metrics.unwritten.Inc()
			return
		}
		r.Repeats = repeats
		st := status.Convert(err)
		r.Refused = clip(st.Code().String() + ": " + st.Message())
	} else if !writes(req) || recorded(req) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if err := s.cfg.Store.Note(ctx, r); err != nil {
		s.cfg.Log.Error("an audit record could not be written", "actor", r.Actor, "peer", r.Peer, "method", r.Method, "refused", r.Refused, "error", err)
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
	}
	return ""
}

// writes: the call changes something, the configuration or else.
func writes(req any) bool {
	switch req.(type) {
	case *adminv1.ApplyRequest, *adminv1.DeleteRequest, *adminv1.RollbackRequest,
		*adminv1.DeclareRestoreRequest, *adminv1.CommandProxiesRequest, *adminv1.CreateJoinTokenRequest, *adminv1.RevokeJoinTokensRequest:
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
