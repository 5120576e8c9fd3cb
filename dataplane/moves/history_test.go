package moves

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/store"
)

// etcd is what etcd says of the one topic.
type etcd struct {
	version int
	moves   bool
	phase   cutover.Phase
	marker  string
	attempt uint32
}

// snapshot is the configuration of a state.
func (s etcd) snapshot() *snapshot.Snapshot {
	t := &snapshot.Topic{Key: orders, UID: uidTopic, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidOld, Physical: "orders"}}}
	if s.moves {
		t.Epochs = append(t.Epochs, snapshot.Epoch{Number: 2, StoreUID: uidNew, Physical: "orders-e2"})
		t.Move = &snapshot.Move{Phase: s.phase, Version: strconv.Itoa(s.version), Marker: s.marker, Attempt: s.attempt}
	}
	return &snapshot.Snapshot{Lineage: "1-x", Revision: int64(s.version), Topics: map[snapshot.Key]*snapshot.Topic{orders: t}}
}

// mesh is a mesh of proxies with one topic: etcd, an administrator in office, and two
// stores. Its time is the bubble's, and that for which all of them stood still.
type mesh struct {
	ctx context.Context

	mu      sync.Mutex
	r       *rand.Rand
	began   time.Time
	asleep  time.Duration
	now     etcd
	since   time.Duration // when the phase was written
	proxies []*member
	logs    [3][]string // by epoch
	cut     int         // of epoch 1; -1 without
	acked   map[string][]spot
	ends    map[string]int // how writes ended
}

// spot is where an event is.
type spot struct{ epoch, at int }

// member is one proxy.
type member struct {
	id        string
	snapshots *latest.Value[*snapshot.Snapshot]
	m         *Manager
	news      chan *snapshot.Snapshot
	newest    *holding
	said      *discoveryv1.Held
}

func newMesh(ctx context.Context, seed uint64, n int) *mesh {
	w := &mesh{ctx: ctx, r: rand.New(rand.NewPCG(seed, 1)), began: time.Now(), now: etcd{version: 1}, cut: -1, acked: map[string][]spot{}, ends: map[string]int{}}
	for i := range n {
		p := &member{id: fmt.Sprint("p", i), snapshots: latest.New(w.now.snapshot()), news: make(chan *snapshot.Snapshot, 1000)}
		p.m = New(Config{NodeID: p.id, Snapshots: p.snapshots, Now: w.time, Store: w.store, Log: slog.New(slog.DiscardHandler)})
		w.proxies = append(w.proxies, p)
	}
	return w
}

// time is what all clocks say that count while a machine sleeps.
func (w *mesh) time() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.timeLocked()
}

func (w *mesh) timeLocked() time.Duration { return time.Since(w.began) + w.asleep }

// upTo is a random time, mostly short.
func (w *mesh) upTo(short, long time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.r.IntN(5) == 0 {
		return time.Duration(w.r.Int64N(int64(long)))
	}
	return time.Duration(w.r.Int64N(int64(short)))
}

// one reports true once in n times.
func (w *mesh) one(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.r.IntN(n) == 0
}

// sleep reports whether the test goes on after d.
func (w *mesh) sleep(d time.Duration) bool { return sleep(w.ctx, d) }

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// write appends to an epoch's place, which takes a while before and after.
func (w *mesh) write(epoch int, what string) int {
	_ = w.sleep(w.upTo(50*time.Millisecond, 12*time.Second))
	w.mu.Lock()
	at := len(w.logs[epoch])
	w.logs[epoch] = append(w.logs[epoch], what)
	w.mu.Unlock()
	_ = w.sleep(w.upTo(50*time.Millisecond, 12*time.Second))
	return at
}

// sealing is the old store, to be marked.
type sealing struct {
	store.Store
	w *mesh
}

func (w *mesh) store(string) (store.Store, error) { return sealing{w: w}, nil }

func (s sealing) Seal(context.Context, string, *event.Event) ([]store.Position, error) {
	return []store.Position{{Partition: "0", Offset: uint64(s.w.write(1, "marker"))}}, nil //nolint:gosec // small
}

// holding is one stream of Hold.
type holding struct {
	grpc.ClientStream
	ctx     context.Context
	w       *mesh
	node    *member
	answers chan *discoveryv1.HoldResponse
}

// conn is a node's connection to the control plane.
type conn struct {
	w    *mesh
	node *member
}

func (c conn) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return status.Error(codes.Unimplemented, "only streams")
}

func (c conn) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	h := &holding{ctx: ctx, w: c.w, node: c.node, answers: make(chan *discoveryv1.HoldResponse, 1)}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.node.newest = h
	return h, nil
}

// SendMsg has the request answered: what etcd says is read some time later, and the
// answer takes some time too.
func (h *holding) SendMsg(m any) error {
	req := proto.Clone(m.(*discoveryv1.HoldRequest)).(*discoveryv1.HoldRequest) //nolint:forcetypeassert // there is one method
	go func() {
		if !sleep(h.ctx, h.w.upTo(20*time.Millisecond, 6*time.Second)) {
			return
		}
		resp := h.w.answer(h, req)
		if sleep(h.ctx, h.w.upTo(20*time.Millisecond, 6*time.Second)) {
			h.answers <- resp
		}
	}()
	return nil
}

func (h *holding) RecvMsg(m any) error {
	if h.w.one(20) {
		return status.Error(codes.Unavailable, "another control plane")
	}
	select {
	case resp := <-h.answers:
		proto.Merge(m.(proto.Message), resp) //nolint:forcetypeassert // as above
		return nil
	case <-h.ctx.Done():
		return status.FromContextError(h.ctx.Err()).Err()
	}
}

// answer takes what a node says, and grants.
func (w *mesh) answer(h *holding, req *discoveryv1.HoldRequest) *discoveryv1.HoldResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	resp := &discoveryv1.HoldResponse{}
	for _, held := range req.Moves {
		if h.node.newest == h {
			h.node.said = held
		}
		if held.Wants && w.now.moves && cutover.Grants(w.now.phase) {
			resp.Granted = append(resp.Granted, held.Binding)
		}
	}
	return resp
}

// set writes a state to etcd, of which nodes hear later.
func (w *mesh) set(s etcd) {
	w.mu.Lock()
	s.version = w.now.version + 1
	w.now, w.since = s, w.timeLocked()
	w.mu.Unlock()
	for _, p := range w.proxies {
		p.news <- s.snapshot()
	}
}

// hear puts in force what a node hears of.
func (w *mesh) hear(p *member) {
	for {
		select {
		case s := <-p.news:
			if !w.sleep(w.upTo(50*time.Millisecond, 15*time.Second)) {
				return
			}
			p.snapshots.Store(s)
		case <-w.ctx.Done():
			return
		}
	}
}

// office carries the move out until it is cut over, with second thoughts.
func (w *mesh) office() {
	for w.sleep(w.upTo(300*time.Millisecond, 3*time.Second)) {
		w.mu.Lock()
		s, waited := w.now, w.timeLocked()-w.since
		said := make([]*discoveryv1.Held, len(w.proxies))
		for i, p := range w.proxies {
			said[i] = p.said
		}
		w.mu.Unlock()
		if !s.moves {
			w.set(etcd{moves: true, attempt: s.attempt})
			continue
		}
		version := strconv.Itoa(s.version)
		every := func(is func(*discoveryv1.Held) bool) bool {
			return !slices.ContainsFunc(said, func(h *discoveryv1.Held) bool { return h.GetVersion() != version || !is(h) })
		}
		var cut []*configv1.Cut
		for i, h := range said {
			if h.GetVersion() == version && h.GetAttempt() == s.attempt && w.proxies[i].id == s.marker {
				cut = h.GetCut()
			}
		}
		f := cutover.Facts{Ready: true, Heard: every(func(*discoveryv1.Held) bool { return true }), Idle: every((*discoveryv1.Held).GetIdle), Waited: waited,
			Marked: len(cut) > 0, Stuck: waited > cutover.StuckAfter}
		switch {
		case w.one(12):
			f.Wish = cutover.Pause
		case w.one(20):
			f.Wish = cutover.Withdraw
		}
		switch next := cutover.Default.Next(s.phase, f); next {
		case s.phase:
		case cutover.Withdrawn:
			w.set(etcd{attempt: s.attempt})
		case cutover.Marking:
			w.set(etcd{moves: true, phase: next, attempt: s.attempt + 1, marker: w.proxies[int(s.attempt)%len(w.proxies)].id})
		case cutover.Draining:
			w.mu.Lock()
			w.cut = int(cut[0].Offset) //nolint:gosec // small
			w.mu.Unlock()
			w.set(etcd{moves: true, phase: next, attempt: s.attempt})
			return
		default:
			w.set(etcd{moves: true, phase: next, attempt: s.attempt})
		}
	}
}

// publish publishes as one client that has one key and waits for each.
func (w *mesh) publish(name string) {
	for i := 0; w.sleep(w.upTo(200*time.Millisecond, 2*time.Second)); i++ {
		w.mu.Lock()
		p := w.proxies[w.r.IntN(len(w.proxies))]
		w.mu.Unlock()
		snap := p.snapshots.Get()
		if w.one(10) && !w.sleep(w.upTo(time.Second, 20*time.Second)) {
			return // it stood still between
		}
		wr, err := p.m.Begin(w.ctx, snap, snap.Topics[orders])
		if err != nil {
			w.ended("refused")
			continue
		}
		at := w.write(int(wr.Epoch.Number), fmt.Sprint(name, " ", i))
		err = wr.End(nil)
		if w.ctx.Err() != nil {
			return
		}
		if err != nil {
			w.ended("ambiguous")
			continue
		}
		w.ended(fmt.Sprint("kept in ", wr.Epoch.Number))
		w.mu.Lock()
		w.acked[name] = append(w.acked[name], spot{int(wr.Epoch.Number), at})
		w.mu.Unlock()
	}
}

func (w *mesh) ended(how string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[how]++
}

// stand lets everything stand still now and then.
func (w *mesh) stand() {
	for w.sleep(w.upTo(5*time.Second, 20*time.Second)) {
		d := w.upTo(2*time.Second, 15*time.Second)
		w.mu.Lock()
		w.asleep += d
		w.mu.Unlock()
	}
}
