package embedded

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weft-mesh/weft/store"
)

// TestDelaysFromTheFirst: a look for what is due begins with the first that is held back, and
// not where the database walks over each that was.
func TestDelaysFromTheFirst(t *testing.T) {
	s := openAt(t, vfs.NewMem(), "store", 0)
	defer func() { must(t, s.Close(t.Context())) }()
	topicOf(t, s, "t")
	now := time.Now()
	record := func(id string) []byte { return appendRecord([]byte{0, 0, 0, 0}, ev(id)[0].Event, now) }
	must(t, s.PublishDelayed(t.Context(), "t", ev("first"), []time.Time{now.Add(2 * time.Hour)}, make([]store.Result, 1)))
	must(t, s.db.Set(delayKey(now.Add(time.Hour), 100), record("before"), nil))
	must(t, s.PublishDelayed(t.Context(), "t", ev("last"), []time.Time{now.Add(3 * time.Hour)}, make([]store.Result, 1)))
	for _, hours := range []time.Duration{2, 3} {
		s.moveDue(now.Add(hours * time.Hour))
	}
	tl, err := s.Tail(t.Context(), store.TailRequest{Topic: "t"})
	must(t, err)
	dst := make([]store.Message, 3)
	n, err := tl.Next(t.Context(), dst)
	must(t, err)
	if n != 2 || dst[0].ID != "first" || dst[1].ID != "last" {
		t.Errorf("%d events, of them %q and %q", n, dst[0].ID, dst[1].ID)
	}
	must(t, tl.Close(t.Context()))
}
