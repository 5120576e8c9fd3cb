package e2e

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// TestRequestsBetweenProxies: over RocketMQ, who asks at one proxy gets the reply that
// is given at another one, through a topic that the control plane has made; what comes
// after the deadline is dropped there and counted.
func TestRequestsBetweenProxies(t *testing.T) {
	t.Parallel()
	store, etcd := onRocketMQ(t), servers.SharedEtcd(t)
	m := prepareMesh(t, etcd)
	m.startControlPlane()
	key, identity := m.key("shop")
	p1, p2 := m.proxy("p1"), m.proxy("p2")
	m.apply(store + topicYAML("questions") + subscriptionYAML("answerers", "questions", "") + policyYAML("shop") + identity)
	m.settled(2)
	secret := m.read(key)
	bearer := "Bearer " + secret
	questions := newBox("the answerers")
	m.dial(p2.grpc, secret, nil).into(questions, subscription("answerers"))

	type answer struct {
		code int
		body string
		err  error
	}
	ask := func(id, timeout string) chan answer {
		e := textEvent(id, "question "+id)
		h := http.Header{}
		cloudevents.EncodeBinary(h, &e)
		got := make(chan answer, 1)
		go func() {
			code, body, err := m.postBytes(http.DefaultClient, "http://"+p1.http, "questions:request?timeout="+timeout, bearer, h, e.Data)
			got <- answer{code, body, err}
		}()
		return got
	}
	reply := func(to string) int {
		t.Helper()
		var asked event.Event
		m.await("the request "+to, func() error {
			e, ok := questions.get(to)
			if !ok {
				return errors.New("it has not come")
			}
			asked = e
			return nil
		})
		e := textEvent("to-"+to, "answer to "+to)
		token, _ := event.Lookup(asked.Ext, event.AttrReplyTo)
		e.Ext = []event.Attr{{Name: event.AttrReplyTo, Value: token}}
		req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, "http://"+p2.http+"/v1/"+m.ns+"/replies", strings.NewReader(string(e.Data)))
		m.must(err)
		cloudevents.EncodeBinary(req.Header, &e)
		req.Header.Set("Authorization", bearer)
		resp, err := http.DefaultClient.Do(req)
		m.must(err)
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		m.must(err)
		return resp.StatusCode
	}
	for _, id := range []string{"one", "two", "three"} {
		got := ask(id, "60s")
		if code := reply(id); code != http.StatusNoContent {
			t.Errorf("the reply to %s: %d", id, code)
		}
		if a := <-got; a.err != nil || a.code != http.StatusOK || a.body != "answer to "+id {
			t.Errorf("%s: %+v", id, a)
		}
	}
	if a := <-ask("late", "1s"); a.err != nil || a.code != http.StatusGatewayTimeout || !strings.Contains(a.body, `"reason":"no-reply"`) {
		t.Errorf("a request without a reply: %+v", a)
	}
	if code := reply("late"); code != http.StatusNoContent {
		t.Errorf("the late reply: %d", code)
	}
	m.await("the late reply to be dropped", func() error {
		_, err := metric(m.ctx, p1.ops, `weft_proxy_replies_total{outcome="late"}`)
		return err // it is there once it has counted
	})
	if n := p2.metric(`weft_proxy_replies_total{outcome="sent"}`); n != 4 {
		t.Errorf("%v replies were sent", n)
	}
}
