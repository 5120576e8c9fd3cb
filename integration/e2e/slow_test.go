package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// slowWay is a way to begin something that does not end: what is said at once, and then
// again and again, over which listener, within TLS or instead of it.
type slowWay struct {
	name         string
	grpc, within bool
	begin, more  string
}

// slowWays are those ways; the key is one that may publish.
func (m *mesh) slowWays(key string) []slowWay {
	half, whole := "\x16\x03\x01\x02\x00\x01", clientHello()
	ways := []slowWay{
		{name: "headers", within: true, begin: "POST /v1/" + m.ns + "/topics/orders HTTP/1.1\r\nHost: localhost\r\nX: ", more: "x"},
		{name: "a body", within: true, begin: "POST /v1/" + m.ns + "/topics/orders HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key +
			"\r\nCe-Specversion: 1.0\r\nCe-Id: slow\r\nCe-Source: /slow\r\nCe-Type: t\r\nContent-Length: 1000000\r\n\r\n", more: "x"},
		{name: "half a preface", grpc: true, within: true, begin: http2.ClientPreface[:20]},
	}
	for _, grpc := range []bool{false, true} {
		ways = append(ways, slowWay{name: "nothing", grpc: grpc}, slowWay{name: "half a hello", grpc: grpc, begin: half, more: "\x00"},
			slowWay{name: "a hello", grpc: grpc, begin: whole}, slowWay{name: "TLS and nothing", grpc: grpc, within: true})
	}
	return ways
}

// clientHello is how a client begins TLS.
func clientHello() string {
	c := &firstWrite{}
	_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}}).Handshake() //nolint:gosec // nobody answers
	return string(c.said)
}

// firstWrite is a connection that ends after the first that is said.
type firstWrite struct {
	net.Conn
	said []byte
}

func (c *firstWrite) Write(b []byte) (int, error) {
	c.said = append(c.said, b...)
	return 0, io.ErrClosedPipe
}
func (*firstWrite) Close() error { return nil }

// attack does it until it is cut off. begun counts those that were taken: on a machine that
// is busy some are cut off before they have said anything.
func (w slowWay) attack(ctx context.Context, p *proxy, trusted *tls.Config, begun *atomic.Int64) error {
	addr, proto := p.http, "http/1.1"
	if w.grpc {
		addr, proto = p.grpc, "h2"
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(4 * time.Minute)); err != nil {
		return err
	}
	if w.within {
		trusted = trusted.Clone()
		trusted.ServerName, trusted.NextProtos = "127.0.0.1", []string{proto}
		c = tls.Client(c, trusted)
		if err := c.(*tls.Conn).Handshake(); err != nil {
			return hungUp(err)
		}
	}
	if _, err := io.WriteString(c, w.begin); err != nil {
		return hungUp(err)
	}
	begun.Add(1)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return errors.New("it lives")
			}
			return nil
		case <-tick.C:
			_, _ = io.WriteString(c, w.more) // it may be cut off by now
		}
	}
}

// hungUp is nil where err says that the proxy has hung up.
func hungUp(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// TestSlowClients: connections that never end what they begin, half TLS handshakes and
// what is trickled within it, are cut off, over both listeners; meanwhile who is connected
// publishes without an error, and others come and are served.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	attackers := 40 // of each kind
	if soaking {
		attackers = 450
	}
	m := prepareMesh(t, servers.SharedEtcd(t))
	m.bin = plainBinary.path(t) // the race detector allows 8,128 goroutines
	m.startControlPlane()
	key, identity := m.key("shop")
	own := m.authority("mesh")
	node := own.issue("node", "")
	p := m.proxy("p1", "--cert", node.Cert, "--key", node.Key)
	m.apply(onDisk + topicYAML("orders") + policyYAML("shop") + identity)
	m.settled(1)
	cfg := client.Config{Addresses: []string{p.grpc}, TLS: own.tls(tlsconf.Files{}), APIKey: client.APIKeyFile(key)}
	publish := func(c *client.Client, id string) error {
		ctx, cancel := context.WithTimeout(m.ctx, 2*time.Minute)
		defer cancel()
		_, err := c.Publish(ctx, m.ns, "orders", textEvent(id, "x"))
		return err
	}
	good := m.clientOf(cfg)
	m.must(publish(good, "before"))
	pid := p.PID()

	ctx, stop := context.WithCancel(m.ctx)
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	var cut atomic.Int64
	ways, trusted := m.slowWays(m.read(key)), own.tls(tlsconf.Files{})
	begun := make([]atomic.Int64, len(ways))
	for i, way := range ways {
		for range attackers {
			running.Go(func() {
				if err := way.attack(ctx, p, trusted, &begun[i]); err != nil && ctx.Err() == nil {
					t.Errorf("%s, over gRPC %v: %v", way.name, way.grpc, err)
				}
				cut.Add(1)
			})
		}
	}
	all := int64(len(ways) * attackers)
	during := 0
	m.await("all attackers to be cut off", func() error {
		during++
		if err := publish(good, fmt.Sprint("during-", during)); err != nil {
			t.Errorf("who was there: %v", err)
		}
		if during <= 5 {
			fresh, err := client.New(cfg)
			m.must(err)
			if err := publish(fresh, fmt.Sprint("fresh-", during)); err != nil {
				t.Errorf("who comes: %v", err)
			}
			_ = fresh.Close()
		}
		if n := cut.Load(); n < all {
			return fmt.Errorf("%d of %d are", n, all)
		}
		return nil
	})
	m.await("what is left", func() error {
		if n := p.connections("http") + p.connections("grpc"); n > 1 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	for i := range ways {
		if n := int(begun[i].Load()); n < attackers/4 {
			t.Errorf("%s, over gRPC %v: %d of %d have begun", ways[i].name, ways[i].grpc, n, attackers)
		}
	}
	t.Logf("%d attackers were cut off; meanwhile %d events were published", cut.Load(), during)
	if p.PID() != pid || !p.Alive() || during < 5 {
		t.Errorf("the proxy has ended, or nothing was published: %d", during)
	}
}
