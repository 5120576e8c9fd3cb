package listener

import (
	"cmp"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/weft-mesh/weft/pkg/buffers"
)

// HTTPLimits bound what one connection may do. The zero value of a field is its
// default, which is for small pages.
type HTTPLimits struct {
	// ReadHeader bounds the wait for a request's headers, and a TLS handshake;
	// 5 s. Read bounds that for the whole request; 10 s. Write bounds the
	// answer from then on, where the handler sets no deadlines of its own; 10 s.
	ReadHeader, Read, Write time.Duration
	// Idle bounds the wait for the next request; 1 min.
	Idle time.Duration
	// Header bounds a request's headers, in bytes; 16 KiB.
	Header int
}

// HTTP makes a server.
func HTTP(h http.Handler, l HTTPLimits) *http.Server {
	return &http.Server{Handler: h,
		ReadHeaderTimeout: cmp.Or(l.ReadHeader, 5*time.Second),
		ReadTimeout:       cmp.Or(l.Read, 10*time.Second),
		WriteTimeout:      cmp.Or(l.Write, 10*time.Second),
		IdleTimeout:       cmp.Or(l.Idle, time.Minute),
		MaxHeaderBytes:    cmp.Or(l.Header, 16<<10),
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateActive {
				shaken(c)
			}
		},
		// A peer over HTTP/2 that is silent while streams are open is asked
		// whether it lives.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// GRPCLimits bound what one connection may do. The zero value of a field is its
// default.
type GRPCLimits struct {
	// TLS of the server; without where nil.
	TLS *tls.Config
	// Handshake bounds the wait for TLS and the preface; 10 s.
	Handshake time.Duration
	// Idle ends connections without calls; 15 min.
	Idle time.Duration
	// Age, after which a connection takes no new calls, so that clients
	// connect again, to whoever is there then, with credentials that are
	// judged anew; 2 h. Calls that are under way go on for Grace; without end
	// when 0.
	Age, Grace time.Duration
	// Stall is how long a stream waits for its client to take what there is to
	// send; 20 s, and a second for each 64 KiB of it (see Patience). Then the connection
	// is closed, with all that is on it: what the transport holds for a stream is let go
	// with its connection alone. So it is for the answer to a call that is no stream,
	// where the server's codec knows of Answer.
	Stall time.Duration
	// Message bounds a message that is received, in bytes; 2 MiB. Header
	// bounds the headers of a call; 32 KiB.
	Message int
	Header  uint32
	// Arriving bounds what the messages that have begun and are not whole take
	// together, of all connections, in bytes; 256 MiB. Beyond it the connection whose
	// message began first is closed. Twice Message is the least.
	Arriving int64
	// Streams bounds the calls at a time; 100.
	Streams uint32
	// Log has a line, with the stack, of each call whose handler panics: it is answered
	// with Internal. slog.Default() when nil.
	Log *slog.Logger
}

// GRPC makes a server.
func GRPC(l GRPCLimits, opts ...grpc.ServerOption) Server {
	creds := insecure.NewCredentials()
	if l.TLS != nil {
		creds = credentials.NewTLS(l.TLS)
	}
	log := cmp.Or(l.Log, slog.Default())
	longest, calls := cmp.Or(l.Message, 2<<20), cmp.Or(l.Streams, 100)
	most := max(cmp.Or(l.Arriving, 256<<20), 2*int64(longest))
	return Server{grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(following{creds, l.TLS != nil, &arriving{most: most, longest: longest, calls: int(calls)}, buffers.New()}),
		grpc.ForceServerCodecV2(Codec(MaxMessages)),
		grpc.ConnectionTimeout(cmp.Or(l.Handshake, 10*time.Second)),
		grpc.MaxRecvMsgSize(longest),
		grpc.MaxHeaderListSize(cmp.Or(l.Header, 32<<10)),
		grpc.MaxConcurrentStreams(calls),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: cmp.Or(l.Idle, 15*time.Minute),
			MaxConnectionAge: cmp.Or(l.Age, 2*time.Hour), MaxConnectionAgeGrace: l.Grace}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainStreamInterceptor(survivingStream(log), unstalled(cmp.Or(l.Stall, 20*time.Second))),
		grpc.ChainUnaryInterceptor(survivingUnary(log), untaken(cmp.Or(l.Stall, 20*time.Second))),
	}, opts...)...)}
}

// OnlyLocal refuses requests that a browser was led to make: a name of the web
// that resolves to this machine is not this machine's name.
func OnlyLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		ip, err := netip.ParseAddr(host)
		if !strings.EqualFold(host, "localhost") && (err != nil || !ip.Unmap().IsLoopback()) {
			http.Error(w, "the Host must be a loopback address", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
