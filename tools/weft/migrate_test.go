package weft

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
)

// TestMoveShown: what weft migrate status shows of each phase, and whether there is more
// to come.
func TestMoveShown(t *testing.T) {
	two := []*configv1.Epoch{{Number: 1, Store: "main", PhysicalName: "demo_orders", Cut: []*configv1.Cut{{Partition: "0", Offset: 7}}}, {Number: 2, Store: "next", PhysicalName: "demo_orders_e2"}}
	move := func(p configv1.Move_Phase) *configv1.Move { return &configv1.Move{MigrationUid: "m", Phase: p} }
	back := move(configv1.Move_PHASE_DRAINED)
	back.Back = true
	for name, tc := range map[string]struct {
		wish    configv1.Migration_Wish
		binding *configv1.TopicBinding
		phase   string
		says    string
		rests   bool
	}{
		"nobody has begun it":       {0, &configv1.TopicBinding{Epochs: two[:1]}, "WAITING", "has not begun", false},
		"another one":               {0, &configv1.TopicBinding{Epochs: two, Move: &configv1.Move{MigrationUid: "other", Phase: 5}}, "WAITING", "has not begun", false},
		"preparing":                 {0, &configv1.TopicBinding{Epochs: two, Move: move(1)}, "PREPARING", "made in next", false},
		"leasing":                   {0, &configv1.TopicBinding{Epochs: two, Move: move(2)}, "LEASING", "written to main under leases", false},
		"stopping":                  {0, &configv1.TopicBinding{Epochs: two, Move: move(3)}, "STOPPING", "publishers wait", false},
		"marking":                   {0, &configv1.TopicBinding{Epochs: two, Move: move(4)}, "MARKING", "marked in main", false},
		"draining":                  {0, &configv1.TopicBinding{Epochs: two, Move: move(5)}, "DRAINING", "written to next", false},
		"drained":                   {0, &configv1.TopicBinding{Epochs: two, Move: move(6)}, "DRAINED", "weft migrate finish", true},
		"drained, to be finished":   {configv1.Migration_WISH_FINISH, &configv1.TopicBinding{Epochs: two, Move: move(6)}, "DRAINED", "weft migrate finish", false},
		"drained, to be taken back": {configv1.Migration_WISH_ROLL_BACK, &configv1.TopicBinding{Epochs: two, Move: move(6)}, "DRAINED", "weft migrate finish", false},
		"back, drained":             {configv1.Migration_WISH_ROLL_BACK, &configv1.TopicBinding{Epochs: two, Move: back}, "DRAINED", "back, drained", true},
		"paused":                    {configv1.Migration_WISH_PAUSE, &configv1.TopicBinding{Epochs: two, Move: move(2)}, "LEASING", "written to main under leases", true},
		"to be paused":              {configv1.Migration_WISH_PAUSE, &configv1.TopicBinding{Epochs: two, Move: move(3)}, "STOPPING", "publishers wait", false},
		"finished":                  {configv1.Migration_WISH_FINISH, &configv1.TopicBinding{Epochs: two[1:], Ended: "m"}, "FINISHED", "in next alone", true},
		"taken back":                {configv1.Migration_WISH_ROLL_BACK, &configv1.TopicBinding{Epochs: two[:1], Ended: "m"}, "ROLLED_BACK", "in main, where it was", true},
	} {
		m := &moving{migration: &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders", Uid: "m"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: tc.wish}}},
			binding: tc.binding, admitted: []uint32{1}, readers: []moveReader{{"billing", []uint32{1}}, {"audit", []uint32{1, 2}}}, lacking: []*adminv1.ResourceLack{{NodeId: "p7", Reason: "has revision 12"}},
			progress: &adminv1.MoveProgress{GroupsLeftOut: 3, ProxiesLeftOut: 7,
				Groups: []*adminv1.MoveGroup{{Subscription: "billing", Epoch: 1, Store: "main", Partitions: []*adminv1.MovePartition{{Partition: "2", End: 9, Settled: 4}, {Partition: "1", End: 7, Settled: 7}}},
					{Subscription: "ledger", Epoch: 1, Store: "main", Read: true}},
				Proxies: []*adminv1.MoveProxy{{NodeId: "p8"}, {NodeId: "p9", Says: true, Heard: true, Idle: true, Marked: 2}}},
			conditions: []*adminv1.Condition{{Type: "Drained", State: adminv1.Condition_STATE_FALSE, Reason: "Behind", Message: "billing: partition 0 is at 3 of 7; billing: partition 1 is at 0 of 2"}}}
		var text, js strings.Builder
		if err := m.write(&text, "text"); err != nil {
			t.Fatal(err)
		}
		if err := m.write(&js, "json"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{tc.says, "missing ", "p7: has revision 12", "billing has groups in epoch 1\n", "audit has groups in epochs 1, 2\n", "partition 1 is at 0 of 2", "billing, epoch 1 in main: 1 partition is not read: 2 at 4 of 9", "ledger, epoch 1 in main: all is read", "and 3 more groups",
			"p8: has said nothing of the move", "p9: has the newest phase; nothing is on its way; has marked 2 partitions", "and 7 more proxies"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("%s: %q is not in\n%s", name, want, text.String())
			}
		}
		if !strings.Contains(js.String(), `"phase": "`+tc.phase+`"`) || !strings.Contains(js.String(), `"node_id": "p7"`) || !strings.Contains(js.String(), `"end": 9,`) || !strings.Contains(js.String(), `"settled": 4`) || m.rests() != tc.rests {
			t.Errorf("%s: rests %v:\n%s", name, m.rests(), js.String())
		}
	}
}

// TestMoveCourse: where a topic goes, and which of its places are ready, the one that is left
// by itself too.
func TestMoveCourse(t *testing.T) {
	main, next, again := &configv1.Epoch{Number: 1, Store: "main"}, &configv1.Epoch{Number: 2, Store: "next"}, &configv1.Epoch{Number: 3, Store: "main"}
	one, two, three := []*configv1.Epoch{main}, []*configv1.Epoch{main, next}, []*configv1.Epoch{main, next, again}
	for name, tc := range map[string]struct {
		wish     configv1.Migration_Wish
		move     *configv1.Move
		epochs   []*configv1.Epoch
		admitted []uint32 // as the admission has it
		course   string
		ready    []uint32
	}{
		"not begun":          {0, nil, one, nil, "moves to next already", []uint32{1}},
		"taken back at once": {configv1.Migration_WISH_ROLL_BACK, nil, one, nil, "is being rolled back to main", []uint32{1}},
		"under way":          {0, &configv1.Move{Phase: 2}, two, []uint32{1}, "moves to next already", []uint32{1}},
		"to be taken back":   {configv1.Migration_WISH_ROLL_BACK, &configv1.Move{Phase: 5}, two, []uint32{1, 2}, "is being rolled back to main", []uint32{1, 2}},
		"on the way back":    {configv1.Migration_WISH_ROLL_BACK, &configv1.Move{Phase: 5, Back: true}, three, []uint32{1, 2, 3}, "is being rolled back to main", []uint32{1, 2, 3}},
		"back, to finish":    {configv1.Migration_WISH_FINISH, &configv1.Move{Phase: 6, Back: true}, three, []uint32{1, 2, 3}, "is being rolled back to main", []uint32{1, 2, 3}},
		"one place is left":  {configv1.Migration_WISH_FINISH, nil, []*configv1.Epoch{again}, nil, "moves to next already", []uint32{3}},
	} {
		b := &configv1.TopicBinding{Epochs: tc.epochs, Move: tc.move}
		if tc.move != nil {
			tc.move.MigrationUid = "m"
		}
		m := &moving{migration: &configv1.Resource{Metadata: &configv1.Metadata{Name: "orders", Uid: "m"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: tc.wish}}}, binding: b}
		if got := m.course(); got != tc.course {
			t.Errorf("%s: it %s, want %s", name, got, tc.course)
		}
		if got := usable(b, &configv1.TopicAdmission{Admitted: true, Epochs: tc.admitted}); !slices.Equal(got, tc.ready) {
			t.Errorf("%s: %v are ready, want %v", name, got, tc.ready)
		}
		if got := usable(b, nil); len(got) != 0 {
			t.Errorf("%s: %v are ready where nothing is admitted", name, got)
		}
	}
}

// TestResumed: a move that was paused goes on where it went: back, if it was on its way back.
func TestResumed(t *testing.T) {
	const goOn, pause, back = configv1.Migration_WISH_GO, configv1.Migration_WISH_PAUSE, configv1.Migration_WISH_ROLL_BACK
	for _, tc := range []struct {
		was, wish configv1.Migration_Wish
		back      bool
		want      configv1.Migration_Wish
	}{{pause, goOn, false, goOn}, {pause, goOn, true, back}, {back, goOn, true, goOn}, {back, pause, true, pause}} {
		m := &moving{migration: &configv1.Resource{Metadata: &configv1.Metadata{Uid: "m"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{Wish: tc.was}}},
			binding: &configv1.TopicBinding{Move: &configv1.Move{MigrationUid: "m", Phase: configv1.Move_PHASE_LEASING, Back: tc.back}}}
		if got := m.wished(tc.wish); got != tc.want {
			t.Errorf("%v, back %v: %v comes to %v, want %v", tc.was, tc.back, tc.wish, got, tc.want)
		}
	}
}

// TestFinishOnTheWayBack: a move that is taken back, paused or not, is finished once it is
// drained there, and not before.
func TestFinishOnTheWayBack(t *testing.T) {
	const goOn, pause, back, finish = configv1.Migration_WISH_GO, configv1.Migration_WISH_PAUSE, configv1.Migration_WISH_ROLL_BACK, configv1.Migration_WISH_FINISH
	for _, tc := range []struct {
		was   configv1.Migration_Wish
		back  bool
		phase configv1.Move_Phase
		says  string
	}{
		{goOn, false, configv1.Move_PHASE_LEASING, ""},
		{pause, false, configv1.Move_PHASE_LEASING, ""},
		{back, false, configv1.Move_PHASE_DRAINED, "is on its way back"},
		{back, true, configv1.Move_PHASE_DRAINING, "is on its way back; finish that once it is drained"},
		{pause, true, configv1.Move_PHASE_LEASING, "is on its way back, and paused: weft migrate resume orders goes on; finish that once it is drained"},
		{goOn, true, configv1.Move_PHASE_LEASING, "is on its way back"},
		{back, true, configv1.Move_PHASE_DRAINED, ""},
		{finish, true, configv1.Move_PHASE_DRAINED, ""},
	} {
		m := &moving{migration: &configv1.Resource{Metadata: &configv1.Metadata{Name: "orders", Uid: "m"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next", Wish: tc.was}}},
			binding: &configv1.TopicBinding{Move: &configv1.Move{MigrationUid: "m", Phase: tc.phase, Back: tc.back}}}
		if err := m.unfinishable(); (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v, back %v, %v: %v, want %q", tc.was, tc.back, tc.phase, err, tc.says)
		}
	}
}

// TestPausedAndTakenBack: what cannot be paused says what can be done, and who is asked before
// a move is taken back is told where it goes.
func TestPausedAndTakenBack(t *testing.T) {
	for _, tc := range []struct {
		back        bool
		phase       configv1.Move_Phase
		pause, asks string
	}{
		{false, configv1.Move_PHASE_LEASING, "", "orders stays in main. Roll back?"},
		{false, configv1.Move_PHASE_DRAINING, "orders is written to next already: there is nothing to pause; weft migrate rollback leads back", "orders is written to next already, and moves back to main. Roll back?"},
		{true, configv1.Move_PHASE_LEASING, "", "orders goes on back to main. Roll back?"},
		{true, configv1.Move_PHASE_DRAINING, "orders is written to main already: there is nothing to pause; weft migrate finish ends it", ""},
	} {
		epochs := []*configv1.Epoch{{Number: 1, Store: "main"}, {Number: 2, Store: "next"}}
		if tc.back {
			epochs = append(epochs, &configv1.Epoch{Number: 3, Store: "main"})
		}
		m := &moving{migration: &configv1.Resource{Metadata: &configv1.Metadata{Name: "orders", Uid: "m"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next"}}},
			binding: &configv1.TopicBinding{Epochs: epochs, Move: &configv1.Move{MigrationUid: "m", Phase: tc.phase, Back: tc.back}}}
		why := ""
		if err := m.unpausable(); err != nil {
			why = err.Error()
		}
		if why != tc.pause || m.backQuestion() != tc.asks {
			t.Errorf("back %v, %v: %q, and %q", tc.back, tc.phase, why, m.backQuestion())
		}
	}
}

// TestMigrateMistakes: what is typed wrong is refused with what to do next, before
// anything is changed.
func TestMigrateMistakes(t *testing.T) {
	m := start(t, filepath.Join(t.TempDir(), "data"))
	for _, tc := range []struct {
		says string
		args []string
	}{
		{"name the EventStore that hello moves to with --to", []string{"migrate", "hello"}},
		{"Did you mean this?\n\tstatus", []string{"migrate", "statsu"}},
		{"name the topic that moves", []string{"migrate", "--to", "main"}},
		{"one topic at a time, not hello other", []string{"migrate", "hello", "other", "--to", "main"}},
		{"topic/demo/none does not exist", []string{"migrate", "none", "--to", "main"}},
		{"eventstore/demo/none does not exist", []string{"migrate", "hello", "--to", "none"}},
		{"hello is in main already", []string{"migrate", "hello", "--to", "main"}},
		{"migration/demo/hello does not exist", []string{"migrate", "status", "hello"}},
		{"migration/demo/hello does not exist", []string{"migrate", "pause", "hello"}},
		{"usage: weft migrate finish TOPIC", []string{"migrate", "finish"}},
		{`"xml" is not text, json or yaml`, []string{"migrate", "hello", "--to", "main", "-o", "xml"}},
	} {
		if out, err := m.weft(tc.args...); err == nil || !strings.Contains(explain(err), tc.says) {
			t.Errorf("%v: %s %v", tc.args, out, err)
		}
	}
	if out := m.must("migrate", "list"); out != "no topic moves\n" {
		t.Errorf("%q", out)
	}
}

// TestMigratePlan: what a move will do is shown before it begins: how the target meets what
// the topic needs, and every proxy of the roster, connected or not. It does not begin while
// one of them does not know moves.
func TestMigratePlan(t *testing.T) {
	port, err := servers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	discovery := fmt.Sprintf("127.0.0.1:%d", port)
	m := start(t, filepath.Join(t.TempDir(), "data"), "--discovery="+discovery)
	m.must("apply", "--wait", "1m", "-f", file(t, "plan.yaml", `
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: second}
spec: {embedded: {}}
---
apiVersion: weft/v1alpha1
kind: EventStore
metadata: {namespace: demo, name: away}
spec: {kafka: {brokers: ["127.0.0.1:1"]}}
---
apiVersion: weft/v1alpha1
kind: Topic
metadata: {namespace: demo, name: bills}
spec: {store: main, needs: {order: true, delay: 1h}}
`))
	m.want(0, []string{"migrate", "bills", "--to", "second", "--dry-run"}, "needs ", "order by key: emulated, the store gives a partition to one reader", "delay 1h0m0s: native", "1 proxy must hear of it")
	if out := m.must("migrate", "bills", "--to", "second", "--dry-run"); strings.Contains(out, "one of its own") {
		t.Errorf("one proxy alone waits for itself:\n%s", out)
	}
	m.want(0, []string{"migrate", "bills", "--to", "second", "--dry-run", "-o", "json"}, `"need": "order by key"`, `"means": "emulated"`, `"not_knowing_moves": []`)
	m.want(0, []string{"migrate", "bills", "--to", "away", "--dry-run"}, "order by key: unobserved, EventStore away was not observed yet; the move waits as long")

	// A proxy of an older version, which is gone.
	conn, err := grpc.NewClient(discovery, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, gone := context.WithCancel(m.ctx)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err == nil {
		err = s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "p3"}, TypeUrl: resource.TypeURL, ResourceNamesSubscribe: []string{"*"}})
	}
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	gone()
	refusal := "bills cannot move: of its proxies p3 do not know moves"
	m.await("it is gone", func() bool { return strings.Contains(m.must("proxies", "list", "--absent"), "p3") })
	m.want(1, []string{"migrate", "bills", "--to", "second", "--dry-run"}, "2 proxies must hear of it", "not connected now: p3; the move waits for them", "main is embedded, so each of 2 proxies has one of its own: the move waits until one proxy alone is left", "second is embedded, so each of 2", refusal)
	m.want(1, []string{"migrate", "bills", "--to", "second", "--yes"}, refusal, "declare-dead")
	m.want(0, []string{"migrate", "list"}, "no topic moves")
	m.want(0, []string{"proxies", "list"}, "does not know moves of topics")
	m.must("proxies", "declare-dead", "p3", "--reason", "test", "--yes")
	m.await("its status says so", func() bool { return strings.Contains(m.must("status", "p3"), "refused until weft proxies revive p3") })
	m.want(0, []string{"migrate", "bills", "--to", "second", "--dry-run"}, "1 proxy must hear of it")
	m.want(1, []string{"proxies", "forget"}, "--dead-for DURATION")
	m.want(1, []string{"proxies", "forget", "p3", "--dead-for", "0s"}, "not both")
	m.want(1, []string{"proxies", "forget", "p3"}, "nobody can be asked here")
	m.want(0, []string{"proxies", "forget", "--dead-for", "1h", "--yes"}, "0 proxies forgotten")
	m.want(0, []string{"proxies", "forget", "--dead-for", "0s", "--yes"}, "1 proxy forgotten")
	left := strings.Fields(m.must("proxies", "list", "--names"))
	if len(left) != 1 || left[0] == "p3" {
		t.Errorf("the roster has %q", left)
	}
	m.want(1, []string{"proxies", "forget", left[0], "--yes"}, "it lives")
}

// stored answers with resources.
type stored struct {
	adminv1.AdminServiceClient
	all []*configv1.Resource
}

func (s stored) Get(_ context.Context, req *adminv1.GetRequest, _ ...grpc.CallOption) (*adminv1.GetResponse, error) {
	for _, r := range s.all {
		if resource.NameOf(r) == req.Name {
			return &adminv1.GetResponse{Resource: r}, nil
		}
	}
	return nil, status.Error(codes.NotFound, req.Name)
}

// TestPlanOfMoved: what a topic is to be called where it moves next is derived from its
// first name, also once the place that had that is given up; and what native producers write
// meanwhile is said to come into it.
func TestPlanOfMoved(t *testing.T) {
	md := func(name string) *configv1.Metadata { return &configv1.Metadata{Namespace: "demo", Name: name} }
	topic := &configv1.Resource{Metadata: md("orders"), Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "first"}}}
	c := stored{all: []*configv1.Resource{
		{Metadata: md("rocket"), Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{}}}}},
		{Metadata: md("kafka"), Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{}}}}},
	}}
	for from, to := range map[string]string{"rocket": "kafka", "kafka": "rocket"} {
		p := &movePlan{Namespace: "demo", Topic: "orders"}
		b := &configv1.TopicBinding{TopicUid: "uid", Epochs: []*configv1.Epoch{{Number: 2, Store: from, PhysicalName: names.Epoch("demo_orders", 2, "uid")}}}
		if err := p.places(t.Context(), c, topic, b, &configv1.Migration{To: to}); err != nil {
			t.Fatal(err)
		}
		if want := names.Epoch(names.Physical("demo", "orders"), 3, "uid"); p.To.PhysicalName != want {
			t.Errorf("it is to be %s, want %s", p.To.PhysicalName, want)
		}
		if len(p.Notes) != 1 || !strings.Contains(p.Notes[0], "is brought into the topic until the move is finished") {
			t.Errorf("%q", p.Notes)
		}
	}
}

// TestMigrationsAreNotPruned: that files do not have a Migration means nothing, unless
// they are said to.
func TestMigrationsAreNotPruned(t *testing.T) {
	m := &configv1.Resource{Metadata: &configv1.Metadata{Namespace: "demo", Name: "orders"}, Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: "next"}}}
	for _, tc := range []struct {
		of     selection
		prunes bool
	}{
		{selection{namespace: "demo"}, false},
		{selection{namespace: "demo", kinds: []string{"topic"}}, false},
		{selection{namespace: "demo", kinds: []string{"migration"}}, true},
		{selection{namespace: "other", kinds: []string{"migration"}}, false},
	} {
		if got := tc.of.has(m); got != tc.prunes {
			t.Errorf("%+v: %v", tc.of, got)
		}
	}
}
