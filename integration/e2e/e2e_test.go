// Package e2e tests the mesh as separate processes against real servers: etcd,
// RocketMQ, control planes and proxies, killed and started again.
package e2e

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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

func TestMain(m *testing.M) {
	code := servers.Main(m)
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

var binary struct {
	once sync.Once
	dir  string
	err  error
}

// weft builds the command with the race detector, once.
func weft(t *testing.T) string {
	t.Helper()
	binary.once.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "weft-e2e-"); binary.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-race", "-o", filepath.Join(binary.dir, "weft"), "../../tools/cmd/weft")
		if out, err := cmd.CombinedOutput(); err != nil {
			binary.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return filepath.Join(binary.dir, "weft")
}

// mesh is a control plane and proxies, each a process.
type mesh struct {
	*testing.T
	ctx   context.Context
	ns    string
	admin string
	disco string
	cp    *servers.Process
}

func port(t *testing.T) string {
	t.Helper()
	p, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", p)
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
func process(t *testing.T, p *servers.Process) *servers.Process {
	t.Helper()
	p.Log = filepath.Join(t.TempDir(), "log")
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(p.Log)
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(string(b), "WARNING: DATA RACE") || strings.Contains(string(b), "panic:") || t.Failed() {
			t.Errorf("the log of %s:\n%s", p.Name, b)
		}
	})
	return p
}

func newMesh(t *testing.T, etcd string) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	m := &mesh{T: t, ctx: ctx, ns: servers.Namespace(t), admin: port(t), disco: port(t)}
	ops := port(t)
	m.cp = process(t, &servers.Process{Name: "control plane",
		Args:  []string{weft(t), "control-plane", "--etcd", etcd, "--etcd-prefix", "/" + m.ns + "/", "--admin", m.admin, "--discovery", m.disco, "--ops", ops},
		Ready: answers("http://" + ops + "/readyz")})
	m.must(m.cp.Start(ctx))
	return m
}

func (m *mesh) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// proxy is a running proxy.
type proxy struct {
	*servers.Process
	http, grpc, ops string
}

func (m *mesh) proxy(name string, args ...string) *proxy {
	m.Helper()
	p := &proxy{http: port(m.T), grpc: port(m.T), ops: port(m.T)}
	health := port(m.T)
	p.Process = process(m.T, &servers.Process{Name: "proxy " + name,
		Args: append([]string{weft(m.T), "proxy", "--control-plane", m.disco, "--data", filepath.Join(m.TempDir(), name), "--node-id", name,
			"--http", p.http, "--grpc", p.grpc, "--health", health, "--ops", p.ops}, args...),
		Ready: answers("http://" + health + "/readyz")})
	m.must(p.Start(m.ctx))
	return p
}

// weft runs a command.
func (m *mesh) weft(stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(m.ctx, weft(m.T), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("weft %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (m *mesh) apply(yaml string) {
	m.Helper()
	_, err := m.weft(strings.ReplaceAll(yaml, "NS", m.ns), "apply", "--server", m.admin, "-f", "-")
	m.must(err)
}

// settled waits until every proxy has everything and everything is ready.
func (m *mesh) settled(proxies int) {
	m.Helper()
	for {
		out, err := m.weft("", "status", "--server", m.admin, "-o", "json")
		m.must(err)
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
		m.must(json.Unmarshal([]byte(out), &st))
		good := len(st.Proxies) == proxies
		for _, p := range st.Proxies {
			good = good && p.Acked == st.Revision
		}
		for _, r := range st.Resources {
			good = good && len(r.Conditions) > 0
			for _, c := range r.Conditions {
				good = good && c.State == "STATE_TRUE"
			}
		}
		if good {
			return
		}
		if m.ctx.Err() != nil {
			m.Fatalf("never settled:\n%s", out)
		}
	}
}

// keys makes an API key for a principal: its file and the Identity.
func (m *mesh) key(principal string) (file, identity string) {
	m.Helper()
	file = filepath.Join(m.TempDir(), principal+".key")
	identity, err := m.weft("", "apikey", principal, "-n", m.ns, "--key-file", file)
	m.must(err)
	return file, identity
}

func (m *mesh) client(keyFile string, proxies ...*proxy) *client.Client {
	m.Helper()
	var addrs []string
	for _, p := range proxies {
		addrs = append(addrs, p.grpc)
	}
	c, err := client.New(client.Config{Addresses: addrs, APIKey: client.APIKeyFile(keyFile)})
	m.must(err)
	m.Cleanup(func() { _ = c.Close() })
	return c
}

const ordersYAML = `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: main}
spec: {rocketmq: {name_servers: ["NAMESERVER"]}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: NS, name: orders}
spec: {store: main, partitions: 4, needs: {durability: disk}}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: NS, name: billing}
spec: {topics: [orders], start: beginning, ack_timeout: 20s}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: NS, name: orders}
spec:
  rules:
    - {name: shop, effect: allow, principals: [shop], actions: [publish, subscribe], topics: [orders]}
    - {name: billing, effect: allow, principals: [shop], actions: [consume], subscriptions: [billing]}
`

// TestEventThroughRocketMQ: apply, publish with HTTP, receive and acknowledge
// over gRPC, as separate processes.
func TestEventThroughRocketMQ(t *testing.T) {
	nameServer, etcd := servers.SharedRocketMQ(t), servers.SharedEtcd(t)
	m := newMesh(t, etcd)
	key, identity := m.key("shop")
	p := m.proxyBeforeConfiguration("p1")
	m.apply(identity + "---" + strings.ReplaceAll(ordersYAML, "NAMESERVER", nameServer))
	m.settled(1)
	secret, err := os.ReadFile(key)
	m.must(err)

	post := func(bearer string) (int, string) {
		req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, "http://"+p.http+"/v1/"+m.ns+"/topics/orders", strings.NewReader(`{"n":1}`))
		m.must(err)
		for k, v := range map[string]string{"ce-specversion": "1.0", "ce-id": "e1", "ce-source": "/shop", "ce-type": "order.created", "content-type": "application/json"} {
			req.Header.Set(k, v)
		}
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		resp, err := http.DefaultClient.Do(req)
		m.must(err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		m.must(err)
		return resp.StatusCode, string(b)
	}
	if code, body := post(""); code != http.StatusUnauthorized {
		t.Errorf("without a key: %d %s", code, body)
	}
	if code, body := post("weft_00000000_x"); code != http.StatusUnauthorized {
		t.Errorf("with a wrong key: %d %s", code, body)
	}
	if code, body := post(strings.TrimSpace(string(secret))); code != http.StatusOK {
		t.Fatalf("with the key: %d %s", code, body)
	}
	c := m.client(key, p)
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	var got client.Delivery
	err = c.Subscribe(ctx, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
		got = d
		cancel()
		return nil
	}, client.SubscribeOptions{})
	if !errors.Is(err, context.Canceled) || got.Event.ID != "e1" || string(got.Event.Data) != `{"n":1}` || got.Topic != "orders" {
		t.Errorf("%v %+v", err, got)
	}
	// Settled means that it does not come again.
	m.must(p.Kill())
	m.must(p.Start(m.ctx))
	if _, err := c.Publish(m.ctx, m.ns, "orders", event.Event{ID: "e2", Source: "/shop", Type: "t"}); err != nil {
		t.Fatal(err)
	}
	ctx2, cancel2 := context.WithCancel(m.ctx)
	defer cancel2()
	_ = c.Subscribe(ctx2, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
		got = d
		cancel2()
		return nil
	}, client.SubscribeOptions{Credit: 1})
	if got.Event.ID != "e2" {
		t.Errorf("got %s after e1 was settled", got.Event.ID)
	}
	for _, secret := range []string{strings.TrimSpace(string(secret))} {
		for _, proc := range []*servers.Process{m.cp, p.Process} {
			if strings.Contains(string(proc.Output()), secret) {
				t.Errorf("the log of %s has the key", proc.Name)
			}
		}
	}
}

// proxyBeforeConfiguration starts a proxy while the mesh has no resources.
func (m *mesh) proxyBeforeConfiguration(name string) *proxy { return m.proxy(name) }

// TestWithoutControlPlane: with the control plane and etcd killed, events flow,
// new clients connect and join, and a proxy that is killed starts from its disk.
// The checker finds nothing acknowledged lost, and no more repeats than the
// windows of the queues of the proxies that were killed.
func TestWithoutControlPlane(t *testing.T) {
	nameServer := servers.SharedRocketMQ(t)
	sctx, cancel := context.WithTimeout(context.Background(), servers.StartTimeout)
	defer cancel()
	etcd, err := servers.StartEtcd(sctx, servers.EtcdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	}()
	m := newMesh(t, etcd.Endpoint)
	key, identity := m.key("shop")
	const window, partitions, credit = 256, 4, 64
	p1, p2 := m.proxy("p1", "--window", fmt.Sprint(window)), m.proxy("p2", "--window", fmt.Sprint(window))
	m.apply(identity + "---" + strings.ReplaceAll(ordersYAML, "NAMESERVER", nameServer))
	m.settled(2)

	log := history.New()
	publisher := m.client(key, p1, p2)
	ctx, stop := context.WithCancel(m.ctx)
	defer stop()
	var published atomic.Int64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("w%d-%d", w, n)
				data := []byte(id)
				log.Intend(id, "", n, data)
				// Repeated with the same id until the answer is certain.
				for ctx.Err() == nil {
					cctx, cancel := context.WithTimeout(ctx, 15*time.Second)
					_, err := publisher.Publish(cctx, m.ns, "orders", event.Event{ID: id, Source: "/shop", Type: "t", Data: data})
					cancel()
					if err == nil {
						log.Told(id, history.Acked)
						published.Add(1)
						break
					}
				}
			}
		})
	}
	sctx2, stopSub := context.WithCancel(m.ctx)
	defer stopSub()
	var subs sync.WaitGroup
	subscribe := func() {
		c := m.client(key, p1, p2)
		subs.Go(func() {
			err := c.Subscribe(sctx2, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
				log.Receive(d.Event.ID, d.Event.Data)
				return nil
			}, client.SubscribeOptions{Credit: credit})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("a subscriber ended: %v", err)
			}
		})
	}
	subscribe()
	more := func(n int64) {
		t.Helper()
		for target := published.Load() + n; published.Load() < target; {
			if m.ctx.Err() != nil {
				t.Fatal("events do not flow")
			}
		}
	}
	more(200)
	m.must(m.cp.Kill())
	m.must(etcd.Kill())
	more(200)
	subscribe() // a new client
	kills := 0
	for range 3 {
		for _, p := range []*proxy{p1, p2} {
			m.must(p.Kill())
			kills++
			m.must(p.Start(m.ctx)) // from its disk
			more(100)
		}
	}
	stop()
	wg.Wait()
	for len(log.Missing(1)) > 0 && m.ctx.Err() == nil {
	}
	stopSub()
	subs.Wait()
	report := log.Check()
	// Each kill may repeat, in each partition, what was settled above the
	// lowest unsettled delivery, and what members had; a publish that was
	// repeated because nobody knew may be there twice.
	unknown := report.Unknown
	bound := kills*(partitions*window+2*credit) + 4*kills + unknown
	t.Logf("%s; bound on duplicates %d", report, bound)
	for _, v := range report.Violations(bound, false) {
		t.Error(v)
	}
	if !strings.Contains(string(p1.Output()), "configuration on disk") {
		t.Error("the proxy did not start from its disk")
	}
}
