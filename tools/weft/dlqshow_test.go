package weft

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// manyLetters is a proxy that has more dead letters of an event than it lists.
type manyLetters struct {
	eventsv1.UnimplementedDeadLetterServiceServer
}

func (manyLetters) ListDeadLetters(_ *eventsv1.ListDeadLettersRequest, rpc grpc.ServerStreamingServer[eventsv1.ListDeadLettersResponse]) error {
	letter := &eventsv1.DeadLetter{Subscription: "billing", Topic: "orders", Event: &cev1.CloudEvent{Id: "1", Source: "/s", SpecVersion: "1.0", Type: "t"}}
	return rpc.Send(&eventsv1.ListDeadLettersResponse{DeadLetters: []*eventsv1.DeadLetter{letter}, Summary: &eventsv1.DeadLetterSummary{Scanned: 1500, Matched: 1500}})
}

// TestShowSomeForAll: weft dlq show says where it shows some of the dead letters of an event.
func TestShowSomeForAll(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	eventsv1.RegisterDeadLetterServiceServer(s, manyLetters{})
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-ended })
	var out, errOut bytes.Buffer
	code := Main(t.Context(), []string{"dlq", "show", "1", "-s", "billing", "--proxy", l.Addr().String()}, strings.NewReader(""), &out, &errOut)
	if code != 0 || !strings.Contains(out.String(), "by Subscription billing") || !strings.HasPrefix(errOut.String(), "1,500 dead letters, of which 1 are shown") {
		t.Errorf("ended with %d: %s%s", code, &out, &errOut)
	}
}
