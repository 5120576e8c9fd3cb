package planes

import (
	"testing"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
)

// TestAdoptFenced: a Topic that adopts what another one has left can be written to: the
// fence around it is lifted before the Topic is admitted, but where the control plane
// changes nothing.
func TestAdoptFenced(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	mq, ns := servers.SharedRocketMQ(t), servers.Namespace(t)
	admin, st := provisioned(ctx, t, startEtcd(ctx, t), binding.Drivers(), server.Times{}, mq, ns)
	var all []*configv1.Resource
	for name, how := range map[string]configv1.Provisioning{"made": configv1.Provisioning_PROVISIONING_CREATE, "looked-at": configv1.Provisioning_PROVISIONING_VERIFY} {
		physical := names.Physical(ns, name)
		if err := st.(store.Admin).EnsureTopic(ctx, store.TopicSpec{Name: physical, Partitions: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := st.(store.Fencer).Fence(ctx, physical); err != nil {
			t.Fatal(err)
		}
		es := eventStore(ns, name, "")
		es.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Provisioning: how,
			Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{mq}}}}}
		all = append(all, es, &configv1.Resource{Metadata: &configv1.Metadata{Namespace: ns, Name: name}, Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: name, Partitions: 1}}})
	}
	if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: all}); err != nil {
		t.Fatal(err)
	}
	for name, taken := range map[string]bool{"made": true, "looked-at": false} {
		awaitReady(ctx, t, admin, "topic/"+ns+"/"+name, "", nil)
		physical := names.Physical(ns, name)
		if err := st.(store.Admin).EnsureTopic(ctx, store.TopicSpec{Name: physical, Partitions: 1}); err != nil { // and asks where it is
			t.Fatal(err)
		}
		err := st.Publish(ctx, physical, []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t"}}}, make([]store.Result, 1))
		if (err == nil) != taken {
			t.Errorf("an event to %s: %v", name, err)
		}
	}
}
