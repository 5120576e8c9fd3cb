package kafka

import (
	"context"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Seal writes e into every partition, behind what waits for it here; see store.Sealer.
// A partition without a leader fails it, as it fails Publish.
func (s *Store) Seal(ctx context.Context, name string, e *event.Event) ([]store.Position, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.From(err)
	}
	t, err := s.topic(ctx, name, true)
	if err != nil {
		return nil, err
	}
	n := len(t.leaders)
	if n == 0 {
		return nil, noPartition("kafka.seal")
	}
	all := make([]outgoing, n)
	record, _ := encode(store.Outgoing{Event: e}, nil)
	s.mu.Lock()
	for i := range all {
		all[i] = outgoing{Event: record, Size: record.size(), To: s.senderLocked(name, int32(i)).Queue} //nolint:gosec // topics have few partitions
	}
	c, err := s.out.Give(all)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.Positions(ctx)
}

var _ store.Sealer = (*Store)(nil)
