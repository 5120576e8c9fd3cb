package weft

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pty runs a command whose output and errors are a terminal, and gives what that got.
func (m *mesh) pty(args ...string) string {
	m.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		m.Fatal(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		m.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		m.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		m.Fatal(err)
	}
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error once nobody has the other side
		got <- string(b)
	}()
	Main(m.ctx, args, strings.NewReader(""), tty, tty)
	if err := tty.Close(); err != nil {
		m.Fatal(err)
	}
	return <-got
}

// TestTerminal: what others wrote cannot drive the terminal that it is shown on, and is
// as it is where there is none; colours of our own are there.
func TestTerminal(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"), "--wait", "1m")
	const (
		hostile = "<\x1b]0;mine\a\x9b2J\r\u009b31m\u202e\x7f\tthe end>"
		shown   = `<\u001b]0;mine\u0007\x9b2J\u000d\u009b31m\u202e\u007f`
	)
	m.post("orders", "text/plain", hostile, 200, binary("1", "order.created")...)
	m.post("orders", "text/plain", hostile, 200, binary("2", "order.created")...)
	if out := m.must("subscribe", "--tail", "orders", "--from", "beginning", "--max", "1"); !strings.Contains(out, hostile) {
		t.Errorf("where there is no terminal: %q", out)
	}
	at := []string{"--proxy", m.grpc}
	for _, args := range [][]string{
		append([]string{"subscribe", "--tail", "orders", "--from", "beginning", "--max", "1"}, at...),
		append([]string{"subscribe", "billing", "--max", "1"}, at...),
		append([]string{"pull", "billing", "--ack"}, at...),
	} {
		out := m.pty(args...)
		if !strings.Contains(out, shown) || !strings.Contains(out, "the end>") || harmful(out) {
			t.Errorf("weft %s: %q", strings.Join(args, " "), out)
		}
	}
	if out := m.pty("get", "topic", "x\x1b[2J", "--server", m.admin); !strings.Contains(out, "x") || harmful(out) {
		t.Errorf("an error: %q", out)
	}
	changed := file(t, "hello.yaml", "apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: hello}\nspec: {store: main, retention: {max_age: 1h}}\n")
	if out := m.pty("diff", "-f", changed, "--server", m.admin); !strings.Contains(out, "\x1b[32m+") || strings.Contains(out, `\u`) {
		t.Errorf("a difference: %q", out)
	}
	named := file(t, "named.yaml", `{"apiVersion": "weft/v1alpha1", "kind": "Topic", "metadata": {"namespace": "demo", "name": "x\u001b]0;mine\u0007"}, "spec": {"store": "main"}}`)
	if out := m.pty("apply", "--dry-run", "--diff", "-f", named, "--server", m.admin); !strings.Contains(out, `+++ b/topic/demo/x\u001b]0;mine\u0007`) || strings.Contains(out, "mine\a") {
		t.Errorf("the name of a difference: %q", out)
	}
}

// harmful reports whether out has more than text and the ends of lines.
func harmful(out string) bool {
	return strings.IndexFunc(strings.ReplaceAll(out, "\r\n", "\n"), drives) >= 0 || strings.ContainsRune(out, '\ufffd')
}
