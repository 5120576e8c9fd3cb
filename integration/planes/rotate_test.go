package planes

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// lines is a log that is written by several.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(of ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
line:
	for line := range strings.Lines(l.b.String()) {
		for _, s := range of {
			if !strings.Contains(line, s) {
				continue line
			}
		}
		n++
	}
	return n
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// replace puts what new has where old is, in one step, as certificates are
// replaced by those who take care.
func replace(t *testing.T, old string, b []byte) {
	t.Helper()
	aside := old + ".new"
	if err := os.WriteFile(aside, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, old); err != nil {
		t.Fatal(err)
	}
}

func contents(t *testing.T, files ...string) (all []byte) {
	t.Helper()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

// until waits for something.
func until(ctx context.Context, t *testing.T, what string, holds func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// TestCertificatesRotate: while events and changes flow, the authority of the whole
// mesh is replaced by another on disk: first both are trusted, then every
// certificate is one of the other, then the clients' listeners get three more, then it
// alone is trusted. No connection ends, those of tails over HTTP neither; new
// ones are shown the new certificates; whoever connects anew, of the proxy and of
// the clients, trusts the new authority without a restart, and the old one's
// certificates are refused. A file that cannot be used is logged and shown, and what
// was there stays in force.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	a, b := newAuthority(t), newAuthority(t)
	bundle := filepath.Join(t.TempDir(), "authorities.pem")
	replace(t, bundle, contents(t, a.file))
	issued := map[string]tlsconf.Files{}
	for _, name := range []string{"control", "node", "listen", "admin"} {
		f := a.issue(name)
		f.CA = bundle
		issued[name] = f
	}
	stranger := a.issue("stranger") // of the old authority, for later
	stranger.CA = bundle

	log := &lines{}
	to := slog.New(slog.NewTextHandler(log, nil))
	s, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		AdminTLS: issued["control"], DiscoveryTLS: issued["control"], DrainTime: time.Millisecond, Log: to})
	if err != nil {
		t.Fatal(err)
	}
	runs(t, s.Run)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	discovery := newRelay(t, s.Addrs().Discovery)
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), discovery.addr)
	cfg.ControlPlaneTLS, cfg.TLS, cfg.Log = issued["node"], tlsconf.Files{Cert: issued["listen"].Cert, Key: issued["listen"].Key}, to
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	runs(t, p.Run)
	g := &gateway{Proxy: p, t: t, ctx: ctx}

	// Those who talk to them, each over one connection that is counted.
	toAdmin, toGRPC := newRelay(t, s.Addrs().Admin), newRelay(t, p.Addrs().GRPC)
	administrator := func(addr string, f tlsconf.Files) adminv1.AdminServiceClient {
		t.Helper()
		files, err := tlsconf.Open("admin", f, nil)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(files.Credentials(nil)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return adminv1.NewAdminServiceClient(conn)
	}
	admin := administrator(toAdmin.addr, issued["admin"])
	cp := &replica{Server: s, admin: admin}
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	overGRPC, err := client.New(client.Config{Addresses: []string{toGRPC.addr}, TLSFiles: tlsconf.Files{CA: bundle}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = overGRPC.Close() })
	trusting, err := tlsconf.Client(tlsconf.Files{CA: bundle})
	if err != nil {
		t.Fatal(err)
	}
	var httpConns atomic.Int32
	transport := &http.Transport{TLSClientConfig: trusting, MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		httpConns.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	overHTTP := &http.Client{Transport: transport}

	// Traffic, until the end.
	var published, received sync.Map
	var count atomic.Int64
	tctx, stop := context.WithCancel(ctx)
	var traffic sync.WaitGroup
	t.Cleanup(func() { stop(); traffic.Wait() })
	send := func(way string, publish func(id int) error) {
		traffic.Go(func() {
			for tctx.Err() == nil {
				id := int(count.Add(1))
				if err := publish(id); err != nil {
					if tctx.Err() == nil {
						t.Errorf("over %s: %v", way, err)
					}
					return
				}
				published.Store(fmt.Sprint(id), true)
				select {
				case <-time.After(time.Millisecond): // not as fast as it can
				case <-tctx.Done():
				}
			}
		})
	}
	send("gRPC", func(id int) error { _, err := overGRPC.Publish(tctx, "demo", "orders", numbered(id)); return err })
	send("HTTP", func(id int) error {
		req, err := http.NewRequestWithContext(tctx, http.MethodPost, "https://"+p.Addrs().HTTP+"/v1/demo/topics/orders", strings.NewReader("x"))
		if err != nil {
			return err
		}
		for k, v := range binary(fmt.Sprint(id)) {
			req.Header.Set(k, v)
		}
		resp, err := overHTTP.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("it is answered with %s", resp.Status)
		}
		return nil
	})
	var joined atomic.Int32
	traffic.Go(func() {
		err := overGRPC.Subscribe(tctx, "demo", "billing", func(_ context.Context, d client.Delivery) error {
			received.Store(d.Event.ID, true)
			return nil
		}, client.SubscribeOptions{Connected: func() { joined.Add(1) }})
		if tctx.Err() == nil {
			t.Errorf("the subscription: %v", err)
		}
	})
	// A tail over HTTP, on a connection of its own.
	var tailed atomic.Int64
	apart := transport.Clone()
	t.Cleanup(apart.CloseIdleConnections)
	req, err := http.NewRequestWithContext(tctx, http.MethodGet, "https://"+p.Addrs().HTTP+"/v1/demo/topics/orders/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := (&http.Client{Transport: apart}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	traffic.Go(func() {
		defer tail.Body.Close()
		lines := bufio.NewScanner(tail.Body)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data: ") {
				tailed.Add(1)
			}
		}
		if tctx.Err() == nil {
			t.Errorf("the tail has ended: %v", lines.Err())
		}
	})
	flows := func(when string) {
		t.Helper()
		after, seen := count.Load()+50, tailed.Load()+50
		until(ctx, t, "traffic "+when, func() error {
			if n := count.Load(); n < after {
				return fmt.Errorf("%d events, want %d", n, after)
			}
			if n := tailed.Load(); n < seen {
				return fmt.Errorf("the tail has seen %d events, want %d", n, seen)
			}
			return nil
		})
		apply(ctx, t, cp, topic("demo", fmt.Sprintf("topic-%d", after)))
		g.await("a change "+when, func(s *snapshot.Snapshot) bool {
			return s.Topics[snapshot.Key{Namespace: "demo", Name: fmt.Sprintf("topic-%d", after)}] != nil
		})
	}
	// series is that of every user of files.
	series := func(name, labels string) map[string]float64 {
		t.Helper()
		out := map[string]float64{}
		for plane, files := range map[string][]string{"controlplane": {"admin", "discovery"}, "proxy": {"clients", "control-plane"}} {
			ops := p.Addrs().Ops
			if plane == "controlplane" {
				ops = s.Addrs().Ops
			}
			page := scrape(t, ops)
			for _, f := range files {
				out[plane+" "+f] = page.value(fmt.Sprintf("weft_%s_tls_%s{files=%q%s}", plane, name, f, labels))
			}
		}
		return out
	}
	reloaded := func(when string, times float64, who ...string) {
		t.Helper()
		until(ctx, t, when, func() error {
			got := series("reloads_total", `,outcome="ok"`)
			for _, w := range who {
				if got[w] < times {
					return fmt.Errorf("%v", got)
				}
			}
			return nil
		})
	}
	// shown is the certificate that whoever connects now is shown.
	shown := func(addr string) []byte {
		t.Helper()
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only looked at
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Raw
	}
	flows("at first")
	before := map[string][]byte{}
	for name, addr := range map[string]string{"admin": s.Addrs().Admin, "discovery": s.Addrs().Discovery, "HTTP": p.Addrs().HTTP, "gRPC": p.Addrs().GRPC} {
		before[name] = shown(addr)
	}

	replace(t, bundle, contents(t, a.file, b.file))
	reloaded("both authorities", 1, "controlplane admin", "controlplane discovery", "proxy control-plane")
	flows("with both authorities")
	for name, f := range issued {
		fresh := b.issue(name)
		replace(t, f.Key, contents(t, fresh.Key))
		replace(t, f.Cert, contents(t, fresh.Cert))
	}
	reloaded("the new certificates", 2, "controlplane admin", "controlplane discovery", "proxy control-plane")
	reloaded("the new certificates", 1, "proxy clients")
	for name, addr := range map[string]string{"admin": s.Addrs().Admin, "discovery": s.Addrs().Discovery, "HTTP": p.Addrs().HTTP, "gRPC": p.Addrs().GRPC} {
		if bytes.Equal(shown(addr), before[name]) {
			t.Errorf("%s shows new connections the certificate of before", name)
		}
	}
	flows("with the new certificates")
	for n := range 3 {
		now, fresh := shown(p.Addrs().GRPC), b.issue("listen")
		replace(t, issued["listen"].Key, contents(t, fresh.Key))
		replace(t, issued["listen"].Cert, contents(t, fresh.Cert))
		reloaded("the next certificates", float64(2+n), "proxy clients")
		for name, addr := range map[string]string{"HTTP": p.Addrs().HTTP, "gRPC": p.Addrs().GRPC} {
			if bytes.Equal(shown(addr), now) {
				t.Errorf("%s, rotation %d: new connections are shown the certificate of before", name, n+2)
			}
		}
		flows("after one rotation more")
	}
	replace(t, bundle, contents(t, b.file))
	reloaded("the new authority alone", 3, "controlplane admin", "controlplane discovery", "proxy control-plane")
	flows("with the new authority")
	if n := [...]int{toAdmin.count(), toGRPC.count(), discovery.count(), int(httpConns.Load()), int(joined.Load())}; n != [...]int{1, 1, 1, 2, 1} {
		t.Errorf("connections to the admin API, the proxy, discovery, over HTTP, and times that the subscription joined: %v; none may have ended", n)
	}

	// Whoever connects anew does so by the new authority; the old one's are refused.
	for _, r := range []*relay{discovery, toAdmin} {
		r.cut()
		r.open()
	}
	until(ctx, t, "the proxy to connect again", func() error {
		if n := discovery.count(); n < 2 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	until(ctx, t, "the administrator to connect again", func() error {
		_, err := admin.GetStatus(ctx, &adminv1.GetStatusRequest{})
		return err
	})
	flows("over new connections")
	if n := discovery.count(); n != 2 {
		t.Errorf("the proxy took %d connections to be there again", n-1)
	}
	for name, addr := range map[string]string{"admin": s.Addrs().Admin, "discovery": s.Addrs().Discovery} {
		config, err := tlsconf.Client(stranger)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", addr, config)
		if err == nil { // the server's word comes after the handshake
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
			t.Errorf("%s answers a certificate of the old authority with %v", name, err)
		}
	}
	stop()
	traffic.Wait()
	fresh, err := client.New(client.Config{Addresses: []string{toGRPC.addr}, TLSFiles: tlsconf.Files{CA: bundle}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fresh.Close() })
	// The client that was there all the time trusts what the file says now.
	toGRPC.cut()
	toGRPC.open()
	for name, c := range map[string]*client.Client{"a new client": fresh, "the client": overGRPC} {
		id := int(count.Add(1))
		// A call may meet the end of the connection that was cut.
		until(ctx, t, name+" to publish", func() error {
			_, err := c.Publish(ctx, "demo", "orders", numbered(id))
			return err
		})
		published.Store(fmt.Sprint(id), true)
	}
	rctx, enough := context.WithCancel(ctx)
	defer enough()
	go func() {
		_ = overGRPC.Subscribe(rctx, "demo", "billing", func(_ context.Context, d client.Delivery) error { received.Store(d.Event.ID, true); return nil }, client.SubscribeOptions{})
	}()
	until(ctx, t, "every event", func() (err error) {
		published.Range(func(id, _ any) bool {
			if _, ok := received.Load(id); !ok {
				err = fmt.Errorf("event %s has not come", id)
			}
			return err == nil
		})
		return err
	})
	enough()

	// docs/metrics.md has what is shown.
	page := string(contents(t, "../../docs/metrics.md"))
	for _, from := range []scraped{scrape(t, s.Addrs().Ops), scrape(t, p.Addrs().Ops)} {
		listed := 0
		for name, f := range from.families {
			if _, name, ok := strings.Cut(name, "_tls_"); ok {
				listed++
				if !strings.Contains(page, "| `tls_"+name+"` | "+strings.ToLower(f.GetType().String())+" | ") || !strings.Contains(page, " | "+f.GetHelp()+" |") {
					t.Errorf("docs/metrics.md lacks tls_%s: %s", name, f.GetHelp())
				}
			}
		}
		if listed != 4 {
			t.Errorf("%d metrics of TLS files", listed)
		}
	}

	// What cannot be used.
	now, good := shown(p.Addrs().GRPC), contents(t, issued["listen"].Cert)
	replace(t, issued["listen"].Cert, []byte("not a certificate"))
	until(ctx, t, "the metric", func() error {
		if v := series("files_unusable", ""); v["proxy clients"] != 1 || v["controlplane admin"] != 0 {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	if !bytes.Equal(shown(p.Addrs().GRPC), now) || log.count("level=WARN", "files=clients", "stays in force") != 1 {
		t.Errorf("another certificate is in force, or it was not logged once: %d", log.count("stays in force"))
	}
	replace(t, issued["listen"].Cert, good)
	until(ctx, t, "the metric", func() error {
		if v := series("files_unusable", ""); v["proxy clients"] != 0 {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	if log.count("files=clients", "can be used again") != 1 {
		t.Error("that it is good again is not logged")
	}
}
