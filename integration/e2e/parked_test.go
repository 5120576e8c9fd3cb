package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestRetryOutlivesProxy: an event that waits for its retry waits in its store and not
// in the proxy: the proxy is killed meanwhile, and the event comes with the attempt that
// is next, at its time and not before.
func TestRetryOutlivesProxy(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(*testing.T) string{"embedded": func(*testing.T) string { return onDisk }, "kafka": onKafka, "rocketmq": onRocketMQ} {
		t.Run(name, func(t *testing.T) {
			main := store(t)
			t.Parallel()
			retryOutlives(t, main)
		})
	}
}

func retryOutlives(t *testing.T, main string) {
	const wait = time.Minute
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	p := m.proxy("p1")
	billing := subscriptionYAML("billing", "orders", fmt.Sprintf("retry: {max_attempts: 10, min_backoff: %s, max_backoff: %s}", wait, wait))
	billing = strings.Replace(billing, "ack_timeout: 60s", "ack_timeout: 5m", 1)
	m.apply(main + topicYAML("orders") + billing + policyYAML("shop") + identity)
	m.settled(1)

	// Both events are of one partition, the one that fails first: as long as the other
	// is not settled, the lag tells whether the store has it down that the first is.
	cl := m.client(key, p)
	var mu sync.Mutex
	var failed time.Time
	var killed atomic.Bool
	settles, fails := make(chan struct{}), make(chan struct{})
	again := make(chan client.Delivery, 10)
	ctx, cancel := context.WithCancel(m.ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- cl.Subscribe(ctx, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
			switch {
			case d.Event.ID == "fails" && !killed.Load():
				<-fails
				mu.Lock()
				defer mu.Unlock()
				failed = time.Now()
				return errors.New("it is to come later")
			case d.Event.ID == "waits" && !killed.Load():
				<-settles
				return client.ErrUnsettled
			case d.Event.ID == "fails":
				again <- d
			}
			return nil
		}, client.SubscribeOptions{})
	}()
	defer func() { cancel(); <-ended }()
	for _, id := range []string{"fails", "waits"} {
		_, err := cl.Publish(m.ctx, m.ns, "orders", event.Event{ID: id, Source: "/test", Type: "t", Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: "one"}}})
		m.must(err)
	}
	unsettled := func(want float64) {
		m.Helper()
		m.await(fmt.Sprint("unsettled events: ", want), func() error {
			got, err := metric(m.ctx, p.ops, fmt.Sprintf(`weft_proxy_delivery_lag_events{namespace=%q,subscription="billing",topic="orders"}`, m.ns))
			if err == nil && got != want {
				err = fmt.Errorf("there are %v", got)
			}
			return err
		})
	}
	unsettled(2)
	close(fails)
	unsettled(1)

	m.must(p.Kill())
	killed.Store(true)
	close(settles)
	p.start()
	select {
	case d := <-again:
		mu.Lock()
		defer mu.Unlock()
		if waited := time.Since(failed); d.Attempt != 2 || waited < wait*9/10 {
			t.Errorf("it came at attempt %d, %s after it failed; expected are attempt 2 and %s", d.Attempt, waited, wait)
		}
	case <-m.ctx.Done():
		t.Error("it does not come again")
	}
}
