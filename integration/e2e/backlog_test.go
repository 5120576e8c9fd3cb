package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// ids are the events that came to a member, repeats aside.
type ids struct {
	mu   sync.Mutex
	came map[string]struct{}
}

func (s *ids) put(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.came == nil {
		s.came = map[string]struct{}{}
	}
	s.came[id] = struct{}{}
}

func (s *ids) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.came)
}

// TestBacklog: events wait by the hundred thousand for Subscriptions whose members settle
// nothing, settle slowly, or are not there. The proxy's memory does not grow with them, and
// each event comes to whoever joins afterwards.
func TestBacklog(t *testing.T) {
	t.Parallel()
	events, joins := 100_000, []string{"dead"}
	if soaking {
		events, joins = 1_000_000, []string{"nobody", "dead"}
	}
	const size, batch, deadCredit = 1 << 10, 500, 256
	// For each of the three Subscriptions 1,024 events in flight, what the store has open,
	// and its engine's cache of 8 MiB. What waits is 100 MiB and more.
	const most = 24 << 20
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	p := m.proxy("p1")
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("dead", "orders", "") + subscriptionYAML("slow", "orders", "") + subscriptionYAML("nobody", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)

	// The members that there are: one settles nothing, one an event for each batch.
	var members sync.WaitGroup
	t.Cleanup(members.Wait)
	dead, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription("dead"), deadCredit)
	m.must(err)
	slow, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription("slow"), 1)
	m.must(err)
	var held, settled atomic.Int64
	turn := make(chan struct{}, events/batch)
	defer close(turn)
	members.Go(func() { _ = dead.receive(func(*eventsv1.Delivery) bool { held.Add(1); return false }) })
	members.Go(func() {
		_ = slow.receive(func(*eventsv1.Delivery) bool {
			<-turn
			settled.Add(1)
			return true
		})
	})
	before := p.live()

	var publishers sync.WaitGroup
	c := m.client(key, p)
	data, next := bytes.Repeat([]byte("x"), size), atomic.Int64{}
	for range 4 {
		publishers.Go(func() {
			list := make([]event.Event, batch)
			for from := int(next.Add(batch)) - batch; from < events; from = int(next.Add(batch)) - batch {
				for i := range list {
					list[i] = textEvent(fmt.Sprint("e", from+i), "")
					list[i].Data = data
				}
				res, err := c.PublishBatch(m.ctx, m.ns, "orders", list)
				if err != nil {
					t.Errorf("publishing: %v", err)
					return
				}
				for _, r := range res {
					if r.Err != nil {
						t.Errorf("publishing: %v", r.Err)
					}
				}
				turn <- struct{}{}
			}
		})
	}
	publishers.Wait()
	if t.Failed() {
		return
	}
	m.await("the slow member to have settled its share", func() error {
		if n := settled.Load(); n < int64(events/batch) {
			return fmt.Errorf("it has settled %d", n)
		}
		return nil
	})
	if n := held.Load(); n < 1 {
		t.Error("the dead member got nothing")
	}
	bounded := func(when string) {
		t.Helper()
		grown := p.live() - before
		t.Logf("%s the heap of %s, which was %d KiB, has grown by %d KiB; %d MiB are allowed", when, p.name, before>>10, grown>>10, most>>20)
		if grown > most {
			t.Errorf("%s the heap of %s has grown by %d MiB", when, p.name, grown>>20)
		}
	}
	bounded("while they wait")

	// Those who join afterwards get all of it: what the dead member had when it is gone.
	for _, name := range joins {
		if name == "dead" {
			m.must(dead.stream.CloseSend())
		}
		got := &ids{}
		s, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription(name), 1000)
		m.must(err)
		members.Go(func() {
			_ = s.receive(func(d *eventsv1.Delivery) bool { got.put(d.Event.Id); return true })
		})
		m.await("events of "+name, func() error {
			if n := got.count(); n < events {
				return fmt.Errorf("%d of %d have come", n, events)
			}
			return nil
		})
		if n := got.count(); n != events {
			t.Errorf("%d events came of %s", n, name)
		}
		t.Logf("%s: %d events", name, events)
	}
	bounded("when they were read")
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.PID()))
	m.must(err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Anonymous:") {
			t.Logf("built with the race detector: %s", strings.Join(strings.Fields(line), " "))
		}
	}
	m.must(p.Stop())
}
