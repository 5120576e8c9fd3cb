package delivery

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/labels"
	"github.com/weft-mesh/weft/store"
)

// measured is a world in a bubble, whose Manager has metrics.
func measured(t *testing.T, change func(*snapshot.Subscription)) (*world, *prometheus.Registry) {
	w, reg := newWorld(t, change), prometheus.NewRegistry()
	w.stop()
	w.metrics = reg
	w.start()
	return w, reg
}

// values are those of a metric, without its prefix, by the labels after namespace and
// subscription; of a histogram its count and its sum.
func values(t *testing.T, reg *prometheus.Registry, name string) map[string][2]float64 {
	t.Helper()
	fs, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][2]float64{}
	for _, f := range fs {
		if f.GetName() != "weft_proxy_delivery_"+name {
			continue
		}
		for _, m := range f.Metric {
			var more []string
			for _, l := range m.Label {
				if l.GetName() != "namespace" && l.GetName() != "subscription" {
					more = append(more, l.GetValue())
				}
			}
			v := [2]float64{m.GetCounter().GetValue() + m.GetGauge().GetValue()}
			if h := m.Histogram; h != nil {
				v = [2]float64{float64(h.GetSampleCount()), h.GetSampleSum()}
			}
			out[strings.Join(more, ",")] = v
		}
	}
	return out
}

// about is equality but for what a step takes in a bubble.
func about(got, want float64) bool { return got >= want-0.001 && got <= want+0.1 }

// TestMeasured: how far behind a Subscription is, how old its events are and why it
// is not read can be seen, and is not once it is deleted.
func TestMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := measured(t, nil)
		w.publish("a", "b", "c", "d", "e")
		<-time.After(20 * time.Second) // sampled at 15 s
		if got := values(t, reg, "lag_events"); got["orders"][0] != 5 {
			t.Errorf("nobody reads it: its lag is %v", got)
		}
		m := w.join(2)
		defer m.Close()
		ds := w.next(m, 2)
		if got := values(t, reg, "latency_seconds")[""]; got[0] != 2 || !about(got[1], 40) {
			t.Errorf("two events of 20 s were delivered: %v", got)
		}
		<-time.After(10 * time.Second)
		m.Ack(ds[0].ID)
		if got := values(t, reg, "end_to_end_seconds")[""]; got[0] != 1 || !about(got[1], 30) {
			t.Errorf("an event of 30 s was settled: %v", got)
		}
		<-time.After(20 * time.Second) // sampled at 45 s
		if got := values(t, reg, "lag_events"); got["orders"][0] != 4 {
			t.Errorf("one was settled: %v", got)
		}
		if got := values(t, reg, "oldest_unsettled_seconds")[""][0]; !about(got, 45) {
			t.Errorf("the oldest is of %v s", got)
		}
		if got := values(t, reg, "stalled_seconds_total"); !about(got["credit"][0], 25) || got["window"][0] != 0 || got["rate"][0] != 0 {
			t.Errorf("for 25 s nobody asked: %v", got)
		}
		w.snaps.Store(&snapshot.Snapshot{})
		<-time.After(sampleEvery)
		for _, name := range []string{"lag_events", "latency_seconds", "end_to_end_seconds", "oldest_unsettled_seconds", "stalled_seconds_total"} {
			if got := values(t, reg, name); len(got) != 0 {
				t.Errorf("it is deleted, and its %s is %v", name, got)
			}
		}
	})
}

// silentStore does not answer how far groups are, and counts who asks.
type silentStore struct {
	store.Store
	store.Admin
	asked *atomic.Int32
}

func (s silentStore) Lag(ctx context.Context, _, _ string) ([]store.PartitionLag, error) {
	s.asked.Add(1)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestMeasuredWhereAStoreIsSilent: a store that does not answer holds up no measure of
// anything else, and is asked once in a round.
func TestMeasuredWhereAStoreIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.stop()
		reg, asked := prometheus.NewRegistry(), &atomic.Int32{}
		w.metrics, w.others = reg, map[string]store.Store{"away": silentStore{w.st, w.st.(store.Admin), asked}}
		w.start()
		w.publish("a", "b")
		snap := w.snapshot(nil)
		for i := range 100 {
			topic := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: fmt.Sprint("away", i)}, UID: "away", Epochs: []snapshot.Epoch{{Number: 1, StoreUID: "away", Physical: "t"}}}
			sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: topic.Name}, UID: topic.Name, Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g"}}}
			snap.Subscriptions[sub.Key] = sub
		}
		w.snaps.Store(snap)
		m := w.join(1)
		defer m.Close()
		w.next(m, 1)
		<-time.After(2*sampleEvery + 10*time.Second)
		if got := values(t, reg, "oldest_unsettled_seconds")[""][0]; !about(got, 30) {
			t.Errorf("the oldest is of %v s", got)
		}
		if got := values(t, reg, "lag_events"); got["orders"][0] != 2 || len(got) != 1 {
			t.Errorf("the lags are %v", got)
		}
		if n := asked.Load(); n < 1 || n > 3 {
			t.Errorf("a store that does not answer is asked %d times in three rounds", n)
		}
	})
}

// TestStalled: a full window and a rate are told from a member that does not ask.
func TestStalled(t *testing.T) {
	for cause, change := range map[string]func(*snapshot.Subscription){
		"window": func(s *snapshot.Subscription) { s.MaxInFlight = 2 },
		"rate":   func(s *snapshot.Subscription) { s.Rate, s.Burst = 0.01, 2 },
	} {
		t.Run(cause, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, reg := measured(t, change)
				w.publish("a", "b", "c", "d", "e")
				m := w.join(100)
				defer m.Close()
				w.next(m, 2)
				more := make(chan error, 1)
				go func() {
					_, err := m.Next(w.ctx, make([]Delivery, 1))
					more <- err
				}()
				<-time.After(50 * time.Second)
				for name, got := range values(t, reg, "stalled_seconds_total") {
					if want := map[string]float64{cause: 45}[name]; !about(got[0], want) {
						t.Errorf("%s: %v s, want %v", name, got[0], want)
					}
				}
				w.stop()
				if err := <-more; err == nil {
					t.Error("an event came")
				}
			})
		})
	}
}

// TestStalledInOrder: what waits behind others of its key fills no window.
func TestStalledInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, st := newOrderedWorld(t, func(s *snapshot.Subscription) { s.MaxInFlight = 2 })
		w.stop()
		reg := prometheus.NewRegistry()
		w.metrics = reg
		w.start()
		defer w.stop()
		for _, id := range []string{"a1", "a2"} {
			st.append("orders", 0, keyed(id, "a"))
		}
		m := w.join(10)
		defer m.Close()
		w.next(m, 1)
		<-time.After(50 * time.Second)
		if got := values(t, reg, "stalled_seconds_total"); !about(got["credit"][0], 45) || got["window"][0] != 0 {
			t.Errorf("for 45 s nobody asked: %v", got)
		}
	})
}

// BenchmarkMeasure is what the ages of an event cost, from its delivery to its
// settlement.
func BenchmarkMeasure(b *testing.B) {
	m := newMetrics(prometheus.NewRegistry()).of("demo", "billing")
	now := time.Now().Round(0)
	it := &item{src: &source{}}
	it.msg.stored.Stored = now.Add(-time.Second)
	b.ReportAllocs()
	for b.Loop() {
		if age, ok := it.age(now); ok {
			m.latency.Observe(age)
		}
		if age, ok := it.age(now); ok {
			m.endToEnd.Observe(age)
		}
	}
}

// TestSubscriptionsOfMetrics: those beyond the limit are counted together, and have no
// lag of their own.
func TestSubscriptionsOfMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	m.names.Max = 1
	m.of("demo", "a").settled.Inc()
	m.of("demo", "b").settled.Add(2)
	m.of("demo", "c").settled.Add(3)
	m.forget("demo", "b") // what is counted together stays
	fs, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range fs {
		if f.GetName() == "weft_proxy_delivery_acks_total" {
			for _, s := range f.Metric {
				got[s.Label[0].GetValue()+"/"+s.Label[1].GetValue()] = s.Counter.GetValue()
			}
		}
	}
	if len(got) != 2 || got["demo/a"] != 1 || got[labels.Other+"/"+labels.Other] != 5 {
		t.Errorf("%v", got)
	}
	mgr := &Manager{metrics: m, counted: map[snapshot.Key]struct{}{}}
	for name, may := range map[string]bool{"a": true, "c": false} {
		if got := mgr.mayLag(lagKey{sub: snapshot.Key{Namespace: "demo", Name: name}}, 0); got != may {
			t.Errorf("a series of the lag of %s: %v", name, got)
		}
	}
	if mgr.mayLag(lagKey{sub: snapshot.Key{Namespace: "demo", Name: "a"}}, labels.Max) {
		t.Error("there are as many as may be, and one more")
	}
}

// TestDeadLettersByCause: dead letters are counted by how their last attempt failed.
func TestDeadLettersByCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := measured(t, func(s *snapshot.Subscription) {
			s.DeadLetter, s.MaxAttempts, s.AckTimeout = "dead", 2, time.Second
			s.Transform = mustTransform(t, "event.subject == 'untransformed' ? event.missing : event.type")
		})
		m := w.join(10)
		defer m.Close()
		count := func(cause string, first, last func(id uint64)) {
			t.Helper()
			before := values(t, reg, "dead_letters_total")
			w.publish(cause)
			for _, end := range []func(uint64){first, last} {
				if end != nil {
					end(w.next(m, 1)[0].ID)
				}
			}
			w.nothing(m, "it is a dead letter")
			<-time.After(2 * time.Second)
			after := values(t, reg, "dead_letters_total")
			if len(after) != 6 {
				t.Fatalf("the causes are %v", after)
			}
			for name := range after {
				want := before[name][0]
				if name == cause || cause == "untransformed" && name == "transform" {
					want++
				}
				if after[name][0] != want {
					t.Errorf("after one that is %s there are %v of %s, want %v", cause, after[name][0], name, want)
				}
			}
		}
		nack := func(id uint64) { m.Nack("no", 0, id) }
		never := func(uint64) {}
		count("failed", never, nack)
		count("timeout", nack, never)
		count("rejected", func(id uint64) { m.Reject("never", id) }, nil)
		count("untransformed", nil, nil)
		count("lost", nack, func(uint64) { m.Lost() })
	})
}

// TestMembersMadeAgain: where a Subscription is deleted and made again under its name, the
// members of the new one alone are counted, whenever those of the old one leave.
func TestMembersMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, reg := measured(t, nil)
		count := func(when string, want float64) {
			t.Helper()
			synctest.Wait()
			if got := values(t, reg, "members")[""][0]; got != want {
				t.Errorf("%s there are %v members, want %v", when, got, want)
			}
		}
		old := []Member{w.join(1), w.join(1)}
		count("at first", 2)
		w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.UID = "55555555-5555-4555-8555-555555555555" }))
		m := w.join(1)
		count("before the old ones have left", 1)
		for _, o := range old {
			o.Close()
		}
		count("once they have", 1)
		m.Close()
		count("at last", 0)
	})
}
