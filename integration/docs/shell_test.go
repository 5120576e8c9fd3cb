package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
)

var built struct {
	once sync.Once
	dir  string
	err  error
}

// binaries builds weft and the example, once, and gives their folder.
func binaries(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "weft-docs-"); built.err != nil {
			return
		}
		for name, pkg := range map[string]string{"weft": "../../tools/cmd/weft", "example-nacos": "../../examples/nacos", "example-endpoint": "../../examples/endpoint"} {
			if out, err := exec.Command("go", "build", "-race", "-o", filepath.Join(built.dir, name), pkg).CombinedOutput(); err != nil {
				built.err = fmt.Errorf("go build: %w\n%s", err, out)
				return
			}
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// blocks are the indented blocks below a heading ("" is the whole page), without
// their indentation. What is fenced is there to be read.
func blocks(t *testing.T, path, heading string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", path))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if heading != "" {
		_, after, ok := strings.Cut(text, "\n"+heading+"\n")
		if !ok {
			t.Fatalf("%s has no %q", path, heading)
		}
		text, _, _ = strings.Cut(after, "\n## ")
	}
	var out []string
	var cur []string
	fenced := false
	end := func() {
		if block := strings.TrimSpace(strings.Join(cur, "\n")); block != "" {
			out = append(out, block+"\n")
		}
		cur = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		in, indented := strings.CutPrefix(line, "    ")
		fence := strings.HasPrefix(line, "```")
		fenced = fenced != fence
		switch {
		case fence || fenced:
			end()
		case indented:
			cur = append(cur, in)
		case line == "":
			cur = append(cur, "")
		default:
			end()
		}
	}
	end()
	return out
}

// shell runs blocks of commands, one after the other, in a folder of its own. As
// in a terminal, variables stay. Its test runs beside others.
type shell struct {
	*testing.T
	ctx    context.Context
	dir    string
	swap   []func(string) string // what is other here than on the page
	env    []string
	groups []int
	isUp   bool
}

// Addresses of the page and the variables that make them others.
var addresses = []struct{ env, port string }{
	{"WEFT_HTTP", "7410"}, {"WEFT_GRPC", "7411"}, {"WEFT_HEALTH", "7418"}, {"WEFT_OPS", "7419"},
	{"WEFT_ADMIN", "7420"}, {"WEFT_DISCOVERY", "7421"}, {"WEFT_CONTROL_PLANE_OPS", "7429"}}

func newShell(t *testing.T) *shell {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	s := &shell{T: t, ctx: ctx, dir: t.TempDir()}
	bin := filepath.Join(s.dir, "bin")
	s.must(os.Mkdir(bin, 0o700))
	s.must(os.Symlink(filepath.Join(binaries(t), "weft"), filepath.Join(bin, "weft")))
	s.must(os.CopyFS(filepath.Join(s.dir, "examples"), os.DirFS("../../examples")))
	s.env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	for _, a := range addresses {
		port, err := servers.FreePort()
		s.must(err)
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		s.replace("127.0.0.1:"+a.port, addr)
		s.env = append(s.env, a.env+"="+addr)
		switch a.env {
		case "WEFT_GRPC":
			s.env = append(s.env, "WEFT_PROXY="+addr)
		case "WEFT_ADMIN":
			s.env = append(s.env, "WEFT_SERVER="+addr)
		}
	}
	t.Cleanup(func() {
		for _, g := range s.groups {
			_ = syscall.Kill(-g, syscall.SIGKILL) // of those that are gone there is none
		}
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
			for _, l := range logs {
				b, err := os.ReadFile(l)
				t.Logf("%s: %v\n%s", filepath.Base(l), err, b)
			}
		}
	})
	return s
}

func (s *shell) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// replace swaps a text of the page for another.
func (s *shell) replace(old, now string) {
	s.swap = append(s.swap, func(in string) string { return strings.ReplaceAll(in, old, now) })
}

func (s *shell) page(in string) string {
	for _, f := range s.swap {
		in = f(in)
	}
	return in
}

// output can be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a block.
func (s *shell) start(block string) (*exec.Cmd, *output) {
	s.Helper()
	vars := filepath.Join(s.dir, ".variables")
	script := "set -euo pipefail\n[ ! -e " + vars + " ] || source " + vars + "\n" + s.page(block) + "export -p > " + vars + "\n"
	cmd := exec.CommandContext(s.ctx, "bash", "-c", script)
	out := &output{}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.must(cmd.Start())
	s.groups = append(s.groups, cmd.Process.Pid)
	return cmd, out
}

// step is what becomes of one block.
type step struct {
	// begins is what the block begins with: page and test stay in step.
	begins string
	// says are in the output. Each is a regular expression.
	says []string
	// instead is what is done instead of the block.
	instead func()
	// follow: the block does not end by itself; it is interrupted once it has
	// said everything.
	follow bool
	// before is done before, after afterwards.
	before, after func()
}

// walk does every block of a page.
func (s *shell) walk(page []string, steps ...step) {
	s.Helper()
	if len(page) != len(steps) {
		s.Errorf("the page has %d blocks, the test %d", len(page), len(steps))
	}
	for i, st := range steps {
		if i >= len(page) || !strings.HasPrefix(page[i], st.begins) {
			s.Fatalf("block %d of the page does not begin with %q", i, st.begins)
		}
		if st.instead != nil {
			st.instead()
			continue
		}
		if st.before != nil {
			st.before()
		}
		cmd, out := s.start(page[i])
		if st.follow {
			s.wait("what "+st.begins+" says", func() error { return says(out.String(), st.says) })
			s.must(syscall.Kill(-cmd.Process.Pid, syscall.SIGINT))
			_ = cmd.Wait()
		} else if err := cmd.Wait(); err != nil {
			s.Fatalf("%s%s\n%v", s.page(page[i]), out, err)
		}
		if err := says(out.String(), st.says); err != nil {
			s.Errorf("%s%s\n%v", s.page(page[i]), out, err)
		}
		if st.after != nil {
			st.after()
		}
	}
}

func says(out string, want []string) error {
	for _, w := range want {
		if !regexp.MustCompile(w).MatchString(out) {
			return fmt.Errorf("it does not say %s", w)
		}
	}
	return nil
}

// wait waits until f gives nil.
func (s *shell) wait(what string, f func() error) {
	s.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			s.Fatalf("%s: %v", what, err)
		}
	}
}

// answers waits until a page of the process answers.
func (s *shell) answers(url string) func() {
	return func() {
		s.Helper()
		s.wait(url, func() error {
			req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.page(url), nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		})
	}
}

// up runs what `make run` runs, once.
func (s *shell) up() {
	s.Helper()
	if s.isUp {
		return
	}
	s.isUp = true
	cmd, out := s.start("weft up --data ./data\n")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		if err := <-ended; err != nil || strings.Contains(out.String(), "DATA RACE") {
			s.Errorf("weft up: %v\n%s", err, out)
		}
	})
	s.wait("weft up says that it is up", func() error { return says(out.String(), []string{"Ctrl-C stops it"}) })
}

// webhook is what the example's Subscription warehouse calls: the ids and data.
func (s *shell) webhook() *output {
	called := &output{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(called, "%s %s %s\n", r.URL.Path, r.Header.Get("ce-id"), b)
	}))
	s.Cleanup(hook.Close)
	page := filepath.Join(s.dir, "examples", "orders", "subscriptions.yaml")
	b, err := os.ReadFile(page)
	s.must(err)
	s.must(os.WriteFile(page, bytes.ReplaceAll(b, []byte("http://127.0.0.1:8080"), []byte(hook.URL)), 0o600))
	return called
}

// edit swaps a text of a file of the examples for another.
func (s *shell) edit(name, old, now string) {
	s.Helper()
	file := filepath.Join(s.dir, "examples", name)
	b, err := os.ReadFile(file)
	s.must(err)
	if !bytes.Contains(b, []byte(old)) {
		s.Fatalf("%s has no %s", name, old)
	}
	s.must(os.WriteFile(file, bytes.ReplaceAll(b, []byte(old), []byte(now)), 0o700))
}

// does runs commands that are on no page.
func (s *shell) does(commands string, say ...string) {
	s.Helper()
	cmd, out := s.start(commands)
	if err := cmd.Wait(); err != nil {
		s.Fatalf("%s%s\n%v", s.page(commands), out, err)
	}
	if err := says(out.String(), say); err != nil {
		s.Errorf("%s%s\n%v", s.page(commands), out, err)
	}
}
