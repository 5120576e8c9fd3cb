package proxy

import (
	"context"
	"net"

	"github.com/weft-mesh/weft/dataplane/delivery"
	frontgrpc "github.com/weft-mesh/weft/dataplane/frontend/grpc"
	fronthttp "github.com/weft-mesh/weft/dataplane/frontend/http"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/push"
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

// wire makes the engine.
func (p *Proxy) wire() error {
	in := pipeline.New(pipeline.Config{Snapshots: p.snapshots, Store: p.stores.Get, Tracing: p.cfg.Tracing, Metrics: p.registry, Log: p.cfg.Log})
	out := delivery.New(delivery.Config{Snapshots: p.snapshots, Store: p.stores.Get, Write: in.Write, Clock: p.cfg.Clock, Tracing: p.cfg.Tracing, Metrics: p.registry, Log: p.cfg.Log})
	p.mesh.in, p.mesh.out = in, out
	overHTTP := fronthttp.New(fronthttp.Config{Mesh: p.mesh, TLS: p.tls[listenHTTP], DrainTime: p.cfg.DrainTime, Clock: p.cfg.Clock, Metrics: p.registry, Log: p.cfg.Log})
	overGRPC := frontgrpc.New(frontgrpc.Config{Mesh: p.mesh, NodeID: p.nodeID, TLS: p.tls[listenGRPC], DrainTime: p.cfg.DrainTime, Metrics: p.registry, Log: p.cfg.Log})
	calls := push.New(push.Config{Snapshots: p.snapshots, Join: out.JoinPush, Allow: p.cfg.PushAllow, Finish: p.cfg.DrainTime / 4, Clock: p.cfg.Clock,
		Metrics: p.registry, Tracing: p.cfg.Tracing, Log: p.cfg.Log})
	p.pusher = calls
	p.engine = engine{
		parts:     []enginePart{{"delivery", out.Run}},
		push:      []enginePart{{"push", calls.Run}},
		frontends: []frontendPart{{listenHTTP, overHTTP.Serve}, {listenGRPC, overGRPC.Serve}},
		tell:      out.Drain,
	}
	return nil
}
