package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/fuzztest"
	"github.com/weft-mesh/weft/store"
)

// acked is what publishers were told is kept.
type acked struct {
	mu  sync.Mutex
	ids []string
}

func (a *acked) add(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ids = append(a.ids, id)
}

func (a *acked) all() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.ids...)
}

func ev(id string) []store.Outgoing {
	return []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte(id)}}}
}

// publishAll publishes n events from w goroutines, and records what is
// acknowledged; errors end a publisher unless again.
func publishAll(ctx context.Context, s *Store, a *acked, prefix string, w, n int, again bool) {
	var wg sync.WaitGroup
	for i := range w {
		wg.Go(func() {
			for k := range n {
				id := fmt.Sprintf("%s-%d-%d", prefix, i, k)
				var res [1]store.Result
				if err := s.Publish(ctx, "t", ev(id), res[:]); err == nil {
					a.add(id)
				} else if !again {
					return
				}
			}
		})
	}
	wg.Wait()
}

// missing are the ids of want that a tail from the beginning does not give.
func missing(t *testing.T, s *Store, want []string) []string {
	t.Helper()
	if len(want) == 0 {
		return nil
	}
	tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	left := int(s.topics["t"].next - s.topics["t"].low) //nolint:gosec // small
	s.mu.Unlock()
	got := map[string]bool{}
	dst := make([]store.Message, 100)
	for left > 0 {
		n, err := tl.Next(t.Context(), dst)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range dst[:n] {
			got[m.ID] = true
		}
		left -= n
	}
	var out []string
	for _, id := range want {
		if !got[id] {
			out = append(out, id)
		}
	}
	return out
}

// TestPowerLoss cuts the power, with all that is not synced lost, at every k-th
// operation on the file system: what was acknowledged before is there after.
func TestPowerLoss(t *testing.T) {
	mem := vfs.NewCrashableMem()
	type cut struct {
		at    int64
		fs    *vfs.MemFS
		acked []string
	}
	var a acked
	var mu sync.Mutex
	var cuts []cut
	var ops atomic.Int64
	var armed atomic.Bool
	const every, most = 3, 120
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || !armed.Load() {
			return nil
		}
		if n := ops.Add(1); n%every == 0 {
			mu.Lock()
			defer mu.Unlock()
			if len(cuts) < most {
				// What is acknowledged by now must be in the clone.
				before := a.all()
				cuts = append(cuts, cut{n, mem.CrashClone(vfs.CrashCloneCfg{}), before})
			}
		}
		return nil
	}))
	s := openAt(t, fs, "store", 0)
	if err := s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}); err != nil {
		t.Fatal(err)
	}
	armed.Store(true)
	publishAll(t.Context(), s, &a, "e", 8, 60, false)
	armed.Store(false)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(cuts) < 20 || len(a.ids) != 480 {
		t.Fatalf("%d cuts, %d acknowledged: the test does not test", len(cuts), len(a.ids))
	}
	nonEmpty := 0
	for _, c := range cuts {
		s := openAt(t, c.fs, "store", 0)
		if lost := missing(t, s, c.acked); len(lost) > 0 {
			t.Errorf("power lost at operation %d: %d of %d acknowledged events are gone: %v …", c.at, len(lost), len(c.acked), lost[0])
		}
		if len(c.acked) > 0 {
			nonEmpty++
		}
		// It goes on from there.
		if err := s.Publish(t.Context(), "t", ev("after"), make([]store.Result, 1)); err != nil {
			t.Errorf("after power loss at operation %d: %v", c.at, err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d cuts, %d of them after acknowledgements", len(cuts), nonEmpty)
}

// TestDiskFails fails writes and syncs from a random operation on: nothing is
// acknowledged after the first failure, reads go on, and once the disk is well
// the store writes again, with all that was acknowledged.
func TestDiskFails(t *testing.T) {
	for name, failure := range map[string]struct {
		err    error
		reason string
		kinds  map[errorfs.OpKind]bool
	}{
		"sync":      {errors.New("input/output error"), "store-failed", map[errorfs.OpKind]bool{errorfs.OpFileSync: true, errorfs.OpFileSyncData: true, errorfs.OpFileSyncTo: true}},
		"disk full": {syscall.ENOSPC, "disk-full", map[errorfs.OpKind]bool{errorfs.OpFileWrite: true, errorfs.OpCreate: true}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 8 {
				var bad atomic.Bool
				var left atomic.Int64
				left.Store(int64(5 + rand.IntN(60)))
				var armed atomic.Bool
				var failed atomic.Bool
				fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
					if !armed.Load() || !failure.kinds[op.Kind] {
						return nil
					}
					if bad.Load() || left.Add(-1) <= 0 {
						bad.Store(true)
						failed.Store(true)
						return failure.err
					}
					return nil
				}))
				s := openAt(t, fs, "store", 0)
				if err := s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}); err != nil {
					t.Fatal(err)
				}
				var a acked
				publishAll(t.Context(), s, &a, "before", 4, 5, false)
				armed.Store(true)
				publishAll(t.Context(), s, &a, "during", 4, 200, false)
				if !failed.Load() {
					t.Fatal("the disk did not fail")
				}
				// Nothing is acknowledged now, with the reason.
				err := s.Publish(t.Context(), "t", ev("refused"), make([]store.Result, 1))
				if err == nil || fault.ClassOf(err) != fault.Unavailable && fault.ClassOf(err) != fault.Ambiguous {
					t.Errorf("a publish on a disk that fails: %v", err)
				} else if f := fault.From(err); f.Class == fault.Unavailable && f.Reason != failure.reason {
					t.Errorf("the reason is %q, want %q: %v", f.Reason, failure.reason, err)
				}
				armed.Store(false)
				bad.Store(false)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				for {
					if err = s.Publish(ctx, "t", ev("well"), make([]store.Result, 1)); err == nil {
						break
					}
					if ctx.Err() != nil {
						t.Fatalf("the disk is well, the store is not: %v", err)
					}
				}
				cancel()
				if lost := missing(t, s, append(a.all(), "well")); len(lost) > 0 {
					t.Errorf("%d acknowledged events are gone: %v …", len(lost), lost[0])
				}
				if err := s.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestUnknownFormat: a store of another version is refused and left as it is.
func TestUnknownFormat(t *testing.T) {
	fs := vfs.NewMem()
	s := openAt(t, fs, "store", 0)
	if err := s.db.Set([]byte("v"), []byte("99"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := Driver{}.Open(t.Context(), store.Config{Dir: "store", Options: Options{FS: fs}})
	if err == nil || fault.From(err).Reason != "store-failed" {
		t.Errorf("%v", err)
	}
}

// FuzzRecord: what decodes encodes to the same again, and damage allocates
// little.
func FuzzRecord(f *testing.F) {
	e := event.Event{ID: "1", Source: "s", Type: "t", Subject: "x", Ext: []event.Attr{{Name: "a", Value: "b"}}, Mesh: []event.Attr{{Name: "m", Value: "n"}}, Data: []byte("data")}
	f.Add(appendRecord(nil, &e, time.Unix(1, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e event.Event
		var stored time.Time
		var err error
		if n := fuzztest.Allocated(func() { e, stored, err = decodeRecord(b) }); n > 64*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		again, at, err := decodeRecord(appendRecord(nil, &e, stored))
		if err != nil || !at.Equal(stored) || again.ID != e.ID || string(again.Data) != string(e.Data) || len(again.Ext) != len(e.Ext) {
			t.Errorf("%+v %v, then %+v %v %v", e, stored, again, at, err)
		}
	})
}

// FuzzGroup: a group's state is refused, or means what is written for it again:
// nothing that was settled comes again, nothing that was not is taken for it.
func FuzzGroup(f *testing.F) {
	f.Add(binary.AppendUvarint(binary.AppendUvarint(binary.BigEndian.AppendUint64(nil, 7), 1), 300))
	f.Add(binary.AppendUvarint(binary.BigEndian.AppendUint64(nil, math.MaxUint64), 2))
	f.Add(binary.AppendUvarint(binary.BigEndian.AppendUint64(nil, 1), math.MaxUint64))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0x80})
	s := &Store{cfg: store.Config{Window: 16}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var g *group
		var err error
		if n := fuzztest.Allocated(func() { g, err = decodeGroup(s, &topic{}, "g", b) }); n > 512*uint64(len(b))+256<<10 {
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			return
		}
		for o := range g.settled {
			if o < g.floor || g.restored <= o {
				t.Errorf("%d is settled, the floor is %d, %d was restored", o, g.floor, g.restored)
			}
		}
		again, err := decodeGroup(s, &topic{}, "g", g.encodeLocked())
		if err != nil || again.floor != g.floor || again.restored != g.restored || !maps.Equal(again.settled, g.settled) {
			t.Errorf("%d %v became %d %v, %v", g.floor, g.settled, again.floor, again.settled, err)
		}
	})
}
