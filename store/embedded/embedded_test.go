package embedded

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

var expect = store.Capabilities{Durability: store.DurabilityDisk, Delay: maxDelay, Replay: true, TopicRetention: true, Local: true}

func openAt(t testing.TB, fs vfs.FS, dir string, window int) *Store {
	t.Helper()
	st, err := Driver{}.Open(t.Context(), store.Config{Name: "test", Dir: dir, Window: window, Options: Options{FS: fs}})
	if err != nil {
		t.Fatal(err)
	}
	return st.(*Store)
}

func conform(t *testing.T, fs vfs.FS, dir string) {
	n := 0
	storetest.Run(t, storetest.Harness{
		Open:      func(t *testing.T, window int) store.Store { return openAt(t, fs, dir, window) },
		Exclusive: true,
		Topic: func(_ *testing.T, name string) string {
			n++
			return fmt.Sprintf("%s-%d", name, n)
		},
		Expect: expect,
	})
}

func TestConformanceInMemory(t *testing.T) { conform(t, vfs.NewMem(), "store") }

func TestConformanceOnDisk(t *testing.T) { conform(t, vfs.Default, t.TempDir()) }

func TestOneOwner(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, nil, dir, 0)
	_, err := Driver{}.Open(t.Context(), store.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by another process (pid ") {
		t.Errorf("a second opener gets %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := openAt(t, nil, dir, 0).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
