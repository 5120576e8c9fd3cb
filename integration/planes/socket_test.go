package planes

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// sockets are addresses of Unix sockets in a new folder: their paths are to be short.
func sockets(t *testing.T) (overHTTP, overGRPC string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return "unix:" + filepath.Join(dir, "http"), "unix:" + filepath.Join(dir, "grpc")
}

// dialing connects to addresses of both kinds.
func dialing(ctx context.Context, addr string) (net.Conn, error) {
	network, addr := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// askedOver is an HTTP client of whatever listens at an address.
func askedOver(t *testing.T, addr string) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialing(ctx, addr) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// publishOver publishes over HTTP and gives the status.
func publishOver(ctx context.Context, t *testing.T, c *http.Client, id string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sidecar/v1/demo/topics/orders", strings.NewReader("data of "+id))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range binary(id) {
		req.Header.Set(k, v)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestUnixSockets: applications beside a proxy publish and receive over Unix sockets,
// with HTTP and gRPC; whoever may open the socket is "local" where loopback is
// trusted, and nobody where it is not. No page of a browser is. The files go with the
// proxy, before it is gone.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	start := func(change func(*proxy.Config)) (*gateway, *http.Client, *client.Client) {
		t.Helper()
		cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
		cfg.HTTPAddr, cfg.GRPCAddr = sockets(t)
		change(&cfg)
		g := runProxy(ctx, t, cfg)
		if a := g.Addrs(); a.HTTP != cfg.HTTPAddr || a.GRPC != cfg.GRPCAddr {
			t.Errorf("it says that it listens on %+v", a)
		}
		g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
		overGRPC, err := client.New(client.Config{Addresses: []string{g.Addrs().GRPC}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = overGRPC.Close() })
		return g, askedOver(t, g.Addrs().HTTP), overGRPC
	}
	g, overHTTP, overGRPC := start(func(*proxy.Config) {})
	if status, body := publishOver(ctx, t, overHTTP, "1"); status != http.StatusOK {
		t.Errorf("over HTTP: %d %s", status, body)
	}
	if status, body := publishOver(ctx, t, overHTTP, "page", "Origin", "https://evil.example"); status != http.StatusUnauthorized || !strings.Contains(body, "cross-site") {
		t.Errorf("a page: %d %s", status, body)
	}
	if _, err := overGRPC.Publish(ctx, "demo", "orders", numbered(2)); err != nil {
		t.Errorf("over gRPC: %v", err)
	}
	// A key is shown over the socket, and has to be right.
	withKey, err := client.New(client.Config{Addresses: []string{g.Addrs().GRPC}, APIKey: func() (string, error) { return "weft_abcdefgh_wrong", nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer withKey.Close()
	_, err = withKey.Publish(ctx, "demo", "orders", numbered(3))
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.Unauthenticated || e.Reason != "bad-credentials" {
		t.Errorf("a wrong key: %v", err)
	}
	seen := map[string]bool{}
	sctx, enough := context.WithCancel(ctx)
	defer enough()
	if err := overGRPC.Subscribe(sctx, "demo", "billing", func(_ context.Context, d client.Delivery) error {
		if seen[d.Event.ID] = true; seen["1"] && seen["2"] {
			enough()
		}
		return nil
	}, client.SubscribeOptions{Credit: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("it has received %v: %v", seen, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sidecar/v1/demo/topics/orders/events?from=beginning", nil)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := overHTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Body.Close()
	lines := bufio.NewScanner(tail.Body)
	for found := 0; found < 2; {
		if !lines.Scan() {
			t.Fatalf("the tail ends after %d events: %v", found, lines.Err())
		}
		if strings.HasPrefix(lines.Text(), "data:") {
			found++
		}
	}
	g.stop()
	for _, addr := range []string{g.Addrs().HTTP, g.Addrs().GRPC} {
		if _, err := os.Lstat(strings.TrimPrefix(addr, "unix:")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there after the proxy has stopped: %v", addr, err)
		}
	}

	_, overHTTP, overGRPC = start(func(cfg *proxy.Config) { cfg.TrustLoopback = false })
	if status, body := publishOver(ctx, t, overHTTP, "1"); status != http.StatusUnauthorized || !strings.Contains(body, "no-credentials") {
		t.Errorf("where loopback is not trusted, over HTTP: %d %s", status, body)
	}
	_, err = overGRPC.Publish(ctx, "demo", "orders", numbered(1))
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Reason != "no-credentials" {
		t.Errorf("where loopback is not trusted, over gRPC: %v", err)
	}
}

// TestUnixSocketBesideTLS: what listens on TCP has TLS, the socket beside it has none.
func TestUnixSocketBesideTLS(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), policyOf(everything("local")))
	a := newAuthority(t)
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	cfg.HTTPAddr, _ = sockets(t)
	cfg.TLS = a.issue("listen")
	g := runProxy(ctx, t, cfg)
	g.await("the topic", ready([]string{"orders"}, nil))
	if status, body := publishOver(ctx, t, askedOver(t, g.Addrs().HTTP), "1"); status != http.StatusOK {
		t.Errorf("over the socket: %d %s", status, body)
	}
	c, err := tls.Dial("tcp", g.Addrs().GRPC, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // only looked at
	if err != nil {
		t.Fatalf("over TCP: %v", err)
	}
	_ = c.Close()
	if _, err := client.New(client.Config{Addresses: []string{g.Addrs().HTTP}, TLSFiles: tlsconf.Files{CA: a.file}}); err == nil || !strings.Contains(err.Error(), "has no TLS") {
		t.Errorf("a client with TLS: %v", err)
	}
	for addr, want := range map[string]string{"unix:relative": "absolute path", "unix:/" + strings.Repeat("x", 200): "at most"} {
		if _, err := client.New(client.Config{Addresses: []string{addr}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
