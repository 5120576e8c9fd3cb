package planes

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/configfile"
)

// exported is a snapshot file as the admin API gives it.
func exported(ctx context.Context, r *replica, namespaces ...string) (file []byte, parts int, err error) {
	stream, err := r.admin.ExportSnapshot(ctx, &adminv1.ExportSnapshotRequest{Namespaces: namespaces})
	for err == nil {
		var part *adminv1.ExportSnapshotResponse
		if part, err = stream.Recv(); err == nil {
			file = append(file, part.Data...)
			parts++
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return file, parts, err
}

// signingKey makes the two files of a key.
func signingKey(t *testing.T) (private, public string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte, err error) string {
		t.Helper()
		name = filepath.Join(t.TempDir(), name)
		if err == nil {
			err = os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	private = write("snapshot.key", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(pub)
	return private, write("snapshot.pub", "PUBLIC KEY", der, err)
}

// TestStartsFromSnapshot: with no control plane a new proxy starts from an exported,
// signed file and serves; a control plane that comes back takes it up by its token,
// without a full sync, and tells it what changed.
func TestStartsFromSnapshot(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	private, public := signingKey(t)
	cp := startReplica(ctx, t, e, func(c *server.Config) { c.SnapshotKeyFile = private })
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "first"), cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")), eventStore("shop", "main", "1"))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	file, _, err := exported(ctx, cp)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "mesh.snapshot")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	g.stop()
	addr := cp.Addrs().Discovery
	cp.stop()

	cfg := proxyConfig(filepath.Join(t.TempDir(), "new"), addr)
	cfg.SnapshotFile, cfg.SnapshotKeyFile = name, public
	g = runProxy(ctx, t, cfg)
	if code, body := g.post("orders", "one", binary("1")); code != http.StatusOK {
		t.Errorf("from the snapshot: %d %s", code, body)
	}
	m, err := g.join(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	m.mustTake("1=one")
	s, _ := g.Snapshot()
	if metrics := scrape(t, g.Addrs().Ops); s.Origin != snapshot.FromFile || metrics.value("weft_proxy_config_from_snapshot") != 1 || metrics.value("weft_proxy_config_from_disk") != 0 {
		t.Errorf("from %v", s.Origin)
	}

	cp = startReplica(ctx, t, e, func(c *server.Config) { c.DiscoveryAddr = addr })
	g.await("a control plane", func(s *snapshot.Snapshot) bool { return s.Origin == snapshot.Live })
	apply(ctx, t, cp, topic("demo", "after"))
	g.await("a change", ready([]string{"after", "orders"}, []string{"billing"}))
	metrics := scrape(t, cp.Addrs().Ops)
	if full, resumed := metrics.value("weft_controlplane_discovery_full_syncs_total"), metrics.value("weft_controlplane_discovery_resumes_total"); full != 0 || resumed != 1 {
		t.Errorf("%v full syncs and %v resumes", full, resumed)
	}
	if metrics := scrape(t, g.Addrs().Ops); metrics.value("weft_proxy_config_from_snapshot") != 0 {
		t.Error("it says that it is from the snapshot still")
	}
}

// TestSnapshotRefused: a proxy ends with an error that says what is wrong with its
// snapshot file, and has no part of it in force.
func TestSnapshotRefused(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	apply(ctx, t, cp, eventStore("demo", "main", "1"), eventStore("shop", "main", "1"))
	file, _, err := exported(ctx, cp, "demo")
	if err != nil || bytes.Contains(file, []byte("shop")) {
		t.Fatalf("the export of demo: %v", err)
	}
	_, public := signingKey(t)
	changed := bytes.Clone(file)
	changed[len(changed)-1] ^= 1
	for says, tc := range map[string]struct {
		file       []byte
		namespaces []string
		key        string
	}{
		"is damaged":            {file: changed, namespaces: []string{"demo"}},
		"is damaged: it ends":   {file: file[:20], namespaces: []string{"demo"}},
		"does not have */shop/": {file: file, namespaces: []string{"demo", "shop"}},
		"is not signed":         {file: file, namespaces: []string{"demo"}, key: public},
	} {
		cfg := proxyConfig(filepath.Join(t.TempDir(), "data"), "127.0.0.1:1")
		cfg.SnapshotFile, cfg.SnapshotKeyFile, cfg.Namespaces = filepath.Join(t.TempDir(), "snapshot"), tc.key, tc.namespaces
		if err := os.WriteFile(cfg.SnapshotFile, tc.file, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := proxy.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Run(ctx); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), cfg.SnapshotFile) {
			t.Errorf("%v, want %q", err, says)
		}
		if s, _ := p.Snapshot(); s.Lineage != "" {
			t.Errorf("%s: revision %d is in force", says, s.Revision)
		}
	}
	for ns, want := range map[string]codes.Code{"none": codes.NotFound, "No!": codes.InvalidArgument} {
		if _, _, err := exported(ctx, cp, "demo", ns); status.Code(err) != want || !strings.Contains(err.Error(), "namespaces") {
			t.Errorf("%s: %v", ns, err)
		}
	}
}

// TestExportIsWhatIsServed: an export has the version before a quarantined one, or
// says that there is none, and comes in parts.
func TestExportIsWhatIsServed(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	e := startEtcd(ctx, t)
	cp := startReplica(ctx, t, e)
	// Labels that make the file larger than one part.
	for i := range 26 {
		var rs []*configv1.Resource
		for j := range 100 {
			r := eventStore("demo", fmt.Sprint("s", i, "-", j), "1")
			for l := range 8 {
				r.Metadata.Labels[fmt.Sprint("l", l)] = strings.Repeat("x", 63)
			}
			rs = append(rs, r)
		}
		apply(ctx, t, cp, rs...)
	}
	apply(ctx, t, cp, eventStore("demo", "old", "1"))
	resp := apply(ctx, t, cp, eventStore("demo", "old", "2"), eventStore("demo", "new", "2"))
	store := configstore.New(configstore.Config{Client: e.Client(), Metrics: prometheus.NewRegistry(), Log: quiet})
	runFor(t, store.Run)
	if _, err := store.WaitFor(ctx, resp.Revision); err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.Results {
		if err := store.Quarantine(ctx, r.Name, r.Version, "nodes refuse it", nil); err != nil {
			t.Fatal(err)
		}
	}
	apply(ctx, t, cp, eventStore("demo", "last", "1")) // cp has read the quarantines before it
	file, parts, err := exported(ctx, cp)
	if err != nil {
		t.Fatal(err)
	}
	lg, err := configfile.DecodeSnapshot(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(lg.Withheld) != 1 || lg.Withheld[0].Name != "eventstore/demo/new" || len(lg.Resources) != 2602 || parts != (len(file)+1<<20-1)>>20 || parts < 2 {
		t.Errorf("withheld %v, %d resources, %d bytes in %d parts", lg.Withheld, len(lg.Resources), len(file), parts)
	}
	for _, r := range lg.Resources {
		res := &configv1.Resource{}
		if err := proto.Unmarshal(r.Resource, res); err != nil || res.Metadata.Labels["v"] != "1" {
			t.Errorf("%s: %v, %v", r.Name, res.GetMetadata(), err)
		}
	}
}
