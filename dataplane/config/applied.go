package config

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/latest"
)

// applied is what a client tells of itself, and is told, while it runs.
type applied struct {
	now *latest.Value[*discoveryv1.AppliedConfig]
	// resync: the next stream starts from nothing.
	resync atomic.Bool

	mu  sync.Mutex
	cut context.CancelFunc // ends the stream; nil without one
}

func newApplied() applied {
	return applied{now: latest.New(&discoveryv1.AppliedConfig{})}
}

// cuts keeps what ends the stream until the returned function is called.
func (a *applied) cuts(cut context.CancelFunc) (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cut = cut
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.cut = nil
	}
}

// Applied is the configuration in force, to be reported, and a channel that is
// closed once it is another one. It must not be changed. Any goroutine may ask.
func (c *Client) Applied() (*discoveryv1.AppliedConfig, <-chan struct{}) { return c.applied.now.Load() }

// Resync makes the client sync its whole scope from nothing, on a new stream. It
// does not wait for it. Any goroutine may call it.
func (c *Client) Resync() {
	c.applied.resync.Store(true)
	c.applied.mu.Lock()
	defer c.applied.mu.Unlock()
	if c.applied.cut != nil {
		c.applied.cut()
	}
}

// maxWithheld bounds the names that are reported as withheld.
const maxWithheld = 1000

// note notes what is in force, and by which manifest; nil where it is not live.
func (c *Client) note(from snapshot.Origin, man *configv1.Manifest) {
	sources := map[snapshot.Origin]discoveryv1.AppliedConfig_Source{snapshot.Live: discoveryv1.AppliedConfig_SOURCE_LIVE,
		snapshot.FromDisk: discoveryv1.AppliedConfig_SOURCE_DISK, snapshot.FromFile: discoveryv1.AppliedConfig_SOURCE_SNAPSHOT}
	a := &discoveryv1.AppliedConfig{Lineage: c.mem.lineage, Revision: c.mem.revision, Source: sources[from], Digests: man.GetKinds(), Rejections: c.mem.rejections()}
	for name, k := range c.mem.resources {
		if k.good.Resource == nil {
			a.Withheld = append(a.Withheld, name)
		}
	}
	slices.Sort(a.Withheld)
	a.Withheld = a.Withheld[:min(len(a.Withheld), maxWithheld)]
	c.applied.now.Store(a)
}
