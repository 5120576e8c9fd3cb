package moves

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"
	discoveryv1 "github.com/weft-mesh/weft/proto/gen/weft/discovery/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/fault"
)

// line is one Hold stream.
type line struct {
	w   *world
	rpc grpc.BidiStreamingClient[discoveryv1.HoldRequest, discoveryv1.HoldResponse]
	end func()
}

func (w *world) dial(addr string) *line {
	w.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	w.must(err)
	w.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithCancel(w.ctx)
	w.Cleanup(cancel)
	rpc, err := discoveryv1.NewMoveServiceClient(conn).Hold(ctx)
	w.must(err)
	return &line{w, rpc, cancel}
}

// ask sends one request and takes its answer.
func (l *line) ask(node string, moves ...*discoveryv1.Held) (granted []string, err error) {
	if err := l.rpc.Send(&discoveryv1.HoldRequest{NodeId: node, Moves: moves}); err != nil {
		_, err = l.rpc.Recv()
		return nil, err
	}
	resp, err := l.rpc.Recv()
	return resp.GetGranted(), err
}

// moving puts the topic into a phase, by hand.
func (w *world) moving(phase configv1.Move_Phase) {
	w.Helper()
	b := proto.Clone(w.binding()).(*configv1.TopicBinding)
	if b.Move == nil {
		b.Epochs = append(b.Epochs, &configv1.Epoch{Number: 2, Store: "b", StoreUid: "uid-b", PhysicalName: "ns_t_2"})
	}
	b.Move = &configv1.Move{MigrationUid: "migration-1", Phase: phase}
	w.put(meta("t", ""), &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: b}})
}

// marker names who is to write the markers, by hand.
func (w *world) marker(node string) {
	w.Helper()
	b := proto.Clone(w.binding()).(*configv1.TopicBinding)
	b.Move.Marker = node
	w.put(meta("t", ""), &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: b}})
}

var wants = &discoveryv1.Held{Binding: binding, Wants: true, Epoch: 1}

// TestGrants: a lease is granted in one phase alone, of a topic that moves, by what etcd
// says and not by the copy of it.
func TestGrants(t *testing.T) {
	w := newWorld(t)
	l := w.dial(w.addr)
	for _, phase := range []configv1.Move_Phase{0, preparing, leasing, stopping, marking, leasing, draining, drained, leasing} {
		if phase != 0 {
			w.moving(phase)
		}
		granted, err := l.ask("n", proto.Clone(wants).(*discoveryv1.Held), &discoveryv1.Held{Binding: "topicbinding/ns/other", Wants: true})
		w.must(err)
		if want := phase == leasing; slices.Contains(granted, binding) != want || len(granted) > 1 {
			t.Errorf("in %v the answer grants %v", phase, granted)
		}
	}
	for _, epoch := range []uint32{0, 2, 3} { // that the topic has left, or has not come to
		if granted, err := l.ask("n", &discoveryv1.Held{Binding: binding, Wants: true, Epoch: epoch}); err != nil || len(granted) > 0 {
			t.Errorf("epoch %d is granted %v, %v", epoch, granted, err)
		}
	}
	if granted, err := l.ask("n", &discoveryv1.Held{Binding: binding}); err != nil || len(granted) > 0 {
		t.Errorf("who asks for none is granted %v, %v", granted, err)
	}
	// This replica does not hear of it.
	w.freeze()
	snap, err := w.store.Current()
	w.must(err)
	res := proto.Clone(snap.Resource(binding)).(*configv1.Resource)
	res.GetTopicBinding().Move.Phase = stopping
	b, err := proto.Marshal(res)
	w.must(err)
	_, err = w.etcd.Put(w.ctx, "/weft/v1/r/"+binding, string(b))
	w.must(err)
	if granted, err := l.ask("n", proto.Clone(wants).(*discoveryv1.Held)); err != nil || len(granted) > 0 {
		t.Errorf("by the copy: %v, %v", granted, err)
	}
	// And another history may say what it likes.
	res.GetTopicBinding().Move.Phase = leasing
	b, err = proto.Marshal(res)
	w.must(err)
	_, err = w.etcd.Txn(w.ctx).Then(clientv3.OpPut("/weft/v1/r/"+binding, string(b)), clientv3.OpPut("/weft/v1/m/lineage", "another")).Commit()
	w.must(err)
	if granted, err := l.ask("n", proto.Clone(wants).(*discoveryv1.Held)); err != nil || len(granted) > 0 {
		t.Errorf("of another lineage: %v, %v", granted, err)
	}
}

// TestLists: who asks what moves is told of the namespaces that it may have.
func TestLists(t *testing.T) {
	w := newWorld(t)
	w.moving(leasing)
	other := proto.Clone(w.binding()).(*configv1.TopicBinding)
	other.TopicUid = "another"
	w.put(&configv1.Metadata{Namespace: "secret", Name: "t"}, &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: other}})
	l := w.dial(w.addr)
	for _, lists := range []bool{false, true} {
		w.must(l.rpc.Send(&discoveryv1.HoldRequest{NodeId: "n", Lists: lists}))
		resp, err := l.rpc.Recv()
		w.must(err)
		want := &discoveryv1.HoldResponse{}
		if lists {
			want.Moving = []string{binding}
		}
		if !proto.Equal(resp, want) {
			t.Errorf("lists %v: %v, want %v", lists, resp, want)
		}
	}
}

// TestScope: of a topic in a namespace that it may not have, a proxy is granted nothing,
// and nothing that it says is kept.
func TestScope(t *testing.T) {
	w := newWorld(t)
	w.moving(leasing)
	b := proto.Clone(w.binding()).(*configv1.TopicBinding)
	b.TopicUid = "another"
	w.put(&configv1.Metadata{Namespace: "secret", Name: "t"}, &configv1.Resource{Spec: &configv1.Resource_TopicBinding{TopicBinding: b}})
	const secret = "topicbinding/secret/t"
	granted, err := w.dial(w.addr).ask("n", proto.Clone(wants).(*discoveryv1.Held), &discoveryv1.Held{Binding: secret, Version: "1", Wants: true, Epoch: 1})
	if w.must(err); !slices.Equal(granted, []string{binding}) {
		t.Errorf("it is granted %q", granted)
	}
	// Both words are of one request, and would be of one transaction.
	w.eventually("the word on its own topic is kept", func() bool { return w.words()["n"] != nil })
	kept, err := w.etcd.Get(w.ctx, w.store.StatusKey("move/another/"), clientv3.WithPrefix())
	if w.must(err); len(kept.Kvs) > 0 {
		t.Errorf("of the other one is kept %q", kept.Kvs)
	}
}

// TestBound: of a word is kept what the move can need of the node that says it, since
// words are written to etcd as often as they change.
func TestBound(t *testing.T) {
	w := newWorld(t)
	w.put(meta("a", "uid-a"), &configv1.Resource{Spec: &configv1.Resource_EventStore{EventStore: &configv1.EventStore{Driver: &configv1.EventStore_Embedded{Embedded: &configv1.Embedded{}}}}})
	l := w.dial(w.addr)
	says := &discoveryv1.Held{Binding: binding, Version: "1", Attempt: 1, Trouble: "x", Cut: []*configv1.Cut{{Partition: "p", Offset: 7}},
		Settled: []*discoveryv1.Settled{{Epoch: 2, Group: "group"}, {Epoch: 1, Group: "group"}, {Epoch: 1, Group: "of nobody"}}}
	groups := []*discoveryv1.Settled{{Epoch: 1, Group: "group"}}
	for i, tc := range []struct {
		phase  configv1.Move_Phase
		marker string
		marks  bool
	}{{leasing, "", false}, {marking, "m", false}, {marking, "n", true}, {draining, "n", false}} {
		w.moving(tc.phase)
		w.marker(tc.marker)
		version := string(rune('1' + i))
		want := &discoveryv1.Held{Binding: binding, Version: version, Settled: groups}
		if tc.marks {
			want.Attempt, want.Trouble, want.Cut = says.Attempt, says.Trouble, says.Cut
		}
		held := proto.Clone(says).(*discoveryv1.Held)
		held.Version = version
		_, err := l.ask("n", held)
		w.must(err)
		w.eventually("its word is kept", func() bool { return w.words()["n"].GetVersion() == version })
		if got := w.words()["n"]; !proto.Equal(got, want) {
			t.Errorf("in %v, with marker %q, is kept %v, want %v", tc.phase, tc.marker, got, want)
		}
	}
}

// TestReader: who asks while a reading is on its way is answered by the next one.
func TestReader(t *testing.T) {
	began, answers := make(chan []string), make(chan map[string]place)
	r := &reader{read: func(names []string) (map[string]place, error) {
		began <- names
		return <-answers, nil
	}}
	got := make(chan map[string]place, 3)
	ask := func(name string) {
		places, err := r.places(t.Context(), []string{name})
		if err != nil {
			t.Error(err)
		}
		got <- places
	}
	go ask("a")
	if names := <-began; !slices.Equal(names, []string{"a"}) {
		t.Fatalf("it reads %v", names)
	}
	go ask("b")
	for {
		r.mu.Lock()
		joined := r.next != nil && r.next.names["b"]
		r.mu.Unlock()
		if joined {
			break
		}
	}
	answers <- map[string]place{"a": {cutover.Leasing, 1}, "b": {cutover.Leasing, 1}}
	if first := <-got; first["a"].phase != cutover.Leasing {
		t.Errorf("the first is told %v", first)
	}
	select {
	case names := <-began:
		if !slices.Equal(names, []string{"b"}) {
			t.Fatalf("it reads %v", names)
		}
	case second := <-got:
		t.Fatalf("the second is told what was read before it asked: %v", second)
	}
	answers <- map[string]place{"b": {cutover.Stopping, 1}}
	if second := <-got; second["b"].phase != cutover.Stopping {
		t.Errorf("the second is told what was read before it asked: %v", second)
	}
}

// TestRefused: what is beyond the limits, and who is not who it says.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.moving(leasing)
	long := strings.Repeat("x", 2000)
	cuts := func(n int, name string) (out []*configv1.Cut) {
		for i := range n {
			out = append(out, &configv1.Cut{Partition: name + string(rune('0'+i%10)) + strings.Repeat("y", i/10)})
		}
		return out
	}
	for name, tc := range map[string]struct {
		node  string
		moves []*discoveryv1.Held
		want  string
	}{
		"no node":            {"", nil, "node_id"},
		"a node of a path":   {"a/b", nil, "node_id"},
		"a long version":     {"n", []*discoveryv1.Held{{Binding: binding, Version: long}}, "moves[0].version"},
		"another kind":       {"n", []*discoveryv1.Held{{Binding: "topic/ns/t"}}, "moves[0].binding"},
		"no name":            {"n", []*discoveryv1.Held{{Binding: binding}, {Binding: "x"}}, "moves[1].binding"},
		"one twice":          {"n", []*discoveryv1.Held{{Binding: binding}, {Binding: binding}}, "there twice"},
		"a partition twice":  {"n", []*discoveryv1.Held{{Binding: binding, Cut: []*configv1.Cut{{}, {}}}}, "moves[0].cut"},
		"a long partition":   {"n", []*discoveryv1.Held{{Binding: binding, Cut: cuts(1, long)}}, "moves[0].cut"},
		"many partitions":    {"n", []*discoveryv1.Held{{Binding: binding, Cut: cuts(maxCut+1, "")}}, "the most is"},
		"a long group":       {"n", []*discoveryv1.Held{{Binding: binding, Settled: []*discoveryv1.Settled{{Group: long}}}}, "moves[0].settled"},
		"many groups":        {"n", []*discoveryv1.Held{{Binding: binding, Settled: make([]*discoveryv1.Settled, maxSettled+1)}}, "moves[0].settled"},
		"many topics":        {"n", make([]*discoveryv1.Held, maxMoves+1), "the most is 1000"},
		"more than a reqest": {"n", []*discoveryv1.Held{{Binding: binding, Trouble: strings.Repeat("x", maxRequest)}}, "at most"},
	} {
		for i, held := range tc.moves {
			if held == nil {
				tc.moves[i] = &discoveryv1.Held{}
				continue
			}
			for j, s := range held.Settled {
				if s == nil {
					held.Settled[j] = &discoveryv1.Settled{}
				}
			}
		}
		if _, err := w.dial(w.addr).ask(tc.node, tc.moves...); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := w.dial(w.addr)
	if _, err := l.ask("n"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ask("m"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another node on the stream: %v", err)
	}
	// One stream of a node; so many of all; not too often.
	first := w.dial(w.addr)
	_, err := first.ask("n")
	w.must(err)
	second := w.dial(w.addr)
	_, err = second.ask("n")
	w.must(err)
	if _, err := first.rpc.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the older stream: %v", err)
	}
	for {
		if _, err = second.ask("n"); err != nil {
			break
		}
	}
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "more often") {
		t.Errorf("asking all the time: %v", err)
	}
	for _, node := range []string{"a", "b", "c"} {
		_, err := w.dial(w.addr).ask(node)
		w.must(err)
	}
	if _, err := w.dial(w.addr).ask("d"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream too many: %v", err)
	}
}

// TestAuthorized: each request is of a node that is let in.
func TestAuthorized(t *testing.T) {
	w := newWorld(t)
	w.moving(leasing)
	var out atomic.Bool
	_, addr, _ := w.replica(func(string) error {
		if out.Load() {
			return status.Error(codes.PermissionDenied, "declared dead")
		}
		return nil
	})
	l := w.dial(addr)
	if granted, err := l.ask("n", proto.Clone(wants).(*discoveryv1.Held)); err != nil || len(granted) != 1 {
		t.Fatalf("%v, %v", granted, err)
	}
	out.Store(true)
	if granted, err := l.ask("n", proto.Clone(wants).(*discoveryv1.Held)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("it is not let in any more, and is granted %v, %v", granted, err)
	}
	if _, err := w.dial(addr).ask("m"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("it is not let in: %v", err)
	}
}

// TestHoldPanics: a stream whose request meets a defect ends, and the others go on.
func TestHoldPanics(t *testing.T) {
	w := newWorld(t)
	w.moving(leasing)
	var asked atomic.Int32
	_, addr, _ := w.replica(func(string) error {
		if asked.Add(1) == 2 {
			panic("a defect")
		}
		return nil
	})
	l := w.dial(addr)
	if _, err := l.ask("n"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ask("n"); status.Code(err) != codes.Internal {
		t.Errorf("a defect is answered with %v", err)
	}
	if granted, err := w.dial(addr).ask("n", proto.Clone(wants).(*discoveryv1.Held)); err != nil || len(granted) != 1 {
		t.Errorf("afterwards %v, %v", granted, err)
	}
}

// TestWords: what a proxy says is in etcd: its newest word, wherever it said it, until it
// says nothing of the topic any more or the replica dies.
func TestWords(t *testing.T) {
	w := newWorld(t)
	w.moving(marking)
	w.marker("n")
	h, addr, stop := w.replica(func(string) error { return nil })
	says := func(l *line, held *discoveryv1.Held) {
		t.Helper()
		held.Binding = binding
		_, err := l.ask("n", held)
		w.must(err)
	}
	is := func(what string, want func(*discoveryv1.Held) bool) {
		t.Helper()
		w.within(20*foreignEvery, what, func() bool { return want(w.words()["n"]) })
	}
	first := w.dial(addr)
	says(first, &discoveryv1.Held{Version: "1", Able: true, Trouble: "a\nb" + strings.Repeat("x", 5000)})
	is("its word", func(h *discoveryv1.Held) bool {
		return h.GetVersion() == "1" && h.Able && !h.Wants && strings.HasPrefix(h.Trouble, "a?b") && len(h.Trouble) == maxText
	})
	says(first, &discoveryv1.Held{Version: "2", Able: true, Attempt: 1, Cut: []*configv1.Cut{{Partition: "p", Offset: 7}}})
	is("another word", func(h *discoveryv1.Held) bool {
		return h.GetVersion() == "2" && h.Cut[0].Offset == 7 && h.Trouble == ""
	})

	// It goes to another replica before it is seen to have gone here. What this one has
	// of it is old, also when it writes all that it has again.
	second := w.dial(w.addr)
	says(second, &discoveryv1.Held{Version: "3", Able: true})
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "3" })
	leases, err := w.etcd.Leases(w.ctx)
	w.must(err)
	prefix := w.store.StatusKey("move/topic/n")
	kept, err := w.etcd.Get(w.ctx, prefix)
	w.must(err)
	for _, l := range leases.Leases {
		if int64(l.ID) != kept.Kvs[0].Lease {
			_, err := w.etcd.Revoke(w.ctx, l.ID)
			w.must(err)
		}
	}
	w.eventually("all is written again", func() bool {
		h.words.mu.Lock()
		defer h.words.mu.Unlock()
		for _, x := range h.words.now {
			if !x.written {
				return false
			}
		}
		leases, err := w.etcd.Leases(w.ctx)
		return err == nil && len(leases.Leases) > 1
	})
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "3" })
	first.end()
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "3" && h.Able })

	// It comes back, and goes: what it said stands, but it writes no markers.
	third := w.dial(addr)
	says(third, &discoveryv1.Held{Version: "4", Able: true, Idle: true})
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "4" && h.Able })
	second.end()
	third.end()
	is("what stands", func(h *discoveryv1.Held) bool { return h.GetVersion() == "4" && h.Idle && !h.Able })
	fourth := w.dial(addr)
	says(fourth, &discoveryv1.Held{Version: "5"})
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "5" })
	_, err = fourth.ask("n")
	w.must(err)
	is("nothing", func(h *discoveryv1.Held) bool { return h == nil })
	says(fourth, &discoveryv1.Held{Version: "6"})
	is("the newest word", func(h *discoveryv1.Held) bool { return h.GetVersion() == "6" })
	stop() // the replica
	is("nothing", func(h *discoveryv1.Held) bool { return h == nil })
}

// TestLeaves: a proxy takes itself off the roster, and nobody else.
func TestLeaves(t *testing.T) {
	var left []string
	h := NewHolds(HoldsConfig{Log: quiet0,
		Authorize: func(_ context.Context, node string) error {
			if node == "foreign" {
				return status.Error(codes.PermissionDenied, "not yours")
			}
			return nil
		},
		Leave: func(_ context.Context, node string, entry int64) error {
			switch entry {
			case 7:
				left = append(left, node)
				return nil
			case 8:
				return fault.New(fault.Precondition, "x", "x", "joined since")
			}
			return fault.New(fault.Unavailable, "x", "x", "no etcd")
		}})
	for _, tc := range []struct {
		node  string
		entry int64
		want  codes.Code
	}{{"mine", 7, codes.OK}, {"mine", 8, codes.FailedPrecondition}, {"mine", 9, codes.Unavailable}, {"foreign", 7, codes.PermissionDenied}, {"", 7, codes.InvalidArgument}} {
		if _, err := h.Leave(t.Context(), &discoveryv1.LeaveRequest{NodeId: tc.node, Entry: tc.entry}); status.Code(err) != tc.want {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if len(left) != 1 || left[0] != "mine" {
		t.Errorf("%v left", left)
	}
}

// TestWordOfLastSession: what a replica wrote under a lease that it gave up, and etcd did
// not yet, is there again once that ends: its proxies say nothing new.
func TestWordOfLastSession(t *testing.T) {
	w := newWorld(t)
	words := newWords(w.store, quiet0)
	words.come("n")
	words.say("n", map[string]*discoveryv1.Held{"topic": {Version: "7"}})
	last, err := w.etcd.Grant(w.ctx, 60)
	w.must(err)
	_, err = words.flush(w.ctx, last.ID)
	w.must(err)
	w.run(words.run)
	key := w.store.StatusKey("move/topic/n")
	w.eventually("it is met", func() bool {
		words.mu.Lock()
		defer words.mu.Unlock()
		return words.now[key].foreign
	})
	if got := w.words()["n"]; got.GetVersion() != "7" {
		t.Errorf("etcd has %v", got)
	}
	_, err = w.etcd.Revoke(w.ctx, last.ID)
	w.must(err)
	w.within(10*foreignEvery, "it is there again", func() bool { return w.words()["n"].GetVersion() == "7" })
}

// TestWordOfOneThatLeft: a replica that cannot reach etcd while a node comes and goes writes
// what it has of it later, but not over what the node has said elsewhere since.
func TestWordOfOneThatLeft(t *testing.T) {
	w := newWorld(t)
	type replica struct {
		words
		lease clientv3.LeaseID
	}
	open := func() *replica {
		l, err := w.etcd.Grant(w.ctx, 60)
		w.must(err)
		return &replica{newWords(w.store, quiet0), l.ID}
	}
	say := func(r *replica, version string) {
		r.say("n", map[string]*discoveryv1.Held{"topic": {Version: version, Able: true}})
	}
	flush := func(r *replica) {
		r.again(func(x *word) bool { return x.foreign })
		for more := true; more; {
			var err error
			more, err = r.flush(w.ctx, r.lease)
			w.must(err)
		}
	}
	is := func(version string, able bool) {
		t.Helper()
		if got := w.words()["n"]; got.GetVersion() != version || got.GetAble() != able {
			t.Errorf("etcd has %v, want version %s, able %v", got, version, able)
		}
	}
	away, other := open(), open()
	away.come("n")
	say(away, "1")
	away.gone("n")
	other.come("n")
	say(other, "2")
	flush(other)
	flush(away)
	is("2", true)
	say(other, "3")
	flush(other)
	is("3", true)

	// Where nothing is there it is as good as any.
	other.come("n")
	say(other, "4")
	other.gone("n")
	_, err := w.etcd.Delete(w.ctx, w.store.StatusKey("move/topic/n"))
	w.must(err)
	flush(other)
	is("4", false)
}
