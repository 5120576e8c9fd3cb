package labels

import (
	"maps"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestCounters: what the configuration has is counted; the series of what it has no more are
// gone, all of them and no others, until it is counted for again.
func TestCounters(t *testing.T) {
	reg, gone := prometheus.NewRegistry(), map[[2]string]bool{}
	there := func(of [2]string) bool { return !gone[of] }
	rules := NewCounters(reg, prometheus.CounterOpts{Name: "rules", Help: "h"}, []string{"policy", "rule"}, []string{"action"}, there)
	quotas := NewCounters(reg, prometheus.CounterOpts{Name: "quotas", Help: "h"}, []string{"quota"}, nil, there)
	count := func() {
		rules.Add(1, [2]string{"p", "a"}, "publish")
		rules.Add(2, [2]string{"p", "a"}, "consume")
		rules.Add(3, [2]string{"p", "b"}, "publish")
		quotas.Add(4, [2]string{"a"})
	}
	is := func(when string, want map[string]float64) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := []string{f.GetName()}
				for _, l := range m.Label {
					name = append(name, l.GetName()+"="+l.GetValue())
				}
				got[strings.Join(name, " ")] = m.GetCounter().GetValue()
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	count()
	count()
	is("counted", map[string]float64{"rules action=publish policy=p rule=a": 2, "rules action=consume policy=p rule=a": 4, "rules action=publish policy=p rule=b": 6, "quotas quota=a": 8})
	gone[[2]string{"p", "a"}] = true
	is("without a rule", map[string]float64{"rules action=publish policy=p rule=b": 6, "quotas quota=a": 8})
	gone[[2]string{"a"}] = true
	is("without a quota", map[string]float64{"rules action=publish policy=p rule=b": 6})
	clear(gone)
	count()
	is("made anew", map[string]float64{"rules action=publish policy=p rule=a": 1, "rules action=consume policy=p rule=a": 2, "rules action=publish policy=p rule=b": 9, "quotas quota=a": 4})
	NewCounters(nil, prometheus.CounterOpts{Name: "rules", Help: "h"}, []string{"policy"}, nil, there).Add(1, [2]string{"p"})
}
