// Package report tells the control plane what a proxy does, and takes its
// commands. Nothing waits for it: without it a proxy serves as ever.
package report

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/clock"
)

// Config of a Reporter.
type Config struct {
	// NodeID is the proxy's, and Info what it says of itself.
	NodeID string
	Info   *discoveryv1.NodeInfo
	// State is what a change of is reported at once: configuration, stores,
	// draining. It is asked every second; what it returns is not changed.
	State func() *discoveryv1.ReportStatusRequest
	// Load is asked for each report.
	Load func() *discoveryv1.Load
	// Resync and Drain are the commands; they must not block.
	Resync, Drain func()
	// Clock dates reports.
	Clock clock.Clock
	Log   *slog.Logger
}

// maxReport is what a report may have, in bytes: a control plane refuses a stream with one of
// over 256 KiB, and would know nothing of this proxy then.
const maxReport = 240 << 10

// Times of reporting, each more or less by half, so that proxies do not report
// all at once.
const (
	// look is the time between two looks for a change.
	look = time.Second
	// every is the longest time between two reports.
	every = 24 * time.Second
	// retry is the wait after a stream that broke.
	retry = 5 * time.Second
)

// Reporter reports. Its one method is called by one goroutine at a time.
type Reporter struct{ cfg Config }

// New makes a Reporter.
func New(cfg Config) *Reporter { return &Reporter{cfg} }

// Run reports over a connection to a control plane until ctx ends, or the control
// plane knows no reports.
func (r *Reporter) Run(ctx context.Context, conn grpc.ClientConnInterface) {
	for ctx.Err() == nil {
		err := r.stream(ctx, discoveryv1.NewProxyStatusServiceClient(conn))
		if status.Code(err) == codes.Unimplemented {
			r.cfg.Log.Debug("the control plane takes no reports")
			return
		}
		if ctx.Err() != nil {
			return
		}
		r.cfg.Log.Debug("reporting to the control plane broke off; trying again", "error", err)
		wait(ctx, retry)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// stream runs one stream; it returns when that ends.
func (r *Reporter) stream(ctx context.Context, c discoveryv1.ProxyStatusServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := c.ReportStatus(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.commands(rpc) }()
	var last *discoveryv1.ReportStatusRequest
	var sent time.Time
	for {
		state := r.cfg.State()
		if last == nil || !proto.Equal(state, last) || time.Since(sent) >= every {
			if err := rpc.Send(r.report(state, last == nil)); err != nil {
				return <-ended // it says why
			}
			last, sent = state, time.Now()
		}
		timer := time.NewTimer(look/2 + rand.N(look))
		select {
		case <-timer.C:
		case err := <-ended:
			timer.Stop()
			return err
		}
	}
}

// report is a state with what changes all the time.
func (r *Reporter) report(state *discoveryv1.ReportStatusRequest, first bool) *discoveryv1.ReportStatusRequest {
	out := &discoveryv1.ReportStatusRequest{Config: state.Config, Stores: state.Stores, Targets: state.Targets, Blocked: state.Blocked, Denied: state.Denied, Draining: state.Draining, Load: r.cfg.Load()}
	if first {
		out.NodeId, out.Info = r.cfg.NodeID, r.cfg.Info
	}
	if c := out.Config; c.GetSource() == discoveryv1.AppliedConfig_SOURCE_LIVE {
		// While it is followed, the control plane confirms it by its silence.
		out.Config = &discoveryv1.AppliedConfig{Lineage: c.Lineage, Revision: c.Revision, Source: c.Source, ConfirmedAt: timestamppb.New(r.cfg.Clock.Now()),
			Digests: c.Digests, Rejections: c.Rejections, Withheld: c.Withheld}
	}
	fit(out)
	return out
}

// fit has a report leave out the second half of its lists, until it is no larger than
// maxReport. What they are of is shared, and is not changed.
func fit(out *discoveryv1.ReportStatusRequest) {
	for {
		size := proto.Size(out)
		entries := len(out.Stores) + len(out.Targets) + len(out.Blocked) + len(out.Denied) + len(out.Config.GetRejections()) + len(out.Config.GetWithheld())
		if size <= maxReport || entries == 0 {
			return
		}
		out.Stores, out.Targets, out.Blocked, out.Denied = half(out.Stores), half(out.Targets), half(out.Blocked), half(out.Denied)
		if c := out.Config; c != nil {
			out.Config = &discoveryv1.AppliedConfig{Lineage: c.Lineage, Revision: c.Revision, Source: c.Source, ConfirmedAt: c.ConfirmedAt,
				Digests: c.Digests, Rejections: half(c.Rejections), Withheld: half(c.Withheld)}
		}
	}
}

func half[E any](list []E) []E { return list[:len(list)/2] }

// commands does what the control plane asks for until the stream ends.
func (r *Reporter) commands(rpc grpc.BidiStreamingClient[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse]) error {
	for {
		c, err := rpc.Recv()
		if err != nil {
			return err
		}
		switch c.Command.(type) {
		case *discoveryv1.ReportStatusResponse_Resync:
			r.cfg.Log.Info("the control plane asks to sync from nothing")
			r.cfg.Resync()
		case *discoveryv1.ReportStatusResponse_Drain:
			r.cfg.Log.Info("the control plane asks to drain")
			r.cfg.Drain()
		default: // of a newer version
			r.cfg.Log.Warn("the control plane gave a command that this version does not know")
		}
	}
}
