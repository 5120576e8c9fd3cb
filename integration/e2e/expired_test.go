package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
)

// TestLongOutage: all replicas, etcd and Nacos are away for longer than every timer
// of docs/operations.md, shortened here as in TestWithoutControlPlane, and meanwhile
// the certificate expires with which proxies join. Every proxy is started again and
// new ones start from a snapshot; no publish fails and nothing is lost. On return who
// has a join token is in at once, who has none once there is a new certificate,
// without a restart; all resume, and a change costs no more than twice the pushes
// that it cost before, those of the return included.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	store := onRocketMQ(t)
	etcd := startOwnEtcd(t)
	registry := newRelay(t, servers.SharedNacos(t))
	m := prepareMesh(t, etcd.Endpoint)
	own := m.authority("mesh")
	control, node := own.issue("control", ""), own.issue("node", "")
	flags := append(m.nacosFlags(), "--nacos", "http://"+registry.addr+"/nacos", "--discovery-cert", control.Cert, "--discovery-key", control.Key, "--discovery-ca", own.file,
		"--etcd-max-retry", "200ms", "--election-ttl", "1s", "--provision-every", "500ms", "--register-every", "200ms", "--register-grace", "1s", "--register-forget", "10s")
	m.startControlPlane(flags...)
	key, identity := m.key("shop")
	joins := []string{"--namespaces", m.ns, "--advertise", "127.0.0.1", "--control-plane-ca", own.file, "--control-plane-cert", node.Cert, "--control-plane-key", node.Key,
		"--control-plane-max-retry", "500ms", "--control-plane-keepalive", "10s", "--control-plane-answer-timeout", "2s"}
	token := func(id string) []string {
		t.Helper()
		file := filepath.Join(m.dir, id+".token")
		_, err := m.administer("", "admin", "join-token", "create", id, "--namespaces", m.ns, "--token-file", file)
		m.must(err)
		m.secrets["the join token of "+id] = m.read(file)
		return append([]string{"--join-token-file", file}, joins...)
	}
	// Two can join by a token too, one by its certificate alone.
	p1, p2, p3 := m.proxy("p1", token("p1")...), m.proxy("p2", token("p2")...), m.proxy("p3", joins...)
	three := []*proxy{p1, p2, p3}
	m.apply(store + topicYAML("orders", "late") + subscriptionYAML("billing", "orders", "") + subscriptionYAML("late", "late", "") + policyYAML("shop") + identity)
	m.settled(3)
	sent := func() (pushes, resources float64) {
		t.Helper()
		for name, sum := range map[string]*float64{
			`weft_controlplane_discovery_answers_total{answer="ack"}`:        &pushes,
			`weft_controlplane_discovery_resources_sent_total{change="put"}`: &resources,
		} {
			v, err := metric(m.ctx, m.ops, name)
			m.must(err)
			*sum += v
		}
		return pushes, resources
	}
	const changes = 3
	pushes, resources := sent()
	for i := range changes {
		m.apply(topicYAML(fmt.Sprintf("before-%d", i)))
		m.settled(3)
	}
	pushed, added := sent()
	normal, usual := (pushed-pushes)/changes/3, (added-resources)/changes/3 // of one change, to one proxy
	file := filepath.Join(m.dir, "mesh.snapshot")
	_, err := m.administer("", "snapshot", "-n", m.ns, "-o", file)
	m.must(err)
	tokenOfNew := token("p4")
	finder := m.finder()
	m.awaitRegistered(finder, three...)

	l := newLoad(m, key)
	l.publishers("w", 2, m.client(key, three...), "orders")
	s := l.stream("s", m.client(key, three...), "orders")
	for _, p := range three {
		l.subscriber(p, "billing")
	}
	l.more(50)

	m.must(etcd.Kill())
	registry.cut()
	m.printed(m.cp, `/elect/fleet error="the election's lease was lost`, `/elect/provision error="the election's lease was lost`)
	m.must(m.cp.Kill())
	own.issueUntil("node", "", time.Now().Add(-time.Minute))
	for _, p := range three {
		m.await("attempts of "+p.name, func() error {
			if n := p.metric("weft_proxy_control_plane_failures_total"); n < 12 { // waits have reached their longest
				return fmt.Errorf("there were %v", n)
			}
			return nil
		})
	}
	for _, p := range three {
		s.mayRepeat()
		m.exchange(p.Process, weftBinary.path(t))
		p.lives.Add(1)
		m.printed(p.Process, "started from the configuration on disk")
		l.more(50)
	}
	p4 := m.proxy("p4", append(tokenOfNew, "--snapshot-from", file)...)
	if p4.metric("weft_proxy_config_from_snapshot") != 1 {
		t.Error("p4 did not start from the snapshot")
	}
	m.serves(p4, key, "late", "late-1")
	l.more(50)

	m.must(etcd.Start(m.ctx))
	registry.mend()
	m.must(m.cp.Start(m.ctx))
	for _, p := range []*proxy{p1, p2, p4} {
		m.connected(p)
	}
	m.await("attempts of p3, whose certificate has expired", func() error {
		if p3.metric("weft_proxy_control_plane_connected") != 0 {
			t.Fatal("p3 has joined")
		}
		if !bytes.Contains(m.cp.Output(), []byte("expired")) && p3.metric("weft_proxy_control_plane_attempts_total") < 3 {
			return errors.New("there were too few")
		}
		return nil
	})
	l.more(50)
	own.issue("node", "")
	m.connected(p3)
	m.apply(topicYAML("after"))
	m.settled(4)
	all := append(three, p4)
	now, given := sent()
	t.Logf("of one change one proxy is sent %.1f pushes with %.1f resources; with the return %.1f and %.1f", normal, usual, now/4, given/4)
	if now/4 > 2*normal || given/4 > 2*usual {
		t.Errorf("on return each proxy was sent %v pushes with %v resources, of one change it is sent %v and %v", now/4, given/4, normal, usual)
	}
	if full, err := metric(m.ctx, m.ops, "weft_controlplane_discovery_full_syncs_total"); err != nil || full != 0 {
		t.Errorf("%v full syncs (%v)", full, err)
	}
	m.awaitRegistered(finder, all...)
	for _, p := range all {
		if _, err := m.client(key, p).Publish(m.ctx, m.ns, "after", textEvent(p.name, "x")); err != nil {
			t.Errorf("publishing at %s: %v", p.name, err)
		}
	}
	if n := l.repeated.Load(); n != 0 {
		t.Errorf("%d publishes failed", n)
	}
	s.close()
	l.repeated.Add(s.repeats)
	l.judge(4096)
}
