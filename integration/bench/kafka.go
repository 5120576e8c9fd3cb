package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
)

// kafkaRetention bounds what a topic keeps, in bytes: minutes at full speed would fill a
// disk.
const kafkaRetention = 3 << 29

// removing has a broker remove soon what topics do not keep.
var removing = []string{"log.segment.bytes=33554432", fmt.Sprintf("log.retention.bytes=%d", kafkaRetention/8), "log.retention.check.interval.ms=1000", "log.segment.delete.delay.ms=1000"}

// kafka starts one of one node, once: the CPU of its broker is measured.
func (r *run) kafka(ctx context.Context) (broker string, pid int, err error) {
	if r.kafkaNode == nil {
		if r.kafkaNode, err = servers.StartKafka(ctx, servers.KafkaOptions{Properties: removing}); err != nil {
			return "", 0, err
		}
		r.stops = append(r.stops, r.kafkaNode.Stop)
		if r.share > 0 {
			undo, err := limit(r.kafkaNode.Nodes[0].PID(), r.share)
			if err != nil {
				return "", 0, err
			}
			r.stops = slices.Insert(r.stops, len(r.stops)-1, undo)
		}
	}
	return r.kafkaNode.Brokers[0], r.kafkaNode.Nodes[0].PID(), nil
}

// kafkaYAML is an EventStore with topics.
func kafkaYAML(broker string, topics ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: main}\nspec: {kafka: {brokers: [%q]}}\n", broker)
	for _, t := range topics {
		fmt.Fprintf(&b, "---\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: %s}\nspec: {store: main, partitions: 8, retention: {max_bytes: %d}}\n", t, kafkaRetention)
	}
	return b.String()
}

// franz is franz-go's own producer, idempotent and acknowledged by all replicas as
// the mesh is, in its quickest configuration that was found: no compression of data
// that none shrinks, and as long a linger as load makes by itself; with what else is said.
func franz(broker, topic string, l load, size int, linger time.Duration, pids map[string]int, opts ...kgo.Opt) (_ *contender, stop func(), err error) {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(linger), kgo.MaxBufferedRecords(1 << 20)}, opts...)...)
	if err != nil {
		return nil, nil, err
	}
	out := &contender{name: fmt.Sprintf("franz-go, linger %v", linger), pids: pids}
	for p := range l.publishers {
		headers := []kgo.RecordHeader{{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_id", Value: fmt.Appendf(nil, "p%d", p)}, {Key: "ce_source", Value: []byte(source)}, {Key: "ce_type", Value: []byte("bench")}}
		data := bytes.Repeat([]byte{'x'}, size)
		out.workers = append(out.workers, func(ctx context.Context) (int, error) {
			records := make([]*kgo.Record, l.batch)
			for i := range records {
				records[i] = &kgo.Record{Value: data, Headers: headers}
			}
			return l.batch, c.ProduceSync(ctx, records...).FirstErr()
		})
	}
	return out, c.Close, nil
}

// eachSize measures with the sizes of events that a Kafka is compared with.
func (r *run) eachSize(measure func(kib int) error) error {
	size := r.size
	defer func() { r.size = size }()
	for _, kib := range []int{1, 16} {
		r.size = kib << 10
		if err := measure(kib); err != nil {
			return err
		}
	}
	return nil
}

// publishKafka compares publishing through a proxy with franz-go alone.
func publishKafka(ctx context.Context, r *run) error {
	broker, pid, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	return r.publishKafka(ctx, "publish-kafka", "Kafka", broker, map[string]int{"broker": pid})
}

// publishReplicated is publishKafka with three brokers that each have every event before it
// is acknowledged, or two of them: who needs more than one disk to keep events has such.
func publishReplicated(ctx context.Context, r *run) (err error) {
	k, err := servers.StartKafka(ctx, servers.KafkaOptions{Nodes: 3, Properties: removing})
	if err != nil {
		return err
	}
	defer func() {
		if serr := k.Stop(); err == nil {
			err = serr
		}
	}()
	pids := map[string]int{}
	for i, n := range k.Nodes {
		pids[fmt.Sprintf("broker %d", i+1)] = n.PID()
	}
	return r.publishKafka(ctx, "publish-replicated", "Kafka, 3 replicas", k.Brokers[0], pids)
}

// publishKafka compares what publishKafka does, over brokers of which pids are the
// processes.
func (r *run) publishKafka(ctx context.Context, figure, what, broker string, pids map[string]int) (err error) {
	m, err := r.startMesh(ctx, figure, filepath.Join(r.dir, figure))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, kafkaYAML(broker, "mesh", "native")); err != nil {
		return err
	}
	through := map[string]int{"proxy": m.proxy.PID()}
	maps.Copy(through, pids)
	var bare *relay // before the one broker
	relayed := map[string]int{}
	if pids["broker"] != 0 {
		if bare, err = r.startRelay(ctx, broker); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, bare.process.Stop()) }()
		relayed["relay"] = bare.process.PID()
		maps.Copy(relayed, pids)
	}
	r.printf("  both: 8 partitions, %d node(s), idempotent, acks=all, no compression\n", len(pids))
	var stops []func()
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	return r.eachSize(func(kib int) error {
		for _, l := range []load{{1, 1}, {16, 1}, {256, 1}, {16, 64}} {
			r.printf(" %d KiB, %v\n", kib, l)
			ours := []*contender{m.overGRPC("weft, gRPC streams", "mesh", l, through)}
			ours[0].id = fmt.Sprintf("%d-%d-%d", kib, l.publishers, l.batch)
			if l.batch == 1 {
				ours = append(ours, m.unary("weft, gRPC calls", "mesh", l.publishers, through))
			}
			shared, stop, err := m.shared("weft, the Go client", "mesh", l, through)
			if err != nil {
				return err
			}
			shared.id = ours[0].id
			ours = append(ours, shared)
			lingers := func(pids map[string]int, opts ...kgo.Opt) (out []*contender, err error) {
				for _, linger := range []time.Duration{0, 5 * time.Millisecond} {
					c, stop, err := franz(broker, r.ns+"_native", l, r.size, linger, pids, opts...)
					if err != nil {
						return nil, err
					}
					stops = append(stops, stop)
					out = append(out, c)
				}
				return out, nil
			}
			theirs, err := lingers(pids)
			if err != nil {
				return err
			}
			// An application has one client; several are several connections to a broker.
			const several = 4
			var many *contender
			if l.publishers >= several {
				many = &contender{name: fmt.Sprintf("franz-go, %d clients", several), pids: pids}
				for range several {
					c, stop, err := franz(broker, r.ns+"_native", load{l.publishers / several, l.batch}, r.size, 0, pids)
					if err != nil {
						return err
					}
					stops = append(stops, stop)
					many.workers = append(many.workers, c.workers...)
				}
				ours = append(ours, many)
			}
			var over []*contender
			if bare != nil {
				if over, err = lingers(relayed, bare.through()); err != nil {
					return err
				}
				for _, c := range over {
					c.name += ", a relay between"
				}
			}
			err = r.compare(ctx, slices.Concat(theirs, ours, over)...)
			if serr := stop(); err == nil {
				err = serr
			}
			if err != nil {
				return err
			}
			aim := ""
			if l.publishers*l.batch >= 256 {
				aim = " (aim at saturation: at least 0.8)"
			}
			if bare != nil {
				r.note("publish, %s, %d KiB, %v: with nothing but a relay between %s of franz-go's best", what, kib, l, spread(ratio(best(over...), best(theirs...)), "%.2f"))
			}
			for _, c := range ours {
				quickest := best(theirs...)
				if c == many {
					r.note("publish, %s, %d KiB, %v: %s %s of the best of one", what, kib, l, c.name, spread(ratio(c, quickest), "%.2f"))
					continue
				}
				cpu := ""
				if bare != nil {
					cpu = fmt.Sprintf(", %s of it behind a relay, at %s times its CPU in the broker", spread(ratio(c, best(over...)), "%.2f"), spread(times(c, quickest, "broker"), "%.2f"))
				}
				r.note("publish, %s, %d KiB, %v: %s %s of franz-go's best%s%s", what, kib, l, c.name, spread(ratio(c, quickest), "%.2f"), aim, cpu)
			}
		}
		return nil
	})
}
