// Package census knows the fleet: what every proxy says of itself, which replica
// it is connected to, and who was there before. It only describes; nothing waits
// for it, and nothing is decided by it.
package census

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/nodestream"
	"github.com/weft-mesh/weft/pkg/listener"
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
	cfg      ReportsConfig
	streams  *nodestream.Set[*reporter]
	received prometheus.Counter
	commands *prometheus.CounterVec
}

// reporter is what is kept of a stream.
type reporter struct {
	commands chan *discoveryv1.ReportStatusResponse
	last     *discoveryv1.ReportStatusRequest // changed by Stream.Do; not changed once it is there
}

type statusStream = nodestream.Stream[*reporter]

// NewReports makes a server without streams.
func NewReports(cfg ReportsConfig) *Reports {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 20000
	}
	open := prometheus.NewGauge(prometheus.GaugeOpts{Name: "weft_controlplane_status_streams", Help: "Proxies that report what they do."})
	r := &Reports{cfg: cfg, streams: nodestream.New[*reporter](nodestream.Config{Verb: "report", Max: cfg.MaxStreams, Every: reportEvery, Burst: reportBurst, Open: open}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_controlplane_status_reports_total", Help: "Reports of proxies."}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_status_commands_total", Help: "Commands that proxies connected here were given."}, []string{"command"})}
	for _, name := range []string{"resync", "drain"} {
		r.commands.WithLabelValues(name) // there from the start
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(open, r.received, r.commands)
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
	me, err := r.streams.Admit(first.NodeId, &reporter{commands: make(chan *discoveryv1.ReportStatusResponse, commandQueue)})
	if err != nil {
		return err
	}
	defer me.Leave()
	if err := r.take(me, first); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() { received <- r.read(rpc, me) }()
	for {
		select {
		case c := <-me.Own.commands:
			if err := rpc.Send(c); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-me.Replaced():
			return me.ErrReplaced()
		case <-rpc.Context().Done(): // also where its credential was taken back
			return status.FromContextError(rpc.Context().Err()).Err()
		}
	}
}

// read takes reports until the stream ends.
func (r *Reports) read(rpc grpc.BidiStreamingServer[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse], me *statusStream) (err error) {
	defer listener.Survive(rpc.Context(), r.cfg.Log, &err) // it has a goroutine of its own
	for {
		report, err := rpc.Recv()
		if err != nil {
			return err
		}
		if err := me.Said(report.NodeId); err != nil {
			return err
		}
		if err := r.take(me, report); err != nil {
			return err
		}
	}
}

// take keeps a report.
func (r *Reports) take(me *statusStream, report *discoveryv1.ReportStatusRequest) error {
	if n := proto.Size(report); n > maxReport {
		return status.Errorf(codes.ResourceExhausted, "a report has at most %d bytes, this one of node %s has %d", maxReport, me.Node, n)
	}
	r.received.Inc()
	bound(report)
	return me.Do(func() { me.Own.last = report })
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
	report.Denied = report.Denied[:min(len(report.Denied), maxNames)]
	for _, d := range report.Denied {
		d.Name, d.Reason, d.Message = names.Text(d.Name, maxText), names.Text(d.Reason, maxText), names.Text(d.Message, maxText)
	}
	report.Blocked = report.Blocked[:min(len(report.Blocked), maxNames)]
	for _, b := range report.Blocked {
		b.Name, b.Topic, b.Position = names.Text(b.Name, maxText), names.Text(b.Topic, maxText), names.Text(b.Position, maxText)
	}
}

// Report is the newest report of a node; nil where it has no stream. It must not
// be changed.
func (r *Reports) Report(node string) (last *discoveryv1.ReportStatusRequest) {
	r.streams.View(func(nodes map[string]*statusStream) {
		if me := nodes[node]; me != nil {
			last = me.Own.last
		}
	})
	return last
}

// Command gives a command to nodes that report here, to all of them where none is
// named, and names those that it was given to, sorted. It does not wait for
// them; one that does not read what it was given before is left out.
func (r *Reports) Command(name string, c *discoveryv1.ReportStatusResponse, nodes []string) (told []string) {
	r.streams.View(func(open map[string]*statusStream) {
		if len(nodes) == 0 {
			nodes = slices.Collect(maps.Keys(open))
		}
		for _, node := range nodes {
			me := open[node]
			if me == nil {
				continue
			}
			select {
			case me.Own.commands <- c:
				told = append(told, node)
				r.commands.WithLabelValues(name).Inc()
			default:
			}
		}
	})
	slices.Sort(told)
	return slices.Compact(told)
}
