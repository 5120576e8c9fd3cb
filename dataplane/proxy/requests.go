package proxy

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Request publishes an event and waits for its reply.
func (m *mesh) Request(ctx context.Context, who *policy.Principal, namespace, topic string, e event.Event, timeout time.Duration) (event.Event, error) {
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		return m.demand.need(ctx, s, who, policy.Publish, config.Name{Kind: resource.Topic, Namespace: namespace, Name: topic})
	})
	if err != nil {
		return event.Event{}, err
	}
	// While it waits it counts as a connection.
	held, err := m.Hold(who, namespace, topic)
	if err != nil {
		return event.Event{}, err
	}
	defer held.Close()
	return m.requests.Request(ctx, who, namespace, topic, e, timeout)
}

// Reply takes a reply to who waits for it.
func (m *mesh) Reply(ctx context.Context, who *policy.Principal, namespace string, e event.Event) error {
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		topic, ok := pipeline.RequestTopic(&e)
		if !ok {
			return nil // is told so
		}
		return m.demand.need(ctx, s, who, policy.Subscribe, config.Name{Kind: resource.Topic, Namespace: namespace, Name: topic})
	})
	if err != nil {
		return err
	}
	return m.requests.Reply(ctx, who, namespace, e)
}
