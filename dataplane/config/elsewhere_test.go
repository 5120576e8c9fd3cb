package config

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// lines are what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

// TestAnotherPort: a proxy that is pointed at a server that is none for proxies says so, and
// which port is.
func TestAnotherPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	logged := make(lines, 100)
	c := New(Config{Addresses: []string{l.Addr().String()}, NodeID: "n1", Info: &discoveryv1.NodeInfo{Manifest: true}, Dir: filepath.Join(t.TempDir(), "config"), Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(logged, nil)), Check: tasteful, Apply: func(context.Context, State) {}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	said := ""
	for !strings.Contains(said, "cannot be followed") {
		said = <-logged
	}
	cancel()
	if err := <-ended; err != nil || !strings.Contains(said, "unknown service") || !strings.Contains(said, "7421") {
		t.Errorf("it says %s, %v", said, err)
	}
}
