package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/cockroachdb/pebble/v2"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"
)

// What is consumed: events that are there already, by this many members, each
// with this credit. Every event is settled by itself.
const (
	backlog = 200_000
	members = 8
	credit  = 1024
)

// drain measures one run over a backlog of so many events: consume calls received with
// how many came, until it is told to stop. The first and last tenth are left out.
func (r *run) drain(ctx context.Context, c *contender, backlog int64, consume func(ctx context.Context, received func(n int)) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var got atomic.Int64
	var mu sync.Mutex
	var began, ended time.Time
	var before, after map[string]time.Duration
	enough := make(chan struct{})
	err := make(chan error, 1)
	go func() {
		err <- consume(ctx, func(n int) {
			total := got.Add(int64(n))
			first, last := total >= backlog/10 && total-int64(n) < backlog/10, total >= backlog*9/10 && total-int64(n) < backlog*9/10
			if !first && !last {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if first {
				began, before = time.Now(), c.spent()
			} else {
				ended, after = time.Now(), c.spent()
				close(enough)
			}
		})
	}()
	select {
	case <-enough:
		cancel()
		<-err
	case e := <-err:
		return fmt.Errorf("it ended after %d events: %w", got.Load(), e)
	case <-ctx.Done():
		<-err
		return fmt.Errorf("%d of %d events came in time", got.Load(), backlog)
	}
	mu.Lock()
	defer mu.Unlock()
	c.add(backlog*8/10, ended.Sub(began), before, after)
	return nil
}

// reader is one stream that receives events.
type reader struct {
	m            *mesh
	subscription string
	tail         bool // of the topic mesh, from its beginning
	client       bool // the Go client's, with its handler
	// late has every other event acknowledged with what comes after it, so that events
	// are never settled in the order in which they are kept.
	late     bool
	received func(list []*eventsv1.Delivery)
	one      func() // one was received, by the Go client
}

// run receives until ctx ends, and acknowledges each event by its id.
func (d reader) run(ctx context.Context) error {
	if d.client {
		return d.byClient(ctx)
	}
	st, err := eventsv1.NewEventServiceClient(d.m.conn).Subscribe(d.m.credentials(ctx))
	if err != nil {
		return err
	}
	open := &eventsv1.SubscribeOpen{Namespace: d.m.r.ns, Credit: credit, Source: &eventsv1.SubscribeOpen_Subscription{Subscription: d.subscription}}
	if d.tail {
		open.Source = &eventsv1.SubscribeOpen_Tail{Tail: &eventsv1.Tail{Topics: []string{"mesh"}, From: &eventsv1.Tail_Beginning{Beginning: true}}}
	}
	if err := st.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: open}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var held []uint64
	for {
		resp, err := st.Recv()
		if err != nil {
			return err
		}
		list := resp.GetDeliveries().GetDeliveries()
		if len(list) == 0 {
			continue
		}
		ids := held
		held = nil
		for i, x := range list {
			if d.late && i%2 == 0 {
				held = append(held, x.Id)
			} else {
				ids = append(ids, x.Id)
			}
		}
		more := &eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Ack{Ack: &eventsv1.Ack{Ids: ids}}}
		if d.tail {
			more.Message = &eventsv1.SubscribeRequest_Credit{Credit: &eventsv1.Credit{Deliveries: uint32(len(list))}} //nolint:gosec // small
		}
		if err := st.Send(more); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		d.received(list)
	}
}

// through drains the backlog with several readers.
func (m *mesh) through(ctx context.Context, c *contender, backlog int64, readers int, how reader) error {
	if m.r.profiles != "" {
		go m.r.profile(ctx, c)
	}
	return m.r.drain(ctx, c, backlog, func(ctx context.Context, received func(int)) error {
		how.m, how.received, how.one = m, func(list []*eventsv1.Delivery) { received(len(list)) }, func() { received(1) }
		failed := make(chan error, readers)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(ctx)
		for range readers {
			wg.Go(func() {
				failed <- how.run(ctx)
				cancel()
			})
		}
		wg.Wait()
		cancel()
		return <-failed
	})
}

// fill publishes a backlog, and a tenth more.
func (m *mesh) fill(ctx context.Context, topic string, backlog int64) error {
	c := m.overGRPC("fill", topic, load{16, 100}, nil)
	var left atomic.Int64
	left.Store(backlog + backlog/10)
	failed := make(chan error, len(c.workers))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, w := range c.workers {
		wg.Go(func() {
			for left.Load() > 0 {
				n, err := w(ctx)
				if err != nil {
					failed <- err
					return
				}
				left.Add(int64(-n))
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func subscriptionsYAML(rounds int) string {
	var b strings.Builder
	for i := range rounds {
		fmt.Fprintf(&b, "---\napiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: round%d}\nspec: {topics: [mesh], start: beginning, max_in_flight: 16384}\n", i)
	}
	return b.String()
}

// consumeRocketMQ compares receiving through a proxy, every event acknowledged by
// itself, with RocketMQ's own client, which acknowledges every message to
// itself and commits an offset every 5 s.
func consumeRocketMQ(ctx context.Context, r *run) error {
	names, broker, err := r.rocketmq(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "consume-rocketmq", filepath.Join(r.dir, "consume-rocketmq"))
	if err != nil {
		return err
	}
	defer m.end()
	yaml := strings.ReplaceAll(rocketYAML(names, "mesh"), "name: mesh}\nspec: {store: main", "name: mesh}\nspec: {store: main, physical_name: "+strings.ReplaceAll(r.ns, "-", "_")+"_consume")
	if err := m.apply(ctx, yaml+subscriptionsYAML(r.rounds)); err != nil {
		return err
	}
	if err := m.fill(ctx, "mesh", backlog); err != nil {
		return err
	}
	native := &contender{name: "rocketmq-client-go, PushConsumer", pids: map[string]int{"broker": broker}}
	weft := &contender{name: "weft, gRPC streams", pids: map[string]int{"proxy": m.proxy.PID(), "broker": broker}, ops: m.ops, id: "consume"}
	for i := range r.rounds {
		if err := r.drain(ctx, native, backlog, func(ctx context.Context, received func(int)) error {
			return nativeConsumer(ctx, names, strings.ReplaceAll(r.ns, "-", "_")+"_consume", fmt.Sprintf("%s-native-%d", r.ns, i), received)
		}); err != nil {
			return fmt.Errorf("%s: %w", native.name, err)
		}
		if err := m.through(ctx, weft, backlog, members, reader{subscription: fmt.Sprintf("round%d", i)}); err != nil {
			return fmt.Errorf("%s: %w", weft.name, err)
		}
	}
	r.printf("  %d events there already, %d members with credit %d; 8 queues\n", backlog, members, credit)
	r.report(native, weft)
	r.note("consume, RocketMQ, single acks: gRPC %s of its own client", spread(ratio(weft, native), "%.2f"))
	return nil
}

// nativeConsumer consumes with RocketMQ's own client until ctx ends.
func nativeConsumer(ctx context.Context, names, topic, group string, received func(int)) error {
	c, err := rocketmq.NewPushConsumer(consumer.WithNameServer([]string{names}), consumer.WithGroupName(group), consumer.WithInstance(group),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset), consumer.WithConsumeMessageBatchMaxSize(64), consumer.WithPullBatchSize(64))
	if err != nil {
		return err
	}
	if err := c.Subscribe(topic, consumer.MessageSelector{}, func(_ context.Context, msgs ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		received(len(msgs))
		return consumer.ConsumeSuccess, nil
	}); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	<-ctx.Done()
	return c.Shutdown()
}

// consumeEmbedded compares receiving from the embedded store with a scan of its
// engine that makes its place durable every 20 ms.
func consumeEmbedded(ctx context.Context, r *run) error {
	dir, err := os.MkdirTemp(r.dir, "consume-")
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "consume-embedded", filepath.Join(dir, "proxy"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, embeddedYAML+subscriptionsYAML(r.rounds)); err != nil {
		return err
	}
	if err := m.fill(ctx, "mesh", backlog); err != nil {
		return err
	}
	db, err := openEngine(filepath.Join(dir, "engine"))
	if err != nil {
		return err
	}
	defer db.Close()
	value := bytes.Repeat([]byte{'x'}, r.size+64)
	for at := 0; at < backlog+backlog/10; {
		b := db.NewBatch()
		for range 1000 {
			if err := b.Set(fmt.Appendf(nil, "r%016x", at), value, nil); err != nil {
				return err
			}
			at++
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			return err
		}
	}
	alone := &contender{name: "Pebble itself, a scan"}
	weft := &contender{name: "weft, gRPC streams", pids: map[string]int{"proxy": m.proxy.PID()}, ops: m.ops, id: "consume-embedded"}
	for i := range r.rounds {
		if err := r.drain(ctx, alone, backlog, func(ctx context.Context, received func(int)) error { return scan(ctx, db, received) }); err != nil {
			return fmt.Errorf("%s: %w", alone.name, err)
		}
		if err := m.through(ctx, weft, backlog, members, reader{subscription: fmt.Sprintf("round%d", i)}); err != nil {
			return fmt.Errorf("%s: %w", weft.name, err)
		}
	}
	r.printf("  %d events there already, %d members with credit %d\n", backlog, members, credit)
	r.report(alone, weft)
	r.note("consume, embedded, single acks: gRPC %s of a scan of the engine", spread(ratio(weft, alone), "%.2f"))
	return nil
}

func scan(ctx context.Context, db *pebble.DB, received func(int)) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte("r"), UpperBound: []byte("s")})
	if err != nil {
		return err
	}
	defer it.Close()
	n, last := 0, time.Now()
	for it.First(); it.Valid(); it.Next() {
		n += min(1, len(bytes.Clone(it.Value())))
		if n == 256 {
			if time.Since(last) > 20*time.Millisecond {
				if err := db.Set([]byte("place"), it.Key(), pebble.Sync); err != nil {
					return err
				}
				last = time.Now()
			}
			received(n)
			n = 0
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
