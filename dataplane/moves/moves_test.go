package moves

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

const (
	uidTopic = "11111111-1111-4111-8111-111111111111"
	uidOld   = "22222222-2222-4222-8222-222222222222"
	uidNew   = "33333333-3333-4333-8333-333333333333"
	node     = "proxy-1"
)

var (
	orders = snapshot.Key{Namespace: "demo", Name: "orders"}
	terms  = cutover.Terms{TTL: 30 * time.Second, Margin: time.Second}
)

// at is a configuration in which orders is so far; none is before all.
func at(phase cutover.Phase, version int) *snapshot.Snapshot {
	t := &snapshot.Topic{Key: orders, UID: uidTopic, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidOld, Physical: "old"}, {Number: 2, StoreUID: uidNew, Physical: "new"}}}
	t.Move = &snapshot.Move{Phase: phase, Version: strconv.Itoa(version), Attempt: uint32(version), Marker: node} //nolint:gosec // small
	return &snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{orders: t}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{}}
}

// still is a configuration in which orders does not move.
func still() *snapshot.Snapshot {
	s := at(cutover.Preparing, 0)
	t := s.Topics[orders]
	t.Move, t.Epochs = nil, t.Epochs[:1]
	return s
}

// proxy is a manager with its configuration and its clock.
type proxy struct {
	m     *Manager
	snaps *latest.Value[*snapshot.Snapshot]
	now   time.Duration
}

func newProxy(s *snapshot.Snapshot) *proxy {
	p := &proxy{snaps: latest.New(s), now: time.Hour}
	p.m = New(Config{Snapshots: p.snaps, NodeID: node, Terms: terms, Patience: time.Millisecond, Now: func() time.Duration { return p.now }, Log: slog.New(slog.DiscardHandler),
		Store: func(string) (store.Store, error) { return nil, fault.New(fault.Unavailable, "", "none", "none") }})
	return p
}

// over is a context that has ended: what would wait does not.
func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// begin begins a write by a configuration that was in force some time.
func (p *proxy) begin(snap *snapshot.Snapshot) (*Write, error) {
	w, err := p.m.Begin(over(), snap, snap.Topics[orders])
	return &w, err
}

func (p *proxy) lease() { p.m.grant(map[string]uint32{uidTopic: 1}, p.now) }

// TestBegin: what may begin in which phase, with a lease and without, and where it goes.
func TestBegin(t *testing.T) {
	for _, tc := range []struct {
		snap   *snapshot.Snapshot
		lease  bool
		epoch  uint32 // 0: it may not begin
		phrase string
	}{
		{still(), false, 1, "does not move"},
		{&snapshot.Snapshot{}, false, 0, "is not there any more"},
		{at(cutover.Preparing, 1), false, 1, "is prepared"},
		{at(cutover.Leasing, 2), false, 0, "without a lease"},
		{at(cutover.Leasing, 2), true, 1, "with a lease"},
		{at(cutover.Stopping, 3), true, 0, "stopping"},
		{at(cutover.Marking, 4), true, 0, "marking"},
		{at(cutover.Draining, 5), false, 2, "draining"},
		{at(cutover.Drained, 6), false, 2, "drained"},
	} {
		p := newProxy(tc.snap)
		if tc.lease {
			p.lease()
		}
		w, err := p.begin(still())
		if (err == nil) != (tc.epoch != 0) || err == nil && w.Epoch.Number != tc.epoch {
			t.Errorf("%s: %+v, %v", tc.phrase, w.Epoch, err)
		}
		if p.now += terms.TTL; tc.lease && tc.epoch == 1 {
			if _, err := p.begin(tc.snap); err == nil {
				t.Errorf("%s: a write begins after the lease", tc.phrase)
			}
		}
	}
}

// TestEnd: what began so is acknowledged when the configuration has become another one,
// or the lease has ended, meanwhile.
func TestEnd(t *testing.T) {
	for _, tc := range []struct {
		before, after *snapshot.Snapshot
		lease         bool // that there is when the store has answered
		ok            bool
	}{
		{still(), still(), false, true},
		{still(), at(cutover.Preparing, 1), false, true},
		{still(), at(cutover.Leasing, 2), false, false},
		{still(), at(cutover.Leasing, 2), true, true},
		{still(), at(cutover.Stopping, 3), true, false}, // it is not among those on their way
		{still(), at(cutover.Draining, 3), true, false},
		{at(cutover.Leasing, 2), at(cutover.Leasing, 2), true, true},
		{at(cutover.Leasing, 2), at(cutover.Leasing, 2), false, false},
		{at(cutover.Leasing, 2), at(cutover.Stopping, 3), true, true},
		{at(cutover.Leasing, 2), at(cutover.Stopping, 3), false, false},
		{at(cutover.Leasing, 2), at(cutover.Draining, 4), true, false},
		{at(cutover.Leasing, 2), still(), false, true}, // withdrawn
		{at(cutover.Draining, 5), at(cutover.Drained, 6), false, true},
		{at(cutover.Draining, 5), &snapshot.Snapshot{}, false, false}, // not there any more
	} {
		p := newProxy(tc.before)
		p.lease()
		w, err := p.begin(tc.before)
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%+v, then %+v, lease %v", tc.before.Topics[orders].Move, tc.after.Topics[orders], tc.lease)
		p.snaps.Store(tc.after)
		if !tc.lease {
			p.now += terms.TTL
		}
		err = w.End(nil)
		if (err == nil) != tc.ok || err != nil && fault.ClassOf(err) != fault.Ambiguous {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestIdle: a proxy is idle in Stopping once no write that began under a lease is on its
// way, whatever becomes of it.
func TestIdle(t *testing.T) {
	p := newProxy(at(cutover.Leasing, 2))
	p.lease()
	a, err := p.begin(p.snaps.Get())
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.begin(p.snaps.Get())
	if err != nil {
		t.Fatal(err)
	}
	s := at(cutover.Stopping, 3)
	p.snaps.Store(s)
	idle := func() bool { return p.m.idle(s, s.Topics[orders]) }
	if idle() {
		t.Error("idle with two on their way")
	}
	_ = a.End(nil)
	if idle() {
		t.Error("idle with one on its way")
	}
	_ = b.End(fault.New(fault.Unavailable, "", "down", "down"))
	if !idle() {
		t.Error("not idle")
	}
	p.snaps.Store(at(cutover.Leasing, 4))
	if idle() {
		t.Error("idle by what is not in force any more")
	}
}

// TestIdleSaid: the control plane hears at once that nothing is on its way where it waits
// for that, and is not told with each write before.
func TestIdleSaid(t *testing.T) {
	p := newProxy(at(cutover.Leasing, 2))
	p.lease()
	for _, tc := range []struct {
		after *snapshot.Snapshot
		said  bool
	}{{at(cutover.Leasing, 2), false}, {at(cutover.Stopping, 3), true}, {&snapshot.Snapshot{}, false}} {
		before := at(cutover.Leasing, 2)
		p.snaps.Store(before)
		w, err := p.begin(before)
		if err != nil {
			t.Fatal(err)
		}
		p.snaps.Store(tc.after)
		_ = w.End(nil)
		select {
		case <-p.m.poke:
			if !tc.said {
				t.Errorf("%+v: it is said", tc.after.Topics[orders])
			}
		default:
			if tc.said {
				t.Errorf("%+v: it is not said", tc.after.Topics[orders])
			}
		}
	}
}

// BenchmarkWrite is what a write costs beside the store: of a topic that does not move, and
// under a lease.
func BenchmarkWrite(b *testing.B) {
	for name, snap := range map[string]*snapshot.Snapshot{"still": still(), "leased": at(cutover.Leasing, 2)} {
		p := newProxy(snap)
		p.m.cfg.Now = clock.SinceBoot
		p.m.grant(map[string]uint32{uidTopic: 1}, clock.SinceBoot()+time.Hour)
		t := snap.Topics[orders]
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					w, err := p.m.Begin(b.Context(), snap, t)
					if err == nil {
						err = w.End(nil)
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// TestWaits: a write waits for a lease, and for the end of the cut, but not for ever.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy(at(cutover.Leasing, 2))
		begun := make(chan error, 1)
		begin := func() {
			go func() {
				w, err := p.m.Begin(context.Background(), still(), still().Topics[orders])
				if err == nil {
					err = w.End(nil)
				}
				begun <- err
			}()
			synctest.Wait()
		}
		begin()
		p.lease()
		if err := <-begun; err != nil {
			t.Error(err)
		}
		// What began before leases were needed is judged once there is one.
		p.snaps.Store(still())
		w, err := p.begin(still())
		if err != nil {
			t.Fatal(err)
		}
		p.now += terms.TTL
		p.snaps.Store(at(cutover.Leasing, 3))
		go func() { begun <- w.End(nil) }()
		synctest.Wait()
		p.lease()
		if err := <-begun; err != nil {
			t.Errorf("a write that waited for the first lease: %v", err)
		}
		p.snaps.Store(at(cutover.Stopping, 3))
		begin()
		p.snaps.Store(at(cutover.Draining, 4))
		if err := <-begun; err != nil {
			t.Error(err)
		}
		p.snaps.Store(at(cutover.Marking, 5))
		begin()
		err = <-begun
		if f := fault.From(err); f == nil || f.Class != fault.Unavailable || f.Reason != "topic-moving" || f.RetryAfter == 0 {
			t.Errorf("%+v", err)
		}
	})
}

// TestRandom: two proxies with what is here, and an administrator that follows
// cutover.Next, through random moves: nothing that is acknowledged lies behind the cut.
func TestRandom(t *testing.T) {
	cuts := 0
	for seed := range uint64(400) {
		w := newWorld(seed)
		for range 300 {
			w.step()
		}
		for e, i := range w.acked {
			if e == 1 {
				for _, index := range i {
					if w.cut >= 0 && index > w.cut {
						t.Fatalf("seed %d: what was acknowledged at %d is behind the cut at %d", seed, index, w.cut)
					}
				}
			}
		}
		if w.cut >= 0 && len(w.acked[2]) > 0 {
			cuts++
		}
	}
	if t.Logf("%d moves came to their cut", cuts); cuts < 50 {
		t.Errorf("only %d moves came to their cut", cuts)
	}
}

// world is the mesh that TestRandom goes through.
type world struct {
	rand  *rand.Rand
	snaps []*snapshot.Snapshot // by version
	phase cutover.Phase
	since time.Duration // when it was written
	now   time.Duration
	p     [2]*model
	log   int // events and markers in the old place
	cut   int
	mark  int // the marker of this Marking; -1: there is none
	acked map[uint32][]int
}

// model is one proxy as the world sees it.
type model struct {
	*proxy
	has    int // the version in force
	idle   int // the version in which it has said that it is idle
	asked  time.Duration
	asks   bool
	answer int // 0: none yet
	writes []*written
}

type written struct {
	*Write
	at int // in the log; -1: not there yet
}

func newWorld(seed uint64) *world {
	w := &world{rand: rand.New(rand.NewPCG(seed, 1)), snaps: []*snapshot.Snapshot{at(cutover.Preparing, 0)}, cut: -1, mark: -1, acked: map[uint32][]int{}, now: time.Hour}
	for i := range w.p {
		w.p[i] = &model{proxy: newProxy(w.snaps[0])}
	}
	return w
}

func (w *world) step() {
	p := w.p[w.rand.IntN(len(w.p))]
	switch w.rand.IntN(12) {
	case 0:
		w.now += time.Duration(w.rand.Int64N(int64(terms.TTL) / 4))
	case 1, 2:
		p.has = len(w.snaps) - 1
		p.snaps.Store(w.snaps[p.has])
	case 3:
		p.asks, p.asked, p.answer = true, w.now, 0
	case 4:
		if p.asks && p.answer == 0 {
			if p.answer = 1; cutover.Grants(w.phase) {
				p.answer = 2
			}
		}
	case 5:
		if p.now = w.now; p.answer == 2 {
			p.m.grant(map[string]uint32{uidTopic: 1}, p.asked)
		}
		p.asks, p.answer = false, 0
	case 6, 7:
		p.now = w.now
		if wr, err := p.begin(w.snaps[w.rand.IntN(p.has+1)]); err == nil {
			p.writes = append(p.writes, &written{wr, -1})
		}
	case 8:
		w.write(p)
	case 9:
		if t := p.snaps.Get().Topics[orders]; t.Move.Phase == cutover.Stopping && p.m.idle(p.snaps.Get(), t) {
			p.idle = p.has
		}
	default:
		w.office()
	}
}

// write takes one write of p a step further.
func (w *world) write(p *model) {
	if len(p.writes) == 0 {
		return
	}
	i := w.rand.IntN(len(p.writes))
	wr := p.writes[i]
	if wr.at < 0 {
		wr.at = w.log
		w.log++
		return
	}
	p.now = w.now
	p.writes = append(p.writes[:i], p.writes[i+1:]...)
	if wr.End(nil) == nil {
		w.acked[wr.Epoch.Number] = append(w.acked[wr.Epoch.Number], wr.at)
	}
}

// office takes the move a step further, or a step back.
func (w *world) office() {
	newest := len(w.snaps) - 1
	f := cutover.Facts{Ready: true, Heard: true, Idle: true, Waited: w.now - w.since, Marked: w.mark >= 0, Stuck: w.rand.IntN(4) == 0}
	for _, p := range w.p {
		f.Heard = f.Heard && p.has == newest
		f.Idle = f.Idle && p.idle == newest
	}
	if w.rand.IntN(8) == 0 {
		f.Wish = cutover.Pause
	}
	if w.phase == cutover.Marking && w.mark < 0 && w.rand.IntN(2) == 0 {
		w.mark = w.log
		w.log++
		return
	}
	next := terms.Next(w.phase, f)
	if next == w.phase || next > cutover.Draining {
		return
	}
	if next == cutover.Draining {
		w.cut = w.mark
	}
	w.phase, w.since, w.mark = next, w.now, -1
	w.snaps = append(w.snaps, at(next, len(w.snaps)))
}
