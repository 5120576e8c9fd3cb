// Package embedded is the store inside one process: topics as logs in one
// Pebble database, written in groups and acknowledged after fsync, with single
// acks, delays and retention.
//
// # Layout
//
// One key space, by the first byte of the key:
//
//	v                          format version
//	n                          the id of the next topic: none is given twice
//	t <name>                   a topic: id, settings, first offset
//	r <topic id> <offset>      a record
//	g <topic id> <group>       a group: what is settled
//	d <due> <sequence>         a delayed record and its topic
//
// A topic has one partition, "", whose offsets rise by one; so every key keeps
// its order.
//
// # How an event is written
//
// Publish encodes records and appends a request to the queue. One goroutine, the
// committer, takes all that is queued, gives it offsets, and commits it with one
// fsync; what comes meanwhile is the next group. Commits of consumer groups
// travel in the same batches.
//
// # When the disk fails
//
// After a failed write or sync nothing is acknowledged any more: the outcome of
// what was in flight is ambiguous and everything after it is refused. Reads go
// on. Once the disk can be written (space was freed) the store closes its database
// and opens it again, and continues with what is durable.
//
// It does not wait for that where it sees a disk become full: while there is little room
// left no events are taken, so that what makes room can still be written: what consumers
// have settled, other settings of topics, and what retention removes.
package embedded

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// Kind of the driver.
const Kind = "embedded"

// formatVersion is stamped in the database.
const formatVersion = "1"

// Options of the driver.
type Options struct {
	// FS is the file system; the real one when nil.
	FS vfs.FS
	// Clock dates events, and tells which are due and which too old.
	Clock clock.Clock
}

// commitInterval is how often settled messages are made durable, where no half of a window
// waits for it; tests lengthen it.
var commitInterval = 20 * time.Millisecond

// Limits and times.
const (
	// maxEvent bounds an event with everything.
	maxEvent = 8 << 20
	// maxQueued bounds what waits for the committer, in bytes.
	maxQueued = 64 << 20
	// maxBatch bounds one commit, in bytes.
	maxBatch = 8 << 20
	// maxRead bounds what one call reads, in bytes, beyond its first event.
	maxRead = 1 << 20
	// defaultWindow is the window of a group.
	defaultWindow = 4096
	// maxDelay is the longest delay.
	maxDelay = 365 * 24 * time.Hour
	// delayPrecision is how late a delayed record is moved at most.
	delayPrecision = 10 * time.Millisecond
	// reopenEvery is the time between tries to open a failed database again.
	reopenEvery = time.Second
	// probeBytes is what must fit on a disk that was full before its database is
	// opened again.
	probeBytes = 8 << 20
	// retainEvery is the time between looks at retention, lookEvery of those at the disk.
	retainEvery = 30 * time.Second
	lookEvery   = time.Second
	// leastRoom is what is left free on the disk, or a tenth of it if that is less: the
	// database, which writes anew what it removes from, needs about as much, and what waits
	// already is still written. lookAfter is how much is written before the next look.
	leastRoom = 128 << 20
	lookAfter = 16 << 20
	// reclaimAfter is how soon what retention has removed is off the disk.
	reclaimAfter = 10 * time.Second
)

// Driver opens embedded stores.
type Driver struct{}

// Kind is "embedded".
func (Driver) Kind() string { return Kind }

// Open opens or creates the store in cfg.Dir.
func (Driver) Open(_ context.Context, cfg store.Config) (store.Store, error) {
	o, _ := cfg.Options.(Options)
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if cfg.Window == 0 {
		cfg.Window = defaultWindow
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := o.FS.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, "embedded.open", "store-failed", err)
	}
	lock, err := pebble.LockDirectory(cfg.Dir, o.FS)
	if err != nil {
		return nil, &fault.Error{Class: fault.Precondition, Op: "embedded.open", Reason: "store-in-use", Err: err,
			Msg: fmt.Sprintf("the store in %s is in use by another process%s: a store has one owner; stop that one first", cfg.Dir, owner(cfg.Dir))}
	}
	s := &Store{cfg: cfg, fs: o.FS, clock: o.Clock, lock: lock, topics: map[string]*topic{}, byID: map[uint32]*topic{},
		work: make(chan struct{}, 1), stop: make(chan struct{}), failed: make(chan struct{}, 1)}
	if o.FS == vfs.Default {
		_ = os.WriteFile(filepath.Join(cfg.Dir, "owner"), fmt.Appendf(nil, "%d", os.Getpid()), 0o600)
	}
	if err := s.openDB(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s.running.Go(s.commitLoop)
	s.running.Go(s.tend)
	return s, nil
}

// owner names the process that wrote its id last, for the error.
func owner(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, "owner"))
	if err != nil || len(b) > 20 {
		return ""
	}
	return " (pid " + strings.TrimSpace(string(b)) + ")"
}

// Store is an open embedded store.
type Store struct {
	cfg   store.Config
	fs    vfs.FS
	clock clock.Clock
	lock  *pebble.Lock

	// dbMu is held for reading while db is used, and for writing while it is
	// exchanged. It comes before mu.
	dbMu sync.RWMutex
	db   *pebble.DB

	// mu guards what is below, and the fields of topics and groups.
	mu       sync.Mutex
	topics   map[string]*topic
	byID     map[uint32]*topic
	nextID   uint32
	nextSeq  uint64 // of delayed records
	queue    []*request
	queued   int
	room     chan struct{} // closed when the queue got shorter; nil if nobody waits
	dirty    []*group
	firstDue time.Time // of delayed records; zero for none
	broken   error     // why nothing is written; nil while all is well
	full     error     // why no events are taken, though all else is written; nil likewise
	closed   bool

	unlooked int // bytes written since the disk was looked at; the committer's own

	work    chan struct{} // wakes the committer; capacity 1: one wake-up is enough
	failed  chan struct{} // wakes the tender after a failure; capacity 1 likewise
	stop    chan struct{}
	running sync.WaitGroup
	dying   atomic.Bool  // Pebble has called Fatalf
	logged  atomic.Int64 // the second in which an error of Pebble's was logged last
}

// topic is one log. Its fields are guarded by Store.mu.
type topic struct {
	id      uint32
	name    string
	spec    store.TopicSpec
	low     uint64 // first offset that is kept
	next    uint64 // offset of the next record; what is below is durable
	stored  uint64 // the time of the last record, in Unix nanoseconds: they rise
	cum     uint64 // bytes of all records ever written
	cumLow  uint64 // bytes of all records below low
	delayed int64  // records that are held back
	changed chan struct{}
	groups  map[string]*group
	gone    bool
}

// topicRecord is a topic as it is stored.
type topicRecord struct {
	ID       uint32
	Spec     store.TopicSpec
	Low      uint64
	CumLow   uint64
	NextFrom uint64 // the next offset, where there are no records to tell
}

// wakeLocked tells everyone who waits for t.
func (t *topic) wakeLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// logger passes Pebble's messages on. Pebble takes Fatalf not to return: it ends
// the goroutine, and the store counts as failed.
type logger struct{ s *Store }

func (logger) Infof(string, ...any) {}

func (l logger) Errorf(format string, args ...any) {
	// On a disk that is full Pebble tries again, and says so, without a pause.
	now := l.s.clock.Now().Unix()
	if l.s.logged.Swap(now) == now {
		return
	}
	l.s.cfg.Log.Error("embedded store", "store", l.s.cfg.Name, "message", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	l.s.dying.Store(true)
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err = fmt.Errorf("%s: %w", err.Error(), cause) // Pebble formats it without keeping it
		}
	}
	l.s.fail(err)
	runtime.Goexit()
}

// openDB opens the database and reads topics and groups.
func (s *Store) openDB() error {
	wrap := func(err error) error {
		return &fault.Error{Class: fault.Unavailable, Op: "embedded.open", Reason: "store-failed", Err: err, Msg: "the embedded store cannot be opened"}
	}
	opts := &pebble.Options{FS: s.fs, Lock: s.lock, Logger: logger{s}, FormatMajorVersion: pebble.FormatNewest,
		MemTableSize: 32 << 20, MemTableStopWritesThreshold: 4, L0CompactionThreshold: 4, FlushDelayDeleteRange: reclaimAfter}
	opts.EnsureDefaults()
	db, err := pebble.Open(s.cfg.Dir, opts)
	if err != nil {
		return wrap(err)
	}
	if err := s.load(db); err != nil {
		return errors.Join(wrap(err), db.Close())
	}
	s.dbMu.Lock()
	s.db = db
	s.dbMu.Unlock()
	return nil
}

func (s *Store) load(db *pebble.DB) error {
	v, closer, err := db.Get([]byte("v"))
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		if err := db.Set([]byte("v"), []byte(formatVersion), pebble.Sync); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		version := string(v)
		_ = closer.Close()
		if version != formatVersion {
			return fmt.Errorf("its format is version %q, this program knows %q: use the program that wrote it, or a newer one", version, formatVersion)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := scan(db, "n", func(_, v []byte) error {
		if len(v) != 4 {
			return errRecord
		}
		s.nextID = max(s.nextID, binary.BigEndian.Uint32(v))
		return nil
	}); err != nil {
		return err
	}
	if err := scan(db, "t", func(k, v []byte) error {
		var r topicRecord
		if err := json.Unmarshal(v, &r); err != nil {
			return fmt.Errorf("topic %q: %w", k[1:], err)
		}
		t := s.topics[string(k[1:])]
		if t == nil {
			t = &topic{id: r.ID, name: string(k[1:]), changed: make(chan struct{}), groups: map[string]*group{}}
			s.topics[t.name], s.byID[t.id] = t, t
		}
		t.spec, t.low, t.cumLow = r.Spec, r.Low, r.CumLow
		s.nextID = max(s.nextID, r.ID+1)
		return s.loadEnd(db, t, r)
	}); err != nil {
		return err
	}
	if err := scan(db, "g", func(k, v []byte) error {
		if len(k) < 5 {
			return errRecord
		}
		t := s.byID[binary.BigEndian.Uint32(k[1:5])]
		if t == nil {
			return nil
		}
		name := string(k[5:])
		if t.groups[name] == nil {
			g, err := decodeGroup(s, t, name, v)
			if err != nil {
				return fmt.Errorf("group %q: %w", name, err)
			}
			t.groups[name] = g
		}
		return nil
	}); err != nil {
		return err
	}
	s.firstDue = time.Time{}
	for _, t := range s.topics {
		t.delayed = 0
	}
	return scan(db, "d", func(k, v []byte) error {
		if len(k) != 17 {
			return errRecord
		}
		if len(v) >= 4 && s.byID[binary.BigEndian.Uint32(v)] != nil {
			s.byID[binary.BigEndian.Uint32(v)].delayed++
		}
		if due := time.Unix(0, int64(binary.BigEndian.Uint64(k[1:9]))); s.firstDue.IsZero() {
			s.firstDue = due
		}
		s.nextSeq = max(s.nextSeq, binary.BigEndian.Uint64(k[9:])+1)
		return nil
	})
}

// loadEnd finds where t ends.
func (s *Store) loadEnd(db *pebble.DB, t *topic, r topicRecord) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: recordKey(t.id, 0), UpperBound: recordKey(t.id+1, 0)})
	if err != nil {
		return err
	}
	defer it.Close()
	t.next, t.cum = max(r.NextFrom, r.Low), r.CumLow
	if it.Last() {
		stored, cum, err := recordMeta(it.Value())
		if err != nil {
			return fmt.Errorf("topic %q: %w", t.name, err)
		}
		t.next, t.cum = binary.BigEndian.Uint64(it.Key()[5:])+1, cum
		t.stored = uint64(stored.UnixNano())
	}
	return it.Error()
}

// scan calls f for every key that begins with prefix.
func scan(db *pebble.DB, prefix string, f func(k, v []byte) error) error {
	return scanFrom(db, []byte(prefix), f)
}

// scanFrom calls f for every key that begins as first does, from that one on.
func scanFrom(db *pebble.DB, first []byte, f func(k, v []byte) error) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: []byte{first[0] + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		if err := f(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return it.Error()
}

func recordKey(id uint32, offset uint64) []byte {
	k := make([]byte, 0, 13)
	k = append(k, 'r')
	k = binary.BigEndian.AppendUint32(k, id)
	return binary.BigEndian.AppendUint64(k, offset)
}

func groupKey(id uint32, name string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{'g'}, id), name...)
}

func delayKey(due time.Time, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'d'}, uint64(due.UnixNano())), seq)
}

// Probe tells what the store gives.
func (s *Store) Probe(context.Context) (store.Capabilities, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return store.Capabilities{}, s.broken
	}
	caps := Driver{}.States()
	caps.RedeliveryWindow = s.cfg.Window
	return caps, nil
}

// States tells what every embedded store gives; see store.Stater.
func (Driver) States() store.Capabilities {
	return store.Capabilities{Product: "Weft embedded store", Version: formatVersion, Durability: store.DurabilityDisk, Delay: maxDelay, DelayPrecision: delayPrecision,
		Order: true, Tail: true, Replay: true, TopicRetention: true, MaxEventBytes: maxEvent, RedeliveryWindow: defaultWindow, CommitInterval: commitInterval, Local: true}
}

// topicLocked finds a topic.
func (s *Store) topicLocked(op, name string) (*topic, error) {
	if s.closed {
		return nil, fault.New(fault.Unavailable, op, "store-closed", "the store is closed")
	}
	t := s.topics[name]
	if t == nil {
		return nil, fault.New(fault.NotFound, op, "unknown-topic", "the store has no topic %s", name)
	}
	return t, nil
}

// fail stops all writing.
func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.cfg.Log.Error("the embedded store cannot write; nothing is acknowledged until it can again", "store", s.cfg.Name, "error", err)
		reason := "store-failed"
		if isFull(err) {
			reason = "disk-full"
		}
		s.broken = &fault.Error{Class: fault.Unavailable, Op: "embedded", Reason: reason, RetryAfter: reopenEvery, Err: err,
			Msg: "the embedded store cannot write to its disk; it tries again by itself"}
	}
	select {
	case s.failed <- struct{}{}:
	default:
	}
}

// Close stops the store. Settled messages are durable after it.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, t := range s.topics {
		t.wakeLocked()
	}
	s.mu.Unlock()
	close(s.stop)
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, "embedded.close", "timeout", ctx.Err())
	}
	s.dbMu.Lock()
	defer s.dbMu.Unlock()
	var err error
	if s.db != nil && !s.dying.Load() {
		err = s.db.Close()
	}
	s.db = nil
	return errors.Join(err, s.lock.Close())
}
