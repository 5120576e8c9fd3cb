package planes

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/position"
)

// TestStart: where a Subscription begins is fixed in RocketMQ before it is Ready, at a
// time and after a position; a position that the broker does not have is refused by
// its field, and nothing is fixed. Groups that the broker has lost are made again and
// begin there, or where nothing is left out.
func TestStart(t *testing.T) {
	t.Parallel()
	servers.NeedServers(t)
	ctx := testContext(t)
	mq, ns := servers.SharedRocketMQ(t), servers.Namespace(t)
	admin, st := provisioned(ctx, t, startEtcd(ctx, t), binding.Drivers(), server.Times{Provision: 200 * time.Millisecond}, mq, ns)
	native := st.(store.Admin)
	says := func(name, why string) {
		t.Helper()
		awaitReady(ctx, t, admin, name, why, nil)
	}
	main, orders := eventStore(ns, "main", ""), topic(ns, "orders")
	main.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{mq}}}}}
	orders.GetTopic().Partitions = 1
	resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{main, orders}})
	if err != nil {
		t.Fatal(err)
	}
	topicUID, physical := resp.Results[1].Uid, names.Physical(ns, "orders")
	says("topic/"+ns+"/orders", "")
	var events []store.Outgoing
	for _, id := range []string{"a", "b", "c"} {
		events = append(events, store.Outgoing{Event: &event.Event{ID: id, Source: "/test", Type: "t", Data: []byte(id)}})
	}
	res := make([]store.Result, len(events))
	if err := st.Publish(ctx, physical, events, res); err != nil {
		t.Fatal(err)
	}
	tok := func(partition string, more uint64) string {
		pos := res[0].Pos
		pos.Partition, pos.Offset = pos.Partition+partition, pos.Offset+more
		return position.Token{TopicUID: topicUID, Epoch: 1, Pos: pos}.String()
	}
	groups := map[string]int64{} // how far they are behind
	for name, tc := range map[string]struct {
		spec   *configv1.Subscription
		behind int64
		says   string
	}{
		"after":     {spec: &configv1.Subscription{StartPositions: []string{tok("", 0)}}, behind: 2},
		"end":       {spec: &configv1.Subscription{}},
		"ago":       {spec: &configv1.Subscription{StartAt: timestamppb.New(time.Now().Add(-time.Hour))}, behind: 3},
		"beyond":    {spec: &configv1.Subscription{StartPositions: []string{tok("", 1000)}}, says: "spec.start_positions: "},
		"elsewhere": {spec: &configv1.Subscription{StartPositions: []string{tok("0", 0)}}, says: "spec.start_positions: "},
	} {
		tc.spec.Topics = []string{"orders"}
		resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{{Metadata: &configv1.Metadata{Namespace: ns, Name: name},
			Spec: &configv1.Resource_Subscription{Subscription: tc.spec}}}})
		if err != nil {
			t.Fatal(err)
		}
		says("subscription/"+ns+"/"+name, tc.says)
		group := names.Group(resp.Results[0].Uid, topicUID)
		lag, err := native.Lag(ctx, physical, group)
		if tc.says != "" && err == nil || tc.says == "" && (err != nil || len(lag) != 1 || lag[0].Behind != tc.behind) {
			t.Errorf("%s: %v, %v, want %d behind", name, lag, err, tc.behind)
		}
		if tc.says == "" {
			groups[group] = tc.behind
		}
	}
	if err := st.Publish(ctx, physical, events[:1], res); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for group, behind := range groups {
		if err := native.DeleteGroup(ctx, physical, group); err != nil {
			t.Fatal(err)
		}
		var lag []store.PartitionLag
		for {
			if lag, err = native.Lag(ctx, physical, group); err == nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("group %s is not made again: %v", group, err)
			}
		}
		if lag[0].Behind != behind+1 {
			t.Errorf("group %s is %d behind, want %d", group, lag[0].Behind, behind+1)
		}
	}
}
