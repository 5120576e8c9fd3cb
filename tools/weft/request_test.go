package weft

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRequestReply: "weft request" prints what "weft reply" answers: the same for all,
// what a command writes, or the data as they came. What asks for nothing, or is not
// waited for any more, is passed over.
func TestRequestReply(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", file(t, "requests.yaml", `
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: questions}
spec: {store: main}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: answerers}
spec: {topics: [questions], start: beginning, retry: {min_backoff: 10ms, max_backoff: 20ms}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: all}
spec: {rules: [{name: all, effect: allow, principals: [local], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}]}
`))
	m.must("status", "--wait", "1m")
	if out, err := m.weft("request", "questions", "--id", "late", "--timeout", "50ms"); err == nil || !strings.Contains(err.Error(), "nobody has replied in time") {
		t.Errorf("nobody replies: %v %s", err, out)
	}
	m.must("publish", "questions", "--id", "told")
	mark := filepath.Join(t.TempDir(), "mark")
	for name, tc := range map[string]struct {
		reply []string
		want  string
	}{
		"constant": {[]string{"--data", "42"}, "42\n"},
		"echo":     {nil, `{"n":7}` + "\n"},
		"command":  {[]string{"--", "sh", "-c", `sed s/7/8/; printf ' %s %s %s %s' "$CE_ID" "$CE_SOURCE" "$CE_TYPE" "$CE_SUBJECT"`}, `{"n":8} command /weft/cli weft.cli some` + "\n"},
		"again":    {[]string{"--", "sh", "-c", `test -e ` + mark + ` || { touch ` + mark + `; exit 3; }; echo second`}, "second\n\n"},
	} {
		got := make(chan string, 1)
		go func() {
			out, err := m.weft("request", "questions", "--id", name, "--subject", "some", "--timeout", "1m", "--data", `{"n":7}`)
			if err != nil {
				out += err.Error()
			}
			got <- out
		}()
		out := m.must(append([]string{"reply", "answerers", "--max", "1"}, tc.reply...)...)
		if answer := <-got; answer != tc.want {
			t.Errorf("%s: %q, want %q", name, answer, tc.want)
		}
		if !strings.Contains(out, "questions  "+name+"  is replied to\n") {
			t.Errorf("%s: %s", name, out)
		}
	}
	got := make(chan string, 1)
	go func() {
		out, err := m.weft("request", "questions", "--id", "last", "--timeout", "1m", "-o", "json")
		if err != nil {
			out += err.Error()
		}
		got <- out
	}()
	m.must("reply", "answerers", "--max", "1", "--data", "{}", "--type", "answer", "--source", "/a", "--content-type", "text/x-none")
	if answer := <-got; !regexp.MustCompile(`"source": ?"/a", ?"type": ?"answer"`).MatchString(answer) || !strings.Contains(answer, "text/x-none") {
		t.Errorf("as JSON: %s", answer)
	}
	for _, tc := range []struct {
		says string
		args []string
	}{
		{"exclude each other", []string{"reply", "answerers", "--data", "1", "--", "cat"}},
		{"COMMAND: ", []string{"reply", "answerers", "--", "no-such-command-anywhere"}},
		{"1ms to 5m", []string{"request", "questions", "--timeout", "6m"}},
	} {
		if out, err := m.weft(tc.args...); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: %v %s", tc.args, err, out)
		}
	}
}
