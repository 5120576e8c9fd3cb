package main

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

// startProxy measures the proxy's binary and its start from the configuration on
// its disk, with no control plane.
func startProxy(ctx context.Context, r *run) error {
	for _, name := range []string{"weft-proxy", "weft"} {
		info, err := os.Stat(filepath.Join(r.dir, name))
		if err != nil {
			return err
		}
		r.printf("  %s: %.1f MB\n", name, float64(info.Size())/1e6)
		if name == "weft-proxy" {
			r.note("the proxy's binary: %.1f MB", float64(info.Size())/1e6)
		}
	}
	m, err := r.startMesh(ctx, "start", filepath.Join(r.dir, "start"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML); err != nil {
		return err
	}
	if err := m.control.Kill(); err != nil {
		return err
	}
	var took, memory []float64
	ready := m.proxy.Ready
	for range 5 * r.rounds {
		if err := m.proxy.Kill(); err != nil {
			return err
		}
		// Asked more often than servers usually are.
		began := time.Now()
		m.proxy.Ready = func(ctx context.Context, out []byte) error {
			for {
				err := ready(ctx, out)
				if err == nil || ctx.Err() != nil || time.Since(began) > time.Minute {
					return err
				}
				wait(ctx, time.Millisecond)
			}
		}
		if err := m.proxy.Start(ctx); err != nil {
			return err
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
		memory = append(memory, float64(residentOf(m.proxy.PID()))/1e6)
	}
	r.printf("  from exec to ready, kill -9 before, configuration from disk: %s ms; resident then: %s MB\n", spread(took, "%.0f"), spread(memory, "%.0f"))
	r.note("the proxy is ready %s ms after it is started, from disk; %s MB resident", spread(took, "%.0f"), spread(memory, "%.0f"))
	return nil
}
