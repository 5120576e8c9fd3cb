package stores

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// troubled is the embedded driver with trouble on demand.
type troubled struct {
	embedded.Driver
	mu     sync.Mutex
	broken error            // Open fails with it
	topics map[string]error // EnsureTopic fails with it
	hold   chan struct{}    // Open waits for it, if set
	check  error            // Check says it
	opened []*watched
}

// watched is an open store that says when it is closed.
type watched struct {
	*embedded.Store
	d      *troubled
	dir    string
	closed chan struct{}
}

func (d *troubled) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	d.mu.Lock()
	broken, hold := d.broken, d.hold
	d.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if broken != nil {
		return nil, broken
	}
	st, err := d.Driver.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	w := &watched{st.(*embedded.Store), d, cfg.Dir, make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened = append(d.opened, w)
	return w, nil
}

// Check is as d says.
func (w *watched) Check(context.Context) error {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	return w.d.check
}

func (w *watched) EnsureTopic(ctx context.Context, t store.TopicSpec) error {
	w.d.mu.Lock()
	err := w.d.topics[t.Name]
	w.d.mu.Unlock()
	if err != nil {
		return err
	}
	return w.Store.EnsureTopic(ctx, t)
}

func (w *watched) Close(ctx context.Context) error {
	defer close(w.closed)
	return w.Store.Close(ctx)
}

func (d *troubled) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *troubled) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.opened)
}

const uid1, uid2 = "0190a0b0-0000-7000-8000-000000000001", "0190a0b0-0000-7000-8000-000000000002"

// manager makes a Manager over d. Each open store has a file system of its own,
// but for those of one name, as on a disk.
func manager(t *testing.T, d *troubled, change func(*Config)) *Manager {
	t.Helper()
	fs := vfs.NewMem()
	cfg := Config{Drivers: map[string]store.Driver{"embedded": d}, ClientID: "i1", Dir: "stores", Grace: 100 * time.Millisecond, ApplyWait: 20 * time.Second,
		Options: func(s *configv1.EventStore) (string, any, error) {
			if s.GetEmbedded() != nil {
				return "embedded", embedded.Options{FS: fs}, nil
			}
			if r := s.GetRocketmq(); r.GetCluster() != "" {
				// Stands for a store elsewhere: a file system for each cluster.
				return "embedded", embedded.Options{FS: vfs.NewMem()}, nil
			}
			return "none", nil, nil
		},
		Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	m := New(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
		for _, w := range d.opened {
			select {
			case <-w.closed:
			default:
				t.Error("a store is left open")
			}
		}
	})
	return m
}

func local() *configv1.EventStore {
	return &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}
}

func elsewhere(cluster string) *configv1.EventStore {
	return &configv1.EventStore{Driver: &configv1.EventStore_Rocketmq{Rocketmq: &configv1.RocketMQ{Cluster: cluster}}}
}

func k(name string) snapshot.Key { return snapshot.Key{Namespace: "demo", Name: name} }

// with makes a snapshot of stores by uid.
func with(stores map[string]*configv1.EventStore) *snapshot.Snapshot {
	s := &snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{}, Stores: map[string]*snapshot.Store{}}
	for uid, spec := range stores {
		s.Stores[uid] = &snapshot.Store{Key: k("s" + uid[len(uid)-1:]), UID: uid, Spec: spec}
	}
	return s
}

func addTopic(s *snapshot.Snapshot, name string) *snapshot.Topic {
	t := &snapshot.Topic{Key: k(name), UID: "t-" + name, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uid1, Physical: "demo_" + name, Local: true}},
		AtProxy: &snapshot.LocalTopic{Partitions: 1}}
	s.Topics[t.Key] = t
	return t
}

func addSub(s *snapshot.Snapshot, name string, beginning bool, topics ...*snapshot.Topic) *snapshot.Subscription {
	sub := &snapshot.Subscription{Key: k(name), UID: "s-" + name}
	for _, t := range topics {
		sub.Sources = append(sub.Sources, snapshot.Source{Topic: t, Epoch: t.Written(), Group: name + "-" + t.Name, RetryTopic: "retry-" + name,
			RetryGroup: "retry-g-" + name, AtProxy: true, Start: store.Start{End: !beginning}})
	}
	s.Subscriptions[sub.Key] = sub
	return sub
}

func get(t *testing.T, m *Manager, uid string) store.Store {
	t.Helper()
	st, err := m.Get(uid)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func publish(t *testing.T, st store.Store, topic string) error {
	t.Helper()
	return st.Publish(t.Context(), topic, []store.Outgoing{{Event: &event.Event{ID: "1", Source: "s", Type: "t"}}}, make([]store.Result, 1))
}

// eventually waits until ok, which has no event to wait for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(2 * time.Minute); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within 2 minutes", what)
		}
	}
}

// TestRetriesAreNotKept: of a retry topic, which its group alone reads, nothing is kept that is
// settled; of others all is.
func TestRetriesAreNotKept(t *testing.T) {
	s := with(map[string]*configv1.EventStore{uid1: local()})
	addSub(s, "billing", true, addTopic(s, "orders"))
	for name, w := range wanted(s)[uid1] {
		if w.spec.DropSettled != (name == "retry-billing") {
			t.Errorf("%s: %+v", name, w.spec)
		}
	}
}

func TestOpenAndMake(t *testing.T) {
	d := &troubled{}
	m := manager(t, d, nil)
	if _, err := m.Get(uid1); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("before the configuration: %v", err)
	}
	s := with(map[string]*configv1.EventStore{uid1: local()})
	orders := addTopic(s, "orders")
	sub := addSub(s, "billing", false, orders)
	m.Apply(t.Context(), s)
	if orders.NotReady != "" || sub.NotReady != "" || len(sub.Sources) != 1 {
		t.Fatalf("not made: %q %q", orders.NotReady, sub.NotReady)
	}
	st := get(t, m, uid1)
	if err := publish(t, st, "demo_orders"); err != nil {
		t.Fatal(err)
	}
	// The group's start was fixed before the event.
	lag, err := st.(store.Admin).Lag(t.Context(), "demo_orders", "billing-orders")
	if err != nil || len(lag) != 1 || lag[0].Behind != 1 {
		t.Errorf("%v %v", lag, err)
	}
	if _, err := st.(store.Admin).Lag(t.Context(), "retry-billing", "retry-g-billing"); err != nil {
		t.Error(err)
	}
	// What comes later: a subscription from the beginning and a topic.
	s = with(map[string]*configv1.EventStore{uid1: local()})
	s.Stores[uid1].Version = "2"
	orders, more := addTopic(s, "orders"), addTopic(s, "more")
	audit := addSub(s, "audit", true, orders, more)
	m.Apply(t.Context(), s)
	if more.NotReady != "" || audit.NotReady != "" || len(audit.Sources) != 2 {
		t.Errorf("not made: %q %q", more.NotReady, audit.NotReady)
	}
	if lag, err := st.(store.Admin).Lag(t.Context(), "demo_orders", "audit-orders"); err != nil || lag[0].Behind != 1 {
		t.Errorf("%v %v", lag, err)
	}
	if d.count() != 1 || get(t, m, uid1) != st {
		t.Error("a new version of the same store was opened again")
	}
	if d.opened[0].dir != "stores/"+uid1 {
		t.Errorf("its folder is %s", d.opened[0].dir)
	}
}

// TestStartRefused: a subscription whose position the store does not have waits for it
// alone: the topic is made, and others begin.
func TestStartRefused(t *testing.T) {
	m := manager(t, &troubled{}, nil)
	s := with(map[string]*configv1.EventStore{uid1: local()})
	orders := addTopic(s, "orders")
	billing, audit := addSub(s, "billing", false, orders), addSub(s, "audit", true, orders)
	audit.Sources[0].Start.After = []store.Position{{Offset: 7}}
	m.Apply(t.Context(), s)
	if orders.NotReady != "" || billing.NotReady != "" {
		t.Errorf("they are not ready: %q %q", orders.NotReady, billing.NotReady)
	}
	if !strings.Contains(audit.NotReady, "a position is offset 7") {
		t.Errorf("audit: %q", audit.NotReady)
	}
}

// TestFailingOpen: Apply does not wait for ever, others are served, and the
// store is tried until it works, which is told.
func TestFailingOpen(t *testing.T) {
	d := &troubled{broken: errors.New("the disk is on fire")}
	prepared := make(chan struct{}, 1)
	m := manager(t, d, func(c *Config) { c.Prepared = func() { prepared <- struct{}{} } })
	conf := func() (*snapshot.Snapshot, *snapshot.Topic) {
		s := with(map[string]*configv1.EventStore{uid1: local()})
		return s, addTopic(s, "orders")
	}
	s, orders := conf()
	m.Apply(t.Context(), s)
	_, err := m.Get(uid1)
	if fault.ClassOf(err) != fault.Unavailable || fault.From(err).RetryAfter == 0 || !strings.Contains(err.Error(), "on fire") || strings.Contains(fault.From(err).Msg, "fire") {
		t.Errorf("the answer is %v", err)
	}
	if !strings.Contains(orders.NotReady, "on fire") {
		t.Errorf("the topic says %q", orders.NotReady)
	}
	if st := m.Status(); len(st) != 1 || st[0].Open || st[0].Store != "demo/s1" || !strings.Contains(st[0].Problem, "on fire") {
		t.Errorf("the status is %v", st)
	}
	d.set(func() { d.broken = nil })
	<-prepared
	s, orders = conf()
	m.Apply(t.Context(), s)
	if orders.NotReady != "" {
		t.Errorf("after the fire the topic says %q", orders.NotReady)
	}
	if st := m.Status(); !st[0].Open || st[0].Problem != "" {
		t.Errorf("the status is %v", st)
	}
	if err := publish(t, get(t, m, uid1), "demo_orders"); err != nil {
		t.Error(err)
	}
}

// TestSlowOpen: Apply's patience ends; the store comes later.
func TestSlowOpen(t *testing.T) {
	d := &troubled{hold: make(chan struct{})}
	prepared := make(chan struct{}, 1)
	m := manager(t, d, func(c *Config) { c.ApplyWait = time.Millisecond; c.Prepared = func() { prepared <- struct{}{} } })
	s := with(map[string]*configv1.EventStore{uid1: local()})
	orders := addTopic(s, "orders")
	m.Apply(t.Context(), s)
	if orders.NotReady == "" {
		t.Error("a topic is ready that nobody has made")
	}
	close(d.hold)
	<-prepared
	get(t, m, uid1)
}

// TestOneTopicFails: the others are made; the subscription has what it can have.
func TestOneTopicFails(t *testing.T) {
	d := &troubled{topics: map[string]error{"demo_bad": errors.New("no such luck")}}
	prepared := make(chan struct{}, 1)
	m := manager(t, d, func(c *Config) { c.Prepared = func() { prepared <- struct{}{} } })
	conf := func() (good, bad *snapshot.Topic, both, only *snapshot.Subscription, s *snapshot.Snapshot) {
		s = with(map[string]*configv1.EventStore{uid1: local()})
		good, bad = addTopic(s, "good"), addTopic(s, "bad")
		return good, bad, addSub(s, "both", false, good, bad), addSub(s, "only", false, bad), s
	}
	good, bad, both, only, s := conf()
	m.Apply(t.Context(), s)
	if good.NotReady != "" || !strings.Contains(bad.NotReady, "no such luck") {
		t.Errorf("good says %q, bad says %q", good.NotReady, bad.NotReady)
	}
	if len(both.Sources) != 1 || both.Sources[0].Topic != good || both.NotReady != "" || len(only.Sources) != 0 || only.NotReady == "" {
		t.Errorf("%+v %+v", both, only)
	}
	d.set(func() { d.topics = nil })
	<-prepared
	good, bad, both, only, s = conf()
	m.Apply(t.Context(), s)
	if good.NotReady+bad.NotReady+both.NotReady+only.NotReady != "" || len(both.Sources) != 2 || len(only.Sources) != 1 {
		t.Errorf("%+v %+v %+v %+v", good, bad, both, only)
	}
}

// TestReplace: a store that changes is exchanged while it is used; who holds the
// old one may finish.
func TestReplace(t *testing.T) {
	d := &troubled{}
	m := manager(t, d, nil)
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: elsewhere("one"), uid2: elsewhere("two")}))
	old, other := get(t, m, uid1), get(t, m, uid2)
	if err := old.(store.Admin).EnsureTopic(t.Context(), store.TopicSpec{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	// A change that does not open keeps the old one.
	d.set(func() { d.broken = errors.New("no") })
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: elsewhere("three"), uid2: elsewhere("two")}))
	if get(t, m, uid1) != old {
		t.Error("the store that works was given up")
	}
	d.set(func() { d.broken = nil })
	eventually(t, "the exchange", func() bool { return get(t, m, uid1) != old })
	if err := publish(t, old, "x"); err != nil {
		t.Errorf("who holds the old store cannot finish: %v", err)
	}
	<-old.(*watched).closed
	if get(t, m, uid2) != other {
		t.Error("a store that did not change was opened again")
	}
	// What only the control plane uses is no reason to open again.
	spec := elsewhere("two")
	spec.Provisioning = configv1.Provisioning_PROVISIONING_VERIFY
	spec.GetRocketmq().AdminCredentials = &configv1.KeyPair{}
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: elsewhere("three"), uid2: spec}))
	if get(t, m, uid2) != other {
		t.Error("a store was opened again for what a proxy does not use")
	}
	k := func(replicas uint32, admin *configv1.KeyPair, brokers ...string) *configv1.EventStore {
		return seen(&configv1.EventStore{Driver: &configv1.EventStore_Kafka{Kafka: &configv1.Kafka{Brokers: brokers, ReplicationFactor: replicas, AdminCredentials: admin}}})
	}
	if !proto.Equal(k(1, nil, "a:1"), k(3, &configv1.KeyPair{}, "a:1")) || proto.Equal(k(1, nil, "a:1"), k(1, nil, "b:1")) {
		t.Error("of Kafka a proxy uses all but what topics are made with, and by whom")
	}
}

// TestRemove: a store that is gone is closed after the grace; one that comes
// back within it was never closed.
func TestRemove(t *testing.T) {
	d := &troubled{}
	m := manager(t, d, func(c *Config) { c.Grace = 300 * time.Millisecond })
	here := func() *snapshot.Snapshot { return with(map[string]*configv1.EventStore{uid1: local()}) }
	m.Apply(t.Context(), here())
	first := get(t, m, uid1)
	m.Apply(t.Context(), with(nil))
	if get(t, m, uid1) != first {
		t.Error("it was closed without a grace")
	}
	m.Apply(t.Context(), here())
	if get(t, m, uid1) != first || d.count() != 1 {
		t.Error("it was opened again")
	}
	m.Apply(t.Context(), with(nil))
	<-first.(*watched).closed
	if _, err := m.Get(uid1); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("after it is closed: %v", err)
	}
	if st := m.Status(); len(st) != 0 {
		t.Errorf("the status is %v", st)
	}
	s := here()
	topic := addTopic(s, "orders")
	m.Apply(t.Context(), s)
	if topic.NotReady != "" || get(t, m, uid1) == first {
		t.Errorf("back again: %q", topic.NotReady)
	}
}

// TestMadeAgain: a store that was deleted and made again under its name is counted, also
// once the one before it is closed; without it nothing is.
func TestMadeAgain(t *testing.T) {
	d := &troubled{}
	m := manager(t, d, nil)
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: elsewhere("one")}))
	open := func() (out []*dto.Metric) {
		t.Helper()
		all, err := m.cfg.Metrics.(*prometheus.Registry).Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.GetName() == "weft_proxy_store_open" {
				out = f.Metric
			}
		}
		return out
	}
	first := get(t, m, uid1)
	again := with(map[string]*configv1.EventStore{uid2: elsewhere("one")})
	again.Stores[uid2].Key = k("s1")
	m.Apply(t.Context(), again)
	<-first.(*watched).closed
	if got := open(); len(got) != 1 || got[0].Gauge.GetValue() != 1 {
		t.Errorf("%v says which are open, want one", got)
	}
	second := get(t, m, uid2)
	m.Apply(t.Context(), with(nil))
	<-second.(*watched).closed
	if got := open(); len(got) != 0 {
		t.Errorf("%v says which are open, want none", got)
	}
}

// TestUIDIsNoPath: the uid comes from the wire and names a folder.
func TestUIDIsNoPath(t *testing.T) {
	for _, uid := range []string{"../../etc", "..", "", "{0190a0b0-0000-7000-8000-000000000001}/..", "a/b"} {
		d := &troubled{}
		m := manager(t, d, nil)
		s := with(nil)
		s.Stores[uid] = &snapshot.Store{Key: k("s"), UID: uid, Spec: local()}
		m.Apply(t.Context(), s)
		if _, err := m.Get(uid); err == nil || d.count() != 0 {
			t.Errorf("%q was opened", uid)
		}
	}
}

// TestUnknownDriver: a kind that is not linked is that store's problem.
func TestUnknownDriver(t *testing.T) {
	d := &troubled{}
	m := manager(t, d, nil)
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: elsewhere(""), uid2: local()}))
	if _, err := m.Get(uid1); err == nil || !strings.Contains(err.Error(), "no driver") {
		t.Errorf("the answer is %v", err)
	}
	get(t, m, uid2)
}

// TestSecretMissing: a store whose secret is not there is not open and says why,
// to whoever asks; others are open, and it opens when the secret is there.
func TestSecretMissing(t *testing.T) {
	d := &troubled{}
	var mu sync.Mutex
	missing := &fault.Error{Class: fault.Unavailable, Reason: "store-secret-missing", Msg: "it is away", Err: errors.New("file /run/key")}
	prepared := make(chan struct{}, 1)
	m := manager(t, d, func(c *Config) {
		options := c.Options
		c.Options = func(es *configv1.EventStore) (string, any, error) {
			mu.Lock()
			defer mu.Unlock()
			if es.GetRocketmq() != nil && missing != nil {
				return "", nil, missing
			}
			return options(es)
		}
		c.Prepared = func() { prepared <- struct{}{} }
	})
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: local(), uid2: elsewhere("two")}))
	get(t, m, uid1)
	_, err := m.Get(uid2)
	if f := fault.From(err); f.Class != fault.Unavailable || f.Reason != "store-secret-missing" || f.RetryAfter == 0 || strings.Contains(f.Msg, "/run") {
		t.Errorf("the answer is %v", err)
	}
	st := m.Status()
	if len(st) != 2 || st[0].Problem != "" || st[0].Reason != "" || st[1].Open || st[1].Reason != "SecretMissing" || !strings.Contains(st[1].Problem, "file /run/key") {
		t.Errorf("the status is %+v", st)
	}
	mu.Lock()
	missing = nil
	mu.Unlock()
	<-prepared
	get(t, m, uid2)
	if st := m.Status(); !st[1].Open || st[1].Reason != "" {
		t.Errorf("the status is %+v", st)
	}
}

// TestWatch: what an open store's server says of the credentials is in the status
// while it says so; the store stays open.
func TestWatch(t *testing.T) {
	d := &troubled{check: &fault.Error{Class: fault.Unavailable, Reason: "store-access-denied"}}
	m := manager(t, d, func(c *Config) { c.CheckEvery = time.Millisecond })
	m.Apply(t.Context(), with(map[string]*configv1.EventStore{uid1: local()}))
	is := func(reason string) func() bool {
		return func() bool {
			st := m.Status()[0]
			return st.Open && st.Reason == reason && (st.Problem == "") == (reason == "")
		}
	}
	eventually(t, "the refusal in the status", is("AccessDenied"))
	if _, err := m.Get(uid1); err != nil {
		t.Errorf("calls do not reach the store: %v", err)
	}
	d.set(func() { d.check = &fault.Error{Class: fault.Unavailable, Reason: "store-unreachable"} })
	eventually(t, "the silence in the status", is("Unreachable"))
	d.set(func() { d.check = nil })
	eventually(t, "the end of it in the status", is(""))
}

func BenchmarkGet(b *testing.B) {
	m := New(Config{Log: slog.New(slog.DiscardHandler)})
	m.set(uid1, entry{st: &embedded.Store{}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Get(uid1); err != nil {
			b.Fatal(err)
		}
	}
}
