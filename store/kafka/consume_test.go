package kafka

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/store"
)

// TestHeldBack: a partition of which enough waits here is fetched again once there is
// room, whenever that is: also where there is room before the client has heard that it
// is to wait, and where the partition has gone to another member and come back meanwhile.
func TestHeldBack(t *testing.T) {
	s := open(t, Options{Brokers: []string{"127.0.0.1:1"}}, 0) // nothing is sent
	shut(t, s.Close)
	x := &subscription{s: s, topic: "t", group: "g", settle: make(chan struct{}, 1), owned: map[int32]*ownership{}, wake: make(chan struct{})}
	n := &session{sub: x, beat: make(chan struct{}, 1), c: s.c}
	n.life, n.end = context.WithCancel(t.Context())
	x.now = n
	over, end := context.WithCancel(t.Context())
	end()
	fetch := func() (n int) {
		t.Helper()
		dst := make([]store.Message, prefetch)
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
		for range prefetch {
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
	if got := fetch(); got != prefetch || held() != 0 {
		t.Fatalf("%d messages were given, and the client holds back %d partitions", got, held())
	}

	// There is room before the client hears of it.
	enough()
	if got := fetch(); got != prefetch {
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
