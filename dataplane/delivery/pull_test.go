package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// pull takes up to n events.
func (w *world) pull(n int, wait time.Duration) Pulled {
	w.Helper()
	p, err := w.m.Pull(w.ctx, local, "demo", "billing", PullRequest{Max: n, Wait: wait})
	w.must(err)
	return p
}

// TestPullOfOneWhoIsGone: a pull whose client has gone takes nothing: what is there goes to
// others at once, and that was no attempt.
func TestPullOfOneWhoIsGone(t *testing.T) {
	w := newWorld(t, nil)
	w.publish("a")
	other := w.join(0)
	defer other.Close()
	first := w.join(1)
	w.next(first, 1)
	first.Close() // it is there, and nobody has it
	gone, cancel := context.WithCancel(w.ctx)
	cancel()
	if p, err := w.m.Pull(gone, local, "demo", "billing", PullRequest{Max: 1, Wait: time.Minute}); fault.ClassOf(err) != fault.Canceled {
		t.Errorf("%v %v", idsOf(p.Deliveries), err)
	}
	other.Credit(1)
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	var dst [1]Delivery
	if _, err := other.Next(ctx, dst[:]); err != nil || dst[0].Attempt != 1 {
		t.Errorf("attempt %d: %v", dst[0].Attempt, err)
	}
}

// pulls takes n events by as many pulls as it needs.
func (w *world) pulls(n int) (out Pulled) {
	w.Helper()
	for len(out.Handles) < n {
		p := w.pull(n-len(out.Handles), MaxPullWait)
		out.Deliveries, out.Handles = append(out.Deliveries, p.Deliveries...), append(out.Handles, p.Handles...)
	}
	return out
}

// settle settles, and gives the reasons of what could not be, by handle.
func (w *world) settle(x Settlement) map[string]string {
	w.Helper()
	bad, err := w.m.Settle(w.ctx, local, "demo", "billing", x)
	w.must(err)
	out := map[string]string{}
	for _, u := range bad {
		out[u.Handle] = fault.From(u.Err).Reason
	}
	return out
}

// TestPull: what is pulled is the caller's until it is settled; what is acked does
// not come again, what failed does, and nothing is settled twice.
func TestPull(t *testing.T) {
	w := newWorld(t, nil)
	w.publish(ids(5)...)
	got := w.pulls(5)
	if !slices.Equal(idsOf(got.Deliveries), ids(5)) || got.Deliveries[0].Attempt != 1 {
		t.Fatalf("%v", idsOf(got.Deliveries))
	}
	if len(w.settle(Settlement{Ack: got.Handles[:3], Nack: []Nack{{Handles: got.Handles[3:4], Reason: "no", Delay: 0}}})) != 0 {
		t.Error("what was pulled could not be settled")
	}
	again := w.pulls(1)
	if d := again.Deliveries[0]; d.Event.ID != got.Deliveries[3].Event.ID || d.Attempt != 2 {
		t.Errorf("%s, attempt %d", d.Event.ID, d.Attempt)
	}
	bad := w.settle(Settlement{Ack: []string{got.Handles[0], got.Handles[3], again.Handles[0], got.Handles[4], "x", "", got.Handles[4]}})
	for h, want := range map[string]string{got.Handles[0]: "delivery-over", got.Handles[3]: "delivery-over", "x": "bad-delivery-id", "": "bad-delivery-id"} {
		if bad[h] != want {
			t.Errorf("%q: %q, want %s", h, bad[h], want)
		}
	}
	if len(bad) != 4 {
		t.Errorf("%v", bad)
	}
	w.settled()
}

// TestPullBounds: nothing is asked for beyond the bounds.
func TestPullBounds(t *testing.T) {
	w := newWorld(t, nil)
	for _, r := range []PullRequest{{Max: 0, Wait: 0}, {Max: MaxPull + 1}, {Max: -1}, {Max: 1, Wait: -1}, {Max: 1, Wait: MaxPullWait + 1}} {
		if _, err := w.m.Pull(w.ctx, local, "demo", "billing", r); fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, n := range []int{0, MaxSettle + 1} {
		if _, err := w.m.Settle(w.ctx, local, "demo", "billing", Settlement{Ack: make([]string, n)}); fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%d: %v", n, err)
		}
	}
	if _, err := w.m.Pull(w.ctx, local, "demo", "other", PullRequest{Max: 1}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := w.m.Settle(w.ctx, local, "demo", "other", Settlement{Ack: []string{"x"}}); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
}

// TestPullBytes: an answer is bounded in bytes; what does not fit is given to the
// next call, as if it had not been there.
func TestPullBytes(t *testing.T) {
	w := newWorld(t, nil)
	const events, size = 5, maxPullBytes/2 - 1000
	for i := range events {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/test", Type: "t", Data: make([]byte, size)}
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, "orders", []store.Outgoing{{Event: e}}, res[:]))
	}
	w.pull(1, 0) // its session keeps what others leave
	m := w.join(events)
	w.next(m, events)
	m.Close()
	var got []string
	for len(got) < events {
		p := w.pull(events, MaxPullWait)
		if len(p.Deliveries) > 2 {
			t.Fatalf("%d events of %d bytes at once", len(p.Deliveries), size)
		}
		for _, d := range p.Deliveries {
			if d.Attempt != 1 {
				t.Errorf("attempt %d", d.Attempt)
			}
			got = append(got, d.Event.ID)
		}
	}
	if slices.Sort(got); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("%v", got)
	}
}

// TestPullWaits: a pull waits for the first event, and ends with none when its
// time is over. Several of one client wait side by side.
func TestPullWaits(t *testing.T) {
	w := newWorld(t, nil)
	if p := w.pull(1, 50*time.Millisecond); len(p.Deliveries) != 0 || p.AckTimeout != time.Minute {
		t.Errorf("%+v", p)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var got []string
	for range 20 {
		wg.Go(func() {
			p, err := w.m.Pull(w.ctx, local, "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
			mu.Lock()
			defer mu.Unlock()
			if err != nil || len(p.Deliveries) != 1 {
				t.Errorf("%+v, %v", p, err)
				return
			}
			got = append(got, p.Deliveries[0].Event.ID)
		})
	}
	w.publish(ids(20)...)
	wg.Wait()
	if slices.Sort(got); !slices.Equal(got, ids(20)) {
		t.Errorf("%v", got)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	if _, err := w.m.Pull(ctx, local, "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait}); fault.ClassOf(err) != fault.Canceled {
		t.Errorf("a caller that has gone: %v", err)
	}
}

// TestPullTimesOut: what a client does not settle in time comes again, to anybody,
// and is its no longer. An extension puts that off.
func TestPullTimesOut(t *testing.T) {
	w := newWorld(t, func(s *snapshot.Subscription) { s.AckTimeout = 200 * time.Millisecond })
	w.publish("a", "b")
	got := w.pulls(2)
	if bad := w.settle(Settlement{Extend: []Extension{{Handles: got.Handles[1:], Timeout: time.Minute}}}); len(bad) != 0 {
		t.Fatalf("%v", bad)
	}
	m := w.join(10)
	defer m.Close()
	again := w.next(m, 1)[0]
	if again.Event.ID != got.Deliveries[0].Event.ID || again.Attempt != 2 {
		t.Errorf("%+v", again)
	}
	if bad := w.settle(Settlement{Ack: got.Handles}); len(bad) != 1 || bad[got.Handles[0]] != "delivery-over" {
		t.Errorf("%v", bad)
	}
	m.Ack(again.ID)
	w.settled()
}

// keyed is a configuration with two API keys of one principal, and another
// principal, and who they are.
func (w *world) keyed(keys ...string) (*snapshot.Snapshot, map[string]*policy.Principal) {
	w.Helper()
	return w.ending(nil, keys...)
}

// ending is keyed, where the first of the keys ends.
func (w *world) ending(at *timestamppb.Timestamp, keys ...string) (*snapshot.Snapshot, map[string]*policy.Principal) {
	w.Helper()
	var list []*configv1.ApiKey
	for _, k := range keys {
		sum := sha256.Sum256([]byte("weft_" + k + "_secret"))
		list = append(list, &configv1.ApiKey{Id: k, Hash: "sha256:" + hex.EncodeToString(sum[:]), Principal: k[:len(k)-1]})
	}
	list[0].ExpiresAt = at
	identities := policy.CompileIdentities([]policy.NamedIdentity{{Namespace: "demo", Name: "identity/demo/i",
		Spec: &configv1.Identity{Method: &configv1.Identity_ApiKeys{ApiKeys: &configv1.ApiKeys{Keys: list}}}}}, nil, false)
	who := map[string]*policy.Principal{}
	for _, k := range keys {
		p, err := identities.Authenticate(w.ctx, policy.Credentials{Bearer: "weft_" + k + "_secret"}, time.Now())
		w.must(err)
		who[k] = p
	}
	rule := allowAll()[0]
	rule.Principals = []string{"*"}
	snap := w.snapshot(nil, rule)
	snap.Identities = identities
	return snap, who
}

// TestPullOfOthers: a delivery is settled by the principal that has it, with
// whatever credentials, at the proxy that gave it, and by nobody else.
func TestPullOfOthers(t *testing.T) {
	w := newWorld(t, nil)
	snap, who := w.keyed("app1", "app2", "else1")
	w.snaps.Store(snap)
	w.publish("a")
	p, err := w.m.Pull(w.ctx, who["app1"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
	w.must(err)
	if _, err := w.m.Pull(w.ctx, who["else1"], "demo", "billing", PullRequest{Max: 1}); err != nil {
		t.Fatal(err) // it has a session too
	}
	reason := func(who *policy.Principal, handle string) string {
		bad, err := w.m.Settle(w.ctx, who, "demo", "billing", Settlement{Ack: []string{handle}})
		w.must(err)
		if len(bad) == 0 {
			return ""
		}
		return fault.From(bad[0].Err).Reason
	}
	h, err := parseHandle(p.Handles[0])
	w.must(err)
	other := h
	other.node = "node-2"
	past := h
	past.tag[0]++
	for _, tc := range []struct{ name, who, handle, want string }{
		{"another principal", "else1", p.Handles[0], "delivery-over"},
		{"another proxy", "app1", other.String(), "delivery-elsewhere"},
		{"another session", "app1", past.String(), "delivery-over"},
		{"another key of it", "app2", p.Handles[0], ""},
		{"again", "app1", p.Handles[0], "delivery-over"},
	} {
		if got := reason(who[tc.who], tc.handle); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestPullRevoked: who may not consume any more gets nothing, also by a pull that
// waits already; others of the same name go on with what they have.
func TestPullRevoked(t *testing.T) {
	w := newWorld(t, nil)
	snap, who := w.keyed("app1", "app2")
	w.snaps.Store(snap)
	w.publish("a")
	mine, err := w.m.Pull(w.ctx, who["app2"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
	w.must(err)
	ended := make(chan error, 1)
	go func() {
		p, err := w.m.Pull(w.ctx, who["app1"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
		if err == nil {
			err = fmt.Errorf("it got %v", idsOf(p.Deliveries))
		}
		ended <- err
	}()
	for waiting := 0; waiting == 0; {
		w.m.mu.Lock()
		waiting = w.m.pullCalls
		w.m.mu.Unlock()
	}
	without, _ := w.keyed("app2")
	w.snaps.Store(without)
	if err := <-ended; fault.ClassOf(err) != fault.Unauthenticated {
		t.Errorf("a key that is gone: %v", err)
	}
	// What its session had comes again: to who may.
	p, err := w.m.Pull(w.ctx, who["app2"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
	w.must(err)
	if got := idsOf(p.Deliveries); !slices.Equal(got, idsOf(mine.Deliveries)) || p.Deliveries[0].Attempt != 1 {
		t.Errorf("%v", got)
	}
	denied := w.snapshot(nil, &configv1.AccessRule{Name: "none", Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"nobody"}, Actions: []configv1.Action{configv1.Action_ACTION_CONSUME}, Subscriptions: []string{">"}})
	denied.Identities = without.Identities
	w.snaps.Store(denied)
	if _, err := w.m.Settle(w.ctx, who["app2"], "demo", "billing", Settlement{Ack: p.Handles}); fault.ClassOf(err) != fault.Denied {
		t.Errorf("settling without the right to consume: %v", err)
	}
}

// TestPullOutlivesItsKey: what was pulled stays the caller's where what it was pulled with
// ends by its date, also by a configuration that comes then. A pull that waits ends then.
func TestPullOutlivesItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		const left = 10 * time.Second
		snap, who := w.ending(timestamppb.New(time.Now().Add(left)), "app1", "app2")
		w.snaps.Store(snap)
		w.publish("a")
		mine, err := w.m.Pull(w.ctx, who["app1"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
		w.must(err)
		began := time.Now()
		if _, err := w.m.Pull(w.ctx, who["app1"], "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait}); fault.ClassOf(err) != fault.Unauthenticated || time.Since(began) > left {
			t.Errorf("a pull that waits: %v, after %v", err, time.Since(began))
		}
		<-time.NewTimer(2 * expireEvery).C // it was looked at
		rule := allowAll()[0]
		rule.Principals = []string{"*"}
		next := w.snapshot(nil, rule)
		next.Identities = snap.Identities
		w.snaps.Store(next)
		synctest.Wait()
		if bad, err := w.m.Settle(w.ctx, who["app2"], "demo", "billing", Settlement{Ack: mine.Handles}); err != nil || len(bad) != 0 {
			t.Errorf("by another key of the same principal: %v %v", bad, err)
		}
		w.settled()
	})
}

// TestPullDrains: pulls that wait end when the proxy drains, and none begins.
func TestPullDrains(t *testing.T) {
	w := newWorld(t, nil)
	ended := make(chan error, 1)
	go func() {
		_, err := w.m.Pull(w.ctx, local, "demo", "billing", PullRequest{Max: 1, Wait: MaxPullWait})
		ended <- err
	}()
	for waiting := 0; waiting == 0; {
		w.m.mu.Lock()
		waiting = w.m.pullCalls
		w.m.mu.Unlock()
	}
	w.m.Drain()
	if err := <-ended; fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
	if _, err := w.m.Pull(w.ctx, local, "demo", "billing", PullRequest{Max: 1}); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("%v", err)
	}
}

// TestPullLease: a client that does not call any more is a member until its lease
// is over and nothing of it is out; then the group has its share back.
func TestPullLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.publish("a")
		p := w.pulls(1)
		sessions := func() int {
			w.m.mu.Lock()
			defer w.m.mu.Unlock()
			return len(w.m.pulls) + len(w.m.runtimes)
		}
		<-time.NewTimer(pullLease + 2*expireEvery).C
		if sessions() != 2 {
			t.Fatal("the session ended while a delivery was out")
		}
		if bad := w.settle(Settlement{Ack: p.Handles}); len(bad) != 0 {
			t.Errorf("%v", bad)
		}
		<-time.NewTimer(2 * expireEvery).C
		if sessions() != 0 {
			t.Error("the session goes on without calls")
		}
		if bad := w.settle(Settlement{Ack: p.Handles}); bad[p.Handles[0]] != "delivery-over" {
			t.Errorf("%v", bad)
		}
	})
}

// FuzzHandle: a handle is what was given, or is refused.
func FuzzHandle(f *testing.F) {
	f.Add(handle{handleTag{1, 2}, 77, "node"}.String())
	f.Add("AQ")
	f.Add("AQECAAAAAAAAvZU") // an id that does not end
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHandle(s)
		if err == nil && h.String() != s || err != nil && (h != handle{} || fault.ClassOf(err) != fault.Invalid) {
			t.Errorf("%q becomes %+v, %v", s, h, err)
		}
	})
}

// TestMembersOfAPush: once a Subscription is delivered by the mesh alone, who was a member, or
// pulls, is none any more; what it had comes to the mesh's own.
func TestMembersOfAPush(t *testing.T) {
	for reason, push := range map[string]*snapshot.Push{"push-subscription": {URL: "http://target.example"}, "forward-subscription": {ForwardTo: "dead"}} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t, nil)
			w.publish("a", "b")
			pulled := w.pulls(1)
			m := w.join(1)
			defer m.Close()
			w.next(m, 1)
			w.snaps.Store(w.snapshot(func(s *snapshot.Subscription) { s.Push = push }))
			ctx, cancel := context.WithTimeout(w.ctx, patience)
			defer cancel()
			if _, err := m.Next(ctx, make([]Delivery, 1)); fault.From(err).Reason != reason {
				t.Fatalf("the member hears %v", err)
			}
			if _, err := w.m.Pull(ctx, local, "demo", "billing", PullRequest{Max: 1, Wait: patience}); fault.From(err).Reason != reason {
				t.Errorf("who pulls hears %v", err)
			}
			if bad := w.settle(Settlement{Ack: pulled.Handles}); bad[pulled.Handles[0]] != "delivery-over" {
				t.Errorf("what was pulled is settled: %v", bad)
			}
			own, err := w.m.JoinPush(snapshot.Key{Namespace: "demo", Name: "billing"})
			w.must(err)
			defer own.Close()
			own.Credit(2)
			for _, d := range w.next(own, 2) {
				if d.Attempt != 1 {
					t.Errorf("%s comes at attempt %d", d.Event.ID, d.Attempt)
				}
			}
		})
	}
}
