package kafka

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
)

// fetchesRead counts brokers' answers to fetches that have events, and their bytes.
type fetchesRead struct{ answers, bytes atomic.Int64 }

func (c *fetchesRead) OnBrokerRead(_ kgo.BrokerMetadata, key int16, n int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.Fetch) && n > 1000 {
		c.answers.Add(1)
		c.bytes.Add(int64(n))
	}
}

// TestFetchedOnce: what brokers send of a backlog is not dropped and sent again because a
// consumer takes it in smaller parts, of small events or of large ones, and all of it
// comes. An answer has several batches, however large they are: of one that has no room in
// an answer brokers send a part, which counts for nothing.
func TestFetchedOnce(t *testing.T) {
	broker := servers.SharedKafka(t)
	var read fetchesRead
	extra = []kgo.Opt{kgo.WithHooks(&read)}
	t.Cleanup(func() { extra = nil })
	s := open(t, Options{Brokers: []string{broker}}, 0)
	shut(t, s.Close)
	for _, c := range []struct {
		name          string
		size, n, call int
		together      bool // what is published by one call is one batch
	}{{"small", 100, 60000, 100, false}, {"1 KiB", 1 << 10, 20000, 100, false}, {"large", 64 << 10, 600, 100, false}, {"batches", 16 << 10, 2400, 60, true}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, topic := t.Context(), servers.Namespace(t)
			if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 4}); err != nil {
				t.Fatal(err)
			}
			data, wire := bytes.Repeat([]byte{'x'}, c.size), 0
			for i := 0; i < c.n; i += c.call {
				all := make([]store.Outgoing, c.call)
				for j := range all {
					id := fmt.Sprint(i + j)
					key := id
					if c.together {
						key = fmt.Sprint(i / c.call)
					}
					all[j] = store.Outgoing{Key: key, Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: data}}
					wire += c.size + 70
				}
				if err := s.Publish(ctx, topic, all, make([]store.Result, len(all))); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.EnsureGroup(ctx, topic, "g", store.Start{}); err != nil {
				t.Fatal(err)
			}
			sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: "g"})
			if err != nil {
				t.Fatal(err)
			}
			shut(t, sub.Close)
			read.answers.Store(0)
			read.bytes.Store(0)
			dst, got := make([]store.Message, 50), 0
			for got < c.n {
				k, err := sub.Fetch(ctx, dst)
				if err != nil {
					t.Fatal(err)
				}
				settled := make([]*store.Message, k)
				for i := range k {
					settled[i] = &dst[i]
				}
				if stale := sub.Settle(settled); stale > 0 {
					t.Fatalf("%d are stale", stale)
				}
				got += k
			}
			sent, answers := float64(read.bytes.Load())/float64(wire), int(read.answers.Load())
			t.Logf("%.2f of their bytes, in %d answers", sent, answers)
			if got != c.n || sent > 1.35 {
				t.Errorf("%d of %d came, for %.2f of their bytes", got, c.n, sent)
			}
			if batches := c.n / c.call; c.together && answers > batches/2 {
				t.Errorf("%d batches came in %d answers", batches, answers)
			}
		})
	}
}

// TestHeldBack: a partition of which enough waits here is fetched again once there is
// room, whenever that is: also where there is room before the client has heard that it
// is to wait, and where the partition has gone to another member and come back meanwhile.
func TestHeldBack(t *testing.T) {
	s := open(t, Options{Brokers: []string{"127.0.0.1:1"}}, 4*maxBuffered) // nothing is sent
	shut(t, s.Close)
	x := &subscription{s: s, topic: "t", group: "g", commits: ackwindow.NewCommits(), owned: map[int32]*ownership{}, wake: make(chan struct{})}
	n := &session{sub: x, beat: make(chan struct{}, 1), hungry: make(chan struct{}, 1), c: s.c}
	n.life, n.end = context.WithCancel(t.Context())
	x.now = n
	over, end := context.WithCancel(t.Context())
	end()
	fetch := func() (n int) {
		t.Helper()
		dst := make([]store.Message, maxBuffered)
		n, err := x.Fetch(over, dst)
		if err != nil && n != 0 {
			t.Fatal(err)
		}
		return n
	}
	held := func() int { return len(n.c.PauseFetchPartitions(nil)["t"]) }
	assign := func() {
		t.Helper()
		if err := n.fetched(t.Context(), n.c, &kmsg.OffsetFetchResponse{Topics: []kmsg.OffsetFetchResponseTopic{{Topic: "t", Partitions: []kmsg.OffsetFetchResponseTopicPartition{{Partition: 3}}}}}); err != nil {
			t.Fatal(err)
		}
	}
	offset := int64(0)
	enough := func() {
		t.Helper()
		p := kgo.FetchTopicPartition{Topic: "t"}
		p.Partition = 3
		for range maxBuffered {
			p.Records = append(p.Records, &kgo.Record{Topic: "t", Partition: 3, Offset: offset, Value: []byte("v")})
			offset++
		}
		if !n.push(p) {
			t.Fatal("so many are not enough")
		}
	}

	assign()
	fetch()
	enough()
	n.steer([]int32{3})
	if held() != 1 {
		t.Fatal("the client fetches on")
	}
	if got := fetch(); got != maxBuffered || held() != 0 {
		t.Fatalf("%d messages were given, and the client holds back %d partitions", got, held())
	}

	// There is room before the client hears of it.
	enough()
	if got := fetch(); got != maxBuffered {
		t.Fatalf("%d messages were given", got)
	}
	n.steer([]int32{3})
	if held() != 0 {
		t.Fatal("a partition with nothing here is held back for good")
	}

	// It goes, and comes back.
	enough()
	n.steer([]int32{3})
	n.gone([]int32{3}, false)
	offset = 0
	assign()
	fetch()
	if held() != 0 {
		t.Fatal("a partition that came back is held back for good")
	}
}
