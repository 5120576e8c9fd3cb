package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// TestAddresses: what is not loopback needs TLS with a client authority, and
// operations are for this machine alone.
func TestAddresses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"admin to the network":      {func(c *Config) { c.AdminAddr = "0.0.0.0:0" }, "admin: 0.0.0.0:0 is not a loopback address"},
		"discovery to the network":  {func(c *Config) { c.DiscoveryAddr = ":0" }, "discovery: :0 is not a loopback address"},
		"operations to the network": {func(c *Config) { c.OpsAddr = "0.0.0.0:0" }, "operations: 0.0.0.0:0 is not a loopback address"},
		"no port":                   {func(c *Config) { c.AdminAddr = "127.0.0.1" }, "admin: "},
		"TLS without an authority":  {func(c *Config) { c.AdminTLS = tlsconf.Files{Cert: "c", Key: "k"} }, "admin: a client authority is needed"},
		"files that are not there":  {func(c *Config) { c.DiscoveryTLS = tlsconf.Files{Cert: "c", Key: "k", CA: "a"} }, "discovery: "},
	} {
		cfg := Config{AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0"}
		tc.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOperations: readiness follows the reading of etcd; pages of the web are
// not served; a connection to discovery takes few streams.
func TestOperations(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := New(Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", DrainTime: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(rctx) }()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	get := func(path, host string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addrs().Ops+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := client.Do(req)
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
	for _, path := range []string{"/readyz", "/livez", "/metrics", "/debug/pprof/"} {
		for host, want := range map[string]int{"": 200, "localhost:1": 200, "[::1]": 200, "evil.example": 403, "127.0.0.1.nip.io:7429": 403, "10.0.0.1": 403} {
			if code, _ := get(path, host); code != want {
				t.Errorf("%s for %q: %d, want %d", path, host, code, want)
			}
		}
	}
	if _, body := get("/metrics", ""); !strings.Contains(body, `weft_controlplane_connections{listener="ops"} 1`) || !strings.Contains(body, `weft_controlplane_connections_refused_total{listener="admin",reason="limit"} 0`) {
		t.Error("the metrics lack the connections")
	}
	client.CloseIdleConnections()
	// A connection to discovery takes few streams.
	conn, err := net.Dial("tcp", s.Addrs().Discovery)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	framer := http2.NewFramer(conn, conn)
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		err = framer.WriteSettings()
	}
	if err != nil {
		t.Fatal(err)
	}
	frame, err := framer.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if settings, ok := frame.(*http2.SettingsFrame); !ok {
		t.Errorf("it begins with %v", frame)
	} else if n, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || n != 16 {
		t.Errorf("a connection takes %d streams", n)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// bytesAsTheyAre is a codec that sends bytes.
type bytesAsTheyAre struct{}

func (bytesAsTheyAre) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (bytesAsTheyAre) Unmarshal([]byte, any) error { return nil }

func (bytesAsTheyAre) Name() string { return "proto" }

// TestManyMessages: a request that would become a hundred times its size in memory is
// refused, of the admin API and of discovery.
func TestManyMessages(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := New(Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", DrainTime: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(rctx) }()
	// Field 2 of HoldRequest and field 1 of ApplyRequest are messages, here empty ones.
	for method, field := range map[string]byte{discoveryv1.MoveService_Hold_FullMethodName: 0x12, adminv1.AdminService_Apply_FullMethodName: 0x0a} {
		addr := s.Addrs().Admin
		if method == discoveryv1.MoveService_Hold_FullMethodName {
			addr = s.Addrs().Discovery
		}
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesAsTheyAre{})))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		rpc, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err == nil {
			err = rpc.SendMsg(bytes.Repeat([]byte{field, 0}, 1<<20-1))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := rpc.RecvMsg(new([]byte)); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "at most 100000 messages") {
			t.Errorf("%s: %v", method, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestCountedRefusalsOutliveAStop: refusals that were counted are in the audit
// record once the control plane has stopped.
func TestCountedRefusalsOutliveAStop(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := New(Config{Etcd: e.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", DrainTime: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(rctx) }()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const refused = 300
	for range refused {
		_, err := adminv1.NewAdminServiceClient(conn).Delete(ctx, &adminv1.DeleteRequest{Targets: []*adminv1.DeleteTarget{{Name: "topic/demo/none"}}})
		if status.Code(err) != codes.NotFound {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	records, told := 0, 0
	store := configstore.New(configstore.Config{Client: e.Client(), Log: slog.New(slog.DiscardHandler)})
	for r, err := range store.Audit(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		records++
		told += 1 + int(r.Repeats)
	}
	if told != refused || records > refused/10 {
		t.Errorf("%d of %d refusals are told, in %d records", told, refused, records)
	}
}
