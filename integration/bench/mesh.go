package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/apache/rocketmq-client-go/v2/rlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/weft-mesh/weft/integration/servers"
)

// run is one run of the command: the binaries, the servers, what was found.
type run struct {
	settings
	ctx   context.Context
	out   io.Writer
	dir   string // of everything that the run writes, on disk
	ns    string
	lines []string // the summary
	stops []func() error

	etcdEndpoint string
	rocket       *servers.RocketMQ
	kafkaNode    *servers.Kafka
}

func newRun(ctx context.Context, s settings, out io.Writer) (_ *run, err error) {
	r := &run{settings: s, ctx: ctx, out: out, ns: fmt.Sprintf("bench-%d", os.Getpid())}
	if r.dir, err = os.MkdirTemp("", "weft-bench-"); err != nil {
		return nil, err
	}
	r.stops = append(r.stops, func() error { return os.RemoveAll(r.dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for name, pkg := range map[string]string{"weft": "weft", "weft-proxy": "weft-proxy"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", filepath.Join(r.dir, name), "github.com/weft-mesh/weft/tools/cmd/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	return r, nil
}

func (r *run) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

// note adds a line to the summary: what was found, and what is aimed at.
func (r *run) note(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *run) summary() {
	if len(r.lines) == 0 {
		return
	}
	r.printf("\n== summary\n")
	for _, l := range r.lines {
		r.printf("  %s\n", l)
	}
}

func (r *run) close() error {
	var errs []error
	for i := len(r.stops) - 1; i >= 0; i-- {
		errs = append(errs, r.stops[i]())
	}
	r.stops = nil
	return errors.Join(errs...)
}

// etcd starts one, once.
func (r *run) etcd(ctx context.Context) (string, error) {
	if r.etcdEndpoint != "" {
		return r.etcdEndpoint, nil
	}
	e, err := servers.StartEtcd(ctx, servers.EtcdOptions{})
	if err != nil {
		return "", err
	}
	r.stops = append(r.stops, e.Stop)
	r.etcdEndpoint = e.Endpoint
	return e.Endpoint, nil
}

// rocketmq starts one of its own, once: the CPU of its broker is measured.
func (r *run) rocketmq(ctx context.Context) (names string, broker int, err error) {
	if r.rocket == nil {
		rlog.SetLogLevel("fatal") // of RocketMQ's own client
		if r.rocket, err = servers.StartRocketMQ(ctx, servers.RocketMQOptions{}); err != nil {
			return "", 0, err
		}
		r.stops = append(r.stops, r.rocket.Stop)
	}
	return r.rocket.NameServer, r.rocket.Broker.PID(), nil
}

// mesh is a control plane and a proxy, a process each.
type mesh struct {
	r            *run
	admin, disco string
	http, grpc   string
	ops          string // of the proxy
	controlOps   string
	key          string // API key of the principal bench
	control      *servers.Process
	proxy        *servers.Process
	conn         *grpc.ClientConn
	stop         func() error
}

func address() (string, error) {
	p, err := servers.FreePort()
	return fmt.Sprintf("127.0.0.1:%d", p), err
}

func addresses(to ...*string) (err error) {
	for _, a := range to {
		if *a, err = address(); err != nil {
			return err
		}
	}
	return nil
}

// answers is ready once url answers 2xx.
func answers(url string) func(context.Context, []byte) error {
	return func(ctx context.Context, _ []byte) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return errors.New(resp.Status)
		}
		return nil
	}
}

// startMesh starts a mesh whose proxy keeps its data in data. proxy is the
// command that runs it, weft-proxy when there is none.
func (r *run) startMesh(ctx context.Context, name, data string, proxy ...string) (_ *mesh, err error) {
	if len(proxy) == 0 {
		proxy = []string{filepath.Join(r.dir, "weft-proxy")}
	}
	etcd, err := r.etcd(ctx)
	if err != nil {
		return nil, err
	}
	m := &mesh{r: r}
	m.stop = func() error {
		var errs []error
		if m.conn != nil {
			errs = append(errs, m.conn.Close())
		}
		for _, p := range []*servers.Process{m.proxy, m.control} {
			if p != nil {
				errs = append(errs, p.Stop())
			}
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop())
		}
	}()
	var health string
	if err := addresses(&m.admin, &m.disco, &m.controlOps, &m.http, &m.grpc, &m.ops, &health); err != nil {
		return nil, err
	}
	m.control = &servers.Process{Name: "control plane", Log: filepath.Join(r.dir, name+"-control.log"), Ready: answers("http://" + m.controlOps + "/readyz"),
		Args: []string{filepath.Join(r.dir, "weft"), "control-plane", "--etcd", etcd, "--etcd-prefix", "/" + r.ns + name + "/", "--admin", m.admin, "--discovery", m.disco, "--ops", m.controlOps}}
	if err := m.control.Start(ctx); err != nil {
		return nil, err
	}
	m.proxy = &servers.Process{Name: "proxy", Log: filepath.Join(r.dir, name+"-proxy.log"), Ready: answers("http://" + health + "/readyz"),
		Args: append(proxy, "--control-plane", m.disco, "--data", data, "--node-id", "bench",
			"--http", m.http, "--grpc", m.grpc, "--health", health, "--ops", m.ops, "--log-level", "warn")}
	if err := m.proxy.Start(ctx); err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, name+".key")
	identity, err := m.weft(ctx, "", "apikey", "bench", "-n", r.ns, "--key-file", file)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m.key = strings.TrimSpace(string(key))
	if m.conn, err = dial(m.grpc); err != nil {
		return nil, err
	}
	return m, m.apply(ctx, identity+"---"+`
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: NS, name: bench}
spec:
  rules:
    - {name: bench, effect: allow, principals: [bench], actions: [publish, subscribe, consume], topics: [">"], subscriptions: [">"]}
`)
}

func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithReadBufferSize(64<<10), grpc.WithWriteBufferSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
}

// weft runs a command.
func (m *mesh) weft(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(m.r.dir, "weft"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("weft %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// apply applies YAML, with NS for the namespace, and waits until everything is
// ready and the proxy has it.
func (m *mesh) apply(ctx context.Context, yaml string) error {
	if _, err := m.weft(ctx, strings.ReplaceAll(yaml, "NS", m.r.ns), "apply", "--server", m.admin, "-f", "-"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := m.weft(ctx, "", "status", "--server", m.admin, "-o", "json")
		if err != nil {
			return err
		}
		var st struct {
			Revision string
			Proxies  []struct {
				Acked string `json:"acked_revision"`
			}
			Resources []struct {
				Name       string
				Conditions []struct{ State string }
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return err
		}
		good := len(st.Proxies) == 1 && st.Proxies[0].Acked == st.Revision
		for _, res := range st.Resources {
			// An EventStore inside a proxy has no conditions.
			good = good && (len(res.Conditions) > 0 || strings.HasPrefix(res.Name, "eventstore/"))
			for _, c := range res.Conditions {
				good = good && c.State == "STATE_TRUE"
			}
		}
		if good {
			return nil
		}
		wait(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("the configuration does not get ready:\n%s", out)
		}
	}
}

// credentials adds the API key to a call.
func (m *mesh) credentials(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+m.key)
}

// end stops the mesh.
func (m *mesh) end() {
	if err := m.stop(); err != nil {
		m.r.printf("  stopping: %v\n", err)
	}
}
