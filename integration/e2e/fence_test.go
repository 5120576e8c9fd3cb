package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/names"
)

// outsiders are producers of a topic in Kafka that know nothing of the mesh.
type outsiders struct {
	mu      sync.Mutex
	written map[string]bool // what they were told is written
	enough  chan struct{}   // closed when that is some
	refused chan struct{}   // closed when one was told that it may not write
	running sync.WaitGroup
}

// outside starts n producers; each writes until it is refused.
func (m *mesh) outside(n int, k *servers.Kafka, topic, user, password string) *outsiders {
	m.Helper()
	p := &outsiders{written: map[string]bool{}, enough: make(chan struct{}), refused: make(chan struct{})}
	ctx, cancel := context.WithCancel(m.ctx)
	m.Cleanup(func() { cancel(); p.running.Wait() })
	enough, refused := sync.OnceFunc(func() { close(p.enough) }), sync.OnceFunc(func() { close(p.refused) })
	for w := range n {
		c, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers...), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()), kgo.SASL(scram.Auth{User: user, Pass: password}.AsSha512Mechanism()))
		m.must(err)
		p.running.Go(func() {
			defer c.Close()
			for i := 0; ; i++ {
				what := fmt.Sprintf("native %d/%d", w, i)
				err := c.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(what)}).FirstErr()
				if err != nil {
					if !errors.Is(err, kerr.TopicAuthorizationFailed) && ctx.Err() == nil {
						m.Errorf("%s: %v", what, err)
					}
					refused()
					return
				}
				p.mu.Lock()
				if p.written[what] = true; len(p.written) == 100 {
					enough()
				}
				p.mu.Unlock()
			}
		})
	}
	return p
}

// TestMigrationFence: native producers write to a topic in Kafka while it moves away, as
// fast as they can. All that they were told is written is delivered; from the fence on
// they are refused, also where the control plane is killed when the first of them is.
func TestMigrationFence(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	m := prepareMesh(t, servers.SharedEtcd(t))
	k, err := servers.StartKafka(m.ctx, servers.KafkaOptions{Users: map[string]string{}})
	m.must(err)
	t.Cleanup(func() { _ = k.Stop() })
	secrets := map[string]string{"office": "0ffice-secret", "proxy": "pr0xy-secret", "native": "n4tive-secret"}
	dir := t.TempDir()
	for user, password := range secrets {
		m.must(k.SetUser(m.ctx, user, password))
		m.must(os.WriteFile(filepath.Join(dir, user), []byte(user), 0o600))
		m.must(os.WriteFile(filepath.Join(dir, user+"-secret"), []byte(password), 0o600))
		m.secrets["the password of "+user] = password
	}
	physical := names.Physical(m.ns, "orders")
	all := func() *kadm.ACLBuilder {
		return kadm.NewACLs().AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral)
	}
	m.must(k.Grant(m.ctx,
		all().Allow("User:office").Clusters().Operations(kadm.OpAlter, kadm.OpDescribe, kadm.OpCreate, kadm.OpDescribeConfigs, kadm.OpAlterConfigs),
		all().Allow("User:office", "User:proxy").Topics("*").Groups("*").Operations(kadm.OpAll),
		all().Allow("User:native").Topics(physical).Operations(kadm.OpWrite, kadm.OpDescribe)))

	m.startControlPlane("--provision-every", "200ms", "--election-ttl", "2s")
	key, identity := m.key("shop")
	p := m.proxy("p1")
	m.apply(fmt.Sprintf(`
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: main}
spec:
  kafka:
    brokers: [%q]
    sasl_mechanism: scram_sha_512
    credentials: {access_key: {file: %[2]s/proxy}, secret_key: {file: %[2]s/proxy-secret}}
    admin_credentials: {access_key: {file: %[2]s/office}, secret_key: {file: %[2]s/office-secret}}
---
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: NS, name: second}
spec: {embedded: {}}
---`, k.Brokers[0], dir) + topicYAML("orders") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)
	rpc := m.dial(p.grpc, m.read(key), nil)
	var mu sync.Mutex
	got := map[string]bool{}
	s, err := rpc.open(m.ctx, subscription("billing"), 1000)
	m.must(err)
	go func() {
		err := s.receive(func(d *eventsv1.Delivery) bool {
			e, err := received(d)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			got[string(e.Data)] = true
			mu.Unlock()
			return true
		})
		if m.ctx.Err() == nil {
			t.Logf("the stream ends with %v", err)
		}
	}()

	n := m.outside(4, k, physical, "native", secrets["native"])
	until := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-m.ctx.Done():
			out, err := m.administer("", "migrate", "status", "orders", "-n", m.ns)
			t.Fatalf("waited for %s: %s %v", what, out, err)
		}
	}
	until("native producers", n.enough)
	_, err = m.administer("", "migrate", "orders", "--to", "second", "--yes", "-n", m.ns)
	m.must(err)
	until("one that is refused", n.refused)
	m.must(m.cp.Kill())
	m.must(m.cp.Start(m.ctx))
	n.running.Wait()
	m.must(rpc.publish("orders", textEvent("late", "through the mesh")))
	m.await("the end", func() error {
		out, err := m.administer("", "migrate", "status", "orders", "-n", m.ns, "-o", "json")
		var st struct {
			Phase  string
			Epochs []struct{ Fence struct{ State string } }
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &st)
		}
		if err == nil && st.Phase != "DRAINED" {
			err = errors.New(out)
		}
		if err == nil && st.Epochs[0].Fence.State != "ENFORCED" {
			t.Errorf("the fence is %s", out)
		}
		return err
	})
	m.await("what came through the mesh", func() error {
		mu.Lock()
		defer mu.Unlock()
		if !got["through the mesh"] {
			return fmt.Errorf("%d events came", len(got))
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	missing := 0
	for what := range n.written {
		if !got[what] {
			missing++
		}
	}
	t.Logf("native producers were told that %d are written", len(n.written))
	if missing > 0 {
		t.Errorf("%d of %d that native producers were told are written are missing", missing, len(n.written))
	}
}
