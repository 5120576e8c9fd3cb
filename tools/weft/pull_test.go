package weft

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// TestNoProxyThere: commands that are over soon end soon where no proxy is, and say so.
func TestNoProxyThere(t *testing.T) {
	for _, args := range [][]string{{"publish", "orders"}, {"request", "orders"}, {"pull", "billing"}, {"settle", "billing", "some"},
		{"dlq", "list", "-s", "billing"}, {"dlq", "show", "some", "-s", "billing"}, {"dlq", "redrive", "-s", "billing"}} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only guards against hanging
			defer cancel()
			_, errOut, code := run(ctx, append(args, "--proxy", "127.0.0.1:1")...)
			if code == 0 || ctx.Err() != nil || !strings.Contains(errOut, "connection refused") || !strings.Contains(errOut, "is a proxy there") {
				t.Errorf("%d %v: %s", code, ctx.Err(), errOut)
			}
		})
	}
}

// settled is a proxy that says what it was told of deliveries.
type settled struct {
	eventsv1.UnimplementedEventServiceServer
	told chan *eventsv1.SettleRequest
}

func (s *settled) Settle(_ context.Context, req *eventsv1.SettleRequest) (*eventsv1.SettleResponse, error) {
	s.told <- req
	return &eventsv1.SettleResponse{}, nil
}

// TestSettleSchedule: what is given back comes again on the Subscription's schedule, which
// is no delay on the wire, unless there is a --delay; a --reason changes nothing about it.
func TestSettleSchedule(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &settled{told: make(chan *eventsv1.SettleRequest, 1)}
	server := grpc.NewServer()
	eventsv1.RegisterEventServiceServer(server, proxy)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"schedule ", nil},
		{"schedule no", []string{"--reason", "no"}},
		{"0s no", []string{"--reason", "no", "--delay", "0s"}},
		{"0s ", []string{"--delay", "0s"}},
		{"5m0s no", []string{"--reason", "no", "--delay", "5m"}},
	} {
		out, errOut, code := run(t.Context(), append([]string{"settle", "billing", "some", "--nack", "--proxy", l.Addr().String()}, tc.args...)...)
		if code != 0 {
			t.Fatalf("%v: %s%s", tc.args, out, errOut)
		}
		nack := (<-proxy.told).Nack[0]
		got := "schedule " + nack.Reason
		if nack.Delay != nil {
			got = nack.Delay.AsDuration().String() + " " + nack.Reason
		}
		if got != tc.want {
			t.Errorf("%v is sent as %q, want %q", tc.args, got, tc.want)
		}
	}
}
