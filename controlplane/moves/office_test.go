package moves

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/store"
)

const (
	preparing = configv1.Move_PHASE_PREPARING
	leasing   = configv1.Move_PHASE_LEASING
	stopping  = configv1.Move_PHASE_STOPPING
	marking   = configv1.Move_PHASE_MARKING
	draining  = configv1.Move_PHASE_DRAINING
	drained   = configv1.Move_PHASE_DRAINED

	goOn     = configv1.Migration_WISH_GO
	pause    = configv1.Migration_WISH_PAUSE
	rollBack = configv1.Migration_WISH_ROLL_BACK
	finish   = configv1.Migration_WISH_FINISH
)

// TestReplaced: a topic moves, with whoever is in office replaced in every phase, and
// one proxy at each of two replicas. In each phase it waits for what the phase is for.
func TestReplaced(t *testing.T) {
	w := newWorld(t)
	_, other, _ := w.replica(func(string) error { return nil })
	stop := w.office()
	replace := func() {
		stop()
		stop = w.office()
	}
	w.publish("uid-a", "ns_t", "1")
	one := w.join("one", w.addr, func(p *proxy) { p.deaf = true; p.busy = true; p.failing = "full" })
	two := w.join("two", other, func(p *proxy) { p.unable = true })

	w.wish(goOn)
	b := w.phase(preparing)
	if e := b.Epochs[1]; len(b.Epochs) != 2 || e.Number != 2 || e.Store != "b" || e.StoreUid != "uid-b" || e.PhysicalName == "ns_t" || b.Move.MigrationUid != "migration-1" {
		t.Fatalf("it begins with %v", b)
	}
	w.untilTold("Preparing: ")
	replace()
	w.admit()
	w.phase(leasing)
	w.toldIn(leasing, "1 of 2 proxies have not heard of it: one")
	replace()
	w.eventually("a lease", func() bool { return two.holds() })
	one.be(func(p *proxy) { p.deaf = false })
	w.phase(stopping)
	w.toldIn(stopping, "1 of 2 proxies have not said that nothing is on its way: one")
	if w.eventually("no lease", func() bool { return !two.holds() }); one.holds() {
		t.Error("a lease is granted while writes are stopped")
	}
	replace()
	one.be(func(p *proxy) { p.busy = false })
	b = w.phase(marking)
	if b.Move.Marker != "one" || b.Move.Attempt != 1 {
		t.Errorf("%s marks, attempt %d", b.Move.Marker, b.Move.Attempt)
	}
	w.toldIn(marking, "proxy one marks where EventStore a ends: full")
	replace()
	one.be(func(p *proxy) { p.failing = "" })
	b = w.phase(draining)
	if cut := b.Epochs[0].Cut; len(cut) != 1 || cut[0].Offset != 1 || b.Move.Marker != "" {
		t.Errorf("the cut is %v, of %v", cut, b)
	}
	w.toldIn(draining, "subscription/ns/s in EventStore a: partition \"\" is 1 behind")
	replace()
	w.read("uid-a", "ns_t", "group", 1) // the marker itself need not be
	w.phase(drained)
	w.toldIn(drained, "stays until the Migration's wish is FINISH or ROLL_BACK")
	replace()

	// What waits for another attempt is nowhere to be seen.
	w.wish(finish)
	w.toldIn(drained, "events in EventStore a that wait for another attempt")
	w.jump.Add(int64(cutover.Hidden(time.Minute) + lateness))
	b = w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
	if len(b.Epochs) != 1 || b.Epochs[0].Number != 2 || b.Ended != "migration-1" {
		t.Errorf("it ends with %v", b)
	}
	w.untilTold("Finished: ")
	w.eventually("nothing left of what proxies said", func() bool { return len(w.words()) == 0 })
	w.wish(goOn) // it is over
	stop()
	stop = w.office()
	w.migrate("migration-2", "a", goOn)
	if b = w.phase(preparing); b.Epochs[1].Number != 3 || b.Move.MigrationUid != "migration-2" {
		t.Errorf("another one begins with %v", b)
	}
	stop()
}

// TestLastOneFails: a store is not given up as soon as the last event in it is settled,
// however long nothing has waited for another attempt by then: that one may. Nor before
// it comes, as late as the schedule lets it.
func TestLastOneFails(t *testing.T) {
	const schedule = 10 * time.Minute
	w := newWorld(t)
	w.put(meta("s", "sub"), &configv1.Resource{Spec: &configv1.Resource_Subscription{Subscription: &configv1.Subscription{Topics: []string{"t"},
		Retry: &configv1.Retry{MinBackoff: durationpb.New(schedule)}}}})
	stop := w.office()
	w.publish("uid-a", "ns_t", "1")
	w.join("one", w.addr, func(*proxy) {})
	w.wish(finish)
	w.phase(preparing)
	w.admit()
	w.phase(draining)
	w.toldIn(draining, "partition \"\" is 1 behind")
	w.jump.Add(int64(2 * schedule))
	w.anew()
	w.read("uid-a", "ns_t", "group", 1)
	w.phase(drained)
	w.toldIn(drained, "events in EventStore a that wait for another attempt")
	w.jump.Add(int64(schedule + lateness + time.Second))
	w.anew()
	w.toldIn(drained, "events in EventStore a that wait for another attempt")
	w.jump.Add(int64(schedule / 10))
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
	stop()
}

// TestHeldBackByTheMesh: what proxies hold back in the store's place comes when one of them
// brings it, which may be later than its schedule: a store is not given up before that, nor
// for what waits there for longer than anything of the Subscription does, or came since.
func TestHeldBackByTheMesh(t *testing.T) {
	w := newWorld(t)
	for _, delay := range []time.Duration{0, time.Minute, time.Hour} {
		name := "own-" + delay.String()
		w.own = append(w.own, store.OwnTopic{Spec: store.TopicSpec{Name: name}, Group: name, Delay: delay})
		if delay == time.Minute {
			continue // its provisioner has not made it yet
		}
		admin := w.where["uid-a"].(store.Admin)
		w.must(admin.EnsureTopic(w.ctx, store.TopicSpec{Name: name}))
		w.must(admin.EnsureGroup(w.ctx, name, name, store.Start{}))
		w.publish("uid-a", name, "held-back")
	}
	stop := w.office()
	w.join("one", w.addr, func(*proxy) {})
	w.wish(finish)
	w.phase(preparing)
	w.admit()
	w.phase(drained)
	w.toldIn(drained, "none came for 1m26s")
	w.jump.Add(int64(time.Hour)) // no proxy runs
	w.toldIn(drained, "what is held back in topic own-0s, up to offset 1")
	w.publish("uid-a", "own-0s", "later")
	w.read("uid-a", "own-0s", "own-0s", 1)
	w.toldIn(drained, "none came for 20s behind what was held back")
	w.publish("uid-a", "retry", "held-back") // here it is
	w.toldIn(drained, "events wait for another attempt")
	w.read("uid-a", "retry", "retry-group", 1)
	w.toldIn(drained, "none came for 1m26s")
	w.jump.Add(int64(time.Hour))
	w.toldIn(drained, "what is held back in topic own-0s, up to offset 2")
	w.read("uid-a", "own-0s", "own-0s", 1)
	w.toldIn(drained, "none came for 20s behind what was held back")
	w.jump.Add(int64(lateness))
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
	stop()
}

// TestStaying: what waits for another attempt in a store is left to a Subscription that goes on
// reading there, by a topic that is written to in it; not by one that leaves it too, or has not
// come yet.
func TestStaying(t *testing.T) {
	w := newWorld(t)
	in := func(epoch uint32, store string) *configv1.Epoch {
		return &configv1.Epoch{Number: epoch, Store: store, StoreUid: "uid-" + store, PhysicalName: "ns"}
	}
	at := func(uid string, phase configv1.Move_Phase, epochs ...*configv1.Epoch) *configv1.Resource {
		b := &configv1.TopicBinding{TopicUid: uid, Epochs: epochs}
		if phase != 0 {
			b.Move = &configv1.Move{Phase: phase}
		}
		return &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: b}}
	}
	w.put(meta("t", ""), at("topic", draining, in(1, "a"), in(2, "b")))
	source := func(topic, uid string, epoch uint32) *configv1.SubscriptionSource {
		return &configv1.SubscriptionSource{Topic: topic, TopicUid: uid, Epoch: epoch, PhysicalGroup: "group", RetryTopic: "retry", RetryGroup: "retry-group"}
	}
	w.put(meta("s", ""), &configv1.Resource{Spec: &configv1.Resource_SubscriptionAdmission{SubscriptionAdmission: &configv1.SubscriptionAdmission{SubscriptionUid: "sub",
		Sources: []*configv1.SubscriptionSource{source("t", "topic", 1), source("t", "topic", 2), source("u", "other", 1), source("u", "other", 2)}}}})
	for _, tc := range []struct {
		what  string
		other *configv1.Resource
		stays bool
	}{
		{"in the store", at("other", 0, in(1, "a")), true},
		{"in another one", at("other", 0, in(1, "b")), false},
		{"about to leave it", at("other", marking, in(1, "a"), in(2, "b")), true},
		{"leaving it", at("other", draining, in(1, "a"), in(2, "b")), false},
		{"read to its end", at("other", drained, in(1, "a"), in(2, "b")), false},
		{"about to come to it", at("other", preparing, in(1, "b"), in(2, "a")), false},
		{"coming to it", at("other", draining, in(1, "b"), in(2, "a")), true},
		{"made anew", at("another", 0, in(1, "a")), false},
	} {
		w.put(meta("u", ""), tc.other)
		snap, err := w.store.Current()
		w.must(err)
		all, _ := items(snap, snap.Resource(resource.Name(resource.Topic, "ns", "t")), w.binding())
		if stays := !slices.ContainsFunc(all, func(at item) bool { return at.retry }); stays != tc.stays {
			t.Errorf("beside a topic %s: it stays %v", tc.what, stays)
		}
	}
}

// anew waits until the office has looked at the store anew, and passed since.
func (w *world) anew() {
	w.Helper()
	lags := w.lags.Load()
	w.eventually("another look", func() bool { return w.lags.Load() > lags+4 })
	passes := w.passes.Load()
	w.eventually("another pass", func() bool { return w.passes.Load() > passes+1 })
}

// holds reports whether the last answer granted a lease.
func (p *proxy) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.granted
}

// to leads a move to a phase, with one proxy for which that is the end of the way.
func (w *world) to(phase configv1.Move_Phase) *proxy {
	w.Helper()
	p := w.join("p", w.addr, func(p *proxy) {
		p.deaf, p.busy = phase == leasing, phase == stopping
		if phase == marking {
			p.failing = "full"
		}
	})
	w.publish("uid-a", "ns_t", "1")
	w.wish(goOn)
	w.phase(preparing)
	if phase != preparing {
		w.admit()
	}
	if phase == drained {
		w.phase(draining)
		w.read("uid-a", "ns_t", "group", 1)
	}
	w.phase(phase)
	return p
}

// TestDeaf: nobody is stopped before every proxy of the roster has heard, and one that is
// declared dead is not waited for.
func TestDeaf(t *testing.T) {
	w := newWorld(t)
	w.office()
	w.mu.Lock()
	w.nodes = append(w.nodes, "never")
	w.mu.Unlock()
	w.join("p", w.addr, nil)
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	w.phase(leasing)
	w.toldIn(leasing, "1 of 2 proxies have not heard of it: never")
	// One thing is waited for, and told as one.
	if _, waits, _ := strings.Cut(w.told(), "; waits: "); strings.Contains(waits, "; ") || !strings.Contains(waits, "declare-dead") {
		t.Errorf("it waits for %q", waits)
	}
	w.jump.Add(int64(time.Hour)) // time changes nothing
	w.looks(2)
	if got := w.binding().Move.Phase; got != leasing {
		t.Fatalf("it is at %v", got)
	}
	w.mu.Lock()
	w.nodes = []string{"p"}
	w.mu.Unlock()
	w.phase(draining)
}

// TestOldProxies: nothing changes of a topic while a proxy of the roster does not know
// moves; once it does, or is gone, the move begins.
func TestOldProxies(t *testing.T) {
	w := newWorld(t)
	w.office()
	w.join("p", w.addr, nil)
	w.mu.Lock()
	w.nodes, w.old = append(w.nodes, "p3", "p7"), []string{"p3", "p7"}
	w.mu.Unlock()
	snap, err := w.store.Current()
	w.must(err)
	version := snap.Get(binding).Version()
	w.wish(goOn)
	w.eventually("it is told or begins", func() bool { return w.told() != "" || w.binding().Move != nil })
	if want := "of 3 proxies these do not know moves, as their version is older, or have not said that they do: p3, p7. Upgrade them"; !strings.Contains(w.told(), want) {
		t.Fatalf("it is told %q; the binding is %v", w.told(), w.binding())
	}
	w.looks(2)
	if snap, err = w.store.Current(); err != nil || snap.Get(binding).Version() != version {
		t.Fatalf("the binding was changed: %v %v", snap.Get(binding).Resource, err)
	}
	w.mu.Lock()
	w.old = []string{"p7"}
	w.mu.Unlock()
	w.untilTold("do: p7. Upgrade")
	w.mu.Lock()
	w.nodes = []string{"p", "p3"}
	w.mu.Unlock()
	w.phase(preparing)
}

// looks waits until the office has begun to look so often from now on.
func (w *world) looks(n int64) {
	w.Helper()
	from := w.passes.Load()
	w.eventually("the office to look", func() bool { return w.passes.Load() > from+n })
}

// TestBusy: a proxy that never says that it is idle is waited for as long as a lease
// lasts, from when this office has seen it, and not longer.
func TestBusy(t *testing.T) {
	w := newWorld(t)
	stop := w.office()
	w.to(stopping)
	w.toldIn(stopping, "have not said that nothing is on its way: p")
	stop()
	before := w.binding()
	w.jump.Add(int64(time.Hour)) // before the next one takes office
	w.office()
	w.looks(2)
	w.jump.Add(int64(cutover.Default.TTL/2 + cutover.Default.Margin))
	w.looks(2)
	if got := w.binding(); !proto.Equal(got, before) {
		t.Fatalf("it went on to %v", got)
	}
	w.jump.Add(int64(cutover.Default.TTL / 2))
	w.phase(marking)
}

// TestLeft: who was declared dead is not waited for to hear, but its lease is, unless it
// has said that it is idle.
func TestLeft(t *testing.T) {
	w := newWorld(t)
	w.office()
	p := w.to(stopping)
	w.mu.Lock()
	w.nodes = nil
	w.mu.Unlock()
	w.looks(2)
	w.toldIn(stopping, "1 of 1 proxies have not said that nothing is on its way: p")
	if got := w.binding().Move.Phase; got != stopping {
		t.Fatalf("it is at %v", got)
	}
	p.be(func(p *proxy) { p.busy = false })
	w.phase(marking)
}

// TestMarkers: where a proxy cannot write markers another one is asked; where none can,
// publishers write to the old place again, for a while; what an attempt wrote that was
// given up does not count.
func TestMarkers(t *testing.T) {
	w := newWorld(t)
	w.office()
	one := w.join("one", w.addr, func(p *proxy) { p.failing = "full" })
	two := w.join("two", w.addr, func(p *proxy) { p.failing = "too full" })
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	first := w.phase(marking)
	w.until("another proxy", func(b *configv1.TopicBinding) bool { return b.Move.Marker != first.Move.Marker && b.Move.Attempt > 1 })
	w.jump.Add(int64(cutover.StuckAfter))
	back := w.phase(leasing)
	w.toldIn(leasing, "the last attempt was given up: proxy ")
	w.eventually("a lease", func() bool { return one.holds() && two.holds() })

	// The markers of an earlier attempt come late, and it is said of them that they are
	// of this one's version.
	late := &configv1.Cut{Offset: 99}
	for _, p := range []*proxy{one, two} {
		p.be(func(p *proxy) { p.late = late; p.lateAttempt = back.Move.Attempt })
	}
	w.jump.Add(int64(cutover.RetryAfter))
	b := w.until("another attempt", func(b *configv1.TopicBinding) bool {
		return b.Move.Phase == marking && b.Move.Attempt > back.Move.Attempt
	})
	w.eventually("the late markers are told", func() bool {
		h := w.words()[b.Move.Marker]
		return len(h.GetCut()) == 1 && h.Cut[0].Offset == 99
	})
	for _, p := range []*proxy{one, two} {
		p.be(func(p *proxy) { p.late, p.failing = nil, "" })
	}
	if b = w.phase(draining); b.Epochs[0].Cut[0].Offset == 99 {
		t.Error("the cut is what an earlier attempt wrote")
	}
}

// TestPartitions: markers count where there is one in each partition that the old place
// had when the move was prepared.
func TestPartitions(t *testing.T) {
	w := newWorld(t)
	w.office()
	p := w.join("one", w.addr, func(p *proxy) { p.elsewhere = true })
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	b := w.phase(marking)
	if len(b.Move.Partitions) != 1 || b.Move.Partitions[0] != "" {
		t.Errorf("the partitions are %q", b.Move.Partitions)
	}
	w.toldIn(marking, "found no partition ")
	w.jump.Add(int64(cutover.StuckAfter))
	w.phase(leasing)
	p.be(func(p *proxy) { p.elsewhere = false })
	w.jump.Add(int64(cutover.RetryAfter))
	w.phase(draining)
}

// TestTooManyPartitions: a topic of which no proxy could say where it ends, as it has more
// partitions than a word may have, does not move, and it is told why before anybody waits.
func TestTooManyPartitions(t *testing.T) {
	w := newWorld(t)
	w.wide = maxCut + 1
	w.office()
	w.join("one", w.addr, nil)
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	w.toldIn(preparing, "ns_t has 2049, and a topic that moves has at most 2048")
	w.looks(2)
	if got := w.binding().Move.Phase; got != preparing {
		t.Errorf("it is at %v; told: %s", got, w.told())
	}
}

// TestDivided: a topic leaves an embedded store, and comes to one, where there is one
// proxy alone.
func TestDivided(t *testing.T) {
	for _, name := range []string{"a", "b"} {
		w := newWorld(t)
		w.put(meta(name, "uid-"+name), &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
		w.office()
		w.join("one", w.addr, func(*proxy) {})
		two := w.join("two", w.addr, func(*proxy) {})
		w.wish(goOn)
		w.phase(preparing)
		w.admit()
		w.toldIn(preparing, "EventStore "+name+" is embedded, so each of 2 proxies has one of its own")
		two.stop()
		w.mu.Lock()
		w.nodes = []string{"one"}
		w.mu.Unlock()
		w.phase(draining)
	}
}

// TestJoinedWhileDraining: an embedded store is drained once every proxy says so of its own;
// one that joins once the topic has left it has nothing there, and says so.
func TestJoinedWhileDraining(t *testing.T) {
	w := newWorld(t)
	w.put(meta("a", "uid-a"), &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	w.office()
	one := w.join("one", w.addr, func(*proxy) {})
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	w.phase(draining)
	all := []*discoveryv1.Settled{{Epoch: 1, Group: "group"}}
	w.join("two", w.addr, func(p *proxy) { p.settled = all })
	w.eventually("it says so", func() bool { return len(w.words()["two"].GetSettled()) > 0 })
	passes := w.passes.Load()
	w.eventually("another pass", func() bool { return w.passes.Load() > passes+1 })
	w.toldIn(draining, "has not read all of EventStore a, with what waits there for another attempt, at one")
	one.be(func(p *proxy) { p.settled = all })
	w.phase(drained)
}

// TestWishes: what is wished in every phase.
func TestWishes(t *testing.T) {
	for _, phase := range []configv1.Move_Phase{preparing, leasing, stopping, marking} {
		t.Run("roll back/"+phase.String(), func(t *testing.T) {
			w := newWorld(t)
			w.office()
			w.to(phase)
			w.wish(rollBack)
			b := w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
			if len(b.Epochs) != 1 || b.Epochs[0].Number != 1 || len(b.Epochs[0].Cut) > 0 || b.Highest != 2 || b.Ended != "migration-1" {
				t.Errorf("it is at %v", b)
			}
			w.untilTold("Withdrawn: ")
			w.migrate("migration-2", "b", goOn)
			if b := w.phase(preparing); b.Epochs[1].Number != 3 {
				t.Errorf("the next one has the epoch %v", b.Epochs[1])
			}
		})
	}
	for phase, want := range map[configv1.Move_Phase]configv1.Move_Phase{preparing: preparing, leasing: leasing, stopping: leasing, marking: leasing} {
		t.Run("pause/"+phase.String(), func(t *testing.T) {
			w := newWorld(t)
			w.office()
			p := w.to(phase)
			w.wish(pause)
			w.phase(want)
			w.untilTold("Paused: ")
			p.be(func(p *proxy) { p.deaf, p.busy, p.failing = false, false, "" })
			if phase == preparing {
				w.admit()
			}
			w.jump.Add(int64(time.Hour))
			if want == leasing {
				w.eventually("a lease", p.holds)
			}
			w.looks(2)
			if got := w.binding(); got.Move.Phase != want {
				t.Errorf("it is at %v", got)
			}
			w.wish(goOn)
			w.eventually("the wish is seen", func() bool {
				at := w.binding().Move.Phase
				if at == preparing || at == leasing { // the others take their time
					w.jump.Add(int64(time.Second))
				}
				return at == draining
			})
		})
	}
	for _, phase := range []configv1.Move_Phase{draining, drained} {
		t.Run("roll back/"+phase.String(), func(t *testing.T) {
			w := newWorld(t)
			w.office()
			w.to(phase)
			w.wish(rollBack)
			b := w.until("the way back", func(b *configv1.TopicBinding) bool { return b.Move.GetBack() })
			e := b.Epochs[2]
			if e.Number != 3 || e.Store != "a" || e.StoreUid != "uid-a" || len(b.Epochs[0].Cut) == 0 || slices.ContainsFunc(b.Epochs[:2], func(o *configv1.Epoch) bool { return o.PhysicalName == e.PhysicalName }) {
				t.Fatalf("the way back is %v", b)
			}
			// Forward again, while that is not cut over; and back.
			w.wish(goOn)
			if b = w.until("forward again", func(b *configv1.TopicBinding) bool { return !b.Move.GetBack() }); len(b.Epochs) != 2 || b.Highest != 3 || b.Move.Phase < draining {
				t.Fatalf("forward again is %v", b)
			}
			w.wish(rollBack)
			if b = w.until("the way back", func(b *configv1.TopicBinding) bool { return b.Move.GetBack() }); b.Epochs[2].Number != 4 {
				t.Fatalf("the way back is %v", b)
			}
			w.admit()
			w.phase(draining)
			if phase == draining {
				w.read("uid-a", "ns_t", "group", 1)
			}
			w.phase(drained)
			w.eventually("it is told what ends it", func() bool { return strings.Contains(w.told(), "until the Migration's wish is FINISH;") })
			w.wish(finish)
			w.eventually("the end", func() bool { w.jump.Add(int64(time.Minute)); return w.binding().Move == nil })
			if b = w.binding(); len(b.Epochs) != 1 || b.Epochs[0].Number != 4 {
				t.Errorf("it ends with %v", b)
			}
		})
	}
}
