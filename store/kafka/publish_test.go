package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// TestPartition: a key goes where Kafka's own clients have it go.
func TestPartition(t *testing.T) {
	// Of org.apache.kafka.common.utils.Utils.murmur2, as its own tests have them.
	for key, want := range map[string]int32{"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107} {
		if got := int32(murmur2(key)); got != want { //nolint:gosec // Java has no unsigned numbers
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
	java := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	for n := 1; n < 40; n++ {
		key := strings.Repeat("k", n)
		if got, want := partitionOf(key, n), int32(java.Partition(&kgo.Record{Key: []byte(key)}, n)); got != want { //nolint:gosec // below 40
			t.Errorf("%q of %d partitions: %d, want %d", key, n, got, want)
		}
	}
}

// TestDone: what is settled above the committed offset comes back from the metadata,
// with holes between offsets, and as much of it as fits.
func TestDone(t *testing.T) {
	w := ackwindow.New(8192, 100)
	settled := map[int64]bool{}
	for i := range int64(8192) {
		n := w.Deliver(100 + 3*i)
		if i > 0 && i%2 == 0 {
			w.Done(n)
			settled[100+3*i] = true
		}
	}
	text := encodeDone(w, w.Commit(), nil)
	if len(text) > maxDone || len(text) < maxDone-8 {
		t.Errorf("it has %d bytes, of at most %d", len(text), maxDone)
	}
	o := ownership{done: decodeDone(text, w.Commit())}
	last := o.done[len(o.done)-1].last
	for i := range int64(8192) {
		at := 100 + 3*i
		if got := o.finished(at); got != (settled[at] && at <= last) {
			t.Fatalf("%d is finished: %v", at, got)
		}
	}
	// What an owner before has settled stays, as far as it was not delivered here, or not
	// settled here.
	w = ackwindow.New(8, 100)
	for i := range int64(4) {
		if n := w.Deliver(100 + i); i == 2 {
			w.Done(n)
		}
	}
	text = encodeDone(w, 100, []run{{90, 99}, {101, 102}, {104, 105}, {108, 109}})
	if got, want := decodeDone(text, 100), []run{{102, 102}, {104, 105}, {108, 109}}; !slices.Equal(got, want) {
		t.Errorf("with what was settled before: %v, want %v", got, want)
	}
	if text := encodeDone(ackwindow.New(8, 5), 5, nil); text != "" {
		t.Errorf("of nothing: %q", text)
	}
	for _, bad := range []string{"", "member-1", donePrefix + "!", donePrefix + "gA", donePrefix + "AQ"} {
		if got := decodeDone(bad, 5); got != nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// TestTopicTakesLess: a topic takes smaller batches than is usual, or its segments have room
// for no larger ones. What is small enough by itself is kept, and the publisher of what is not
// is told so.
func TestTopicTakesLess(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	// Brokers of version 4 take so small a segment under this name alone.
	for _, setting := range []string{"max.message.bytes", "internal.segment.bytes"} {
		topic := adopt(ctx, t, s, setting, "100000")
		var events []store.Outgoing
		for i := range 100 {
			events = append(events, one(fmt.Sprint("e", i), "")[0])
			events[i].Data = make([]byte, 5<<10)
		}
		if err := s.Publish(ctx, topic, events, make([]store.Result, len(events))); err != nil {
			t.Errorf("%s: 100 events of 5 KiB: %v", setting, err)
		}
		large := one("large", "")
		large[0].Data = make([]byte, 200<<10)
		if err := s.Publish(ctx, topic, large, make([]store.Result, 1)); fault.ClassOf(err) != fault.TooLarge {
			t.Errorf("%s: an event of 200 KiB: %v", setting, err)
		}
	}
}

// adopt makes a topic of one partition past the mesh, with a setting.
func adopt(ctx context.Context, t *testing.T, s *Store, setting, value string) (topic string) {
	t.Helper()
	topic = names.Physical(servers.Namespace(t), "less"+uuid.NewString()[:4])
	if _, err := s.adm.CreateTopic(ctx, 1, 1, map[string]*string{setting: &value}, topic); err != nil {
		t.Fatal(err)
	}
	// The broker hears of it a moment after the controller.
	for there := false; !there; {
		var err error
		if there, err = s.TopicExists(ctx, topic); err != nil {
			t.Fatal(err)
		}
	}
	return topic
}

// TestSealCompacted: a topic that is compacted, which takes nothing without a key, is sealed
// like any other.
func TestSealCompacted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	topic := adopt(ctx, t, s, "cleanup.policy", "compact")
	if err := s.Publish(ctx, topic, one("a", "k"), make([]store.Result, 1)); err != nil {
		t.Fatal(err)
	}
	at, err := s.Seal(ctx, topic, one("marker", "")[0].Event)
	if err != nil || len(at) != 1 || at[0].Offset != 1 {
		t.Fatalf("the marker is at %v: %v", at, err)
	}
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic, From: store.Start{After: []store.Position{{Partition: "0"}}}})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, tail.Close)
	dst := make([]store.Message, 1)
	if _, err := tail.Next(ctx, dst); err != nil || dst[0].ID != "marker" || dst[0].Pos != at[0] || len(dst[0].Ext) > 0 {
		t.Errorf("%+v is there: %v", dst[0], err)
	}
}

// TestQuota: a broker that has a client wait for its quota is busy, and not away.
func TestQuota(t *testing.T) {
	broker := servers.SharedKafka(t)
	t.Parallel() // it only waits
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s := open(t, Options{Brokers: []string{broker}}, 0)
	shut(t, s.Close)
	topic := prepare(ctx, t, s, 1)
	who := s.producerID()
	req := kmsg.NewPtrAlterClientQuotasRequest()
	req.Entries = []kmsg.AlterClientQuotasRequestEntry{{Entity: []kmsg.AlterClientQuotasRequestEntryEntity{{Type: "client-id", Name: &who}},
		Ops: []kmsg.AlterClientQuotasRequestEntryOp{{Key: "producer_byte_rate", Value: 5000}}}}
	if _, err := req.RequestWith(ctx, s.c); err != nil {
		t.Fatal(err)
	}
	// It has a client wait for up to eleven seconds: a batch is not tried for so long.
	var err error
	for i := 0; err == nil && ctx.Err() == nil; i++ {
		e := one(fmt.Sprint(i), "")
		e[0].Data = make([]byte, 900<<10)
		err = s.Publish(ctx, topic, e, make([]store.Result, 1))
	}
	if f := fault.From(err); f.Class != fault.Throttled || f.Reason != "store-busy" || f.RetryAfter <= 0 {
		t.Errorf("beyond its quota a publisher is told %v", err)
	}
}

// TestTurns: events without a key go to one partition after the other that has a leader:
// few at a time where they come one by one, more where the partition is busy, as many as a
// batch has room for where they come at once.
func TestTurns(t *testing.T) {
	s := &Store{out: sendqueue.New[record]("test", limits), senders: map[senderKey]*sender{}}
	hold := make(chan struct{})
	defer close(hold)
	for p := range int32(4) {
		key := senderKey{"busy", p}
		s.senders[key] = &sender{senderKey: key, Queue: s.out.Queue(func() { <-hold })}
		if _, err := s.out.Give([]outgoing{{To: s.senders[key].Queue}}); err != nil {
			t.Fatal(err)
		}
	}
	// turns publishes as many calls of n events of 1 KiB, and gives how many events each
	// partition got in a row.
	turns := func(name string, calls, n int) (out []string) {
		to := &topic{leaders: []int32{0, -1, 0, 0}}
		last, row := int32(-1), 0
		for range calls {
			all := make([]outgoing, n)
			for i := range all {
				all[i].Size = 1 << 10
			}
			for i := range all {
				at := s.keylessLocked(to, name, all[i].Size, turnOf(all))
				if at != last && row > 0 {
					out = append(out, fmt.Sprintf("%d of %d", row, last))
					row = 0
				}
				last = at
				row++
			}
		}
		return append(out, fmt.Sprintf("%d of %d", row, last))
	}
	for _, c := range []struct {
		name     string
		calls, n int
		want     []string
	}{
		{"idle", 200, 1, []string{"64 of 0", "64 of 2", "64 of 3", "8 of 0"}},
		{"idle", 2, 100, []string{"100 of 0", "100 of 2"}},
		{"idle", 1, 2000, []string{"976 of 0", "976 of 2", "48 of 3"}},
		{"busy", 600, 1, []string{"256 of 0", "256 of 2", "88 of 3"}},
		{"busy", 2, 900, []string{"900 of 0", "900 of 2"}},
	} {
		if got := turns(c.name, c.calls, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%s, %d calls of %d events: %v, want %v", c.name, c.calls, c.n, got, c.want)
		}
	}
}
