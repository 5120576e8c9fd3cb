package e2e

import (
	"fmt"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestEmbeddedKilled: a proxy with the embedded store is killed again and again
// under load and starts on the same folder: nothing acknowledged is lost, and
// each kill repeats a window of each partition at most.
func TestEmbeddedKilled(t *testing.T) {
	t.Parallel()
	const window, kills = 128, 5
	etcd := servers.SharedEtcd(t)
	m := newMesh(t, etcd)
	key, identity := m.key("shop")
	p := m.proxy("p1", "--window", fmt.Sprint(window))
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)
	l := newLoad(m, key)
	l.publishers("w", 8, m.client(key, p), "orders")
	l.subscriber(p, "billing")
	l.more(200)
	bound := 0
	for range kills {
		bound += window * l.kill(p)
		p.start()
		l.more(200)
	}
	again := l.judge(window)
	if again.Bound > bound {
		t.Errorf("%d kills of partitions allow %d, the log tells of %d", kills, bound, again.Bound)
	}
	m.printed(p.Process, "configuration on disk")
}
