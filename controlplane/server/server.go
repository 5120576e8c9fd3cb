// Package server composes a control plane: what runs, in which order, and how
// it stops.
package server

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/admin"
	"github.com/weft-mesh/weft/controlplane/census"
	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/discovery"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/fleet"
	"github.com/weft-mesh/weft/controlplane/jointoken"
	"github.com/weft-mesh/weft/controlplane/moves"
	"github.com/weft-mesh/weft/controlplane/provision"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/controlplane/validate"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/pkg/version"
	"github.com/weft-mesh/weft/registry"
	"github.com/weft-mesh/weft/store"
)

// Config of a control plane. The zero value of a field is its default.
type Config struct {
	// Etcd is the client; the server does not close it.
	Etcd *clientv3.Client
	// Prefix of the keys; configstore.DefaultPrefix when empty.
	Prefix string
	// Addresses to listen on: the admin API, discovery, and operations
	// (metrics, readiness, profiles; loopback only). 127.0.0.1:7420, :7421
	// and :7429 when empty.
	AdminAddr, DiscoveryAddr, OpsAddr string
	// HealthAddr and MetricsAddr are addresses, of any network, for readiness alone
	// and for metrics alone; there are none when they are empty.
	HealthAddr, MetricsAddr string
	// MaxConnections bounds the connections of the admin API's and of
	// discovery's listener; 20,000 when 0. Descriptors, as many as the process may
	// have when 0, bound them together: some are kept for the rest.
	MaxConnections, Descriptors int
	// TLS of the admin API and of discovery. Without it only loopback
	// addresses are accepted. A proxy's certificate whose SPIFFE ID has the
	// path /weft/proxy/<node id>[/<namespace>…] is good for that node id and,
	// where it names some, those namespaces; others are good for all.
	AdminTLS, DiscoveryTLS tlsconf.Files
	// TLSSources are TLS files beside those, of the registry, for the metrics.
	TLSSources []*tlsconf.Source
	// SnapshotKeyFile has the private Ed25519 key, PKCS #8 in PEM, that exported
	// snapshots are signed with; they are not signed when it is empty. It is read
	// once.
	SnapshotKeyFile string
	// AdminAccess is the file that says who may administer what; see
	// docs/administration.md. Without it whoever comes over loopback, or with a
	// certificate of AdminTLS.CA, may everything. With it AdminTLS needs no CA:
	// callers may have tokens.
	AdminAccess string
	// Guard bounds what one change may remove without saying that it means to.
	Guard admin.Guard
	// AuditBytes is configstore.Config's.
	AuditBytes int64
	// AdminAdvertise is the address of the admin API as other replicas reach it,
	// "host:port"; when empty AdminAddr, with this machine's name where that is
	// every address. Replicas show each other AdminTLS's certificate.
	AdminAdvertise string
	// Drivers and Options for provisioning; see provision.Config.
	Drivers map[string]store.Driver
	Options func(*configv1.EventStore) (kind string, options any, err error)
	// Registry is where proxies are registered, as instances of Service; nil
	// registers none. The server does not close it.
	Registry registry.Registry
	Service  string
	// DrainTime bounds the graceful stop; 5 s when 0.
	DrainTime time.Duration
	Times     Times
	// Clock is the wall time; the machine's when nil.
	Clock clock.Clock
	Log   *slog.Logger
}

// Times of a control plane's work in the background. The zero value of each is
// the default of the field that it sets.
type Times struct {
	// EtcdMaxRetry and EtcdProbe are configstore.Config's MaxRetry and
	// ProbeEvery.
	EtcdMaxRetry, EtcdProbe time.Duration
	// ElectionTTL is that of provision.Config and fleet.Config: at least 1 s,
	// in whole seconds.
	ElectionTTL time.Duration
	// Provision is provision.Config.Every.
	Provision time.Duration
	// Register, RegisterGrace and Forget are fleet.Config's Every, Grace and
	// Forget.
	Register, RegisterGrace, Forget time.Duration
	// StreamAge is discovery.Config.MaxAge.
	StreamAge time.Duration
	// ForgetStatus is census.Config.Forget: at least 1 s, in whole seconds.
	ForgetStatus time.Duration
}

func (t Times) check() error {
	for _, d := range []time.Duration{t.EtcdMaxRetry, t.EtcdProbe, t.ElectionTTL, t.Provision, t.Register, t.RegisterGrace, t.Forget, t.StreamAge, t.ForgetStatus} {
		if d < 0 {
			return errors.New("no time of the control plane may be negative")
		}
	}
	if t.ElectionTTL%time.Second != 0 || t.ForgetStatus%time.Second != 0 {
		return errors.New("the election's TTL, and the time after which a status is forgotten, are in whole seconds")
	}
	return nil
}

// maxOpsConnections bounds the connections of each listener for small pages, maxScrapes
// how many may ask for metrics at a time.
const (
	maxOpsConnections = 64
	maxScrapes        = 4
)

// The listeners. The last two are there where they are asked for.
const (
	listenAdmin = iota
	listenDiscovery
	listenOps
	listenHealth
	listenMetrics
)

var listeners = [...]string{"admin", "discovery", "ops", "health", "metrics"}

// Addrs are the addresses that a server listens on; empty is that of no listener.
type Addrs struct{ Admin, Discovery, Ops, Health, Metrics string }

// Server is a control plane. Use it once.
type Server struct {
	cfg       Config
	store     *configstore.Store
	paced     *discovery.Paced
	discovery *discovery.Server
	admin     *admin.Service
	access    *admin.Access
	provision *provision.Provisioner
	fleet     *fleet.Fleet // nil without a registry
	reports   *census.Reports
	holds     *moves.Holds
	office    *moves.Office
	census    *census.Mesh
	joins     *jointoken.Tokens
	roster    *roster.Roster
	metrics   *prometheus.Registry
	listeners [len(listeners)]*listener.Listener
	adminTLS  *tls.Config // nil: without
	discoTLS  *tls.Config
}

// New checks cfg, opens the listeners and makes a server; Run serves.
func New(cfg Config) (_ *Server, err error) {
	for _, d := range []struct {
		field *string
		value string
	}{{&cfg.AdminAddr, "127.0.0.1:7420"}, {&cfg.DiscoveryAddr, "127.0.0.1:7421"}, {&cfg.OpsAddr, "127.0.0.1:7429"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if cfg.DrainTime == 0 {
		cfg.DrainTime = 5 * time.Second
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 20000
	}
	if cfg.Descriptors == 0 {
		if cfg.Descriptors, err = listener.FileLimit(); err != nil {
			return nil, err
		}
	}
	if cfg.Registry != nil && cfg.Service == "" {
		cfg.Service = "weft"
	}
	if err := cfg.Times.check(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, metrics: prometheus.NewRegistry()}
	s.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var peers credentials.TransportCredentials
	askAdmin := tls.RequireAndVerifyClientCert
	if cfg.AdminAccess != "" {
		askAdmin = tls.VerifyClientCertIfGiven // others have a token
	}
	if s.adminTLS, peers, err = s.transport("admin", cfg.AdminAddr, cfg.AdminTLS, cfg.AdminAccess != "", askAdmin); err != nil {
		return nil, err
	}
	if s.discoTLS, _, err = s.transport("discovery", cfg.DiscoveryAddr, cfg.DiscoveryTLS, false, tls.VerifyClientCertIfGiven /* others have a join token */); err != nil {
		return nil, err
	}
	if _, _, err := s.transport("operations", cfg.OpsAddr, tlsconf.Files{}, false, tls.NoClientCert); err != nil {
		return nil, err
	}
	s.metrics.MustRegister(tlsconf.Metrics("weft_controlplane", s.cfg.TLSSources...))
	var snapshotKey ed25519.PrivateKey
	if cfg.SnapshotKeyFile != "" {
		if snapshotKey, err = configfile.PrivateKey(cfg.SnapshotKeyFile); err != nil {
			return nil, fmt.Errorf("the key that snapshots are signed with: %w", err)
		}
	}
	if err := cfg.Guard.Check(); err != nil {
		return nil, err
	}
	if cfg.AuditBytes < 0 {
		return nil, errors.New("audit records cannot take less room than none")
	}
	if cfg.AdminAdvertise != "" {
		if _, _, err := net.SplitHostPort(cfg.AdminAdvertise); err != nil {
			return nil, fmt.Errorf("the advertised address of the admin API: %w", err)
		}
	}
	validator, err := validate.New()
	if err != nil {
		return nil, err
	}
	s.store = configstore.New(configstore.Config{Client: cfg.Etcd, Prefix: cfg.Prefix, MaxRetry: cfg.Times.EtcdMaxRetry, ProbeEvery: cfg.Times.EtcdProbe, AuditBytes: cfg.AuditBytes, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	s.paced = discovery.Pace(s.store, 0)
	s.joins = jointoken.New(jointoken.Config{Etcd: cfg.Etcd, Prefix: s.store.JoinTokens(), Lineage: s.store.LineageKey(), Clock: cfg.Clock, Log: cfg.Log})
	s.roster = roster.New(roster.Config{Etcd: cfg.Etcd, Prefix: s.store.StatusKey("node/"), Lineage: s.store.LineageKey(), Head: s.store.Changed,
		End: func(node string, err error) { s.discovery.EndNode(node, err) }, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	s.discovery = discovery.New(discovery.Config{Source: s.paced, Roster: s.roster, Quarantine: s.store.Quarantine, MaxAge: cfg.Times.StreamAge, Clock: cfg.Clock, Log: cfg.Log, Metrics: s.metrics})
	offices := &election.Offices{}
	s.provision = provision.New(provision.Config{Store: s.store, Drivers: cfg.Drivers, Options: cfg.Options,
		Every: cfg.Times.Provision, ElectionTTL: cfg.Times.ElectionTTL, Offices: offices, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	s.office = moves.New(moves.Config{Store: s.store, Drivers: cfg.Drivers, Options: cfg.Options, Nodes: s.roster.Nodes,
		ElectionTTL: cfg.Times.ElectionTTL, Offices: offices, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	alarms := []admin.Alarms{s.discovery}
	if cfg.Registry != nil {
		s.fleet = fleet.New(fleet.Config{Etcd: cfg.Etcd, StatusKey: s.store.StatusKey, Proxies: s.discovery.Proxies,
			Registry: cfg.Registry, Service: cfg.Service, Every: cfg.Times.Register, Grace: cfg.Times.RegisterGrace, Forget: cfg.Times.Forget,
			ElectionTTL: cfg.Times.ElectionTTL, Offices: offices, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
		alarms = append(alarms, s.fleet)
	}
	room := listener.NewRoom(cfg.Descriptors, cfg.Log)
	small := room.Small(maxOpsConnections)
	for i, l := range [len(listeners)]struct {
		addr string
		most int
		tls  *tls.Config
	}{{cfg.AdminAddr, cfg.MaxConnections, s.adminTLS}, {cfg.DiscoveryAddr, cfg.MaxConnections, s.discoTLS}, {cfg.OpsAddr, small, nil}, {cfg.HealthAddr, small, nil}, {cfg.MetricsAddr, small, nil}} {
		if l.addr == "" {
			continue
		}
		on, err := listener.Listen(l.addr, l.most)
		if err != nil {
			for _, open := range s.listeners {
				if open != nil {
					_ = open.Close()
				}
			}
			return nil, fmt.Errorf("control plane, %s: %w", listeners[i], err)
		}
		if s.listeners[i] = on; i <= listenDiscovery {
			on.Share(room, listeners[i])
		}
		if l.tls != nil {
			on.LimitHandshakes()
		}
	}
	s.register()
	s.reports = census.NewReports(census.ReportsConfig{Authorize: s.discovery.Authorize, Metrics: s.metrics, Log: cfg.Log})
	s.holds = moves.NewHolds(moves.HoldsConfig{Store: s.store, Authorize: s.discovery.Authorize, May: s.mayHold, Leave: s.roster.Leave, Metrics: s.metrics, Log: cfg.Log})
	s.census = census.New(census.Config{Etcd: cfg.Etcd, StatusKey: s.store.StatusKey, Address: census.Advertised(cfg.AdminAdvertise, s.listeners[listenAdmin].Addr()),
		Version: version.String(), TLS: peers, Connected: s.discovery.Proxies, Report: s.reports.Report, Offices: offices,
		Forget: cfg.Times.ForgetStatus, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	if s.access, err = admin.NewAccess(admin.AccessConfig{File: cfg.AdminAccess, Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log}); err != nil {
		return nil, err
	}
	s.admin = admin.New(admin.Config{Store: s.store, Validator: validator, Guard: cfg.Guard, Mesh: s.census, Commands: s.reports, Alarms: alarms, JoinTokens: s.joins, Roster: s.roster, SnapshotKey: snapshotKey,
		Conditions: moves.Conditions(s.store, provision.Conditions(s.store)), Progress: moves.Progress(s.store), Observed: provision.Observed(s.store, cfg.Drivers), Version: version.String(), Clock: cfg.Clock, Metrics: s.metrics, Log: cfg.Log})
	return s, nil
}

// mayHold reports whether a proxy may say where it is with topics of a namespace that
// move, and write to them.
func (s *Server) mayHold(ctx context.Context, node, namespace string) bool {
	return discovery.Allows(ctx, namespace) && s.roster.May(node, namespace)
}

// transport is the listener's security and what others like it are called with:
// TLS from files, or none on loopback. tokens: callers may have those instead of a
// certificate, and no authority.
func (s *Server) transport(name, addr string, f tlsconf.Files, tokens bool, ask tls.ClientAuthType) (server *tls.Config, client credentials.TransportCredentials, err error) {
	if !f.Empty() {
		if f.CA == "" && !tokens {
			return nil, nil, fmt.Errorf("%s: a client authority is needed beside certificate and key: it is what lets callers in", name)
		}
		files, err := tlsconf.Open(name, f, s.cfg.Log)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		c, err := files.Server(ask, "h2")
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		s.cfg.TLSSources = append(s.cfg.TLSSources, files)
		return c, files.Credentials(nil), nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, nil, fmt.Errorf("%s: %s is not a loopback address: without TLS files only those are listened on", name, addr)
	}
	return nil, nil, nil
}

// Addrs tells where the server listens.
func (s *Server) Addrs() Addrs {
	var at [len(listeners)]string
	for i, l := range s.listeners {
		if l != nil {
			at[i] = l.Addr().String()
		}
	}
	return Addrs{at[listenAdmin], at[listenDiscovery], at[listenOps], at[listenHealth], at[listenMetrics]}
}

// Ready waits until everything was read from etcd.
func (s *Server) Ready(ctx context.Context) error {
	_, err := s.paced.WaitFor(ctx, 0)
	return err
}

// grpcServer makes a server for what is kept open long: whoever's credentials have
// changed meanwhile is judged again at an age.
func (s *Server) grpcServer(config *tls.Config, streams uint32, age time.Duration, opts ...grpc.ServerOption) listener.Server {
	return listener.GRPC(listener.GRPCLimits{TLS: config, Streams: streams, Header: 64 << 10 /* a resume token travels in one */, Age: age, Grace: time.Minute, Log: s.cfg.Log}, opts...)
}

// Run serves until ctx ends or something fails, then stops gracefully.
func (s *Server) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	// The configuration comes first: nothing is served before it was read.
	g.Go(func() error { return s.store.Run(gctx) })
	g.Go(func() error { return s.paced.Run(gctx) })
	g.Go(func() error { return s.store.RunAudit(gctx) })
	g.Go(func() error { return s.admin.Run(gctx) })
	g.Go(func() error { return s.joins.Run(gctx) })
	g.Go(func() error { return s.roster.Run(gctx) })
	g.Go(func() error { return s.provision.Run(gctx) })
	g.Go(func() error { return s.census.Run(gctx) })
	g.Go(func() error { return s.holds.Run(gctx) })
	g.Go(func() error { return s.office.Run(gctx) })
	if s.fleet != nil {
		g.Go(func() error { return s.fleet.Run(gctx) })
	}

	g.Go(func() error { return s.access.Run(gctx) })
	adminServer := s.grpcServer(s.adminTLS, 100, time.Hour, append(counting(s.metrics), s.admin.ServerOptions(s.access)...)...)
	adminv1.RegisterAdminServiceServer(adminServer, s.admin)
	discoServer := s.grpcServer(s.discoTLS, 16, 2*cmp.Or(s.cfg.Times.StreamAge, time.Hour) /* streams end by themselves before */, append(discovery.ServerOptions(), discovery.Join(s.joins)...)...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(discoServer, s.discovery)
	discoveryv1.RegisterProxyStatusServiceServer(discoServer, s.reports)
	discoveryv1.RegisterMoveServiceServer(discoServer, s.holds)
	// A profile takes as long as it is asked for.
	pages := map[int]*http.Server{listenOps: listener.HTTP(s.operations(), listener.HTTPLimits{Write: 5 * time.Minute}),
		listenHealth: listener.HTTP(s.health(), listener.HTTPLimits{}), listenMetrics: listener.HTTP(s.metricsPage(), listener.HTTPLimits{})}
	g.Go(func() error { return adminServer.Serve(s.listeners[listenAdmin]) })
	g.Go(func() error { return discoServer.Serve(s.listeners[listenDiscovery]) })
	for i, page := range pages {
		if s.listeners[i] == nil {
			continue
		}
		g.Go(func() error {
			if err := page.Serve(s.listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		// Proxies go to other replicas, in good order.
		s.discovery.Drain()
		timer := time.AfterFunc(s.cfg.DrainTime, func() { adminServer.Stop(); discoServer.Stop() })
		defer timer.Stop()
		adminServer.GracefulStop()
		discoServer.GracefulStop()
		for _, page := range pages {
			_ = page.Close()
		}
		return nil
	})
	err := g.Wait()
	// Nobody calls any more. What was counted and not written is not forgotten.
	s.admin.Flush(context.WithoutCancel(ctx))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// health serves readiness and nothing else: it may be open to the network.
func (s *Server) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s.ready(w) {
			_, _ = w.Write([]byte("ok\n"))
		}
	})
	return mux
}

// metricsPage serves metrics and nothing else: it may be open to the network.
func (s *Server) metricsPage() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{Registry: s.metrics, MaxRequestsInFlight: maxScrapes}))
	return mux
}

// ready reports whether there is a configuration to serve, and answers where there is none.
// Without etcd it still serves proxies, and no other replica could more.
func (s *Server) ready(w http.ResponseWriter) bool {
	if snap, _ := s.paced.Snapshot(); snap == nil {
		http.Error(w, "the configuration was not read from etcd yet", http.StatusServiceUnavailable)
		return false
	}
	return true
}

// operations is what operators and orchestrators ask who are on this machine.
func (s *Server) operations() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metricsPage())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready(w) {
			return
		}
		_, _ = w.Write([]byte("ok\n"))
		for _, a := range s.census.Alarms() {
			_, _ = fmt.Fprintln(w, a.Message)
		}
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return listener.OnlyLocal(mux)
}
