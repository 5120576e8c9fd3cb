package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

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
	at, err := s.mark(ctx, name, n, store.Outgoing{Event: e})
	if errors.Is(err, kerr.InvalidRecord) {
		// A topic that is compacted takes nothing without a key. Of one key it keeps the last.
		at, err = s.mark(ctx, name, n, store.Outgoing{Event: e, Key: e.Source})
	}
	return at, err
}

// mark writes o into each of n partitions.
func (s *Store) mark(ctx context.Context, name string, n int, o store.Outgoing) ([]store.Position, error) {
	all := make([]outgoing, n)
	record, _ := encode(o, nil)
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
