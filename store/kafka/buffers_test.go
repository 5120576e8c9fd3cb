package kafka

import (
	"runtime"
	"strconv"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/store"
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
