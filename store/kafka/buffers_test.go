package kafka

import (
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
)

// TestIdlePartitions: a partition to which large batches went holds no memory once
// nothing is on its way there.
func TestIdlePartitions(t *testing.T) {
	const partitions, size = 32, 900_000
	s, topic := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0), servers.Namespace(t)
	shut(t, s.Close)
	if err := s.EnsureTopic(t.Context(), store.TopicSpec{Name: topic, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	e := []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t", Data: make([]byte, size)}}}
	used := map[string]bool{}
	held := func() int64 {
		runtime.GC()
		runtime.GC() // what pools have is kept over one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) //nolint:gosec // it is small
	}
	before := held()
	for i := 0; i < partitions*20 && len(used) < partitions; i++ {
		e[0].Key = strconv.Itoa(i)
		res := make([]store.Result, 1)
		if err := s.Publish(t.Context(), topic, e, res); err != nil {
			t.Fatal(err)
		}
		used[res[0].Pos.Partition] = true
	}
	if more := held() - before; len(used) < partitions || more > partitions*size/4 {
		t.Errorf("%d partitions hold %d bytes", len(used), more)
	}
}

// TestHeadersCount: what waits here of a partition is bounded whatever of a record takes the
// memory: headers "weft_…" of another producer are kept with its event.
func TestHeadersCount(t *testing.T) {
	x := &subscription{s: &Store{}, topic: "t", commits: ackwindow.NewCommits(), owned: map[int32]*ownership{}, wake: make(chan struct{})}
	n := &session{sub: x, end: func() {}}
	o := &ownership{x: n, window: ackwindow.New(1024, 0), end: -1}
	x.owned[0], x.order = o, []*ownership{o}
	header := []kgo.RecordHeader{{Key: meshPrefix + "x", Value: make([]byte, 900_000)}}
	held := 0
	for enough := false; !enough && o.wantsMore() && held < 100; held++ {
		enough = n.push(kgo.FetchTopicPartition{Topic: "t", FetchPartition: kgo.FetchPartition{Records: []*kgo.Record{{Topic: "t", Offset: int64(held), Headers: header}}}})
	}
	if held > 2 {
		t.Errorf("%d records of 900 kB are held, which count as %d bytes", held, o.bytes)
	}
	if got, _ := x.fetchLocked(make([]store.Message, held)); got != held || o.bytes != 0 {
		t.Errorf("%d of %d are given, and %d bytes are left", got, held, o.bytes)
	}
}

// TestIdleSenders: what is known of topics to which nothing is sent any more is forgotten,
// and nothing of it is missed where it is: keys keep their order. What is under way is
// not.
func TestIdleSenders(t *testing.T) {
	s := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0)
	shut(t, s.Close)
	ctx, ns := t.Context(), servers.Namespace(t)
	topics := []string{ns + "-a", ns + "-b", ns + "-c"}
	for _, topic := range topics {
		if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 2}); err != nil {
			t.Fatal(err)
		}
	}
	publish := func(topic string) store.Position {
		t.Helper()
		res := make([]store.Result, 1)
		if err := s.Publish(ctx, topic, one("x", "k"), res); err != nil {
			t.Fatal(err)
		}
		return res[0].Pos
	}
	first := publish(topics[0])
	for _, topic := range topics[1:] {
		publish(topic)
	}
	kept := func() (topics, senders int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.topics), len(s.senders)
	}
	if topics, senders := kept(); topics != 3 || senders != 3 {
		t.Errorf("of topics in use %d are known, with %d senders", topics, senders)
	}
	free := make(chan struct{})
	busy := &sender{senderKey: senderKey{"busy", 0}}
	busy.Queue = s.out.Queue(func() { <-free; busy.Take(); busy.Take() })
	if _, err := s.out.Give([]outgoing{{Size: 1, To: busy.Queue}}); err != nil {
		t.Fatal(err)
	}
	defer close(free)
	s.mu.Lock()
	s.senders[busy.senderKey] = busy
	s.idle = time.Nanosecond
	s.mu.Unlock()
	for i := range uint64(20) {
		if at := publish(topics[0]); at.Partition != first.Partition || at.Offset != first.Offset+i+1 {
			t.Errorf("event %d of a key is at %+v", i, at)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.senders {
		if key.topic != topics[0] && key != busy.senderKey {
			t.Errorf("a sender is kept of %s, to which nothing is sent", key.topic)
		}
	}
	if s.senders[busy.senderKey] != busy {
		t.Error("a sender that has something to do is forgotten")
	}
	if s.topics[topics[1]] != nil || s.topics[topics[2]] != nil {
		t.Error("topics are known to which nothing is sent")
	}
}
