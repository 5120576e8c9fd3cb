package proxy

import (
	"context"
	"net"

	"github.com/weft-mesh/weft/dataplane/delivery"
)

// engine is what carries events: the ways in and out and the protocols.
type engine struct {
	// parts run beside each other; stopped, they give back what is not
	// settled.
	parts []enginePart
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
	out := delivery.New(delivery.Config{Snapshots: p.snapshots, Store: p.stores.Get, Metrics: p.registry, Log: p.cfg.Log})
	p.mesh.out = out
	p.engine = engine{parts: []enginePart{{"delivery", out.Run}}, tell: out.Drain}
	return nil
}
