package grpc

import (
	"cmp"
	"context"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/fault"
)

// Bounds and defaults of requests about dead letters.
const (
	defaultLetters = 1000
	maxLetters     = 100000
	maxLetterIDs   = 1000
	maxReasonPart  = 1024
	defaultRedrive = 50 // a second
	maxRedrive     = 1 << 40
	reportEvery    = time.Second
)

// deadLetters serves DeadLetterService.
type deadLetters struct {
	eventsv1.UnimplementedDeadLetterServiceServer
	s *Server
}

// until gives a context that ends when the server drains, too.
func (s *Server) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-s.draining:
			cancel(fault.New(fault.Unavailable, "grpc", "draining", "the proxy is shutting down; ask again"))
		case <-stop:
		}
	}()
	return ctx, func() { close(stop); cancel(nil) }
}

// ended is err, or why ctx has ended where that is why.
func ended(ctx context.Context, err error) error {
	if f := fault.From(err); f != nil && f.Class == fault.Canceled && ctx.Err() != nil {
		return toStatus(context.Cause(ctx))
	}
	return toStatus(err)
}

// ListDeadLetters lists.
func (d *deadLetters) ListDeadLetters(req *eventsv1.ListDeadLettersRequest, rpc grpc.ServerStreamingServer[eventsv1.ListDeadLettersResponse]) error {
	ctx, cancel := d.s.until(rpc.Context())
	defer cancel()
	who, err := d.s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	q, err := deadLetterQuery(req.Namespace, req.Topic, req.Filter)
	if err != nil {
		return toStatus(err)
	}
	q.Redriven = req.Redriven
	limit := int(cmp.Or(req.Limit, defaultLetters))
	if limit > maxLetters {
		return toStatus(fault.New(fault.Invalid, "grpc", "bad-request", "limit: at most %d dead letters are listed", maxLetters))
	}
	out, size, listed := &eventsv1.ListDeadLettersResponse{}, 0, 0
	sum, err := d.s.cfg.DeadLetters.DeadLetters(ctx, who, q, func(l *delivery.DeadLetter) error {
		if listed == limit {
			return nil // it counts
		}
		listed++
		if req.OmitData {
			l.Event.Data = nil
		}
		m, err := letterMessage(l)
		if err != nil {
			return err
		}
		out.DeadLetters, size = append(out.DeadLetters, m), size+l.Event.Size()
		if len(out.DeadLetters) < maxDeliveries && size < maxDeliveryBytes {
			return nil
		}
		err = rpc.Send(out)
		out, size = &eventsv1.ListDeadLettersResponse{}, 0
		return err
	})
	if err != nil {
		return ended(ctx, err)
	}
	out.Summary = &eventsv1.DeadLetterSummary{Scanned: uint64(sum.Scanned), Matched: uint64(sum.Matched), Redriven: uint64(sum.Redriven)} //nolint:gosec // counts
	return rpc.Send(out)
}

// RedriveDeadLetters redrives.
func (d *deadLetters) RedriveDeadLetters(req *eventsv1.RedriveDeadLettersRequest, rpc grpc.ServerStreamingServer[eventsv1.RedriveDeadLettersResponse]) error {
	ctx, cancel := d.s.until(rpc.Context())
	defer cancel()
	who, err := d.s.authenticate(ctx)
	if err != nil {
		return toStatus(err)
	}
	q, err := deadLetterQuery(req.Namespace, req.Topic, req.Filter)
	if err != nil {
		return toStatus(err)
	}
	if req.Limit > maxRedrive {
		return toStatus(fault.New(fault.Invalid, "grpc", "bad-request", "limit: it is too large"))
	}
	last := time.Now()
	done, err := d.s.cfg.DeadLetters.Redrive(ctx, who, delivery.Redrive{Query: q, Rate: int(cmp.Or(req.Rate, defaultRedrive)), Limit: int(req.Limit), DryRun: req.DryRun}, //nolint:gosec // checked
		func(r delivery.Redriven) {
			if time.Since(last) < reportEvery {
				return
			}
			last = time.Now()
			if rpc.Send(redriven(r, false)) != nil {
				cancel() // nobody listens
			}
		})
	if err != nil {
		// What was done is said all the same.
		if done.Redriven > 0 {
			if serr := rpc.Send(redriven(done, false)); serr != nil {
				return serr
			}
		}
		return ended(ctx, err)
	}
	return rpc.Send(redriven(done, true))
}

func redriven(r delivery.Redriven, done bool) *eventsv1.RedriveDeadLettersResponse {
	return &eventsv1.RedriveDeadLettersResponse{Redriven: uint64(r.Redriven), Already: uint64(r.Already), Refused: uint64(r.Refused), RefusedReason: r.RefusedReason, Done: done} //nolint:gosec // counts
}

// deadLetterQuery reads which dead letters are meant.
func deadLetterQuery(namespace, topic string, f *eventsv1.DeadLetterFilter) (delivery.DeadLetterQuery, error) {
	q := delivery.DeadLetterQuery{Namespace: namespace, Topic: topic, Subscription: f.GetSubscription(), From: f.GetTopic(), Source: f.GetSource(),
		Reason: strings.ToLower(f.GetReason()), MinAttempts: int(f.GetMinAttempts())}
	bad := func(field, rule string) error {
		return fault.New(fault.Invalid, "grpc", "bad-request", "filter.%s: %s", field, rule)
	}
	if len(q.Reason) > maxReasonPart {
		return q, bad("reason", "has at most 1,024 bytes")
	}
	if len(f.GetIds()) > maxLetterIDs {
		return q, bad("ids", "are at most 1,000")
	}
	for _, id := range f.GetIds() {
		if q.IDs == nil {
			q.IDs = map[string]struct{}{}
		}
		q.IDs[id] = struct{}{}
	}
	for name, t := range map[string]*timestamppb.Timestamp{"since": f.GetSince(), "until": f.GetUntil()} {
		if t == nil {
			continue
		}
		if t.CheckValid() != nil {
			return q, bad(name, "is not a valid time")
		}
		if name == "since" {
			q.Since = t.AsTime()
		} else {
			q.Until = t.AsTime()
		}
	}
	return q, nil
}

func letterMessage(l *delivery.DeadLetter) (*eventsv1.DeadLetter, error) {
	m := &eventsv1.DeadLetter{Position: l.Position.String(), Subscription: l.Subscription, Topic: l.Topic, TopicPosition: l.TopicPosition, Reason: l.Reason,
		Attempts: uint32(min(max(l.Attempts, 0), math.MaxInt32)), Redriven: l.Redriven, NotRedrivable: l.NotRedrivable, Event: &cev1.CloudEvent{}} //nolint:gosec // attempts
	if !l.Time.IsZero() {
		m.Time = timestamppb.New(l.Time)
	}
	return m, proto.Unmarshal(cloudevents.AppendProto(nil, &l.Event), m.Event)
}
