package config

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/configfile"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/lineage"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/pkg/resource"
)

// Stream metadata: a resume token, and what to say to leave.
const (
	resumeHeader = "weft-resume"
	entryHeader  = "weft-entry"
)

// Limits of what is taken from a control plane.
const (
	// maxStaged bounds a delta that is not complete yet, in bytes.
	maxStaged = 512 << 20
	// maxResponse bounds one response; control planes send chunks of 1 MiB.
	maxResponse = 4 << 20
	// maxRefused and maxReason bound what is told of refusals, of which a control plane
	// takes no more, nor longer texts: nor an answer that is too long, ever.
	maxRefused = 1000
	maxReason  = 1024
	// maxToken bounds the resume token in a header; with more rejections than
	// fit, the client syncs from nothing.
	maxToken = 32 << 10
)

// Config of a Client.
type Config struct {
	// Addresses of control planes, "host:port"; one is used at a time.
	Addresses []string
	// TLS to them; nil is plaintext, for loopback.
	TLS credentials.TransportCredentials
	// Join is shown with every call; nil shows nothing.
	Join credentials.PerRPCCredentials
	// NodeID is stable over restarts.
	NodeID string
	// Info is sent at the start of each stream. Its namespaces are what is
	// subscribed to, and kept on disk; all without.
	Info *discoveryv1.NodeInfo
	// Dir is where the last good configuration is kept; "" keeps none.
	Dir string
	// SnapshotFile is what to start from where Dir has nothing as new; "" is
	// none. With SnapshotKey it must be signed.
	SnapshotFile string
	SnapshotKey  ed25519.PublicKey
	Times
	// Demand, if set, makes the client follow of its namespaces, which then must
	// be named, only what governs them and what is used.
	Demand *Demand
	// Clock tells how old a configuration on disk is; the machine's when nil.
	Clock clock.Clock
	// Check judges one resource by itself; field is what is wrong.
	Check func(*configv1.Resource) (field string, err error)
	// Apply puts a state in force. It is called by one goroutine and must
	// return before long: the control plane is answered after it.
	Apply func(context.Context, State)
	// Connected is called, if set, once a stream has its first response, with
	// the connection to use for more; the stream waits for its return before
	// the connection is closed. Its context ends with the stream.
	Connected func(context.Context, grpc.ClientConnInterface)
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Times of following a control plane. The zero value of each is its default.
type Times struct {
	// AnswerTimeout bounds the wait for a connection and the first response of
	// a stream, after which another control plane is tried; 15 s.
	AnswerTimeout time.Duration
	// Keepalive is after how much silence the control plane is asked whether
	// it lives; it has a third of that to answer. 15 s; gRPC makes less than
	// 10 s of it 10 s.
	Keepalive time.Duration
	// MaxRetry is the longest wait, or half as much again, between two
	// attempts; 10 s.
	MaxRetry time.Duration
}

// Client follows a control plane.
type Client struct {
	cfg   Config
	scope []string // wildcards
	disk  disk
	// demand is nil where everything is followed.
	demand *demand
	// loaded is closed when disk was read.
	loaded chan struct{}
	mem    *memory
	// confirmed: a control plane has answered since the start.
	confirmed bool
	// resync: streams start from nothing until one has brought the whole.
	resync bool
	*age
	applied applied
	// leaving has who waits for that this node has left the roster; left: nothing is kept
	// on disk any more, and no control plane followed.
	leaving chan leaver
	left    bool
	// kept is what a restart would find; unkept: it is not what is in force.
	kept    *latest.Value[Kept]
	unkept  bool
	metrics clientMetrics
}

type clientMetrics struct {
	connected, revision, rejected, lastContact, fromDisk, fromSnapshot prometheus.Gauge
	applied                                                            *prometheus.CounterVec
	attempts, drift, older, diskErrors, lost                           prometheus.Counter
}

// New makes a client; Run reads what is on disk.
func New(cfg Config) *Client {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.AnswerTimeout, 15 * time.Second}, {&cfg.Keepalive, 15 * time.Second}, {&cfg.MaxRetry, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	c := &Client{cfg: cfg, scope: configfile.Scope(cfg.Info.GetNamespaces()), disk: disk{cfg.Dir}, age: newAge(cfg.Dir, cfg.Clock), loaded: make(chan struct{}), leaving: make(chan leaver), mem: newMemory(), applied: newApplied(), kept: latest.New(Kept{}), metrics: clientMetrics{
		connected:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_control_plane_connected", Help: "1 while a discovery stream is open, else 0."}),
		revision:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_config_revision", Help: "Revision of the configuration in force."}),
		rejected:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_config_rejected_resources", Help: "Resources of which the newest version was refused."}),
		lastContact:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_config_last_confirmed_timestamp_seconds", Help: "When a control plane last confirmed the configuration, Unix time; 0 for never."}),
		fromDisk:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_config_from_disk", Help: "1 while the configuration in force is from disk and no control plane has confirmed it, else 0."}),
		fromSnapshot: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_proxy_config_from_snapshot", Help: "1 while the configuration in force is from a snapshot file and no control plane has confirmed it, else 0."}),
		lost:         prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_control_plane_failures_total", Help: "Discovery streams that broke or could not be opened."}),
		applied:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_config_applied_total", Help: "Configurations put in force, by where they came from."}, []string{"source"}),
		attempts:     prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_control_plane_attempts_total", Help: "Discovery streams that this proxy has tried to open."}),
		drift:        prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_config_drift_total", Help: "Deltas after which the digests did not agree; each is followed by a full sync."}),
		older:        prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_config_older_refused_total", Help: "Deltas that were refused because they lead to an older revision or lineage."}),
		diskErrors:   prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_config_disk_errors_total", Help: "Failures to keep or read the last good configuration."}),
	}}
	if cfg.Demand != nil {
		c.scope = configfile.Governing(cfg.Info.GetNamespaces())
	}
	c.demand = newDemand(cfg.Demand, cfg.Metrics)
	c.mem.scope = c.scope
	if cfg.Metrics != nil {
		m := &c.metrics
		cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_config_age_seconds", Help: "For how long no control plane has confirmed the configuration; 0 while one is followed."},
			func() float64 { return c.Age().Seconds() }),
			m.fromDisk, m.fromSnapshot, m.lost, m.connected, m.revision, m.rejected, m.lastContact, m.applied, m.attempts, m.drift, m.older, m.diskErrors)
	}
	return c
}

// minRetry is the wait after the first failure.
const minRetry = 100 * time.Millisecond

// Loaded is closed when what is on disk, or in the snapshot file, is in force, or
// there is nothing.
func (c *Client) Loaded() <-chan struct{} { return c.loaded }

// Run puts the configuration from disk or from the snapshot file in force, if there
// is one, and then follows the control planes until ctx ends. A snapshot file that
// cannot be used is an error where there is nothing on disk.
func (c *Client) Run(ctx context.Context) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	close(c.loaded)
	away := outage.New(c.cfg.Log, "the control plane cannot be followed; the last configuration stays in force", "the control plane is followed again")
	retry := minRetry
	at := 0
	if n := len(c.cfg.Addresses); n > 1 {
		at = rand.IntN(n)
	}
	for ctx.Err() == nil {
		c.resync = c.applied.resync.Swap(false) || c.resync
		c.keepAgain()
		addr := c.cfg.Addresses[at%len(c.cfg.Addresses)]
		at++
		c.metrics.attempts.Inc()
		told := false
		err := c.follow(ctx, addr, func() { told, retry = true, minRetry; away.Is(nil) })
		c.metrics.connected.Set(0)
		c.lose()
		if c.left {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			break
		}
		if told && errors.Is(err, io.EOF) {
			// It ended the stream in good order: it stops, or wants to see
			// the credential again. The stream goes on at whoever is there.
			c.cfg.Log.Debug("the control plane ended the stream; connecting again", "address", addr)
			continue
		}
		c.metrics.lost.Inc()
		if status.Code(err) == codes.Unimplemented {
			err = fmt.Errorf("%w; nothing there serves proxies: is it a control plane's port for them (its --discovery, 7421 if nothing else was said), and not that of the admin API?", err)
		}
		away.Is(fmt.Errorf("%s: %w", addr, err))
		timer := time.NewTimer(retry/2 + rand.N(retry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		retry = min(2*retry, c.cfg.MaxRetry)
	}
	return nil
}

// load puts in force what there is to start from: the own disk, unless the snapshot
// file is newer.
func (c *Client) load(ctx context.Context) error {
	m := c.fromDisk()
	origin := snapshot.FromDisk
	if c.cfg.SnapshotFile != "" {
		file, err := c.fromFile()
		if err != nil && m == nil {
			return err
		}
		if err != nil {
			c.cfg.Log.Error("the snapshot file cannot be used; starting from the configuration on disk", "error", err)
		} else if m == nil || newer(file, m) {
			m, origin = file, snapshot.FromFile
		}
	}
	if m == nil {
		return nil
	}
	c.mem = m
	if origin == snapshot.FromDisk {
		if m.replaced.IsZero() {
			c.since(c.disk.newest())
		} else {
			c.last(m.replaced) // what was confirmed since is another one
		}
		c.kept.Store(Kept{m.lineage, m.revision})
	}
	c.adopt()
	// What an older version of this program refused may be fine for this one:
	// with a token it would not be offered again.
	c.resync = len(m.rejections()) > 0
	c.apply(ctx, origin)
	c.note(origin, nil)
	c.settle()
	c.cfg.Log.Info("started from the configuration "+map[snapshot.Origin]string{snapshot.FromDisk: "on disk", snapshot.FromFile: "in the snapshot file"}[origin],
		"revision", m.revision, "resources", len(m.resources))
	if origin == snapshot.FromFile {
		c.keep()
	}
	return nil
}

// newer reports whether a snapshot file is newer than what is on disk: not where the
// two cannot be compared, since a control plane has confirmed what is on disk.
func newer(file, disk *memory) bool {
	if file.lineage == disk.lineage {
		return file.revision > disk.revision
	}
	return lineage.Follows(file.lineage, disk.lineage)
}

// fromDisk is the last good configuration; nil where there is none.
func (c *Client) fromDisk() *memory {
	if c.cfg.Dir == "" {
		return nil
	}
	m, problems := c.disk.load(c.scope, c.cfg.NodeID, c.cfg.Check)
	for _, err := range problems {
		c.metrics.diskErrors.Inc()
		c.cfg.Log.Error("a kept configuration cannot be used; trying an older one", "error", err)
	}
	return m
}

// fromFile is what of the snapshot file is of the own scope.
func (c *Client) fromFile() (*memory, error) {
	b, err := configfile.Read(c.cfg.SnapshotFile)
	if err != nil {
		return nil, fmt.Errorf("the snapshot file: %w", err)
	}
	if c.cfg.SnapshotKey == nil {
		c.cfg.Log.Warn("the snapshot file is not checked against tampering, only against damage: there is no key to verify it with", "file", c.cfg.SnapshotFile)
	}
	lg, err := configfile.DecodeSnapshot(b, c.cfg.SnapshotKey)
	if err != nil {
		return nil, fmt.Errorf("the snapshot file %s %w", c.cfg.SnapshotFile, err)
	}
	m, err := c.cut(lg)
	if err != nil {
		return nil, fmt.Errorf("the snapshot file %s %w", c.cfg.SnapshotFile, err)
	}
	return m, nil
}

// apply puts the memory's state in force.
func (c *Client) apply(ctx context.Context, origin snapshot.Origin) {
	c.cfg.Apply(ctx, c.mem.state(origin))
	for from, gauge := range map[snapshot.Origin]prometheus.Gauge{snapshot.FromDisk: c.metrics.fromDisk, snapshot.FromFile: c.metrics.fromSnapshot} {
		gauge.Set(0)
		if from == origin {
			gauge.Set(1)
		}
	}
	if origin == snapshot.Live {
		c.metrics.lastContact.SetToCurrentTime()
	}
	c.metrics.applied.WithLabelValues(string(origin)).Inc()
	c.metrics.revision.Set(float64(c.mem.revision))
	c.metrics.rejected.Set(float64(len(c.mem.rejections())))
}

// follow runs one stream; it returns when that ends.
func (c *Client) follow(ctx context.Context, addr string, good func()) error {
	creds := c.cfg.TLS
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	opts := []grpc.DialOption{grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: c.cfg.Keepalive, Timeout: c.cfg.Keepalive / 3, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse))}
	if c.cfg.Join != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(c.cfg.Join))
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	defer c.applied.cuts(cancel)()
	// A control plane that takes the connection or the stream and then hangs is
	// as good as none.
	hung := time.AfterFunc(c.cfg.AnswerTimeout, cancel)
	defer hung.Stop()
	token := c.token()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, resumeHeader, token)
	}
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node, err := c.node()
	if err != nil {
		return err
	}
	sub := c.first(token != "")
	if err := rpc.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: slices.Concat(c.scope, slices.Sorted(maps.Keys(sub.asked)))}); err != nil {
		if errors.Is(err, io.EOF) { // it has ended the stream, and says why
			if _, why := rpc.Recv(); why != nil {
				err = why
			}
		}
		return err
	}
	var d staged
	responses := receive(ctx, rpc, &beside)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var leaving <-chan leaver   // nil until the first response is there
	var changed <-chan struct{} // nil until the first delta is in: then names are asked for as they are used
	for {
		var resp *discoveryv3.DeltaDiscoveryResponse
		select {
		case r := <-responses:
			if r.err != nil {
				return r.err
			}
			resp = r.resp
		case <-ctx.Done():
			return ctx.Err()
		case l := <-leaving:
			err := c.leave(l.ctx, conn, rpc)
			l.done <- err
			if c.left {
				return err
			}
			continue
		case <-changed:
			if err := c.ask(ctx, rpc, sub); err != nil {
				return err
			}
			continue
		case <-look.C:
			c.confirm()
			c.keepAgain()
			if changed == nil {
				continue
			}
			if err := c.ask(ctx, rpc, sub); err != nil {
				return err
			}
			continue
		}
		if hung.Stop() && c.cfg.Connected != nil {
			beside.Go(func() { c.cfg.Connected(ctx, conn) })
		}
		leaving = c.leaving
		c.metrics.connected.Set(1)
		man, err := d.add(resp)
		if err != nil {
			return err
		}
		answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.TypeURL, ResponseNonce: resp.Nonce}
		if man != nil {
			if answer.ErrorDetail, err = c.take(ctx, d, man, sub); err != nil {
				return err
			}
			d = staged{}
			good()
		}
		if err := rpc.Send(answer); err != nil {
			return err
		}
		if man != nil && c.demand != nil {
			changed = c.demand.changed
			if err := c.ask(ctx, rpc, sub); err != nil {
				return err
			}
		}
	}
}

// lookEvery is how often a stream looks for names that nobody uses any more, and
// notes on disk that the configuration is confirmed.
const lookEvery = 30 * time.Second

// received is what came of a stream.
type received struct {
	resp *discoveryv3.DeltaDiscoveryResponse
	err  error
}

// receive reads a stream until it, or ctx, ends. Nothing is read before the last
// response was taken.
func receive(ctx context.Context, rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, running *sync.WaitGroup) <-chan received {
	out := make(chan received)
	running.Go(func() {
		for {
			resp, err := rpc.Recv()
			select {
			case out <- received{resp, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return out
}

// take applies a delta that is complete and returns the error detail of the
// answer: nil to acknowledge.
func (c *Client) take(ctx context.Context, d staged, man *configv1.Manifest, sub *subscription) (*statuspb.Status, error) {
	if !lineage.Follows(man.Lineage, c.mem.lineage) {
		c.metrics.older.Inc()
		return nil, fmt.Errorf("the control plane is of lineage %s, which does not follow that of this proxy, %s: it has not heard of a restore yet, its etcd was emptied, or it is another mesh. "+
			"This proxy keeps its configuration; \"weft admin restore\" declares that what etcd has is in force; a proxy that moves to another mesh needs an empty data folder", man.Lineage, c.mem.lineage)
	}
	if man.Lineage == c.mem.lineage && man.Revision < c.mem.revision {
		c.metrics.older.Inc()
		return nil, fmt.Errorf("the control plane offers revision %d, this proxy has %d", man.Revision, c.mem.revision)
	}
	if man.Lineage != c.mem.lineage && c.mem.lineage != "" && !man.Complete {
		c.resync = true
		return nil, errors.New("the control plane has another lineage; syncing from nothing")
	}
	if man.Complete {
		c.resync = false
	}
	d = c.mine(sub, d, man)
	// That something is not there is no news where it was not.
	before, news := c.mem.revision, len(d.put) > 0 || !sameWithheld(c.mem.withheld, man.Withheld) ||
		slices.ContainsFunc(d.removed, func(name string) bool { return c.mem.resources[name] != nil })
	refused := c.mem.apply(d, man, c.cfg.Check)
	comparable := c.answered(sub, d, man)
	if what := c.mem.drift(man); comparable && what != "" {
		c.metrics.drift.Inc()
		c.resync = true
		return nil, fmt.Errorf("the configuration has drifted: %s; syncing from nothing", what)
	}
	c.follows()
	if !c.confirmed || news || man.Complete {
		c.confirmed = true
		c.applyLive(ctx)
	}
	c.metrics.revision.Set(float64(c.mem.revision))
	c.metrics.lastContact.SetToCurrentTime()
	c.note(snapshot.Live, man)
	if c.mem.revision != before || len(refused) > 0 || news || c.unkept {
		c.keep()
	}
	if len(refused) == 0 {
		return nil, nil
	}
	for _, r := range refused {
		c.cfg.Log.Error("a resource was refused; its last good version stays in force", "resource", r.Name, "version", r.Version, "field", r.Field, "reason", r.Reason)
	}
	said := make([]*discoveryv1.Rejection, min(len(refused), maxRefused))
	for i, r := range refused[:len(said)] {
		said[i] = &discoveryv1.Rejection{Name: r.Name, Version: r.Version, Field: clip(r.Field, 256), Reason: clip(r.Reason, maxReason)}
	}
	detail, err := anypb.New(&discoveryv1.Rejections{Rejections: said})
	if err != nil {
		return nil, err
	}
	return &statuspb.Status{Code: int32(codes.InvalidArgument), Message: fmt.Sprintf("%d resources were refused: %s: %s", len(refused), said[0].Name, said[0].Reason),
		Details: []*anypb.Any{detail}}, nil
}

// applyLive puts in force what a control plane has confirmed.
func (c *Client) applyLive(ctx context.Context) { c.apply(ctx, snapshot.Live) }

func sameWithheld(a, b []*configv1.Withheld) bool {
	return slices.EqualFunc(a, b, func(x, y *configv1.Withheld) bool { return proto.Equal(x, y) })
}

// add takes one response; man is set where it completes the delta.
func (d *staged) add(resp *discoveryv3.DeltaDiscoveryResponse) (man *configv1.Manifest, err error) {
	for _, r := range resp.Resources {
		if r.Resource.GetTypeUrl() != resource.TypeURL {
			return nil, fmt.Errorf("the control plane sent a %q", r.Resource.GetTypeUrl())
		}
		if r.Name == resource.ManifestName {
			m := &configv1.Resource{}
			if err := proto.Unmarshal(r.Resource.Value, m); err != nil {
				return nil, fmt.Errorf("manifest: %w", err)
			}
			part := m.GetManifest()
			if part == nil {
				return nil, errors.New("the manifest has no content")
			}
			if d.bytes += len(r.Resource.Value); d.bytes > maxStaged {
				return nil, fmt.Errorf("the control plane sent more than %d bytes without a manifest", maxStaged)
			}
			d.withheld = append(d.withheld, part.Withheld...)
			if !part.Continues {
				man, part.Withheld = part, d.withheld
			}
			continue
		}
		if d.bytes += len(r.Resource.Value) + len(r.Name); d.bytes > maxStaged {
			return nil, fmt.Errorf("the control plane sent more than %d bytes without a manifest", maxStaged)
		}
		d.put = append(d.put, offer{r.Name, r.Version, r.Resource.Value})
	}
	for _, name := range resp.RemovedResources {
		if d.bytes += len(name); d.bytes > maxStaged {
			return nil, fmt.Errorf("the control plane sent more than %d bytes without a manifest", maxStaged)
		}
		d.removed = append(d.removed, name)
	}
	return man, nil
}
