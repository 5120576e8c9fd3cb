package grpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/inspect"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/position"
)

// maxKnownFacts bounds what a question may bring along.
const maxKnownFacts = 1000

// inspector serves InspectService.
type inspector struct {
	eventsv1.UnimplementedInspectServiceServer
	s *Server
}

// Trace tells what this proxy remembers.
func (i *inspector) Trace(ctx context.Context, req *eventsv1.TraceRequest) (*eventsv1.TraceResponse, error) {
	who, err := i.s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	t, err := i.s.cfg.Inspector.Trace(ctx, who, req.Namespace, req.Source, req.Id)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &eventsv1.TraceResponse{NodeId: t.NodeID, RemembersSince: timestamppb.New(t.Since)}
	for n := range t.Facts {
		out.Facts = append(out.Facts, factMessage(&t.Facts[n], t.NodeID))
	}
	return out, nil
}

// Why tells why a Subscription has not got an event.
func (i *inspector) Why(ctx context.Context, req *eventsv1.WhyRequest) (*eventsv1.WhyResponse, error) {
	who, err := i.s.authenticate(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	q := inspect.Question{Namespace: req.Namespace, Source: req.Source, ID: req.Id, Subscription: req.Subscription}
	if len(req.Facts) > maxKnownFacts {
		return nil, toStatus(fault.New(fault.Invalid, "grpc", "bad-request", "facts: they are at most %d", maxKnownFacts))
	}
	for _, m := range req.Facts {
		f, err := factOf(m)
		if err != nil {
			return nil, toStatus(err)
		}
		q.Facts = append(q.Facts, f)
	}
	if req.Since != nil {
		if req.Since.CheckValid() != nil {
			return nil, toStatus(fault.New(fault.Invalid, "grpc", "bad-request", "since: it is not a valid time"))
		}
		q.Since = req.Since.AsTime()
	}
	a, err := i.s.cfg.Inspector.Why(ctx, who, q)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &eventsv1.WhyResponse{Verdict: a.Verdict, Message: a.Message, NodeId: a.NodeID}
	for _, f := range a.Findings {
		out.Findings = append(out.Findings, &eventsv1.Finding{Check: f.Check, Ok: f.OK, Detail: f.Detail})
	}
	return out, nil
}

func factMessage(f *facts.Fact, node string) *eventsv1.Fact {
	m := &eventsv1.Fact{Time: timestamppb.New(time.Unix(0, f.At)), Kind: eventsv1.Fact_Kind(f.Kind), Topic: f.Topic, KeptIn: f.Kept, Subscription: f.Subscription,
		Attempt: uint32(f.Attempt), Detail: f.Detail, NodeId: node} //nolint:gosec // attempts are below 2^16
	if f.Position.TopicUID != "" {
		m.Position = f.Position.String()
	}
	return m
}

// factOf reads a fact that another proxy told.
func factOf(m *eventsv1.Fact) (facts.Fact, error) {
	bad := func(what string) (facts.Fact, error) {
		return facts.Fact{}, fault.New(fault.Invalid, "grpc", "bad-request", "facts: %s", what)
	}
	if m.Kind <= 0 || m.Kind > eventsv1.Fact_KIND_REDRIVEN || m.Time.CheckValid() != nil || m.Attempt > 1<<16 || len(m.Detail) > facts.MaxDetail {
		return bad("one is none that a proxy tells")
	}
	f := facts.Fact{At: m.Time.AsTime().UnixNano(), Kind: facts.Kind(m.Kind), Topic: m.Topic, Kept: m.KeptIn, Subscription: m.Subscription, Attempt: int(m.Attempt), Detail: m.Detail} //nolint:gosec // checked
	if m.Position != "" {
		var err error
		if f.Position, err = position.Parse(m.Position); err != nil {
			return bad("a position is not one that this API gave")
		}
	}
	return f, nil
}
