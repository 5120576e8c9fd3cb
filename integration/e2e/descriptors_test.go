package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/weft-mesh/weft/integration/servers"
)

// files is how many descriptors a process has that has few.
const files = 256

// withFew has a process start with few descriptors.
func withFew(p *servers.Process) {
	p.Args = append([]string{"prlimit", fmt.Sprint("--nofile=", files)}, p.Args...)
}

// crowded is a proxy that more clients come to than its process has descriptors.
type crowded struct {
	*mesh
	process         *servers.Process
	http, grpc, ops string
	key             string // for clients; empty where they come over loopback without
	open            []net.Conn
}

// comes connects and tells whether it is served, or closed at once.
func (c *crowded) comes(addr, says string) bool {
	c.Helper()
	conn, err := net.Dial("tcp", addr)
	c.must(err)
	c.open = append(c.open, conn)
	c.must(conn.SetDeadline(time.Now().Add(time.Minute)))
	_, _ = io.WriteString(conn, says)
	_, err = io.ReadFull(conn, make([]byte, 9))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.Fatal("who comes waits")
	}
	return err == nil
}

// fill comes until nobody is taken any more.
func (c *crowded) fill(addr, says string) (served int) {
	c.Helper()
	for refused := 0; refused < 20; {
		if c.comes(addr, says) {
			served, refused = served+1, 0
		} else {
			refused++
		}
		if served > files {
			c.Fatalf("%d were served of %s", served, addr)
		}
	}
	return served
}

// test crowds it, while it goes on with what it has; elsewhere is what may happen to
// the rest of the mesh meanwhile.
func (c *crowded) test(elsewhere func()) {
	t := c.T
	pid, authorization := c.process.PID(), ""
	if c.key != "" {
		authorization = "Bearer " + c.key
	}
	web := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	t.Cleanup(web.CloseIdleConnections)
	tail, latest := newBox("a tail"), newBox("another tail")
	r := c.dial(c.grpc, c.key, nil)
	r.into(tail, tailOf("orders"))
	publish := func(topic, id string) error {
		code, body, err := c.postBytes(web, "http://"+c.http, topic, authorization, http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {published}, "Ce-Type": {"t"}}, []byte("x"))
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	}
	c.must(publish("orders", "before"))

	sse := fmt.Sprintf("GET /v1/%s/topics/orders/events HTTP/1.1\r\nHost: %s\r\n", c.ns, c.http)
	if authorization != "" {
		sse += "Authorization: " + authorization + "\r\n"
	}
	sse += "\r\n"
	overHTTP := c.fill(c.http, sse)
	overGRPC := c.fill(c.grpc, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	taken, err := metric(c.ctx, c.ops, "process_open_fds")
	c.must(err)
	t.Logf("%d were served over HTTP, %d over gRPC; %.0f of %d descriptors are taken", overHTTP, overGRPC, taken, files)
	if overHTTP < 10 || overGRPC < 10 || taken > files-50 {
		t.Errorf("%d over HTTP, %d over gRPC, %.0f descriptors taken", overHTTP, overGRPC, taken)
	}
	for _, l := range []string{"http", "grpc"} {
		if n, err := metric(c.ctx, c.ops, `weft_proxy_connections_refused_total{listener="`+l+`",reason="descriptors"}`); err != nil || n < 20 {
			t.Errorf("%.0f were refused of %s: %v", n, l, err)
		}
	}

	// It is full, and goes on.
	for i := range 20 {
		c.must(publish("orders", fmt.Sprint("during-", i)))
	}
	c.apply(topicYAML("later"))
	c.await("a topic that is new", func() error { return publish("later", "new") })
	elsewhere()
	c.apply(topicYAML("latest"))
	c.await("the newest topic", func() error { return publish("latest", "newest") })
	r.into(latest, tailOf("latest"))
	c.await("events", func() error {
		if a, b := tail.count(), latest.count(); a < 21 || b < 1 {
			return fmt.Errorf("%d and %d have come", a, b)
		}
		return nil
	})

	// It recovers.
	for _, conn := range c.open {
		_ = conn.Close()
	}
	c.await("room again", func() error {
		if !c.comes(c.http, sse) || !c.comes(c.grpc, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00") {
			return errors.New("there is none")
		}
		return nil
	})
	for _, conn := range c.open {
		_ = conn.Close()
	}
	if !c.process.Alive() || c.process.PID() != pid {
		t.Error("it has ended")
	}
	want := map[string]int{`level=WARN msg="connections are bounded" listener=http`: 1, `level=WARN msg="connections are bounded" listener=grpc`: 1, "connections are refused": 2, "room for connections again": 2}
	c.await("what is to be said", func() error {
		for what, n := range want {
			if said := strings.Count(string(c.process.Output()), what); said != n {
				return fmt.Errorf("%q was said %d times", what, said)
			}
		}
		return nil
	})
}

// TestFewDescriptors: more clients come than the process has descriptors. They are told
// at once, by metric and log too; stores, the stream to the control plane and the pages
// of operations go on, and once clients have gone others are served.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	t.Run("proxy", func(t *testing.T) {
		m := newMesh(t, servers.SharedEtcd(t))
		key, identity := m.key("shop")
		p := m.newProxy("p1", "--control-plane-max-retry", "1s")
		p.Args = append([]string{proxyBinary.path(t)}, p.Args[2:]...)
		withFew(p.Process)
		p.start()
		m.apply(onDisk + topicYAML("orders") + policyYAML("shop") + identity)
		m.settled(1)
		(&crowded{mesh: m, process: p.Process, http: p.http, grpc: p.grpc, ops: p.ops, key: m.read(key)}).test(func() {
			m.must(m.cp.Kill())
			m.must(m.cp.Start(m.ctx))
		})
	})
	t.Run("up", func(t *testing.T) {
		m := prepareMesh(t, "")
		over, grpc, ops := port(t), port(t), port(t)
		up := m.process(&servers.Process{Name: "up", Args: []string{m.weftPath(), "up", "--data", filepath.Join(m.dir, "up"), "--admin", m.admin, "--discovery", m.disco, "--control-plane-ops", m.ops,
			"--log-level", "info", "--http", over, "--grpc", grpc, "--health", port(t), "--ops", ops}, Ready: answers("http://" + ops + "/readyz")})
		withFew(up)
		m.must(up.Start(m.ctx))
		m.await("an admin API", func() error {
			_, err := m.administer("", "get", "topic")
			return err
		})
		m.apply(onDisk + topicYAML("orders") + policyYAML("local"))
		m.settled(1)
		(&crowded{mesh: m, process: up, http: over, grpc: grpc, ops: ops}).test(func() {})
	})
}
