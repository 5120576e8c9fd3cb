package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// kafkaBacklog is how many events of so many bytes are consumed from a Kafka: no more
// than its topics keep.
func kafkaBacklog(size int) int64 { return kafkaRetention * 2 / 3 / int64(size) }

// franzConsumer has a consumer group of franz-go receive the records of a topic until
// ctx ends. It commits every 5 s what it has received.
func franzConsumer(ctx context.Context, broker, topic, group string, at kgo.Offset, received func([]*kgo.Record), opts ...kgo.Opt) error {
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(broker), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.ConsumeStartOffset(at)}, opts...)...)
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		received(c.PollFetches(ctx).Records())
	}
	return ctx.Err()
}

// named gives the topic mesh of kafkaYAML a name for native clients, one for each size of
// events. Such a topic keeps what the broker keeps of any.
func (r *run) named(yaml string) (_, physical string) {
	physical = fmt.Sprintf("%s_consume_%d", strings.ReplaceAll(r.ns, "-", "_"), r.size)
	head, _, _ := strings.Cut(yaml, ", retention: ")
	return strings.ReplaceAll(head, "name: mesh}\nspec: {store: main", "name: mesh}\nspec: {store: main, physical_name: "+physical) + "}\n", physical
}

// consumeKafka compares receiving through a proxy, every event acknowledged by itself,
// with franz-go's consumer, which commits an offset every 5 s. What the
// acknowledgements cost is what a member has above a tail, which has none.
func consumeKafka(ctx context.Context, r *run) error {
	broker, pid, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	return r.eachSize(func(kib int) error {
		name := fmt.Sprintf("consume-kafka-%d", kib)
		m, err := r.startMesh(ctx, name, filepath.Join(r.dir, name))
		if err != nil {
			return err
		}
		defer m.end()
		return m.consumeKafka(ctx, kib, broker, pid)
	})
}

func (m *mesh) consumeKafka(ctx context.Context, kib int, broker string, pid int) (err error) {
	r, backlog := m.r, kafkaBacklog(m.r.size)
	bare, err := r.startRelay(ctx, broker)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.process.Stop()) }()
	through := map[string]int{"proxy": m.proxy.PID(), "broker": pid}
	native := &contender{name: "franz-go, a consumer group", pids: map[string]int{"broker": pid}}
	relayed := &contender{name: "franz-go, a relay between", pids: map[string]int{"broker": pid, "relay": bare.process.PID()}}
	ways := []struct {
		name    string
		readers int
		how     reader
	}{
		{"weft, a tail, nothing acknowledged", 1, reader{tail: true}},
		{"weft, a member, in order", 1, reader{}},
		{"weft, a member, never in order", 1, reader{late: true}},
		{fmt.Sprintf("weft, %d members, in order", members), members, reader{}},
		{"weft, the Go client, a tail", 1, reader{tail: true, client: true}},
		{"weft, the Go client, a handler", 1, reader{client: true}},
	}
	yaml, physical := r.named(kafkaYAML(broker, "mesh"))
	if err := m.apply(ctx, yaml+subscriptionsYAML(r.rounds*len(ways))); err != nil {
		return err
	}
	if err := m.fill(ctx, "mesh", backlog); err != nil {
		return err
	}
	ours := make([]*contender, len(ways))
	for k, way := range ways {
		ours[k] = &contender{name: way.name, pids: through, ops: m.ops, id: fmt.Sprintf("consume-%d", kib)}
	}
	for i := range r.rounds {
		for c, opts := range map[*contender][]kgo.Opt{native: nil, relayed: {bare.through()}} {
			if err := r.drain(ctx, c, backlog, func(ctx context.Context, received func(int)) error {
				return franzConsumer(ctx, broker, physical, fmt.Sprintf("%s-native-%d-%d-%d", r.ns, kib, i, len(opts)), kgo.NewOffset().AtStart(), func(all []*kgo.Record) { received(len(all)) }, opts...)
			}); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
		for k, way := range ways {
			how := way.how
			if !how.tail {
				how.subscription = fmt.Sprintf("round%d", i*len(ways)+k)
			}
			if err := m.through(ctx, ours[k], backlog, way.readers, how); err != nil {
				return fmt.Errorf("%s: %w", way.name, err)
			}
		}
	}
	r.printf(" %d KiB, %d events there already, credit %d; 8 partitions\n", kib, backlog, credit)
	r.report(append([]*contender{native, relayed}, ours...)...)
	r.note("consume, Kafka, %d KiB: with nothing but a relay between %s of franz-go", kib, spread(ratio(relayed, native), "%.2f"))
	for k, c := range ours {
		r.note("consume, Kafka, %d KiB: %s %s of franz-go (aim at saturation: at least 0.8), %s of it behind a relay", kib, c.name, spread(ratio(c, native), "%.2f"), spread(ratio(c, relayed), "%.2f"))
		if !ways[k].how.tail && !ways[k].how.client {
			r.note("single acks, Kafka, %d KiB: %s: %s of the rate of a tail; %s µs of the proxy's CPU and %s of the broker's an event above it", kib, c.name,
				spread(ratio(c, ours[0]), "%.2f"), spread(more(c, "proxy", ours[0], "proxy"), "%.2f"), spread(more(c, "broker", ours[0], "broker"), "%.2f"))
		}
	}
	return nil
}

// receiveKafka compares how long it takes from when franz-go has an event until a
// consumer has it: franz-go's group, and a member over gRPC that acknowledges every
// event by itself. It publishes at half of the rate that the member has where as much is
// published beside it as can be, one event a call.
func receiveKafka(ctx context.Context, r *run) error {
	broker, _, err := r.kafka(ctx)
	if err != nil {
		return err
	}
	return r.eachSize(func(kib int) error {
		name := fmt.Sprintf("receive-kafka-%d", kib)
		m, err := r.startMesh(ctx, name, filepath.Join(r.dir, name))
		if err != nil {
			return err
		}
		defer m.end()
		yaml, physical := r.named(kafkaYAML(broker, "mesh"))
		if err := m.apply(ctx, yaml); err != nil {
			return err
		}
		saturated, err := m.receiveAll(ctx, broker, physical)
		if err != nil {
			return err
		}
		rate := saturated / 2
		var native, weft delays
		for i := range r.rounds {
			if err := native.measure(ctx, r, broker, physical, rate, func(ctx context.Context, received func([]byte)) error {
				return franzConsumer(ctx, broker, physical, fmt.Sprintf("%s-native-%d-%d", r.ns, kib, i), kgo.NewOffset().AtEnd(), func(all []*kgo.Record) {
					for _, x := range all {
						received(x.Value)
					}
				})
			}); err != nil {
				return fmt.Errorf("franz-go: %w", err)
			}
			// Of its own, so that it begins behind what came before.
			subscription := fmt.Sprintf("round%d", i)
			if err := m.apply(ctx, "apiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: "+subscription+"}\nspec: {topics: [mesh], start: end, max_in_flight: 16384}\n"); err != nil {
				return err
			}
			if err := weft.measure(ctx, r, broker, physical, rate, func(ctx context.Context, received func([]byte)) error {
				return reader{m: m, subscription: subscription, received: func(list []*eventsv1.Delivery) {
					for _, d := range list {
						received(d.Event.GetBinaryData())
					}
				}}.run(ctx)
			}); err != nil {
				return fmt.Errorf("weft: %w", err)
			}
		}
		r.printf(" %d KiB, %.0f a second\n", kib, rate)
		for name, d := range map[string]*delays{"franz-go, a consumer group": &native, "weft, a member, every event acknowledged": &weft} {
			r.printf("  %-46s p50 %s ms  p99 %s ms\n", name, spread(d.p50, "%.2f"), spread(d.p99, "%.2f"))
		}
		r.note("receive, Kafka, %d KiB, %.0f events/s: a member adds %s ms at p50 and %s ms at p99 to franz-go", kib, rate,
			spread(differences(weft.p50, native.p50), "%.2f"), spread(differences(weft.p99, native.p99), "%.2f"))
		return nil
	})
}

// receiveAll publishes as much as can be beside a member, and tells how much of it the
// member has a second.
func (m *mesh) receiveAll(ctx context.Context, broker, topic string) (rate float64, err error) {
	r := m.r
	if err := m.apply(ctx, "apiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: all}\nspec: {topics: [mesh], start: end, max_in_flight: 16384}\n"); err != nil {
		return 0, err
	}
	c, stop, err := franz(broker, topic, load{64, 1}, r.size, 0, nil)
	if err != nil {
		return 0, err
	}
	defer stop()
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var got atomic.Int64
	ended := make(chan error, 1)
	go func() {
		ended <- reader{m: m, subscription: "all", received: func(list []*eventsv1.Delivery) { got.Add(int64(len(list))) }}.run(rctx)
	}()
	began := time.Now()
	err = r.measure(ctx, c)
	received := float64(got.Load()) / time.Since(began).Seconds()
	cancel()
	<-ended // for what it was told to end for
	if err == nil && received == 0 {
		err = errors.New("nothing was received")
	}
	if err != nil {
		return 0, err
	}
	return min(c.rates[0], received), nil
}

// delays are how long events took, in milliseconds, by round.
type delays struct{ p50, p99 []float64 }

// measure publishes events at a rate, each with the time when its time had come, and
// tells how long they took until a consumer had them.
func (d *delays) measure(ctx context.Context, r *run, broker, topic string, rate float64, consume func(ctx context.Context, received func(data []byte)) error) error {
	c, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1<<20))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var counting atomic.Bool
	var mu sync.Mutex
	var took []float64
	var first sync.Once
	arrived, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- consume(ctx, func(data []byte) {
			first.Do(func() { close(arrived) })
			if !counting.Load() || len(data) < 8 {
				return
			}
			ms := float64(time.Now().UnixNano()-int64(binary.BigEndian.Uint64(data))) / 1e6 //nolint:gosec // this run's
			mu.Lock()
			took = append(took, ms)
			mu.Unlock()
		})
	}()
	var failed atomic.Pointer[error]
	// franz-go gives up all records of a partition with one whose context has ended.
	publish := func(while context.Context, rate float64, until <-chan struct{}) {
		began := time.Now()
		for n := 0; while.Err() == nil; n++ {
			select {
			case <-until:
				return
			default:
			}
			at := began.Add(time.Duration(float64(n) / rate * float64(time.Second)))
			if early := time.Until(at); early > 0 {
				wait(while, early)
			}
			data := make([]byte, max(8, r.size))
			binary.BigEndian.PutUint64(data, uint64(at.UnixNano())) //nolint:gosec // after 1970
			c.Produce(ctx, &kgo.Record{Value: data, Headers: []kgo.RecordHeader{{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_id", Value: []byte("r")}, {Key: "ce_source", Value: []byte(source)}, {Key: "ce_type", Value: []byte("bench")}}},
				func(_ *kgo.Record, err error) {
					if err != nil && ctx.Err() == nil {
						failed.Store(&err)
					}
				})
		}
	}
	// A group takes its time until it has its partitions.
	joined, stop := context.WithTimeout(ctx, 30*time.Second)
	publish(joined, 100, arrived)
	stop()
	if ctx.Err() == nil && joined.Err() == context.DeadlineExceeded {
		return errors.New("no event came through")
	}
	over := make(chan struct{})
	time.AfterFunc(r.slice/10, func() { counting.Store(true) })
	time.AfterFunc(r.slice+r.slice/10, func() { close(over) })
	publish(ctx, rate, over)
	counting.Store(false)
	cancel()
	<-ended
	if err := failed.Load(); err != nil {
		return *err
	}
	mu.Lock()
	defer mu.Unlock()
	if len(took) == 0 {
		return errors.New("no event came through")
	}
	slices.Sort(took)
	d.p50, d.p99 = append(d.p50, took[len(took)/2]), append(d.p99, took[len(took)*99/100])
	return nil
}
