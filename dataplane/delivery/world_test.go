package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/facts"
	"github.com/weft-mesh/weft/dataplane/moves"
	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var local = &policy.Principal{Name: policy.Local}

const (
	uidOrders = "11111111-1111-4111-8111-111111111111"
	uidDead   = "22222222-2222-4222-8222-222222222222"
	uidSub    = "33333333-3333-4333-8333-333333333333"
	uidStore  = "44444444-4444-4444-8444-444444444444"
)

// patience bounds what a test waits for; only broken delivery takes so long.
const patience = 20 * time.Second

// world is a store with two topics and one subscription, and a Manager on it.
type world struct {
	*testing.T
	ctx   context.Context
	st    store.Store
	snaps *latest.Value[*snapshot.Snapshot]
	m     *Manager
	stop  func()
	seq   int
	// others are more stores, by uid.
	others map[string]store.Store
	// instead is whose store there is in place of all; see through.
	instead *atomic.Pointer[func() store.Store]
	// metrics are none unless a test starts the Manager again with some.
	metrics prometheus.Registerer
	// log is where to log to, nil is nowhere; likewise.
	log *slog.Logger
	// wrote, if set, is called for what is written to dead-letter topics, instead.
	wrote func(t *snapshot.Topic, events []event.Event)
	// moves is one of the Manager's own, likewise.
	moves *moves.Manager
	// clock is the machine's, likewise.
	clock clock.Clock
	// facts remembers nothing, likewise.
	facts *facts.Ring
}

// newWorld opens everything; change may alter the subscription.
func newWorld(t *testing.T, change func(*snapshot.Subscription)) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx}
	st, err := embedded.Driver{}.Open(ctx, store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem()}})
	w.must(err)
	w.st = st
	t.Cleanup(func() { w.must(st.Close(context.Background())) })
	admin := st.(store.Admin)
	for _, topic := range []string{"orders", "dead", names.RetryTopic(uidSub)} {
		w.must(admin.EnsureTopic(ctx, store.TopicSpec{Name: topic}))
	}
	w.must(admin.EnsureGroup(ctx, "orders", "g", store.Start{}))
	w.must(admin.EnsureGroup(ctx, names.RetryTopic(uidSub), "rg", store.Start{}))
	w.snaps = latest.New(w.snapshot(change))
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) snapshot(change func(*snapshot.Subscription), rules ...*configv1.AccessRule) *snapshot.Snapshot {
	orders := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "orders"}, UID: uidOrders, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: "orders"}}}
	dead := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "dead"}, UID: uidDead, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: "dead"}}}
	sub := &snapshot.Subscription{Key: snapshot.Key{Namespace: "demo", Name: "billing"}, UID: uidSub, Topics: []string{"orders"},
		Sources:    []snapshot.Source{{Topic: orders, Epoch: orders.Epochs[0], Group: "g", RetryTopic: names.RetryTopic(uidSub), RetryGroup: "rg"}},
		AckTimeout: time.Minute, MaxInFlight: 1024, MaxAttempts: 3, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}
	if change != nil {
		change(sub)
	}
	if rules == nil {
		rules = allowAll()
	}
	return &snapshot.Snapshot{
		Topics: map[snapshot.Key]*snapshot.Topic{orders.Key: orders, dead.Key: dead}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{sub.Key: sub},
		Rules:      policy.CompileRules([]policy.NamedPolicy{{Namespace: "demo", Name: "accesspolicy/demo/p", Spec: &configv1.AccessPolicy{Rules: rules}}}, nil),
		Identities: policy.CompileIdentities(nil, nil, true)}
}

func allowAll() []*configv1.AccessRule {
	return []*configv1.AccessRule{{Name: "all", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"},
		Actions: []configv1.Action{configv1.Action_ACTION_CONSUME, configv1.Action_ACTION_SUBSCRIBE}, Topics: []string{">"}, Subscriptions: []string{">"}}}
}

// through has what begins from now on ask for a store that leads to the world's.
func (w *world) through(st func() store.Store) { w.instead.Store(&st) }

// start starts a Manager, as a proxy that starts again would.
func (w *world) start() {
	if w.instead == nil {
		w.instead = &atomic.Pointer[func() store.Store]{}
	}
	log := w.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := New(Config{Snapshots: w.snaps, Metrics: w.metrics, Moves: w.moves, Clock: w.clock, Facts: w.facts, Log: log,
		Store: func(uid string) (store.Store, error) {
			if instead := w.instead.Load(); instead != nil {
				return (*instead)(), nil
			}
			if st := w.others[uid]; st != nil {
				return st, nil
			}
			if uid != uidStore {
				return nil, errors.New("no such store")
			}
			return w.st, nil
		},
		Write: func(ctx context.Context, t *snapshot.Topic, events []event.Event) error {
			if w.wrote != nil {
				w.wrote(t, events)
				return nil
			}
			for i := range events {
				var res [1]store.Result
				if err := w.st.Publish(ctx, t.Written().Physical, []store.Outgoing{{Event: &events[i]}}, res[:]); err != nil {
					return err
				}
			}
			return nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	w.m = m
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
}

func (w *world) publish(ids ...string) {
	w.Helper()
	for _, id := range ids {
		w.seq++
		e := &event.Event{ID: id, Source: "/test", Type: "t", Subject: id, Data: []byte("data of " + id)}
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, "orders", []store.Outgoing{{Event: e}}, res[:]))
	}
}

func (w *world) join(credit int) Member {
	w.Helper()
	m, err := w.m.Join(w.ctx, local, "demo", "billing")
	w.must(err)
	m.Credit(credit)
	return m
}

// next takes n deliveries.
func (w *world) next(m interface {
	Next(context.Context, []Delivery) (int, error)
}, n int) []Delivery {
	w.Helper()
	var out []Delivery
	for len(out) < n {
		dst := make([]Delivery, n-len(out))
		got, err := m.Next(w.ctx, dst)
		if err != nil {
			w.Fatalf("%d of %d deliveries are there: %v", len(out), n, err)
		}
		out = append(out, dst[:got]...)
	}
	return out
}

// behind is how many events of the topic the group has not settled.
func (w *world) behind() int64 {
	w.Helper()
	lag, err := w.st.(store.Admin).Lag(w.ctx, "orders", "g")
	w.must(err)
	return lag[0].Behind
}

// settled waits until the group has settled everything.
func (w *world) settled() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for n := w.behind(); n != 0; n = w.behind() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			w.Fatalf("%d events are still not settled: %v", n, ctx.Err())
		}
	}
}

func (w *world) nothing(m Member, why string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
	defer cancel()
	var dst [1]Delivery
	if n, err := m.Next(ctx, dst[:]); n > 0 || err == nil {
		w.Errorf("%s: got %v", why, dst[0].Event.ID)
	}
}

func idsOf(ds []Delivery) []string {
	var out []string
	for _, d := range ds {
		out = append(out, d.Event.ID)
	}
	slices.Sort(out)
	return out
}

func ids(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("e%04d", i)
	}
	return out
}
