package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/registry/nacos"
)

// TestEveryWay: what is published in every way arrives in every way, at another
// proxy than it came to, with its data; what a webhook refuses becomes a dead
// letter with the reason; what is settled does not come again after a kill.
func TestEveryWay(t *testing.T) {
	t.Parallel()
	store, etcd := onRocketMQ(t), servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	m.startControlPlane(m.nacosFlags()...)
	key, identity := m.key("shop")
	p1 := m.proxy("p1", "--advertise", "127.0.0.1", "--push-allow", "127.0.0.0/8")
	p2 := m.proxy("p2", "--push-allow", "127.0.0.0/8")
	pushed, dead := newBox("the webhook"), newBox("the dead letters")
	var refusals atomic.Int64
	hook := webhook(t, pushed, takeAll)
	failing := webhook(t, newBox("the failing webhook"), func(event.Event) int { refusals.Add(1); return http.StatusTeapot })
	m.apply(store + topicYAML("orders", "dead") +
		subscriptionYAML("billing", "orders", "") + subscriptionYAML("letters", "dead", "") +
		subscriptionYAML("hook", "orders", `push: {url: "`+hook+`"}`) +
		subscriptionYAML("failing", "orders", `push: {url: "`+failing+`"}, dead_letter_topic: dead, retry: {max_attempts: 2, min_backoff: 10ms, max_backoff: 10ms}`) +
		policyYAML("shop") + identity)
	m.settled(2)
	secret := m.read(key)
	bearer := "Bearer " + secret

	// The ways out, at the second proxy; the webhooks are called by either.
	out := m.dial(p2.grpc, secret, nil)
	member, tail := newBox("the subscription"), newBox("the tail")
	out.into(member, subscription("billing"))
	out.into(tail, tailOf("orders"))
	out.into(dead, subscription("letters"))
	sse := m.events(http.DefaultClient, "http://"+p2.http, "orders", bearer)

	// The ways in, at the first.
	var sent []event.Event
	add := func(e event.Event) event.Event { sent = append(sent, e); return e }
	http1 := func(h http.Header, body []byte) {
		t.Helper()
		code, answer, err := m.postBytes(http.DefaultClient, "http://"+p1.http, "orders", bearer, h, body)
		if err != nil || code != http.StatusOK || !strings.Contains(answer, "position") {
			t.Errorf("%v: %d %s %v", h, code, answer, err)
		}
	}
	bytesEvent := func(id string) event.Event {
		return event.Event{ID: id, Source: "/shop", Type: "t", DataContentType: "application/octet-stream", Data: []byte("\x00\xff\n" + id)}
	}
	for _, e := range []event.Event{textEvent("binary-1", "one"), bytesEvent("binary-2"), {ID: "binary-3", Source: "/shop", Type: "t", DataContentType: "application/json", Data: []byte(`{"n":[1,2.50]}`)}} {
		h := http.Header{}
		add(e)
		cloudevents.EncodeBinary(h, &e)
		http1(h, e.Data)
	}
	structured := add(textEvent("structured", `"quoted" and ü`))
	http1(http.Header{"Content-Type": {"application/cloudevents+json"}}, cloudevents.AppendJSON(nil, &structured))
	batch := []string{}
	for _, e := range []event.Event{add(textEvent("batch-1", "four")), add(bytesEvent("batch-2")), add(textEvent("batch-3", ""))} {
		batch = append(batch, string(cloudevents.AppendJSON(nil, &e)))
	}
	http1(http.Header{"Content-Type": {"application/cloudevents-batch+json"}}, []byte("["+strings.Join(batch, ",")+"]"))

	c := m.client(key, p1)
	if position, err := c.Publish(m.ctx, m.ns, "orders", add(textEvent("unary", "five"))); err != nil || position == "" {
		t.Errorf("unary: %q %v", position, err)
	}
	results, err := c.PublishBatch(m.ctx, m.ns, "orders", []event.Event{add(bytesEvent("grpc-batch-1")), add(textEvent("grpc-batch-2", "six"))})
	if err != nil || len(results) != 2 || results[0].Err != nil || results[1].Err != nil {
		t.Errorf("batch: %v %v", results, err)
	}
	in := m.dial(p1.grpc, secret, nil)
	stream, err := in.PublishStream(in.ctx)
	m.must(err)
	for i := range 3 {
		req := &eventsv1.PublishStreamRequest{Namespace: m.ns, Topic: "orders"}
		for k := range 2 {
			req.Events = append(req.Events, m.wire(add(textEvent(fmt.Sprintf("stream-%d-%d", i, k), fmt.Sprint("seven ", i, k)))))
		}
		m.must(stream.Send(req))
	}
	m.must(stream.CloseSend())
	for acknowledged := uint32(0); acknowledged < 6; {
		resp, err := stream.Recv()
		m.must(err)
		if len(resp.Failed) > 0 {
			t.Errorf("stream: %v", resp.Failed)
		}
		acknowledged += resp.Count
	}
	finder := m.finder()
	m.awaitRegistered(finder, p1)
	found := m.clientOf(client.Config{Target: nacos.Scheme + ":///" + m.ns, Resolver: finder.Resolver(nacos.Choice{}), APIKey: client.APIKeyFile(key)})
	if _, err := found.Publish(m.ctx, m.ns, "orders", add(textEvent("through-nacos", "eight"))); err != nil {
		t.Errorf("through Nacos: %v", err)
	}

	for _, b := range []*box{member, tail, sse.box, pushed, dead} {
		m.awaitAll(b, sent)
	}
	for _, s := range sent {
		e, _ := dead.get(s.ID)
		if reason, _ := event.Lookup(e.Ext, delivery.AttrDeadReason); reason != "http 418" {
			t.Errorf("the dead letter %s has the reason %q", s.ID, reason)
		}
		if from, _ := event.Lookup(e.Ext, delivery.AttrDeadTopic); from != "orders" {
			t.Errorf("the dead letter %s is from topic %q", s.ID, from)
		}
	}
	if n := refusals.Load(); n < int64(2*len(sent)) {
		t.Errorf("the failing webhook was called %d times for %d events", n, len(sent))
	}

	// Settled means that it does not come again.
	m.awaitSettled(p2, "billing", len(sent))
	m.must(p2.Stop())
	p2.start()
	again := newBox("the subscription after the restart")
	m.dial(p2.grpc, secret, nil).into(again, subscription("billing"))
	last := textEvent("last", "nine")
	m.must(in.publish("orders", last))
	m.awaitAll(again, []event.Event{last})
}

// awaitSettled waits until a proxy has settled n events of a subscription.
func (m *mesh) awaitSettled(p *proxy, name string, n int) {
	m.Helper()
	m.await("settled events", func() error {
		if got := p.metric(fmt.Sprintf(`weft_proxy_delivery_acks_total{namespace="%s",subscription="%s"}`, m.ns, name)); int(got) < n {
			return fmt.Errorf("%v are settled", got)
		}
		return nil
	})
}
