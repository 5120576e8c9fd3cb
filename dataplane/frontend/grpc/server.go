// Package grpc speaks the gRPC client API (weft.events.v1alpha1) with
// applications.
package grpc

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/buffers"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
)

// Config of a Server. The zero value of a limit is its default.
type Config struct {
	Mesh frontend.Mesh
	// Requests are publishes that wait for a reply.
	Requests frontend.Requests
	// DeadLetters serves DeadLetterService.
	DeadLetters frontend.DeadLetters
	// Inspector serves InspectService.
	Inspector frontend.Inspector
	// NodeID is told to receivers.
	NodeID string
	// Clock tells where a tail that begins now begins.
	Clock clock.Clock
	// TLS of the listener; nil is plaintext.
	TLS *tls.Config
	// MaxMessage bounds a message, in bytes; 8 MiB.
	MaxMessage int
	// MaxArriving bounds what messages that have begun and are not whole take together,
	// in bytes; listener.GRPCLimits says the least and what it is otherwise.
	MaxArriving int64
	// DrainTime bounds the graceful stop; 10 s.
	DrainTime time.Duration
	// Stall is how long a stream waits for a client that takes nothing, before its
	// connection is closed; 20 s.
	Stall   time.Duration
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Server serves the API.
type Server struct {
	eventsv1.UnimplementedEventServiceServer
	cfg      Config
	calls    *prometheus.CounterVec
	held     prometheus.Observer
	pool     mem.BufferPool // of messages
	draining chan struct{}  // closed when streams that could go on for ever end
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.MaxMessage == 0 {
		cfg.MaxMessage = 8 << 20
	}
	if cfg.DrainTime == 0 {
		cfg.DrainTime = 10 * time.Second
	}
	return &Server{cfg: cfg, calls: newCalls(cfg.Metrics), held: newHeld(cfg.Metrics), pool: buffers.New(), draining: make(chan struct{})}
}

// Serve serves on l, which it takes, until ctx ends; then it tells clients to go
// elsewhere, lets calls finish, and ends what does not. It is called once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	opts := []grpc.ServerOption{grpc.ForceServerCodecV2(codec{s.pool}), experimental.BufferPool(s.pool), grpc.InTapHandle(s.enter), grpc.ReadBufferSize(64 << 10), grpc.WriteBufferSize(64 << 10)}
	opts = append(opts, s.counting()...)
	opts = append(opts, grpc.RPCDecompressor(uncompressed{})) //nolint:staticcheck // it comes before what is registered for the process
	srv := listener.GRPC(listener.GRPCLimits{TLS: s.cfg.TLS, Message: s.cfg.MaxMessage, Arriving: s.cfg.MaxArriving, Streams: 1000, Idle: 30 * time.Minute, Stall: s.cfg.Stall, Log: s.cfg.Log}, opts...)
	srv.RegisterService(service(), s)
	eventsv1.RegisterDeadLetterServiceServer(srv, &deadLetters{s: s})
	eventsv1.RegisterInspectServiceServer(srv, &inspector{s: s})
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	close(s.draining)
	timer := time.AfterFunc(s.cfg.DrainTime, srv.Stop)
	defer timer.Stop()
	srv.GracefulStop()
	<-ended
	return nil
}

// principalKey is where the context of a call has its principal.
type principalKey struct{}

// enter asks who calls before there is anything of the call: whoever may not
// opens nothing that waits for a message which never comes.
func (s *Server) enter(ctx context.Context, call *tap.Info) (_ context.Context, err error) {
	// It is the goroutine that reads the connection which comes here.
	defer listener.Survive(ctx, s.cfg.Log, &err)
	var who *policy.Principal
	identify := func() (err error) {
		who, err = s.identify(ctx)
		return toStatus(err)
	}
	if call.FullMethodName == eventsv1.EventService_Subscribe_FullMethodName {
		err = s.aside(ctx, identify)
	} else {
		err = identify()
	}
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, principalKey{}, who), nil
}

// authenticate tells who calls.
func (s *Server) authenticate(ctx context.Context) (*policy.Principal, error) {
	if who, ok := ctx.Value(principalKey{}).(*policy.Principal); ok {
		return who, nil
	}
	return s.identify(ctx)
}

func (s *Server) identify(ctx context.Context) (*policy.Principal, error) {
	var c policy.Credentials
	if p, ok := peer.FromContext(ctx); ok {
		if c.Unix = p.Addr.Network() == "unix"; !c.Unix {
			c.Peer, _ = netip.ParseAddrPort(p.Addr.String())
		}
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.Certificates = info.State.PeerCertificates
		}
	}
	if values := metadata.ValueFromIncomingContext(ctx, "authorization"); len(values) > 0 {
		scheme, token, ok := strings.Cut(values[0], " ")
		token = strings.TrimSpace(token)
		if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
			return nil, fault.New(fault.Unauthenticated, "grpc", "bad-credentials", "one authorization: Bearer <API key> is understood")
		}
		c.Bearer = token
	}
	return s.cfg.Mesh.Authenticate(ctx, c)
}
