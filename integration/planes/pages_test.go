package planes

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/controlplane/server"
)

// TestPagesForTheNetwork: readiness and metrics are there for who is on another machine,
// whatever name that calls this one by, where they are asked for, and nothing else is.
func TestPagesForTheNetwork(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t), func(c *server.Config) { c.HealthAddr, c.MetricsAddr = "127.0.0.1:0", "127.0.0.1:0" })
	cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	cfg.MetricsAddr = "127.0.0.1:0"
	g := runProxy(ctx, t, cfg)
	if err := g.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	get := func(addr, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "weft-7d9f.example"
		resp, err := http.DefaultClient.Do(req)
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
	for _, page := range []struct{ of, addr, path, says string }{
		{"a control plane's health", cp.Addrs().Health, "/readyz", "ok"},
		{"a control plane's metrics", cp.Addrs().Metrics, "/metrics", `weft_controlplane_connections{listener="metrics"}`},
		{"a proxy's health", g.Addrs().Health, "/readyz", "ok"},
		{"a proxy's metrics", g.Addrs().Metrics, "/metrics", `weft_proxy_connections{listener="metrics"}`},
	} {
		for _, path := range []string{"/metrics", "/readyz", "/livez", "/debug/pprof/", "/debug/config", "/"} {
			code, body := get(page.addr, path)
			want := http.StatusNotFound
			if path == page.path {
				want = http.StatusOK
			}
			if code != want || code == http.StatusOK && !strings.Contains(body, page.says) {
				t.Errorf("%s, %s: %d %.200s", page.of, path, code, body)
			}
		}
	}
	for _, ops := range []string{cp.Addrs().Ops, g.Addrs().Ops} {
		if code, _ := get(ops, "/metrics"); code != http.StatusForbidden {
			t.Errorf("operations, by a name of the network: %d", code)
		}
	}
}
