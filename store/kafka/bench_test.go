package kafka

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// BenchmarkPublish is publishing, one event a call, beside franz-go's own producer
// with the same durability and neither compression nor linger.
func BenchmarkPublish(b *testing.B) {
	broker := servers.SharedKafka(b)
	s := open(b, Options{Brokers: []string{broker}}, 0)
	defer func() { _ = s.Close(context.Background()) }()
	topic := servers.Namespace(b)
	if err := s.EnsureTopic(b.Context(), store.TopicSpec{Name: topic}); err != nil {
		b.Fatal(err)
	}
	native, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ProducerLinger(0), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	defer native.Close()
	for _, size := range []int{1 << 10, 16 << 10} {
		data := bytes.Repeat([]byte{'x'}, size)
		for _, publishers := range []int{1, 16, 256} {
			for name, publish := range map[string]func(context.Context) error{
				"weft": func(ctx context.Context) error {
					return s.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: "i", Source: "/s", Type: "t", Data: data}}}, make([]store.Result, 1))
				},
				"franz-go": func(ctx context.Context) error {
					return native.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: data, Headers: []kgo.RecordHeader{{Key: "ce_specversion", Value: []byte("1.0")}, {Key: "ce_id", Value: []byte("i")}, {Key: "ce_source", Value: []byte("/s")}, {Key: "ce_type", Value: []byte("t")}}}).FirstErr()
				},
			} {
				b.Run(fmt.Sprintf("%d/%d/%s", size, publishers, name), func(b *testing.B) {
					b.ReportAllocs()
					b.SetBytes(int64(size))
					var left atomic.Int64
					left.Store(int64(b.N))
					var wg sync.WaitGroup
					for range publishers {
						wg.Go(func() {
							for left.Add(-1) >= 0 {
								if err := publish(b.Context()); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
				})
			}
		}
	}
}
