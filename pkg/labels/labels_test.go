package labels

import (
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestNames: there is room for Max names, the others share one, and what is forgotten
// makes room.
func TestNames(t *testing.T) {
	reg, looked := prometheus.NewRegistry(), 0
	n := New(reg, "topic", func() { looked++ })
	New(reg, "subscription", nil) // beside it
	n.Max = 2
	over := func() float64 {
		t.Helper()
		fs, err := reg.Gather()
		if err != nil || len(fs) != 1 || len(fs[0].Metric) != 2 {
			t.Fatal(fs, err)
		}
		return fs[0].Metric[1].GetGauge().GetValue()
	}
	of := func(resource, want string) {
		t.Helper()
		ns, name := n.Of("demo", resource)
		if name != want || (ns == "demo") != (want != Other) {
			t.Errorf("%s is %s/%s, want %s", resource, ns, name, want)
		}
	}
	of("a", "a")
	of("b", "b")
	of("a", "a")
	if got := over(); got != 0 || looked != 1 {
		t.Errorf("%v are over, looked %d times", got, looked)
	}
	of("c", Other)
	of("c", Other)
	of("d", Other)
	if got := over(); got != 2 {
		t.Errorf("%v are over, want 2", got)
	}
	if n.Forget("demo", "d") || !n.Forget("demo", "a") || n.Forget("demo", "a") {
		t.Error("what was forgotten is another")
	}
	of("c", "c")
	of("a", Other)
	if got := over(); got != 1 {
		t.Errorf("%v are over, want 1", got)
	}
}

// TestForgetWhileLooked: series may be deleted by the look at the metrics itself, however
// many there are.
func TestForgetWhileLooked(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x", Help: "x"}, []string{"name"})
	reg.MustRegister(vec)
	New(reg, "topic", func() { vec.DeletePartialMatch(prometheus.Labels{"name": "1"}) })
	for range 20 {
		for i := range 5000 {
			vec.WithLabelValues(strconv.Itoa(i)).Inc()
		}
		if _, err := reg.Gather(); err != nil {
			t.Fatal(err)
		}
	}
}
