package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/kafka"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// natives is a producer that writes to a physical topic past the mesh, as clients of
// CloudEvents' SDKs do: of each key one event after the other, and again until it is
// acknowledged.
type natives struct {
	k     *keyed
	st    store.Store
	topic string
	acked atomic.Int64
	// refused is that the store takes no more: the old place has a fence.
	refused atomic.Bool
	stop    func()
}

// nativeKeys are its keys, and nativeKills how many proxies are killed that forward them.
const (
	nativeKeys  = 8
	nativeKills = 2
)

func (k *keyed) natives(kind string, options any, topic string) *natives {
	k.Helper()
	st, err := binding.Drivers()[kind].Open(k.mesh.ctx, store.Config{Name: "native", UID: k.ns, ClientID: "native-" + k.ns, Options: options, Log: slog.New(slog.DiscardHandler)})
	k.must(err)
	n := &natives{k: k, st: st, topic: topic}
	ctx, cancel := context.WithCancel(k.mesh.ctx)
	var running sync.WaitGroup
	running.Go(func() { n.run(ctx) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		if err := st.Close(context.Background()); err != nil {
			k.Error(err)
		}
	})
	k.Cleanup(n.stop)
	return n
}

func (n *natives) run(ctx context.Context) {
	for seq := 1; ; seq++ {
		for key := range nativeKeys {
			name := fmt.Sprintf("native%d", key)
			e := textEvent(fmt.Sprintf("%s/%d", name, seq), fmt.Sprintf("data of %s/%d", name, seq))
			e.Ext = event.With(e.Ext, event.AttrPartitionKey, name)
			for _, r := range n.k.readers {
				r.log.Intend(e.ID, name, seq, e.Data)
				for range nativeKills { // each may have it forwarded once more
					r.log.Told(e.ID, history.Unknown)
				}
			}
			for tries := 0; ; tries++ {
				var res [1]store.Result
				err := n.st.Publish(context.WithoutCancel(ctx), n.topic, []store.Outgoing{{Event: &e, Key: name}}, res[:])
				if err == nil {
					break
				}
				n.k.repeated.Add(1)
				for _, r := range n.k.readers {
					r.log.Told(e.ID, history.Unknown)
				}
				if tries > 20 {
					n.k.Logf("a native producer is refused: %v", err)
					n.refused.Store(true)
					return
				}
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
					return
				}
			}
			for _, r := range n.k.readers {
				r.log.Told(e.ID, history.Acked)
			}
			n.acked.Add(1)
			select {
			case <-n.k.pace.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// more waits until so many more events are acknowledged, unless no more are taken.
func (n *natives) more(want int64) {
	n.k.Helper()
	goal := n.acked.Load() + want
	n.k.await("native producers", func() error {
		if got := n.acked.Load(); got < goal && !n.refused.Load() {
			return fmt.Errorf("%d of %d are acknowledged", got, goal)
		}
		return nil
	})
}

// TestNativeProducers: what a native producer writes to a topic's old place before, at and
// after the cut reaches Subscriptions and tails, in order by key, while the proxies that
// forward it are killed; also when the move is turned back, and until the moment in which
// it is finished.
func TestNativeProducers(t *testing.T) {
	t.Parallel()
	for from, to := range map[string]string{"kafka": "rocketmq", "rocketmq": "kafka"} {
		t.Run("from "+from, func(t *testing.T) {
			t.Parallel()
			addrs := map[string]string{"kafka": servers.SharedKafka(t), "rocketmq": servers.SharedRocketMQ(t)}
			options := map[string]any{"kafka": kafka.Options{Brokers: []string{addrs["kafka"]}}, "rocketmq": rocketmq.Options{NameServers: []string{addrs["rocketmq"]}}}
			m := &migration{phases: make(chan configv1.Move_Phase, 100)}
			m.keyed = keyedMesh(t, servers.SharedEtcd(t), storesYAML(map[string]string{"kafka": fmt.Sprintf("kafka: {brokers: [%q]}", addrs["kafka"]), "rocketmq": fmt.Sprintf("rocketmq: {name_servers: [%q]}", addrs["rocketmq"])}), from, nativeKills, 20)
			for _, r := range m.replicas {
				go m.watch(m.adminOf(r))
			}
			m.start(2, 1)
			n := m.natives(from, options[from], names.Physical(m.ns, m.topic))
			m.more(50)
			n.more(50)
			m.command("migrate", m.topic, "--to", to, "--yes", "-n", m.ns)
			m.comesTo(configv1.Move_PHASE_DRAINED)
			n.more(50)
			for _, e := range m.at {
				m.must(m.kill(e))
				// What was forwarded and not yet settled is forwarded again.
				m.repeated.Add(keyedWindow * keyedPartitions)
				n.more(50)
			}
			m.followed(n)
			if from == "kafka" {
				m.command("migrate", "rollback", m.topic, "--yes", "-n", m.ns)
				m.comesTo(configv1.Move_PHASE_DRAINED)
				n.more(50)
			}
			m.more(50)
			n.stop()
			m.command("migrate", "finish", m.topic, "--yes", "-n", m.ns)
			m.comesTo(configv1.Move_PHASE_UNSPECIFIED)
			m.judge(tolerance{window: keyedWindow})
		})
	}
}

// comesTo waits until the move is so far.
func (m *migration) comesTo(want configv1.Move_Phase) {
	m.Helper()
	for {
		select {
		case phase := <-m.phases:
			if m.Log(phase); phase == want {
				return
			}
		case <-m.ctx.Done():
			out, err := m.administer("", "migrate", "status", m.topic, "-n", m.ns)
			m.Fatalf("the move does not get to %s: %s %v", want, out, err)
		}
	}
}

// followed checks that proxies have forwarded what native producers wrote behind the cut,
// and that the status of the move tells of it.
func (m *migration) followed(n *natives) {
	m.Helper()
	m.await("what native producers wrote", func() error {
		forwarded := 0.0
		for _, e := range m.at {
			forwarded += e.metric(`weft_proxy_move_followed_total{outcome="forwarded"}`)
		}
		out, err := m.administer("", "migrate", "status", m.topic, "-n", m.ns)
		if n.refused.Load() || err == nil && forwarded >= 50 && strings.Contains(out, "native producers wrote") {
			return nil
		}
		return fmt.Errorf("%v are forwarded, of %d; %s, %w", forwarded, n.acked.Load(), out, err)
	})
}
