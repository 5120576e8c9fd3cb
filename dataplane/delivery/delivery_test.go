package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/route"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

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

// hurried is a store whose clock stands but for what it holds back, which makes it go on.
type hurried struct {
	store.Store
	store.Admin
	mu    sync.Mutex
	now   time.Time
	shown []time.Duration // how long each was held back
}

func (h *hurried) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *hurried) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	h.mu.Lock()
	h.shown = append(h.shown, due[0].Sub(h.now))
	h.now = due[0]
	h.mu.Unlock()
	return h.Publish(ctx, topic, events, res)
}

// TestLongDelayShows: what waits longer than its Subscription's schedule knows shows in
// the retry topic before, as often as whoever gives that up counts on, and is given to
// nobody until it is due.
func TestLongDelayShows(t *testing.T) {
	w := newWorld(t, nil)
	began := time.Unix(1_800_000_000, 0)
	h := &hurried{Store: w.st, Admin: w.st.(store.Admin), now: began}
	w.stop()
	w.clock, w.others = h.clock, map[string]store.Store{uidStore: h}
	w.start()
	hidden := cutover.Hidden(time.Millisecond) // by the schedule of the world
	w.publish("a")
	m := w.join(10)
	defer m.Close()
	first := w.next(m, 1)[0]
	m.Nack("busy", 3*hidden+time.Second, first.ID)
	d := w.next(m, 1)[0]
	if waited := h.clock().Sub(began); waited != 3*hidden+time.Second || d.Event.ID != "a" || d.Attempt != 2 || d.Topic != "orders" || d.Position != first.Position || string(d.Event.Data) != "data of a" {
		t.Errorf("after %s came %+v, first %+v", waited, d, first)
	}
	h.mu.Lock()
	if want := []time.Duration{hidden, hidden, hidden, time.Second}; !slices.Equal(h.shown, want) {
		t.Errorf("it was held back for %v, not %v", h.shown, want)
	}
	h.mu.Unlock()
	m.Ack(d.ID)
	w.settled()
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
	if it := r.timers.first(); it != nil || r.held != 0 {
		t.Errorf("a timer is %v, %d events are held, and all 50 are settled", it, r.held)
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
