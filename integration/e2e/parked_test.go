package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
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

// TestRefusedIsDeadLetter: an event that waits for its retry, and that its retry topic does
// not take any more when it is due, is a dead letter. What waits with it comes as ever.
func TestRefusedIsDeadLetter(t *testing.T) {
	t.Parallel()
	main := onKafka(t)
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	p := m.proxy("p1")
	m.apply(main + topicYAML("orders", "dead") + subscriptionYAML("billing", "orders", "dead_letter_topic: dead, retry: {max_attempts: 100, min_backoff: 3s, max_backoff: 3s}") + policyYAML("shop") + identity)
	m.settled(1)
	var sub struct{ Metadata struct{ UID string } }
	out, err := m.administer("", "get", "subscription", "billing", "-n", m.ns, "-o", "json")
	m.must(err)
	m.must(json.Unmarshal([]byte(out), &sub))
	c, err := kgo.NewClient(kgo.SeedBrokers(servers.SharedKafka(t)))
	m.must(err)
	defer c.Close()
	most := "4096"
	done, err := kadm.NewClient(c).AlterTopicConfigs(m.ctx, []kadm.AlterConfig{{Name: "max.message.bytes", Value: &most}}, names.RetryTopic(sub.Metadata.UID))
	m.must(err)
	m.must(done[0].Err)

	cl := m.client(key, p)
	again := make(chan struct{})
	came := sync.OnceFunc(func() { close(again) })
	ctx, cancel := context.WithCancel(m.ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- cl.Subscribe(ctx, m.ns, "billing", func(_ context.Context, d client.Delivery) error {
			if d.Event.ID == "small" && d.Attempt > 1 {
				came()
				return nil
			}
			return errors.New("it is to come later")
		}, client.SubscribeOptions{})
	}()
	defer func() { cancel(); <-ended }()
	for id, data := range map[string]string{"large": strings.Repeat("x", 32<<10), "small": "data"} {
		_, err = cl.Publish(m.ctx, m.ns, "orders", textEvent(id, data))
		m.must(err)
	}
	m.await("the large one is a dead letter", func() error {
		out, err := m.weft("", "dlq", "list", "--proxy", p.grpc, "--api-key-file", key, "-n", m.ns, "-s", "billing", "--reason", "the retry topic does not take it")
		if err == nil && !strings.Contains(out, "large") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if n := p.metric(fmt.Sprintf(`weft_proxy_delivery_dead_letters_total{cause="refused",namespace=%q,subscription="billing"}`, m.ns)); n < 1 {
		t.Errorf("%v dead letters count as refused", n)
	}
	select {
	case <-again:
	case <-m.ctx.Done():
		t.Error("the small one does not come again")
	}
}
