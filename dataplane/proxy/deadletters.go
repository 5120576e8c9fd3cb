package proxy

import (
	"context"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/resource"
)

// withDeadLetters is the principal once what q names is here.
func (m *mesh) withDeadLetters(ctx context.Context, who *policy.Principal, q delivery.DeadLetterQuery, consume bool) (*policy.Principal, error) {
	return m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		if q.Subscription != "" && (consume || q.Topic == "") {
			if err := m.demand.need(ctx, s, who, policy.Consume, config.Name{Kind: resource.Subscription, Namespace: q.Namespace, Name: q.Subscription}); err != nil {
				return err
			}
		}
		if q.Topic == "" {
			return nil // a Subscription brings its own
		}
		return m.demand.need(ctx, s, who, policy.Subscribe, config.Name{Kind: resource.Topic, Namespace: q.Namespace, Name: q.Topic})
	})
}

// DeadLetters lists dead letters.
func (m *mesh) DeadLetters(ctx context.Context, who *policy.Principal, q delivery.DeadLetterQuery, visit func(*delivery.DeadLetter) error) (delivery.DeadLetterSummary, error) {
	who, err := m.withDeadLetters(ctx, who, q, false)
	if err != nil {
		return delivery.DeadLetterSummary{}, err
	}
	return m.dead.DeadLetters(ctx, who, q, visit)
}

// Redrive gives dead letters back.
func (m *mesh) Redrive(ctx context.Context, who *policy.Principal, r delivery.Redrive, report func(delivery.Redriven)) (delivery.Redriven, error) {
	who, err := m.withDeadLetters(ctx, who, r.Query, true)
	if err != nil {
		return delivery.Redriven{}, err
	}
	return m.dead.Redrive(ctx, who, r, report)
}

// refused takes what was delayed and its topic does not take, for the stores, which are
// made before what delivers.
func (p *Proxy) refused(ctx context.Context, topic string, e *event.Event, why error) error {
	return p.deliveries.Refused(ctx, topic, e, why)
}
