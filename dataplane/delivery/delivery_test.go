package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
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

// world is a store with two topics and one subscription, and a Manager on it.
type world struct {
	*testing.T
	ctx   context.Context
	st    store.Store
	snaps *latest.Value[*snapshot.Snapshot]
	m     *Manager
	stop  func()
	seq   int
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

// start starts a Manager, as a proxy that starts again would.
func (w *world) start() {
	m := New(Config{Snapshots: w.snaps, Log: slog.New(slog.DiscardHandler),
		Store: func(uid string) (store.Store, error) {
			if uid != uidStore {
				return nil, errors.New("no such store")
			}
			return w.st, nil
		},
		Write: func(ctx context.Context, t *snapshot.Topic, events []event.Event) error {
			for i := range events {
				var res [1]store.Result
				if err := w.st.Publish(ctx, t.Last().Physical, []store.Outgoing{{Event: &events[i]}}, res[:]); err != nil {
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
	for w.behind() != 0 {
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

func TestDeliverAndAck(t *testing.T) {
	w := newWorld(t, nil)
	m := w.join(10)
	w.publish("a", "b")
	ds := w.next(m, 2)
	if got := idsOf(ds); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%v", got)
	}
	if d := ds[0]; d.Topic != "orders" || d.Attempt != 1 || d.Position.TopicUID != uidOrders || d.Position.Epoch != 1 || string(d.Event.Data) != "data of a" {
		t.Errorf("%+v", d)
	}
	if stale := m.Ack(ds[0].ID, ds[1].ID, 999); stale != 1 {
		t.Errorf("%d stale, want the unknown one", stale)
	}
	m.Close()
	w.stop()
	w.start()
	m = w.join(10)
	w.nothing(m, "settled events after a restart")
	m.Close()
}

func TestCredit(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(10)...)
	m := w.join(3)
	defer m.Close()
	ds := w.next(m, 3)
	w.nothing(m, "the credit is used up")
	m.Ack(ds[0].ID)
	w.next(m, 1)
	w.nothing(m, "one was settled, one came")
	m.Credit(2)
	w.next(m, 2)
}

func TestMembersShare(t *testing.T) {
	w := newWorld(t, nil)
	a, b := w.join(100), w.join(100)
	defer a.Close()
	defer b.Close()
	var mu sync.Mutex
	got := map[string]int{}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(w.ctx)
	all := make(chan struct{})
	for _, m := range []Member{a, b} {
		wg.Go(func() {
			dst := make([]Delivery, 4)
			for {
				n, err := m.Next(ctx, dst)
				if err != nil {
					return
				}
				for _, d := range dst[:n] {
					mu.Lock()
					if got[d.Event.ID]++; len(got) == 500 {
						close(all)
					}
					mu.Unlock()
					m.Ack(d.ID)
				}
			}
		})
	}
	w.publish(ids(500)...)
	select {
	case <-all:
	case <-w.ctx.Done():
		t.Errorf("%d of 500 came", len(got))
	}
	cancel()
	wg.Wait()
	for id, n := range got {
		if n > 1 {
			t.Errorf("%s came %d times", id, n)
		}
	}
}

func TestCloseGivesToOthers(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(5)...)
	a := w.join(5)
	w.next(a, 5)
	b := w.join(5)
	defer b.Close()
	a.Close()
	ds := w.next(b, 5)
	if got := idsOf(ds); !slices.Equal(got, ids(5)) || ds[0].Attempt != 1 {
		t.Errorf("%v, attempt %d: leaving must not count as an attempt", got, ds[0].Attempt)
	}
	if stale := a.Ack(1, 2, 3, 4, 5); stale != 5 {
		t.Errorf("a member that left settled %d", 5-stale)
	}
}

func TestTimeoutAndExtend(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) { s.AckTimeout = 200 * time.Millisecond })
	w.publish("a", "b")
	m := w.join(10)
	defer m.Close()
	ds := w.next(m, 2)
	var a, b Delivery
	for _, d := range ds {
		if d.Event.ID == "a" {
			a = d
		} else {
			b = d
		}
	}
	m.Extend(time.Minute, b.ID)
	again := w.next(m, 1)[0]
	if again.Event.ID != "a" || again.Attempt != 2 || again.ID == a.ID {
		t.Errorf("%+v", again)
	}
	if m.Ack(a.ID) != 1 {
		t.Error("a delivery that timed out was settled")
	}
	if m.Ack(b.ID, again.ID) != 0 {
		t.Error("stale")
	}
}

func TestNackRetriesAndDeadLetters(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) { s.DeadLetter = "dead" })
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"dead"}})
	w.must(err)
	defer tail.Close()
	w.publish("poison", "fine")
	m := w.join(10)
	for attempt := 1; attempt <= 3; {
		d := w.next(m, 1)[0]
		if d.Event.ID == "fine" {
			m.Ack(d.ID)
			continue
		}
		if d.Attempt != attempt {
			t.Errorf("attempt %d, want %d", d.Attempt, attempt)
		}
		m.Nack("it is poisoned\n", -1, d.ID)
		attempt++
	}
	dead := w.next(tail, 1)[0]
	if dead.Event.ID != "poison" || string(dead.Event.Data) != "data of poison" {
		t.Errorf("%+v", dead.Event)
	}
	for name, want := range map[string]string{AttrDeadReason: "it is poisoned ", AttrDeadSubscription: "billing", AttrDeadTopic: "orders", AttrDeadAttempts: "3"} {
		if got, _ := event.Lookup(dead.Event.Ext, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if err := dead.Event.Validate(); err != nil {
		t.Error(err)
	}
	w.settled() // the dead letter is seen before its event is settled
	m.Close()
	w.stop()
	w.start()
	m = w.join(10)
	w.nothing(m, "a dead-lettered event is settled")
	m.Close()
}

// TestRetryOutlivesTheProcess: an event that waits for long is in the retry
// topic, with its attempts, its own topic and position.
func TestRetryOutlivesTheProcess(t *testing.T) {
	w := newWorld(t, nil)
	w.publish("a")
	m := w.join(10)
	first := w.next(m, 1)[0]
	m.Nack("busy", 1200*time.Millisecond, first.ID)
	w.settled() // it is written away
	m.Close()
	w.stop()
	w.start()
	m = w.join(10)
	defer m.Close()
	d := w.next(m, 1)[0]
	if d.Event.ID != "a" || d.Attempt != 2 || d.Topic != "orders" || d.Position != first.Position || len(d.Event.Data) == 0 {
		t.Errorf("%+v, first %+v", d, first)
	}
	m.Ack(d.ID)
}

// TestDeadLetterBeforeSettle: while the dead-letter topic cannot be written, the
// event stays unsettled.
func TestDeadLetterBeforeSettle(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) { s.DeadLetter, s.MaxAttempts = "dead", 1 })
	fail := make(chan struct{})
	write := w.m.cfg.Write
	tried := make(chan struct{}, 100)
	w.m.cfg.Write = func(ctx context.Context, t *snapshot.Topic, e []event.Event) error {
		tried <- struct{}{}
		select {
		case <-fail:
			return write(ctx, t, e)
		default:
			return errors.New("the dead-letter topic is down")
		}
	}
	w.publish("a")
	m := w.join(10)
	defer m.Close()
	m.Nack("no", -1, w.next(m, 1)[0].ID)
	for range 3 {
		<-tried
		if w.behind() != 1 {
			t.Fatal("the event is settled, but is nowhere else")
		}
	}
	close(fail)
	for w.behind() != 0 {
		select {
		case <-tried:
		case <-w.ctx.Done():
			t.Fatal("the dead letter is never settled")
		default:
		}
	}
}

func TestFilter(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) { s.Filter = mustFilter("subject", "e0003") })
	w.publish(ids(6)...)
	m := w.join(10)
	defer m.Close()
	d := w.next(m, 1)[0]
	if d.Event.ID != "e0003" {
		t.Errorf("%s does not match", d.Event.ID)
	}
	m.Ack(d.ID)
	w.settled()
}

// TestRevoke: a change of the rules ends open members and tails, also those
// that wait, and names the rule; others go on.
func TestRevoke(t *testing.T) {
	w := newWorld(t, nil)
	m := w.join(10)
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	deadTail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"dead"}})
	w.must(err)
	defer deadTail.Close()
	errs := make(chan error, 2)
	for _, x := range []interface {
		Next(context.Context, []Delivery) (int, error)
	}{m, tail} {
		go func() {
			_, err := x.Next(w.ctx, make([]Delivery, 1))
			errs <- err
		}()
	}
	deny := append(allowAll(), &configv1.AccessRule{Name: "no-orders", Effect: configv1.Effect_EFFECT_DENY, Principals: []string{"*"},
		Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE}, Topics: []string{"orders"}})
	w.snaps.Store(w.snapshot(nil, deny...))
	for range 2 {
		if err := <-errs; fault.ClassOf(err) != fault.Denied || !strings.Contains(err.Error(), "no-orders") {
			t.Errorf("%v", err)
		}
	}
	m.Close()
	tail.Close()
	if _, err := w.m.Join(w.ctx, local, "demo", "billing"); fault.ClassOf(err) != fault.Denied {
		t.Errorf("joined: %v", err)
	}
	e := &event.Event{ID: "d", Source: "/s", Type: "t"}
	var res [1]store.Result
	w.must(w.st.Publish(w.ctx, "dead", []store.Outgoing{{Event: e}}, res[:]))
	if got := w.next(deadTail, 1)[0]; got.Event.ID != "d" {
		t.Errorf("%v", got.Event.ID)
	}
}

func TestSubscriptionDeleted(t *testing.T) {
	w := newWorld(t, nil)
	m := w.join(1)
	defer m.Close()
	snap := w.snapshot(nil)
	clear(snap.Subscriptions)
	w.snaps.Store(snap)
	if _, err := m.Next(w.ctx, make([]Delivery, 1)); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

func TestTailResumes(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(20)...)
	req := TailRequest{Namespace: "demo", Topics: []string{"*"}}
	var got []string
	for len(got) < 20 {
		tail, err := w.m.Tail(w.ctx, local, req)
		w.must(err)
		for _, d := range w.next(tail, 3) {
			if len(got) == 20 {
				break
			}
			got = append(got, d.Event.ID)
			req.After = append(req.After[:0], d.Position)
		}
		tail.Close()
		if len(got) == 18 {
			w.publish("last")
		}
	}
	if !slices.Equal(got, ids(20)) {
		t.Errorf("%v", got)
	}
	at := req.After[0]
	req.After[0].Epoch++
	if _, err := w.m.Tail(w.ctx, local, req); fault.ClassOf(err) != fault.Precondition {
		t.Errorf("a position of another epoch: %v", err)
	}
	req.After[0] = at
	req.After[0].TopicUID = uidSub
	if _, err := w.m.Tail(w.ctx, local, req); fault.ClassOf(err) != fault.Precondition {
		t.Errorf("a position of another topic: %v", err)
	}
}

// TestCrash stops proxies with deliveries in flight again and again: nothing is
// lost, and what was settled does not come again.
func TestCrash(t *testing.T) {
	w := newWorld(t, nil)
	want := ids(300)
	w.publish(want...)
	acked := map[string]bool{}
	for round := 0; len(acked) < len(want); round++ {
		m := w.join(16)
		for i, d := range w.next(m, min(16, len(want)-len(acked))) {
			if acked[d.Event.ID] {
				t.Errorf("%s was settled and comes again", d.Event.ID)
			}
			if i%4 != round%4 || len(want)-len(acked) < 16 {
				acked[d.Event.ID] = true
				m.Ack(d.ID)
			}
		}
		w.stop() // with the rest in flight
		w.start()
	}
}

func mustFilter(attr, value string) *route.Filter {
	f, err := route.CompileFilter(&configv1.Filter{Exact: map[string]string{attr: value}}, "filter")
	if err != nil {
		panic(err)
	}
	return f
}

// TestSettledIsLetGo: what is settled is kept by nothing until its time-out, and
// extending it again and again keeps no more of it.
func TestSettledIsLetGo(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(50)...)
	m := w.join(100)
	defer m.Close()
	for _, d := range w.next(m, 50) {
		for range 3 {
			m.Extend(time.Hour, d.ID)
		}
		m.Ack(d.ID)
	}
	r := w.m.runtimes[uidSub]
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.timers) != 0 || r.held != 0 {
		t.Errorf("%d timers, %d events are held, and all 50 are settled", len(r.timers), r.held)
	}
}

// TestPlaceOfWhatIsWrittenAway: events that wait to be written away when their
// topic's source goes give their place up, or the subscription would stand still.
func TestPlaceOfWhatIsWrittenAway(t *testing.T) {
	change := func(s *snapshot.Subscription) { s.DeadLetter, s.MaxAttempts, s.MaxInFlight = "dead", 1, 2 }
	w := newWorld(t, change)
	w.m.cfg.Write = func(context.Context, *snapshot.Topic, []event.Event) error {
		return errors.New("the dead-letter topic is down")
	}
	w.must(w.st.(store.Admin).EnsureGroup(w.ctx, "orders", "g2", store.Start{}))
	w.publish("a", "b")
	m := w.join(10)
	defer m.Close()
	for _, d := range w.next(m, 2) {
		m.Nack("no", -1, d.ID)
	}
	w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { change(s); s.Sources[0].Group = "g2" }))
	if got := idsOf(w.next(m, 2)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%v", got)
	}
}

// TestJoinByTheNewestRules: rules that come while a client joins hold for it.
func TestJoinByTheNewestRules(t *testing.T) {
	for range 20 { // who of the two has the mutex first is chance
		joinByTheNewestRules(t)
	}
}

func joinByTheNewestRules(t *testing.T) {
	w := newWorld(t, nil)
	w.m.mu.Lock()
	joined := make(chan error, 1)
	go func() {
		m, err := w.m.Join(w.ctx, local, "demo", "billing")
		if err == nil {
			defer m.Close()
			_, err = m.Next(w.ctx, make([]Delivery, 1))
		}
		joined <- err
	}()
	for !waits("delivery.(*Manager).Join") {
	}
	deny := &configv1.AccessRule{Name: "nobody", Effect: configv1.Effect_EFFECT_DENY, Principals: []string{"*"},
		Actions: []configv1.Action{configv1.Action_ACTION_CONSUME}, Subscriptions: []string{"billing"}}
	w.snaps.Store(w.snapshot(nil, append(allowAll(), deny)...))
	for !waits("delivery.(*Manager).follow") {
	}
	w.m.mu.Unlock()
	if err := <-joined; fault.ClassOf(err) != fault.Denied {
		t.Errorf("a client that may not consume: %v", err)
	}
}

// waits reports whether a goroutine in a function waits for a mutex.
func waits(in string) bool {
	buf := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(buf[:goruntime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, in) && strings.Contains(g, "[sync.Mutex.Lock") {
			return true
		}
	}
	return false
}

// TestCredentialsExpire: members and tails end when the credentials of their
// client expire, also where nothing changes and nothing comes.
func TestCredentialsExpire(t *testing.T) {
	w := newWorld(t, nil)
	const key = "weft_k1_secret"
	sum := sha256.Sum256([]byte(key))
	expires := time.Now().Add(time.Second)
	identities := policy.CompileIdentities([]policy.NamedIdentity{{Namespace: "demo", Name: "identity/demo/i", Spec: &configv1.Identity{Method: &configv1.Identity_ApiKeys{
		ApiKeys: &configv1.ApiKeys{Keys: []*configv1.ApiKey{{Id: "k1", Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: "app", ExpiresAt: timestamppb.New(expires)}}}}}}}, nil, false)
	who, err := identities.Authenticate(t.Context(), policy.Credentials{Bearer: key}, time.Now())
	w.must(err)
	rule := allowAll()[0]
	rule.Principals = []string{"app"}
	snap := w.snapshot(nil, rule)
	snap.Identities = identities
	w.snaps.Store(snap)
	m, err := w.m.Join(w.ctx, who, "demo", "billing")
	w.must(err)
	defer m.Close()
	tail, err := w.m.Tail(w.ctx, who, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	defer tail.Close()
	for _, x := range []interface {
		Next(context.Context, []Delivery) (int, error)
	}{m, tail} {
		if _, err := x.Next(w.ctx, make([]Delivery, 1)); fault.ClassOf(err) != fault.Unauthenticated {
			t.Errorf("%T after its credentials have expired: %v", x, err)
		}
	}
}

// slowStore is a store whose tails of one topic wait for a gate, and fail once.
type slowStore struct {
	store.Store
	topic  string
	gate   chan struct{}
	failed atomic.Bool
}

func (s *slowStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	if r.Topic != s.topic {
		return s.Store.Tail(ctx, r)
	}
	select {
	case <-s.gate:
	case <-ctx.Done():
		return nil, fault.From(ctx.Err())
	}
	if !s.failed.Swap(true) {
		return nil, fault.New(fault.Unavailable, "test", "store-unreachable", "the store is away")
	}
	return s.Store.Tail(ctx, r)
}

// TestTailOfATopicThatComes: a topic that comes while its store is slow or away
// holds up nobody, and its events come when the store is back.
func TestTailOfATopicThatComes(t *testing.T) {
	w := newWorld(t, nil)
	w.must(w.st.(store.Admin).EnsureTopic(w.ctx, store.TopicSpec{Name: "later"}))
	slow := &slowStore{Store: w.st, topic: "later", gate: make(chan struct{})}
	w.m.cfg.Store = func(string) (store.Store, error) { return slow, nil }
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"*"}, From: store.Start{End: true}})
	w.must(err)
	defer tl.Close()
	snap := w.snapshot(nil)
	later := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "later"}, UID: uidStore, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: "later"}}}
	snap.Topics[later.Key] = later
	var res [1]store.Result
	w.must(w.st.Publish(w.ctx, "later", []store.Outgoing{{Event: &event.Event{ID: "first", Source: "/s", Type: "t"}}}, res[:]))
	w.snaps.Store(snap)
	for reading := false; !reading; { // the manager has followed
		x := tl.(*tail)
		x.mu.Lock()
		reading = x.readers[uidStore] != nil
		x.mu.Unlock()
	}
	m := w.join(1) // others go on
	m.Close()
	close(slow.gate)
	if d := w.next(tl, 1)[0]; d.Event.ID != "first" || d.Topic != "later" {
		t.Errorf("%s of %s", d.Event.ID, d.Topic)
	}
}

// TestTailIsBounded: a tail whose client does not read holds a bounded number of
// bytes, and loses nothing by it.
func TestTailIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	defer tl.Close()
	const events = 64
	for i := range events {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/test", Type: "t", Data: make([]byte, 256<<10)}
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, "orders", []store.Outgoing{{Event: e}}, res[:]))
	}
	x := tl.(*tail)
	for full := false; !full; {
		x.mu.Lock()
		full = x.room != nil || len(x.events) == events
		held := x.held
		x.mu.Unlock()
		if held > tailBytes || len(x.events) == events {
			t.Fatalf("a tail holds %d events for a client that does not read", len(x.events))
		}
	}
	for i, d := range w.next(tl, events) {
		if d.Event.ID != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, d.Event.ID)
		}
	}
}
