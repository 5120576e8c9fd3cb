package pipeline

import (
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/labels"
)

// topics are the values of a counter or a gauge, or the counts of a histogram, by topic,
// store or kind.
func (w *world) topics(metric string) map[string]float64 {
	w.Helper()
	families, err := w.reg.Gather()
	w.must(err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if f.GetName() == metric && (l.GetName() == "topic" || l.GetName() == "store" || l.GetName() == "kind") {
					out[l.GetValue()] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
		}
	}
	return out
}

// TestTopicsOfMetrics: topics beyond the limit are counted together, which can be seen,
// and a topic or a store that was deleted has no series any more.
func TestTopicsOfMetrics(t *testing.T) {
	w := newWorld(t, 0)
	snap := *w.p.cfg.Snapshots.Get()
	main := snapshot.Key{Namespace: "demo", Name: "main"}
	snap.Stores = map[string]*snapshot.Store{uidStore: {Key: main, UID: uidStore}}
	w.p.cfg.Snapshots.Store(&snap)
	w.p.metrics.names.Max = 1
	publish := func(topic string, in int) {
		t.Helper()
		types := make([]string, in)
		for i := range types {
			types[i] = "t"
		}
		if _, err := w.publish(topic, events(types...)); err != nil {
			t.Fatal(err)
		}
	}
	publish("orders", 1)
	publish("audit", 2)
	publish("small", 3)
	if _, err := w.publish("audit", events("")); err == nil {
		t.Error("an event without a type was published")
	}
	for _, metric := range []string{"weft_proxy_publish_events_total", "weft_proxy_publish_event_bytes"} {
		if got := w.topics(metric); len(got) != 2 || got["orders"] != 1 || got[labels.Other] != 5 {
			t.Errorf("%s: %v", metric, got)
		}
	}
	if got := w.topics("weft_proxy_publish_errors_total"); len(got) != 1 || got[labels.Other] != 1 {
		t.Errorf("what was refused: %v", got)
	}
	for topic, n := range map[string]int{"orders": 1, "audit": 2, "small": 3} {
		for range n { // one that is wrong is a request that failed
			if _, err := w.p.Request(t.Context(), local, "demo", topic, event.Event{}, time.Second); err == nil {
				t.Error("an event without a type was published")
			}
		}
	}
	if got := w.topics("weft_proxy_requests_total"); len(got) != 2 || got["orders"] != 1 || got[labels.Other] != 5 {
		t.Errorf("requests: %v", got)
	}
	if got := w.topics("weft_proxy_metrics_names_over_limit"); got["topic"] != 2 {
		t.Errorf("over the limit: %v", got)
	}

	const writes = "weft_proxy_store_write_duration_seconds"
	if got := w.topics(writes); len(got) != 1 || got[main.String()] == 0 {
		t.Errorf("writes of %s: %v", main, got)
	}

	gone := *w.p.cfg.Snapshots.Get()
	gone.Topics, gone.Stores = map[snapshot.Key]*snapshot.Topic{}, nil
	w.p.cfg.Snapshots.Store(&gone)
	w.topics("") // the look with which they go
	for _, metric := range []string{"weft_proxy_publish_events_total", "weft_proxy_publish_event_bytes", "weft_proxy_publish_duration_seconds", "weft_proxy_requests_total"} {
		if got := w.topics(metric); len(got) != 1 {
			t.Errorf("of deleted topics, %s: %v", metric, got)
		}
	}
	if got := w.topics(writes); len(got) != 0 {
		t.Errorf("of a deleted store: %v", got)
	}
	if got := w.topics("weft_proxy_metrics_names_over_limit"); got["topic"] != 0 {
		t.Errorf("over the limit: %v", got)
	}
}

// TestRefusedSeries: what was refused in a namespace that is no more has no series; what was
// refused in none has.
func TestRefusedSeries(t *testing.T) {
	w := newWorld(t, 0)
	refused := func() (namespaces []string) {
		families, err := w.reg.Gather()
		w.must(err)
		for _, f := range families {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if f.GetName() == "weft_proxy_publish_refused_total" && l.GetName() == "namespace" {
						namespaces = append(namespaces, l.GetValue())
					}
				}
			}
		}
		return namespaces
	}
	for _, namespace := range []string{"demo", "none"} {
		if err := w.p.Publish(t.Context(), local, namespace, "none", events("t"), make([]frontend.Result, 1)); err == nil {
			t.Errorf("%s: an event was published to a topic that is not there", namespace)
		}
	}
	if got := refused(); !slices.Equal(got, []string{"", "demo"}) {
		t.Errorf("in namespaces %q", got)
	}
	w.p.cfg.Snapshots.Store(&snapshot.Snapshot{Lineage: "l", Rules: &policy.Rules{}})
	if got := refused(); !slices.Equal(got, []string{""}) {
		t.Errorf("in namespaces %q", got)
	}
}
