package kafka

import (
	"bytes"
	"compress/gzip"
	"context"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
)

// zipped is a record as other producers send it: compressed.
func zipped(t *testing.T, value []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	r := record{value: value, headers: []byte{0}}
	if _, err := z.Write(r.append(nil, 0)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// produceZipped has a batch of one compressed record kept.
func produceZipped(ctx context.Context, t *testing.T, s *Store, topic string, record []byte) {
	t.Helper()
	now := s.op.Clock.Now().UnixMilli()
	batch := (&kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, Attributes: 1, FirstTimestamp: now, MaxTimestamp: now,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: 1, Records: record}).AppendTo(nil)
	kbin.AppendInt32(batch[:batchLengthAt], int32(len(batch)-batchLengthAt-4)) //nolint:gosec // it is small
	kbin.AppendUint32(batch[:batchCRCAt], crc32.Checksum(batch[batchCRCAt+4:], castagnoli))
	at, err := s.topic(ctx, topic, true)
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 5000
	req.Topics = []kmsg.ProduceRequestTopic{{Topic: topic, TopicID: at.id, Partitions: []kmsg.ProduceRequestTopicPartition{{Records: batch}}}}
	resp, err := req.RequestWith(ctx, s.c)
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTooLargeToInflate: a batch of another producer that is small, and more than a proxy
// takes once it is decompressed, does not stop its partition: an event stands for it, to a
// group and to a tail, and those before and behind it come.
func TestTooLargeToInflate(t *testing.T) {
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	topic := prepare(ctx, t, s, 1)
	large := zipped(t, make([]byte, maxInflated))
	publish := func(id string) {
		t.Helper()
		if err := s.Publish(ctx, topic, one(id, ""), make([]store.Result, 1)); err != nil {
			t.Fatal(err)
		}
	}
	produceZipped(ctx, t, s, topic, large)
	publish("a")
	produceZipped(ctx, t, s, topic, zipped(t, []byte("small")))
	produceZipped(ctx, t, s, topic, large)
	produceZipped(ctx, t, s, topic, large)
	publish("b")
	name := func(m *store.Message) string {
		if why, ok := event.Lookup(m.Mesh, headerUnreadable); ok {
			return why[:strings.Index(why, " has")]
		}
		return m.ID + string(m.Data)
	}
	want := []string{"the batch of the offsets 0 to 0", "a", "0-2small", "the batch of the offsets 3 to 3", "the batch of the offsets 4 to 4", "b"}
	dst := make([]store.Message, 16)

	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < len(want) {
		n, err := sub.Fetch(ctx, dst)
		if err != nil {
			t.Fatalf("%v, after %q", err, got)
		}
		for i := range dst[:n] {
			got = append(got, name(&dst[i]))
			sub.Settle([]*store.Message{&dst[i]})
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("a group gets %q", got)
	}
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
	lag, err := s.Lag(ctx, topic, groupOf(topic))
	if err != nil || len(lag) != 1 || lag[0].Behind != 0 {
		t.Errorf("a group that is done with all is at %+v, %v", lag, err)
	}

	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, tail.Close)
	for got = nil; len(got) < len(want); {
		n, err := tail.Next(ctx, dst)
		if err != nil {
			t.Fatalf("%v, after %q", err, got)
		}
		for i := range dst[:n] {
			got = append(got, name(&dst[i]))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("a tail gets %q", got)
	}
}
