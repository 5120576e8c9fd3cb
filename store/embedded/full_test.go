package embedded

import (
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// small is a file system with so much room.
type small struct {
	vfs.FS
	mu      sync.Mutex
	free    int64
	refused int
}

type smallFile struct {
	vfs.File
	of *small
}

func (f smallFile) Write(p []byte) (int, error) {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if f.of.free < int64(len(p)) {
		if f.of.refused++; f.of.refused > 1000 {
			panic("a disk that is full is written to without a pause")
		}
		return 0, syscall.ENOSPC
	}
	f.of.free -= int64(len(p))
	return f.File.Write(p)
}

func (d *small) set(free int64) {
	d.mu.Lock()
	d.free = free
	d.mu.Unlock()
}

func (d *small) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	return smallFile{f, d}, err
}

func (d *small) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(from, to, c)
	return smallFile{f, d}, err
}

func (d *small) Remove(name string) error {
	i, err := d.FS.Stat(name)
	if err == nil {
		d.mu.Lock()
		d.free += i.Size()
		d.mu.Unlock()
	}
	return d.FS.Remove(name)
}

func (d *small) GetDiskUsage(string) (vfs.DiskUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return vfs.DiskUsage{TotalBytes: 1 << 20, AvailBytes: uint64(d.free)}, nil //nolint:gosec // not negative
}

// large publishes events of 1 MiB, which cannot be compressed.
func large(t *testing.T, s *Store, n int) {
	t.Helper()
	data, random := make([]byte, 1<<20), rand.NewChaCha8([32]byte{})
	for range n {
		_, _ = random.Read(data)
		must(t, s.Publish(t.Context(), "t", []store.Outgoing{{Event: &event.Event{ID: "a", Source: "/s", Type: "t", Data: data}}}, make([]store.Result, 1)))
	}
}

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// TestReadsWhileThereIsLittleRoom: room that does not suffice to open the database again, which
// writes what is in its log, is none: what is there is read on.
func TestReadsWhileThereIsLittleRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &small{FS: vfs.NewMem(), free: 1 << 30}
		s := openAt(t, fs, "store", 0)
		topicOf(t, s, "t")
		large(t, s, 20)
		fs.set(0)
		if err := s.Publish(t.Context(), "t", ev("b"), make([]store.Result, 1)); err == nil {
			t.Fatal("a full disk took an event")
		}
		fs.set(probeBytes + 1<<20)
		pass(5 * reopenEvery)
		tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
		must(t, err)
		if _, err := tl.Next(t.Context(), make([]store.Message, 1)); err != nil {
			t.Errorf("a disk that is nearly full is not read: %v", err)
		}
		must(t, tl.Close(t.Context()))
		fs.set(1 << 30)
		pass(5 * reopenEvery)
		publishTo(t, s, "t", "c")
		must(t, s.Close(t.Context()))
	})
}

// TestFullWithinASecond: who writes fast does not fill the disk between two looks at it.
func TestFullWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := openAt(t, fs, "store", 0)
		topicOf(t, s, "t")
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 100 << 30, AvailBytes: leastRoom - 1})
		began := time.Now()
		e := []store.Outgoing{{Event: &event.Event{ID: "a", Source: "/s", Type: "t", Data: make([]byte, 1<<20)}}}
		n := 0
		for s.Publish(t.Context(), "t", e, make([]store.Result, 1)) == nil {
			n++
		}
		if n<<20 > 2*lookAfter || time.Since(began) >= lookEvery {
			t.Errorf("%d MiB were taken, in %v", n, time.Since(began))
		}
		must(t, s.Close(t.Context()))
	})
}

// TestRetentionWhileTheDiskIsFull: a disk that becomes full takes no events, but what makes
// room is done: what is settled is kept, retention can be shortened, and what it removes is
// off the disk soon. When there is room events are taken again.
func TestRetentionWhileTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		s := openAt(t, fs, "store", 0)
		topicOf(t, s, "t")
		must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
		const events = 48 // more than a memtable
		large(t, s, events)
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 100 << 30, AvailBytes: leastRoom - 1})
		pass(2 * lookEvery)
		due := []time.Time{time.Now().Add(time.Hour)}
		for what, err := range map[string]error{"an event": s.Publish(t.Context(), "t", ev("b"), make([]store.Result, 1)),
			"one for later": s.PublishDelayed(t.Context(), "t", ev("b"), due, make([]store.Result, 1))} {
			if f := fault.From(err); err == nil || f.Class != fault.Unavailable || f.Reason != "disk-full" || f.RetryAfter == 0 {
				t.Errorf("a disk that is nearly full takes %s: %v", what, err)
			}
		}
		if _, err := s.Seal(t.Context(), "t", ev("end")[0].Event); err != nil {
			t.Errorf("a topic cannot move away from a disk that is full: %v", err)
		}
		sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "t", Group: "g"})
		must(t, err)
		dst := make([]store.Message, 1)
		_, err = sub.Fetch(t.Context(), dst)
		must(t, err)
		sub.Settle([]*store.Message{&dst[0]})
		must(t, sub.Close(t.Context()))
		must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t", MaxBytes: 1 << 20}))
		pass(retainEvery + 2*reclaimAfter)
		levels := s.db.Metrics().Total()
		if used := levels.TablesSize; used > events<<20/4 {
			t.Errorf("retention of 1 MiB leaves %d MiB on the disk", used>>20)
		}
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 100 << 30, AvailBytes: 2 * leastRoom})
		pass(2 * lookEvery)
		publishTo(t, s, "t", "c")
		must(t, s.Close(t.Context()))
	})
}
