package planes

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/election"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/binding"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/position"
	"github.com/weft-mesh/weft/store/rocketmq"
)

// several is a driver of stores of their own, each in a folder of its own; that of
// the EventStore called "new" is as the test says.
type several struct {
	rocketmq.Driver
	dir   string
	down  atomic.Bool                               // the new one cannot be reached
	fails atomic.Bool                               // groups cannot be made in it
	lacks atomic.Pointer[func(*store.Capabilities)] // takes from what it gives
	group atomic.Pointer[func()]                    // is called before a group is made in it
	open  atomic.Pointer[severalStore]
}

func (d *several) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	isNew := strings.HasSuffix(cfg.Name, "/new")
	cfg.Dir, cfg.Options = filepath.Join(d.dir, cfg.UID), embedded.Options{}
	st, err := embedded.Driver{}.Open(ctx, cfg)
	if err != nil || !isNew {
		return st, err
	}
	d.open.Store(&severalStore{st.(*embedded.Store), d})
	return d.open.Load(), nil
}

type severalStore struct {
	*embedded.Store
	by *several
}

func (s *severalStore) Probe(ctx context.Context) (store.Capabilities, error) {
	if s.by.down.Load() {
		return store.Capabilities{}, errors.New("it is down")
	}
	caps, err := s.Store.Probe(ctx)
	if lacks := s.by.lacks.Load(); lacks != nil {
		(*lacks)(&caps)
	}
	return caps, err
}

func (s *severalStore) EnsureGroup(ctx context.Context, topic, group string, from store.Start) error {
	if s.by.fails.Load() {
		return errors.New("it makes no groups")
	}
	if group := s.by.group.Load(); group != nil {
		(*group)()
	}
	return s.Store.EnsureGroup(ctx, topic, group, from)
}

// writer writes what the control plane alone may write.
type writer struct {
	t   *testing.T
	ctx context.Context
	s   *configstore.Store
}

func newWriter(ctx context.Context, t *testing.T, e *embedetcd.Server) *writer {
	t.Helper()
	s := configstore.New(configstore.Config{Client: e.Client(), Log: quiet})
	runFor(t, s.Run)
	return &writer{t, ctx, s}
}

// holdMoves holds the office that carries Migrations out, so that the test does.
func (w *writer) holdMoves() {
	held := make(chan struct{})
	done := sync.OnceFunc(func() { close(held) })
	runFor(w.t, func(ctx context.Context) error {
		election.Run(ctx, election.Config{Client: w.s.Client(), Key: w.s.StatusKey("elect/moves"), Log: quiet}, func(ctx context.Context, _ election.Term) error {
			done()
			<-ctx.Done()
			return nil
		})
		return nil
	})
	<-held
}

// write changes one resource, which may not be there.
func (w *writer) write(name string, change func(r *configv1.Resource) configstore.Change) {
	w.t.Helper()
	for {
		at, err := w.s.WaitFor(w.ctx, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		r := proto.CloneOf(at.Resource(name))
		if r == nil {
			_, rest, _ := strings.Cut(name, "/")
			ns, own, _ := strings.Cut(rest, "/")
			r = &configv1.Resource{Name: name, Metadata: &configv1.Metadata{Namespace: ns, Name: own, Uid: "m-" + own}}
		}
		_, err = w.s.Commit(w.ctx, at, change(r))
		if err == nil {
			return
		}
		if !errors.Is(err, configstore.ErrConflict) {
			w.t.Fatal(err)
		}
	}
}

// put writes one resource.
func (w *writer) put(name string, change func(r *configv1.Resource)) {
	w.t.Helper()
	w.write(name, func(r *configv1.Resource) configstore.Change {
		change(r)
		return configstore.Change{Put: []*configv1.Resource{r}}
	})
}

// TestEpochs: while a topic moves, each of its epochs is made in its own store, and a
// Subscription's groups begin in each where they must. A target that cannot be used is
// a reason at the Migration and changes nothing else; what was admitted stays; an epoch
// counts as ready once all groups are fixed in it; a store that is gone holds up nobody.
func TestEpochs(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	const ns, orders, migration, admission = "demo", "topic/demo/orders", "migration/demo/orders", "topicadmission/demo/orders"
	var early atomic.Bool
	d := &several{dir: t.TempDir()}
	drivers := binding.Drivers()
	drivers[rocketmq.Kind] = d
	etcd := startEtcd(ctx, t)
	w := newWriter(ctx, t, etcd)
	w.holdMoves()
	admin := provisioner(ctx, t, etcd, drivers, server.Times{})
	get := func(name string) *configv1.Resource {
		t.Helper()
		got, err := admin.Get(ctx, &adminv1.GetRequest{Name: name})
		if err != nil {
			t.Fatal(name, err)
		}
		return got.Resource
	}
	pokes := 0
	poke := func() {
		pokes++
		if _, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{eventStore(ns, "poke", time.Unix(int64(pokes), 0).UTC().Format("150405"))}}); err != nil {
			t.Fatal(err)
		}
	}
	epochs := func() []uint32 {
		adm := get(admission).GetTopicAdmission()
		if !adm.Admitted || len(adm.Reasons) > 0 {
			t.Fatalf("what was admitted is not any more: %v", adm)
		}
		return adm.Epochs
	}
	prepared := func(state adminv1.Condition_State, reason, says string) {
		t.Helper()
		awaitCondition(ctx, t, admin, migration, reason, poke, func(c *adminv1.Condition) bool {
			return c.Type == "Prepared" && c.State == state && c.Reason == reason && strings.Contains(c.Message, says)
		})
		for state == adminv1.Condition_STATE_TRUE && !slices.Contains(epochs(), 2) && ctx.Err() == nil { // it is said right before
		}
		if want := state == adminv1.Condition_STATE_TRUE; slices.Contains(epochs(), 2) != want {
			t.Errorf("with %s the epochs %v are ready", reason, epochs())
		}
		got, err := admin.Get(ctx, &adminv1.GetRequest{Name: orders})
		if err != nil || slices.ContainsFunc(got.Conditions, func(c *adminv1.Condition) bool { return c.State == adminv1.Condition_STATE_FALSE }) {
			t.Errorf("with %s at the target the topic is %v, %v", reason, got.GetConditions(), err)
		}
	}
	subscribe := func(name string, s *configv1.Subscription) string {
		t.Helper()
		s.Topics = []string{"orders"}
		resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{{Metadata: &configv1.Metadata{Namespace: ns, Name: name},
			Spec: &configv1.Resource_Subscription{Subscription: s}}}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Results[0].Uid
	}
	// reads waits until a subscription has exactly these epochs.
	reads := func(name string, want ...uint32) {
		t.Helper()
		var got []uint32
		for ctx.Err() == nil {
			r, err := admin.Get(ctx, &adminv1.GetRequest{Name: "subscriptionadmission/demo/" + name})
			if got = nil; err == nil {
				for _, s := range r.Resource.GetSubscriptionAdmission().Sources {
					got = append(got, s.Epoch)
				}
			}
			if reflect.DeepEqual(got, want) {
				return
			}
		}
		t.Fatalf("%s reads epochs %v, want %v", name, got, want)
	}
	reachable := func(name string) *configv1.Resource {
		r := eventStore(ns, name, "")
		r.Spec = &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{"127.0.0.1:1"}}}}}
		return r
	}
	moved := topic(ns, "orders")
	moved.GetTopic().Store, moved.GetTopic().Partitions = "old", 1
	moved.GetTopic().Needs = &configv1.Needs{Durability: configv1.Durability_DURABILITY_DISK}
	resp, err := admin.Apply(ctx, &adminv1.ApplyRequest{Resources: []*configv1.Resource{reachable("old"), reachable("new"), moved}})
	if err != nil {
		t.Fatal(err)
	}
	newUID, uid := resp.Results[1].Uid, resp.Results[2].Uid
	first := subscribe("first", &configv1.Subscription{})
	awaitReady(ctx, t, admin, "subscription/demo/first", "", nil)
	awaitReady(ctx, t, admin, orders, "", nil)
	awaitCondition(ctx, t, admin, "eventstore/demo/new", "reachable", nil, func(c *adminv1.Condition) bool {
		return c.Type == "Reachable" && c.State == adminv1.Condition_STATE_TRUE
	})
	if got := epochs(); len(got) > 0 { // a topic that does not move is as older versions know it
		t.Errorf("the epochs %v are ready", got)
	}

	phase := func(p configv1.Move_Phase) {
		t.Helper()
		w.put("topicbinding/demo/orders", func(r *configv1.Resource) { r.GetTopicBinding().Move.Phase = p })
	}
	physical := names.Epoch(names.Physical(ns, "orders"), 2, uid)
	d.down.Store(true)
	w.put(migration, func(r *configv1.Resource) {
		r.Spec = &configv1.Resource_Migration{Migration: &configv1.Migration{To: "new"}}
	})
	w.put("topicbinding/demo/orders", func(r *configv1.Resource) {
		b := r.GetTopicBinding()
		b.Epochs = append(b.Epochs, &configv1.Epoch{Number: 2, Store: "new", StoreUid: newUID, PhysicalName: physical})
		b.Move = &configv1.Move{MigrationUid: "m-orders", Phase: configv1.Move_PHASE_PREPARING}
	})
	const no, yes = adminv1.Condition_STATE_FALSE, adminv1.Condition_STATE_TRUE
	prepared(no, "StoreUnreachable", "EventStore new cannot be reached: it is down")
	reads("first", 1)
	d.down.Store(false)
	w.put(orders, func(r *configv1.Resource) {
		r.GetTopic().Retention = &configv1.Retention{MaxAge: durationpb.New(time.Hour)}
	})
	for reason, lacks := range map[string]func(*store.Capabilities){
		"StoreLacksDurability": func(c *store.Capabilities) { c.Durability = store.DurabilityProcess },
		"StoreLacksSize":       func(c *store.Capabilities) { c.MaxEventBytes = 1<<20 - 1 },
		"StoreLacksRetention":  func(c *store.Capabilities) { c.TopicRetention = false },
		"StoreLacksDelay":      func(c *store.Capabilities) { c.Delay = time.Minute },
	} {
		d.lacks.Store(&lacks)
		prepared(no, reason, "EventStore new")
	}
	reads("first", 1)

	st := d.open.Load()
	d.lacks.Store(nil)
	publish := func(id, topic string) store.Position {
		t.Helper()
		res := make([]store.Result, 1)
		if err := st.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: id, Source: "/test", Type: "t", Data: []byte("x")}}}, res); err != nil {
			t.Fatal(err)
		}
		return res[0].Pos
	}
	if err := st.EnsureTopic(ctx, store.TopicSpec{Name: physical, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	publish("foreign", physical)
	prepared(no, "TopicNotEmpty", "it has events that are not this topic's: 1")
	if err := st.DeleteTopic(ctx, physical); err != nil {
		t.Fatal(err)
	}
	d.fails.Store(true)
	prepared(no, "GroupsMissing", "Subscription first: group: it makes no groups")
	reads("first", 1)
	look := func() {
		if slices.Contains(get(admission).GetTopicAdmission().Epochs, 2) {
			early.Store(true)
		}
	}
	d.group.Store(&look)
	d.fails.Store(false)
	prepared(yes, "Prepared", physical)
	reads("first", 1, 2)
	if early.Load() {
		t.Error("the epoch was ready before its groups were fixed")
	}
	// behind is how many events of an epoch a subscription gets.
	behind := func(sub string, epoch uint32, want int64) {
		t.Helper()
		lag, err := st.Lag(ctx, physical, names.GroupOf(sub, uid, epoch))
		if err != nil || len(lag) != 1 || lag[0].Behind != want {
			t.Errorf("epoch %d: %v, %v, want %d behind", epoch, lag, err, want)
		}
	}
	behind(first, 2, 0)

	// From the second phase on what is ready stays so, whatever becomes of the store.
	d.group.Store(nil)
	phase(configv1.Move_PHASE_LEASING)
	d.down.Store(true)
	awaitCondition(ctx, t, admin, "eventstore/demo/new", "is down", poke, func(c *adminv1.Condition) bool { return c.Type == "Reachable" && c.State == no })
	if got := epochs(); !reflect.DeepEqual(got, []uint32{1, 2}) {
		t.Errorf("the epochs %v are ready", got)
	}
	d.down.Store(false)
	at := publish("new", physical)
	during := subscribe("during", &configv1.Subscription{})
	reads("during", 1, 2)
	behind(during, 2, 1)

	phase(configv1.Move_PHASE_DRAINING)
	last := subscribe("last", &configv1.Subscription{})
	reads("last", 2)
	behind(last, 2, 0)
	whole := subscribe("whole", &configv1.Subscription{Start: configv1.Start_START_BEGINNING})
	reads("whole", 1, 2)
	behind(whole, 2, 1)
	placed := subscribe("placed", &configv1.Subscription{StartPositions: []string{position.Token{TopicUID: uid, Epoch: 2, Pos: at}.String()}})
	reads("placed", 2)
	behind(placed, 2, 0)

	// What was admitted stays so while its store is down; who comes then waits.
	d.down.Store(true)
	awaitCondition(ctx, t, admin, orders, "is down", poke, func(c *adminv1.Condition) bool {
		return c.Type == "Provisioned" && c.State == no && c.Reason == "AsAdmittedNoLonger"
	})
	subscribe("waits", &configv1.Subscription{})
	awaitCondition(ctx, t, admin, "subscription/demo/waits", "is down", poke, func(c *adminv1.Condition) bool { return strings.Contains(c.Message, "it is down") })
	epochs()
	d.down.Store(false)
	reads("waits", 2)

	// The old store is gone from the configuration, then the epoch is.
	w.write("eventstore/demo/old", func(r *configv1.Resource) configstore.Change {
		return configstore.Change{Delete: []string{r.Name}}
	})
	after := subscribe("after", &configv1.Subscription{Start: configv1.Start_START_BEGINNING})
	reads("after", 2)
	behind(after, 2, 1)
	if got := epochs(); !reflect.DeepEqual(got, []uint32{1, 2}) {
		t.Errorf("the epochs %v are ready", got)
	}
	w.put("topicbinding/demo/orders", func(r *configv1.Resource) {
		b := r.GetTopicBinding()
		b.Epochs, b.Move = b.Epochs[1:], nil
	})
	reads("first", 2)
	reads("whole", 2)
	old := subscribe("old", &configv1.Subscription{StartPositions: []string{position.Token{TopicUID: uid, Epoch: 1, Pos: at}.String()}})
	reads("old", 2)
	behind(old, 2, 1)
	if got := epochs(); len(got) > 0 {
		t.Errorf("the epochs %v are ready", got)
	}
}
