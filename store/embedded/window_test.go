package embedded

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/weft-mesh/weft/store"
)

// TestWindowCountsWhatIsDurable: what is settled makes room once that is on
// disk, since a crash before repeats it.
func TestWindowCountsWhatIsDurable(t *testing.T) {
	var armed atomic.Bool
	blocked, release := make(chan struct{}, 100), make(chan struct{})
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if armed.Load() {
				blocked <- struct{}{}
				<-release
			}
		}
		return nil
	}))
	const window = 4
	s := openAt(t, fs, "store", window)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: "t", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureGroup(ctx, "t", "g", store.Start{}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		var res [1]store.Result
		if err := s.Publish(ctx, "t", ev(id), res[:]); err != nil {
			t.Fatal(err)
		}
	}
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: "t", Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]store.Message, 5)
	if n, err := sub.Fetch(ctx, dst); n != window || err != nil {
		t.Fatalf("fetched %d, %v", n, err)
	}
	armed.Store(true)
	var msgs []*store.Message
	for i := range dst[:window] {
		msgs = append(msgs, &dst[i])
	}
	sub.Settle(msgs)
	<-blocked
	fctx, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if n, err := sub.Fetch(fctx, dst); err == nil {
		t.Errorf("%d more are delivered before what was settled is durable", n)
	}
	armed.Store(false)
	close(release)
	if n, err := sub.Fetch(ctx, dst); n != 1 || err != nil {
		t.Errorf("then %d, %v", n, err)
	}
}
