package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/integration/servers"
)

// startNodes starts a Kafka of three nodes, until the test ends.
func (m *mesh) startNodes(o servers.KafkaOptions) *servers.Kafka {
	m.Helper()
	o.Nodes = 3
	k, err := servers.StartKafka(m.ctx, o)
	m.must(err)
	m.Cleanup(func() {
		if err := k.Stop(); err != nil {
			m.Error(err)
		}
	})
	return k
}

// kafkaYAML is an EventStore on brokers; more is the rest of what it says of them.
func kafkaYAML(brokers []string, more string) string {
	return fmt.Sprintf("\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: main}\nspec: {kafka: {brokers: [\"%s\"]%s}}\n---", strings.Join(brokers, `", "`), more)
}

// TestMatrixKafkaNodes: every cell of the matrix, on three nodes of Kafka, of which one
// is killed.
func TestMatrixKafkaNodes(t *testing.T) {
	if !soaking {
		return // it is of make soak
	}
	t.Parallel()
	m := newMesh(t, servers.SharedEtcd(t))
	k := m.startNodes(servers.KafkaOptions{})
	m.must(k.Nodes[1].Kill())
	m.playMatrix(kafkaYAML(k.Brokers, ""), 2)
}

// TestStoreReplaced: a store's password, its authority and certificates, and the
// addresses that name it change, and its nodes are restarted one after the other, as for
// an upgrade, all under load. No stream ends and no proxy is restarted; everything comes,
// though a publish may have to be repeated where a node takes its time to go.
func TestStoreReplaced(t *testing.T) {
	if !soaking {
		return // it is of make soak
	}
	t.Parallel()
	m := newMesh(t, servers.SharedEtcd(t))
	const user, first, second = "weft", "f1rst-Secret-51aa", "s3cond-Secret-62bb"
	m.secrets["the store's password"], m.secrets["the store's next password"] = first, second
	keyStore, trust := filepath.Join(m.dir, "kafka.pem"), filepath.Join(m.dir, "kafka-ca.pem")
	put := func(file, content string) { m.must(os.WriteFile(file, []byte(content), 0o600)) }
	before, after := m.authority("kafka-before"), m.authority("kafka-after")
	show := func(a *authority) {
		f := a.issue("broker", "")
		put(keyStore, m.read(f.Key)+"\n"+m.read(f.Cert)+"\n")
	}
	show(before)
	put(trust, before.pem)
	k := m.startNodes(servers.KafkaOptions{Users: map[string]string{}, KeyStore: keyStore})
	m.must(k.SetUser(m.ctx, user, first))
	put(filepath.Join(m.dir, "password"), first)
	put(filepath.Join(m.dir, "user"), user)
	yaml := func(brokers ...string) string {
		return kafkaYAML(brokers, fmt.Sprintf(", tls: {ca_file: %s}, sasl_mechanism: scram_sha_512, credentials: {access_key: {file: %s/user}, secret_key: {file: %[2]s/password}}", trust, m.dir))
	}
	key, identity := m.key("shop")
	p1, p2 := m.proxy("p1"), m.proxy("p2")
	m.apply(yaml(k.Brokers[0]) + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(2)

	l := newLoad(m, key)
	l.publishers("w", 4, m.client(key, p1, p2), "orders")
	l.subscriber(p1, "billing")
	tails := l.follow(p1, p2, "orders")
	l.more(200)
	// roll restarts the nodes in good order, one after the other.
	roll := func() {
		t.Helper()
		for _, node := range k.Nodes {
			m.must(node.Stop())
			l.more(200)
			m.must(node.Start(m.ctx))
			l.more(200)
		}
	}

	t.Log("the password changes")
	m.must(k.SetUser(m.ctx, user, second))
	put(filepath.Join(m.dir, "password"), second)
	l.more(200)
	t.Log("the nodes are restarted with certificates of another authority")
	put(trust, before.pem+after.pem)
	show(after)
	roll()
	put(trust, after.pem)
	t.Log("other brokers are named")
	m.apply(yaml(k.Brokers[1:]...))
	m.settled(2)
	l.more(200)
	t.Log("the nodes are restarted once more")
	roll()

	report := l.allCame(tails)
	if most := report.Published / 100; int(l.repeated.Load()) > most {
		t.Errorf("more than %d publishes failed", most)
	}
}
