package e2e

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestOneUnsettled: the first event of a partition stays unsettled while many
// follow. Delivery of the partition stops at the window, that of another goes on;
// after a kill no more than the window comes again, and then everything comes.
func TestOneUnsettled(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(*testing.T) string{"rocketmq": onRocketMQ, "embedded": func(*testing.T) string { return onDisk }} {
		t.Run(name, func(t *testing.T) {
			const window, events = 64, 1000
			storeYAML, etcd := store(t), servers.SharedEtcd(t)
			m := newMesh(t, etcd)
			key, identity := m.key("shop")
			p := m.proxy("p1", "--window", fmt.Sprint(window))
			m.apply(storeYAML + topicYAML("stuck", "free") + subscriptionYAML("billing", "stuck, free", "") + policyYAML("shop") + identity)
			m.settled(1)
			l := newLoad(m, key)
			c := m.client(key, p)

			var inStuck, inFree, stopHolding atomic.Int64
			l.hold = func(e event.Event, _ history.Place) bool {
				if strings.HasPrefix(e.ID, "free") {
					inFree.Add(1)
					return false
				}
				inStuck.Add(1)
				return stopHolding.Load() == 0 && e.ID == "stuck-0"
			}
			for _, topic := range []string{"stuck", "free"} {
				for n := 0; n < events; n += 100 {
					var batch []event.Event
					for k := range 100 {
						id := fmt.Sprintf("%s-%d", topic, n+k)
						e := textEvent(id, "data of "+id)
						e.Ext = event.With(e.Ext, event.AttrPartitionKey, "one")
						l.log.Intend(e.ID, "", 0, e.Data)
						batch = append(batch, e)
					}
					results, err := c.PublishBatch(m.ctx, m.ns, topic, batch)
					m.must(err)
					for i, r := range results {
						m.must(r.Err)
						l.log.Told(batch[i].ID, history.Acked)
					}
				}
			}
			l.subscriber(p, "billing")
			// The stuck topic was first to have events.
			m.await("the free topic's events", func() error {
				if s, f := inStuck.Load(), inFree.Load(); s < window || f < events {
					return fmt.Errorf("there were %d of the stuck topic and %d of the free one", s, f)
				}
				return nil
			})
			if n := inStuck.Load(); n != window {
				t.Errorf("%d events of the stuck topic were delivered, the window is %d", n, window)
			}
			if n := l.kill(p); n != 2 {
				t.Errorf("it delivered of %d partitions", n)
			}
			stopHolding.Store(1)
			p.start()
			m.await("the events that were held up", func() error {
				if ids := l.log.Missing(1); len(ids) > 0 {
					return errors.New(strings.Join(ids, " "))
				}
				return nil
			})
			if again := l.judge(window); again.Repeats == 0 || again.Depth != window {
				t.Errorf("%s: the kill did not show what it can", again)
			}
		})
	}
}
