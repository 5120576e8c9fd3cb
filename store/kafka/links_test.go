package kafka

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
)

// heldBack is a hook that holds back the first answers to what is produced, each until it
// is let go.
type heldBack struct {
	mu    sync.Mutex
	hold  int // how many more
	held  chan struct{}
	letGo chan struct{}
}

func (h *heldBack) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	h.mu.Lock()
	hold := key == kmsg.Produce.Int16() && h.hold > 0
	if hold {
		h.hold--
	}
	h.mu.Unlock()
	if hold {
		h.held <- struct{}{}
		<-h.letGo
	}
}

// TestLinks: a partition whose batch is not answered holds no other up, as long as there
// are fewer than links; without load there is one link. A link that fails is not used
// again, and nothing is lost by it.
func TestLinks(t *testing.T) {
	h := &heldBack{held: make(chan struct{}), letGo: make(chan struct{})}
	extra = []kgo.Opt{kgo.WithHooks(h)}
	t.Cleanup(func() { extra = nil })
	s, topic := open(t, Options{Brokers: []string{servers.SharedKafka(t)}}, 0), servers.Namespace(t)
	shut(t, s.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 16}); err != nil {
		t.Fatal(err)
	}
	keys := map[int32]string{} // one of each partition
	for i := 0; len(keys) < 16; i++ {
		key := fmt.Sprint(i)
		keys[partitionOf(key, 16)] = key
	}
	links := func() []*link {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Clone(s.links)
	}
	publish := func(partition int32) error {
		return s.Publish(ctx, topic, one(fmt.Sprint(partition), keys[partition]), make([]store.Result, 1))
	}
	for p := range int32(16) {
		if err := publish(p); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(links()); n != 1 {
		t.Errorf("%d links for one event after the other", n)
	}
	h.mu.Lock()
	h.hold = maxLinks - 1
	h.mu.Unlock()
	var work sync.WaitGroup
	for p := range int32(maxLinks - 1) {
		work.Go(func() {
			if err := publish(p); err != nil {
				t.Errorf("partition %d: %v", p, err)
			}
		})
		select {
		case <-h.held:
		case <-ctx.Done():
			t.Fatalf("partition %d waits behind another", p)
		}
	}
	for p := int32(maxLinks); p < 16; p++ {
		if err := publish(p); err != nil {
			t.Errorf("partition %d waits behind another: %v", p, err)
		}
	}
	all := links()
	if len(all) != maxLinks {
		t.Fatalf("%d links, want %d", len(all), maxLinks)
	}
	// The first is held: it is not what fails below.
	for _, l := range all[1:] {
		l.c.Close()
	}
	for p := int32(maxLinks); p < 16; p++ {
		if err := publish(p); err != nil {
			t.Errorf("partition %d, when links have failed: %v", p, err)
		}
	}
	close(h.letGo)
	work.Wait()
	if now := links(); now[0] != all[0] || slices.ContainsFunc(now, func(l *link) bool { return slices.Contains(all[1:], l) }) {
		t.Error("links that have failed are kept, or the store's own client is not")
	}
}
