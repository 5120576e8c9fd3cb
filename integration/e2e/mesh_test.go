// Package e2e tests the mesh as separate processes against real servers: etcd,
// RocketMQ, Nacos, control planes and proxies, killed and started again.
package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
)

func TestMain(m *testing.M) {
	// A test here waits for processes more than it computes: two at a time, one for
	// each core, left half of two cores idle. -parallel says otherwise.
	if err := flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)*3/2)); err != nil {
		panic(err)
	}
	code := servers.Main(m)
	for _, b := range []*binary{&weftBinary, &plainBinary, &proxyBinary, &finderBinary, &crowdBinary} {
		if b.dir != "" {
			_ = os.RemoveAll(b.dir)
		}
	}
	os.Exit(code)
}

// binary is a command of this module, built once.
type binary struct {
	pkg  string
	race string // -race, but where nothing of the mesh is what is tested
	once sync.Once
	dir  string
	err  error
}

var (
	weftBinary  = binary{pkg: "../../tools/cmd/weft", race: "-race=true"}
	plainBinary = binary{pkg: "../../tools/cmd/weft", race: "-race=false"}
	proxyBinary = binary{pkg: "../../tools/cmd/weft-proxy", race: "-race=true"}
	// The finder is a stranger's program: nacos-sdk-go, which has a race of its own (its
	// issue 905: who begins a client and who looks after its health), and nothing of ours.
	finderBinary = binary{pkg: "./finder", race: "-race=false"}
	crowdBinary  = binary{pkg: "./crowd", race: "-race=false"}
)

func (b *binary) path(t *testing.T) string {
	t.Helper()
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "weft-e2e-"); b.err != nil {
			return
		}
		cmd := exec.Command("go", "build", b.race, "-o", filepath.Join(b.dir, "bin"), b.pkg)
		if b.race == "-race=false" {
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, "bin")
}

// mesh is a control plane and proxies, each a process.
type mesh struct {
	*testing.T
	ctx  context.Context
	ns   string
	etcd string
	// dir is the test's own folder.
	dir               string
	admin, disco, ops string
	cp                *servers.Process
	// adminFlags are what the command line needs beside --server.
	adminFlags []string
	processes  []*servers.Process
	dataDirs   []string
	// bin is the command weft that proxies, the first control plane and the
	// command line are of; the tree's own when empty.
	bin string
	// secrets by what they are; none may be anywhere (see spilled).
	secrets map[string]string
}

// testTime bounds one test; machines are small and busy, and the matrix is long.
const testTime = 15 * time.Minute

// prepareMesh makes a mesh without processes.
func prepareMesh(t *testing.T, etcd string) *mesh {
	t.Helper()
	dir := t.TempDir()
	limit := testTime
	if soaking {
		limit *= 6
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	m := &mesh{T: t, ctx: ctx, ns: servers.Namespace(t), etcd: etcd, dir: dir, admin: port(t), disco: port(t), ops: port(t), secrets: map[string]string{}}
	t.Cleanup(m.checkSecrets) // when every process has ended
	return m
}

// newMesh makes a mesh with a control plane that runs.
func newMesh(t *testing.T, etcd string, controlPlane ...string) *mesh {
	t.Helper()
	m := prepareMesh(t, etcd)
	m.startControlPlane(controlPlane...)
	return m
}

// weftPath is the command weft of this mesh.
func (m *mesh) weftPath() string {
	m.Helper()
	if m.bin != "" {
		return m.bin
	}
	return weftBinary.path(m.T)
}

func (m *mesh) prefix() string { return "/" + m.ns + "/" }

func (m *mesh) startControlPlane(args ...string) {
	m.Helper()
	m.cp = m.process(&servers.Process{Name: "control-plane",
		Args: append([]string{m.weftPath(), "control-plane", "--etcd", m.etcd, "--etcd-prefix", m.prefix(),
			"--admin", m.admin, "--discovery", m.disco, "--ops", m.ops}, args...),
		Ready: answers("http://" + m.ops + "/readyz")})
	m.must(m.cp.Start(m.ctx))
}

func port(t *testing.T) string {
	t.Helper()
	p, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
}

func answers(url string) func(context.Context, []byte) error {
	return func(ctx context.Context, _ []byte) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
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
	}
}

// process makes a process that is stopped, and checked for races, at the end.
func (m *mesh) process(p *servers.Process) *servers.Process {
	p.Log = filepath.Join(m.dir, fmt.Sprintf("%s-%d.log", p.Name, len(m.processes)))
	m.processes = append(m.processes, p)
	m.Cleanup(func() {
		if err := p.Stop(); err != nil {
			m.Error(err)
		}
		b, err := os.ReadFile(p.Log)
		if errors.Is(err, os.ErrNotExist) {
			return // never started
		}
		if err != nil {
			m.Error(err)
		}
		if strings.Contains(string(b), "WARNING: DATA RACE") || strings.Contains(string(b), "panic:") || m.Failed() {
			m.Errorf("the log of %s:\n%s", p.Name, b[max(0, len(b)-maxShown):])
		}
	})
	return p
}

// maxShown bounds what is shown of a log, in bytes.
const maxShown = 20 << 10

func (m *mesh) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// await waits until holds gives nil.
func (m *mesh) await(what string, holds func() error) {
	m.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-m.ctx.Done():
			m.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// proxy is one proxy.
type proxy struct {
	*servers.Process
	m                       *mesh
	name                    string
	http, grpc, health, ops string
	args                    []string
	lives                   atomic.Int64
}

// newProxy makes a proxy that does not run yet.
func (m *mesh) newProxy(name string, args ...string) *proxy {
	m.Helper()
	p := &proxy{m: m, name: name, args: args, Process: m.process(&servers.Process{Name: "proxy-" + name})}
	m.dataDirs = append(m.dataDirs, p.dataDir())
	p.settle()
	return p
}

func (p *proxy) dataDir() string { return filepath.Join(p.m.dir, p.name) }

// settle chooses ports, others than before.
func (p *proxy) settle() {
	p.http, p.grpc, p.health, p.ops = port(p.m.T), port(p.m.T), port(p.m.T), port(p.m.T)
	p.Args = append([]string{p.m.weftPath(), "proxy", "--control-plane", p.m.disco, "--data", p.dataDir(), "--node-id", p.name,
		"--http", p.http, "--grpc", p.grpc, "--health", p.health, "--ops", p.ops}, p.args...)
	p.Ready = answers("http://" + p.health + "/readyz")
}

// start starts it and waits until it serves.
func (p *proxy) start() {
	p.m.Helper()
	p.lives.Add(1)
	p.m.must(p.Start(p.m.ctx))
}

// proxy makes a proxy and starts it.
func (m *mesh) proxy(name string, args ...string) *proxy {
	m.Helper()
	p := m.newProxy(name, args...)
	p.start()
	return p
}

// metric reads a metric as it stands on the page: weft_x or weft_x{label="y"}.
func metric(ctx context.Context, ops, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}

func (p *proxy) metric(name string) float64 {
	p.m.Helper()
	v, err := metric(p.m.ctx, p.ops, name)
	p.m.must(err)
	return v
}

// connections is the proxy's count of connections of a listener.
func (p *proxy) connections(listener string) int {
	p.m.Helper()
	return int(p.metric(`weft_proxy_connections{listener="` + listener + `"}`))
}

// weft runs a command.
func (m *mesh) weft(stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(m.ctx, m.weftPath(), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("weft %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// administer runs a command of the admin API.
func (m *mesh) administer(stdin string, args ...string) (string, error) {
	return m.weft(stdin, append(append(args, "--server", m.admin), m.adminFlags...)...)
}

// apply applies resources, whose namespace is written NS.
func (m *mesh) apply(yaml string) {
	m.Helper()
	_, err := m.administer(strings.ReplaceAll(yaml, "namespace: NS,", "namespace: "+m.ns+","), "apply", "-f", "-")
	m.must(err)
}

// settled waits until every proxy has everything and everything is ready.
func (m *mesh) settled(proxies int) {
	m.Helper()
	m.await("the configuration to settle", func() error {
		out, err := m.administer("", "status", "-o", "json")
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
		good := len(st.Proxies) == proxies
		for _, p := range st.Proxies {
			good = good && p.Acked == st.Revision
		}
		for _, r := range st.Resources {
			// Only proxies open a store that is their own.
			good = good && (len(r.Conditions) > 0 || strings.HasPrefix(r.Name, "eventstore/"))
			for _, c := range r.Conditions {
				good = good && c.State == "STATE_TRUE"
			}
		}
		if !good {
			return errors.New(out)
		}
		return nil
	})
}

// key makes an API key for a principal: its file and the Identity.
func (m *mesh) key(principal string) (file, identity string) {
	m.Helper()
	file = filepath.Join(m.TempDir(), principal+".key")
	identity, err := m.weft("", "apikey", principal, "-n", m.ns, "--key-file", file)
	m.must(err)
	m.secrets["the API key of "+principal] = m.read(file)
	return file, "---\n" + identity
}

func (m *mesh) read(file string) string {
	m.Helper()
	b, err := os.ReadFile(file)
	m.must(err)
	return strings.TrimSpace(string(b))
}

// client is a client of proxies.
func (m *mesh) client(keyFile string, proxies ...*proxy) *client.Client {
	m.Helper()
	var addrs []string
	for _, p := range proxies {
		addrs = append(addrs, p.grpc)
	}
	return m.clientOf(client.Config{Addresses: addrs, APIKey: client.APIKeyFile(keyFile)})
}

func (m *mesh) clientOf(cfg client.Config) *client.Client {
	m.Helper()
	c, err := client.New(cfg)
	m.must(err)
	m.Cleanup(func() { _ = c.Close() })
	return c
}

// onKafka is an EventStore on the Kafka that tests share.
func onKafka(t *testing.T) string {
	return kafkaYAML([]string{servers.SharedKafka(t)}, "")
}

// onRocketMQ is an EventStore of the RocketMQ that tests share.
func onRocketMQ(t *testing.T) string {
	return `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: main}
spec: {rocketmq: {name_servers: ["` + servers.SharedRocketMQ(t) + `"]}}
---`
}

// onDisk is an EventStore in the proxy's own folder.
const onDisk = `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: main}
spec: {embedded: {}}
---`

// startOwnEtcd starts an etcd that a test takes away, until it ends.
func startOwnEtcd(t *testing.T) *servers.Etcd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), servers.StartTimeout)
	defer cancel()
	etcd, err := servers.StartEtcd(ctx, servers.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	})
	return etcd
}
