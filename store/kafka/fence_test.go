package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// passwords of the users of fenced brokers.
var passwords = map[string]string{"mesh": "m3sh-secret", "native": "n4tive-secret", "poor": "p00r-secret"}

// as is a store of a user.
func as(t *testing.T, k *servers.Kafka, user string) *Store {
	s := open(t, Options{Brokers: k.Brokers, Mechanism: Plain, Credentials: func() (Credentials, error) { return Credentials{user, passwords[user]}, nil }}, 0)
	shut(t, s.Close)
	return s
}

// producer is one that knows nothing of the mesh.
func producer(t *testing.T, k *servers.Kafka, user string) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers...), kgo.SASL(plain.Auth{User: user, Pass: passwords[user]}.AsMechanism()), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func send(ctx context.Context, c *kgo.Client, topic string) (*kgo.Record, error) {
	return c.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("native")}).First()
}

// fenced starts brokers with an authorizer, where mesh may do what it needs and change
// ACLs, and native and poor may write and read.
func fenced(ctx context.Context, t *testing.T, nodes int) *servers.Kafka {
	t.Helper()
	servers.NeedServers(t)
	k := start(ctx, t, servers.KafkaOptions{Nodes: nodes, Users: passwords})
	prefixed := func() *kadm.ACLBuilder {
		return kadm.NewACLs().AllowHosts().ResourcePatternType(kadm.ACLPatternPrefixed)
	}
	const ns = "t-" // which all names of tests begin with
	if err := k.Grant(ctx,
		kadm.NewACLs().Allow("User:mesh").AllowHosts().Clusters().Operations(kadm.OpAlter, kadm.OpDescribe, kadm.OpCreate, kadm.OpDescribeConfigs),
		prefixed().Allow("User:mesh").Topics(ns).Groups(ns).Operations(kadm.OpAll),
		prefixed().Allow("User:native", "User:poor").Topics(ns).Operations(kadm.OpWrite, kadm.OpRead, kadm.OpCreate)); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestFence: from the time on when a fence stands nobody writes to the topic, whether it
// is a native producer that has done so all the time or another store of the mesh; what
// was acknowledged before lies before the ends that are measured then. Readers read on.
// Provisioning leaves it standing, and any store of the mesh removes it.
func TestFence(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*servers.StartTimeout)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	k := fenced(ctx, t, 2)
	s := as(t, k, "mesh")
	topic := prepare(ctx, t, s, 4)
	must(s.Publish(ctx, topic, one("before", ""), make([]store.Result, 1)))

	// Producers that write all the time, each until it is refused.
	const producers = 4
	var mu sync.Mutex
	last, written := map[int32]int64{}, 0
	var running sync.WaitGroup
	wrote := make(chan struct{})
	once := sync.OnceFunc(func() { close(wrote) })
	for range producers {
		c := producer(t, k, "native")
		running.Go(func() {
			for {
				r, err := send(ctx, c, topic)
				if err != nil {
					if !errors.Is(err, kerr.TopicAuthorizationFailed) {
						t.Errorf("a native producer is told %v", err)
					}
					return
				}
				mu.Lock()
				last[r.Partition] = max(last[r.Partition], r.Offset)
				if written++; written > 100 {
					once()
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-wrote:
	case <-ctx.Done():
		t.Fatal("nothing is written")
	}
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceEnforced {
		t.Fatalf("%v, %v", how, err)
	}
	ends, err := s.Extents(ctx, topic)
	must(err)
	if _, err := send(ctx, producer(t, k, "native"), topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("in the fence a producer is told %v", err)
	}
	running.Wait()
	for _, x := range ends {
		for p, at := range last {
			if partitionName(p) == x.Partition && uint64(at) >= x.End {
				t.Errorf("in partition %s %d is acknowledged, which ends at %d when the fence stands", x.Partition, at, x.End)
			}
		}
	}
	if err := s.Publish(ctx, topic, one("in", ""), make([]store.Result, 1)); store.Why(err) != "AccessDenied" {
		t.Errorf("the mesh is told %v", err)
	}
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceEnforced {
		t.Errorf("once more: %v, %v", how, err)
	}
	must(s.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 5}))
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	must(err)
	shut(t, sub.Close)
	for n := 0; n <= written; { // and the one of the mesh
		dst := make([]store.Message, 100)
		got, err := sub.Fetch(ctx, dst)
		must(err)
		for i := range got {
			sub.Settle([]*store.Message{&dst[i]})
		}
		n += got
	}
	if _, err := send(ctx, producer(t, k, "native"), topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("in the fence, after the topic was provisioned, a producer is told %v", err)
	}
	must(as(t, k, "mesh").Unfence(ctx, topic))
	if _, err := send(ctx, producer(t, k, "native"), topic); err != nil {
		t.Errorf("without the fence a producer is told %v", err)
	}
	must(s.Publish(ctx, topic, one("after", ""), make([]store.Result, 1)))
	must(s.Unfence(ctx, topic))
	if left, err := s.covering(ctx, "test", topic); err != nil || left.marked() || left.keepsOut() {
		t.Errorf("of the fence is left %v, %v", left, err)
	}
}

// TestNoFence: a fence is not put up where that is not allowed, would do harm, or cannot
// be; and another's is as good, and not removed.
func TestNoFence(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*servers.StartTimeout)
	defer cancel()
	k := fenced(ctx, t, 1)
	s := as(t, k, "mesh")
	topic := prepare(ctx, t, s, 1)
	is := func(what string, err error, reason string) {
		t.Helper()
		if err == nil || fault.From(err).Reason != reason {
			t.Errorf("%s: %v, want %s", what, err, reason)
		}
	}
	_, err := as(t, k, "poor").Fence(ctx, topic)
	is("without the right to change ACLs", err, "store-access-denied")
	is("likewise", as(t, k, "poor").Unfence(ctx, topic), "store-access-denied")
	if _, err := send(ctx, producer(t, k, "native"), topic); err != nil {
		t.Errorf("where there is no fence a producer is told %v", err)
	}
	_, err = s.Fence(ctx, topic+"-none")
	is("of no topic", err, "unknown-topic")

	// A topic that is everybody's since nothing is said of it.
	const everybodys = "everybodys"
	if err := s.EnsureTopic(ctx, store.TopicSpec{Name: everybodys, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	_, err = s.Fence(ctx, everybodys)
	is("of a topic without ACLs", err, "store-no-fence")
	if _, err := send(ctx, producer(t, k, "native"), everybodys); err != nil {
		t.Errorf("to a topic without ACLs a producer is told %v", err)
	}

	// An administrator's.
	if err := k.Grant(ctx, kadm.NewACLs().Deny("User:*").DenyHosts().Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite)); err != nil {
		t.Fatal(err)
	}
	if how, err := s.Fence(ctx, topic); err != nil || how != store.FenceEnforced {
		t.Errorf("where another's stands: %v, %v", how, err)
	}
	if err := s.Unfence(ctx, topic); err != nil {
		t.Error(err)
	}
	if _, err := send(ctx, producer(t, k, "native"), topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("in another's fence a producer is told %v", err)
	}

	k = start(ctx, t, servers.KafkaOptions{Properties: []string{"authorizer.class.name="}})
	s = unfenced(t, k)
	topic = prepare(ctx, t, s, 1)
	_, err = s.Fence(ctx, topic)
	is("without an authorizer", err, "store-no-fence")
	if err := s.Unfence(ctx, topic); err != nil {
		t.Error(fmt.Errorf("without an authorizer: %w", err))
	}
	if err := s.Publish(ctx, topic, one("a", ""), make([]store.Result, 1)); err != nil {
		t.Error(err)
	}
}

// unfenced is a store of brokers that ask nobody who it is.
func unfenced(t *testing.T, k *servers.Kafka) *Store {
	s := open(t, Options{Brokers: k.Brokers}, 0)
	shut(t, s.Close)
	return s
}
