package config

// Kept is a configuration that a restart without a control plane would begin with, or a
// newer one.
type Kept struct {
	Lineage  string
	Revision int64
}

// Covers reports whether a restart would begin with this configuration, or a newer one.
func (k Kept) Covers(lineage string, revision int64) bool {
	return k.Lineage == lineage && k.Revision >= revision
}

// Kept is what is kept, and a channel that is closed once that is another. What is in
// force may be newer, as when the disk is full: it is tried again then. Without a
// folder all is kept that has been in force, since a restart would begin with nothing;
// but with a snapshot file none is. Any goroutine may ask.
func (c *Client) Kept() (Kept, <-chan struct{}) { return c.kept.Load() }

// keep writes the memory to disk.
func (c *Client) keep() {
	if c.cfg.Dir == "" && c.cfg.SnapshotFile != "" {
		return
	}
	if c.cfg.Dir != "" {
		err := c.disk.save(c.mem, c.mem.subscribed(), c.cfg.NodeID)
		c.unkept = err != nil
		if err != nil {
			c.metrics.diskErrors.Inc()
			c.cfg.Log.Error("the configuration cannot be kept on disk; a restart without a control plane would use an older one", "error", err)
			return
		}
	}
	c.kept.Store(Kept{c.mem.lineage, c.mem.revision})
}

// keepAgain keeps what could not be kept.
func (c *Client) keepAgain() {
	if c.unkept {
		c.keep()
	}
}
