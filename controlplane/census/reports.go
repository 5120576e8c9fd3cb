// Package census knows the fleet: what every proxy says of itself, which replica
// it is connected to, and who was there before. It only describes; nothing waits
// for it, and nothing is decided by it.
package census

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/names"
)

// Limits of what a proxy may report.
const (
	// maxReport bounds one report, in bytes.
	maxReport = 256 << 10
	// Reports of a stream may come this often, and so many ahead of it.
	reportEvery = 200 * time.Millisecond
	reportBurst = 20
	// Most entries that are kept of a report, and the size of a text.
	maxRejections = 100
	maxNames      = 1000
	maxKinds      = 100
	maxText       = 1024
	// commandQueue is how many commands may wait for a slow proxy.
	commandQueue = 4
)

// ReportsConfig is what Reports stands on.
type ReportsConfig struct {
	// Authorize refuses, as a gRPC status, whoever is not the node that it
	// says it is.
	Authorize func(ctx context.Context, nodeID string) error
	// MaxStreams bounds open streams; 20,000 when 0.
	MaxStreams int
	Metrics    prometheus.Registerer
	Log        *slog.Logger
}

// Reports implements ProxyStatusService: it keeps the newest report of each node
// that has a stream, and hands commands to them. Its methods are safe for
// concurrent use.
type Reports struct {
	discoveryv1.UnimplementedProxyStatusServiceServer
	cfg ReportsConfig

	mu      sync.Mutex
	streams int
	nodes   map[string]*reporter // the newest stream of each node

	open     prometheus.Gauge
	received prometheus.Counter
	commands *prometheus.CounterVec
}

// reporter is one stream.
type reporter struct {
	node     string
	commands chan *discoveryv1.ReportStatusResponse
	replaced chan struct{}
	last     *discoveryv1.ReportStatusRequest // guarded by Reports.mu; not changed once it is there
}

// NewReports makes a server without streams.
func NewReports(cfg ReportsConfig) *Reports {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 20000
	}
	r := &Reports{cfg: cfg, nodes: map[string]*reporter{},
		open:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_status_streams", Help: "Proxies that report what they do."}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_status_reports_total", Help: "Reports of proxies."}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_status_commands_total", Help: "Commands that proxies connected here were given."}, []string{"command"})}
	for _, name := range []string{"resync", "drain"} {
		r.commands.WithLabelValues(name) // there from the start
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(r.open, r.received, r.commands)
	}
	return r
}

// ReportStatus takes the reports of one proxy until its stream ends.
func (r *Reports) ReportStatus(rpc grpc.BidiStreamingServer[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse]) error {
	first, err := rpc.Recv()
	if err != nil {
		return err
	}
	if n := len(first.NodeId); n == 0 || n > 128 {
		return status.Error(codes.InvalidArgument, "node_id of a stream's first report must have 1 to 128 characters")
	}
	if err := r.cfg.Authorize(rpc.Context(), first.NodeId); err != nil {
		return err
	}
	me, err := r.admit(first.NodeId)
	if err != nil {
		return err
	}
	defer r.leave(me)
	if err := r.take(me, first); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- r.read(rpc, me) }()
	for {
		select {
		case c := <-me.commands:
			if err := rpc.Send(c); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-me.replaced:
			return status.Errorf(codes.Aborted, "node %s reports on a newer stream", me.node)
		}
	}
}

// admit takes a stream in; it ends the node's last one.
func (r *Reports) admit(node string) (*reporter, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams >= r.cfg.MaxStreams {
		return nil, status.Errorf(codes.ResourceExhausted, "%d proxies report here already", r.cfg.MaxStreams)
	}
	me := &reporter{node: node, commands: make(chan *discoveryv1.ReportStatusResponse, commandQueue), replaced: make(chan struct{})}
	if old := r.nodes[node]; old != nil {
		close(old.replaced)
	}
	r.nodes[node] = me
	r.streams++
	r.open.Inc()
	return me, nil
}

func (r *Reports) leave(me *reporter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams--
	r.open.Dec()
	if r.nodes[me.node] == me {
		delete(r.nodes, me.node)
	}
}

// read takes reports until the stream ends.
func (r *Reports) read(rpc grpc.BidiStreamingServer[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse], me *reporter) error {
	began, due := time.Now(), time.Duration(0)
	for {
		report, err := rpc.Recv()
		if err != nil {
			return err
		}
		// due is when the next one may come, if they come evenly.
		now := time.Since(began)
		if due = max(due, now) + reportEvery; due > now+reportBurst*reportEvery {
			return status.Errorf(codes.ResourceExhausted, "node %s reports more often than every %v", me.node, reportEvery)
		}
		if report.NodeId != "" && report.NodeId != me.node {
			return status.Errorf(codes.PermissionDenied, "the stream is of node %s, not of %s", me.node, report.NodeId)
		}
		if err := r.take(me, report); err != nil {
			return err
		}
	}
}

// take keeps a report.
func (r *Reports) take(me *reporter, report *discoveryv1.ReportStatusRequest) error {
	if n := proto.Size(report); n > maxReport {
		return status.Errorf(codes.ResourceExhausted, "a report has at most %d bytes, this one of node %s has %d", maxReport, me.node, n)
	}
	r.received.Inc()
	bound(report)
	r.mu.Lock()
	defer r.mu.Unlock()
	me.last = report
	return nil
}

// bound cuts a report down to what is kept of it. What the node is, its discovery
// stream has told.
func bound(report *discoveryv1.ReportStatusRequest) {
	report.NodeId, report.Info = "", nil
	if c := report.Config; c != nil {
		c.Rejections = c.Rejections[:min(len(c.Rejections), maxRejections)]
		for _, j := range c.Rejections {
			j.Name, j.Version, j.Field, j.Reason = names.Text(j.Name, maxText), names.Text(j.Version, maxText), names.Text(j.Field, maxText), names.Text(j.Reason, maxText)
		}
		c.Withheld = c.Withheld[:min(len(c.Withheld), maxNames)]
		for i, name := range c.Withheld {
			c.Withheld[i] = names.Text(name, maxText)
		}
		c.Lineage = names.Text(c.Lineage, maxText)
		c.Digests = c.Digests[:min(len(c.Digests), maxKinds)]
	}
	report.Stores = report.Stores[:min(len(report.Stores), maxNames)]
	for _, s := range report.Stores {
		s.Name, s.Reason, s.Message = names.Text(s.Name, maxText), names.Text(s.Reason, maxText), names.Text(s.Message, maxText)
	}
	report.Targets = report.Targets[:min(len(report.Targets), maxNames)]
	for _, t := range report.Targets {
		t.Name, t.Reason, t.Message = names.Text(t.Name, maxText), names.Text(t.Reason, maxText), names.Text(t.Message, maxText)
	}
}

// Report is the newest report of a node; nil where it has no stream. It must not
// be changed.
func (r *Reports) Report(node string) *discoveryv1.ReportStatusRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if me := r.nodes[node]; me != nil {
		return me.last
	}
	return nil
}

// Command gives a command to nodes that report here, to all of them where none is
// named, and names those that it was given to, sorted. It does not wait for
// them; one that does not read what it was given before is left out.
func (r *Reports) Command(name string, c *discoveryv1.ReportStatusResponse, nodes []string) (told []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(nodes) == 0 {
		for node := range r.nodes {
			nodes = append(nodes, node)
		}
	}
	for _, node := range nodes {
		me := r.nodes[node]
		if me == nil {
			continue
		}
		select {
		case me.commands <- c:
			told = append(told, node)
			r.commands.WithLabelValues(name).Inc()
		default:
		}
	}
	slices.Sort(told)
	return slices.Compact(told)
}
