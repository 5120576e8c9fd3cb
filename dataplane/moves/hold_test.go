package moves

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/config"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

const binding = "topicbinding/demo/orders"

// office is what answers proxies: each request, then its answer.
type office struct {
	discoveryv1.UnimplementedMoveServiceServer
	asked   chan *discoveryv1.HoldRequest
	answers chan *discoveryv1.HoldResponse
}

func (o *office) Hold(rpc grpc.BidiStreamingServer[discoveryv1.HoldRequest, discoveryv1.HoldResponse]) error {
	for {
		req, err := rpc.Recv()
		if err != nil {
			return err
		}
		select {
		case o.asked <- req:
		case <-rpc.Context().Done():
			return rpc.Context().Err()
		}
		select {
		case resp := <-o.answers:
			if err := rpc.Send(resp); err != nil {
				return err
			}
		case <-rpc.Context().Done():
			return rpc.Context().Err()
		}
	}
}

// held is a manager that is connected to an office.
type held struct {
	*testing.T
	*office
	m     *Manager
	snaps *latest.Value[*snapshot.Snapshot]
	now   atomic.Int64
	st    store.Store
	trips atomic.Int32 // so often markers cannot be written
}

// stumbling fails to write markers at first.
type stumbling struct {
	*embedded.Store
	h *held
}

func (s stumbling) Seal(ctx context.Context, topic string, e *event.Event) ([]store.Position, error) {
	if s.h.trips.Add(-1) >= 0 {
		return nil, errors.New("one broker is away")
	}
	return s.Store.Seal(ctx, topic, e)
}

func connect(t *testing.T, s *snapshot.Snapshot) *held {
	t.Helper()
	return connectWith(t, s, nil, nil)
}

// connectWith has a manager of which a restart would begin with what is kept.
func connectWith(t *testing.T, s *snapshot.Snapshot, kept func() (config.Kept, <-chan struct{}), pin func(config.Name) func()) *held {
	ctx, cancel := context.WithCancel(context.Background())
	h := &held{T: t, office: &office{asked: make(chan *discoveryv1.HoldRequest), answers: make(chan *discoveryv1.HoldResponse)}, snaps: latest.New(s)}
	st, err := embedded.Driver{}.Open(ctx, store.Config{Name: "test", Dir: "store", Options: embedded.Options{FS: vfs.NewMem(), Clock: h.clock}})
	if err != nil {
		t.Fatal(err)
	}
	h.st = st
	h.m = New(Config{Snapshots: h.snaps, Kept: kept, Pin: pin, NodeID: node, Terms: terms, Now: func() time.Duration { return time.Duration(h.now.Load()) }, Log: slog.New(slog.DiscardHandler),
		Store: func(uid string) (store.Store, error) {
			if uid == uidOld {
				return stumbling{st.(*embedded.Store), h}, nil //nolint:forcetypeassert // it was opened as that
			}
			return nil, fault.New(fault.Unavailable, "", "none", "none")
		}})
	l, err := listener.Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	server := listener.GRPC(listener.GRPCLimits{})
	discoveryv1.RegisterMoveServiceServer(server, h.office)
	go func() { _ = server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan struct{})
	go func() { defer close(ran); h.m.Run(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		_ = conn.Close()
		server.Stop()
		if err := st.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

// clock is what the store goes by.
func (h *held) clock() time.Time { return time.Unix(0, 0).Add(time.Duration(h.now.Load())) }

// until answers with grants until a request is as said, and gives that; it is not
// answered.
func (h *held) until(what string, is func(*discoveryv1.Held) bool, granted ...string) *discoveryv1.Held {
	h.Helper()
	for range 1000 {
		req := <-h.asked
		if len(req.Moves) != 1 || req.Moves[0].Binding != binding {
			h.Fatalf("%s: %v", what, req)
		}
		if is(req.Moves[0]) {
			return req.Moves[0]
		}
		h.answer(granted...)
	}
	h.Fatalf("%s: never", what)
	return nil
}

func (h *held) answer(granted ...string) {
	h.answers <- &discoveryv1.HoldResponse{Granted: granted}
}

func version(v string) func(*discoveryv1.Held) bool {
	return func(m *discoveryv1.Held) bool { return m.Version == v }
}

// may reports whether a write may begin.
func (h *held) may() bool {
	snap := h.snaps.Get()
	w, err := h.m.Begin(over(), snap, snap.Topics[orders])
	if err == nil {
		_ = w.End(nil)
	}
	return err == nil
}

// TestHold: a proxy asks while a topic may be written to under leases, its lease counts
// from when it asked, and it says that it is idle.
func TestHold(t *testing.T) {
	h := connect(t, at(cutover.Leasing, 2))
	first := <-h.asked
	want := &discoveryv1.HoldRequest{NodeId: node, Moves: []*discoveryv1.Held{{Binding: binding, Version: "2", Wants: true, Epoch: 1, Able: true}}}
	if !proto.Equal(first, want) {
		t.Errorf("asked %v, want %v", first, want)
	}
	// The answer takes half of a lease.
	h.now.Add(int64(terms.TTL / 2))
	h.answer(binding)
	h.m.say()
	h.until("a second request", version("2"))
	if !h.may() {
		t.Error("a write may not begin under a lease")
	}
	h.now.Add(int64(terms.TTL / 2))
	if h.may() {
		t.Error("the lease counts from when it was answered")
	}
	h.answer("topicbinding/demo/another")
	h.m.say()
	h.until("a third request", version("2"))
	if h.may() {
		t.Error("the lease of another topic counts")
	}
	h.answer(binding)
	h.m.say()
	h.until("a fourth request", version("2"))
	snap := h.snaps.Get()
	w, err := h.m.Begin(over(), snap, snap.Topics[orders])
	if err != nil {
		t.Fatal(err)
	}
	h.snaps.Store(at(cutover.Stopping, 3))
	h.answer()
	if m := h.until("stopping", version("3")); m.Idle || m.Wants {
		t.Errorf("with a write on its way: %v", m)
	}
	h.answer()
	if err := w.End(nil); err != nil {
		t.Error(err)
	}
	h.until("idle", func(m *discoveryv1.Held) bool { return m.Version == "3" && m.Idle })
	h.answer(binding) // comes too late: it is not Leasing any more
	h.snaps.Store(at(cutover.Draining, 4))
	h.until("draining", func(m *discoveryv1.Held) bool { return m.Version == "4" && !m.Able && !m.Idle && !m.Wants })
	h.answer()
	h.snaps.Store(still())
	if !h.may() {
		t.Error("a topic that does not move cannot be written to")
	}
}

// asks is a stream that is answered at once.
type asks struct {
	grpc.BidiStreamingClient[discoveryv1.HoldRequest, discoveryv1.HoldResponse]
	nodes []string // of requests
	then  func(n int)
}

func (a *asks) Hold(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[discoveryv1.HoldRequest, discoveryv1.HoldResponse], error) {
	return a, nil
}

func (a *asks) Leave(context.Context, *discoveryv1.LeaveRequest, ...grpc.CallOption) (*discoveryv1.LeaveResponse, error) {
	return nil, errors.ErrUnsupported
}

func (a *asks) Send(req *discoveryv1.HoldRequest) error {
	a.nodes = append(a.nodes, req.NodeId)
	return nil
}

func (a *asks) Recv() (*discoveryv1.HoldResponse, error) {
	a.then(len(a.nodes))
	return &discoveryv1.HoldResponse{}, nil
}

// TestFirstRequest: the first request of a stream says whose it is, and no other does, also
// where a configuration comes right before it.
func TestFirstRequest(t *testing.T) {
	snaps := latest.New(at(cutover.Preparing, 1))
	m := New(Config{Snapshots: snaps, NodeID: node, Terms: terms, Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return nil, errors.ErrUnsupported }})
	// It comes while the topics that move are looked through.
	m.moves[uidTopic] = &move{seal: seal{cancel: func() { snaps.Store(at(cutover.Preparing, 2)) }}}
	a := &asks{then: func(n int) { snaps.Store([]*snapshot.Snapshot{at(cutover.Preparing, 3), still()}[n-1]) }}
	s := &session{m: m, ctx: t.Context(), settled: map[string][]*discoveryv1.Settled{}}
	if err := s.stream(a, func() {}); err != nil || !slices.Equal(a.nodes, []string{node, ""}) {
		t.Errorf("requests of nodes %q; %v", a.nodes, err)
	}
}

// TestKept: a version that a restart would not find is not said to be in force, until it
// is kept; leases are asked for all the same.
func TestKept(t *testing.T) {
	s := at(cutover.Leasing, 2)
	s.Lineage, s.Revision = "1-x", 7
	kept := latest.New(config.Kept{Lineage: "1-x", Revision: 6})
	h := connectWith(t, s, kept.Load, nil)
	if m := h.until("a request", func(*discoveryv1.Held) bool { return true }); m.Version != "" || !m.Wants {
		t.Errorf("what is not kept is said: %v", m)
	}
	h.answer(binding)
	kept.Store(config.Kept{Lineage: "1-x", Revision: 7})
	h.until("the version that is kept", version("2"))
	h.answer()
}

// TestPins: with configuration on demand the control plane is asked what moves, and that
// is in the configuration as long.
func TestPins(t *testing.T) {
	pinned := make(chan string, 10)
	pin := func(n config.Name) func() {
		pinned <- "+" + n.String()
		return func() { pinned <- "-" + n.String() }
	}
	h := connectWith(t, still(), nil, pin)
	if req := <-h.asked; !req.Lists || len(req.Moves) != 0 {
		t.Errorf("it asks %v", req)
	}
	for _, list := range [][]string{{binding, "topic/demo/orders", "x"}, {binding}, {}} {
		h.answers <- &discoveryv1.HoldResponse{Moving: list}
		h.m.say()
		<-h.asked
	}
	close(pinned)
	var got []string
	for p := range pinned {
		got = append(got, p)
	}
	if want := []string{"+topic/demo/orders", "-topic/demo/orders"}; !slices.Equal(got, want) {
		t.Errorf("pinned: %q, want %q", got, want)
	}
	h.answer()
}

// TestMarks: the proxy that is asked for markers writes them once for each attempt, tells
// where they are, and why it could not.
func TestMarks(t *testing.T) {
	h := connect(t, still())
	ctx := context.Background()
	if err := h.st.(store.Admin).EnsureTopic(ctx, store.TopicSpec{Name: "old"}); err != nil { //nolint:forcetypeassert // it is one
		t.Fatal(err)
	}
	h.trips.Store(1)
	others := at(cutover.Marking, 4)
	others.Topics[orders].Move.Marker = "another"
	h.snaps.Store(others)
	if m := h.until("another's", version("4")); m.Attempt != 0 || len(m.Cut) != 0 {
		t.Fatalf("it has markers that another was asked for: %v", m)
	}
	h.answer()
	h.snaps.Store(at(cutover.Marking, 5))
	h.until("the trouble", func(m *discoveryv1.Held) bool {
		return m.Version == "5" && m.Trouble == "one broker is away" && m.Attempt == 0
	})
	h.answer()
	m := h.until("the cut", func(m *discoveryv1.Held) bool { return m.Attempt == 5 })
	if len(m.Cut) != 1 || m.Cut[0].Offset != 0 || m.Trouble != "" {
		t.Errorf("the cut is %v", m)
	}
	h.answer()
	again := at(cutover.Marking, 5)
	h.snaps.Store(again)
	if m := h.until("the same attempt", version("5")); m.Cut[0].Offset != 0 {
		t.Errorf("it was marked twice: %v", m)
	}
	h.answer()
	another := at(cutover.Marking, 5) // of another move, of which this one saw nothing before
	another.Topics[orders].Move.Version = "9"
	h.snaps.Store(another)
	if m := h.until("the same attempt of another move", func(m *discoveryv1.Held) bool { return m.Version == "9" && m.Attempt == 5 }); m.Cut[0].Offset != 1 {
		t.Errorf("the cut of an earlier Marking is told: %v", m)
	}
	h.answer()
	h.snaps.Store(at(cutover.Marking, 6))
	if m := h.until("the next attempt", func(m *discoveryv1.Held) bool { return m.Attempt == 6 }); m.Cut[0].Offset != 2 {
		t.Errorf("the cut is %v", m)
	}
}

// fenced is a store that takes no marker.
type fenced struct {
	store.Store
	tries atomic.Int32
}

func (f *fenced) Seal(context.Context, string, *event.Event) ([]store.Position, error) {
	f.tries.Add(1)
	return nil, errors.New("a fence stands")
}

// TestMarksGivenUp: markers that cannot be written are tried as long as they are asked for.
func TestMarksGivenUp(t *testing.T) {
	others := at(cutover.Marking, 5)
	others.Topics[orders].Move.Marker = "another"
	for name, tc := range map[string]struct {
		next *snapshot.Snapshot
		on   bool
	}{
		"they are":              {at(cutover.Marking, 4), true},
		"they were given up":    {at(cutover.Leasing, 5), false},
		"another one's are":     {others, false},
		"another wrote them":    {at(cutover.Draining, 5), false},
		"the move is withdrawn": {still(), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := &fenced{}
				snaps := latest.New(at(cutover.Marking, 4))
				m := New(Config{Snapshots: snaps, NodeID: node, Terms: terms, Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return st, nil }})
				ctx, cancel := context.WithCancel(t.Context())
				s := &session{m: m, ctx: ctx, settled: map[string][]*discoveryv1.Settled{}}
				defer s.end(cancel)
				s.look()
				s.request(true)
				<-time.After(time.Minute)
				before := st.tries.Load()
				snaps.Store(tc.next)
				s.look()
				s.request(true)
				<-time.After(time.Minute)
				if on := st.tries.Load() > before; before == 0 || on != tc.on {
					t.Errorf("%d tries, then %d", before, st.tries.Load()-before)
				}
			})
		})
	}
}

// TestSettled: what groups have settled of an epoch that is inside this proxy is told,
// once nothing of it waits for another attempt either.
func TestSettled(t *testing.T) {
	h := connect(t, still())
	ctx := context.Background()
	admin := h.st.(store.Admin) //nolint:forcetypeassert // it is one
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for topic, group := range map[string]string{"old": "g", "retry": "rg"} {
		must(admin.EnsureTopic(ctx, store.TopicSpec{Name: topic}))
		must(admin.EnsureGroup(ctx, topic, group, store.Start{}))
		must(h.st.Publish(ctx, topic, []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t"}}}, make([]store.Result, 1)))
	}
	s := at(cutover.Draining, 5)
	topic := s.Topics[orders]
	topic.Epochs[0].Local = true
	topic.Cuts = map[uint32]map[string]store.Position{1: {"": {Offset: 1}}}
	s.Subscriptions[orders] = &snapshot.Subscription{Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "rg"}}}
	h.snaps.Store(s)
	settle := func(topic, group string) {
		sub, err := h.st.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: group})
		must(err)
		msgs := make([]store.Message, 1)
		_, err = sub.Fetch(ctx, msgs)
		must(err)
		sub.Settle([]*store.Message{&msgs[0]})
		must(sub.Close(ctx))
	}
	for _, step := range []func(){func() {}, func() { settle("old", "g") }} {
		step()
		if m := h.until("draining", version("5")); len(m.Settled) != 0 {
			t.Fatalf("settled too early: %v", m)
		}
		h.answer()
	}
	settle("retry", "rg")
	m := h.until("settled", func(m *discoveryv1.Held) bool { return len(m.Settled) > 0 })
	if len(m.Settled) != 1 || m.Settled[0].Epoch != 1 || m.Settled[0].Group != "g" {
		t.Errorf("settled: %v", m)
	}

	// So it is when all is drained, until the old place is given up.
	h.answer()
	drained := at(cutover.Drained, 6)
	of := drained.Topics[orders]
	of.Epochs[0].Local, of.Cuts = true, topic.Cuts
	drained.Subscriptions[orders] = &snapshot.Subscription{Sources: []snapshot.Source{{Topic: of, Epoch: of.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "rg"}}}
	h.snaps.Store(drained)
	if m := h.until("drained", version(of.Move.Version)); len(m.Settled) != 1 {
		t.Errorf("drained: %v", m)
	}
}

// TestHeldBack: an event of an epoch inside this proxy that waits for another attempt is
// waited for also while the store holds it back; where its Subscription stays in that store
// it comes all the same, but only as long as that is so.
func TestHeldBack(t *testing.T) {
	h := connect(t, still())
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	admin := h.st.(store.Admin) //nolint:forcetypeassert // it is one
	for topic, group := range map[string]string{"old": "g", "retry": "rg"} {
		must(admin.EnsureTopic(ctx, store.TopicSpec{Name: topic}))
		must(admin.EnsureGroup(ctx, topic, group, store.Start{}))
	}
	hold := func(due time.Duration) {
		t.Helper()
		must(h.st.(store.Delayer).PublishDelayed(ctx, "retry", []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t"}}}, []time.Time{h.clock().Add(due)}, make([]store.Result, 1))) //nolint:forcetypeassert // it is one
	}
	hold(24 * time.Hour)
	// One Subscription reads orders and, where that is not nil, another topic of the store.
	says := func(n int, other *snapshot.Topic) int {
		t.Helper()
		s := at(cutover.Draining, n)
		topic := s.Topics[orders]
		topic.Epochs[0].Local, topic.Cuts = true, map[uint32]map[string]store.Position{1: {"": {}}}
		sub := &snapshot.Subscription{Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "rg"}}}
		if other != nil {
			sub.Sources = append(sub.Sources, snapshot.Source{Topic: other, Epoch: other.Epochs[0], Group: "og", RetryTopic: "retry", RetryGroup: "rg"})
		}
		s.Subscriptions[orders] = sub
		h.snaps.Store(s)
		m := h.until("draining", version(strconv.Itoa(n)))
		h.answer()
		return len(m.Settled)
	}
	for i, tc := range []struct {
		other *snapshot.Topic
		want  int
		why   string
	}{
		{nil, 0, "an event is held back"},
		{still().Topics[orders], 1, "the Subscription stays there"},
		{at(cutover.Marking, 1).Topics[orders], 1, "so it does until the other one's cut"},
		{at(cutover.Draining, 1).Topics[orders], 0, "the other one leaves, too"},
		{nil, 0, "the other one is gone"},
	} {
		if got := says(5+i, tc.other); got != tc.want {
			t.Errorf("%d groups have settled, want %d: %s", got, tc.want, tc.why)
		}
	}
	h.now.Add(int64(24 * time.Hour))
	hold(0) // has the store look at its clock
	sub, err := h.st.Subscribe(ctx, store.SubscribeRequest{Topic: "retry", Group: "rg"})
	must(err)
	for i := range 2 {
		msgs := make([]store.Message, 1)
		_, err = sub.Fetch(ctx, msgs)
		must(err)
		if got := says(10+i, nil); got != 0 {
			t.Error("settled while an event is delivered")
		}
		sub.Settle([]*store.Message{&msgs[0]})
	}
	must(sub.Close(ctx))
	h.until("settled", func(m *discoveryv1.Held) bool { return len(m.Settled) == 1 })
}

// TestSettledOfALostStore: a store inside this proxy that was lost has less than the cut;
// a group that has settled what is there has settled it all.
func TestSettledOfALostStore(t *testing.T) {
	h := connect(t, still())
	ctx := context.Background()
	admin := h.st.(store.Admin) //nolint:forcetypeassert // it is one
	for topic, group := range map[string]string{"old": "g", "retry": "rg"} {
		if err := admin.EnsureTopic(ctx, store.TopicSpec{Name: topic}); err != nil {
			t.Fatal(err)
		}
		if err := admin.EnsureGroup(ctx, topic, group, store.Start{}); err != nil {
			t.Fatal(err)
		}
	}
	s := at(cutover.Draining, 5)
	topic := s.Topics[orders]
	topic.Epochs[0].Local = true
	topic.Cuts = map[uint32]map[string]store.Position{1: {"": {Offset: 7}}}
	s.Subscriptions[orders] = &snapshot.Subscription{Sources: []snapshot.Source{{Topic: topic, Epoch: topic.Epochs[0], Group: "g", RetryTopic: "retry", RetryGroup: "rg"}}}
	h.snaps.Store(s)
	if m := h.until("settled", version("5")); len(m.Settled) != 1 || m.Settled[0].Epoch != 1 || m.Settled[0].Group != "g" {
		t.Errorf("settled: %v", m)
	}
}
