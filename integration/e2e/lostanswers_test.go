package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// overHTTP publishes at an address over HTTP.
func (l *load) overHTTP(addr, topic string) func(context.Context, event.Event) error {
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 10}}
	l.Cleanup(c.CloseIdleConnections)
	bearer := "Bearer " + l.read(l.key)
	return func(ctx context.Context, e event.Event) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/"+l.ns+"/topics/"+topic, bytes.NewReader(e.Data))
		if err != nil {
			return err
		}
		cloudevents.EncodeBinary(req.Header, &e)
		req.Header.Set("Authorization", bearer)
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return err
	}
}

// TestLostAnswers: every eighth answer to publishers, over HTTP and gRPC, is lost on its
// way with the connection, and the proxy is killed again and again. They publish again what
// they were not told of: nothing that was acknowledged is lost, and what is there twice has
// the same source and id.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	const window, kills = 128, 3
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	p := m.proxy("p1", "--window", fmt.Sprint(window))
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)
	l := newLoad(m, key)
	web, rpc := newRelay(t, p.http), newRelay(t, p.grpc)
	web.lose.Store(8)
	rpc.lose.Store(8)
	l.publishersBy("direct", 4, l.overHTTP(p.http, "orders"))
	l.publishersBy("web", 4, l.overHTTP(web.addr, "orders"))
	c := m.client(key, &proxy{grpc: rpc.addr})
	l.publishers("rpc", 4, c, "orders")
	l.subscriber(p, "billing")
	for range kills {
		l.more(300)
		l.kill(p)
		p.start()
	}
	m.await("answers that are lost", func() error {
		if a, b := web.lost.Load(), rpc.lost.Load(); a < 30 || b < 30 {
			return fmt.Errorf("%d and %d are", a, b)
		}
		return nil
	})
	l.judge(window)
	if twice := l.log.Check().Duplicates; twice == 0 {
		t.Error("nothing came twice, though answers were lost")
	} else {
		t.Logf("%d answers were lost; %d events came twice", web.lost.Load()+rpc.lost.Load(), twice)
	}
}
