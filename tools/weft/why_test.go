package weft

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestWhy: of an event that took each way, weft trace has its hops and weft why the
// reason.
func TestWhy(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	m := start(t, data)
	m.must("apply", "-f", file(t, "why.yaml", `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: orders}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: orders.eu}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: orders.dead}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: closed}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Route
metadata: {namespace: demo, name: orders}
spec: {topic: orders, rules: [{filter: {exact: {region: eu}}, to: [{topic: orders.eu}]}]}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: billing}
spec: {topics: [orders], start: beginning, filter: {prefix: {type: order.}}}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: failing}
spec: {topics: [orders], start: beginning, push: {url: 'http://127.0.0.1:1/'}, retry: {max_attempts: 1, min_backoff: 10ms}, dead_letter_topic: orders.dead}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: asked}
spec: {topics: [orders], start: beginning, push: {url: 'http://127.0.0.1:1/', handshake: {origin: mesh.example}}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: all}
spec:
  rules:
    - {name: all, effect: allow, principals: [local], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}
    - {name: closed, effect: deny, principals: [local], actions: [publish], topics: [closed]}
`))
	m.must("status", "--wait", "1m")
	why := func(id, sub, verdict, says string, more ...string) {
		t.Helper()
		out := m.must(append([]string{"why", "/weft/cli", id, sub}, more...)...)
		if !strings.HasPrefix(out, verdict+": ") || !regexp.MustCompile(says).MatchString(out) {
			t.Errorf("why %s did not come to %s says\n%swant %s with %q", id, sub, out, verdict, says)
		}
	}
	trace := func(id string, kinds ...string) {
		t.Helper()
		out := m.must("trace", "/weft/cli", id)
		at := 0
		for _, k := range kinds {
			n := strings.Index(out[at:], "  "+k+" ")
			if n < 0 {
				t.Errorf("the trace of %s has not %v:\n%s", id, kinds, out)
				return
			}
			at += n
		}
	}
	m.must("publish", "orders", "--id", "a", "--type", "order.created")
	why("a", "billing", "waiting", "no member is connected")
	why("a", "asked", "waiting", "nothing is sent to its target by this proxy now: weft status says why")
	m.must("subscribe", "billing", "--max", "1")
	m.await("it is settled", func() bool {
		return strings.HasPrefix(m.must("why", "/weft/cli", "a", "billing"), "acked: ")
	})
	trace("a", "stored", "delivered", "acked")
	m.await("it is a dead letter", func() bool {
		return strings.HasPrefix(m.must("why", "/weft/cli", "a", "failing"), "dead-lettered: ")
	})
	trace("a", "nacked", "dead-lettered")

	m.must("publish", "orders", "--id", "b", "--type", "note")
	why("b", "billing", "filtered", `spec\.filter\.prefix\.type: wants "order\.", the event has "note"`)
	m.must("publish", "orders", "--id", "c", "--type", "order.created", "--attr", "region=eu")
	why("c", "billing", "routed-elsewhere", "Route of topic orders took the event to orders.eu")
	trace("c", "stored")
	if out := m.must("trace", "/weft/cli", "c"); !strings.Contains(out, "orders → orders.eu") {
		t.Errorf("the trace of what was routed:\n%s", out)
	}
	m.must("publish", "orders.dead", "--id", "d", "--type", "order.created")
	why("d", "billing", "not-read", "in topic orders.dead")
	if _, err := m.weft("publish", "closed", "--id", "e", "--type", "x"); err == nil {
		t.Error("a closed topic takes events")
	}
	why("e", "billing", "publish-refused", `rule "closed"`)
	trace("e", "refused")
	why("none", "billing", "not-found", "no such event is known")
	if out := m.must("trace", "/weft/cli", "none"); !strings.HasPrefix(out, "nothing is remembered") {
		t.Errorf("of no event: %s", out)
	}
	if _, err := m.weft("why", "/weft/cli", "a", "nobody"); err == nil || !strings.Contains(err.Error(), "no Subscription nobody") {
		t.Errorf("of no Subscription: %v", err)
	}

	// A proxy that has just started remembers nothing, and looks into the topics.
	m.stop()
	m = start(t, data)
	m.must("status", "--wait", "1m")
	why("b", "billing", "filtered", `found in topic orders at`)
	why("a", "billing", "passed", `is past it`)
}
