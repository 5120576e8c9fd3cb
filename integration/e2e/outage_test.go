package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/registry/nacos"
)

// TestWithoutControlPlane takes etcd, Nacos and the control plane away under
// load, for longer than every timer that docs/operations.md lists for them: each
// step waits for what only happens when its timers have passed. Events flow; new
// clients publish, join and tail; proxies that are killed start from their disk.
// Nothing acknowledged is lost, and no more comes again than the windows of the
// partitions that changed hands; a new proxy starts from a snapshot that was exported
// before. When all is back, so is the mesh, and no proxy needs all of it again.
func TestWithoutControlPlane(t *testing.T) {
	t.Parallel()
	store := onRocketMQ(t)
	etcd := startOwnEtcd(t)
	registry := newRelay(t, servers.SharedNacos(t))
	const window, partitions = 128, 2
	m := prepareMesh(t, etcd.Endpoint)
	private, public := m.signingKey()
	m.startControlPlane(append(m.nacosFlags(), "--snapshot-key", private, "--nacos", "http://"+registry.addr+"/nacos",
		"--etcd-max-retry", "200ms", "--election-ttl", "1s", "--provision-every", "500ms", "--register-every", "200ms", "--register-grace", "1s", "--register-forget", "10s")...)
	key, identity := m.key("shop")
	flags := []string{"--window", fmt.Sprint(window), "--advertise", "127.0.0.1", "--control-plane-max-retry", "500ms",
		"--control-plane-keepalive", "10s", "--control-plane-answer-timeout", "2s"}
	p1, p2 := m.proxy("p1", flags...), m.proxy("p2", flags...)
	both := []*proxy{p1, p2}
	m.apply(store + topicYAML("orders", "quiet", "late") + subscriptionYAML("billing", "orders", "") + subscriptionYAML("late", "late", "") + policyYAML("shop") + identity)
	m.settled(2)
	file := filepath.Join(m.dir, "mesh.snapshot")
	_, err := m.administer("", "snapshot", "-n", m.ns, "-o", file)
	m.must(err)
	finder := m.finder()
	m.awaitRegistered(finder, both...)

	l := newLoad(m, key)
	// One publisher has found the proxies through the registry that goes away.
	throughRelay, err := nacos.New(nacos.Config{URL: "http://" + registry.addr + "/nacos",
		Credentials: func() (string, string, error) { return servers.NacosUser, servers.NacosPassword, nil }})
	m.must(err)
	t.Cleanup(func() { m.must(throughRelay.Close(context.Background())) })
	l.publishers("nacos", 1, m.clientOf(client.Config{Target: nacos.Scheme + ":///" + m.ns, Resolver: throughRelay.Resolver(nacos.Choice{}), APIKey: client.APIKeyFile(key)}), "orders")
	l.publishers("w", 4, m.client(key, both...), "orders")
	for _, p := range both {
		l.subscriber(p, "billing")
	}
	quiet := m.heartbeats(p2, "quiet", "Bearer "+m.read(key))
	l.more(100)
	for _, p := range both {
		l.takesPart(p)
	}

	t.Log("etcd and Nacos are gone: leases end, elections are lost")
	m.must(etcd.Kill())
	registry.cut()
	m.printed(m.cp, `/elect/fleet error="the election's lease was lost`, `/elect/provision error="the election's lease was lost`)
	l.more(50)

	t.Log("the control plane hangs: keepalives end, connecting takes too long")
	attempts := func(p *proxy) float64 { return p.metric("weft_proxy_control_plane_attempts_total") }
	m.must(m.cp.Pause())
	before := map[*proxy]float64{p1: attempts(p1), p2: attempts(p2)}
	awaitAttempts := func(n float64) {
		t.Helper()
		m.await("attempts to reach the control plane", func() error {
			for _, p := range both {
				if got := attempts(p) - before[p]; got < n {
					return fmt.Errorf("%s has made %v of %v", p.name, got, n)
				}
			}
			return nil
		})
	}
	awaitAttempts(2) // the first when the keepalive has failed, the next when the answer did not come
	l.more(50)

	t.Log("the control plane is killed: waits between attempts reach their longest")
	m.must(m.cp.Kill())
	awaitAttempts(12)
	for _, p := range both {
		if p.metric("weft_proxy_control_plane_connected") != 0 || p.metric("weft_proxy_ready") != 1 {
			t.Errorf("%s is connected, or not ready", p.name)
		}
	}
	m.await("two heartbeats of a quiet stream", func() error {
		if n := quiet.Load(); n < 2 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	l.more(50)

	t.Log("new clients come")
	m.newcomers(l, both)

	t.Log("proxies are killed and start from their disks")
	bound := 0
	for range 2 {
		for _, p := range both {
			bound += window * l.kill(p)
			l.more(50)
			p.start()
			l.more(50)
			m.printed(p.Process, "started from the configuration on disk")
		}
	}
	m.newcomers(l, both)

	t.Log("a new proxy starts from the snapshot, and again from its disk")
	p3 := m.proxy("p3", append(flags, "--namespaces", m.ns, "--snapshot-from", file, "--snapshot-verify-key", public)...)
	if p3.metric("weft_proxy_config_from_snapshot") != 1 || p3.metric("weft_proxy_config_from_disk") != 0 {
		t.Error("p3 did not start from the snapshot")
	}
	m.serves(p3, key, "late", "late-1")
	m.must(p3.Kill())
	p3.start()
	if p3.metric("weft_proxy_config_from_snapshot") != 0 || p3.metric("weft_proxy_config_from_disk") != 1 {
		t.Error("p3 did not start from its disk")
	}
	m.serves(p3, key, "late", "late-2")
	all := append(slices.Clone(both), p3)
	revisions := map[*proxy]float64{}
	for _, p := range all {
		revisions[p] = p.metric("weft_proxy_config_revision")
	}

	t.Log("all is back")
	m.must(etcd.Start(m.ctx))
	registry.mend()
	m.must(m.cp.Start(m.ctx))
	m.apply(topicYAML("after"))
	m.settled(3)
	m.awaitRegistered(finder, all...)
	for _, p := range all {
		if now := p.metric("weft_proxy_config_revision"); now < revisions[p] || p.metric("weft_proxy_config_older_refused_total") != 0 {
			t.Errorf("%s goes from revision %v to %v", p.name, revisions[p], now)
		}
	}
	full, err := metric(m.ctx, m.ops, "weft_controlplane_discovery_full_syncs_total")
	m.must(err)
	resumes, err := metric(m.ctx, m.ops, "weft_controlplane_discovery_resumes_total")
	m.must(err)
	if full != 0 || resumes < 3 {
		t.Errorf("%v full syncs and %v resumes: those with tokens need no full sync", full, resumes)
	}
	if _, err := m.client(key, both...).Publish(m.ctx, m.ns, "after", textEvent("after", "x")); err != nil {
		t.Error(err)
	}
	l.more(50)
	again := l.judge(window)
	t.Logf("kills alone allow %d repeats", bound)
	if kills := 4; again.Bound > bound+kills*partitions*window {
		t.Errorf("the log allows %d repeats: partitions changed hands though nothing was killed or started", again.Bound)
	}
}

// signingKey makes the two files of an Ed25519 key.
func (m *mesh) signingKey() (private, public string) {
	m.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	m.must(err)
	write := func(name, kind string, der []byte, err error) string {
		m.must(err)
		name = filepath.Join(m.dir, name)
		m.must(os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return name
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	private = write("snapshot.key", "PRIVATE KEY", der, err)
	m.secrets["the key of snapshots"] = strings.Split(m.read(private), "\n")[1]
	der, err = x509.MarshalPKIXPublicKey(pub)
	return private, write("snapshot.pub", "PUBLIC KEY", der, err)
}

// serves publishes an event at a proxy to a topic, and receives it there of the
// Subscription of the same name.
func (m *mesh) serves(p *proxy, key, name, id string) {
	m.Helper()
	c := m.client(key, p)
	if _, err := c.Publish(m.ctx, m.ns, name, textEvent(id, "x")); err != nil {
		m.Fatalf("publishing at %s: %v", p.name, err)
	}
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	got := false
	err := c.Subscribe(ctx, m.ns, name, func(_ context.Context, d client.Delivery) error {
		if d.Event.ID == id {
			got = true
			cancel()
		}
		return nil
	}, client.SubscribeOptions{Credit: 1})
	if !got || !errors.Is(err, context.Canceled) {
		m.Errorf("the subscription at %s ended with %v; the event came: %v", p.name, err, got)
	}
}

// newcomers are clients that connect for the first time: they publish, join a
// Subscription that is there, and tail a topic from its beginning, all over gRPC
// and HTTP.
func (m *mesh) newcomers(l *load, proxies []*proxy) {
	m.Helper()
	bearer := "Bearer " + m.read(l.key)
	for _, p := range proxies {
		id := "new-" + p.life()
		e := textEvent(id, "data of "+id)
		l.publish(m.ctx, m.client(l.key, p), "orders", e)
		overHTTP := textEvent(id+"-http", "data of "+id)
		l.log.Intend(overHTTP.ID, "", 0, overHTTP.Data)
		c := &http.Client{Transport: &http.Transport{}}
		if code, body := m.post(c, "http://"+p.http, "orders", bearer, overHTTP); code != http.StatusOK {
			m.Errorf("over HTTP: %d %s", code, body)
		}
		l.log.Told(overHTTP.ID, history.Acked)
		sse := m.events(c, "http://"+p.http, "orders", bearer)
		tail := newBox("a new tail")
		r := m.dial(p.grpc, m.read(l.key), nil)
		r.into(tail, tailOf("orders"))
		m.await("the new events at the new clients", func() error {
			for _, want := range []event.Event{e, overHTTP} {
				for _, b := range []*box{sse.box, tail} {
					if got, ok := b.get(want.ID); !ok || !bytes.Equal(got.Data, want.Data) {
						return fmt.Errorf("%s has not come to %s", want.ID, b.name)
					}
				}
			}
			return nil
		})
		m.joins(l, p)
		c.CloseIdleConnections()
		_ = sse.resp.Body.Close()
	}
}

// joins is one more member of the Subscription that is there, for a moment.
func (m *mesh) joins(l *load, p *proxy) {
	m.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	n := 0
	err := m.client(l.key, p).Subscribe(ctx, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
		at, err := place(d.Position, p.life())
		l.log.ReceiveAt(d.Event.ID, d.Event.Data, at)
		n++
		cancel()
		return err
	}, client.SubscribeOptions{Credit: 1})
	if !errors.Is(err, context.Canceled) || n == 0 {
		m.Errorf("a new member of the subscription got %d events and ended with %v", n, err)
	}
}

// printed waits until a process has printed all texts.
func (m *mesh) printed(p *servers.Process, texts ...string) {
	m.Helper()
	m.await("the log of "+p.Name, func() error {
		out := p.Output()
		for _, text := range texts {
			if !bytes.Contains(out, []byte(text)) {
				return errors.New("it does not say " + text)
			}
		}
		return nil
	})
}

// heartbeats counts what a stream sends while nothing happens.
func (m *mesh) heartbeats(p *proxy, topic, authorization string) *atomic.Int64 {
	m.Helper()
	req, err := http.NewRequestWithContext(m.ctx, http.MethodGet, "http://"+p.http+"/v1/"+m.ns+"/topics/"+topic+"/events", nil)
	m.must(err)
	req.Header.Set("Authorization", authorization)
	resp, err := http.DefaultClient.Do(req)
	m.must(err)
	var n atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1024)
		for {
			k, err := resp.Body.Read(buf)
			n.Add(int64(bytes.Count(buf[:k], []byte("still here"))))
			if err != nil {
				return
			}
		}
	}()
	m.Cleanup(func() {
		_ = resp.Body.Close()
		<-ended
	})
	return &n
}

// relay is a TCP address that leads to another one until it is cut.
type relay struct {
	t    *testing.T
	addr string
	to   string
	// lose is how many answers there are for each that is lost, with its connection;
	// none is where 0. lost counts them.
	lose, lost atomic.Int64
	answers    atomic.Int64
	// accepted counts connections.
	accepted atomic.Int64

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]struct{}
	work  sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{t: t, addr: port(t), to: to, conns: map[net.Conn]struct{}{}}
	r.mend()
	t.Cleanup(r.cut)
	return r
}

// mend lets connections through.
func (r *relay) mend() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.l = l
	r.mu.Unlock()
	r.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.accepted.Add(1)
			r.work.Go(func() { r.carry(c) })
		}
	})
}

func (r *relay) carry(c net.Conn) {
	d := net.Dialer{Timeout: 5 * time.Second}
	to, err := d.Dial("tcp", r.to)
	if err != nil {
		_ = c.Close()
		return
	}
	r.mu.Lock()
	r.conns[c], r.conns[to] = struct{}{}, struct{}{}
	r.mu.Unlock()
	closeBoth := func() { _ = c.Close(); _ = to.Close() }
	r.work.Go(func() { _, _ = io.Copy(to, c); closeBoth() })
	r.back(c, to)
	closeBoth()
	r.mu.Lock()
	delete(r.conns, c)
	delete(r.conns, to)
	r.mu.Unlock()
}

// back carries what comes back, but for what is to be lost: then the connection is reset.
func (r *relay) back(c, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if lose := r.lose.Load(); n > 0 && lose > 0 && r.answers.Add(1)%lose == 0 {
			r.lost.Add(1)
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// cut ends every connection and refuses new ones.
func (r *relay) cut() {
	r.mu.Lock()
	_ = r.l.Close()
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.work.Wait()
}
