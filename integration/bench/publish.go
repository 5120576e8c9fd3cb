package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cloudevents"
)

// load is who publishes: so many at once, each with one batch in flight.
type load struct{ publishers, batch int }

func (l load) String() string {
	return fmt.Sprintf("%d publishers, batches of %d", l.publishers, l.batch)
}

const source = "/bench"

// afterBusy is how long a publisher waits when the middleware had too much.
const afterBusy = 20 * time.Millisecond

// overGRPC publishes over one gRPC stream a publisher.
func (m *mesh) overGRPC(name, topic string, l load, pids map[string]int) *contender {
	c := &contender{name: name, pids: pids, ops: m.ops, id: fmt.Sprint(l.batch)}
	for p := range l.publishers {
		var stream grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]
		req := &eventsv1.PublishStreamRequest{Namespace: m.r.ns, Topic: topic, OmitPositions: true}
		data := bytes.Repeat([]byte{'x'}, m.r.size)
		for i := range l.batch {
			req.Events = append(req.Events, &cev1.CloudEvent{Id: fmt.Sprintf("p%d-%d", p, i), Source: source, SpecVersion: "1.0", Type: "bench",
				Data: &cev1.CloudEvent_BinaryData{BinaryData: data}})
		}
		c.workers = append(c.workers, func(ctx context.Context) (int, error) {
			if stream == nil || stream.Context().Err() != nil {
				var err error
				if stream, err = eventsv1.NewEventServiceClient(m.conn).PublishStream(m.credentials(ctx)); err != nil {
					return 0, err
				}
			}
			if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
			resp, err := stream.Recv()
			if err != nil {
				return 0, err
			}
			if len(resp.Failed) > 0 {
				if c := codes.Code(resp.Failed[0].Error.Code); c != codes.Unavailable && c != codes.ResourceExhausted { //nolint:gosec // a code
					return 0, fmt.Errorf("an event was refused: %s", resp.Failed[0].Error.Message)
				}
				wait(ctx, afterBusy)
			}
			return int(resp.Count) - len(resp.Failed), nil
		})
	}
	return c
}

// pipelined publishes over one gRPC stream in messages of one event, so many in
// flight.
func (m *mesh) pipelined(name, topic string, inFlight int, pids map[string]int) *contender {
	c := &contender{name: name, pids: pids, ops: m.ops, id: "pipelined"}
	var stream grpc.BidiStreamingClient[eventsv1.PublishStreamRequest, eventsv1.PublishStreamResponse]
	data := bytes.Repeat([]byte{'x'}, m.r.size)
	req := &eventsv1.PublishStreamRequest{OmitPositions: true, Events: []*cev1.CloudEvent{{Id: "pipelined", Source: source, SpecVersion: "1.0", Type: "bench",
		Data: &cev1.CloudEvent_BinaryData{BinaryData: data}}}}
	free := 0
	c.workers = append(c.workers, func(ctx context.Context) (int, error) {
		if stream == nil || stream.Context().Err() != nil {
			var err error
			if stream, err = eventsv1.NewEventServiceClient(m.conn).PublishStream(m.credentials(ctx)); err != nil {
				return 0, err
			}
			free = inFlight
			if err := stream.Send(&eventsv1.PublishStreamRequest{Namespace: m.r.ns, Topic: topic, OmitPositions: true}); err != nil {
				return 0, err
			}
		}
		for ; free > 0; free-- {
			if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
		}
		resp, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		free += int(resp.Count)
		return int(resp.Count) - len(resp.Failed), nil
	})
	return c
}

// overHTTP publishes batches over HTTP, a kept connection a publisher.
func (m *mesh) overHTTP(name, topic string, l load, pids map[string]int) *contender {
	c := &contender{name: name, pids: pids, ops: m.ops, id: fmt.Sprint(l.batch)}
	transport := &http.Transport{MaxIdleConnsPerHost: l.publishers}
	client := &http.Client{Transport: transport}
	data := strings.Repeat("x", m.r.size)
	for p := range l.publishers {
		var batch []map[string]string
		for i := range l.batch {
			batch = append(batch, map[string]string{"specversion": "1.0", "id": fmt.Sprintf("h%d-%d", p, i), "source": source, "type": "bench", "datacontenttype": "text/plain", "data": data})
		}
		body, err := json.Marshal(batch)
		c.workers = append(c.workers, func(ctx context.Context) (int, error) {
			if err != nil {
				return 0, err
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+m.http+"/v1/"+m.r.ns+"/topics/"+topic, bytes.NewReader(body))
			if err != nil {
				return 0, err
			}
			req.Header.Set("Content-Type", cloudevents.TypeBatch)
			req.Header.Set("Authorization", "Bearer "+m.key)
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil {
				return 0, err
			}
			switch resp.StatusCode {
			case http.StatusOK:
				return l.batch, nil
			case http.StatusTooManyRequests, http.StatusServiceUnavailable:
				wait(ctx, afterBusy)
				return 0, nil
			}
			return 0, fmt.Errorf("%s: %s", resp.Status, answer)
		})
	}
	return c
}

// nativeMessages are what the mesh would write: the CloudEvents attributes as
// properties.
func nativeMessages(topic string, p int, l load, size int) []*primitive.Message {
	out := make([]*primitive.Message, l.batch)
	for i := range out {
		m := primitive.NewMessage(topic, bytes.Repeat([]byte{'x'}, size))
		for k, v := range map[string]string{"CE_id": fmt.Sprintf("n%d-%d", p, i), "CE_source": source, "CE_specversion": "1.0", "CE_type": "bench"} {
			m.WithProperty(k, v)
		}
		out[i] = m
	}
	return out
}

// nativeProducers are RocketMQ's own client, with calls that wait and with calls
// that do not; both have as many batches in flight as there are publishers.
func nativeProducers(names, topic string, l load, size int, pids map[string]int) (sync, async *contender, stop func() error, err error) {
	primitive.PanicHandler = func(any) {} // a time-out of its asynchronous calls would end the process
	p, err := rocketmq.NewProducer(producer.WithNameServer([]string{names}), producer.WithRetry(0), producer.WithGroupName("bench-"+fmt.Sprint(os.Getpid())),
		producer.WithQueueSelector(producer.NewRoundRobinQueueSelector()), producer.WithCompressMsgBodyOverHowmuch(1<<30))
	if err != nil {
		return nil, nil, nil, err
	}
	if err := p.Start(); err != nil {
		return nil, nil, nil, err
	}
	check := func(ctx context.Context, res *primitive.SendResult, err error) (int, error) {
		if err != nil && strings.Contains(err.Error(), "broker busy") {
			wait(ctx, afterBusy)
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if res.Status != primitive.SendOK {
			return 0, fmt.Errorf("the send's status is %d", res.Status)
		}
		return l.batch, nil
	}
	sync = &contender{name: "rocketmq-client-go, SendSync", pids: pids}
	async = &contender{name: "rocketmq-client-go, SendAsync", pids: pids}
	for i := range l.publishers {
		messages := nativeMessages(topic, i, l, size)
		sync.workers = append(sync.workers, func(ctx context.Context) (int, error) {
			res, err := p.SendSync(ctx, messages...)
			return check(ctx, res, err)
		})
		async.workers = append(async.workers, func(ctx context.Context) (n int, err error) {
			done := make(chan struct{})
			if err := p.SendAsync(ctx, func(_ context.Context, res *primitive.SendResult, serr error) {
				n, err = check(ctx, res, serr)
				close(done)
			}, messages...); err != nil {
				return 0, err
			}
			select {
			case <-done:
				return n, err
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		})
	}
	return sync, async, p.Shutdown, nil
}

// publishRocketMQ compares publishing through a proxy with RocketMQ's own client.
func publishRocketMQ(ctx context.Context, r *run) error {
	names, broker, err := r.rocketmq(ctx)
	if err != nil {
		return err
	}
	m, err := r.startMesh(ctx, "publish-rocketmq", filepath.Join(r.dir, "publish-rocketmq"))
	if err != nil {
		return err
	}
	defer m.end()
	if err := m.apply(ctx, rocketYAML(names, "mesh", "native")); err != nil {
		return err
	}
	through := map[string]int{"proxy": m.proxy.PID(), "broker": broker}
	native := map[string]int{"broker": broker}
	r.printf("  both: 8 queues, flushed to disk before the answer, no compression, no linger; the proxy sends what waits for a queue together, at most 256 events\n")
	for _, l := range []load{{64, 1}, {64, 16}, {32, 64}} {
		r.printf(" %v\n", l)
		sync, async, stop, err := nativeProducers(names, r.ns+"_native", l, r.size, native)
		if err != nil {
			return err
		}
		overGRPC := m.overGRPC("weft, gRPC streams", "mesh", l, through)
		all := []*contender{sync, async, overGRPC}
		if l.batch == 1 {
			all = append(all, m.pipelined("weft, one gRPC stream, 1024 events in flight", "mesh", 1024, through))
		}
		overHTTP := m.overHTTP("weft, HTTP batch", "mesh", l, through)
		if l.batch > 1 {
			all = append(all, overHTTP)
		}
		err = r.compare(ctx, all...)
		if serr := stop(); err == nil {
			err = serr
		}
		if err != nil {
			return err
		}
		rival := best(sync, async)
		aim := ""
		if l.batch == 64 {
			aim = " (aim: at least 0.7)"
		}
		r.note("publish, RocketMQ, %v: gRPC %s of the best of its own client%s", l, spread(ratio(overGRPC, rival), "%.2f"), aim)
		if l.batch > 1 {
			if aim != "" {
				aim = " (aim: at least 0.5)"
			}
			r.note("publish, RocketMQ, %v: HTTP %s of the best of its own client%s", l, spread(ratio(overHTTP, rival), "%.2f"), aim)
		}
	}
	return nil
}

// rocketYAML is an EventStore with topics.
func rocketYAML(names string, topics ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: main}\nspec: {rocketmq: {name_servers: [%q]}}\n", names)
	for _, t := range topics {
		fmt.Fprintf(&b, "---\napiVersion: weft/v1alpha1\nkind: Topic\nmetadata: {namespace: NS, name: %s}\nspec: {store: main, partitions: 8, needs: {durability: disk}}\n", t)
	}
	return b.String()
}

const embeddedYAML = `apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: main}
spec: {embedded: {}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: NS, name: mesh}
spec: {store: main, retention: {max_bytes: 4294967296}}
`

// openEngine opens Pebble as the embedded store does.
func openEngine(dir string) (*pebble.DB, error) {
	return pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest, MemTableSize: 32 << 20, MemTableStopWritesThreshold: 4, L0CompactionThreshold: 4, Logger: silent{}})
}

type silent struct{}

func (silent) Infof(string, ...any)              {}
func (silent) Errorf(string, ...any)             {}
func (silent) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// engine writes the same bytes into Pebble itself, which syncs the commits of
// all publishers together. keep bounds what stays on the disk.
func engine(db *pebble.DB, l load, size int) *contender {
	c := &contender{name: "Pebble itself, commit with sync"}
	var next atomic.Uint64
	value := bytes.Repeat([]byte{'x'}, size+64) // and the attributes
	for range l.publishers {
		c.workers = append(c.workers, func(context.Context) (int, error) {
			b := db.NewBatch()
			at := next.Add(uint64(l.batch)) //nolint:gosec // small
			for i := range l.batch {
				if err := b.Set(fmt.Appendf(nil, "r%016x", at+uint64(i)), value, nil); err != nil { //nolint:gosec // small
					return 0, err
				}
			}
			return l.batch, b.Commit(pebble.Sync)
		})
	}
	return c
}

// publishEmbedded compares publishing into the embedded store with its engine,
// on the disk, where syncs bind, and in memory, where the CPU does.
func publishEmbedded(ctx context.Context, r *run) error {
	for _, place := range []struct{ name, parent string }{{"on disk", r.dir}, {"in memory (tmpfs)", memory}} {
		dir, err := os.MkdirTemp(place.parent, "weft-bench-")
		if err != nil {
			r.printf(" %s: left out: %v\n", place.name, err)
			continue
		}
		err = publishEmbeddedIn(ctx, r, place.name, dir)
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// memory is a file system without a disk.
const memory = "/dev/shm"

func publishEmbeddedIn(ctx context.Context, r *run, place, dir string) error {
	m, err := r.startMesh(ctx, "publish-embedded"+filepath.Base(dir), filepath.Join(dir, "proxy"))
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
	pids := map[string]int{"proxy": m.proxy.PID()}
	for _, l := range []load{{64, 1}, {64, 16}} {
		r.printf(" %s, %v; both: acknowledged after sync, no linger\n", place, l)
		alone, overGRPC, overHTTP := engine(db, l, r.size), m.overGRPC("weft, gRPC streams", "mesh", l, pids), m.overHTTP("weft, HTTP batch", "mesh", l, pids)
		all := []*contender{alone, overGRPC}
		if l.batch == 1 {
			all = append(all, m.pipelined("weft, one gRPC stream, 1024 events in flight", "mesh", 1024, pids))
		}
		if l.batch > 1 {
			all = append(all, overHTTP)
		}
		if err := r.compare(ctx, all...); err != nil {
			return err
		}
		aim := ""
		if place == "on disk" {
			aim = " (aim: at least 0.7 where sync binds)"
			if l.batch == 1 {
				aim = fmt.Sprintf(" (aim: at least 20,000 where the engine has 40,000; here %.0f and %.0f)", median(overGRPC.rates), median(alone.rates))
			}
		}
		r.note("publish, embedded %s, %v: gRPC %s of the engine%s", place, l, spread(ratio(overGRPC, alone), "%.2f"), aim)
		if l.batch > 1 {
			aim = ""
			if place != "on disk" {
				aim = " (aim: at most 3)"
			}
			r.note("publish, embedded %s, %v: the proxy's CPU %s µs an event above the engine's%s", place, l, spread(more(overGRPC, "proxy", alone, own), "%.1f"), aim)
		}
	}
	return nil
}
