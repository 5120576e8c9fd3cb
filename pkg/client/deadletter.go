package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// DeadLetterFilter selects dead letters; all that is set must hold.
type DeadLetterFilter struct {
	// DeadLetterTopic is where they are; when empty, the topic that Subscription
	// names.
	DeadLetterTopic string
	// Subscription gave them up; they were in Topic.
	Subscription, Topic string
	// Source and IDs, at most 1,000, are the events'.
	Source string
	IDs    []string
	// Reason is a part of the reason, upper and lower case alike.
	Reason string
	// Since and Until bound when they were given up.
	Since, Until time.Time
	MinAttempts  int
}

func (f *DeadLetterFilter) wire() *eventsv1.DeadLetterFilter {
	out := &eventsv1.DeadLetterFilter{Subscription: f.Subscription, Topic: f.Topic, Reason: f.Reason, MinAttempts: uint32(max(f.MinAttempts, 0)), Ids: f.IDs, Source: f.Source} //nolint:gosec // attempts
	if !f.Since.IsZero() {
		out.Since = timestamppb.New(f.Since)
	}
	if !f.Until.IsZero() {
		out.Until = timestamppb.New(f.Until)
	}
	return out
}

// DeadLetter is an event that a Subscription could not deliver.
type DeadLetter struct {
	// Position is its position token in the dead-letter topic, TopicPosition that
	// in Topic.
	Position, TopicPosition string
	// Time is when Subscription gave it up, after Attempts, for Reason.
	Time                        time.Time
	Subscription, Topic, Reason string
	Attempts                    int
	// Redriven: it was given back.
	Redriven bool
	// NotRedrivable says why it cannot be; "" where it can.
	NotRedrivable string
	// Event is as it was.
	Event event.Event
}

// DeadLetterSummary counts: events looked at, those selected, and those that were
// redriven and would have been selected.
type DeadLetterSummary struct{ Scanned, Matched, Redriven uint64 }

// ListOptions change DeadLetters.
type ListOptions struct {
	// Limit is most that are listed, up to 100,000; 1,000 when 0.
	Limit int
	// Redriven lists those that were redriven too.
	Redriven bool
	// OmitData leaves out the events' data.
	OmitData bool
}

// DeadLetters gives h the dead letters that a topic has, until h fails.
func (c *Client) DeadLetters(ctx context.Context, namespace string, f DeadLetterFilter, o ListOptions, h func(DeadLetter) error) (DeadLetterSummary, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.dead.ListDeadLetters(ctx, &eventsv1.ListDeadLettersRequest{Namespace: namespace, Topic: f.DeadLetterTopic, Filter: f.wire(),
		Limit: uint32(max(o.Limit, 0)), Redriven: o.Redriven, OmitData: o.OmitData}) //nolint:gosec // a limit
	if err != nil {
		return DeadLetterSummary{}, toError(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return DeadLetterSummary{}, toError(err)
		}
		for _, l := range resp.DeadLetters {
			b, err := proto.Marshal(l.Event)
			if err != nil {
				return DeadLetterSummary{}, err
			}
			e, err := cloudevents.DecodeProto(b)
			if err != nil {
				return DeadLetterSummary{}, err
			}
			out := DeadLetter{Position: l.Position, TopicPosition: l.TopicPosition, Subscription: l.Subscription, Topic: l.Topic, Reason: l.Reason,
				Attempts: int(l.Attempts), Redriven: l.Redriven, NotRedrivable: l.NotRedrivable, Event: e}
			if l.Time != nil {
				out.Time = l.Time.AsTime()
			}
			if err := h(out); err != nil {
				return DeadLetterSummary{}, err
			}
		}
		if s := resp.Summary; s != nil {
			return DeadLetterSummary{s.Scanned, s.Matched, s.Redriven}, nil
		}
	}
}

// RedriveOptions change Redrive.
type RedriveOptions struct {
	// Rate is most in a second, 1 to 10,000; 50 when 0.
	Rate int
	// Limit is most in all; 0 is without.
	Limit int
	// DryRun only counts.
	DryRun bool
}

// Redriven says how far a redrive is: given back, given back before, and those that
// cannot be, with why the first of them cannot.
type Redriven struct {
	Redriven, Already, Refused uint64
	RefusedReason              string
}

// Redrive gives the dead letters of f.Subscription that f selects back to it. It
// tells progress now and then. What was given back is not given back again: after an
// error the same call goes on.
func (c *Client) Redrive(ctx context.Context, namespace string, f DeadLetterFilter, o RedriveOptions, progress func(Redriven)) (Redriven, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last Redriven
	stream, err := c.dead.RedriveDeadLetters(ctx, &eventsv1.RedriveDeadLettersRequest{Namespace: namespace, Topic: f.DeadLetterTopic, Filter: f.wire(),
		Rate: uint32(max(o.Rate, 0)), Limit: uint64(max(o.Limit, 0)), DryRun: o.DryRun}) //nolint:gosec // a rate and a limit
	if err != nil {
		return last, toError(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return last, toError(err)
		}
		last = Redriven{resp.Redriven, resp.Already, resp.Refused, resp.RefusedReason}
		if resp.Done {
			return last, nil
		}
		progress(last)
	}
}
