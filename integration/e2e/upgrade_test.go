package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/integration/history"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
)

// TestRollingUpgrade goes from the baseline to this version and back, as
// docs/upgrade.md says, under load: replicas of the control plane one by one, then
// proxies one by one. At every step there are both versions, every change through
// any replica, from a command line of either version, reaches every proxy; a proxy
// starts from the file that the other version wrote. No publish fails, nothing
// acknowledged is lost, no proxy goes back.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	before := servers.NeedBaseline(t)
	now := weftBinary.path(t)
	m := prepareMesh(t, servers.SharedEtcd(t))
	m.bin = before
	replicas := m.replicas(2)
	key, identity := m.key("shop")
	p1, p2 := m.proxy("p1"), m.proxy("p2")
	both := []*proxy{p1, p2}
	m.apply(onRocketMQ(t) + topicYAML("orders", "stream") + subscriptionYAML("billing", "orders", "") + subscriptionYAML("streamed", "stream", "") + policyYAML("shop") + identity)
	m.settled(2)

	l := newLoad(m, key)
	l.publishers("w", 2, m.client(key, both...), "orders")
	s := l.stream("s", m.client(key, both...), "stream")
	for _, p := range both {
		l.subscriber(p, "billing")
		l.subscriber(p, "streamed")
	}
	l.more(50)
	topics := 0
	// agree: a change through each replica, from either version, is everywhere and
	// in use.
	agree := func() {
		t.Helper()
		for i, r := range replicas {
			m.admin, m.bin = r.admin, []string{before, now}[(i+topics)%2]
			topics++
			m.apply(topicYAML(fmt.Sprintf("after-%d", topics)))
		}
		m.settled(2)
		for _, p := range both {
			// The client of this version, and the command line of either.
			topic := fmt.Sprintf("after-%d", topics)
			if _, err := m.client(key, p).Publish(m.ctx, m.ns, topic, textEvent(p.name, "x")); err != nil {
				t.Errorf("publishing at %s: %v", p.name, err)
			}
			if out, err := m.weft("", "publish", topic, "-n", m.ns, "--type", "t", "--data", "1", "--proxy", p.grpc, "--api-key-file", key); err != nil {
				t.Errorf("publishing at %s: %s %v", p.name, out, err)
			}
		}
		for _, r := range replicas {
			if n := r.metric("weft_controlplane_restore_suspected"); n != 0 {
				t.Errorf("%s suspects a restore", r.Name)
			}
		}
	}
	agree()
	for _, to := range []string{now, before} {
		t.Logf("to %s", to)
		for _, r := range replicas {
			m.exchange(r.Process, to)
			agree()
			l.more(20)
		}
		for _, p := range both {
			was := p.metric("weft_proxy_config_revision")
			l.takesPart(p)
			s.mayRepeat()
			m.exchange(p.Process, to)
			p.lives.Add(1)
			m.printed(p.Process, "started from the configuration on disk")
			agree()
			if got := p.metric("weft_proxy_config_revision"); got < was || p.metric("weft_proxy_config_older_refused_total") != 0 {
				t.Errorf("%s goes from revision %v to %v", p.name, was, got)
			}
			l.takesPart(p)
			l.more(50)
		}
	}
	if n := l.repeated.Load(); n != 0 {
		t.Errorf("%d publishes failed", n)
	}
	s.close()
	l.repeated.Add(s.repeats)
	l.judge(4096)
}

// replica is one of several control planes.
type replica struct {
	*servers.Process
	m          *mesh
	admin, ops string
}

// replicas start control planes; proxies that are made afterwards know all of them.
func (m *mesh) replicas(n int, args ...string) []*replica {
	m.Helper()
	var out []*replica
	disco := ""
	for i := range n {
		if i > 0 {
			m.admin, m.disco, m.ops = port(m.T), port(m.T), port(m.T)
			disco += ","
		}
		disco += m.disco
		m.startControlPlane(args...)
		m.cp.Name = fmt.Sprintf("control-plane-%d", i)
		out = append(out, &replica{m.cp, m, m.admin, m.ops})
	}
	m.disco = disco
	return out
}

func (r *replica) metric(name string) float64 {
	r.m.Helper()
	v, err := metric(r.m.ctx, r.ops, name)
	r.m.must(err)
	return v
}

// exchangeTime bounds a start, below the time of a test.
const exchangeTime = 90 * time.Second

// exchange stops a process gracefully and starts it with another command.
func (m *mesh) exchange(p *servers.Process, bin string) {
	m.Helper()
	m.stopped(p)
	p.Args[0] = bin
	ctx, cancel := context.WithTimeout(m.ctx, exchangeTime)
	defer cancel()
	m.must(p.Start(ctx))
}

// stopped ends a process as an orchestrator does; it must end by itself.
func (m *mesh) stopped(p *servers.Process) {
	m.Helper()
	m.must(p.Stop())
	if code := p.ExitStatus(); code != 0 {
		m.Errorf("%s did not end by itself, but with %d", p.Name, code)
	}
}

// streamed is one client.Publisher under load.
type streamed struct {
	running sync.WaitGroup
	stop    context.CancelFunc
	// repeats bounds the events that it has sent again by itself.
	repeats int64
}

// inStream is how many events a Publisher has unanswered at most.
const inStream = 8

// stream publishes through a client.Publisher, which must never fail; a store that is busy
// is asked again.
func (l *load) stream(name string, c *client.Client, topic string) *streamed {
	l.Helper()
	pub := c.Publisher(l.ns, topic, client.PublisherOptions{MaxPending: inStream})
	ctx, stop := context.WithCancel(l.ctx)
	s := &streamed{stop: stop}
	all := l.mesh.ctx
	s.running.Go(func() {
		var answers sync.WaitGroup
		for k := 0; ctx.Err() == nil; k++ {
			id := fmt.Sprintf("%s-%d", name, k)
			e := textEvent(id, "data of "+id)
			l.log.Intend(id, "", 0, e.Data)
			sent, err := pub.Publish(all, e)
			if err != nil {
				l.Errorf("the publisher of %s: %v", topic, err)
				break
			}
			answers.Go(func() {
				_, err := sent.Wait(all)
				for refused := (*client.Error)(nil); errors.As(err, &refused) && refused.Reason == "store-busy"; { // nothing was kept
					if sent, err = pub.Publish(all, e); err == nil {
						_, err = sent.Wait(all)
					}
				}
				if err != nil {
					l.Errorf("%s: %v", id, err)
					return
				}
				l.log.Told(id, history.Acked)
			})
		}
		answers.Wait()
		if err := pub.Close(all); err != nil {
			l.Error(err)
		}
	})
	l.Cleanup(s.close)
	return s
}

// mayRepeat notes that a proxy goes: what it has not answered is sent again.
func (s *streamed) mayRepeat() { s.repeats += inStream }

// close ends it once all is answered.
func (s *streamed) close() {
	s.stop()
	s.running.Wait()
}

// TestFilesOfTheOther: what one version has written the other one reads, in both
// directions, without a control plane: a proxy's configuration, the events of its
// embedded store, what was settled there and what waits for another attempt, and
// snapshots.
func TestFilesOfTheOther(t *testing.T) {
	t.Parallel()
	before := servers.NeedBaseline(t)
	now := weftBinary.path(t)
	m := prepareMesh(t, servers.SharedEtcd(t))
	m.bin = before
	m.startControlPlane()
	key, identity := m.key("shop")
	p := m.proxy("p1")
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("orders", "orders", "retry: {min_backoff: 100ms, max_backoff: 100ms}") + policyYAML("shop") + identity)
	m.settled(1)
	snapshotOf := func(bin string) string {
		file := filepath.Join(m.dir, filepath.Base(filepath.Dir(bin))+".snapshot")
		_, err := m.administer("", "snapshot", "-n", m.ns, "-o", file)
		m.must(err)
		return file
	}
	ofBefore := snapshotOf(before)
	m.exchange(m.cp, now)
	ofNow := snapshotOf(now)
	m.must(m.cp.Stop())

	for i, to := range []string{now, before, now} {
		id, done := fmt.Sprintf("waits-%d", i), fmt.Sprintf("settled-%d", i)
		for _, id := range []string{done, id} {
			if _, err := m.client(key, p).Publish(m.ctx, m.ns, "orders", textEvent(id, "x")); err != nil {
				t.Fatal(err)
			}
		}
		m.take(p, key, "orders", map[string]error{done: nil, id: errors.New("not yet")})
		unread := fmt.Sprintf("unread-%d", i)
		if _, err := m.client(key, p).Publish(m.ctx, m.ns, "orders", textEvent(unread, "x")); err != nil {
			t.Fatal(err)
		}
		m.exchange(p.Process, to)
		if p.metric("weft_proxy_config_from_disk") != 1 || p.metric("weft_proxy_ready") != 1 {
			t.Errorf("with %s the proxy did not start from its disk", to)
		}
		m.take(p, key, "orders", map[string]error{id: nil, unread: nil})
	}

	for name, of := range map[string]struct{ bin, file string }{"p2": {before, ofNow}, "p3": {now, ofBefore}} {
		m.bin = of.bin
		p := m.proxy(name, "--namespaces", m.ns, "--snapshot-from", of.file)
		if p.metric("weft_proxy_config_from_snapshot") != 1 {
			t.Errorf("%s did not start from %s", of.bin, of.file)
		}
		m.serves(p, key, "orders", name)
	}
}

// take receives events of a Subscription until each of want has come once, and
// answers each with its error. Nothing else may come.
func (m *mesh) take(p *proxy, key, name string, want map[string]error) {
	m.Helper()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	got := map[string]bool{}
	err := m.client(key, p).Subscribe(ctx, m.ns, name, func(_ context.Context, d client.Delivery) error {
		id := d.Event.ID
		answer, wanted := want[id]
		if !wanted {
			m.Errorf("%s comes, wanted are %v", id, slices.Sorted(maps.Keys(want)))
		}
		if got[id] = true; len(got) >= len(want) {
			cancel()
		}
		return answer
	}, client.SubscribeOptions{Credit: 1})
	if !errors.Is(err, context.Canceled) || m.ctx.Err() != nil {
		m.Fatalf("the subscription ended with %v; there came %v", err, got)
	}
}

// TestFieldOfTheNext: a control plane of the next version has stored a resource with
// a field that neither this version nor the baseline knows. Replicas and proxies of
// both go on: a proxy keeps the version before it, and says so, and takes what else
// changes; no replica, whichever starts or writes, loses the field.
func TestFieldOfTheNext(t *testing.T) {
	t.Parallel()
	before := servers.NeedBaseline(t)
	now := weftBinary.path(t)
	m := prepareMesh(t, servers.SharedEtcd(t))
	replicas := m.replicas(2)
	key, identity := m.key("shop")
	m.bin = before
	p1 := m.proxy("p1")
	m.bin = now
	p2 := m.proxy("p2")
	m.apply(onDisk + topicYAML("orders") + policyYAML("shop") + identity)
	m.settled(2)

	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{m.etcd}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	m.must(err)
	t.Cleanup(func() { _ = etcd.Close() })
	next := configstore.New(configstore.Config{Client: etcd, Prefix: m.prefix(), Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(m.ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = next.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	_, err = next.WaitFor(m.ctx, 0)
	m.must(err)
	name := "topic/" + m.ns + "/orders"
	field := protowire.AppendVarint(protowire.AppendTag(nil, 15000, protowire.VarintType), 7)
	m.await("the resource to be written", func() error {
		snap, err := next.Current()
		if err != nil {
			return err
		}
		r := proto.Clone(snap.Resource(name)).(*configv1.Resource)
		r.GetTopic().ProtoReflect().SetUnknown(field)
		_, err = next.Commit(m.ctx, snap, configstore.Change{Put: []*configv1.Resource{r}})
		return err
	})
	agree := func(also string) {
		t.Helper()
		m.apply(topicYAML(also))
		m.await("every proxy to keep the version before it, and to take the rest", func() error {
			st, err := m.adminOf(replicas[0]).GetStatus(m.ctx, &adminv1.GetStatusRequest{})
			if err != nil {
				return err
			}
			for _, p := range st.Proxies {
				if p.AckedRevision < st.Revision {
					return fmt.Errorf("%s has not: %v", p.NodeId, p)
				}
			}
			for _, p := range []*proxy{p1, p2} {
				for _, topic := range []string{"orders", also} {
					if _, err := m.client(key, p).Publish(m.ctx, m.ns, topic, textEvent(also, "x")); err != nil {
						return fmt.Errorf("%s: %s: %w", p.name, topic, err)
					}
				}
			}
			return nil
		})
	}
	agree("with-both")
	for _, r := range replicas {
		m.exchange(r.Process, before)
	}
	agree("with-the-baseline")
	m.exchange(p1.Process, now)
	m.exchange(p2.Process, before)
	agree("exchanged")
	out, err := m.administer("", "status")
	m.must(err)
	if !strings.Contains(out, "orders") || !strings.Contains(out, "does not know") {
		t.Errorf("the status does not tell of it:\n%s", out)
	}
	got, err := etcd.Get(m.ctx, m.prefix()+"r/"+name)
	m.must(err)
	if len(got.Kvs) != 1 || !bytes.Contains(got.Kvs[0].Value, field) {
		t.Error("the field is lost")
	}
}
