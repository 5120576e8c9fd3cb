package delivery

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/policy"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/position"
)

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

// TestTailResumesWithoutTopics: a tail of a pattern that goes on leaves out what it read
// before and is not there any more, or may not be read; a place that it cannot have been at
// is refused.
func TestTailResumesWithoutTopics(t *testing.T) {
	w := newWorld(t, nil)
	publish := func(topic, id string) {
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, topic, []store.Outgoing{{Event: &event.Event{ID: id, Source: "/s", Type: "t"}}}, res[:]))
	}
	publish("orders", "a")
	publish("dead", "b")
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"*"}})
	w.must(err)
	seen := map[string]position.Token{}
	for _, d := range w.next(tl, 2) {
		seen[d.Topic] = d.Position
	}
	tl.Close()
	publish("orders", "c")
	dead, both := snapshot.Key{Namespace: "demo", Name: "dead"}, []position.Token{seen["orders"], seen["dead"]}
	for what, change := range map[string]func(*snapshot.Snapshot){
		"deleted": func(snap *snapshot.Snapshot) { delete(snap.Topics, dead) },
		"denied": func(snap *snapshot.Snapshot) {
			rules := allowAll()
			rules[0].Topics = []string{"orders"}
			snap.Rules = w.snapshot(nil, rules...).Rules
		},
	} {
		snap := w.snapshot(nil)
		change(snap)
		w.snaps.Store(snap)
		tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"*"}, After: both, Resumes: true})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if d := w.next(tl, 1)[0]; d.Event.ID != "c" {
			t.Errorf("%s: goes on with %s", what, d.Event.ID)
		}
		tl.Close()
		if _, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"*"}, After: both}); fault.From(err).Reason != "position-unknown" {
			t.Errorf("%s, begun there: %v", what, err)
		}
	}
	w.snaps.Store(w.snapshot(nil))
	for _, topics := range [][]string{{"orders"}, {"orders", "dead.>"}} {
		if _, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: topics, After: both, Resumes: true}); fault.From(err).Reason != "position-unknown" {
			t.Errorf("%v goes on where it never was: %v", topics, err)
		}
	}
}

// TestTailOfATopicThatIsNotReady: a topic that a pattern matches and that is not ready is
// read, once it is, from where the client wanted it.
func TestTailOfATopicThatIsNotReady(t *testing.T) {
	w := newWorld(t, nil)
	w.publish("a", "b")
	all, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	first := w.next(all, 2)[0]
	all.Close()
	for at := now(); !now().After(at); { // they are before the end, in a store's time
	}
	snap := w.snapshot(nil)
	snap.Topics[snapshot.Key{Namespace: "demo", Name: "orders"}].NotReady = "it is not admitted"
	w.snaps.Store(snap)
	begin := func(r TailRequest) Tail {
		r.Namespace, r.Topics = "demo", []string{"*"}
		tl, err := w.m.Tail(w.ctx, local, r)
		w.must(err)
		return tl
	}
	tails := map[string]Tail{"c": begin(TailRequest{From: store.Start{End: true}}), "b": begin(TailRequest{From: store.Start{End: true}, After: []position.Token{first.Position}}),
		"a": begin(TailRequest{})}
	w.publish("c")
	w.snaps.Store(w.snapshot(nil))
	for want, tl := range tails {
		if d := w.next(tl, 1)[0]; d.Event.ID != want {
			t.Errorf("it begins with %s, not %s", d.Event.ID, want)
		}
		tl.Close()
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
	w.through(func() store.Store { return slow })
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
		_, reading = tl.Topics()[uidStore]
	}
	m := w.join(1) // others go on
	m.Close()
	close(slow.gate)
	if d := w.next(tl, 1)[0]; d.Event.ID != "first" || d.Topic != "later" {
		t.Errorf("%s of %s", d.Event.ID, d.Topic)
	}
	w.snaps.Store(w.snapshot(nil)) // it is deleted
	for reading := true; reading; {
		_, reading = tl.Topics()[uidStore]
	}
	if got := tl.Topics(); len(got) == 0 {
		t.Error("the others are read no more")
	}
}

// TestTailThatNothingMatchesYet: a tail by a pattern waits for the first topic that matches,
// where a rule may allow one; to whom none does it is refused, in the same words whatever
// topics there are; and it ends when the rules do not any more.
func TestTailThatNothingMatchesYet(t *testing.T) {
	w := newWorld(t, nil)
	tl, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"later.>"}, From: store.Start{End: true}})
	w.must(err)
	defer tl.Close()
	var res [1]store.Result
	w.must(w.st.(store.Admin).EnsureTopic(w.ctx, store.TopicSpec{Name: "later"}))
	w.must(w.st.Publish(w.ctx, "later", []store.Outgoing{{Event: &event.Event{ID: "first", Source: "/s", Type: "t"}}}, res[:]))
	snap := w.snapshot(nil)
	later := &snapshot.Topic{Key: snapshot.Key{Namespace: "demo", Name: "later.on"}, UID: uidStore, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidStore, Physical: "later"}}}
	snap.Topics[later.Key] = later
	w.snaps.Store(snap)
	if d := w.next(tl, 1)[0]; d.Event.ID != "first" || d.Topic != "later.on" {
		t.Errorf("%s of %s", d.Event.ID, d.Topic)
	}
	few := allowAll()
	few[0].Topics = []string{"elsewhere"}
	w.snaps.Store(w.snapshot(nil, few...))
	if _, err := tl.Next(w.ctx, make([]Delivery, 1)); fault.ClassOf(err) != fault.Denied {
		t.Errorf("without a rule: %v", err)
	}
	for _, pattern := range []string{"later.>", "*.*", "orders.>"} {
		if _, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{pattern}}); fault.ClassOf(err) != fault.Denied || !strings.Contains(err.Error(), "no topic that matches may be read") {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}

// TestTailIsBounded: a tail whose client does not read holds a bounded number of
// bytes, and loses nothing by it.
func TestTailIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	live, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}, From: store.Start{End: true}})
	w.must(err)
	defer live.Close()
	const events = 64
	for i := range events {
		e := &event.Event{ID: fmt.Sprint(i), Source: "/test", Type: "t", Data: make([]byte, 256<<10)}
		var res [1]store.Result
		w.must(w.st.Publish(w.ctx, "orders", []store.Outgoing{{Event: e}}, res[:]))
	}
	_, f := cursorOf(live)
	for all := false; !all; {
		f.mu.Lock()
		if all = f.next == events; f.bytes > ringBytes {
			t.Fatalf("%d bytes are in the ring", f.bytes)
		}
		f.mu.Unlock()
	}
	behind, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	defer behind.Close()
	c, _ := cursorOf(behind)
	for full := false; !full; {
		c.t.mu.Lock()
		full = c.room != nil
		held, queued := c.held, len(c.queue)
		c.t.mu.Unlock()
		if held > tailBytes || queued > tailBytes/(256<<10) {
			t.Fatalf("%d bytes and %d events are held for a client that does not read", held, queued)
		}
	}
	for _, tl := range []Tail{live, behind} {
		for i, d := range w.next(tl, events) {
			if d.Event.ID != fmt.Sprint(i) {
				t.Fatalf("event %d is %s", i, d.Event.ID)
			}
		}
	}
}

// awayStore is a store of which tails cannot read, so many times.
type awayStore struct {
	store.Store
	left atomic.Int32
}

type awayTail struct {
	store.Tail
	s *awayStore
}

func (s *awayStore) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	t, err := s.Store.Tail(ctx, r)
	return awayTail{t, s}, err
}

func (t awayTail) Next(ctx context.Context, dst []store.Message) (int, error) {
	if t.s.left.Add(-1) >= 0 {
		return 0, fault.New(fault.Unavailable, "test", "store-unreachable", "the store is away")
	}
	return t.Tail.Next(ctx, dst)
}

// TestTailOutage: of a store that is away while a tail waits two lines are logged, one when
// it is away and one when it is back, however often it was tried.
func TestTailOutage(t *testing.T) {
	w := newWorld(t, nil)
	w.stop()
	st := &awayStore{Store: w.st}
	st.left.Store(4)
	var log bytes.Buffer
	w.st, w.log = st, slog.New(slog.NewTextHandler(&log, nil))
	w.start()
	w.publish("a")
	tail, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{"orders"}})
	w.must(err)
	w.next(tail, 1)
	w.publish("b")
	w.next(tail, 1) // what was logged of the first is there
	tail.Close()
	w.stop()
	if text := log.String(); strings.Count(text, "a tail's topic cannot be read") != 1 || strings.Count(text, "a tail's topic is read again") != 1 {
		t.Errorf("logged was\n%s", text)
	}
}

// TestTailReadsByTheRulesThatItTookBy: what rules never let the client read is not let through
// by newer ones, by which it reads nothing more of the topic, that come while it is looked at.
func TestTailReadsByTheRulesThatItTookBy(t *testing.T) {
	w := newWorld(t, nil)
	rule := func(topic string, subjects ...string) *configv1.AccessRule {
		return &configv1.AccessRule{Name: topic, Effect: configv1.Effect_EFFECT_ALLOW, Principals: []string{"local"}, Actions: []configv1.Action{configv1.Action_ACTION_SUBSCRIBE}, Topics: []string{topic}, Subjects: subjects}
	}
	w.snaps.Store(w.snapshot(nil, rule("dead"), rule("orders", "mine")))
	open, err := w.m.Tail(w.ctx, local, TailRequest{Namespace: "demo", Topics: []string{">"}})
	w.must(err)
	defer open.Close()
	tail := open.(*tail)
	w.publish("secret")
	var dst [4]Delivery
	n, grants := 0, map[string]*policy.Grant(nil)
	for ear := newEar(); n == 0; {
		n, grants, err = tail.take(dst[:])
		w.must(err)
		if n == 0 && tail.bell.listen(ear.wake) {
			<-ear.heard
		}
	}
	tail.check(w.snapshot(nil, rule("dead")), time.Now())
	if n = tail.readable(dst[:n], grants); n != 0 {
		t.Errorf("it reads %v", idsOf(dst[:n]))
	}
}
