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
// read in every way, and some are given back to come again later. No client loses a
// connection or a stream, and no proxy is restarted; nothing that was acknowledged is lost,
// and no key is out of order. Publishers are told to try again after a while or, of events
// that are on their way to a node that goes, that nobody knows, and go on by themselves.
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
			k.apply(subscriptionYAML("late", "orders", "retry: {min_backoff: 2s, max_backoff: 5s}"))
			k.settled(3)
			late := k.reader("members who give back", false, false)
			late.late = true
			for _, e := range k.at {
				k.member(late, "late", e)
			}
			k.start(8, 1)
			k.steady()
			k.answers("the start", 0)
			k.mu.Lock()
			clear(k.ended) // of the beginning
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
		})
	}
}

// unread has a node end with events that nobody has read, which others must not overtake.
// It gives how long that took.
func (k *keyed) unread(end func() error) time.Duration {
	k.Helper()
	k.reading.Lock()
	defer k.reading.Unlock()
	k.more(100)
	began := time.Now()
	k.must(end())
	gone := time.Since(began)
	k.moreOf(&k.free, 100)
	return gone
}

// answers checks what publishers were told since it was asked last: to try again after a
// while or, a few times at most, that nobody knows.
func (k *keyed) answers(when string, most int) {
	k.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for what, n := range k.told {
		k.Logf("%s: publishers were told %d times: %s", when, n, what)
		switch {
		case strings.HasSuffix(what, ", again"):
		case strings.HasSuffix(what, ": 504"), strings.HasSuffix(what, ": DeadlineExceeded"):
			most -= n
		default:
			k.Errorf("%s: publishers were told %s", when, what)
		}
	}
	if most < 0 {
		k.Errorf("%s: %d times more often than there are events on their way nobody knew what had become of one", when, -most)
	}
	clear(k.told)
}

// roll restarts and kills every node of a store, one after the other, and what knows
// where they are once.
func (k *keyed) roll(s rolling) {
	k.Helper()
	restart := func(p *servers.Process, kill bool, most int) {
		k.Helper()
		what, back, end := "is restarted", time.Duration(0), func() error { return p.Terminate(k.mesh.ctx) }
		if kill {
			what, back, end = "is killed", s.forgets, p.Kill
		}
		began, published := time.Now(), k.published.Load()
		again := k.disturb(back)
		gone := k.unread(end)
		k.moreOf(&k.free, 100) // some keys may wait for it
		k.must(p.Start(k.mesh.ctx))
		up := time.Since(began)
		k.steady() // every publisher goes on in every way
		again()
		k.Logf("%s %s: gone after %s, up after %s, all went on after %s, %d events; the longest pause of a publisher was %s", p.Name, what,
			gone.Round(time.Millisecond), up.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), k.published.Load()-published, k.longest(began, time.Now()))
		k.answers(p.Name+" "+what, most)
	}
	for _, p := range s.nodes {
		restart(p, false, k.publishers)
	}
	for _, p := range s.nodes {
		restart(p, true, k.publishers)
	}
	if s.names != nil {
		restart(s.names, false, 0)
	}
}
