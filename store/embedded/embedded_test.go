package embedded

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
)

var expect = store.Capabilities{Durability: store.DurabilityDisk, Delay: maxDelay, DelayPrecision: delayPrecision, Order: true, Tail: true, Replay: true, TopicRetention: true, Local: true}

func openAt(t testing.TB, fs vfs.FS, dir string, window int) *Store {
	t.Helper()
	st, err := Driver{}.Open(t.Context(), store.Config{Name: "test", Dir: dir, Window: window, Options: Options{FS: fs}})
	if err != nil {
		t.Fatal(err)
	}
	return st.(*Store)
}

func conform(t *testing.T, fs vfs.FS, dir string) { storetest.Run(t, harness(fs, dir)) }

func TestHalfWindow(t *testing.T) {
	often := commitInterval
	commitInterval = time.Hour
	t.Cleanup(func() { commitInterval = often })
	storetest.HalfWindow(t, harness(vfs.NewMem(), "store"))
}

func harness(fs vfs.FS, dir string) storetest.Harness {
	n := 0
	return storetest.Harness{
		Open:      func(t *testing.T, window int) store.Store { return openAt(t, fs, dir, window) },
		Exclusive: true,
		Topic: func(_ *testing.T, name string) string {
			n++
			return fmt.Sprintf("%s-%d", name, n)
		},
		Expect: expect,
	}
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

// TestSettledStaysSettled: what was settled above the oldest unsettled event does
// not come again after a restart, also when the place of the group has moved
// over it, and nothing of it is left behind.
func TestSettledStaysSettled(t *testing.T) {
	ctx, fs := t.Context(), vfs.NewMem()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st := openAt(t, fs, "store", 0)
	must(st.EnsureTopic(ctx, store.TopicSpec{Name: "t"}))
	must(st.EnsureGroup(ctx, "t", "g", store.Start{}))
	for i := range 20 {
		must(st.Publish(ctx, "t", ev(strconv.Itoa(i)), make([]store.Result, 1)))
	}
	sub, err := st.Subscribe(ctx, store.SubscribeRequest{Topic: "t", Group: "g"})
	must(err)
	dst := make([]store.Message, 20)
	for n := 0; n < 20; {
		got, err := sub.Fetch(ctx, dst[n:])
		must(err)
		n += got
	}
	want := ""
	for i := range dst {
		if i%3 == 0 {
			sub.Settle([]*store.Message{&dst[i]})
		} else {
			want += dst[i].ID + " "
		}
	}
	must(sub.Close(ctx))
	must(st.Close(ctx))
	st = openAt(t, fs, "store", 0)
	sub, err = st.Subscribe(ctx, store.SubscribeRequest{Topic: "t", Group: "g"})
	must(err)
	got := ""
	for len(got) < len(want) {
		one := make([]store.Message, 1)
		_, err := sub.Fetch(ctx, one)
		must(err)
		got += one[0].ID + " "
		sub.Settle([]*store.Message{&one[0]})
	}
	if got != want {
		t.Errorf("%s came, want %s", got, want)
	}
	st.mu.Lock()
	g := sub.(*member).g
	if len(g.settled) != 0 || g.floor != 20 {
		t.Errorf("%v is left, the group is at %d", g.settled, g.floor)
	}
	st.mu.Unlock()
	must(sub.Close(ctx))
	must(st.Close(ctx))
}
