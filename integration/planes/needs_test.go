package planes

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// TestNeedsNotMet: what a broker gives is observed, not believed. One that
// answers before the event is on its disk does not get a topic that needs the
// disk, and the status says why.
func TestNeedsNotMet(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	sctx, cancel := context.WithTimeout(ctx, servers.StartTimeout)
	defer cancel()
	mq, err := servers.StartRocketMQ(sctx, servers.RocketMQOptions{AsyncFlush: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mq.Stop(); err != nil {
			t.Error(err)
		}
	})
	st, err := rocketmq.Driver{}.Open(ctx, store.Config{Name: "test", ClientID: "test", Options: rocketmq.Options{NameServers: []string{mq.NameServer}}})
	if err != nil {
		t.Fatal(err)
	}
	caps, err := st.Probe(ctx)
	for ; err != nil && fault.ClassOf(err) == fault.Unavailable && ctx.Err() == nil; caps, err = st.Probe(ctx) { // it registers itself a moment after its start
	}
	if err != nil || caps.Durability != store.DurabilityProcess || caps.Product == "" || !strings.HasPrefix(caps.Version, "5.3") {
		t.Errorf("%+v, %v", caps, err)
	}
	if err := st.Close(ctx); err != nil {
		t.Error(err)
	}

	s, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Drivers: binding.Drivers(), Options: binding.AdminOptions, Log: quiet})
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
	admin := adminv1.NewAdminServiceClient(conn)
	main := eventStore("demo", "main", "")
	main.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{mq.NameServer}}}}}
	modest, demanding := topic("demo", "modest"), topic("demo", "demanding")
	modest.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_PROCESS}
	demanding.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_DISK}
	if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{main, modest, demanding}}); err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := admin.GetStatus(ctx, &adminv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]*adminv1.Condition{}
		for _, r := range resp.Resources {
			for _, c := range r.Conditions {
				if c.Type == "Ready" {
					found[r.Name] = c
				}
			}
		}
		good, bad := found["topic/demo/modest"], found["topic/demo/demanding"]
		if good.GetState() == adminv1.Condition_STATE_TRUE && bad.GetState() == adminv1.Condition_STATE_FALSE {
			if !strings.Contains(bad.Message, "needs durability disk, EventStore main was observed to give process") {
				t.Errorf("the status says %v", bad)
			}
			break
		}
		if bad.GetState() == adminv1.Condition_STATE_TRUE || ctx.Err() != nil {
			t.Fatalf("the status is %v", resp.Resources)
		}
	}
	adm, err := admin.Get(ctx, &adminv1.GetRequest{Name: "topicadmission/demo/demanding"})
	if err != nil || adm.GetResource().GetTopicAdmission().GetAdmitted() {
		t.Errorf("%v, %v", adm, err)
	}
}
