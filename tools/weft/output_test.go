package weft

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestYAMLOfJSON: whatever is JSON is written as YAML, as it is.
func TestYAMLOfJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"b":"\ud83d\ude00","a":[1,-2.50,1E5,12345678901234567890123,true,null,[],{}]}`: "b: \"\\U0001F600\"\na:\n    - 1\n    - -2.50\n    - 1E5\n    - 12345678901234567890123\n    - true\n    - null\n    - []\n    - {}\n",
		`{"a":1,"a":2}`: "a: 1\na: 2\n",
		`{"<<":1}`:      "\"<<\": 1\n",
		`["yes","12:30","1","null","2026-01-31","~",""," x","true"]`: "- \"yes\"\n- \"12:30\"\n- \"1\"\n- \"null\"\n- \"2026-01-31\"\n- \"~\"\n- \"\"\n- ' x'\n- \"true\"\n",
		"\"\x7f\\u0000\\u001b[2J\\ud800\"":                           "\"\\x7F\\0\\e[2J\ufffd\"\n",
		`"a\n b\r\n"`:                                                "\"a\\n b\\r\\n\"\n",
	} {
		var b strings.Builder
		if err := writeJSON(&b, []byte(in), "yaml"); err != nil || b.String() != "---\n"+want {
			t.Errorf("%s: %v\n%q, want\n%q", in, err, b.String(), "---\n"+want)
		}
		var back any
		if err := yaml.Unmarshal([]byte(b.String()), &back); err != nil && !strings.Contains(err.Error(), "already defined") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// full is an output that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// TestShownNowhere: an event that cannot be shown costs no attempt, and whoever asked for it
// is told.
func TestShownNowhere(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"), "--wait", "1m")
	m.must("publish", "orders", "--id", "a")
	for _, args := range [][]string{{"billing"}, {"billing", "--max", "1"}, {"--tail", "orders", "--from", "beginning"}, {"--tail", "orders", "--from", "beginning", "--max", "1"}} {
		var errOut buffer
		code := Main(m.ctx, append([]string{"subscribe", "--proxy", m.grpc}, args...), strings.NewReader(""), full{}, &errOut)
		if code != 1 || !strings.Contains(errOut.String(), "no space left on device") {
			t.Errorf("subscribe %s ends with %d: %s", strings.Join(args, " "), code, errOut.String())
		}
	}
	if out := m.must("pull", "billing", "--wait", "1m", "--ack", "-o", "json"); !strings.Contains(out, `"attempt":1,`) {
		t.Errorf("it comes at another attempt: %s", out)
	}
}
