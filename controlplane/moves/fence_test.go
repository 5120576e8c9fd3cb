package moves

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// barrier is the fences of one store.
type barrier struct {
	mu       sync.Mutex
	stands   map[string]bool // around topics
	how      store.Fence
	up, down error // of putting one up, and of lifting one
	// before is what a native producer does before a fence stands, the first time.
	before func()
}

func (b *barrier) Fence(_ context.Context, topic string) (store.Fence, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.before != nil {
		b.before()
		b.before = nil
	}
	b.stands[topic] = true // it may stand also where nobody has heard that it does
	return b.how, b.up
}

func (b *barrier) Unfence(_ context.Context, topic string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down == nil {
		delete(b.stands, topic)
	}
	return b.down
}

func (b *barrier) be(how func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	how()
}

func (b *barrier) around(topic string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stands[topic]
}

// fence gives a store of the world fences, of which nothing is heard at first.
func (w *world) fence(uid string, how store.Fence, up error) *barrier {
	b := &barrier{stands: map[string]bool{}, how: how, up: up}
	w.barriers = map[string]*barrier{uid: b}
	return b
}

// begun are the fences that etcd knows of.
func (w *world) begun() int64 {
	w.Helper()
	resp, err := w.etcd.Get(w.ctx, w.store.StatusKey("fence/"), clientv3.WithPrefix(), clientv3.WithCountOnly())
	w.must(err)
	return resp.Count
}

var (
	away   = fault.New(fault.Unavailable, "test", "store-unreachable", "it is away")
	denied = fault.New(fault.Unavailable, "test", "store-access-denied", "it does not let us")
)

// markedAt waits for the binding of a topic that has left its old place, which ends at an
// offset.
func (w *world) markedAt(offset uint64, state configv1.Fence_State, why string) *configv1.TopicBinding {
	w.Helper()
	b := w.phase(draining)
	e := b.Epochs[0]
	if len(e.Cut) != 1 || e.Cut[0].Offset != offset || e.Fence.GetState() != state || !strings.Contains(e.Fence.GetReason(), why) {
		w.Fatalf("it has left %v", e)
	}
	if b.Epochs[1].Fence != nil {
		w.Errorf("it has come to %v", b.Epochs[1])
	}
	return b
}

// TestFence: what a native producer wrote until the fence stood is before the cut, and
// the fence stays when the move is finished, whoever was in office.
func TestFence(t *testing.T) {
	w := newWorld(t)
	b := w.fence("uid-a", store.FenceEnforced, away)
	b.before = func() {
		w.publish("uid-a", "ns_t", "native") // at 2, behind the marker at 1
		w.publish("uid-a", "ns_t", "native")
	}
	stop := w.office()
	w.join("p", w.addr, nil)
	w.publish("uid-a", "ns_t", "1")
	w.wish(goOn)
	w.phase(preparing)
	w.admit()
	w.phase(marking)
	w.untilTold("EventStore a puts up a fence around what the topic leaves: ")
	stop()
	stop = w.office()
	w.untilTold("EventStore a puts up a fence around what the topic leaves: ")
	b.be(func() { b.up = nil })
	w.markedAt(4, configv1.Fence_STATE_ENFORCED, "")
	w.untilTold("a fence around ns_t keeps native producers out")
	stop()
	w.office()
	w.read("uid-a", "ns_t", "group", 4)
	w.phase(drained)
	w.wish(finish)
	w.toldIn(drained, "wait for another attempt")
	w.jump.Add(int64(time.Minute + lateness))
	w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
	if !b.around("ns_t") {
		t.Error("the fence is not there any more")
	}
	w.eventually("nothing left of it in etcd", func() bool { return w.begun() == 0 })
}

// TestFenceNone: a move goes on without a fence where its store has none, does not let
// the mesh, or does not answer for some time, and says so. An advisory one does not hold
// up those who do not know of it.
func TestFenceNone(t *testing.T) {
	for name, tc := range map[string]struct {
		how   store.Fence
		up    error
		after bool
		state configv1.Fence_State
		why   string
		told  string
	}{
		"denied":   {up: denied, state: configv1.Fence_STATE_NONE, why: "it does not let us", told: "native producers are not stopped: "},
		"no such":  {up: store.NoFence("ns_t", "no authorizer"), state: configv1.Fence_STATE_NONE, why: "no authorizer", told: "native producers are not stopped: "},
		"late":     {up: away, after: true, state: configv1.Fence_STATE_NONE, why: "it could not be put up in time: ", told: "native producers are not stopped: "},
		"advisory": {how: store.FenceAdvisory, state: configv1.Fence_STATE_ADVISORY, told: "native producers are told not to write to ns_t: "},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.fence("uid-a", tc.how, tc.up)
			w.office()
			w.join("p", w.addr, nil)
			w.publish("uid-a", "ns_t", "1")
			w.wish(goOn)
			w.phase(preparing)
			w.admit()
			if tc.after {
				w.untilTold("puts up a fence")
				w.jump.Add(int64(fenceAfter))
			}
			w.markedAt(1, tc.state, tc.why)
			w.untilTold(tc.told)
		})
	}
}

// TestFenceBack: where publishers write to the old place again it has no fence, whoever
// began it, and a move is withdrawn after that only.
func TestFenceBack(t *testing.T) {
	for _, wish := range []configv1.Migration_Wish{rollBack, pause} {
		ok := t.Run(wish.String(), func(t *testing.T) {
			w := newWorld(t)
			b := w.fence("uid-a", store.FenceEnforced, away)
			b.down = away
			stop := w.office()
			w.join("p", w.addr, nil)
			w.publish("uid-a", "ns_t", "1")
			w.wish(goOn)
			w.phase(preparing)
			w.admit()
			w.untilTold("puts up a fence")
			w.eventually("a fence", func() bool { return b.around("ns_t") && w.begun() == 1 })
			stop()
			w.wish(wish)
			stop = w.office()
			w.phase(leasing)
			if wish == rollBack {
				w.untilTold("the fence around what the topic has in EventStore a is lifted: ")
			}
			stop()
			stop = w.office()
			w.looks(2)
			if m := w.binding().Move; m.GetPhase() != leasing || !b.around("ns_t") {
				t.Fatalf("it is at %v", m)
			}
			b.be(func() { b.down = nil })
			if wish == rollBack {
				w.until("the end", func(b *configv1.TopicBinding) bool { return b.Move == nil })
			}
			w.eventually("no fence", func() bool { return !b.around("ns_t") && w.begun() == 0 })
			b.be(func() { b.up = nil })
			if wish == pause {
				w.wish(goOn)
				w.jump.Add(int64(cutover.RetryAfter))
				w.until("the cut", func(b *configv1.TopicBinding) bool { return b.GetMove().GetPhase() == draining })
				if !b.around("ns_t") {
					t.Error("there is no fence")
				}
			}
			stop()
		})
		if !ok {
			return // the other would fail as well, and only when its time is over
		}
	}
}

// TestFenceBegun: a fence that is on its way counts before etcd knows of it, or a move
// would be withdrawn, and the fence stand; none does behind the cut, and none of a place
// that the topic has left before.
func TestFenceBegun(t *testing.T) {
	w := newWorld(t)
	snap, err := w.store.Current()
	w.must(err)
	o := New(Config{Store: w.store, Log: quiet0})
	b := w.binding()
	b.Epochs = append(b.Epochs, &configv1.Epoch{Number: 2, Store: "b", StoreUid: "uid-b"})
	for _, tc := range []struct {
		phase   cutover.Phase
		fencing bool
		begun   string
		stands  bool
	}{
		{phase: cutover.Marking},
		{phase: cutover.Marking, begun: "fence/topic/1", stands: true},
		{phase: cutover.Marking, begun: "fence/topic/0"}, // of the move before, whose cut it is behind
		{phase: cutover.Marking, fencing: true, stands: true},
		{phase: cutover.Draining, fencing: true, begun: "fence/topic/1"},
	} {
		m := &move{snap: snap, topic: snap.Resource("topic/ns/t"), b: b, phase: tc.phase, fencing: tc.fencing, seen: &sighting{}}
		m.seen.fence.begun = tc.begun
		if why := o.standing(w.ctx, m); (why != "") != tc.stands {
			t.Errorf("%+v: %q", tc, why)
		}
	}
}

// TestFenceAhead: a topic comes to no place that has a fence of the mesh's around it.
func TestFenceAhead(t *testing.T) {
	w := newWorld(t)
	b := w.fence("uid-b", store.FenceEnforced, nil)
	b.down = away
	w.office()
	w.join("p", w.addr, nil)
	w.wish(goOn)
	ahead := w.phase(preparing).Epochs[1].PhysicalName
	b.be(func() { b.stands[ahead] = true })
	w.admit()
	w.toldIn(preparing, fmt.Sprintf("a fence around %s of EventStore b is lifted: ", ahead))
	w.looks(2)
	if got := w.binding().Move.Phase; got != preparing {
		t.Fatalf("it is at %v", got)
	}
	b.be(func() { b.down = nil })
	w.phase(draining)
	if b.around(ahead) {
		t.Error("the place that it has come to has a fence")
	}
}

// TestBehind: the cut is where a partition ends in its fence, but for the marker.
func TestBehind(t *testing.T) {
	cut := []*configv1.Cut{{Partition: "a", Offset: 5}, {Partition: "b", Offset: 5, Minor: 1}, {Partition: "gone", Offset: 5}}
	ends := []store.Extent{{Partition: "a", Begin: 1, End: 9}, {Partition: "b", End: 6}, {Partition: "new", End: 2}, {Partition: "empty", Begin: 3, End: 3}}
	var got []string
	for _, c := range behind(cut, ends) {
		got = append(got, fmt.Sprintf("%s:%d/%d", c.Partition, c.Offset, c.Minor))
	}
	if want := []string{"a:9/0", "b:5/1", "gone:5/0", "new:2/0"}; !slices.Equal(got, want) {
		t.Errorf("it ends at %v, want %v", got, want)
	}
}
