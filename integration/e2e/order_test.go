package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// sequences is what consumers of an ordered subscription have seen, all together.
type sequences struct {
	*mesh
	mu       sync.Mutex
	done     map[string]int // the highest number that was settled, by key
	handled  int
	repeated int
	inverted []string
}

// handle is one delivery: its number may be the next of its key, or one that comes
// again, and none before it may be unsettled. One in forty fails.
func (s *sequences) handle(who string, d client.Delivery) error {
	key, no, _ := strings.Cut(d.Event.ID, "/")
	n, err := strconv.Atoi(no)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.done[key]+1 {
		s.inverted = append(s.inverted, fmt.Sprintf("%s came to %s after %d", d.Event.ID, who, s.done[key]))
	}
	if n <= s.done[key] {
		s.repeated++
	}
	if rand.N(40) == 0 {
		return errors.New("not this time")
	}
	s.done[key] = max(s.done[key], n)
	s.handled++
	return nil
}

// consumer joins at one proxy after the other, and leaves each after some deliveries.
func (s *sequences) consumer(ctx context.Context, who, key string, stay int, proxies []*proxy) {
	for i := 0; ctx.Err() == nil; i++ {
		jctx, leave := context.WithCancel(ctx)
		had := 0
		var mu sync.Mutex
		err := s.client(key, proxies[i%len(proxies)]).Subscribe(jctx, s.ns, "billing", func(_ context.Context, d client.Delivery) error {
			err := s.handle(who, d)
			mu.Lock()
			defer mu.Unlock()
			if had++; had == stay {
				leave()
			}
			return err
		}, client.SubscribeOptions{Credit: 16})
		leave()
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s: the subscription ended with %v", who, err)
			return
		}
	}
}

// total is how many events are settled, each counted once.
func (s *sequences) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.done {
		n += k
	}
	return n
}

// reach waits until n events are settled, and nothing came out of order.
func (s *sequences) reach(n int) {
	s.Helper()
	s.await(fmt.Sprintf("%d events to be settled", n), func() error {
		s.mu.Lock()
		wrong := s.inverted
		s.mu.Unlock()
		if len(wrong) > 0 {
			s.Fatalf("%d inversions: %v", len(wrong), wrong[:min(10, len(wrong))])
		}
		if got := s.total(); got < n {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
}

// TestOrderByKey: three consumers of an ordered subscription join and leave at all
// proxies, and some of what they get fails; a proxy is killed and starts again. No
// event of a key comes while one before it is unsettled, and all come.
func TestOrderByKey(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		store   func(*testing.T) string
		proxies int
	}{"rocketmq": {onRocketMQ, 3}, "embedded": {func(*testing.T) string { return onDisk }, 1}} {
		t.Run(name, func(t *testing.T) {
			const keys, each = 200, 30
			storeYAML := tc.store(t)
			m := newMesh(t, servers.SharedEtcd(t))
			key, identity := m.key("shop")
			var proxies []*proxy
			for i := range tc.proxies {
				proxies = append(proxies, m.proxy("p"+strconv.Itoa(i+1)))
			}
			m.apply(storeYAML + strings.ReplaceAll(topicYAML("orders"), "partitions: 2", "partitions: 6") +
				subscriptionYAML("billing", "orders", "ordering: by_key, on_exhausted: block, retry: {max_attempts: 3, min_backoff: 0.01s, max_backoff: 0.1s}") + policyYAML("shop") + identity)
			m.settled(tc.proxies)

			s := &sequences{mesh: m, done: map[string]int{}}
			ctx, stop := context.WithCancel(m.ctx)
			var running sync.WaitGroup
			t.Cleanup(func() { stop(); running.Wait() })
			for i := range 3 {
				at := append(append([]*proxy{}, proxies[i%len(proxies):]...), proxies[:i%len(proxies)]...)
				running.Go(func() { s.consumer(ctx, "c"+strconv.Itoa(i), key, 150+50*i, at) })
			}
			c := m.client(key, proxies[len(proxies)-1])
			publish := func(from, to int) {
				for n := from; n <= to; n++ {
					for k := 0; k < keys; k += 50 {
						var batch []event.Event
						for j := k; j < k+50; j++ {
							name := "k" + strconv.Itoa(j)
							e := textEvent(fmt.Sprintf("%s/%d", name, n), "x")
							e.Ext = event.With(e.Ext, event.AttrPartitionKey, name)
							batch = append(batch, e)
						}
						results, err := c.PublishBatch(m.ctx, m.ns, "orders", batch)
						m.must(err)
						for _, r := range results {
							m.must(r.Err)
						}
					}
				}
			}
			publish(1, each/2)
			s.reach(keys * each / 4)
			m.must(proxies[0].Kill())
			proxies[0].start()
			publish(each/2+1, each)
			s.reach(keys * each)
			stop()
			running.Wait()
			s.reach(keys * each)
			t.Logf("%d deliveries settled, %d repeated; %d inversions", s.handled, s.repeated, len(s.inverted))
		})
	}
}
