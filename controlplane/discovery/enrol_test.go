package discovery

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/resource"
)

// listed is a roster that answers the same to all.
type listed struct {
	at  roster.At
	err error
}

func (l listed) Join(context.Context, roster.Joining) (roster.At, error) { return l.at, l.err }

func (l listed) Refusal(string) error { return nil }

func (l listed) Entry(string, string) int64 { return 0 }

// TestEnrol: a node is shown nothing older than the roster says, and nothing where it is
// refused, by what it can do about it.
func TestEnrol(t *testing.T) {
	for name, tc := range map[string]struct {
		listed
		code codes.Code
		says string
	}{
		"as new as this replica": {listed: listed{at: roster.At{Lineage: "1-x", Revision: 7}}},
		"newer":                  {listed{at: roster.At{Lineage: "1-x", Revision: 8}}, codes.Unavailable, "etcd has changes up to 8; try another"},
		"of another lineage":     {listed{at: roster.At{Lineage: "2-x", Revision: 7}}, codes.Unavailable, "try another"},
		"not to be written":      {listed{err: fault.New(fault.Unavailable, "x", "x", "no etcd")}, codes.Unavailable, "no etcd"},
		"dead":                   {listed{err: fault.New(fault.Precondition, "x", "x", "is dead")}, codes.FailedPrecondition, "is dead"},
		"too many":               {listed{err: fault.New(fault.Throttled, "x", "x", "the most")}, codes.ResourceExhausted, "the most"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{Source: still{snap: configstore.Empty("1-x", 7)}, Roster: tc.listed, MaxAge: time.Minute, Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			rpc := &acking{taken: taken{ctx: ctx}, requests: make(chan request, 2)}
			rpc.requests <- deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "n"}, TypeUrl: resource.TypeURL}}
			if err := s.serve(rpc, nil, rpc.next); status.Code(err) != tc.code || tc.says != "" && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// joins is a roster that says what it is told of a node.
type joins struct{ got chan roster.Joining }

func (j joins) Join(_ context.Context, node roster.Joining) (roster.At, error) {
	j.got <- node
	return roster.At{}, fault.New(fault.Unavailable, "x", "x", "that is all")
}

func (joins) Refusal(string) error { return nil }

func (joins) Entry(string, string) int64 { return 0 }

// TestEnrolsMoves: a node is on the roster as one that knows moves where it is sent them.
func TestEnrolsMoves(t *testing.T) {
	got := make(chan roster.Joining, 1)
	s := New(Config{Source: still{snap: configstore.Empty("1-x", 7)}, Roster: joins{got}, Log: slog.New(slog.DiscardHandler)})
	for name, tc := range map[string]struct {
		info  *discoveryv1.NodeInfo
		knows bool
	}{
		"all":                {&discoveryv1.NodeInfo{Manifest: true, Capabilities: resource.AllFeatures()}, true},
		"nothing is said":    {&discoveryv1.NodeInfo{Manifest: true}, false},
		"without a manifest": {&discoveryv1.NodeInfo{Capabilities: resource.AllFeatures()}, false},
		"no moves":           {&discoveryv1.NodeInfo{Manifest: true, Capabilities: slices.DeleteFunc(resource.AllFeatures(), func(f string) bool { return f == "topicbinding.move" })}, false},
	} {
		p := &proxy{world: &world{T: t}}
		rpc := &acking{taken: taken{ctx: t.Context()}, requests: make(chan request, 1)}
		rpc.requests <- deltaRequest{&discoveryv3.DeltaDiscoveryRequest{Node: p.says("n", tc.info), TypeUrl: resource.TypeURL}}
		if err := s.serve(rpc, nil, rpc.next); status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		if j := <-got; j.Node != "n" || j.Moves != tc.knows || !j.Fresh {
			t.Errorf("%s: it joins as %+v", name, j)
		}
	}
}
