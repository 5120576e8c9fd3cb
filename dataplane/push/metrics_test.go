package push

import (
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/labels"
)

// series are the Subscriptions that metrics are of, once each.
func series(t *testing.T, reg *prometheus.Registry) []string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "subscription" {
					found[l.GetValue()] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// TestNamesOverLimit: a target for whose name there is no room is counted with the others,
// also where it is asked for its consent.
func TestNamesOverLimit(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			w.Header().Set("WebHook-Allowed-Origin", "*")
		}
	})
	w := newWorld(t, loopback, sub("orders", h.URL, func(s *snapshot.Subscription) { s.Push = nil }))
	w.pusher.names.Max = 0
	w.snaps.Store(w.snapshot(sub("orders", h.URL, asks)))
	w.publish("orders", ev("1"))
	w.settled("orders")
	w.stop()
	if got := series(t, w.reg); !slices.Equal(got, []string{labels.Other}) {
		t.Errorf("there are series of %v", got)
	}
}

// TestMadeAgain: where a Subscription is deleted and made again, what is still under way of
// the old one takes no series of the new one with it, whichever ends first.
func TestMadeAgain(t *testing.T) {
	for name, ended := range map[string][2]int{"the old one ends first": {0, 1}, "the new one ends first": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			p := New(Config{Metrics: reg, Log: slog.New(slog.DiscardHandler)})
			s := sub("orders", "http://127.0.0.1", nil)
			old := p.newTarget(s)
			again := *s
			again.UID = "another"
			targets := []*target{old, p.newTarget(&again)}
			targets[ended[0]].forget()
			if got := series(t, reg); !slices.Equal(got, []string{"orders"}) {
				t.Errorf("while one is there, there are series of %v", got)
			}
			targets[ended[1]].forget()
			if got := series(t, reg); len(got) != 0 {
				t.Errorf("once both have ended, there are series of %v", got)
			}
		})
	}
}
