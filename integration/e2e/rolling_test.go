package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
)

// rolling is a store whose nodes are restarted.
type rolling struct {
	spec  string // of its EventStore
	nodes []*servers.Process
	// names is what knows where the nodes are; nil where they know that themselves.
	names *servers.Process
	// forgets is from how long before a kill what was settled may be forgotten.
	forgets time.Duration
}

// rollingRocketMQ is a RocketMQ of two brokers.
func rollingRocketMQ(t *testing.T) rolling {
	servers.NeedServers(t)
	mq, err := servers.StartRocketMQ(t.Context(), servers.RocketMQOptions{Brokers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mq.Stop() })
	return rolling{fmt.Sprintf("rocketmq: {name_servers: [%q]}", mq.NameServer), mq.Brokers, mq.Names, rocketMQForgets}
}

// rollingKafka is a Kafka of three nodes.
func rollingKafka(t *testing.T) rolling {
	servers.NeedServers(t)
	k, err := servers.StartKafka(t.Context(), servers.KafkaOptions{Nodes: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Stop() })
	return rolling{spec: fmt.Sprintf(`kafka: {brokers: ["%s"]}`, strings.Join(k.Brokers, `", "`)), nodes: k.Nodes}
}

// TestRolling: the nodes of a store are restarted one after the other, as for an upgrade,
// and killed one after the other, while events with and without a key are published and
// read in every way. No client loses a connection or a stream, and no proxy is restarted;
// nothing that was acknowledged is lost, and no key is out of order. Publishers are told at
// worst to try again after a while, or that nobody knows, and go on by themselves.
func TestRolling(t *testing.T) {
	if !soaking {
		return // it is of make soak
	}
	t.Parallel()
	for name, start := range map[string]func(*testing.T) rolling{"rocketmq": rollingRocketMQ, "kafka": rollingKafka} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			k := keyedMesh(t, servers.SharedEtcd(t), storesYAML(map[string]string{"main": s.spec}), "main", 2, 100)
			k.keyless = 2
			k.tailByCall(k.reader("gRPC tail", true, false), k.at[1])
			k.start(8, 1)
			k.steady()
			k.mu.Lock()
			clear(k.ended) // of the beginning
			clear(k.told)
			k.mu.Unlock()
			before, lives := k.connections(), map[*entrance]int{}
			for _, e := range k.at {
				lives[e] = e.PID()
			}
			k.roll(s)
			k.judge(tolerance{window: keyedWindow})
			k.kept(before)
			for _, e := range k.at {
				if e.PID() != lives[e] || e.lost.Load() {
					t.Errorf("%s is not the process that it was", e.name)
				}
			}
			for what, n := range k.ended {
				t.Errorf("%d times: %s", n, what)
			}
			for what, n := range k.told {
				t.Logf("publishers were told %d times: %s", n, what)
				if !strings.HasSuffix(what, ", again") && !strings.HasSuffix(what, ": 504") && !strings.HasSuffix(what, ": DeadlineExceeded") {
					t.Errorf("a publisher was told %d times: %s", n, what)
				}
			}
		})
	}
}

// roll restarts and kills every node of a store, one after the other, and what knows
// where they are once.
func (k *keyed) roll(s rolling) {
	k.Helper()
	restart := func(what string, p *servers.Process, back time.Duration, end func() error) {
		k.Helper()
		began, published := time.Now(), k.published.Load()
		again := k.disturb(back)
		k.must(end())
		gone := time.Since(began)
		k.moreOf(&k.free, 100) // some keys may wait for it
		k.must(p.Start(k.mesh.ctx))
		up := time.Since(began)
		k.steady() // every publisher goes on in every way
		again()
		k.Logf("%s %s: gone after %s, up after %s, all went on after %s, %d events; the longest pause of a publisher was %s", p.Name, what,
			gone.Round(time.Millisecond), up.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), k.published.Load()-published, k.longest(began, time.Now()))
	}
	for _, p := range s.nodes {
		restart("is restarted", p, 0, func() error { return p.Terminate(k.mesh.ctx) })
	}
	for _, p := range s.nodes {
		restart("is killed", p, s.forgets, p.Kill)
	}
	if s.names != nil {
		restart("is restarted", s.names, 0, func() error { return s.names.Terminate(k.mesh.ctx) })
	}
}
