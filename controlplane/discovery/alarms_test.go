package discovery

import (
	"log/slog"
	"testing"
	"time"

	"github.com/weft-mesh/weft/controlplane/configstore"
)

// TestClaimsFade: what one proxy has claimed is shown for an hour after it did last,
// and since when it has.
func TestClaimsFade(t *testing.T) {
	began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	now := began
	s := New(Config{Source: still{snap: configstore.Empty("1-x", 1)}, Clock: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)})
	claim := func() { s.alarms.raise(now, "1-x", restoreSuspected, "a node says so") }
	shown := func(since time.Time) {
		t.Helper()
		switch a := s.Alarms(); {
		case since.IsZero() && len(a) != 0:
			t.Errorf("at %v: %v", now, a)
		case !since.IsZero() && (len(a) != 1 || !a[0].Since.AsTime().Equal(since)):
			t.Errorf("at %v: %v, want one since %v", now, a, since)
		}
	}
	claim()
	now = began.Add(59 * time.Minute)
	shown(began)
	claim()
	now = began.Add(118 * time.Minute)
	shown(began)
	now = began.Add(2 * time.Hour)
	shown(time.Time{})
	claim()
	shown(began.Add(2 * time.Hour))
}
