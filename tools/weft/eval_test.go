package weft

import (
	"strings"
	"testing"
)

// TestEval: from files alone it is said where an event goes, who delivers it or why
// not, and what a transform makes of it, as proxies would.
func TestEval(t *testing.T) {
	f := file(t, "mesh.yaml", `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: orders}
spec: {store: main, key_from: subject}
---
apiVersion: weft/v1alpha1
kind: Route
metadata: {namespace: demo, name: orders}
spec:
  topic: orders
  rules:
    - {filter: {exact: {region: us}}, to: [{topic: orders.us}]}
    - {filter: {prefix: {region: e}}, to: [{topic: orders.eu1}, {topic: orders.eu2}]}
---
apiVersion: weft/v1alpha1
kind: Route
metadata: {namespace: other, name: orders}
spec: {topic: orders, rules: [{to: [{topic: elsewhere}]}]}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: eu}
spec:
  topics: ["orders.*"]
  filter: {suffix: {type: .created}}
  transform: {cel: {data: '{"n": data.n + 1}'}}
  dead_letter_topic: dead
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: rest}
spec: {topics: [orders]}
`)
	event := file(t, "event.json", `{"specversion": "1.0", "id": "7", "source": "/s", "type": "o.created", "region": "us", "data": {"n": 1}}`)
	for name, tc := range map[string]struct {
		args []string
		says []string // all of it, where it begins with "weft: " of the error
	}{
		"routed": {[]string{"--event", event}, []string{"route orders: spec.rules[0] sends it to orders.us\ntopic orders.us keeps it\n",
			`subscription eu delivers {"specversion":"1.0","id":"7"`, `"data":{"n":2}`}},
		"a key":           {[]string{"--id", "1", "--subject", "k1", "--attr", "region=eu"}, []string{"spec.rules[1] sends it to orders.eu", `subscription eu leaves it out: spec.filter.suffix.type: wants ".created", the event has "weft.cli"`}},
		"not transformed": {[]string{"--type", "a.created", "--attr", "region=us", "--data", "x"}, []string{"subscription eu dead-letters it in dead: transform: "}},
		"not routed": {[]string{"--attr", "region=asia", "--id", "1"}, []string{
			`route orders: spec.rules[0].filter.exact.region: wants "us", the event has "asia"`, `route orders: spec.rules[1].filter.prefix.region: wants "e"`, "topic orders keeps it\nsubscription rest delivers {"}},
		"a typo":        {[]string{"-n", "none"}, []string{"weft: the files have neither the topic none/orders nor a Route of it"}},
		"nobody reads":  {[]string{"-n", "other"}, []string{"topic elsewhere keeps it\nno subscription of the files reads topic elsewhere\n"}},
		"no event":      {[]string{"--source", ""}, []string{"weft: no proxy takes this event: "}},
		"two events":    {[]string{"--event", event, "--type", "x"}, []string{"weft: --event is the whole event"}},
		"another space": {[]string{"-n", "other"}, []string{"route orders: spec.rules[0] sends it to elsewhere\ntopic elsewhere keeps it\n"}},
	} {
		out, errOut, code := run(t.Context(), append([]string{"eval", "orders", "-f", f}, tc.args...)...)
		for _, says := range tc.says {
			if failed := strings.HasPrefix(says, "weft: "); failed != (code != 0) || !strings.Contains(out+errOut, says) {
				t.Errorf("%s: status %d, want %q in\n%s%s", name, code, says, out, errOut)
			}
		}
	}
	if _, errOut, code := run(t.Context(), "eval", "orders"); code == 0 || !strings.Contains(errOut, "name what to read: -f FILE") {
		t.Errorf("without files: status %d, %s", code, errOut)
	}
	// The same key goes the same way each time.
	first, _, _ := run(t.Context(), "eval", "orders", "-f", f, "--subject", "k1", "--attr", "region=eu")
	again, _, _ := run(t.Context(), "eval", "orders", "-f", f, "--subject", "k1", "--attr", "region=eu")
	if a, b := strings.SplitN(first, "\n", 2)[0], strings.SplitN(again, "\n", 2)[0]; a != b {
		t.Errorf("%s, and then %s", a, b)
	}
}
