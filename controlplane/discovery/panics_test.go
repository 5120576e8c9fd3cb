package discovery

import (
	"log/slog"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/pkg/resource"
)

// broken is a request that meets a defect.
type broken struct{ deltaRequest }

func (broken) take(*stream) error { panic("a defect") }

// unsent is a stream whose sending meets a defect.
type unsent struct{ *taken }

func (unsent) SendMsg(any) error { panic("a defect") }

// TestPanics: a defect, wherever a stream meets it, ends that stream, which is waited for
// no longer then, and not the control plane.
func TestPanics(t *testing.T) {
	asks := deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*"}}}
	for name, requests := range map[string][]request{
		"its first request": nil,
		"what it asks for":  {broken{asks}},
		"a later request":   {deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: asks.Node, TypeUrl: resource.TypeURL}}},
		"what it is sent":   {asks, asks},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Config{Source: fixed{}, Log: slog.New(slog.DiscardHandler)})
				var next int
				err := s.serve(unsent{&taken{ctx: t.Context()}}, nil, func() (request, error) {
					if next++; next > len(requests) {
						panic("a defect")
					}
					return requests[next-1], nil
				})
				if status.Code(err) != codes.Internal || len(s.streams) > 0 {
					t.Errorf("it ends with %v, and %d streams are left", err, len(s.streams))
				}
			})
		})
	}
}
