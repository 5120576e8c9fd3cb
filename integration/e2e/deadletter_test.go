package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestRedrive: on every store, what a webhook refused comes again once it is
// redriven, to that webhook alone, and once.
func TestRedrive(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(*testing.T) string{"rocketmq": onRocketMQ, "kafka": onKafka, "embedded": func(*testing.T) string { return onDisk }} {
		t.Run(name, func(t *testing.T) {
			main := store(t)
			m := newMesh(t, servers.SharedEtcd(t))
			key, identity := m.key("shop")
			p := m.proxy("p1", "--push-allow", "127.0.0.0/8")
			var works atomic.Bool
			other, repaired := newBox("the other subscription"), newBox("the webhook")
			hook := webhook(t, repaired, func(event.Event) int {
				if works.Load() {
					return 0
				}
				return http.StatusTeapot
			})
			m.apply(main + topicYAML("orders", "dead") + subscriptionYAML("other", "orders", "") +
				subscriptionYAML("failing", "orders", `push: {url: "`+hook+`"}, dead_letter_topic: dead, retry: {max_attempts: 2, min_backoff: 10ms, max_backoff: 10ms}`) +
				policyYAML("shop") + identity)
			m.settled(1)
			m.dial(p.grpc, m.read(key), nil).into(other, subscription("other"))
			c := m.client(key, p)
			var sent []event.Event
			for i := range 30 {
				e := textEvent(fmt.Sprint("e", i), "data")
				sent = append(sent, e)
				_, err := c.Publish(m.ctx, m.ns, "orders", e)
				m.must(err)
			}
			dlq := func(args ...string) string {
				t.Helper()
				out, err := m.weft("", append([]string{"dlq", args[0], "--proxy", p.grpc, "--api-key-file", key, "-n", m.ns, "-s", "failing"}, args[1:]...)...)
				if err != nil {
					t.Fatalf("weft dlq %v: %v\n%s", args, err, out)
				}
				return out
			}
			m.await("all are dead letters", func() error {
				if out := dlq("list"); !strings.Contains(out, "30 dead letters") {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
			m.awaitAll(other, sent)
			works.Store(true)
			if out := dlq("redrive", "--reason", "HTTP 418", "--rate", "1000/s", "--max", "10"); !strings.Contains(out, "10 redriven\n") {
				t.Errorf("the first redrive says %s", out)
			}
			if out := dlq("redrive", "--rate", "1000/s"); !strings.Contains(out, "20 redriven, 10 were before") {
				t.Errorf("the second redrive says %s", out)
			}
			if out := dlq("redrive", "--rate", "1000/s"); !strings.Contains(out, "0 redriven, 30 were before") {
				t.Errorf("the third redrive says %s", out)
			}
			m.awaitAll(repaired, sent)
			if n := repaired.count(); n != len(sent) {
				t.Errorf("the webhook took %d events for %d", n, len(sent))
			}
			if n := other.count(); n != len(sent) {
				t.Errorf("the other subscription got %d events for %d", n, len(sent))
			}
		})
	}
}
