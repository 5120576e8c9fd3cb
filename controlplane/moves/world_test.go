package moves

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/weft-mesh/weft/proto/gen/weft/admin/v1alpha1"
	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/controlplane/configstore"
	"github.com/weft-mesh/weft/controlplane/embedetcd"
	"github.com/weft-mesh/weft/controlplane/roster"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

var quiet0 = slog.New(slog.DiscardHandler)

// world is a topic "t" of namespace "ns" in EventStore "a", with one Subscription, above
// a real etcd; EventStores "a" and "b" are elsewhere, as far as the control plane knows.
type world struct {
	*testing.T
	ctx   context.Context
	etcd  *clientv3.Client
	store *configstore.Store
	addr  string
	// jump is added to the time since boot.
	jump atomic.Int64
	// passes counts what the office that was started last has looked at.
	passes *atomic.Int64
	// lags counts how often stores were asked how far a group is.
	lags  atomic.Int64
	where map[string]store.Store // by EventStore uid
	// barriers are the fences of stores that have some; likewise.
	barriers map[string]*barrier
	// wide is how many partitions topics have in EventStore "a", as that says; 0 is as they are.
	wide int
	// own are topics that stores have of their own, of all.
	own []store.OwnTopic
	// freeze lets the copy of the configuration be what it is.
	freeze func()

	mu    sync.Mutex
	nodes []string
	old   []string // of nodes, those that do not know moves
}

const (
	binding   = "topicbinding/ns/t"
	migration = "migration/ns/t"
)

// shared gives the stores of a world to whoever opens them.
type shared struct{ w *world }

type lent struct {
	store.Store
	store.Admin
	store.Measurer
	lags *atomic.Int64
	own  []store.OwnTopic
}

func (l lent) OwnTopics() []store.OwnTopic { return l.own }

func (lent) Close(context.Context) error { return nil }

func (l lent) Lag(ctx context.Context, topic, group string) ([]store.PartitionLag, error) {
	lag, err := l.Admin.Lag(ctx, topic, group)
	l.lags.Add(1)
	return lag, err
}

// wide says of topics that they have so many partitions.
type wide int

func (n wide) Extents(context.Context, string) (list []store.Extent, err error) {
	for i := range n {
		list = append(list, store.Extent{Partition: fmt.Sprint(i)})
	}
	return list, nil
}

func (shared) Kind() string { return "shared" }

func (d shared) Open(_ context.Context, cfg store.Config) (store.Store, error) {
	st := d.w.where[cfg.UID]
	l := lent{st, st.(store.Admin), st.(store.Measurer), &d.w.lags, d.w.own}
	if d.w.wide > 0 && cfg.UID == "uid-a" {
		l.Measurer = wide(d.w.wide)
	}
	if b := d.w.barriers[cfg.UID]; b != nil {
		return struct {
			lent
			*barrier
		}{l, b}, nil
	}
	return l, nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	e, err := embedetcd.Start(ctx, filepath.Join(t.TempDir(), "etcd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	w := &world{T: t, ctx: ctx, etcd: e.Client(), where: map[string]store.Store{}}
	w.store = configstore.New(configstore.Config{Client: e.Client(), Log: quiet0})
	w.freeze = w.run(w.store.Run)
	if _, err := w.store.WaitFor(ctx, 0); err != nil {
		t.Fatal(err)
	}
	_, w.addr, _ = w.replica(func(string) error { return nil })
	for _, name := range []string{"a", "b"} {
		st, err := embedded.Driver{}.Open(ctx, store.Config{Name: name, UID: name, Dir: t.TempDir(), Options: embedded.Options{}, Log: quiet0})
		w.must(err)
		t.Cleanup(func() { _ = st.Close(context.Background()) })
		w.where["uid-"+name] = st
		w.put(meta(name, "uid-"+name), &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{NameServers: []string{name}}}}}})
	}
	w.put(meta("t", "topic"), &configv1.Resource{Spec: &configv1.Resource_Topic{Topic: &configv1.Topic{Store: "a"}}})
	w.put(meta("s", "sub"), &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"t"},
		Retry: &configv1.Retry{MaxBackoff: durationpb.New(time.Minute)}}}})
	w.put(meta("t", ""), &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: &configv1.TopicBinding{TopicUid: "topic",
		Epochs: []*configv1.Epoch{{Number: 1, Store: "a", StoreUid: "uid-a", PhysicalName: "ns_t"}}}}})
	w.admit()
	return w
}

// run runs something until the returned function, or the test's end.
func (w *world) run(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(stop)
	return stop
}

// replica is another server of Hold streams above the same etcd.
func (w *world) replica(authorize func(node string) error) (h *Holds, addr string, stop func()) {
	w.Helper()
	h = NewHolds(HoldsConfig{Store: w.store, Authorize: func(_ context.Context, node string) error { return authorize(node) }, May: func(_ context.Context, _, ns string) bool { return ns == "ns" }, MaxStreams: 3, Log: quiet0})
	stop = w.run(h.Run)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	srv := grpc.NewServer()
	discoveryv1.RegisterMoveServiceServer(srv, h)
	go func() { _ = srv.Serve(l) }()
	w.Cleanup(srv.Stop)
	return h, l.Addr().String(), stop
}

// office is a replica that stands for the office.
func (w *world) office() (stop func()) {
	passes := new(atomic.Int64)
	w.passes = passes
	o := New(Config{Store: w.store, Drivers: map[string]store.Driver{"shared": shared{w}},
		Options: func(*configv1.EventStore) (string, any, error) { return "shared", nil, nil },
		Nodes: func(context.Context, string) (list []*roster.Node, err error) {
			passes.Add(1)
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, id := range slices.Sorted(slices.Values(w.nodes)) {
				list = append(list, &roster.Node{ID: id, Moves: !slices.Contains(w.old, id)})
			}
			return list, nil
		},
		SinceBoot: func() time.Duration { return clock.SinceBoot() + time.Duration(w.jump.Load()) }, ElectionTTL: time.Second, Log: quiet0})
	return w.run(o.Run)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func meta(name, uid string) *configv1.Metadata {
	return &configv1.Metadata{Namespace: "ns", Name: name, Uid: uid}
}

// write changes the configuration, whoever else does.
func (w *world) write(c configstore.Change) {
	w.Helper()
	for {
		snap, err := w.store.Current()
		w.must(err)
		rev, err := w.store.Commit(w.ctx, snap, c)
		if err == nil {
			_, err = w.store.WaitFor(w.ctx, rev)
			w.must(err)
			return
		}
		if err != configstore.ErrConflict { //nolint:errorlint // it is never wrapped
			w.Fatal(err)
		}
		_, err = w.store.WaitFor(w.ctx, snap.Revision+1)
		w.must(err)
	}
}

func (w *world) put(md *configv1.Metadata, r *configv1.Resource) {
	w.Helper()
	r.Metadata = md
	r.Name = resource.NameOf(r)
	w.write(configstore.Change{Put: []*configv1.Resource{r}})
}

// admit is the provisioner: it makes what the epochs of the topic need, and says so.
func (w *world) admit() {
	w.Helper()
	b := w.binding()
	adm := &configv1.TopicAdmission{TopicUid: "topic", Admitted: true}
	sub := &configv1.SubscriptionAdmission{SubscriptionUid: "sub"}
	for _, e := range b.Epochs {
		admin := w.where[e.StoreUid].(store.Admin)
		w.must(admin.EnsureTopic(w.ctx, store.TopicSpec{Name: e.PhysicalName}))
		w.must(admin.EnsureGroup(w.ctx, e.PhysicalName, "group", store.Start{}))
		w.must(admin.EnsureGroup(w.ctx, e.PhysicalName, names.FollowGroup("topic", e.Number), store.Start{}))
		w.must(admin.EnsureTopic(w.ctx, store.TopicSpec{Name: "retry"}))
		w.must(admin.EnsureGroup(w.ctx, "retry", "retry-group", store.Start{}))
		adm.Epochs = append(adm.Epochs, e.Number)
		sub.Sources = append(sub.Sources, &configv1.SubscriptionSource{Topic: "t", TopicUid: "topic", Epoch: e.Number, PhysicalGroup: "group", RetryTopic: "retry", RetryGroup: "retry-group"})
	}
	w.put(meta("t", ""), &configv1.Resource{Spec: &configv1.Resource_TopicAdmission{TopicAdmission: adm}})
	w.put(meta("s", ""), &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: sub}})
}

func (w *world) binding() *configv1.TopicBinding {
	w.Helper()
	snap, err := w.store.Current()
	w.must(err)
	return snap.Resource(binding).GetTopicBinding()
}

// wish makes the Migration, or changes what it is to become.
func (w *world) wish(wish configv1.Migration_Wish) {
	w.Helper()
	w.migrate("migration-1", "b", wish)
}

func (w *world) migrate(uid, to string, wish configv1.Migration_Wish) {
	w.Helper()
	w.put(meta("t", uid), &configv1.Resource{Spec: &configv1.Resource_Migration{Migration: &configv1.Migration{To: to, Wish: wish}}})
}

// until waits until the binding is so.
func (w *world) until(what string, is func(b *configv1.TopicBinding) bool) *configv1.TopicBinding {
	w.Helper()
	for {
		snap, changed := w.store.Snapshot()
		if b := snap.Resource(binding).GetTopicBinding(); is(b) {
			return b
		}
		select {
		case <-changed:
		case <-w.ctx.Done():
			w.Fatalf("waited for %s; the binding is %v; told: %s", what, w.binding(), w.told())
		}
	}
}

// phase waits until a move is at a phase. One that has ended does not come to any.
func (w *world) phase(want configv1.Move_Phase) *configv1.TopicBinding {
	w.Helper()
	return w.until(want.String(), func(b *configv1.TopicBinding) bool {
		if b.GetMove() == nil && want != preparing {
			w.Fatalf("the move has ended before %v; the binding is %v; told: %s", want, b, w.told())
		}
		return b.GetMove().GetPhase() == want
	})
}

// told is what is told of the Migration.
func (w *world) told() string {
	none := func(context.Context) (map[string][]*adminv1.Condition, error) {
		return map[string][]*adminv1.Condition{}, nil
	}
	all, err := Conditions(w.store, none)(context.Background())
	if err != nil || len(all[migration]) == 0 {
		return ""
	}
	c := all[migration][0]
	return c.Reason + ": " + c.Message
}

// untilTold waits until something is told.
func (w *world) untilTold(want string) {
	w.Helper()
	w.eventually("it is told "+want, func() bool { return strings.Contains(w.told(), want) })
}

// toldIn waits until something is told of a move that does not leave its phase before.
func (w *world) toldIn(phase configv1.Move_Phase, want string) {
	w.Helper()
	w.eventually("it is told "+want, func() bool {
		if b := w.binding(); b.GetMove().GetPhase() != phase {
			w.Fatalf("it has left %v before it is told %s; the binding is %v; told: %s", phase, want, b, w.told())
		}
		return strings.Contains(w.told(), want)
	})
}

// proxy is a simulated one: it says by itself what the rules ask of it, over a real
// stream.
type proxy struct {
	w    *world
	node string

	mu sync.Mutex
	// How it is: it has not the newest configuration; a write is always on its way; it
	// has not the old store; markers fail.
	deaf, busy, unable bool
	failing            string
	elsewhere          bool // it marks another partition than there is
	settled            []*discoveryv1.Settled
	leases             int
	granted            bool // by the last answer
	sealed             map[string][]*configv1.Cut
	// late is a marker of an earlier attempt, which it tells in Marking.
	late        *configv1.Cut
	lateAttempt uint32
	stop        func()
}

// join starts a proxy at an address.
func (w *world) join(node, addr string, how func(*proxy)) *proxy {
	w.Helper()
	p := &proxy{w: w, node: node, sealed: map[string][]*configv1.Cut{}}
	if how != nil {
		how(p)
	}
	w.mu.Lock()
	if !slices.Contains(w.nodes, node) {
		w.nodes = append(w.nodes, node)
	}
	w.mu.Unlock()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	p.stop = w.run(func(ctx context.Context) error {
		rpc, err := discoveryv1.NewMoveServiceClient(conn).Hold(ctx)
		for err == nil && ctx.Err() == nil {
			req := p.says()
			if err = rpc.Send(req); err != nil {
				break
			}
			var resp *discoveryv1.HoldResponse
			if resp, err = rpc.Recv(); err != nil {
				break
			}
			p.mu.Lock()
			p.granted = len(resp.Granted) > 0
			if p.granted {
				p.leases++
			}
			p.mu.Unlock()
			select {
			case <-time.After(250 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return p
}

func (p *proxy) be(how func(*proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	how(p)
}

// says is where the proxy is.
func (p *proxy) says() *discoveryv1.HoldRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	req := &discoveryv1.HoldRequest{NodeId: p.node}
	snap, _ := p.w.store.Snapshot()
	e := snap.Get(binding)
	b := e.Resource.GetTopicBinding()
	if b.GetMove() == nil {
		return req
	}
	held := &discoveryv1.Held{Binding: binding, Version: e.Version(), Able: !p.unable, Settled: p.settled}
	req.Moves = append(req.Moves, held)
	if p.deaf {
		held.Version = "1"
		return req
	}
	switch b.Move.Phase {
	case configv1.Move_PHASE_LEASING:
		held.Wants, held.Epoch = true, b.Epochs[len(b.Epochs)-2].Number
	case configv1.Move_PHASE_STOPPING:
		held.Idle = !p.busy
	case configv1.Move_PHASE_MARKING:
		if b.Move.Marker != p.node {
			break
		}
		if p.late != nil {
			held.Attempt, held.Cut = p.lateAttempt, []*configv1.Cut{p.late}
			break
		}
		if held.Trouble = p.failing; held.Trouble != "" {
			break
		}
		key := fmt.Sprint(e.Version())
		if p.sealed[key] == nil {
			p.sealed[key] = p.w.seal(b)
		}
		held.Attempt, held.Cut = b.Move.Attempt, p.sealed[key]
		if p.elsewhere {
			held.Cut = []*configv1.Cut{{Partition: "elsewhere"}}
		}
	}
	return req
}

// seal writes a marker into the epoch before the last.
func (w *world) seal(b *configv1.TopicBinding) []*configv1.Cut {
	e := b.Epochs[len(b.Epochs)-2]
	return []*configv1.Cut{{Offset: w.publish(e.StoreUid, e.PhysicalName, "marker")}}
}

// publish writes one event and gives its offset.
func (w *world) publish(uid, topic, id string) uint64 {
	res := make([]store.Result, 1)
	ev := &event.Event{ID: id, Source: "/test", Type: "test"}
	if err := w.where[uid].Publish(w.ctx, topic, []store.Outgoing{{Event: ev}}, res); err != nil {
		w.Error(err)
	}
	return res[0].Pos.Offset
}

// read settles n events of a group.
func (w *world) read(uid, topic, group string, n int) {
	w.Helper()
	sub, err := w.where[uid].Subscribe(w.ctx, store.SubscribeRequest{Topic: topic, Group: group})
	w.must(err)
	dst := make([]store.Message, 1)
	for range n {
		_, err := sub.Fetch(w.ctx, dst)
		w.must(err)
		sub.Settle([]*store.Message{&dst[0]})
	}
	w.must(sub.Close(w.ctx))
}

// words are what etcd has of what proxies say.
func (w *world) words() map[string]*discoveryv1.Held {
	w.Helper()
	prefix := w.store.StatusKey("move/topic/")
	resp, err := w.etcd.Get(w.ctx, prefix, clientv3.WithPrefix())
	w.must(err)
	out := map[string]*discoveryv1.Held{}
	for _, kv := range resp.Kvs {
		h := &discoveryv1.Held{}
		w.must(proto.Unmarshal(kv.Value, h))
		out[string(kv.Key[len(prefix):])] = h
	}
	return out
}

// within is eventually, of what takes long only where it never comes.
func (w *world) within(d time.Duration, what string, is func() bool) {
	w.Helper()
	began := time.Now()
	w.eventually(what, func() bool {
		there := is()
		if !there && time.Since(began) > d {
			w.Fatalf("waited for %v until %s; the binding is %v; told: %s", d, what, w.binding(), w.told())
		}
		return there
	})
}

// eventually waits until something is so.
func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("waited until %s; the binding is %v; told: %s", what, w.binding(), w.told())
		}
	}
}
