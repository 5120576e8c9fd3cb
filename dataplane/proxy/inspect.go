package proxy

import (
	"context"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/inspect"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Trace tells what this proxy remembers of an event.
func (m *mesh) Trace(ctx context.Context, who *policy.Principal, namespace, source, id string) (inspect.Trace, error) {
	who, _, err := m.Current(who)
	if err != nil {
		return inspect.Trace{}, err
	}
	return m.inspector.Trace(ctx, who, namespace, source, id)
}

// Why tells why a Subscription has not got an event.
func (m *mesh) Why(ctx context.Context, who *policy.Principal, q inspect.Question) (inspect.Answer, error) {
	who, err := m.with(who, func(s *snapshot.Snapshot, who *policy.Principal) error {
		return m.demand.need(ctx, s, who, policy.Consume, config.Name{Kind: resource.Subscription, Namespace: q.Namespace, Name: q.Subscription})
	})
	if err != nil {
		return inspect.Answer{}, err
	}
	return m.inspector.Why(ctx, who, q)
}
