package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
)

// envMigrationSeed repeats the faults of a run.
const envMigrationSeed = "WEFT_MIGRATION_SEED"

// migration is a topic of many keys that moves while it is used.
type migration struct {
	*keyed
	rnd *rand.Rand
	// servers are what may be killed beside proxies and control planes.
	servers []server
	phases  chan configv1.Move_Phase
	faults  faults

	seen    sync.Mutex
	version uint64 // of the TopicBinding that was seen last
	last    configv1.Move_Phase
}

// leg is one move: to an EventStore, or back from it after the cut.
type leg struct {
	to   string
	back bool
	// alone: of the proxies only the first one is left before.
	alone bool
	// unfinished: the old store is not given up, which takes as long as events may still
	// wait there for another attempt.
	unfinished bool
}

func (l leg) String() string {
	if l.back {
		return l.to + " and back"
	}
	return l.to
}

// storesYAML are EventStores by name.
func storesYAML(byName map[string]string) string {
	var b strings.Builder
	for name, spec := range byName {
		fmt.Fprintf(&b, "\napiVersion: weft/v1alpha1\nkind: EventStore\nmetadata: {namespace: NS, name: %s}\nspec: {%s}\n---", name, spec)
	}
	return b.String()
}

// TestMigration: a topic moves from store to store while publishers of all sorts publish
// and readers of all sorts read, and while proxies, control planes, brokers and etcd are
// killed, stand still or are cut off at every change of phase. Nothing that was
// acknowledged is lost, no event of a key comes before an earlier one, no more comes
// again than windows and repeated publishes explain, and no client of a proxy that was
// not killed connects anew.
func TestMigration(t *testing.T) {
	t.Parallel()
	type way struct {
		proxies int
		first   string
		legs    []leg
	}
	ways := map[string]way{
		"many proxies": {3, "rocketmq", []leg{{to: "kafka", unfinished: true}}},
		"one proxy":    {1, "kafka", []leg{{to: "embedded"}, {to: "kafka"}}},
	}
	keys, events, publishers := 100, int64(1500), 8
	if soaking {
		ways = map[string]way{"around": {3, "rocketmq", []leg{{to: "kafka", back: true}, {to: "kafka"}, {to: "embedded", alone: true}, {to: "rocketmq"}}}}
		keys, events, publishers = 2000, 200_000, 32
	}
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			m := newMigration(t, w.proxies, keys, w.first)
			m.start(publishers, m.rnd.Uint64())
			for _, l := range w.legs {
				m.more(events / int64(3*len(w.legs)))
				m.move(l)
			}
			m.more(max(events/10, events-m.published.Load()))
			m.judge(tolerance{window: keyedWindow})
		})
	}
}

// newMigration starts servers, control planes and proxies.
func newMigration(t *testing.T, proxies, keys int, first string) *migration {
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	if s := os.Getenv(envMigrationSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", envMigrationSeed, err)
		}
	}
	t.Logf("%s=%d repeats the faults of this run", envMigrationSeed, seed)
	m := &migration{rnd: rand.New(rand.NewPCG(seed, 0)), phases: make(chan configv1.Move_Phase, 100)} //nolint:gosec // which faults
	m.faults.busy = map[any]bool{}
	stores := map[string]string{}
	var etcd string
	if soaking {
		etcd = m.ownServers(t, stores)
	} else {
		etcd = servers.SharedEtcd(t)
		stores["kafka"] = fmt.Sprintf("kafka: {brokers: [%q]}", servers.SharedKafka(t))
		if first == "rocketmq" {
			stores["rocketmq"] = fmt.Sprintf("rocketmq: {name_servers: [%q]}", servers.SharedRocketMQ(t))
		}
	}
	if proxies == 1 {
		stores["embedded"] = "embedded: {}"
	}
	m.keyed = keyedMesh(t, etcd, storesYAML(stores), first, proxies, keys)
	t.Cleanup(m.faults.running.Wait)
	for _, r := range m.replicas {
		go m.watch(m.adminOf(r))
	}
	return m
}

// ownServers starts servers that may be killed. It gives etcd's address.
func (m *migration) ownServers(t *testing.T, stores map[string]string) (etcd string) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*servers.StartTimeout)
	defer cancel()
	rocket, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rocket.Stop() })
	kafka, err := servers.StartKafka(ctx, servers.KafkaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kafka.Stop() })
	own := startOwnEtcd(t)
	stores["rocketmq"] = fmt.Sprintf("rocketmq: {name_servers: [%q]}", rocket.NameServer)
	stores["kafka"] = fmt.Sprintf("kafka: {brokers: [%q]}", kafka.Brokers[0])
	m.servers = []server{{Process: rocket.Broker, store: true, forgets: rocketMQForgets}, {Process: kafka.Nodes[0], store: true}, {Process: own.Process}}
	return own.Endpoint
}

// watch tells every phase that the topic's move comes to, as one control plane has it.
func (m *migration) watch(admin adminv1.AdminServiceClient) {
	for m.ctx.Err() == nil {
		stream, err := admin.Watch(m.ctx, &adminv1.WatchRequest{Kind: "topicbinding", Namespace: m.ns})
		for err == nil {
			var resp *adminv1.WatchResponse
			if resp, err = stream.Recv(); err != nil {
				break
			}
			for _, r := range resp.Changed {
				m.saw(r)
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-m.ctx.Done():
		}
	}
}

// saw tells of a TopicBinding's phase, once: whatever control plane has it first.
func (m *migration) saw(r *configv1.Resource) {
	m.seen.Lock()
	defer m.seen.Unlock()
	version, err := strconv.ParseUint(r.Metadata.Version, 10, 64)
	if err != nil {
		m.Errorf("the version of %s/%s: %v", r.Metadata.Namespace, r.Metadata.Name, err)
	}
	if version <= m.version {
		return
	}
	m.version = version
	if phase := r.GetTopicBinding().GetMove().GetPhase(); phase != m.last {
		m.last = phase
		m.phases <- phase
	}
}

// move carries out one leg, with faults at its phases.
func (m *migration) move(l leg) {
	m.Helper()
	if l.alone {
		m.alone()
	}
	m.steady()
	m.faults.leg(m, l.String())
	before, began, published := m.connections(), time.Now(), m.published.Load()
	m.command("migrate", m.topic, "--to", l.to, "--yes", "-n", m.ns)
	if l.back {
		m.until(configv1.Move_PHASE_DRAINING)
		m.command("migrate", "rollback", m.topic, "--yes", "-n", m.ns)
	}
	m.until(configv1.Move_PHASE_DRAINED)
	want := "DRAINED"
	if !l.unfinished {
		m.command("migrate", "finish", m.topic, "--yes", "-n", m.ns)
		m.until(configv1.Move_PHASE_UNSPECIFIED)
		want = map[bool]string{false: "FINISHED", true: "ROLLED_BACK"}[l.back]
	}
	m.faults.running.Wait()
	m.kept(before)
	m.Logf("to %s: %s, %d events; the longest pause of a publisher was %s", l, time.Since(began).Round(time.Second), m.published.Load()-published, m.longest(began, time.Now()))
	m.faults.told(m)
	var st struct{ Phase string }
	m.await("the status of the move", func() error {
		out, err := m.administer("", "migrate", "status", m.topic, "-n", m.ns, "-o", "json")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &st)
	})
	if st.Phase != want {
		m.Errorf("the move to %s is %s, want %s", l, st.Phase, want)
	}
}

// until waits for a phase, with faults at all up to that.
func (m *migration) until(end configv1.Move_Phase) {
	m.Helper()
	for {
		select {
		case phase := <-m.phases:
			m.Logf("%s: %s", time.Now().Format(time.TimeOnly+".000"), phase)
			m.disturb(0) // members come to the groups of the next epoch one after the other
			m.faults.at(m, phase)
			if phase == end {
				return
			}
		case <-m.ctx.Done():
			m.Fatalf("the move does not get to %s: %s", end, m.status())
		}
	}
}

// status is what can still be told of the move when the test's time is over.
func (m *migration) status() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	late := *m.mesh
	late.ctx = ctx
	out, err := late.administer("", "migrate", "status", m.topic, "-n", m.ns)
	if err != nil {
		return err.Error()
	}
	return out
}

// command runs a command at whatever control plane takes it, until one says that it is
// done, or was: an answer may be lost.
func (m *migration) command(args ...string) {
	m.Helper()
	m.await("weft "+strings.Join(args, " "), func() error {
		var err error
		for i, r := range m.replicas {
			m.admin = r.admin
			if _, err = m.administer("", args...); err == nil {
				return nil
			}
			m.Logf("control plane %d: %v", i, err)
			if strings.Contains(err.Error(), "already") || strings.Contains(err.Error(), "is over") {
				return nil
			}
		}
		return err
	})
}

// alone ends all proxies but the first one for good.
func (m *migration) alone() {
	m.Helper()
	m.serving.Store(1)
	gone := []*proxy{m.sidecar}
	for _, e := range m.at[1:] {
		e.lost.Store(true)
		gone = append(gone, e.proxy)
	}
	for _, p := range gone {
		m.must(p.Stop())
	}
	for _, p := range gone {
		m.command("proxies", "declare-dead", p.name, "--reason", "its machine is gone", "--yes")
	}
	m.faults.deck = nil // of those that are gone
	m.apply(storesYAML(map[string]string{"embedded": "embedded: {}"}))
}
