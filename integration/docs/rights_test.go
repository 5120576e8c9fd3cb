package docs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/kafka"
)

// TestKafkaRights: the rights that docs/stores.md names are enough: a topic is made,
// published to, read, retried with a delay, replied over, tailed and moved away.
func TestKafkaRights(t *testing.T) {
	servers.NeedServers(t)
	s := newShell(t)
	k, err := servers.StartKafka(s.ctx, servers.KafkaOptions{Users: map[string]string{}})
	s.must(err)
	t.Cleanup(func() { _ = k.Stop() })
	for _, user := range []string{"proxy", "office"} {
		s.must(k.SetUser(s.ctx, user, user+"-secret"))
	}
	on := func(user string) *kadm.ACLBuilder {
		return kadm.NewACLs().Allow("User:" + user).AllowHosts().ResourcePatternType(kadm.ACLPatternPrefixed)
	}
	topics := []string{"demo_", "weft-"}
	s.must(k.Grant(s.ctx,
		on("proxy").Topics(topics...).Operations(kadm.OpRead, kadm.OpWrite),
		on("proxy").Groups("weft-").Operations(kadm.OpRead),
		on("office").Topics(topics...).Operations(kadm.OpCreate, kadm.OpRead, kadm.OpAlter, kadm.OpAlterConfigs),
		on("office").Topics("weft-").Operations(kadm.OpDelete),
		on("office").Groups("weft-").Operations(kadm.OpRead),
		on("office").ResourcePatternType(kadm.ACLPatternLiteral).Clusters().Operations(kadm.OpDescribeConfigs, kadm.OpAlter)))
	s.up()
	s.uses(fmt.Sprintf(`{kafka: {brokers: [%q], sasl_mechanism: scram_sha_512,
  credentials: {access_key: {file: $PWD/proxy}, secret_key: {file: $PWD/proxy-secret}},
  admin_credentials: {access_key: {file: $PWD/office}, secret_key: {file: $PWD/office-secret}}}}`, k.Brokers[0]))
	s.does(`
weft get topic rights -o yaml | sed 's/partitions: 2/partitions: 3/' > more.yaml
echo '  retention: {max_age: 1h}' >> more.yaml
weft apply --wait 2m -f more.yaml
until weft status topic/demo/rights > status; cat status; grep Provisioned status; do sleep 0.2; done
weft migrate rights --to elsewhere --yes
until weft migrate status rights -o json | grep -q '"phase": "DRAINED"'; do sleep 0.2; done
weft migrate status rights -o json
`, `topic/demo/rights updated`, `"state": "ENFORCED"`)
	adm, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers...), kgo.SASL(scram.Auth{User: "office", Pass: "office-secret"}.AsSha512Mechanism()))
	s.must(err)
	defer adm.Close()
	of, err := kadm.NewClient(adm).DescribeTopicConfigs(s.ctx, "demo_rights")
	s.must(err)
	for _, c := range of[0].Configs {
		if c.Key == "retention.ms" && c.MaybeValue() != "3600000" {
			t.Errorf("the retention is %s ms", c.MaybeValue())
		}
	}
	all, err := kadm.NewClient(adm).ListTopics(s.ctx)
	s.must(err)
	retries := slices.DeleteFunc(all.Names(), func(name string) bool { return !strings.HasPrefix(name, "weft-retry-") })
	for _, topic := range retries {
		if err := s.removes(k, "proxy", topic); store.Why(err) != "AccessDenied" {
			t.Errorf("a proxy may have what is in %s removed: %v", topic, err)
		}
		s.must(s.removes(k, "office", topic))
		left, err := kadm.NewClient(adm).ListStartOffsets(s.ctx, topic)
		s.must(err)
		var gone int64
		left.Each(func(o kadm.ListedOffset) { gone += o.Offset })
		if gone == 0 {
			t.Errorf("nothing was removed from %s", topic)
		}
	}
	if len(retries) != 1 {
		t.Errorf("retry topics are %v", retries)
	}
	if there, err := kadm.NewClient(adm).ListTopics(s.ctx, "demo_rights"); err != nil || len(there["demo_rights"].Partitions) != 3 {
		t.Errorf("the topic has %d partitions: %v", len(there["demo_rights"].Partitions), err)
	}
}

// removes is what a user is told who has a topic's group removed what it is done with.
func (s *shell) removes(k *servers.Kafka, user, topic string) error {
	s.Helper()
	of, err := kafka.Driver{}.Open(s.ctx, store.Config{Name: "demo/guarded", ClientID: user, Options: kafka.Options{Brokers: k.Brokers, Mechanism: kafka.ScramSHA512,
		Credentials: func() (kafka.Credentials, error) {
			return kafka.Credentials{User: user, Password: user + "-secret"}, nil
		}}})
	s.must(err)
	err = of.(store.Trimmer).Trim(s.ctx, topic, topic)
	s.must(of.Close(s.ctx))
	return err
}

// TestRocketMQRights: the same of RocketMQ.
func TestRocketMQRights(t *testing.T) {
	servers.NeedServers(t)
	s := newShell(t)
	broker, err := servers.StartRocketMQ(s.ctx, servers.RocketMQOptions{AccessKey: "office", SecretKey: "office-secret"})
	s.must(err)
	t.Cleanup(func() { _ = broker.Stop() })
	s.must(broker.SetUser(s.ctx, "proxy", "proxy-secret"))
	s.must(broker.Allow(s.ctx, "proxy", "Topic:demo_*", "Topic:weft-*", "Group:weft-*"))
	s.up()
	s.uses(fmt.Sprintf(`{rocketmq: {name_servers: [%q],
  credentials: {access_key: {file: $PWD/proxy}, secret_key: {file: $PWD/proxy-secret}},
  admin_credentials: {access_key: {file: $PWD/office}, secret_key: {file: $PWD/office-secret}}}}`, broker.NameServer))
	s.does(`
weft migrate rights --to elsewhere --yes
until weft migrate status rights -o json | grep -q '"phase": "DRAINED"'; do sleep 0.2; done
`)
}

// uses makes a Topic in a store of users that may only what they need, and does with it
// all that asks the store for something else.
func (s *shell) uses(store string) {
	s.Helper()
	s.does(`
umask 077
for user in proxy office; do echo $user > $user; echo $user-secret > $user-secret; done
weft apply --wait 2m -f - <<YAML
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: guarded}
spec: `+store+`
---
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: elsewhere}
spec: {embedded: {}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: rights}
spec: {store: guarded, partitions: 2}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: rights.dead}
spec: {store: guarded, partitions: 1}
---
apiVersion: weft/v1alpha1
kind: Subscription
metadata: {namespace: demo, name: users}
spec: {topics: [rights], start: beginning, dead_letter_topic: rights.dead, retry: {min_backoff: 2s, max_backoff: 3s, max_attempts: 2}}
---
apiVersion: weft/v1alpha1
kind: AccessPolicy
metadata: {namespace: demo, name: rights}
spec: {rules: [{name: all, effect: allow, principals: [local], actions: [publish, subscribe, consume], topics: [rights, rights.dead], subscriptions: [users]}]}
YAML
weft publish rights --id r-1 --data 1
for i in 1 2; do
  weft pull users --wait 30s -o json > pulled.json; cat pulled.json
  weft settle users --nack $(grep -o '"delivery_id": *"[^"]*"' pulled.json | head -1 | cut -d'"' -f4) --reason "not yet"
done
weft subscribe --tail rights --from beginning --max 1
until weft dlq list -s users | grep 'not yet'; do sleep 0.5; done
weft reply users --max 1 --data 42 & 
weft request rights --id r-2 --data 2 --timeout 20s
wait
weft dlq redrive -s users
weft pull users --wait 30s --ack
weft status -n demo
`, `r-1 is kept at`, `rights  r-1 `, `not yet`, `42`, `1 redriven`)
}
