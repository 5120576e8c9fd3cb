package discovery

import (
	"context"
	"slices"
	"sync"
	"time"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/resource"
)

// maxRefused bounds the versions of which refusals are counted at a time.
const maxRefused = 1000

// quarantineTime bounds the writing of one Quarantine.
const quarantineTime = 30 * time.Second

// refusals counts the nodes that refuse a version: several of them are not wrong
// alone, and the others are spared it.
type refusals struct {
	server *Server
	mu     sync.Mutex
	counts map[string]*refusal // by name
}

// refusal is of the newest version of a name that was refused.
type refusal struct {
	version string
	nodes   []string // distinct, at most QuarantineAfter
	voters  []string // of nodes
	written bool
}

// add counts what a stream, whose turn the caller has, refused of what is in force
// and was its to have.
func (r *refusals) add(st *stream, what *discoveryv1.Rejection) {
	cfg := &r.server.cfg
	snap, _ := cfg.Source.Snapshot()
	kind, ns, _, err := resource.Split(what.Name)
	if cfg.Quarantine == nil || err != nil || !st.scope.has(kind, what.Name, ns) {
		return
	}
	if e, why := snap.Served(what.Name); e == nil || why != nil || e.Version() != what.Version {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil || len(r.counts) >= maxRefused && r.counts[what.Name] == nil {
		r.counts = map[string]*refusal{} // the rest comes again from other nodes
	}
	c := r.counts[what.Name]
	if c == nil || c.version != what.Version {
		c = &refusal{version: what.Version}
		r.counts[what.Name] = c
	}
	voter := st.credential.voter(st.nodeID, st.peer)
	if c.written || slices.Contains(c.voters, voter) {
		return
	}
	c.voters = append(c.voters, voter)
	if c.nodes = append(c.nodes, st.nodeID); len(c.nodes) < cfg.QuarantineAfter {
		return
	}
	c.written = true
	nodes, reason := slices.Sorted(slices.Values(c.nodes)), clip(what.Reason)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), quarantineTime)
		defer cancel()
		if err := cfg.Quarantine(ctx, what.Name, what.Version, reason, nodes); err != nil {
			cfg.Log.Error("a version that several proxies refuse cannot be quarantined; the next refusal tries again", "resource", what.Name, "version", what.Version, "error", err)
			r.mu.Lock()
			defer r.mu.Unlock()
			c.written, c.nodes, c.voters = false, c.nodes[:len(c.nodes)-1], c.voters[:len(c.voters)-1]
			return
		}
		r.server.metrics.quarantines.Inc()
		cfg.Log.Error("several proxies refuse a version; it is quarantined", "resource", what.Name, "version", what.Version, "nodes", nodes, "reason", reason)
	}()
}
