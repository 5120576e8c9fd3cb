package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
)

// sidecarTopics are those of the configuration, of which a sidecar takes sidecarUses.
const sidecarTopics, sidecarUses = 200, 3

// alone is how long a sidecar is left alone before it is looked at.
const alone = 20 * time.Second

// sidecar measures a proxy beside one application: on demand, over Unix sockets, with
// a few topics of many. How long it takes from exec until it is ready, without
// anything on its disk and with it, and what it holds at rest, before and after it was
// used.
func sidecar(ctx context.Context, r *run) error {
	m, err := r.startMesh(ctx, "sidecar", filepath.Join(r.dir, "gateway"))
	if err != nil {
		return err
	}
	defer m.end()
	yaml, uses := embeddedYAML, []string{}
	for i := range sidecarTopics {
		yaml += fmt.Sprintf("---\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: topic%d}\nspec: {store: main}\n", i)
		if i < sidecarUses {
			uses = append(uses, fmt.Sprintf("topic/%s/topic%d", r.ns, i))
		}
	}
	if err := m.apply(ctx, yaml); err != nil {
		return err
	}
	var health, ops string
	if err := addresses(&health, &ops); err != nil {
		return err
	}
	ready := answers("http://" + health + "/readyz")
	var began time.Time
	socket, data := filepath.Join(r.dir, "http.sock"), filepath.Join(r.dir, "sidecar")
	p := &servers.Process{Name: "sidecar", Log: filepath.Join(r.dir, "sidecar.log"),
		Ready: func(ctx context.Context, out []byte) error { // asked more often than servers usually are
			for {
				err := ready(ctx, out)
				if err == nil || ctx.Err() != nil || time.Since(began) > time.Minute {
					return err
				}
				wait(ctx, time.Millisecond)
			}
		},
		Args: []string{filepath.Join(r.dir, "weft-proxy"), "--control-plane", m.disco, "--data", data, "--namespaces", r.ns, "--on-demand", "--preload", strings.Join(uses, ","),
			"--http", "unix:" + socket, "--grpc", "unix:" + filepath.Join(r.dir, "grpc.sock"), "--health", health, "--ops", ops, "--log-level", "warn"}}
	defer func() {
		if err := p.Stop(); err != nil {
			r.printf("  stopping: %v\n", err)
		}
	}()
	start := func() (float64, error) {
		began = time.Now()
		err := p.Start(ctx)
		return float64(time.Since(began).Microseconds()) / 1000, err
	}
	var first, again []float64
	for range 5 * r.rounds {
		if err := os.RemoveAll(data); err != nil {
			return err
		}
		for _, to := range []*[]float64{&first, &again} {
			took, err := start()
			if err != nil {
				return err
			}
			*to = append(*to, took)
			if err := p.Kill(); err != nil {
				return err
			}
		}
	}
	r.printf("  from exec to ready, kill -9 before: %s ms with an empty disk, %s ms with the configuration on it\n", spread(first, "%.0f"), spread(again, "%.0f"))
	if _, err := start(); err != nil {
		return err
	}
	look := func(when string) (pages, error) {
		wait(ctx, alone)
		at, err := memoryOf(p.PID())
		r.printf("  at rest %s: %.1f MB anonymous, %.1f MB resident\n", when, at.anonymous, at.resident)
		return at, err
	}
	unused, err := look("since it started")
	if err != nil {
		return err
	}
	for i := range 10 {
		if err := m.publishOver(ctx, socket, "topic0", i, r.size); err != nil {
			return err
		}
	}
	used, err := look("after ten events")
	if err != nil {
		return err
	}
	r.note("a sidecar at rest: %.1f MB anonymous (aim: at most 30), %.1f MB resident; after ten events %.1f and %.1f", unused.anonymous, unused.resident, used.anonymous, used.resident)
	r.note("a sidecar is ready %s ms after it is started, %s ms from its disk (aim: well under 1,000)", spread(first, "%.0f"), spread(again, "%.0f"))
	if r.profiles == "" {
		return nil
	}
	heap, err := get(ctx, "http://"+ops+"/debug/pprof/heap")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.profiles, "heap-sidecar.pprof"), []byte(heap), 0o600)
}

// publishOver publishes an event over a Unix socket.
func (m *mesh) publishOver(ctx context.Context, socket, topic string, id, size int) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/v1/"+m.r.ns+"/topics/"+topic, bytes.NewReader(make([]byte, size)))
	if err != nil {
		return err
	}
	for k, v := range map[string]string{"Authorization": "Bearer " + m.key, "Content-Type": "application/octet-stream", "Ce-Specversion": "1.0", "Ce-Id": strconv.Itoa(id), "Ce-Source": "/bench", "Ce-Type": "bench"} {
		req.Header.Set(k, v)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	return nil
}

// pages are the memory of a process, in MB of 10^6 bytes.
type pages struct{ anonymous, resident float64 }

func memoryOf(pid int) (m pages, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			return m, err
		}
		switch fields[0] {
		case "Anonymous:":
			m.anonymous = kib * 1024 / 1e6
		case "Rss:":
			m.resident = kib * 1024 / 1e6
		}
	}
	if m.anonymous == 0 || m.resident == 0 {
		return m, fmt.Errorf("smaps_rollup of process %d has not what is looked for:\n%s", pid, b)
	}
	return m, nil
}
