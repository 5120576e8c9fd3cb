package proxy

import (
	"context"
	"net"
	"runtime/debug"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/denied"
	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/follow"
	frontgrpc "github.com/weft-mesh/weft/dataplane/frontend/grpc"
	fronthttp "github.com/weft-mesh/weft/dataplane/frontend/http"
	"github.com/weft-mesh/weft/dataplane/inspect"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/push"
	"github.com/weft-mesh/weft/dataplane/quota"
)

// engine is what carries events: the ways in and out and the protocols.
type engine struct {
	// parts run beside each other; stopped, they give back what is not
	// settled.
	parts []enginePart
	// push calls targets; stopped, it finishes what it has sent.
	push []enginePart
	// frontends serve a listener each, by its name, until their context ends
	// and their sessions have.
	frontends []frontendPart
	// tell ends members and tails, so that their sessions can end.
	tell func()
}

type enginePart struct {
	name string
	run  func(context.Context) error
}

type frontendPart struct {
	name  string
	serve func(context.Context, net.Listener) error
}

// Bytes of events that wait for stores, of requests over HTTP that are read, of messages
// over gRPC that are not whole, and of events that are not settled, at most.
const (
	maxWaiting  = 256 << 20
	maxBodies   = 512 << 20
	maxArriving = 1 << 30
	maxHeld     = 1 << 30
)

// within is at most an eighth of what the process may take (GOMEMLIMIT). An event that
// waits is held as it came and as the store writes it, in buffers that are larger; then
// there are deliveries, and garbage.
func within(most int64) int64 { return min(most, max(debug.SetMemoryLimit(-1)/8, 1)) }

// wire makes the engine.
func (p *Proxy) wire() error {
	quotas, known := quota.New(p.registry, func() *quota.Rules { return p.snapshots.Get().Quotas }), facts.New(p.cfg.Clock)
	p.denied = denied.New(p.cfg.Clock)
	in := pipeline.New(pipeline.Config{Snapshots: p.snapshots, Store: p.stores.Get, Moves: p.moves, Incarnation: p.incarnation, MaxInFlight: within(maxWaiting), Clock: p.cfg.Clock, Denied: p.denied, Quotas: quotas, Facts: known, Tracing: p.cfg.Tracing, Metrics: p.registry, Log: p.cfg.Log})
	out := delivery.New(delivery.Config{Snapshots: p.snapshots, Store: p.stores.Get, Write: in.Write, Moves: p.moves, Denied: p.denied, MaxHeld: within(maxHeld), NodeID: p.nodeID, Facts: known, Clock: p.cfg.Clock, Tracing: p.cfg.Tracing, Metrics: p.registry, Log: p.cfg.Log})
	p.mesh.in, p.mesh.requests, p.mesh.out, p.mesh.dead, p.mesh.quotas = in, in, out, out, quotas
	p.mesh.inspector = inspect.New(inspect.Config{Snapshots: p.snapshots, Store: p.stores.Get, Facts: known, Members: out.Members, Ahead: out.Ahead, NodeID: p.nodeID, Clock: p.cfg.Clock})
	overHTTP := fronthttp.New(fronthttp.Config{Mesh: p.mesh, Requests: p.mesh, TLS: p.tls[listenHTTP], Origins: p.cfg.CORSOrigins, MaxBodies: within(maxBodies), DrainTime: p.cfg.DrainTime, Stall: p.cfg.ClientStall, Clock: p.cfg.Clock, Metrics: p.registry, Log: p.cfg.Log})
	overGRPC := frontgrpc.New(frontgrpc.Config{Mesh: p.mesh, Requests: p.mesh, DeadLetters: p.mesh, Inspector: p.mesh, NodeID: p.nodeID, Clock: p.cfg.Clock, TLS: p.tls[listenGRPC], MaxArriving: within(maxArriving), DrainTime: p.cfg.DrainTime, Stall: p.cfg.ClientStall, Metrics: p.registry, Log: p.cfg.Log})
	calls := push.New(push.Config{Snapshots: p.snapshots, Join: out.JoinPush, Forward: in.Forward, Reply: in.ReplyFrom, Allow: p.cfg.PushAllow, Secrets: p.cfg.PushSecrets, Services: p.cfg.PushServices, Finish: p.cfg.DrainTime / 4, Clock: p.cfg.Clock,
		Metrics: p.registry, Tracing: p.cfg.Tracing, Log: p.cfg.Log})
	p.pusher, p.deliveries = calls, out
	followed := follow.New(follow.Config{Snapshots: p.snapshots, Store: p.stores.Get, Write: in.WriteEach, Metrics: p.registry, Log: p.cfg.Log})
	p.engine = engine{
		parts:     []enginePart{{"requests", in.RunRequests}, {"delivery", out.Run}, {"follow", followed.Run}},
		push:      []enginePart{{"push", calls.Run}},
		frontends: []frontendPart{{listenHTTP, overHTTP.Serve}, {listenGRPC, overGRPC.Serve}},
		tell:      func() { in.EndRequests(); out.Drain() },
	}
	return nil
}
