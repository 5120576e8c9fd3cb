// Package proxy composes the data plane: what runs, in which order it starts,
// and (drain.go) in which order it stops.
package proxy

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/denied"
	"github.com/weft-mesh/weft/dataplane/issuers"
	"github.com/weft-mesh/weft/dataplane/moves"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/push"
	"github.com/weft-mesh/weft/dataplane/report"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/dataplane/stores"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/tlsconf"
	"github.com/weft-mesh/weft/pkg/unixaddr"
	"github.com/weft-mesh/weft/pkg/version"
)

// Names of the listeners.
const (
	listenHTTP   = "http"
	listenGRPC   = "grpc"
	listenHealth = "health"
	listenOps    = "ops"
	// listenMetrics is there where it is asked for.
	listenMetrics = "metrics"
)

// Proxy is one proxy of the mesh. Use it once.
type Proxy struct {
	cfg         Config
	dir         *dataDir
	nodeID      string
	incarnation string
	registry    *prometheus.Registry
	listeners   map[string]*listener.Listener
	tls         map[string]*tls.Config // of the clients' listeners; none without TLS

	client     *config.Client
	stores     *stores.Manager
	moves      *moves.Manager
	issuers    *issuers.Manager
	sources    []*tlsconf.Source
	pusher     *push.Pusher
	deliveries *delivery.Manager
	denied     *denied.Log
	snapshots  *latest.Value[*snapshot.Snapshot]
	mesh       *mesh
	engine     engine

	draining atomic.Bool
	stale    atomic.Bool // what is in force was compiled as a stale configuration
	// leave is closed when the control plane asks this proxy to stop.
	leave   chan struct{}
	leaving sync.Once
	again   chan struct{} // capacity 1: the state must be applied again

	applying sync.Mutex
	state    config.State // the newest that came; guarded by applying
}

// New checks cfg, takes the data folder, opens the listeners and makes a proxy.
// Either Run or Close must follow.
func New(cfg Config) (_ *Proxy, err error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxy{cfg: cfg, incarnation: uuid.NewString(), registry: cfg.Metrics, listeners: map[string]*listener.Listener{}, tls: map[string]*tls.Config{},
		snapshots: latest.New(snapshot.Compile(snapshot.Input{})), leave: make(chan struct{}), again: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("proxy: %w", errors.Join(err, p.Close()))
		}
	}()
	if p.dir, err = openDataDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if p.nodeID = cfg.NodeID; p.nodeID == "" {
		if p.nodeID, err = p.dir.nodeID(); err != nil {
			return nil, err
		}
	}
	if !cfg.TLS.Empty() {
		s, err := p.files("clients", cfg.TLS)
		if err != nil {
			return nil, err
		}
		for name, l := range map[string]struct {
			addr   string
			protos []string
		}{listenHTTP: {cfg.HTTPAddr, []string{"h2", "http/1.1"}}, listenGRPC: {cfg.GRPCAddr, []string{"h2"}}} {
			if unixaddr.Is(l.addr) {
				continue
			}
			if p.tls[name], err = s.Server(tls.RequireAndVerifyClientCert, l.protos...); err != nil {
				return nil, err
			}
		}
	}
	room := listener.NewRoom(cfg.Descriptors, cfg.Log)
	for name, l := range map[string]struct {
		addr    string
		most    int
		clients bool
	}{listenHTTP: {cfg.HTTPAddr, cfg.MaxConnections, true}, listenGRPC: {cfg.GRPCAddr, cfg.MaxConnections, true},
		listenHealth: {cfg.HealthAddr, room.Small(maxHealthConnections), false}, listenOps: {cfg.OpsAddr, room.Small(maxOpsConnections), false},
		listenMetrics: {cfg.MetricsAddr, room.Small(maxOpsConnections), false}} {
		if l.addr == "" {
			continue
		}
		on, err := p.listen(l.addr, l.most)
		if err != nil {
			return nil, fmt.Errorf("%s listener: %w", name, err)
		}
		if p.listeners[name] = on; l.clients {
			on.Share(room, name)
		}
		if p.tls[name] != nil {
			on.LimitHandshakes()
		}
	}
	if p.registry == nil {
		p.registry = prometheus.NewRegistry()
		p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return p, p.compose()
}

// listen listens on a TCP address or a Unix socket.
func (p *Proxy) listen(addr string, most int) (*listener.Listener, error) {
	if !unixaddr.Is(addr) {
		return listener.Listen(addr, most)
	}
	path, err := unixaddr.Path(addr)
	if err != nil {
		return nil, err
	}
	return listener.ListenSocket(path, p.cfg.SocketMode, most)
}

// files opens TLS files, which the proxy's metrics show.
func (p *Proxy) files(name string, f tlsconf.Files) (*tlsconf.Source, error) {
	s, err := tlsconf.Open(name, f, p.cfg.Log)
	if err == nil {
		p.sources = append(p.sources, s)
	}
	return s, err
}

// compose makes the parts.
func (p *Proxy) compose() error {
	p.registry.MustRegister(connections(p.listeners)...)
	p.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_ready", Help: "1 while the proxy serves, else 0."}, func() float64 {
			if p.ready() == nil {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_build_info", Help: "Always 1; the label has the version.",
			ConstLabels: prometheus.Labels{"version": version.String()}}, func() float64 { return 1 }))
	var creds credentials.TransportCredentials
	var join credentials.PerRPCCredentials
	if err := p.joining(&creds, &join); err != nil {
		return err
	}
	p.registry.MustRegister(tlsconf.Metrics("weft_proxy", p.sources...))
	var key ed25519.PublicKey
	if p.cfg.SnapshotKeyFile != "" {
		var err error
		if key, err = configfile.PublicKey(p.cfg.SnapshotKeyFile); err != nil {
			return fmt.Errorf("the key that snapshots are verified with: %w", err)
		}
	}
	p.stores = stores.New(stores.Config{Drivers: p.cfg.Drivers, Options: p.cfg.Options, ClientID: p.incarnation, Dir: filepath.Join(p.cfg.DataDir, "stores"),
		Window: p.cfg.Window, Refused: p.refused, Prepared: p.applyAgain, Metrics: p.registry, Log: p.cfg.Log})
	var pin func(config.Name) func()
	if p.cfg.OnDemand {
		pin = func(n config.Name) func() { return p.client.Pin(n) }
	}
	p.moves = moves.New(moves.Config{Pin: pin, Snapshots: p.snapshots, Kept: func() (config.Kept, <-chan struct{}) { return p.client.Kept() }, Store: p.stores.Get, NodeID: p.nodeID, Metrics: p.registry, Log: p.cfg.Log})
	reporter := report.New(report.Config{NodeID: p.nodeID, Info: p.info(), State: p.reported, Load: p.load, Resync: func() { p.client.Resync() }, Drain: p.Drain, Clock: p.cfg.Clock, Log: p.cfg.Log})
	p.issuers = issuers.New(issuers.Config{Dir: filepath.Join(p.cfg.DataDir, "issuers"), Allow: p.cfg.PushAllow, Clock: p.cfg.Clock,
		Changed: p.applyAgain, Metrics: p.registry, Log: p.cfg.Log})
	p.client = config.New(config.Config{Addresses: p.cfg.ControlPlane, TLS: creds, Join: join, NodeID: p.nodeID, Info: p.info(), Dir: filepath.Join(p.cfg.DataDir, "config"), Times: p.cfg.ControlPlaneTimes,
		SnapshotFile: p.cfg.SnapshotFile, SnapshotKey: key, Demand: p.cfg.onDemand(), Clock: p.cfg.Clock,
		Check: snapshot.Check, Apply: p.apply, Connected: both(reporter.Run, p.moves.Run), Metrics: p.registry, Log: p.cfg.Log})
	p.registry.MustRegister(p.staleMetric())
	p.mesh = &mesh{snapshots: p.snapshots, ready: p.ready, clock: p.cfg.Clock, metrics: newMeshMetrics(p.registry, func() *policy.Rules { return p.snapshots.Get().Rules }), refused: p.issuers.Refused}
	if p.cfg.OnDemand {
		p.mesh.demand = &demand{p.client}
	}
	return p.wire()
}

// both does two things over a connection to a control plane, side by side.
func both(a, b func(context.Context, grpc.ClientConnInterface)) func(context.Context, grpc.ClientConnInterface) {
	return func(ctx context.Context, conn grpc.ClientConnInterface) {
		var beside sync.WaitGroup
		beside.Go(func() { a(ctx, conn) })
		b(ctx, conn)
		beside.Wait()
	}
}

// info is what the control plane is told of this proxy.
func (p *Proxy) info() *discoveryv1.NodeInfo {
	i := &discoveryv1.NodeInfo{Incarnation: p.incarnation, Version: version.String(), Namespaces: p.cfg.Namespaces, Manifest: true, Leaves: p.cfg.LeaveOnStop,
		AdvertiseHost: p.cfg.AdvertiseHost, Zone: p.cfg.Zone, Weight: p.cfg.Weight, Ports: map[string]uint32{}}
	// What this version knows it enforces, but for stores whose driver is not here.
	i.Capabilities = resource.AllFeatures()
	drivers := (&configv1.EventStore{}).ProtoReflect().Descriptor().Oneofs().ByName("driver").Fields()
	for n := range drivers.Len() {
		if kind := string(drivers.Get(n).Name()); p.cfg.Drivers[kind] == nil {
			i.Capabilities = slices.DeleteFunc(i.Capabilities, func(f string) bool { return f == "eventstore."+kind })
		}
	}
	for _, name := range []string{listenHTTP, listenGRPC, listenHealth} {
		if a, ok := p.listeners[name].Addr().(*net.TCPAddr); ok {
			i.Ports[name] = uint32(a.Port)
		}
	}
	return i
}

// Addrs are the addresses that a proxy listens on; a Unix socket's is "unix:/path".
// Metrics is empty where those have no listener of their own.
type Addrs struct{ HTTP, GRPC, Health, Ops, Metrics string }

// Addrs tells where the proxy listens.
func (p *Proxy) Addrs() Addrs {
	at := func(name string) string {
		if l := p.listeners[name]; l != nil {
			return l.Addr().String()
		}
		return ""
	}
	return Addrs{at(listenHTTP), at(listenGRPC), at(listenHealth), at(listenOps), at(listenMetrics)}
}

// NodeID is the node id in use.
func (p *Proxy) NodeID() string { return p.nodeID }

// Ready waits until a configuration is in force, with what is to be preloaded.
func (p *Proxy) Ready(ctx context.Context) error {
	for {
		s, replaced := p.snapshots.Load()
		if s.Lineage != "" {
			break
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return fmt.Errorf("the proxy has no configuration yet: %w", context.Cause(ctx))
		}
	}
	select {
	case <-p.client.Preloaded():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the proxy has not heard of what it is to preload: %w", context.Cause(ctx))
	}
}

// Snapshot is the configuration in force and a channel that is closed once it is
// not any more.
func (p *Proxy) Snapshot() (*snapshot.Snapshot, <-chan struct{}) { return p.snapshots.Load() }

// apply puts a state in force: stores first, then the snapshot, so that what is
// acknowledged to the control plane can be used.
func (p *Proxy) apply(ctx context.Context, s config.State) {
	p.applying.Lock()
	defer p.applying.Unlock()
	p.state = s
	p.applyLocked(ctx)
}

func (p *Proxy) applyLocked(ctx context.Context) {
	s := p.state
	tokens := map[string]*configv1.JwtIssuer{}
	for name, v := range s.Set {
		if j := v.Resource.GetIdentity().GetJwt(); j != nil {
			tokens[name] = j
		}
	}
	stale := p.isStale()
	var refuses func(string) error
	if stale {
		refuses = p.cfg.stale.refusal(p.cfg.StaleAfter)
	}
	snap := snapshot.Compile(snapshot.Input{Refuses: refuses, Set: s.Set, Withheld: s.Withheld, Denied: s.Denied, Lineage: s.Lineage, Revision: s.Revision, Origin: s.Origin, Verifiers: p.issuers.Apply(tokens), TrustLoopback: p.cfg.TrustLoopback, Observer: p.mesh.metrics.observer()})
	p.stores.Apply(ctx, snap)
	p.snapshots.Store(snap)
	if p.stale.Swap(stale) != stale && stale {
		p.cfg.Log.Error("the configuration is stale: no control plane has confirmed it", "for", p.client.Age())
	}
}

func (p *Proxy) withheld() []string {
	p.applying.Lock()
	defer p.applying.Unlock()
	return p.state.Withheld
}

// applyAgain asks for the state to be applied once more, since stores have
// become ready. It does not block.
func (p *Proxy) applyAgain() {
	select {
	case p.again <- struct{}{}:
	default:
	}
}

func (p *Proxy) runAgain(ctx context.Context) error {
	for {
		select {
		case <-p.again:
			p.applying.Lock()
			if p.state.Lineage != "" {
				p.applyLocked(ctx)
			}
			p.applying.Unlock()
		case <-ctx.Done():
			return nil
		}
	}
}

// Drain makes Run stop gracefully, as the end of its context does. It does not
// wait for it.
func (p *Proxy) Drain() { p.leaving.Do(func() { close(p.leave) }) }

// Run serves until ctx ends, the proxy is asked to drain, or a part fails, then
// stops gracefully.
func (p *Proxy) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	r := running{p: p, failed: failed}
	r.start(&r.small, "operations", p.serveSmall(listenOps, listener.HTTP(p.operations(), slowPages)))
	r.start(&r.small, "health", p.serveSmall(listenHealth, listener.HTTP(p.health(), listener.HTTPLimits{})))
	if p.listeners[listenMetrics] != nil {
		r.start(&r.small, "metrics", p.serveSmall(listenMetrics, listener.HTTP(p.metrics(), listener.HTTPLimits{})))
	}
	for _, e := range p.engine.parts {
		r.start(&r.engine, e.name, e.run)
	}
	for _, e := range p.engine.push {
		r.start(&r.push, e.name, e.run)
	}
	r.start(&r.config, "configuration", p.client.Run)
	r.start(&r.config, "stores", p.runAgain)
	r.start(&r.config, "staleness", p.runStale)
	r.start(&r.config, "issuers", p.issuers.Run)
	for _, f := range p.engine.frontends {
		r.start(&r.frontends, f.name, func(ctx context.Context) error {
			// Who connects meanwhile waits for the configuration from disk
			// instead of hearing that there is none.
			select {
			case <-p.client.Loaded():
			case <-ctx.Done():
			}
			return f.serve(ctx, p.listeners[f.name])
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case <-p.leave:
	case err = <-failed:
		p.cfg.Log.Error("a part of the proxy failed; stopping", "error", err)
	}
	return errors.Join(err, r.drain(p.cfg.LeaveOnStop && err == nil), p.Close())
}

// serveSmall serves the small pages.
func (p *Proxy) serveSmall(name string, s *http.Server) func(context.Context) error {
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = s.Close() })()
		if err := s.Serve(p.listeners[name]); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

// Close gives up listeners and data folder of a proxy that does not run.
func (p *Proxy) Close() error {
	var errs []error
	for _, l := range p.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		l.Cut()
	}
	if p.dir != nil {
		errs = append(errs, p.dir.close())
		p.dir = nil
	}
	return errors.Join(errs...)
}
