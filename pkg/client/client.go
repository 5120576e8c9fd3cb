// Package client is the Go client of the mesh: it publishes to and receives from
// proxies over gRPC.
//
// It balances over the proxies that its resolver gives, reconnects by itself, at
// random moments so that not all clients do so at once, and resumes tails where they
// were. HTTP proxies that the environment names are not asked. Delivery is at least once: an event whose
// acknowledgement was lost with a connection is published again with the same
// source and id.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/buffers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/pkg/unixaddr"
)

// Config of a Client. Either Addresses or Target is set.
type Config struct {
	// Addresses of proxies, "host:port", or "unix:/path" for a proxy beside, which is
	// spoken to without TLS.
	Addresses []string
	// Target is a gRPC target whose scheme Resolver serves
	// ("nacos:///weft"), to find proxies in a registry.
	Target   string
	Resolver resolver.Builder
	// TLS to proxies; nil is plaintext. Without a ServerName each proxy's
	// certificate is verified for the host under which it is reached.
	TLS *tls.Config
	// TLSFiles are TLS from files, instead of a TLS: which authorities are
	// trusted and what is shown. Files that change are those of the next
	// connection.
	TLSFiles tlsconf.Files
	// APIKey gives the key for each call; nil sends none. It is never sent
	// over plaintext to another machine. A call that it gives an error for has
	// code Unavailable, and what reconnects by itself tries again.
	APIKey func() (string, error)
}

// APIKeyFile reads the key from a file at each call, so that it can be rotated. One that
// is empty, as while it is written, is not sent.
func APIKeyFile(path string) func() (string, error) {
	return func() (string, error) {
		b, err := os.ReadFile(path)
		key := strings.TrimSpace(string(b))
		if err == nil && key == "" {
			err = fmt.Errorf("%s is empty", path)
		}
		return key, err
	}
}

// Client talks to the mesh. It is safe for concurrent use.
type Client struct {
	conn    *grpc.ClientConn
	rpc     eventsv1.EventServiceClient
	dead    eventsv1.DeadLetterServiceClient
	inspect eventsv1.InspectServiceClient
	pool    mem.BufferPool // of messages
	close   sync.Once
	closed  chan struct{}
}

// Connect waits until a proxy is connected to. Calls do that by themselves, for as long as
// they may take; it is for those who would rather know within ctx that there is none, and why.
func (c *Client) Connect(ctx context.Context) error {
	c.conn.Connect()
	for state := c.conn.GetState(); state != connectivity.Ready; state = c.conn.GetState() {
		if !c.conn.WaitForStateChange(ctx, state) {
			return c.unconnected(ctx)
		}
	}
	return nil
}

// unconnected asks why nothing is connected: a call that does not wait for it says so.
func (c *Client) unconnected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), minRetry)
	defer cancel()
	_, err := c.rpc.Settle(ctx, &eventsv1.SettleRequest{}, grpc.WaitForReady(false))
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return toError(err)
	}
	return nil // somebody has answered
}

// New makes a client. It connects when it is first used.
func New(cfg Config) (*Client, error) {
	creds, secure := insecure.NewCredentials(), true
	switch {
	case cfg.TLS != nil && !cfg.TLSFiles.Empty():
		return nil, errors.New("client: TLS and TLSFiles exclude each other")
	case cfg.TLS != nil:
		creds = credentials.NewTLS(cfg.TLS)
	case !cfg.TLSFiles.Empty():
		files, err := tlsconf.Open("proxies", cfg.TLSFiles, nil)
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		creds = files.Credentials(nil)
	default:
		secure = false
	}
	dial := &dialer{allowed: func(string) error { return nil }, dial: (&net.Dialer{}).DialContext, known: map[string]struct{}{}}
	pool := buffers.New()
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		// A proxy that is away for a moment is waited for, as long as the call may take.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.WaitForReady(true), grpc.ForceCodecV2(newCodec())),
		experimental.WithBufferPool(pool), grpc.WithReadBufferSize(64 << 10), grpc.WithWriteBufferSize(64 << 10),
	}
	target := cfg.Target
	switch {
	case len(cfg.Addresses) > 0 && target != "":
		return nil, errors.New("client: Addresses and Target exclude each other")
	case len(cfg.Addresses) > 0:
		r := manual.NewBuilderWithScheme("weft-static")
		var state resolver.State
		for _, a := range cfg.Addresses {
			host, _, err := net.SplitHostPort(a)
			if unixaddr.Is(a) {
				if host, a, err = socket(a, secure); err != nil {
					return nil, err
				}
			}
			if err != nil {
				return nil, fmt.Errorf("client: address %q is neither HOST:PORT, without a scheme, nor unix:/path", a)
			}
			// The proxy's certificate is for its host.
			state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a, ServerName: host}}})
		}
		r.InitialState(state)
		opts = append(opts, grpc.WithResolvers(r))
		target = "weft-static:///proxies"
	case target == "":
		return nil, errors.New("client: the address of a proxy is needed")
	case cfg.Resolver != nil:
		opts = append(opts, grpc.WithResolvers(cfg.Resolver))
	}
	if cfg.APIKey != nil {
		if !secure {
			for _, a := range cfg.Addresses {
				if err := onThisMachine(a); err != nil {
					return nil, err
				}
			}
			// Addresses of a registry are known only when they are dialled.
			dial.allowed = onThisMachine
		}
		opts = append(opts, grpc.WithPerRPCCredentials(apiKey{cfg.APIKey, secure}))
	}
	conn, err := grpc.NewClient(target, append(opts, dial.options()...)...)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	return &Client{conn: conn, rpc: eventsv1.NewEventServiceClient(conn), dead: eventsv1.NewDeadLetterServiceClient(conn), inspect: eventsv1.NewInspectServiceClient(conn),
		pool: pool, closed: make(chan struct{})}, nil
}

// socket is what gRPC is told of a Unix socket.
func socket(addr string, secure bool) (host, as string, err error) {
	path, err := unixaddr.Path(addr)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("client: %w", err)
	case secure:
		return "", "", fmt.Errorf("client: %s has no TLS: leave TLS out, or reach the proxy at its TCP address", addr)
	}
	return "localhost", unixaddr.Of(path), nil
}

// onThisMachine is nil where an API key may be sent to addr in the clear.
func onThisMachine(addr string) error {
	if unixaddr.Is(addr) {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("client: an API key is not sent to %s without TLS", addr)
	}
	return nil
}

type apiKey struct {
	key    func() (string, error)
	secure bool
}

func (k apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	key, err := k.key()
	if err != nil {
		// It may be there in a moment; nothing was refused.
		return nil, status.Errorf(codes.Unavailable, "the API key cannot be read: %v", err)
	}
	return map[string]string{"authorization": "Bearer " + key}, nil
}

func (k apiKey) RequireTransportSecurity() bool { return k.secure }

// Close ends the client, and what it began with it: Subscribe, Tail and each Publisher,
// with an *Error of code Canceled.
func (c *Client) Close() error {
	c.close.Do(func() { close(c.closed) })
	return c.conn.Close()
}

// errClientClosed is how what a client began ends with it.
var errClientClosed = &Error{Code: codes.Canceled, Message: "client: the client is closed"}

// Error is why the mesh did not do what was asked.
type Error struct {
	Code codes.Code
	// Reason is a stable word ("access-denied", "ambiguous").
	Reason string
	// Message is for people.
	Message string
	// RetryAfter is when trying again makes sense; 0 is unknown.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// Retryable reports whether the same call may succeed later. After the reasons
// "ambiguous" and "moved-meanwhile" the event may have been kept: publish it again with
// the same source and id.
func (e *Error) Retryable() bool {
	// Without a reason it is gRPC that has a limit, as of a message's length.
	throttled := e.Code == codes.ResourceExhausted && e.Reason != ""
	return e.Code == codes.Unavailable || throttled || e.Reason == "ambiguous" || e.Reason == "moved-meanwhile"
}

// toError is an error of a call.
func toError(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	e := &Error{Code: st.Code(), Message: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason = d.Reason
		case *errdetails.RetryInfo:
			e.RetryAfter = d.RetryDelay.AsDuration()
		}
	}
	return e
}

// fromWire is an error of one event.
func fromWire(e *eventsv1.Error) error {
	if e == nil {
		return nil
	}
	return &Error{Code: codes.Code(e.Code), Reason: e.Reason, Message: e.Message, RetryAfter: e.RetryAfter.AsDuration()} //nolint:gosec // a code
}

// call makes a call with events.
func (c *Client) call(ctx context.Context, method string, req encoded, resp any) error {
	if err := req.fits(); err != nil {
		return err
	}
	return toError(c.conn.Invoke(ctx, method, req, resp))
}

// Publish publishes one event and waits until the store has it. It returns the
// position token.
func (c *Client) Publish(ctx context.Context, namespace, topic string, e event.Event) (string, error) {
	if err := e.Validate(); err != nil {
		return "", &Error{Code: codes.InvalidArgument, Reason: "bad-event", Message: err.Error()}
	}
	resp := &eventsv1.PublishResponse{}
	if err := c.call(ctx, eventsv1.EventService_Publish_FullMethodName, append(request(namespace, topic), encode(&e, c.pool)), resp); err != nil {
		return "", err
	}
	return resp.Position, nil
}

// Result is the outcome for one event of a batch.
type Result struct {
	Position string
	Err      error
}

// PublishBatch publishes up to 1,000 events of one topic, which have less than 8 MiB
// together; each has its own result. The error is of the call as a whole.
func (c *Client) PublishBatch(ctx context.Context, namespace, topic string, events []event.Event) ([]Result, error) {
	req := request(namespace, topic)
	for i := range events {
		req = append(req, encode(&events[i], c.pool))
	}
	resp := &eventsv1.PublishBatchResponse{}
	if err := c.call(ctx, eventsv1.EventService_PublishBatch_FullMethodName, req, resp); err != nil {
		return nil, err
	}
	out := make([]Result, len(resp.Results))
	for i, r := range resp.Results {
		out[i] = Result{r.Position, fromWire(r.Error)}
	}
	return out, nil
}
