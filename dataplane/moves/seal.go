package moves

import (
	"context"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
)

// seal is the writing of the markers of one attempt, in a Marking which the binding's
// version names: attempts of another move have the same numbers. It is guarded by
// Manager.mu.
type seal struct {
	version string
	attempt uint32
	cancel  context.CancelFunc
	cut     []*configv1.Cut
	trouble string
}

func (s *seal) stop() {
	if s.cancel != nil {
		s.cancel()
	}
}

// Times of an attempt that fails.
const (
	sealTimeout = 5 * time.Second
	minRetry    = 100 * time.Millisecond
	maxRetry    = 2 * time.Second
	maxTrouble  = 512
)

// able gives the open store of a topic's old epoch where that can have markers.
func (m *Manager) able(t *snapshot.Topic) (store.Sealer, bool) {
	st, err := m.cfg.Store(t.Written().StoreUID)
	if err != nil {
		return nil, false
	}
	s, ok := st.(store.Sealer)
	return s, ok
}

// mark begins to write the markers that t, in Marking, asks this proxy for, once for
// each attempt, and gives those that are written.
func (s *session) mark(t *snapshot.Topic) (cut []*configv1.Cut, trouble string) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	sl := &s.m.moveLocked(t.UID).seal
	if sl.version != t.Move.Version || sl.attempt != t.Move.Attempt {
		sl.stop()
		ctx, cancel := context.WithCancel(s.ctx)
		*sl = seal{version: t.Move.Version, attempt: t.Move.Attempt, cancel: cancel}
		s.running.Go(func() { s.m.write(ctx, t) })
	}
	return sl.cut, sl.trouble
}

// write writes the markers of one attempt until it has, or ctx ends.
func (m *Manager) write(ctx context.Context, t *snapshot.Topic) {
	e := cutover.Marker(t.UID, t.Written().Number, t.Move.Attempt)
	retry := minRetry
	for ctx.Err() == nil {
		at, err := m.seal(ctx, t, e)
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		if s := &m.moveLocked(t.UID).seal; s.version == t.Move.Version && s.attempt == t.Move.Attempt {
			s.trouble = ""
			if err != nil {
				s.trouble = names.Text(err.Error(), maxTrouble)
			}
			for _, p := range at {
				s.cut = append(s.cut, &configv1.Cut{Partition: p.Partition, Offset: p.Offset, Minor: p.Minor})
			}
		}
		m.mu.Unlock()
		m.say()
		if err == nil {
			return
		}
		m.cfg.Log.Warn("the markers of a topic that moves cannot be written; trying again", "topic", t.Key, "error", err)
		wait(ctx, retry)
		retry = min(2*retry, maxRetry)
	}
}

// seal writes a marker into every partition of a topic's old epoch.
func (m *Manager) seal(ctx context.Context, t *snapshot.Topic, e *event.Event) ([]store.Position, error) {
	st, ok := m.able(t)
	if !ok {
		return nil, fault.New(fault.Unavailable, "move.seal", "store-not-open", "the event store of epoch %d is not open here, or has no markers", t.Written().Number)
	}
	ctx, cancel := context.WithTimeout(ctx, sealTimeout)
	defer cancel()
	return st.Seal(ctx, t.Written().Physical, e)
}
