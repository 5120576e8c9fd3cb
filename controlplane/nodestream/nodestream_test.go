package nodestream

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func refused(t *testing.T, what string, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: got %v, want %v", what, err, code)
	}
}

// TestNewest: the newest stream of a node is its only one that counts, whichever ends
// first, and nothing is heard of the one before.
func TestNewest(t *testing.T) {
	var told []string
	open := prometheus.NewGauge(prometheus.GaugeOpts{Name: "open"})
	s := New[int](Config{Verb: "report", Max: 2, Every: time.Second, Burst: 1, Open: open,
		Come: func(node string) { told = append(told, "come "+node) }, Gone: func(node string) { told = append(told, "gone "+node) }})
	old, err := s.Admit("a", 1)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.Replaced():
		t.Fatal("replaced by nothing")
	default:
	}
	newer, err := s.Admit("a", 2)
	if err != nil {
		t.Fatal(err)
	}
	<-old.Replaced()
	refused(t, "what the old one says", old.Do(func() { t.Error("it is heard") }), codes.Aborted)
	_, err = s.Admit("b", 3)
	refused(t, "one too many", err, codes.ResourceExhausted)
	old.Leave()
	heard := false
	refused(t, "what the new one says", newer.Do(func() { heard = true }), codes.OK)
	s.View(func(nodes map[string]*Stream[int]) {
		if !heard || len(nodes) != 1 || nodes["a"] != newer || newer.Own != 2 {
			t.Errorf("heard %v, nodes %v", heard, nodes)
		}
	})
	reg := prometheus.NewRegistry()
	reg.MustRegister(open)
	if got, err := reg.Gather(); err != nil || got[0].Metric[0].GetGauge().GetValue() != 1 {
		t.Errorf("open: %v, %v", got, err)
	}
	newer.Leave()
	if want := []string{"come a", "come a", "gone a"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	s.View(func(nodes map[string]*Stream[int]) {
		if len(nodes) != 0 {
			t.Errorf("nodes %v", nodes)
		}
	})
}

// TestPace: a stream may be ahead of its pace by the burst, and no more; what it did not
// say it may not say later.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const burst = 5
		s := New[int](Config{Verb: "report", Max: 1, Every: time.Second, Burst: burst, Open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "open"})})
		me, err := s.Admit("a", 0)
		if err != nil {
			t.Fatal(err)
		}
		pass := func(d time.Duration) { <-time.NewTimer(d).C } // synctest's clock
		pass(time.Hour)
		for range burst {
			refused(t, "within the burst", me.Said("a"), codes.OK)
		}
		pass(time.Second)
		refused(t, "in its time", me.Said(""), codes.OK)
		refused(t, "too soon", me.Said(""), codes.ResourceExhausted)
		pass(time.Hour)
		refused(t, "of another node", me.Said("b"), codes.PermissionDenied)
	})
}
