package census

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"
)

// broken is a stream whose second report meets a defect.
type broken struct {
	grpc.BidiStreamingServer[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse]
	ctx  context.Context
	came bool
}

func (b *broken) Context() context.Context { return b.ctx }

func (b *broken) Recv() (*discoveryv1.ReportStatusRequest, error) {
	if b.came {
		panic("a defect")
	}
	b.came = true
	return &discoveryv1.ReportStatusRequest{NodeId: "a"}, nil
}

// TestReportPanics: a stream whose report meets a defect ends, and not the control plane.
func TestReportPanics(t *testing.T) {
	r := NewReports(ReportsConfig{Log: quiet, Authorize: func(context.Context, string) error { return nil }})
	if err := r.ReportStatus(&broken{ctx: testContext(t)}); status.Code(err) != codes.Internal {
		t.Errorf("it ends with %v", err)
	}
}

// silent is a stream that says something once, and then nothing.
type silent struct {
	grpc.BidiStreamingServer[discoveryv1.ReportStatusRequest, discoveryv1.ReportStatusResponse]
	ctx  context.Context
	said bool
	end  chan struct{}
}

func (s *silent) Context() context.Context { return s.ctx }

func (s *silent) Recv() (*discoveryv1.ReportStatusRequest, error) {
	if s.said {
		<-s.end
	}
	s.said = true
	return &discoveryv1.ReportStatusRequest{NodeId: "a"}, nil
}

// TestReportEnds: a stream of reports ends with its context, as where the token that it came
// with was revoked, also while its node says nothing.
func TestReportEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	end := make(chan struct{})
	defer close(end)
	r := NewReports(ReportsConfig{Log: quiet, Authorize: func(context.Context, string) error { return nil }})
	if err := r.ReportStatus(&silent{ctx: ctx, end: end}); status.Code(err) != codes.Canceled {
		t.Errorf("it ends with %v", err)
	}
}
