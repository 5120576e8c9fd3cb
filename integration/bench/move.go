package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
)

// phase is how far a topic's move is.
func (m *mesh) phase(ctx context.Context, topic string) (string, error) {
	out, err := m.weft(ctx, "", "migrate", "status", topic, "-n", m.r.ns, "--server", m.admin, "-o", "json")
	if err != nil {
		return "", err
	}
	var st struct{ Phase string }
	return st.Phase, json.Unmarshal([]byte(out), &st)
}

// migrate begins a topic's move and waits until it is at a phase.
func (m *mesh) migrate(ctx context.Context, topic, to, phase string) error {
	if _, err := m.weft(ctx, "", "migrate", topic, "--to", to, "-n", m.r.ns, "--server", m.admin, "--yes"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		at, err := m.phase(ctx, topic)
		if err != nil || at == phase {
			return err
		}
		wait(ctx, 200*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("the move of %s does not get to %s: it is %s", topic, phase, at)
		}
	}
}

// leases compares publishing to a topic whose move is prepared, which is written to
// under leases, with one that does not move, over the same proxy. Another proxy, which
// has configuration of the namespace and is away, holds the move up.
func leases(ctx context.Context, r *run) error {
	broker, pid, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "leases", filepath.Join(r.dir, "leases"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, kafkaYAML(broker, "mesh", "leased")+strings.ReplaceAll("---\n"+kafkaYAML(broker), "name: main", "name: other")); err != nil {
		return err
	}
	var health string
	if err := addresses(&health); err != nil {
		return err
	}
	away := &servers.Process{Name: "proxy that is away", Log: filepath.Join(r.dir, "leases-away.log"), Ready: answers("http://" + health + "/readyz"),
		Args: []string{filepath.Join(r.dir, "weft-proxy"), "--control-plane", m.disco, "--data", filepath.Join(r.dir, "leases-away"), "--node-id", "away",
			"--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--health", health, "--ops", "127.0.0.1:0", "--log-level", "warn"}}
	if err := away.Start(ctx); err != nil {
		return err
	}
	if err := away.Stop(); err != nil {
		return err
	}
	if err := m.migrate(ctx, "leased", "other", "LEASING"); err != nil {
		return err
	}
	through := map[string]int{"proxy": m.proxy.PID(), "broker": pid}
	for _, l := range []load{{64, 1}, {16, 64}} {
		r.printf(" Kafka, %v\n", l)
		plain, leased := m.overGRPC("weft, a topic that does not move", "mesh", l, through), m.overGRPC("weft, a topic under leases", "leased", l, through)
		if err := r.compare(ctx, plain, leased); err != nil {
			return err
		}
		r.note("leases, Kafka, %v: %s of the rate of a topic that does not move, %s times its CPU in the proxy (aim: no measurable cost)", l,
			spread(ratio(leased, plain), "%.2f"), spread(times(leased, plain, "proxy"), "%.2f"))
	}
	if at, err := m.phase(ctx, "leased"); err != nil || at != "LEASING" {
		return fmt.Errorf("the move did not stay at LEASING: %s %w", at, err)
	}
	return nil
}

// move measures the longest pause of a publisher while its topic moves: the longest of
// its calls. 16 publish one event a call without a pause; beside it stands the longest
// in as long a time without a move.
func move(ctx context.Context, r *run) error {
	names, _, err := r.rocketmq(ctx)
	if err != nil {
		return err
	}
	broker, _, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "move", filepath.Join(r.dir, "move"))
	if err != nil {
		return err
	}
	defer m.end()
	stores := map[string]string{"rocketmq": rocketYAML(names), "kafka": kafkaYAML(broker), "embedded": embeddedYAML[:strings.Index(embeddedYAML, "---")]}
	var yaml []string
	for name, y := range stores {
		yaml = append(yaml, strings.ReplaceAll(y, "name: main", "name: "+name))
	}
	ways := []struct{ from, to string }{{"rocketmq", "kafka"}, {"kafka", "rocketmq"}, {"embedded", "kafka"}, {"kafka", "embedded"}}
	for _, way := range ways {
		for i := range r.rounds {
			yaml = append(yaml, fmt.Sprintf("apiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: %s-%s-%d}\nspec: {store: %s, partitions: 8}\n", way.from, way.to, i, way.from))
		}
	}
	if err := m.apply(ctx, strings.Join(yaml, "---\n")); err != nil {
		return err
	}
	for _, way := range ways {
		var still, moving []float64
		for i := range r.rounds {
			topic := fmt.Sprintf("%s-%s-%d", way.from, way.to, i)
			before, pause, err := m.pauses(ctx, topic, way.to)
			if err != nil {
				return fmt.Errorf("%s: %w", topic, err)
			}
			still, moving = append(still, before), append(moving, pause)
		}
		r.printf("  %s to %s: longest pause of 16 publishers %s ms, without a move %s ms\n", way.from, way.to, spread(moving, "%.0f"), spread(still, "%.0f"))
		r.note("move, %s to %s: the longest pause of a publisher %s ms (%s ms without a move)", way.from, way.to, spread(moving, "%.0f"), spread(still, "%.0f"))
	}
	return nil
}

// gaps are the times between two events of each of some publishers.
type gaps struct {
	began         time.Time
	last, longest []atomic.Int64 // since began; of those that have ended
}

func newGaps(publishers int) *gaps {
	return &gaps{time.Now(), make([]atomic.Int64, publishers), make([]atomic.Int64, publishers)}
}

// published notes that a publisher has published, or begins to.
func (g *gaps) published(i int) {
	now := int64(time.Since(g.began))
	g.longest[i].Store(max(g.longest[i].Load(), now-g.last[i].Swap(now)))
}

// take is the longest gap since it was asked last, in milliseconds; one that lasts still
// counts from its beginning.
func (g *gaps) take() float64 {
	most := int64(0)
	for i := range g.longest {
		last := g.last[i].Load()
		most = max(most, g.longest[i].Swap(0), int64(time.Since(g.began))-last)
	}
	return float64(time.Duration(most).Microseconds()) / 1000
}

// pauses moves a topic and tells the longest pause of a publisher meanwhile, and that in
// one slice before, in milliseconds.
func (m *mesh) pauses(ctx context.Context, topic, to string) (before, during float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := m.overGRPC("publishers", topic, load{16, 1}, nil)
	g := newGaps(len(c.workers))
	failures := make(chan error, len(c.workers))
	var wg sync.WaitGroup
	for i, w := range c.workers {
		wg.Go(func() {
			g.published(i)
			for ctx.Err() == nil {
				n, err := w(ctx)
				if err != nil {
					if ctx.Err() == nil {
						failures <- err
					}
					return
				}
				if n > 0 { // else it is to try again
					g.published(i)
				}
			}
		})
	}
	wait(ctx, m.r.slice/10)
	g.take()
	wait(ctx, m.r.slice)
	before = g.take()
	err = m.migrate(ctx, topic, to, "DRAINED")
	wait(ctx, m.r.slice/10)
	during = g.take()
	cancel()
	wg.Wait()
	if err == nil {
		select {
		case err = <-failures:
		default:
		}
	}
	return before, during, err
}
