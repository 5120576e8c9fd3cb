package listener

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// broken panics where it is asked for nothing.
type broken struct{ *health.Server }

func (b broken) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if r.Service == "defect" {
		return nil, errors.New(strings.Split(r.Service, "/")[1])
	}
	return b.Server.Check(ctx, r)
}

func (broken) Watch(*grpc_health_v1.HealthCheckRequest, grpc_health_v1.Health_WatchServer) error {
	panic("secret of nobody's business")
}

// TestPanics: a call whose handler panics is answered, and told of in the log; the process,
// the connection and what else is on it go on.
func TestPanics(t *testing.T) {
	on, err := Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := GRPC(GRPCLimits{Log: slog.New(slog.NewTextHandler(&log, nil))})
	grpc_health_v1.RegisterHealthServer(s, broken{health.NewServer()})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(on) }()
	stop := sync.OnceFunc(func() { s.Stop(); <-ended })
	defer stop()
	conn, err := grpc.NewClient(on.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := grpc_health_v1.NewHealthClient(conn)
	_, unary := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "defect"})
	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = watch.Recv()
	}
	for what, err := range map[string]error{"a call": unary, "a stream": err} {
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "range") {
			t.Errorf("%s whose handler panics ends with %v", what, err)
		}
	}
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("others: %v", err)
	}
	if on.Accepted() != 1 {
		t.Errorf("there were %d connections", on.Accepted())
	}
	stop()
	for _, want := range []string{"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "out of range", "broken.Watch", "secret of nobody"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not have %q: %s", want, &log)
		}
	}
}
