package embedded

import (
	"context"
	"encoding/binary"
	"sort"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// meshRedelivered marks a record that was delivered before it was written: a
// parked one.
const meshRedelivered = "retry-attempt"

// view runs f with the database.
func (s *Store) view(f func(*pebble.DB) error) error {
	s.dbMu.RLock()
	defer s.dbMu.RUnlock()
	if s.db == nil {
		return fault.New(fault.Unavailable, "embedded.read", "store-failed", "the store is being opened again")
	}
	if err := f(s.db); err != nil {
		return &fault.Error{Class: fault.Unavailable, Op: "embedded.read", Reason: "store-failed", Err: err, Msg: "the embedded store cannot read its disk"}
	}
	return nil
}

// readAt reads the records of the first k of sorted offsets into dst, as many as
// maxRead lets, without those that are not there any more.
func (s *Store) readAt(t *topic, offsets []uint64, dst []store.Message) (out []store.Message, k int, err error) {
	out, k = dst[:0], len(offsets)
	size := 0
	err = s.view(func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: recordKey(t.id, offsets[0]), UpperBound: recordKey(t.id, offsets[len(offsets)-1]+1)})
		if err != nil {
			return err
		}
		defer it.Close()
		i := 0
		for it.First(); it.Valid() && i < len(offsets); it.Next() {
			at := binary.BigEndian.Uint64(it.Key()[5:])
			for i < len(offsets) && offsets[i] < at {
				i++
			}
			if i == len(offsets) || offsets[i] != at {
				continue
			}
			if size += len(it.Value()); size > maxRead && len(out) > 0 {
				k = i
				break
			}
			msg, err := message(at, it.Value())
			if err != nil {
				return err
			}
			out = append(out, msg)
			i++
		}
		return it.Error()
	})
	return out, k, err
}

func message(offset uint64, v []byte) (store.Message, error) {
	e, stored, err := decodeRecord(v)
	if err != nil {
		return store.Message{}, err
	}
	_, again := event.Lookup(e.Mesh, meshRedelivered)
	return store.Message{Event: e, Pos: store.Position{Offset: offset}, Stored: stored, Redelivered: again}, nil
}

// tail is a reader without a group.
type tail struct {
	s      *Store
	t      *topic
	next   uint64
	closed chan struct{}
}

// Tail reads a topic without a group.
func (s *Store) Tail(_ context.Context, r store.TailRequest) (store.Tail, error) {
	s.mu.Lock()
	t, err := s.topicLocked("embedded.tail", r.Topic)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	low, next := t.low, t.next
	s.mu.Unlock()
	from, err := s.start(t, r.From, low, next)
	if err != nil {
		return nil, err
	}
	return &tail{s: s, t: t, next: from, closed: make(chan struct{})}, nil
}

// start is the offset where st begins.
func (s *Store) start(t *topic, st store.Start, low, next uint64) (uint64, error) {
	for _, p := range st.After {
		if p.Partition == "" {
			return min(max(p.Offset+1, low), next), nil
		}
	}
	switch {
	case st.End:
		return next, nil
	case !st.At.IsZero():
		return s.firstAt(t, st.At, low, next)
	}
	return low, nil
}

// firstAt is the offset of the first record stored at or after at. Records are
// in the order of their time.
func (s *Store) firstAt(t *topic, at time.Time, low, next uint64) (found uint64, err error) {
	err = s.view(func(db *pebble.DB) error {
		var ierr error
		found = low + uint64(sort.Search(int(next-low), func(i int) bool {
			v, closer, err := db.Get(recordKey(t.id, low+uint64(i)))
			if err != nil {
				if err != pebble.ErrNotFound { //nolint:errorlint // pebble returns it bare
					ierr = err
				}
				return false
			}
			defer closer.Close()
			stored, _, err := recordMeta(v)
			if err != nil {
				ierr = err
			}
			return !stored.Before(at)
		}))
		return ierr
	})
	return found, err
}

// Next waits for messages.
func (x *tail) Next(ctx context.Context, dst []store.Message) (int, error) {
	s, t := x.s, x.t
	for {
		s.mu.Lock()
		low, next, changed, gone, closed := t.low, t.next, t.changed, t.gone, s.closed
		s.mu.Unlock()
		switch {
		case closed:
			return 0, fault.New(fault.Unavailable, "embedded.tail", "store-closed", "the store is closed")
		case gone:
			return 0, fault.New(fault.NotFound, "embedded.tail", "unknown-topic", "the topic was deleted")
		}
		x.next = max(x.next, low)
		if n := min(uint64(len(dst)), next-min(x.next, next)); n > 0 {
			offsets := make([]uint64, n)
			for i := range offsets {
				offsets[i] = x.next + uint64(i)
			}
			msgs, k, err := s.readAt(t, offsets, dst)
			if err != nil {
				return 0, err
			}
			x.next += uint64(k)
			if len(msgs) > 0 {
				return len(msgs), nil
			}
			continue
		}
		select {
		case <-changed:
		case <-x.closed:
			return 0, fault.New(fault.Canceled, "embedded.tail", "closed", "the tail is closed")
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

// AtEnd reports whether it has given everything.
func (x *tail) AtEnd() bool {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	return x.next >= x.t.next && !x.t.gone && !x.s.closed
}

// Mark is where the topic ends now.
func (x *tail) Mark(context.Context) (passed func() bool, err error) {
	x.s.mu.Lock()
	end := x.t.next
	x.s.mu.Unlock()
	return func() bool { return x.next >= end }, nil
}

// Close ends the tail.
func (x *tail) Close(context.Context) error {
	select {
	case <-x.closed:
	default:
		close(x.closed)
	}
	return nil
}
