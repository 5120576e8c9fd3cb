package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The latencies are what a publish takes at half of the rate that the native client, or
// the engine, saturates at: one event a call, begun when its time has come whatever
// others do, so that a stall counts for all whom it holds up.

// latencyRocketMQ compares them with RocketMQ's own client.
func latencyRocketMQ(ctx context.Context, r *run) error {
	names, broker, err := r.rocketmq(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "latency-rocketmq", filepath.Join(r.dir, "latency-rocketmq"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, rocketYAML(names, "mesh", "native")); err != nil {
		return err
	}
	l := load{64, 1}
	native, async, stop, err := nativeProducers(names, r.ns+"_native", l, r.size, map[string]int{"broker": broker})
	if err != nil {
		return err
	}
	err = r.added(ctx, "RocketMQ", native, async, m.overGRPC("weft, gRPC streams", "mesh", l, nil), m.singleHTTP("weft, HTTP", "mesh", l.publishers, nil))
	return errors.Join(err, stop())
}

// latencyEmbedded compares them with the engine.
func latencyEmbedded(ctx context.Context, r *run) error {
	dir, err := os.MkdirTemp(r.dir, "latency-")
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "latency-embedded", filepath.Join(dir, "proxy"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML); err != nil {
		return err
	}
	db, err := openEngine(filepath.Join(dir, "engine"))
	if err != nil {
		return err
	}
	defer db.Close()
	l := load{64, 1}
	return r.added(ctx, "embedded", engine(db, l, r.size), nil, m.overGRPC("weft, gRPC streams", "mesh", l, nil), m.singleHTTP("weft, HTTP", "mesh", l.publishers, nil))
}

// latencyKafka compares them with franz-go's producer.
func latencyKafka(ctx context.Context, r *run) error {
	broker, _, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "latency-kafka", filepath.Join(r.dir, "latency-kafka"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, kafkaYAML(broker, "mesh", "native")); err != nil {
		return err
	}
	return r.eachSize(func(kib int) error {
		l := load{64, 1}
		native, stop, err := franz(broker, r.ns+"_native", l, r.size, 0, nil)
		if err != nil {
			return err
		}
		defer stop()
		return r.added(ctx, fmt.Sprintf("Kafka, %d KiB", kib), native, nil, m.overGRPC("weft, gRPC streams", "mesh", l, nil), m.unary("weft, gRPC calls", "mesh", l.publishers, nil), m.singleHTTP("weft, HTTP", "mesh", l.publishers, nil))
	})
}

// added compares contenders with native, at half of the rate that the slowest of
// all saturates at, so that none of them queues. other may be another native one.
func (r *run) added(ctx context.Context, store string, native, other *contender, ours ...*contender) error {
	all := append([]*contender{native}, ours...)
	if other != nil {
		all = append(all, other)
	}
	rate := 0.0
	for _, c := range all {
		if err := r.measure(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if c != other && (rate == 0 || c.rates[0] < rate) {
			rate = c.rates[0]
		}
	}
	rate /= 2
	p50, p99 := map[*contender][]float64{}, map[*contender][]float64{}
	for range r.rounds {
		for _, c := range all {
			a, b, err := r.paced(ctx, c, rate)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			p50[c], p99[c] = append(p50[c], a), append(p99[c], b)
		}
	}
	r.printf(" %s, one event a call, %.0f a second\n", store, rate)
	for _, c := range all {
		r.printf("  %-46s p50 %s ms  p99 %s ms\n", c.name, spread(p50[c], "%.2f"), spread(p99[c], "%.2f"))
	}
	for _, c := range ours {
		r.note("latency, %s, %.0f events/s: %s adds %s ms at p50 and %s ms at p99 to %s (aim on a quiet machine: 0.3 and 1.5)", store, rate, c.name,
			spread(differences(p50[c], p50[native]), "%.2f"), spread(differences(p99[c], p99[native]), "%.2f"), native.name)
	}
	return nil
}

func differences(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range out {
		out[i] = a[i] - b[i]
	}
	return out
}

// paced has the workers of c begin their work at a rate and tells how long it took
// from when it was to begin, in milliseconds.
func (r *run) paced(ctx context.Context, c *contender, rate float64) (p50, p99 float64, err error) {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return 0, 0, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	var mu sync.Mutex
	var took []float64
	failures := make(chan error, len(c.workers))
	began := time.Now().Add(10 * time.Millisecond)
	warm := r.slice / 10
	var wg sync.WaitGroup
	for _, w := range c.workers {
		wg.Go(func() {
			for {
				at := time.Duration(float64(next.Add(1)-1) / rate * float64(time.Second))
				if at > warm+r.slice {
					return
				}
				wait(ctx, time.Until(began.Add(at)))
				if n, err := w(ctx); err != nil {
					failures <- err
					cancel()
					return
				} else if n == 0 {
					continue // the middleware had too much
				}
				if at < warm {
					continue
				}
				ms := float64(time.Since(began.Add(at)).Microseconds()) / 1000
				mu.Lock()
				took = append(took, ms)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		return 0, 0, err
	default:
	}
	if len(took) == 0 {
		return 0, 0, errors.New("no event came through")
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}
