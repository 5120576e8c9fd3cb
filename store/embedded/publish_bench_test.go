package embedded

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

const publishers = 64

// writers runs f b.N times in all, from 64 goroutines.
func writers(b *testing.B, f func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var running sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for range publishers {
		running.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
}

// slowDisk is a disk where every sync takes a millisecond more.
type slowDisk struct{ vfs.FS }

type slowFile struct{ vfs.File }

func (d slowDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	return slowFile{f}, err
}

func (d slowDisk) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(from, to, c)
	return slowFile{f}, err
}

func (f slowFile) Sync() error {
	<-time.After(time.Millisecond)
	return f.File.Sync()
}

func (f slowFile) SyncData() error {
	<-time.After(time.Millisecond)
	return f.File.SyncData()
}

// BenchmarkPublish has 64 publishers write one event each at a time, on the disk as
// it is and on one where syncs bind; BenchmarkEngine is Pebble itself with as many
// writers and bytes.
func BenchmarkPublish(b *testing.B) {
	ctx := context.Background()
	for name, fs := range disks() {
		b.Run(name, func(b *testing.B) {
			s := openAt(b, fs, b.TempDir(), 0)
			defer s.Close(ctx)
			if err := s.EnsureTopic(ctx, store.TopicSpec{Name: "t", Partitions: 1}); err != nil {
				b.Fatal(err)
			}
			e := event.Event{ID: "1", Source: "/bench", Type: "bench", Data: make([]byte, 1024)}
			writers(b, func() error {
				return s.Publish(ctx, "t", []store.Outgoing{{Event: &e}}, make([]store.Result, 1))
			})
		})
	}
}

func BenchmarkEngine(b *testing.B) {
	for name, fs := range disks() {
		b.Run(name, func(b *testing.B) {
			db, err := pebble.Open(b.TempDir(), &pebble.Options{FS: fs, FormatMajorVersion: pebble.FormatNewest, MemTableSize: 32 << 20, MemTableStopWritesThreshold: 4, L0CompactionThreshold: 4})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			value := make([]byte, 1100)
			var next atomic.Uint64
			writers(b, func() error {
				return db.Set(binary.BigEndian.AppendUint64(make([]byte, 0, 8), next.Add(1)), value, pebble.Sync)
			})
		})
	}
}

func disks() map[string]vfs.FS {
	return map[string]vfs.FS{"disk": vfs.Default, "slow": slowDisk{vfs.Default}}
}
