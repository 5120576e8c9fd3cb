package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/push"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/pkg/unixaddr"
	"github.com/weft-mesh/weft/store"
)

// Config of a Proxy. The zero value of a field is its default.
type Config struct {
	// ControlPlane are the addresses of discovery listeners, "host:port"; one
	// is used at a time.
	ControlPlane []string
	// ControlPlaneTLS secures the stream to them. Without it only loopback
	// addresses are connected to.
	ControlPlaneTLS tlsconf.Files
	// JoinTokenFile has a join token, which is shown to the control plane
	// while there is no certificate in ControlPlaneTLS that has not expired.
	// It is read again for every stream.
	JoinTokenFile string
	// ControlPlaneTimes are when a control plane is given up and tried again.
	ControlPlaneTimes config.Times
	// DataDir is a folder of this proxy's own: its node id, the last good
	// configuration, embedded stores. Required.
	DataDir string
	// SnapshotFile is a configuration that a control plane exported, to start from
	// where DataDir has none as new; none when empty. With SnapshotKeyFile, a public
	// Ed25519 key in PEM, it must be signed with the key that belongs to it.
	SnapshotFile, SnapshotKeyFile string
	// NodeID is stable over restarts, 1 to 128 of [A-Za-z0-9._-]; kept in
	// DataDir when empty.
	NodeID string
	// Namespaces to serve; all that the control plane lets it see when empty.
	Namespaces []string
	// OnDemand takes of the namespaces, which then must be named, only what
	// governs them and what clients use. Preload are canonical names of topics and
	// subscriptions that are used from the start. OnDemandIdle is how long a name
	// that nobody uses is kept (1 h when 0), OnDemandWait how long a call waits for
	// one (5 s when 0), and OnDemandMax how many are used at a time (1,000 when 0).
	OnDemand                   bool
	Preload                    []string
	OnDemandIdle, OnDemandWait time.Duration
	OnDemandMax                int
	// StaleAfter is from which age on a configuration that no control plane
	// confirms is stale; 1 h when 0. OnStale says what that may do: "serve" (the
	// default) or "deny", for one namespace as "namespace=deny".
	StaleAfter time.Duration
	OnStale    []string
	stale      staleness

	// Addresses to listen on. 127.0.0.1 with ports 7410 (clients over HTTP),
	// 7411 (clients over gRPC), 7418 (readiness alone) and 7419 (operations;
	// loopback only) when empty. Clients may come over Unix sockets instead
	// ("unix:/path"), whose files get SocketMode; listener.SocketMode when 0.
	HTTPAddr, GRPCAddr, HealthAddr, OpsAddr string
	// MetricsAddr is an address, of any network, for metrics alone; none when empty.
	MetricsAddr string
	SocketMode  fs.FileMode
	// TLS of the clients' listeners on TCP. Clients are asked for a certificate,
	// which Identities judge.
	TLS tlsconf.Files
	// AllowPlaintext lets the clients' listeners do without TLS on addresses
	// that are not loopback: API keys then cross the network in the clear.
	AllowPlaintext bool
	// MaxConnections bounds the connections of each clients' listener;
	// 10,000 when 0. Descriptors, as many as the process may have when 0, bound them
	// together: some are kept for the rest.
	MaxConnections, Descriptors int

	// AdvertiseHost is the host under which clients and Nacos reach the proxy;
	// empty: it is not registered. Zone and Weight (1 to 10,000, 100 when 0)
	// are for those who choose among proxies.
	AdvertiseHost, Zone string
	Weight              uint32

	// TrustLoopback makes whoever comes over loopback or a Unix socket without
	// credentials the principal "local".
	TrustLoopback bool
	// CORSOrigins are the web origins ("https://shop.example") whose pages may ask
	// over HTTP; none when empty.
	CORSOrigins []string
	// PushAllow are networks that push may call beside the public ones.
	PushAllow []netip.Prefix
	// PushSecrets is a folder with a folder of secrets for each namespace, whose
	// Subscriptions may use them; none when empty.
	PushSecrets string
	// PushServices finds services that push calls; nil where there is no registry.
	PushServices push.Services

	// DrainGrace is how long a stopping proxy goes on taking connections
	// after its readiness fails, so that others notice; 0 is none.
	DrainGrace time.Duration
	// LeaveOnStop takes the proxy off the mesh's roster when it stops gracefully, so that
	// nobody waits for it: it keeps no configuration then, and starts again only with a
	// control plane. Not with an embedded store, whose events stay here, and not with
	// SnapshotFile.
	LeaveOnStop bool
	// DrainTime bounds stopping as a whole, the grace in it; 25 s when 0.
	DrainTime time.Duration
	// ClientStall is how long a client that takes nothing of what there is to send
	// is waited for, before its connection is closed; 20 s when 0.
	ClientStall time.Duration
	// Clock is the wall time, by which credentials end; the machine's when nil.
	Clock clock.Clock

	// Window is store.Config.Window of every store.
	Window int
	// Drivers by kind, and what turns an EventStore into a kind and its options.
	Drivers map[string]store.Driver
	Options func(*configv1.EventStore) (kind string, options any, err error)

	// Metrics is where the proxy's metrics go; a registry of its own, with
	// those of the process, when nil.
	Metrics *prometheus.Registry
	// Tracing makes spans; none when nil.
	Tracing trace.TracerProvider
	Log     *slog.Logger
}

// check fills in defaults and refuses what cannot work, all at once.
func (c *Config) check() error {
	for _, d := range []struct {
		field *string
		value string
	}{{&c.HTTPAddr, "127.0.0.1:7410"}, {&c.GRPCAddr, "127.0.0.1:7411"}, {&c.HealthAddr, "127.0.0.1:7418"}, {&c.OpsAddr, "127.0.0.1:7419"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 10000
	}
	var err error
	if c.Descriptors == 0 {
		if c.Descriptors, err = listener.FileLimit(); err != nil {
			return err
		}
	}
	if c.DrainTime == 0 {
		c.DrainTime = 25 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		bad("a data folder is needed (--data)")
	}
	if c.SnapshotKeyFile != "" && c.SnapshotFile == "" {
		bad("there is a key to verify a snapshot file with, and no such file")
	}
	if len(c.ControlPlane) == 0 {
		bad("the address of a control plane is needed")
	}
	for _, addr := range c.ControlPlane {
		switch loopback, err := isLoopback(addr); {
		case err != nil:
			bad("control plane: %w", err)
		case !loopback && c.ControlPlaneTLS.Empty():
			bad("control plane: %s is not a loopback address: without TLS files only those are connected to", addr)
		}
	}
	sockets := 0
	for _, l := range []struct{ name, addr string }{{"HTTP", c.HTTPAddr}, {"gRPC", c.GRPCAddr}} {
		if unixaddr.Is(l.addr) {
			sockets++
			if _, err := unixaddr.Path(l.addr); err != nil {
				bad("%s: %w", l.name, err)
			}
			continue
		}
		switch loopback, err := isLoopback(l.addr); {
		case err != nil:
			bad("%s: %w", l.name, err)
		case !loopback && c.TLS.Empty() && !c.AllowPlaintext:
			bad("%s: %s is not a loopback address: it needs TLS files (--cert, --key), or plaintext to be allowed expressly (--allow-plaintext)", l.name, l.addr)
		}
	}
	switch {
	case sockets == 2 && !c.TLS.Empty():
		bad("there are TLS files, and clients come over Unix sockets alone, which have no TLS: leave the files out, or listen on a TCP address")
	case sockets == 2 && c.HTTPAddr == c.GRPCAddr:
		bad("HTTP and gRPC need a socket each; both are %s", c.HTTPAddr)
	}
	if unixaddr.Is(c.GRPCAddr) && c.AdvertiseHost != "" {
		bad("gRPC is on %s, which nobody reaches from elsewhere: a proxy that is advertised listens on a TCP address", c.GRPCAddr)
	}
	if c.SocketMode == 0 {
		c.SocketMode = listener.SocketMode
	} else if c.SocketMode&^fs.ModePerm != 0 || c.SocketMode&0o600 != 0o600 {
		bad("the mode of sockets is of permissions alone, the owner's among them, such as 0660, not %#o", c.SocketMode)
	}
	for _, l := range []struct{ name, addr string }{{"health", c.HealthAddr}, {"metrics", c.MetricsAddr}} {
		if _, _, err := net.SplitHostPort(l.addr); l.addr != "" && (err != nil || unixaddr.Is(l.addr)) {
			bad("%s: %q is not HOST:PORT; a Unix socket is for clients", l.name, l.addr)
		}
	}
	if loopback, err := isLoopback(c.OpsAddr); err != nil || !loopback {
		bad("operations: %s is not a loopback address", c.OpsAddr)
	}
	for _, o := range c.CORSOrigins {
		if u, err := url.Parse(o); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || o != u.Scheme+"://"+strings.ToLower(u.Host) {
			bad("cors: %q is no origin such as https://shop.example", names.Text(o, 100))
		}
	}
	for _, ns := range c.Namespaces {
		if err := names.CheckNamespace(ns); err != nil {
			bad("namespaces: %w", err)
		}
	}
	slices.Sort(c.Namespaces)
	c.Namespaces = slices.Compact(c.Namespaces)
	if c.OnDemand && len(c.Namespaces) == 0 {
		bad("on demand needs the namespaces to be named")
	}
	if len(c.Preload) > 0 && !c.OnDemand {
		bad("there are names to preload, and the configuration is not taken on demand: all of it is")
	}
	for _, s := range c.Preload {
		if n, err := config.ParseName(s); err != nil {
			bad("preload: %w", err)
		} else if !slices.Contains(c.Namespaces, n.Namespace) {
			bad("preload: %s is of no namespace that is served", s)
		}
	}
	if len(c.Preload) > maxPreload {
		bad("at most %d names can be preloaded", maxPreload)
	}
	if c.OnDemandIdle < 0 || c.OnDemandWait < 0 || c.OnDemandMax < 0 || c.StaleAfter < 0 {
		bad("no setting of on demand, and no age, may be negative")
	}
	if c.StaleAfter == 0 {
		c.StaleAfter = time.Hour
	}
	if c.stale, err = parseStale(c.OnStale); err != nil {
		bad("on stale: %w", err)
	}
	if c.LeaveOnStop && c.SnapshotFile != "" {
		bad("a proxy that leaves the roster when it stops cannot start from a snapshot file: it would write before it is on the roster again")
	}
	if c.NodeID != "" && !names.ValidNodeID(c.NodeID) {
		bad("the node id must be 1 to 128 of [A-Za-z0-9._-]")
	}
	if c.Weight > 10000 {
		bad("the weight must be at most 10,000")
	}
	if c.MaxConnections < 0 || c.DrainTime < 0 || c.ClientStall < 0 || c.DrainGrace < 0 || c.DrainGrace >= c.DrainTime {
		bad("the grace of %v must be shorter than the whole drain of %v, and no setting negative", c.DrainGrace, c.DrainTime)
	}
	if t := c.ControlPlaneTimes; t.AnswerTimeout < 0 || t.Keepalive < 0 || t.MaxRetry < 0 {
		bad("no time of the control plane may be negative")
	}
	if c.Options == nil {
		bad("store drivers and their options are needed")
	}
	return errors.Join(problems...)
}

// maxPreload bounds the names to preload.
const maxPreload = 500

// isLoopback reports whether addr ("host:port") names this machine's loopback.
func isLoopback(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, err
	}
	if strings.EqualFold(host, "localhost") {
		return true, nil
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback(), nil
}
