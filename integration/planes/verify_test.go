package planes

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// counting is a driver that knows how many of its stores are open.
type counting struct {
	rocketmq.Driver
	mu   sync.Mutex
	open *latest.Value[int]
}

func (c *counting) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open.Store(c.open.Get() + n)
}

func (c *counting) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	st, err := c.Driver.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c.add(1)
	return counted{st.(*rocketmq.Store), c}, nil
}

type counted struct {
	*rocketmq.Store
	by *counting
}

func (c counted) Close(ctx context.Context) error {
	c.by.add(-1)
	return c.Store.Close(ctx)
}

// provisioner is a control plane with these drivers.
func provisioner(ctx context.Context, t *testing.T, etcd *embedetcd.Server, drivers map[string]store.Driver, times server.Times) adminv1.AdminServiceClient {
	t.Helper()
	s, err := server.New(server.Config{Etcd: etcd.Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Drivers: drivers, Options: binding.AdminOptions, Times: times, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	runFor(t, s.Run)
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Addrs().Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

// provisioned is a control plane with these drivers, and a store on the shared
// RocketMQ to look at what it provisions.
func provisioned(ctx context.Context, t *testing.T, etcd *embedetcd.Server, drivers map[string]store.Driver, times server.Times, nameServer, ns string) (adminv1.AdminServiceClient, store.Store) {
	t.Helper()
	admin := provisioner(ctx, t, etcd, drivers, times)
	st, err := rocketmq.Driver{}.Open(ctx, store.Config{Name: "test", ClientID: "test-" + ns, Options: rocketmq.Options{NameServers: []string{nameServer}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	return admin, st
}

// awaitReady waits until a resource is Ready or, with why, says why it is not. Every
// second it calls poke, which may be nil.
func awaitReady(ctx context.Context, t *testing.T, admin adminv1.AdminServiceClient, name, why string, poke func()) {
	t.Helper()
	awaitCondition(ctx, t, admin, name, why, poke, func(c *adminv1.Condition) bool {
		return c.Type == "Ready" && (why == "" && c.State == adminv1.Condition_STATE_TRUE || why != "" && strings.Contains(c.Message, why))
	})
}

// awaitCondition waits until a resource has a condition that is so, which says what.
func awaitCondition(ctx context.Context, t *testing.T, admin adminv1.AdminServiceClient, name, what string, poke func(), so func(*adminv1.Condition) bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		got, err := admin.Get(ctx, &adminv1.GetRequest{Name: name})
		if err != nil {
			t.Fatalf("%s does not say %q: %v", name, what, err)
		}
		if slices.ContainsFunc(got.Conditions, so) {
			return
		}
		if poke != nil && n%50 == 0 {
			poke()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	t.Fatalf("%s does not say %q", name, what)
}

// TestProvisioningVerify: in a store whose provisioning is verify the control plane
// makes nothing: not the topic, not a subscription's groups, not its retry topic. It
// says what is missing, and goes on once that is there. An EventStore that is deleted
// is closed and forgotten.
func TestProvisioningVerify(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	mq, ns, etcd := servers.SharedRocketMQ(t), servers.Namespace(t), startEtcd(ctx, t)
	driver := &counting{open: latest.New(0)}
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = driver
	admin, st := provisioned(ctx, t, etcd, drivers, server.Times{}, mq, ns)
	native := st.(store.Admin)

	main := eventStore(ns, "main", "")
	main.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Provisioning: configv1.Provisioning_PROVISIONING_VERIFY,
		Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{mq}}}}}
	billing := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: "billing"},
		Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"orders"}}}}
	resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{main, topic(ns, "orders"), billing}})
	if err != nil {
		t.Fatal(err)
	}
	topicUID, subUID := resp.Results[1].Uid, resp.Results[2].Uid
	physical, group, retryTopic, retryGroup := names.Physical(ns, "orders"), names.Group(subUID, topicUID), names.RetryTopic(subUID), names.RetryGroup(subUID)

	poke := func() {
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore(ns, "poke", time.Now().String())}}); err != nil {
			t.Fatal(err)
		}
	}
	// pass makes the control plane look again, and waits for what it says.
	pass := func(name, says string) {
		t.Helper()
		awaitReady(ctx, t, admin, name, says, poke)
	}
	replies := names.ReplyTopic(resp.Results[0].Uid)
	reachable := func(want bool) {
		t.Helper()
		awaitCondition(ctx, t, admin, "eventstore/"+ns+"/main", replies, poke, func(c *adminv1.Condition) bool {
			return c.Type == "Reachable" && c.State == adminv1.Condition_STATE_TRUE && strings.Contains(c.Message, "requests are refused for want of the topic "+replies+": it is not there") == want
		})
	}
	absent := func(topics ...string) {
		t.Helper()
		for _, name := range topics {
			if there, err := native.TopicExists(ctx, name); there || err != nil {
				t.Errorf("topic %s: %v, %v", name, there, err)
			}
		}
	}
	pass("topic/"+ns+"/orders", physical+": it is not there")
	reachable(true)
	absent(physical, retryTopic, replies)
	for _, name := range []string{physical, replies} {
		if err := native.EnsureTopic(ctx, store.TopicSpec{Name: name, Partitions: 1}); err != nil {
			t.Fatal(err)
		}
	}
	reachable(false)
	pass("topic/"+ns+"/orders", "")
	pass("subscription/"+ns+"/billing", group+" has no offset in "+physical)
	if _, err := native.Lag(ctx, physical, group); err == nil {
		t.Error("the group was made")
	}
	absent(retryTopic)
	if err := native.EnsureGroup(ctx, physical, group, store.Start{End: true}); err != nil {
		t.Fatal(err)
	}
	pass("subscription/"+ns+"/billing", retryTopic+": it is not there")
	absent(retryTopic)
	if err := native.EnsureTopic(ctx, store.TopicSpec{Name: retryTopic, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	pass("subscription/"+ns+"/billing", retryGroup+" has no offset in "+retryTopic)
	if err := native.EnsureGroup(ctx, retryTopic, retryGroup, store.Start{}); err != nil {
		t.Fatal(err)
	}
	pass("subscription/"+ns+"/billing", "")

	if driver.open.Get() != 1 {
		t.Errorf("%d stores are open", driver.open.Get())
	}
	var all []*adminv1.DeleteTarget
	for _, name := range []string{"eventstore/" + ns + "/main", "topic/" + ns + "/orders", "subscription/" + ns + "/billing"} {
		all = append(all, &adminv1.DeleteTarget{Name: name})
	}
	if _, err := admin.Delete(ctx, &adminv1.DeleteRequest{Targets: all}); err != nil {
		t.Fatal(err)
	}
	for open, changed := driver.open.Load(); open != 0; open, changed = driver.open.Load() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the deleted store stays open")
		}
	}
	for {
		kept, err := etcd.Client().Get(ctx, "/weft/v1/s/condition/eventstore/"+ns+"/main")
		if err != nil {
			t.Fatal(err)
		}
		if len(kept.Kvs) == 0 {
			break
		}
	}
}
