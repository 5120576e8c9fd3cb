package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/tlsconf"
)

// TestStoreTLS: RocketMQ's servers speak TLS alone, and with those who have a certificate.
// Who trusts another authority is told which field to look at, and the store is used when
// the file is right. Under load another authority takes over and all certificates change;
// the servers are restarted. No stream ends, no proxy is restarted, everything comes.
func TestStoreTLS(t *testing.T) {
	if !soaking {
		return // it is of make soak
	}
	t.Parallel()
	m := newMesh(t, servers.SharedEtcd(t))
	in := func(side string) tlsconf.Files {
		at := func(name string) string { return filepath.Join(m.dir, side+"-"+name+".pem") }
		return tlsconf.Files{Cert: at("cert"), Key: at("key"), CA: at("ca")}
	}
	theirs, ours := in("servers"), in("mesh")
	put := func(file, content string) {
		t.Helper()
		m.must(os.WriteFile(file+".new", []byte(content), 0o600))
		m.must(os.Rename(file+".new", file))
	}
	trust := func(pem string) { put(theirs.CA, pem); put(ours.CA, pem) }
	show := func(a *authority) {
		for name, f := range map[string]tlsconf.Files{"broker": theirs, "client": ours} {
			issued := a.issue(name, "")
			put(f.Cert, m.read(issued.Cert)+"\n")
			put(f.Key, m.read(issued.Key)+"\n")
		}
	}
	before, after := m.authority("store-before"), m.authority("store-after")
	show(before)
	trust(before.pem)
	mq, err := servers.StartRocketMQ(m.ctx, servers.RocketMQOptions{TLS: theirs})
	m.must(err)
	t.Cleanup(func() {
		if err := mq.Stop(); err != nil {
			t.Error(err)
		}
	})

	put(ours.CA, after.pem) // which is not the servers' yet
	key, identity := m.key("shop")
	p1, p2 := m.proxy("p1"), m.proxy("p2")
	m.apply(fmt.Sprintf("\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: main}\nspec: {rocketmq: {name_servers: [%q], tls: {ca_file: %s, certificate_file: %s, key_file: %s}}}\n---",
		mq.NameServer, ours.CA, ours.Cert, ours.Key) + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.await("both planes to say what is wrong", func() error {
		out, err := m.administer("", "status", "-o", "json")
		if err == nil && strings.Count(out, "no authority that tls.ca_file has") < 3 {
			err = fmt.Errorf("the status is %s", out)
		}
		return err
	})
	put(ours.CA, before.pem)
	m.settled(2)

	l := newLoad(m, key)
	l.publishers("w", 2, m.client(key, p1, p2), "orders")
	l.subscriber(p1, "billing")
	tails := l.follow(p1, p2, "orders")
	l.more(50)
	lives := p1.life() + p2.life()
	trust(before.pem + after.pem)
	l.more(50)
	show(after)
	l.more(50)
	trust(after.pem)
	l.more(50)
	for _, p := range []*servers.Process{mq.Names, mq.Broker} {
		m.must(p.Kill())
		m.must(p.Start(m.ctx))
	}
	l.more(50)

	if now := p1.life() + p2.life(); now != lives {
		t.Error("a proxy was restarted")
	}
	l.allCame(tails)
}
