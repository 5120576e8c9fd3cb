package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// part is something that runs and is stopped by itself.
type part struct {
	name string
	stop context.CancelFunc
	done chan struct{}
}

// running are the parts of a proxy that runs, in the groups in which they stop.
type running struct {
	p      *Proxy
	failed chan error // capacity 1: the first failure

	small, engine, push, frontends, config []*part
}

// start starts a part in a group. A part that ends before it is stopped has
// failed.
func (r *running) start(group *[]*part, name string, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	x := &part{name: name, stop: stop, done: make(chan struct{})}
	*group = append(*group, x)
	go func() {
		defer close(x.done)
		err := run(ctx)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		select {
		case r.failed <- fmt.Errorf("%s: %w", name, err):
		default:
		}
	}()
}

// stopAll stops a group and waits until its parts have ended or ctx has.
func stopAll(ctx context.Context, group []*part) error {
	for _, x := range group {
		x.stop()
	}
	var errs []error
	for _, x := range group {
		select {
		case <-x.done:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("%s does not end", x.name))
		}
	}
	return errors.Join(errs...)
}

// drain stops a proxy that has served: what is in flight is finished, what is
// not settled goes back, nobody is cut who can be told. One deadline bounds all. With
// leaves it leaves the roster, where nothing has failed.
func (r *running) drain(leaves bool) error {
	p := r.p
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.DrainTime)
	defer cancel()
	// Sessions may take all the time but what closing the stores needs.
	sessions, cancelSessions := context.WithDeadline(ctx, began.Add(p.cfg.DrainTime-min(5*time.Second, p.cfg.DrainTime/4)))
	defer cancelSessions()
	var errs []error
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"fail readiness", func() error { p.draining.Store(true); return nil }},
		{"wait until others have noticed", func() error { wait(ctx, p.cfg.DrainGrace); return nil }},
		{"stop accepting", func() error { p.listeners[listenHTTP].Stop(); p.listeners[listenGRPC].Stop(); return nil }},
		{"stop pushing", func() error { return stopAll(sessions, r.push) }},
		{"tell clients", func() error { p.engine.tell(); return nil }},
		{"drain sessions", func() error {
			// Frontends end when their sessions have; what is left is cut.
			if err := stopAll(sessions, r.frontends); err != nil {
				n := p.listeners[listenHTTP].Cut() + p.listeners[listenGRPC].Cut()
				p.cfg.Log.Warn("connections are cut that did not end in time", "connections", n)
				return stopAll(ctx, r.frontends)
			}
			return nil
		}},
		{"stop fetching, give back and commit", func() error { return stopAll(ctx, r.engine) }},
		{"leave the roster", func() error {
			if leaves && len(errs) == 0 {
				p.leaveRoster(ctx)
			}
			return nil
		}},
		{"leave the control plane", func() error { return stopAll(ctx, r.config) }},
		{"close stores", func() error { return p.stores.Close(ctx) }},
		{"close the rest", func() error { return stopAll(ctx, r.small) }},
	} {
		at := time.Now()
		if err := step.do(); err != nil {
			errs = append(errs, fmt.Errorf("stopping: %s: %w", step.name, err))
		}
		p.cfg.Log.Debug("stopping", "step", step.name, "took", time.Since(at))
	}
	p.cfg.Log.Info("stopped", "took", time.Since(began))
	return errors.Join(errs...)
}

// leaveTime bounds the wait for a control plane to leave the roster at.
const leaveTime = 5 * time.Second

// leaveRoster takes the proxy off the roster: it acknowledges nothing any more.
func (p *Proxy) leaveRoster(ctx context.Context) {
	if inside, err := os.ReadDir(filepath.Join(p.cfg.DataDir, "stores")); len(inside) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.cfg.Log.Warn("the proxy stays on the roster: it has embedded stores, whose events are in its data folder alone", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := p.client.Leave(ctx); err != nil {
		p.cfg.Log.Warn("the proxy may still be on the roster; where it never comes back, it is declared dead (weft proxies declare-dead)", "node", p.nodeID, "error", err)
	}
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
