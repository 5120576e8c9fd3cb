package discovery

import (
	"context"
	"time"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
)

// PaceEvery is the least time between two configurations that proxies are told of:
// at most 20 a second.
const PaceEvery = 50 * time.Millisecond

// Paced is a Source that tells of at most one configuration in a time, so that a
// thousand changes a second are twenty for each proxy, and not a thousand. A change
// after a rest is told at once; of those that follow too soon, the newest is.
type Paced struct {
	Source
	every time.Duration
	now   *latest.Value[*configstore.Snapshot]
}

// Pace paces a Source; every is PaceEvery when 0. Run must run.
func Pace(s Source, every time.Duration) *Paced {
	if every == 0 {
		every = PaceEvery
	}
	return &Paced{Source: s, every: every, now: latest.New[*configstore.Snapshot](nil)}
}

// Run passes configurations on until ctx ends.
func (p *Paced) Run(ctx context.Context) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-rest.C:
		case <-ctx.Done():
			return nil
		}
		snap, changed := p.Source.Snapshot()
		if snap != p.now.Get() {
			p.now.Store(snap)
			rest.Reset(p.every)
			continue
		}
		select {
		case <-changed:
			rest.Reset(0)
		case <-ctx.Done():
			return nil
		}
	}
}

// Snapshot is the configuration that proxies are told of, and a channel that is
// closed once there is a newer one.
func (p *Paced) Snapshot() (*configstore.Snapshot, <-chan struct{}) { return p.now.Load() }

// WaitFor returns the first configuration at revision or later.
func (p *Paced) WaitFor(ctx context.Context, revision int64) (*configstore.Snapshot, error) {
	for {
		snap, changed := p.now.Load()
		if snap != nil && snap.Revision >= revision {
			return snap, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Unavailable, "discovery", "behind", ctx.Err())
		}
	}
}

// catchUp waits until what is known now is told, or ctx ends: who comes new is not
// shown less than there is.
func (p *Paced) catchUp(ctx context.Context) {
	if snap, _ := p.Source.Snapshot(); snap != nil {
		_, _ = p.WaitFor(ctx, snap.Revision) // else ctx has ended
	}
}
