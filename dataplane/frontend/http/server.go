// Package http speaks HTTP with applications: publishing in the three modes of
// CloudEvents and by calls of REST APIs, tails as server-sent events, and pulling.
package http

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/listener"
)

// Config of a Server. The zero value of a limit is its default.
type Config struct {
	Mesh frontend.Mesh
	// Requests are publishes that wait for a reply.
	Requests frontend.Requests
	// TLS of the listener; nil is plaintext.
	TLS *tls.Config
	// Origins are the web origins whose pages may ask, exactly as browsers send
	// them ("https://shop.example"); none when empty.
	Origins []string
	// MaxBody bounds a request's body, in bytes; 8 MiB.
	MaxBody int64
	// MaxBodies bounds the bodies of all requests in progress together, as far
	// as they were read; 512 MiB.
	MaxBodies int64
	// DrainTime bounds the graceful stop; 10 s.
	DrainTime time.Duration
	// Stall bounds one write of a tail or a pull: a client that takes nothing for
	// so long is cut off; 20 s, and a second more for each 64 KiB.
	Stall time.Duration
	// Clock tells where a tail that begins now begins.
	Clock   clock.Clock
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// MaxBody is the most bytes of a request's body, where the Config does not say.
const MaxBody = 8 << 20

// Server serves HTTP.
type Server struct {
	cfg      Config
	base     context.Context // ends when the server drains
	stop     context.CancelFunc
	requests *prometheus.CounterVec
	bodies   atomic.Int64 // bytes of bodies that were read, of requests in progress
}

// New makes a Server.
func New(cfg Config) *Server {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = MaxBody
	}
	if cfg.MaxBodies == 0 {
		cfg.MaxBodies = 512 << 20
	}
	if cfg.DrainTime == 0 {
		cfg.DrainTime = 10 * time.Second
	}
	if cfg.Stall == 0 {
		cfg.Stall = 20 * time.Second
	}
	s := &Server{cfg: cfg, requests: newRequests(cfg.Metrics)}
	s.base, s.stop = context.WithCancel(context.Background())
	return s
}

// Serve serves on l, which it takes, until ctx ends; then it lets requests
// finish and ends streams.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	// The body comes and the store answers within Write; tails set deadlines of
	// their own.
	srv := listener.HTTP(s, listener.HTTPLimits{Read: time.Minute, Write: 2 * time.Minute, Idle: 2 * time.Minute, Header: 32 << 10})
	srv.ErrorLog = slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		s.stop()
		return err
	case <-ctx.Done():
	}
	s.stop()
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTime)
	defer cancel()
	err := srv.Shutdown(dctx)
	if err != nil {
		err = srv.Close()
	}
	<-ended
	return err
}

// ServeHTTP routes a request. What of a path may stand as it is has to: a name
// with an escaped letter or slash is no name, so that what is authorised is what
// is served. Only the > and * of patterns are taken both ways. Calls of REST APIs are
// read in one way of their own.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w, operation := &answered{ResponseWriter: rw}, opOther
	defer func() { s.count(w, operation) }()
	if s.cors(w, r) {
		return
	}
	path := r.URL.Path
	if raw := r.URL.RawPath; raw != "" { // it has escapes of what may stand as it is
		path = strings.NewReplacer("%3E", ">", "%3e", ">", "%2A", "*", "%2a", "*").Replace(raw)
	}
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	switch {
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "topics" && strings.HasSuffix(parts[3], verbRequest):
		operation = opRequest
		if !method(w, r, http.MethodPost) {
			return
		}
		s.request(w, r, parts[1], strings.TrimSuffix(parts[3], verbRequest))
	case len(parts) == 3 && parts[0] == "v1" && parts[2] == "replies":
		operation = opReply
		if !method(w, r, http.MethodPost) {
			return
		}
		s.reply(w, r, parts[1])
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "topics" && strings.Contains(parts[3], ":"):
		problem(w, unknownVerb(parts[3], "topic", "POST publishes, and waits for the reply with "+verbRequest))
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "topics":
		operation = opPublish
		if !method(w, r, http.MethodPost) {
			return
		}
		s.publish(w, r, parts[1], parts[3])
	case len(parts) == 5 && parts[0] == "v1" && parts[2] == "topics" && parts[4] == "events":
		operation = opTail
		if !method(w, r, http.MethodGet) {
			return
		}
		s.tail(w, r, parts[1], parts[3])
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "subscriptions" && strings.HasSuffix(parts[3], verbPull):
		operation = opPull
		if !method(w, r, http.MethodPost) {
			return
		}
		s.pull(w, r, parts[1], strings.TrimSuffix(parts[3], verbPull))
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "subscriptions" && strings.HasSuffix(parts[3], verbSettle):
		operation = opSettle
		if !method(w, r, http.MethodPost) {
			return
		}
		s.settle(w, r, parts[1], strings.TrimSuffix(parts[3], verbSettle))
	case parts[0] == "rest" && len(parts) > 2:
		operation = opRest
		s.rest(w, r, true)
	case s.cfg.Mesh.Binds(hostOf(r)):
		operation = opRest
		s.rest(w, r, false)
	case len(parts) == 4 && parts[0] == "v1" && parts[2] == "subscriptions":
		problem(w, unknownVerb(parts[3], "subscription", "there are "+verbPull+" and "+verbSettle))
	default:
		problem(w, fault.New(fault.NotFound, "http", "unknown-path", "there is nothing at this path; events are published with POST /v1/{namespace}/topics/{topic}, or with POST /v1/{namespace}/topics/{topic}:request to wait for a reply, replied to with POST /v1/{namespace}/replies, tailed with GET /v1/{namespace}/topics/{topic}/events, pulled with POST /v1/{namespace}/subscriptions/{subscription}:pull and settled with POST /v1/{namespace}/subscriptions/{subscription}:settle; what HttpBindings take is below /rest/{namespace}/"))
	}
}

// unknownVerb is the error of a path whose last part, a name and a verb behind it, has a
// verb that there is not, or none where one is needed.
func unknownVerb(part, of, known string) *fault.Error {
	_, verb, ok := strings.Cut(part, ":")
	what := fmt.Sprintf("the verb %.64q is not known", ":"+verb)
	if !ok {
		what = "a verb is missing"
	}
	return fault.New(fault.NotFound, "http", "unknown-path", "%s behind the %s's name: %s", what, of, known)
}

func method(w http.ResponseWriter, r *http.Request, want string) bool {
	if r.Method == want {
		return true
	}
	w.Header().Set("Allow", want)
	problem(w, fault.New(fault.Invalid, "http", methodNotAllowed, "this path takes %s", want))
	return false
}

// authenticate tells who asks.
func (s *Server) authenticate(r *http.Request) (*policy.Principal, error) {
	var c policy.Credentials
	if c.Unix = overUnix(r); !c.Unix {
		c.Peer, _ = netip.ParseAddrPort(r.RemoteAddr)
	}
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		scheme, token, ok := strings.Cut(values[0], " ")
		token = strings.TrimSpace(token)
		if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
			return nil, fault.New(fault.Unauthenticated, "http", "bad-credentials", "one header Authorization: Bearer <API key> is understood")
		}
		c.Bearer = token
	}
	if r.TLS != nil {
		c.Certificates = r.TLS.PeerCertificates
	}
	p, err := s.cfg.Mesh.Authenticate(r.Context(), c)
	if err != nil {
		return nil, err
	}
	why := ""
	switch {
	case p.Namespace == "":
		why = foreign(r)
	case c.Bearer == "" && ofPage(r):
		why = "a page is not taken for whose certificate its browser has: it shows an API key or a token (Authorization: Bearer …)"
	}
	if why != "" {
		return nil, fault.New(fault.Unauthenticated, "http", "cross-site", "%s", why)
	}
	return p, nil
}

// enter tells who asks. The query of a request has only the parameters that the call
// knows, each once: what is misspelled would be left out of account.
func (s *Server) enter(r *http.Request, known ...string) (*policy.Principal, error) {
	who, err := s.authenticate(r)
	if err != nil || r.URL.RawQuery == "" {
		return who, err
	}
	there := "there are none here"
	if len(known) > 0 {
		there = "there is " + strings.Join(known, ", ")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fault.New(fault.Invalid, "http", "bad-parameter", "the query cannot be read: %s", there)
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(known, name) {
			return nil, fault.New(fault.Invalid, "http", "bad-parameter", "the query has %.64q, which is not a parameter of this call: %s", name, there)
		}
		if len(query[name]) > 1 {
			return nil, fault.New(fault.Invalid, "http", "bad-parameter", "the query has %s more than once", name)
		}
	}
	return who, nil
}

// overUnix reports whether a request came over a Unix socket.
func overUnix(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// foreign says why a request of the local principal may not have been meant for this
// machine by something on it, but sent by a web page that a browser here has open (DNS
// rebinding, cross-site requests); "" where it was meant so. No name leads a browser to a
// Unix socket, so any Host may stand there.
func foreign(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) && !overUnix(r) {
		return fmt.Sprintf("the Host is %.64q, and without credentials loopback is trusted as localhost and by its addresses alone, since a page of another site could have sent this: show an API key or a token (Authorization: Bearer …), or call this machine by 127.0.0.1", host)
	}
	if ofPage(r) {
		return "a page of another site may not use what loopback is trusted with"
	}
	return ""
}

// ofPage reports whether a page that a browser has open may have sent a request: where it
// shows nothing of its own, the browser may have added what its user is known by.
func ofPage(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site != "" && site != "none" && site != "same-origin" || r.Header.Get("Origin") != ""
}
