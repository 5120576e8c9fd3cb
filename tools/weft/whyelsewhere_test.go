package weft

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// inspected is a proxy that is asked about events.
type inspected struct {
	eventsv1.UnimplementedInspectServiceServer
	facts []*eventsv1.Fact
	why   *eventsv1.WhyResponse // nil where the caller may not know
}

func (i *inspected) Trace(context.Context, *eventsv1.TraceRequest) (*eventsv1.TraceResponse, error) {
	return &eventsv1.TraceResponse{NodeId: "p", Facts: i.facts, RemembersSince: timestamppb.Now()}, nil
}

func (i *inspected) Why(context.Context, *eventsv1.WhyRequest) (*eventsv1.WhyResponse, error) {
	if i.why == nil {
		return nil, status.Error(codes.PermissionDenied, "no rule allows it")
	}
	return i.why, nil
}

// TestWhyElsewhere: a proxy that does not have the namespace is not the one whose answer
// counts, whatever it remembers.
func TestWhyElsewhere(t *testing.T) {
	serve := func(i *inspected) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		eventsv1.RegisterInspectServiceServer(s, i)
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-ended })
		return l.Addr().String()
	}
	stored := &eventsv1.Fact{Kind: eventsv1.Fact_KIND_STORED, Topic: "orders", Time: timestamppb.Now()}
	denies, knows := serve(&inspected{facts: []*eventsv1.Fact{stored}}), serve(&inspected{why: &eventsv1.WhyResponse{Verdict: "acked", Message: "it got it"}})
	var out, errOut bytes.Buffer
	code := Main(t.Context(), []string{"why", "/s", "1", "billing", "--proxy", denies + "," + knows}, strings.NewReader(""), &out, &errOut)
	if code != 0 || !strings.HasPrefix(out.String(), "acked: it got it") {
		t.Errorf("ended with %d: %s%s", code, &out, &errOut)
	}
	out.Reset()
	errOut.Reset()
	if code := Main(t.Context(), []string{"why", "/s", "1", "billing", "--proxy", denies}, strings.NewReader(""), &out, &errOut); code == 0 || !strings.Contains(errOut.String(), "no rule allows it") {
		t.Errorf("where all deny it ended with %d: %s%s", code, &out, &errOut)
	}
	for _, tc := range []struct {
		of   []string
		want bool
	}{{nil, true}, {[]string{"shop", "demo"}, true}, {[]string{"shop"}, false}} {
		if got := serves(tc.of, "demo"); got != tc.want {
			t.Errorf("a proxy of %v serves demo: %v", tc.of, got)
		}
	}
}
