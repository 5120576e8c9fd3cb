package weft

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDeadLetters: weft dlq lists, shows, counts and redrives.
func TestDeadLetters(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	apply := func(attempts string) {
		m.must("apply", "-f", file(t, "jobs.yaml", `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: jobs}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: jobs.dead}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: worker}
spec: {topics: [jobs], start: beginning, dead_letter_topic: jobs.dead, `+attempts+`}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: jobs}
spec:
  rules:
    - {name: all, effect: allow, principals: [local], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}
`))
		m.must("status", "--wait", "1m")
	}
	// A webhook that is not there: every attempt fails.
	apply("push: {url: 'http://127.0.0.1:1/'}, retry: {max_attempts: 1, min_backoff: 10ms}")
	if out := m.must("dlq", "list", "-s", "worker"); out != "no dead letters\n" {
		t.Errorf("at first: %q", out)
	}
	for _, id := range []string{"j1", "j2", "j3"} {
		m.must("publish", "jobs", "--id", id, "--type", "job", "--data", `{"job":"`+id+`"}`)
	}
	m.await("all are dead", func() bool {
		out, err := m.weft("dlq", "list", "-s", "worker")
		return err == nil && strings.Contains(out, "3 dead letters")
	})
	out := m.must("dlq", "list", "--dead-letter-topic", "jobs.dead", "--id", "j2")
	if !strings.Contains(out, "j2") || strings.Contains(out, "j1") || !strings.Contains(out, "1 dead letter\n") || !strings.Contains(out, "worker") {
		t.Errorf("list says\n%s", out)
	}
	if out := m.must("dlq", "list", "-s", "worker", "--causes"); !strings.Contains(out, "3      worker") {
		t.Errorf("causes are\n%s", out)
	}
	if out := m.must("dlq", "list", "-s", "worker", "--since", "1h", "-o", "json", "--max", "1"); !strings.Contains(out, `"topic":"jobs"`) || !strings.Contains(out, `{"job":"j`) {
		t.Errorf("as JSON %s", out)
	}
	if out, errOut, code := run(m.ctx, "dlq", "list", "-s", "worker", "--proxy", m.grpc, "-o", "json", "--max", "2"); code != 0 || strings.Count(out, "\n") != 2 || errOut != "3 dead letters, of which 2 are shown (--max)\n" {
		t.Errorf("of some as JSON %s%s", out, errOut)
	}
	if _, errOut, code := run(m.ctx, "dlq", "list", "-s", "worker", "--proxy", m.grpc, "-o", "json"); code != 0 || errOut != "" {
		t.Errorf("of all as JSON %s", errOut)
	}
	if out := m.must("dlq", "show", "j1", "-s", "worker"); !strings.Contains(out, `{"job":"j1"}`) || !strings.Contains(out, "after 1 attempt") {
		t.Errorf("show says\n%s", out)
	}
	if _, err := m.weft("dlq", "show", "j9", "-s", "worker"); err == nil || !strings.Contains(err.Error(), "no dead letter") {
		t.Errorf("of no event: %v", err)
	}
	// The webhook is replaced by members, and they get them.
	m.must("delete", "subscription", "worker", "-n", "demo")
	apply("stream: {}")
	if out := m.must("dlq", "redrive", "-s", "worker", "--dry-run"); !strings.HasPrefix(out, "3 would be redriven") {
		t.Errorf("a dry run says %s", out)
	}
	if out := m.must("dlq", "redrive", "-s", "worker", "--id", "j2", "--rate", "100/s"); !strings.HasPrefix(out, "1 redriven") {
		t.Errorf("redrive says %s", out)
	}
	if out := m.must("dlq", "redrive", "-s", "worker"); out != "2 redriven, 1 were before\n" {
		t.Errorf("redrive says %s", out)
	}
	if out := m.must("dlq", "list", "-s", "worker"); out != "no dead letters; 3 more were redriven\n" {
		t.Errorf("at last: %q", out)
	}
	for _, args := range [][]string{{"list"}, {"redrive", "-s", "worker", "--rate", "fast"}, {"list", "-s", "worker", "--since", "yesterday"}, {"redrive", "--dead-letter-topic", "jobs.dead"}, {"list", "-s", "none"}} {
		if out, err := m.weft(append([]string{"dlq"}, args...)...); err == nil {
			t.Errorf("weft dlq %s gives %s", strings.Join(args, " "), out)
		}
	}
}

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{"": {}, "2h": now.Add(-2 * time.Hour), "2026-01-30T00:00:00Z": now.Add(-36 * time.Hour)} {
		if got, err := parseWhen(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"-2h", "2026-01-30", "soon"} {
		if _, err := parseWhen(in, now); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}
