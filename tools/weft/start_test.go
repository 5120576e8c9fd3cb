package weft

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/store/position"
)

// TestStartAt: Subscriptions that begin at a time and after a position get what is from
// there on and nothing before, and one whose place the store does not have says so.
func TestStartAt(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", file(t, "start.yaml", `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: jobs}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: all}
spec: {rules: [{name: all, effect: allow, principals: [local], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}]}
`))
	m.must("status", "--wait", "1m")
	keep := func(id string) string {
		out := m.must("publish", "jobs", "--id", id, "--type", "job", "--data", "{}")
		return regexp.MustCompile(`is kept at (\S+)`).FindStringSubmatch(out)[1]
	}
	keep("a")
	at := keep("b")
	since := time.Now()
	for !time.Now().After(since) { // a time of its own
	}
	since = time.Now()
	keep("c")
	sub := func(name, spec string) string {
		return file(t, name+".yaml", "apiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: demo, name: "+name+"}\nspec: {topics: [jobs], "+spec+"}\n")
	}
	gets := func(name string, ids ...string) {
		t.Helper()
		m.must("status", "--wait", "1m")
		out := m.must("subscribe", name, "--max", fmt.Sprint(len(ids)))
		for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if f := strings.Fields(line); len(f) < 2 || i >= len(ids) || f[1] != ids[i] {
				t.Errorf("%s got\n%swant %v", name, out, ids)
			}
		}
	}
	m.must("apply", "-f", sub("after", "start_positions: ["+at+"]"))
	m.must("apply", "-f", sub("since", fmt.Sprintf("start_at: %q", since.UTC().Format(time.RFC3339Nano))))
	gets("after", "c")
	gets("since", "c")
	if out, err := m.weft("apply", "-f", sub("after", "start: end")); err == nil || !strings.Contains(out+err.Error(), "spec.start_positions") {
		t.Errorf("another start: %v\n%s", err, out)
	}

	tok, err := position.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	tok.Pos.Offset += 2 // of the event after c
	m.must("apply", "-f", sub("beyond", "start_positions: ["+tok.String()+"]"))
	status := func(says string) func() bool {
		return func() bool {
			out, _ := m.weft("status")
			return regexp.MustCompile(says).MatchString(out)
		}
	}
	m.await("why it does not begin", status(`a position is offset \d+ of partition "", which topic demo_jobs does not have`))
	// Nothing else waits for it: the topic takes events, and then the place is there.
	keep("d")
	keep("e")
	m.await("it begins", status(`(?m)  has all of it  `))
	gets("beyond", "e")
}

// TestDemoAfterFailure: a folder whose mesh did not come up, as where a port was taken, gets its
// demo configuration once it does; and once only.
func TestDemoAfterFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := filepath.Join(t.TempDir(), "data")
	args := []string{"up", "--data", data, "--http", l.Addr().String()}
	for _, name := range []string{"admin", "discovery", "control-plane-ops", "grpc", "health", "ops"} {
		args = append(args, "--"+name+"=127.0.0.1:0")
	}
	if _, errOut, code := run(t.Context(), args...); code != 1 || !strings.Contains(errOut, "address already in use") {
		t.Fatalf("it ends with %d: %s", code, errOut)
	}
	m := start(t, data)
	if out := m.must("get", "topics"); !strings.Contains(out, "hello") {
		t.Errorf("no demo: %s", out)
	}
	m.must("delete", "topic", "hello")
	m.stop()
	if out := start(t, data).must("get", "topics"); strings.Contains(out, "hello") {
		t.Errorf("the demo is there again: %s", out)
	}
}
