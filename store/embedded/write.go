package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weft-mesh/weft/pkg/duration"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// request is what the committer writes: the records of one Publish, or a change
// of something else.
type request struct {
	topic   *topic
	records [][]byte
	due     []time.Time // with delayed records
	first   uint64      // offset of the first record, set by the committer
	// change writes something else into the batch; also does so beside
	// records: it removes them from what is held back.
	change, also func(*pebble.Batch) error
	// kept notes a change of what has this key, once it is durable, with Store.mu held. A
	// batch has one of a key at most, so that the next finds what is noted.
	kept  func()
	key   string
	bytes int
	err   error
	done  chan struct{}
}

// Publish writes events; see store.Store.
func (s *Store) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	if err := s.noRoom(); err != nil {
		failAll(res, err)
		return err
	}
	return s.publish(ctx, topic, events, nil, res)
}

// PublishDelayed writes events that become readable at due; see store.Delayer.
func (s *Store) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	if err := s.noRoom(); err != nil {
		failAll(res, err)
		return err
	}
	limit := s.clock.Now().Add(maxDelay)
	for _, d := range due {
		if d.After(limit) {
			err := fault.New(fault.Invalid, "embedded.publish", "delay", "the delay is longer than %s", duration.Text(maxDelay))
			failAll(res, err)
			return err
		}
	}
	return s.publish(ctx, topic, events, due, res)
}

// Seal writes e into the one partition; see store.Sealer.
func (s *Store) Seal(ctx context.Context, topic string, e *event.Event) ([]store.Position, error) {
	res := make([]store.Result, 1)
	if err := s.publish(ctx, topic, []store.Outgoing{{Event: e}}, nil, res); err != nil {
		return nil, err
	}
	return []store.Position{res[0].Pos}, nil
}

func failAll(res []store.Result, err error) {
	for i := range res {
		res[i] = store.Result{Err: err}
	}
}

func (s *Store) publish(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	const op = "embedded.publish"
	r := &request{due: due, done: make(chan struct{}), records: make([][]byte, len(events))}
	now := s.clock.Now()
	size := 0
	for i := range events {
		n := events[i].Held() + 256
		if n > maxEvent {
			err := fault.New(fault.TooLarge, op, "event-too-large", "the event has %d bytes, the store takes %d", n, maxEvent)
			failAll(res, err)
			return err
		}
		size += n
	}
	slab := make([]byte, 0, size) // one allocation for all records
	for i := range events {
		start := len(slab)
		slab = appendRecord(slab, events[i].Event, now)
		r.records[i] = slab[start:len(slab):len(slab)]
	}
	r.bytes = len(slab)
	if err := s.enqueue(ctx, op, topic, r); err != nil {
		failAll(res, err)
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		err := &fault.Error{Class: fault.Ambiguous, Op: op, Reason: "ambiguous", Err: ctx.Err(), Msg: "the call ended before the store answered; the event may have been kept"}
		failAll(res, err)
		return err
	}
	if r.err != nil {
		failAll(res, r.err)
		return r.err
	}
	for i := range res {
		res[i] = store.Result{Pos: store.Position{Offset: r.first + uint64(i)}}
	}
	return nil
}

// enqueue hands r to the committer; it waits while the queue is full.
func (s *Store) enqueue(ctx context.Context, op, topic string, r *request) error {
	for {
		if ctx.Err() != nil {
			return fault.From(ctx.Err())
		}
		s.mu.Lock()
		if r.change == nil {
			t, err := s.topicLocked(op, topic)
			if err != nil {
				s.mu.Unlock()
				return err
			}
			r.topic = t
		} else if s.closed {
			s.mu.Unlock()
			return fault.New(fault.Unavailable, op, "store-closed", "the store is closed")
		}
		if s.broken != nil {
			err := s.broken
			s.mu.Unlock()
			return err
		}
		if s.queued == 0 || s.queued+r.bytes <= maxQueued {
			s.queue = append(s.queue, r)
			s.queued += r.bytes
			s.mu.Unlock()
			s.poke()
			return nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return &fault.Error{Class: fault.Throttled, Op: op, Reason: "store-full", RetryAfter: 100 * time.Millisecond, Err: ctx.Err(), Msg: "the store is busy; nothing was kept"}
		}
	}
}

// poke wakes the committer.
func (s *Store) poke() {
	select {
	case s.work <- struct{}{}:
	default:
	}
}

// commitLoop is the committer: the only goroutine that writes records.
func (s *Store) commitLoop() {
	tick := time.NewTicker(commitInterval)
	defer tick.Stop()
	for {
		groups := false
		select {
		case <-s.work:
		case <-tick.C:
			groups = true
		case <-s.stop:
			for s.commitOnce(true) {
			}
			return
		}
		for s.commitOnce(groups) {
			groups = false
		}
	}
}

// commitOnce writes one group of requests, and with groups also what consumer
// groups have settled; it reports whether there may be more.
func (s *Store) commitOnce(groups bool) (more bool) {
	batch, settled := s.takeQueue(groups)
	if len(batch) == 0 && len(settled) == 0 {
		return false
	}
	// Pebble ends this goroutine when it cannot commit (see logger); the work
	// is done in one of its own, so that the committer lives on.
	result := errors.New("the commit did not finish")
	done := make(chan struct{})
	go func() {
		defer close(done)
		result = s.write(batch, settled)
	}()
	<-done
	if result != nil {
		s.fail(result)
		result = &fault.Error{Class: fault.Ambiguous, Op: "embedded.publish", Reason: "ambiguous", Err: result, Msg: "the store failed while it wrote; the event may have been kept"}
	}
	for _, r := range batch {
		s.unlooked += r.bytes
	}
	if s.unlooked >= lookAfter {
		s.unlooked = 0
		s.lookAtDisk()
	}
	s.finish(batch, settled, result)
	return true
}

// takeQueue takes what fits in a batch.
func (s *Store) takeQueue(groups bool) (batch []*request, settled []groupState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		for _, r := range s.queue {
			r.err = s.broken
			close(r.done)
		}
		s.queue, s.queued = nil, 0
		s.roomLocked()
		return nil, nil
	}
	size, n := 0, 0
	changed := map[string]bool{}
	for n < len(s.queue) && (n == 0 || size+s.queue[n].bytes <= maxBatch) {
		r := s.queue[n]
		if r.kept != nil {
			if changed[r.key] {
				break
			}
			changed[r.key] = true
		}
		size += r.bytes
		n++
	}
	batch = s.queue[:n:n]
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	s.queued -= size
	s.roomLocked()
	if groups || n > 0 || slices.ContainsFunc(s.dirty, (*group).pressingLocked) {
		for _, g := range s.dirty {
			st := g.stateLocked()
			if g.gone {
				close(st.done) // its deletion may be in this batch: it must not come after that
				continue
			}
			settled = append(settled, st)
		}
		s.dirty = nil
	}
	return batch, settled
}

func (s *Store) roomLocked() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// write makes one batch durable. Offsets are given here: nothing else writes.
func (s *Store) write(requests []*request, settled []groupState) error {
	s.dbMu.RLock()
	defer s.dbMu.RUnlock()
	if s.db == nil {
		return errors.New("the database is not open")
	}
	b := s.db.NewBatch()
	defer b.Close()
	type end struct{ next, cum, stored uint64 }
	ends := map[*topic]end{}
	delayed := map[*topic]int64{}
	key := make([]byte, 0, 17)
	for _, r := range requests {
		if r.change != nil {
			if err := r.change(b); err != nil {
				return err
			}
			continue
		}
		if r.due != nil {
			delayed[r.topic] += int64(len(r.records))
			for i, rec := range r.records {
				s.mu.Lock()
				seq := s.nextSeq
				s.nextSeq++
				s.mu.Unlock()
				v := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(rec)), r.topic.id), rec...)
				if err := b.Set(delayKey(r.due[i], seq), v, nil); err != nil {
					return err
				}
			}
			continue
		}
		if r.also != nil {
			if err := r.also(b); err != nil {
				return err
			}
			delayed[r.topic] -= int64(len(r.records))
		}
		e, ok := ends[r.topic]
		if !ok {
			s.mu.Lock()
			e = end{r.topic.next, r.topic.cum, r.topic.stored}
			s.mu.Unlock()
		}
		r.first = e.next
		for _, rec := range r.records {
			e.cum += uint64(len(rec))
			e.stored = setPlace(rec, e.cum, e.stored)
			key = append(key[:0], 'r')
			key = binary.BigEndian.AppendUint32(key, r.topic.id)
			key = binary.BigEndian.AppendUint64(key, e.next)
			if err := b.Set(key, rec, nil); err != nil {
				return err
			}
			e.next++
		}
		ends[r.topic] = e
	}
	for _, g := range settled {
		if err := b.Set(g.key, g.value, nil); err != nil {
			return err
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, e := range ends {
		t.next, t.cum, t.stored = e.next, e.cum, e.stored
		t.wakeLocked()
	}
	for t, n := range delayed {
		t.delayed += n
	}
	for _, r := range requests {
		if r.kept != nil {
			r.kept()
		}
	}
	return nil
}

// finish answers the requests.
func (s *Store) finish(batch []*request, settled []groupState, err error) {
	for _, r := range batch {
		r.err = err
		close(r.done)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range settled {
		if err != nil {
			g.g.dirtyLocked() // again, once the store is well
		} else {
			g.g.keptLocked(g.floor)
		}
		close(g.done)
	}
	delayed := false
	for _, r := range batch {
		delayed = delayed || r.due != nil
		for _, d := range r.due {
			if err == nil && (s.firstDue.IsZero() || d.Before(s.firstDue)) {
				s.firstDue = d
			}
		}
	}
	if delayed {
		select {
		case s.failed <- struct{}{}: // the tender looks at the new due time
		default:
		}
	}
}

// do has the committer write a change and waits for it.
func (s *Store) do(ctx context.Context, op string, change func(*pebble.Batch) error) error {
	return s.note(ctx, op, "", change, nil)
}

// note is do of what has a key. kept is called once the change is durable, whether or not
// somebody waits then.
func (s *Store) note(ctx context.Context, op, key string, change func(*pebble.Batch) error, kept func()) error {
	r := &request{change: change, kept: kept, key: key, done: make(chan struct{})}
	if err := s.enqueue(ctx, op, "", r); err != nil {
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fault.Wrap(fault.Ambiguous, op, "ambiguous", ctx.Err())
	}
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
