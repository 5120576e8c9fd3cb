package weft

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// buffer is an output that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// mesh is a running `weft up`.
type mesh struct {
	*testing.T
	ctx               context.Context
	http, grpc, admin string
	printed           func() string // by weft up
	stop              func()
}

// start runs `weft up` in this process.
func start(t *testing.T, data string, flags ...string) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	uctx, ucancel := context.WithCancel(ctx)
	args := []string{"up", "--data", data}
	// The ports stay over restarts; port 0 would draw others.
	for _, name := range []string{"admin", "discovery", "control-plane-ops", "http", "grpc", "health", "ops"} {
		port, err := servers.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, fmt.Sprintf("--%s=127.0.0.1:%d", name, port))
	}
	args = append(args, flags...)
	var out, errOut buffer
	ended := make(chan int, 1)
	go func() { ended <- Main(uctx, args, strings.NewReader(""), &out, &errOut) }()
	m := &mesh{T: t, ctx: ctx, printed: out.String, stop: sync.OnceFunc(func() {
		ucancel()
		if code := <-ended; code != 0 {
			t.Errorf("weft up ended with %d: %s", code, errOut.String())
		}
	})}
	t.Cleanup(m.stop)
	for !strings.Contains(out.String(), "Ctrl-C stops it") {
		select {
		case code := <-ended:
			ended <- code
			t.Fatalf("weft up ended with %d: %s", code, errOut.String())
		case <-ctx.Done():
			t.Fatalf("weft up does not get ready: %s", errOut.String())
		default:
		}
	}
	find := func(pattern string) string {
		match := regexp.MustCompile(pattern).FindStringSubmatch(out.String())
		if match == nil {
			t.Fatalf("%s is not in:\n%s", pattern, out.String())
		}
		return match[1]
	}
	m.http, m.grpc, m.admin = find(`HTTP +(\S+)`), find(`gRPC +(\S+)`), find(`admin API +(\S+)`)
	return m
}

// weft runs a command and gives what it printed.
func (m *mesh) weft(args ...string) (out string, err error) {
	var o, e bytes.Buffer
	cmd := Command()
	for _, c := range cmd.Commands() {
		if c.Name() == args[0] {
			if nested, _, err := c.Find(args[1:]); err == nil {
				c = nested
			}
			if c.Flags().Lookup("server") != nil {
				args = flagged(args, "--server", m.admin)
			}
			if c.Flags().Lookup("proxy") != nil {
				args = flagged(args, "--proxy", m.grpc)
			}
		}
	}
	if code := Main(m.ctx, args, strings.NewReader(""), &o, &e); code != 0 {
		return o.String(), fmt.Errorf("%s", e.String())
	}
	return o.String(), nil
}

// flagged is args with a flag, before what is behind "--".
func flagged(args []string, flag ...string) []string {
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	return slices.Insert(slices.Clone(args), at, flag...)
}

func (m *mesh) must(args ...string) string {
	m.Helper()
	out, err := m.weft(args...)
	if err != nil {
		m.Fatalf("weft %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// post publishes over HTTP and wants a status.
func (m *mesh) post(topic, contentType, body string, want int, headers ...string) string {
	m.Helper()
	req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, m.http+"/v1/demo/topics/"+topic, strings.NewReader(body))
	if err != nil {
		m.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		m.Fatal(err)
	}
	if resp.StatusCode != want {
		m.Errorf("POST %s: %s, want %d: %s", topic, resp.Status, want, b)
	}
	return string(b)
}

func binary(id, typ string, more ...string) []string {
	return append([]string{"ce-specversion", "1.0", "ce-id", id, "ce-source", "/shop", "ce-type", typ}, more...)
}

// sse reads n events of a tail.
func (m *mesh) sse(topic string, n int, ready chan<- struct{}) ([]event.Event, error) {
	req, err := http.NewRequestWithContext(m.ctx, http.MethodGet, m.http+"/v1/demo/topics/"+topic+"/events", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", resp.Status)
	}
	close(ready)
	var out []event.Event
	sc := bufio.NewScanner(resp.Body)
	for len(out) < n && sc.Scan() {
		if data, ok := strings.CutPrefix(sc.Text(), "data: "); ok {
			e, err := cloudevents.DecodeJSON([]byte(data))
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
	}
	return out, sc.Err()
}

// exampleFolder is examples/orders with the webhook's URL replaced.
func exampleFolder(t *testing.T, webhook string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob("../../examples/orders/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.ReplaceAll(b, []byte("http://127.0.0.1:8080/orders"), []byte(webhook))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestQuickStart is what a new user does: the README's commands and the orders
// example, with every way in and out.
func TestQuickStart(t *testing.T) {
	called := make(chan *http.Request, 100)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		called <- r
	}))
	defer hook.Close()
	data := filepath.Join(t.TempDir(), "data")
	m := start(t, data)

	// The three commands that `weft up` prints.
	ready := make(chan struct{})
	tailed := make(chan []event.Event, 1)
	go func() {
		got, err := m.sse("hello", 1, ready)
		if err != nil {
			t.Error(err)
		}
		tailed <- got
	}()
	<-ready
	m.post("hello", "application/json", `{"hello": "world"}`, 200, binary("1", "greeting")...)
	if got := <-tailed; len(got) != 1 || got[0].ID != "1" || string(got[0].Data) != `{"hello":"world"}` {
		t.Errorf("the tail has %+v", got)
	}
	if out := m.must("status"); !strings.Contains(out, "topic/demo/hello") {
		t.Error(out)
	}

	// The orders example.
	out := m.must("apply", "-f", exampleFolder(t, hook.URL))
	if strings.Count(out, " created") != 7 {
		t.Errorf("apply says:\n%s", out)
	}
	if out := m.must("status", "--wait", "1m"); strings.Count(out, "  Ready") != 6 || !strings.Contains(out, "1 of 1 proxy has all of it") {
		t.Error(out)
	}
	m.post("orders", "application/json", `{"n":1}`, 200, binary("b1", "order.created", "ce-subject", "c1")...)
	m.post("orders", cloudevents.TypeJSON, `{"specversion":"1.0","id":"s1","source":"/shop","type":"order.created","region":"eu","data":{"n":2}}`, 200)
	batch := m.post("orders", cloudevents.TypeBatch, `[{"specversion":"1.0","id":"x1","source":"/shop","type":"order.paid","data":3},{"specversion":"1.0","id":"x2","source":"/shop","type":"note","data":4}]`, 200)
	var answer struct{ Results []struct{ Position string } }
	if err := json.Unmarshal([]byte(batch), &answer); err != nil || len(answer.Results) != 2 || answer.Results[1].Position == "" {
		t.Errorf("the batch's answer is %s", batch)
	}
	got := m.must("subscribe", "billing", "--max", "4", "-o", "json")
	for id, data := range map[string]string{"b1": `{"n":1}`, "s1": `{"n":2}`, "x1": "3", "x2": "4"} {
		found := false
		for line := range strings.Lines(got) {
			e, err := cloudevents.DecodeJSON([]byte(strings.TrimSpace(line)))
			found = found || err == nil && e.ID == id && string(e.Data) == data
		}
		if !found {
			t.Errorf("billing did not get %s with %s:\n%s", id, data, got)
		}
	}
	// The route keeps European orders apart, so the warehouse gets the others.
	hooks := map[string]string{}
	for len(hooks) < 2 {
		select {
		case r := <-called:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			hooks[r.Header.Get("ce-id")] = string(body)
		case <-m.ctx.Done():
			t.Fatalf("the warehouse was called for %v", hooks)
		}
	}
	if hooks["b1"] != `{"n":1}` || hooks["x1"] != "3" {
		t.Errorf("the warehouse was called for %v", hooks)
	}
	if out := m.must("subscribe", "--tail", "orders.eu", "--from", "beginning", "--max", "1"); !strings.Contains(out, "s1") {
		t.Errorf("orders.eu has %s", out)
	}

	// A tail with --max ends well though more is there.
	if out := m.must("subscribe", "--tail", "orders", "--from", "beginning", "--max", "2"); strings.Count(out, "\n") != 2 {
		t.Errorf("two events are %q", out)
	}
	if _, err := m.weft("subscribe", "billing", "--from", "beginning"); err == nil || !strings.Contains(err.Error(), "--tail") {
		t.Errorf("--from of a Subscription: %v", err)
	}

	// A refusal names the rule; a change of the rules takes effect on what is
	// open.
	if msg := m.post("orders.audit", "text/plain", "x", 403, binary("1", "t")...); !strings.Contains(msg, "no AccessPolicy of namespace demo allows local") {
		t.Error(msg)
	}
	tailEnded := make(chan error, 1)
	go func() {
		_, err := m.weft("subscribe", "--tail", "orders")
		tailEnded <- err
	}()
	deny := filepath.Join(t.TempDir(), "deny.yaml")
	if err := os.WriteFile(deny, []byte("apiVersion: weft/v1alpha1\nkind: AccessPolicy\nmetadata: {namespace: demo, name: freeze}\nspec:\n  rules:\n    - {name: frozen, effect: deny, principals: ['*'], actions: [publish, subscribe], topics: [orders]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("apply", "-f", deny)
	if err := <-tailEnded; err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("the open tail ends with %v", err)
	}
	if msg := m.post("orders", "text/plain", "x", 403, binary("1", "t")...); !strings.Contains(msg, "frozen") {
		t.Error(msg)
	}
	m.must("delete", "accesspolicy", "freeze")
	m.await("the denial is gone", func() bool {
		_, err := m.weft("publish", "orders", "--id", "after")
		return err == nil
	})

	// It is all there after a restart.
	m.stop()
	m = start(t, data)
	if out := m.must("subscribe", "billing", "--max", "1", "-o", "json"); !strings.Contains(out, `"after"`) {
		t.Errorf("after the restart billing gets %s", out)
	}
	if out := m.must("get", "topics", "-o", "yaml"); !strings.Contains(out, "name: orders.eu") {
		t.Error(out)
	}
}

// await waits until f holds.
func (m *mesh) await(what string, f func() bool) {
	m.Helper()
	for !f() {
		if m.ctx.Err() != nil {
			m.Fatalf("%s: not in time", what)
		}
	}
}

// TestBadManifests: what is wrong is named with its place, and nothing happens.
func TestBadManifests(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	file := filepath.Join(t.TempDir(), "bad.yaml")
	for _, tc := range []struct{ in, want string }{
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: x}\nspec:\n  stroe: main\n", file + ":5:3: spec.stroe: is not a field; did you mean store?"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: x}\nspec: {store: nowhere}\n", "topic/demo/x: spec.store: there is no EventStore nowhere in namespace demo"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: HELLO}\nspec: {store: main}\n", "differs from topic/demo/hello only in case"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: x}\nspec: {store: [}\n", file + ":4:1: did not find expected node content"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: x}\nspec: {store: \"\xff\"}\n", file + ":4:16: is not UTF-8"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: ../x}\nspec: {store: main, quota: 1}\n", file + ":4:21: spec.quota: is not a field"},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: ../x}\nspec: {store: main}\n", `metadata.name: name "../x" must not have an empty segment`},
		{"apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: demo, name: \u043erders}\nspec: {store: main}\n", "may only have the characters"},
		{"apiVersion: weft/v1alpha1\nkind: TopicBinding\nmetadata: {namespace: demo, name: hello}\n", "only the control plane writes"},
	} {
		if err := os.WriteFile(file, []byte(tc.in), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.weft("apply", "-f", file); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v\nwant %s", err, tc.want)
		}
	}
}

func TestSecondMeshOnOneFolder(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	m := start(t, data)
	if _, err := m.weft("up", "--data", data); err == nil || !strings.Contains(err.Error(), "is used by another mesh (pid ") {
		t.Errorf("%v", err)
	}
}

// TestAPIKey: a key that was made here lets its principal in, and no other does.
func TestAPIKey(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	key := filepath.Join(t.TempDir(), "svc.key")
	refused := filepath.Join(t.TempDir(), "refused")
	if _, err := m.weft("apikey", "order service", "--key-file", refused); err == nil || !strings.Contains(err.Error(), "spec.api_keys.keys[0].principal: ") {
		t.Errorf("a principal that no Identity may have: %v", err)
	}
	if _, err := os.Stat(refused); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key for an Identity that could not be applied: %v", err)
	}
	identity := m.must("apikey", "svc", "--key-file", key)
	secret, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(identity, strings.TrimSpace(string(secret))) {
		t.Error("the Identity has the key itself")
	}
	file := filepath.Join(t.TempDir(), "id.yaml")
	policy := "---\napiVersion: weft/v1alpha1\nkind: AccessPolicy\nmetadata: {namespace: demo, name: svc}\nspec:\n  rules:\n    - {name: svc, effect: allow, principals: [svc], actions: [publish], topics: [hello]}\n    - {name: no-local, effect: deny, principals: [local], actions: [publish], topics: [hello]}\n"
	if err := os.WriteFile(file, []byte(identity+policy), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("apply", "-f", file)
	m.await("the key is known", func() bool {
		_, err := m.weft("publish", "hello", "--api-key-file", key)
		return err == nil
	})
	if _, err := m.weft("publish", "hello"); err == nil || !strings.Contains(err.Error(), "no-local") {
		t.Errorf("local publishes: %v", err)
	}
	t.Setenv("WEFT_API_KEY", string(secret)) // with the end of its line
	m.must("publish", "hello")
	t.Setenv("WEFT_API_KEY", "")
	if err := os.WriteFile(key, append(secret[:len(secret)-3], 'x'), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.weft("publish", "hello", "--api-key-file", key); err == nil || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("a wrong key publishes: %v", err)
	}
}

// TestOutputs: what is shown as YAML or JSON can be read again, by apply too.
func TestOutputs(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"))
	for _, kind := range []string{"eventstores", "topics", "routes", "subscriptions", "accesspolicies"} {
		for _, format := range []string{"yaml", "json"} {
			file := filepath.Join(t.TempDir(), kind+"."+format)
			shown := m.must("get", kind, "-o", format)
			if err := os.WriteFile(file, []byte(shown), 0o600); err != nil {
				t.Fatal(err)
			}
			out := m.must("apply", "-f", file)
			if strings.Count(out, "unchanged\n") != strings.Count(out, "\n") || out == "" {
				t.Errorf("%s as %s, applied again:\n%s", kind, format, out)
			}
		}
	}
	for _, format := range []string{"yaml", "json"} {
		if out := m.must("get", "topics", "-n", "none", "-o", format); out != "" {
			t.Errorf("none as %s: %s", format, out)
		}
	}
	var applied struct {
		Results []struct{ Name, Outcome string }
	}
	if err := json.Unmarshal([]byte(m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:2/"), "-o", "json")), &applied); err != nil || len(applied.Results) != 7 {
		t.Errorf("%v %+v", err, applied)
	}
	var kept struct{ ID, Position string }
	if err := json.Unmarshal([]byte(m.must("publish", "hello", "--id", "1", "-o", "json")), &kept); err != nil || kept.ID != "1" || kept.Position == "" {
		t.Errorf("%v %+v", err, kept)
	}
	if out := m.must("publish", "hello", "--id", "2", "-o", "yaml"); !strings.Contains(out, `id: "2"`) {
		t.Error(out)
	}
	if out := m.must("subscribe", "--tail", "hello", "--from", "beginning", "--max", "2", "-o", "yaml"); strings.Count(out, "---\n") != 2 || !strings.Contains(out, "source: /weft/cli") {
		t.Error(out)
	}
	if out := m.must("status", "-o", "yaml"); !strings.Contains(out, "acked_revision:") {
		t.Error(out)
	}
	for _, args := range [][]string{{"status"}, {"get", "topics"}, {"apply", "-f", exampleFolder(t, "http://127.0.0.1:1/")}, {"publish", "hello"}, {"subscribe", "billing"}} {
		if _, err := m.weft(append(args, "-o", "xml")...); err == nil || !strings.Contains(err.Error(), `"xml" is not text, json or yaml`) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := m.weft("publish"); err == nil || !strings.Contains(err.Error(), "usage: weft publish TOPIC") {
		t.Errorf("no topic: %v", err)
	}
	if _, err := m.weft("get", "topics", "--colour"); err == nil || !strings.Contains(err.Error(), "weft get --help") {
		t.Errorf("an unknown flag: %v", err)
	}
}

// TestCompletion: kinds, names, namespaces and formats complete, from the control
// plane that is named.
func TestCompletion(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	m.must("apply", "-f", exampleFolder(t, "http://127.0.0.1:1/"))
	t.Setenv("WEFT_SERVER", m.admin)
	for _, tc := range []struct {
		args       []string
		want, lack string
	}{
		{[]string{"get", ""}, "accesspolicy", "orders"},
		{[]string{"get", "topics", ""}, "orders.eu", "billing"},
		{[]string{"get", "topics", "orders", ""}, ":4", "orders.eu"},
		{[]string{"delete", "topic", "orders", ""}, "orders.eu", "orders\n"},
		{[]string{"get", "topics", "-n", ""}, "demo", "orders"},
		{[]string{"get", "topics", "-o", ""}, "yaml", "orders"},
		{[]string{"get", "topics"}, "topics", "orders"},
		{[]string{"get", "identit"}, "identity", "identities"},
		{[]string{"get", "identiti"}, "identities", "topics"},
		{[]string{"get", "accesspolicie"}, "accesspolicies", "topics"},
		{[]string{"history", "topic", "-n", "demo", ""}, "orders.eu", "billing"},
		{[]string{"rollback", ""}, "Apply by local: ", "orders.eu"},
		{[]string{"rollback", "7", "topic", ""}, "orders.eu", "Apply by"},
		{[]string{"rollback", "7", ""}, "topic", "Apply by"},
		{[]string{"diff", "7", ""}, "Apply by local: ", "orders.eu"},
		{[]string{"diff", "--only", "topic/"}, "topic/demo/orders.eu", "billing"},
		{[]string{"diff", "--only-kind", ""}, "topic", "orders.eu"},
		{[]string{"schema", "check", "a.json", "--compatibility", ""}, "forward", "orders"},
		{[]string{"schema", "check", "a.json", "-n", ""}, "demo", "orders"},
		{[]string{"wait", "--revision", ""}, "Apply by local: ", "orders.eu"},
		{[]string{"apply", "--kind", ""}, "topic", "orders.eu"},
		{[]string{"apply", "-n", ""}, "demo", "orders"},
		{[]string{"status", ""}, "route/", "orders.eu"},
		{[]string{"status", "topics/demo/"}, "topics/demo/orders.eu", "billing"},
		{[]string{"status", "none/"}, ":4", "orders.eu"},
		{[]string{"publish", ""}, "hello", "billing"},
		{[]string{"subscribe", ""}, "billing", "hello"},
		{[]string{"subscribe", "--tail", ""}, "orders.eu", "billing"},
		{[]string{"subscribe", "--from", ""}, "beginning", "billing"},
		{[]string{"settle", ""}, "billing", "hello"},
		{[]string{"migrate", ""}, "orders.eu", "billing"},
		{[]string{"migrate", ""}, "rollback", "billing"},
		{[]string{"migrate", "orders", "--to", ""}, "main", "billing"},
		{[]string{"migrate", "status", ""}, ":4", "orders"},
	} {
		var out, errOut bytes.Buffer
		if code := Main(m.ctx, append([]string{"__complete"}, tc.args...), strings.NewReader(""), &out, &errOut); code != 0 {
			t.Fatalf("%v: %s", tc.args, errOut.String())
		}
		if !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), tc.lack) {
			t.Errorf("%v completes with\n%s", tc.args, out.String())
		}
	}
	if out := m.must("completion", "bash"); !strings.Contains(out, "__start_weft") {
		t.Error("there is no completion for bash")
	}
}

// TestHelp: every command says what it is for, with an example.
func TestHelp(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no description or no example", c.CommandPath())
		}
		if !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("the example of %s has no %[1]s", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	for _, c := range Command().Commands() {
		look(c)
		for line := range strings.Lines(c.Example) {
			if !strings.Contains(line, "weft "+c.Name()) {
				t.Errorf("the example of weft %s has %q", c.Name(), line)
			}
		}
	}
}

// TestUpOnSockets: what is printed to try is right over Unix sockets too.
func TestUpOnSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "weft") // paths are to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := start(t, filepath.Join(t.TempDir(), "data"), "--http=unix:"+filepath.Join(dir, "http"), "--grpc=unix:"+filepath.Join(dir, "grpc"))
	if m.http != "unix:"+filepath.Join(dir, "http") || m.grpc != "unix:"+filepath.Join(dir, "grpc") {
		t.Errorf("it prints %s and %s", m.http, m.grpc)
	}
	if want := "curl --unix-socket '" + filepath.Join(dir, "http") + "' http://localhost/v1/demo/topics/hello -H"; !strings.Contains(m.printed(), want) {
		t.Errorf("it does not print %s:\n%s", want, m.printed())
	}
	if out := m.must("publish", "hello", "--id", "over-a-socket"); !strings.Contains(out, "over-a-socket is kept at ") {
		t.Error(out)
	}
	if out := m.must("trace", "/weft/cli", "over-a-socket"); !strings.Contains(out, "hello") {
		t.Error(out)
	}
}
