package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// stopped is what a proxy says when it has stopped.
var stopped = regexp.MustCompile(`msg=stopped took=(\S+)`)

// TestTerminated: on every store, a proxy is told to stop under load, with every kind
// of client: publishers over HTTP, gRPC and a stream, members, pulls that wait, tails
// and webhooks. It ends by itself within its bound, every session ends with it, and
// once it is back everything acknowledged has come to each Subscription.
func TestTerminated(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(*testing.T) string{"rocketmq": onRocketMQ, "embedded": func(*testing.T) string { return onDisk }} {
		t.Run(name, func(t *testing.T) { terminated(t, store(t)) })
	}
}

func terminated(t *testing.T, store string) {
	const bound = 20 * time.Second
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	secret := m.read(key)
	p := m.proxy("p1", "--push-allow", "127.0.0.0/8", "--drain-time", bound.String())
	logs := map[string]*history.Log{"member": history.New(), "pulled": history.New(), "pushed": history.New()}
	hook := webhook(t, newBox("the webhook"), func(e event.Event) int { logs["pushed"].Receive(e.ID, e.Data); return 0 })
	m.apply(store + topicYAML("orders") + subscriptionYAML("member", "orders", "") + subscriptionYAML("pulled", "orders", "") +
		subscriptionYAML("pushed", "orders", `push: {url: "`+hook+`"}`) + policyYAML("shop") + identity)
	m.settled(1)
	c := m.client(key, p)
	ctx, stop := context.WithCancel(m.ctx)
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()

	pause := func() { // while the proxy is away
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}

	// In, until each is acknowledged.
	var acked atomic.Int64
	pctx, stopPublishing := context.WithCancel(ctx)
	publish := func(name string, try func(event.Event) error) {
		running.Go(func() {
			for n := 0; pctx.Err() == nil; n++ {
				e := textEvent(fmt.Sprint(name, "-", n), "data of "+name)
				for _, l := range logs {
					l.Intend(e.ID, "", 0, e.Data)
				}
				for try(e) != nil {
					if pause(); ctx.Err() != nil {
						return
					}
				}
				for _, l := range logs {
					l.Told(e.ID, history.Acked)
				}
				acked.Add(1)
			}
		})
	}
	publish("http", func(e event.Event) error {
		h := http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {e.ID}, "Ce-Source": {e.Source}, "Ce-Type": {e.Type}, "Content-Type": {e.DataContentType}}
		code, answer, err := m.postBytes(http.DefaultClient, "http://"+p.http, "orders", "Bearer "+secret, h, e.Data)
		if err == nil && code != http.StatusOK {
			err = errors.New(answer)
		}
		return err
	})
	publish("grpc", func(e event.Event) error { _, err := c.Publish(ctx, m.ns, "orders", e); return err })
	pub := c.Publisher(m.ns, "orders", client.PublisherOptions{})
	publish("stream", func(e event.Event) error {
		pending, err := pub.Publish(ctx, e)
		if err == nil {
			_, err = pending.Wait(ctx)
		}
		return err
	})

	// Out, by clients that come again.
	running.Go(func() {
		_ = c.Subscribe(ctx, m.ns, "member", func(_ context.Context, d client.Delivery) error {
			logs["member"].Receive(d.Event.ID, d.Event.Data)
			return nil
		}, client.SubscribeOptions{})
	})
	for range 2 {
		running.Go(func() {
			for ctx.Err() == nil {
				got, err := c.Pull(ctx, m.ns, "pulled", client.PullOptions{MaxEvents: 100, Wait: time.Minute})
				if err != nil {
					pause()
					continue
				}
				var s client.Settlement
				for _, d := range got {
					logs["pulled"].Receive(d.Event.ID, d.Event.Data)
					s.Ack = append(s.Ack, d.ID)
				}
				_, _ = c.Settle(ctx, m.ns, "pulled", s) // what is not settled comes again
			}
		})
	}
	flows := func(n int64) {
		t.Helper()
		goal := acked.Load() + n
		m.await("events that flow", func() error {
			if got := acked.Load(); got < goal {
				return fmt.Errorf("%d are acknowledged, wanted are %d", got, goal)
			}
			return nil
		})
	}
	flows(100)

	// And sessions that end with the proxy: tails, and one that has nothing to do.
	r := m.dial(p.grpc, secret, nil)
	tail := r.into(newBox("the tail"), tailOf("orders"))
	sse := m.events(http.DefaultClient, "http://"+p.http, "orders", "Bearer "+secret)
	idle, err := r.Subscribe(r.ctx)
	m.must(err)
	m.must(idle.Send(&eventsv1.SubscribeRequest{Message: &eventsv1.SubscribeRequest_Open{Open: func() *eventsv1.SubscribeOpen { o := subscription("member"); o.Namespace = m.ns; return o }()}}))
	_, err = idle.Recv() // it is open, without credit
	m.must(err)
	flows(20)

	if err := p.Stop(); err != nil || p.ExitStatus() != 0 {
		t.Errorf("it ended with %v and status %d", err, p.ExitStatus())
	}
	if err := <-tail; status.Code(err) != codes.Unavailable {
		t.Errorf("the tail ended with %v", err)
	}
	if _, err := idle.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a member without credit ended with %v", err)
	}
	<-sse.ended
	said := stopped.FindSubmatch(p.Output())
	if said == nil {
		t.Fatal("it does not say that it stopped")
	}
	took, err := time.ParseDuration(string(bytes.TrimSpace(said[1])))
	m.must(err)
	t.Logf("it stopped in %v, after %d events", took, acked.Load())
	if took >= bound-5*time.Second { // when sessions that last are cut
		t.Errorf("it took %v to stop: a session did not end by itself", took)
	}

	p.start()
	flows(50)
	stopPublishing()
	for name, l := range logs {
		m.await("what was acknowledged", func() error {
			if ids := l.Missing(3); len(ids) > 0 {
				return fmt.Errorf("%v have not come to %s", ids, name)
			}
			return nil
		})
		report := l.Check()
		t.Logf("%s: %s", name, report)
		for _, v := range report.Violations(report.Published, false) {
			t.Errorf("%s: %s", name, v)
		}
	}
}
