package weft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/pkg/client"
)

// TestMistakes: what is typed wrong is refused with what to do next, and what looks odd
// and is right is taken.
func TestMistakes(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("publish", "hello", "--id", "a,b", "--attr", "note=x, y=z")
	if out := m.must("subscribe", "--tail", "hello", "--from", "1h", "--max", "1", "-o", "json"); !strings.Contains(out, `"note":"x, y=z"`) {
		t.Errorf("an attribute with a comma: %s", out)
	}
	for _, tc := range []struct {
		says string
		args []string
	}{
		{"is the name right? weft get says what there is", []string{"publish", "helo"}},
		{`unknown command "redrve" for "weft dlq"` + "\n\nDid you mean this?\n\tredrive\n\nweft dlq --help", []string{"dlq", "redrve"}},
		{`unknown command "x" for "weft schema"` + "\nweft schema --help", []string{"schema", "x"}},
		{`unknown command "x" for "weft admin"` + "\nweft admin --help", []string{"admin", "x"}},
		{`weft dlq list takes flags alone, and has "billing"` + "\nusage: weft dlq list", []string{"dlq", "list", "billing"}},
		{"--data: it is not JSON, as --content-type application/json says: ", []string{"publish", "hello", "--data", "{bad"}},
		{"for text, --content-type text/plain", []string{"request", "hello", "--data", "{bad", "--content-type", "application/x+json; charset=utf-8"}},
		{"--data: it is larger than 8 MiB", []string{"publish", "hello", "--data", "@" + file(t, "large", strings.Repeat("1", maxData+1))}},
		{"--max: -1 is less than 0", []string{"subscribe", "--tail", "hello", "--max", "-1"}},
		{"--max: -1 is less than 0", []string{"reply", "hello", "--max", "-1"}},
		{"--max: -1 is less than 0", []string{"dlq", "redrive", "-s", "some", "--max", "-1"}},
		{"--max: 0 is less than 1", []string{"dlq", "list", "-s", "some", "--max", "0"}},
		{"--extend is more than 0s", []string{"settle", "hello", "some", "--extend", "0s"}},
		{"--nack and --extend exclude each other", []string{"settle", "hello", "some", "--extend", "0s", "--nack"}},
		{"--api-key-file: open /nowhere/key: no such file", []string{"subscribe", "--tail", "hello", "--api-key-file", "/nowhere/key"}},
		{"-A shows all of a kind; say in which namespace hello is, with -n", []string{"get", "topic", "hello", "-A"}},
		{"--from is beginning, end, a time or how long ago", []string{"subscribe", "--tail", "hello", "--from", "yesterday"}},
	} {
		if out, err := m.weft(tc.args...); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: %s %v", tc.args, out, err)
		}
	}
	m.grpc = "http://" + m.grpc
	if _, err := m.weft("publish", "hello"); err == nil || !strings.Contains(err.Error(), "neither HOST:PORT, without a scheme, nor unix:/path") {
		t.Errorf("a URL for an address: %v", err)
	}
}

// TestUnsettled: what a member leaves unsettled uses its credit, and comes to others at
// the same attempt once it ends.
func TestUnsettled(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"), "--wait", "1m")
	m.must("publish", "orders", "--id", "a")
	c, err := client.New(client.Config{Addresses: []string{m.grpc}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	had, ended := make(chan string, 10), make(chan error, 1)
	go func() {
		ended <- c.Subscribe(ctx, "demo", "billing", func(_ context.Context, d client.Delivery) error {
			had <- d.Event.ID
			return client.ErrUnsettled
		}, client.SubscribeOptions{Credit: 1})
	}()
	<-had
	m.must("publish", "orders", "--id", "b")
	for _, id := range []string{"b", "a"} {
		if out := m.must("pull", "billing", "--wait", "1m", "--ack", "-o", "json"); !strings.Contains(out, `"attempt":1,`) || !strings.Contains(out, `"id":"`+id+`"`) {
			t.Errorf("want %s at its first attempt, got %s", id, out)
		}
		cancel()
	}
	if err := <-ended; !errors.Is(err, context.Canceled) || len(had) > 0 {
		t.Errorf("%v, and %d more", err, len(had))
	}
}

// TestMaxTakesNoAttempt: what comes to weft subscribe beyond --max has not failed.
func TestMaxTakesNoAttempt(t *testing.T) {
	const events = 16 // as many as it has credit for
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"), "--wait", "1m")
	m.must("status", "--wait", "1m")
	for i := range events {
		m.must("publish", "orders", "--id", fmt.Sprint(i))
	}
	m.must("subscribe", "billing", "--max", "1")
	for left := events - 1; left > 0; {
		out := m.must("pull", "billing", "--max", fmt.Sprint(left), "--wait", "1m", "--ack", "-o", "json")
		got := strings.Count(out, `"attempt":`)
		if got == 0 || strings.Count(out, `"attempt":1,`) != got {
			t.Fatalf("%d are left, and not all come at their first attempt: %s", left, out)
		}
		left -= got
	}
}

// TestUnreached: whoever does not reach a control plane is asked whether it is there; whom one has
// answered is not.
func TestUnreached(t *testing.T) {
	const hint = "is the control plane there"
	for message, asked := range map[string]bool{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`: true,
		"write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe":                                                       true,
		"keepalive ping failed to receive ACK within timeout":                                                          true,
		"error reading from server: EOF":                                                                               true,
		"name resolver error: produced zero addresses":                                                                 true,
		"etcd did not answer": false,
		"etcd refuses the change, and nothing was changed: etcdserver: permission denied": false,
	} {
		if said := explain(status.Error(codes.Unavailable, message)); strings.Contains(said, hint) != asked || !strings.HasPrefix(said, message) {
			t.Errorf("%s: it is explained by %q", message, said)
		}
	}
}

// TestInterruptedInput: Ctrl-C ends what waits for standard input, and a question.
func TestInterruptedInput(t *testing.T) {
	for _, args := range [][]string{{"apply", "-f", "-"}, {"publish", "hello", "--data", "-"}, {"eval", "hello", "-f", "-"}} {
		in, w := io.Pipe()
		defer w.Close() // nothing comes, and no end
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var errOut buffer
		if code := Main(ctx, args, in, io.Discard, &errOut); code != 1 || !strings.Contains(errOut.String(), "context canceled") {
			t.Errorf("weft %v ends with %d: %s", args, code, errOut.String())
		}
	}
	in, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cmd := Command()
	cmd.SetContext(ctx)
	cmd.SetIn(in)
	cmd.SetOut(io.Discard)
	if err := confirm(cmd, "Apply?"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
