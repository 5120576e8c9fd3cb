package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/pkg/fault"
)

// tend does what takes time: it moves delayed records when they are due, removes
// what retention no longer keeps, and opens a failed database again.
func (s *Store) tend() {
	retain := time.NewTicker(retainEvery)
	defer retain.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(s.untilDue())
		select {
		case <-s.stop:
			return
		case <-s.failed:
		case <-timer.C:
			s.moveDue(s.clock.Now())
		case <-retain.C:
			s.retain(s.clock.Now())
		case <-look.C:
			s.lookAtDisk()
		}
		if s.isBroken() {
			s.reopen()
		}
	}
}

// untilDue is the time to the next delayed record.
func (s *Store) untilDue() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return reopenEvery
	case s.firstDue.IsZero():
		return retainEvery
	}
	return max(s.firstDue.Sub(s.clock.Now()), 0)
}

func (s *Store) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken != nil
}

// lookAtDisk notes whether the disk has room for events.
func (s *Store) lookAtDisk() {
	u, err := s.fs.GetDiskUsage(s.cfg.Dir)
	if err != nil {
		return // not every file system tells: then it is full when it says so
	}
	least := min(leastRoom, u.TotalBytes/10)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.full == nil && u.AvailBytes < least:
		full := fault.New(fault.Unavailable, "embedded", "disk-full", "the disk of the embedded store has %d MiB left, and the store keeps %d for what makes room; it takes events again by itself", u.AvailBytes>>20, least>>20)
		full.RetryAfter = lookEvery
		s.full = full
		s.cfg.Log.Error("the disk of the embedded store is nearly full; no events are taken until there is room", "store", s.cfg.Name, "bytes", u.AvailBytes)
	case s.full != nil && u.AvailBytes >= least+least/4:
		s.full = nil
		s.cfg.Log.Info("the embedded store takes events again", "store", s.cfg.Name)
	}
}

// noRoom is why no events are taken; nil where they are.
func (s *Store) noRoom() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// writable tries whether the disk can be written again, and what the database has in its log
// alone too, which it writes into tables when it is opened: else it would be closed for
// nothing, and not read any more.
func (s *Store) writable() error {
	need := uint64(probeBytes)
	files, err := s.fs.List(s.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range files {
		if i, err := s.fs.Stat(s.fs.PathJoin(s.cfg.Dir, name)); err == nil && strings.HasSuffix(name, ".log") {
			need += uint64(i.Size()) //nolint:gosec // not negative
		}
	}
	if u, err := s.fs.GetDiskUsage(s.cfg.Dir); err == nil && u.AvailBytes < need {
		return syscall.ENOSPC
	}
	name := s.fs.PathJoin(s.cfg.Dir, "probe")
	f, err := s.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for range probeBytes / len(zeros) {
		if _, err = f.Write(zeros); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), s.fs.Remove(name))
}

// reopen closes the failed database and opens it again, once the disk can be
// written; until then it is read as it is. What was acknowledged is durable, so
// nothing is lost by it.
func (s *Store) reopen() {
	if s.writable() != nil {
		return
	}
	s.dbMu.Lock()
	old := s.db
	s.db = nil
	s.dbMu.Unlock()
	if old != nil {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			// A database that failed says so again here, and may panic.
			defer func() { _ = recover() }()
			_ = old.Close()
		}()
		timer := time.NewTimer(30 * time.Second)
		defer timer.Stop()
		select {
		case <-closed:
		case <-timer.C:
			s.cfg.Log.Error("the failed database does not close; restart the process", "store", s.cfg.Name)
			return
		}
	}
	s.dying.Store(false)
	if err := s.openDB(); err != nil {
		s.cfg.Log.Warn("the embedded store cannot be opened yet", "store", s.cfg.Name, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = nil
	for _, t := range s.topics {
		for _, g := range t.groups {
			g.dirtyLocked()
		}
		t.wakeLocked()
	}
	s.cfg.Log.Info("the embedded store writes again", "store", s.cfg.Name)
}

// maxMove bounds how many delayed records are moved at once.
const maxMove = 1000

// moveDue moves delayed records that are due to their topics, each in one
// atomic batch with its removal.
func (s *Store) moveDue(now time.Time) {
	type moved struct {
		key    []byte
		id     uint32
		record []byte
	}
	var due []moved
	var last *request
	next, size := time.Time{}, 0
	// Whoever publishes a delay from here on sets it again. What was before it has been
	// moved, and the database would still walk over that.
	from := []byte{'d'}
	s.mu.Lock()
	if !s.firstDue.IsZero() {
		from = delayKey(s.firstDue, 0)
	}
	s.firstDue = time.Time{}
	s.mu.Unlock()
	err := s.view(func(db *pebble.DB) error {
		err := scanFrom(db, from, func(k, v []byte) error {
			at := time.Unix(0, int64(binary.BigEndian.Uint64(k[1:9])))
			if at.After(now) || len(due) == maxMove || size > maxBatch {
				next = at
				return errStop
			}
			if len(v) < 4 {
				return errRecord
			}
			size += len(v)
			due = append(due, moved{slices.Clone(k), binary.BigEndian.Uint32(v), slices.Clone(v[4:])})
			return nil
		})
		if errors.Is(err, errStop) {
			return nil
		}
		return err
	})
	if err != nil {
		s.cfg.Log.Error("delayed events cannot be read", "store", s.cfg.Name, "error", err)
		return
	}
	for _, d := range due {
		s.mu.Lock()
		t := s.byID[d.id]
		s.mu.Unlock()
		remove := func(b *pebble.Batch) error { return b.Delete(d.key, nil) }
		r := &request{topic: t, records: [][]byte{d.record}, bytes: len(d.record), also: remove, done: make(chan struct{})}
		if t == nil {
			r = &request{change: remove, done: make(chan struct{})}
		}
		if !s.move(r) {
			return // broken or closed: it stays where it is
		}
		last = r
	}
	if last != nil {
		// They are gone from the delays before this looks there again.
		<-last.done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !next.IsZero() && (s.firstDue.IsZero() || next.Before(s.firstDue)) {
		s.firstDue = next
	}
}

var errStop = errors.New("enough")

// move queues r whatever waits already: it takes no memory that is not taken.
func (s *Store) move(r *request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.broken != nil {
		return false
	}
	s.queue = append(s.queue, r)
	s.queued += r.bytes
	s.poke()
	return true
}

// retain removes what is older or more than a topic keeps, or settled where it keeps none of that.
func (s *Store) retain(now time.Time) {
	s.mu.Lock()
	var topics []*topic
	for _, t := range s.topics {
		if t.spec.MaxAge > 0 || t.spec.MaxBytes > 0 || t.spec.DropSettled {
			topics = append(topics, t)
		}
	}
	s.mu.Unlock()
	for _, t := range topics {
		if err := s.retainTopic(t, now); err != nil {
			s.cfg.Log.Error("retention", "store", s.cfg.Name, "topic", t.name, "error", err)
		}
	}
}

func (s *Store) retainTopic(t *topic, now time.Time) error {
	s.mu.Lock()
	low, next, cum, spec, settled := t.low, t.next, t.cum, t.spec, t.settledLocked()
	s.mu.Unlock()
	to := low
	if spec.DropSettled {
		to = max(to, settled)
	}
	if spec.MaxAge > 0 {
		at, err := s.firstAt(t, now.Add(-spec.MaxAge), low, next)
		if err != nil {
			return err
		}
		to = max(to, at)
	}
	if spec.MaxBytes > 0 && cum > uint64(spec.MaxBytes) {
		at, err := s.firstCum(t, cum-uint64(spec.MaxBytes), low, next)
		if err != nil {
			return err
		}
		to = max(to, at)
	}
	if to == low {
		return nil
	}
	cumLow, err := s.cumBefore(t, to)
	if err != nil {
		return err
	}
	// First nobody reads below the new end, then it goes.
	s.mu.Lock()
	t.low, t.cumLow = to, cumLow
	t.wakeLocked() // a window that was full may have room
	s.mu.Unlock()
	return s.note(context.Background(), "embedded.retain", "t"+t.name, func(b *pebble.Batch) error {
		s.mu.Lock()
		v, err := t.recordLocked()
		gone := t.gone
		s.mu.Unlock()
		if err != nil || gone {
			return err
		}
		if err := b.Set([]byte("t"+t.name), v, nil); err != nil {
			return err
		}
		return b.DeleteRange(recordKey(t.id, 0), recordKey(t.id, to), nil)
	}, func() {})
}

// settledLocked is the offset below which all groups have durably settled what there is; 0
// where there is no group.
func (t *topic) settledLocked() (below uint64) {
	if len(t.groups) > 0 {
		below = t.next
	}
	for _, g := range t.groups {
		below = min(below, g.kept)
	}
	return below
}

// firstCum is the first offset at whose end more than cum bytes were written.
func (s *Store) firstCum(t *topic, cum, low, next uint64) (found uint64, err error) {
	err = s.view(func(db *pebble.DB) error {
		var ierr error
		found = low + uint64(sort.Search(int(next-low), func(i int) bool {
			c, err := cumAt(db, t, low+uint64(i))
			if err != nil {
				ierr = err
			}
			return c > cum
		}))
		return ierr
	})
	return found, err
}

func cumAt(db *pebble.DB, t *topic, offset uint64) (uint64, error) {
	v, closer, err := db.Get(recordKey(t.id, offset))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	_, cum, err := recordMeta(v)
	return cum, err
}

// cumBefore is the bytes of all records below offset.
func (s *Store) cumBefore(t *topic, offset uint64) (cum uint64, err error) {
	if offset == 0 {
		return 0, nil
	}
	err = s.view(func(db *pebble.DB) error {
		cum, err = cumAt(db, t, offset-1)
		return err
	})
	return cum, err
}
