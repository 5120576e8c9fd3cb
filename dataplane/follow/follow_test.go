package follow

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	dto "github.com/prometheus/client_model/go"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/cutover"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
)

const (
	uidTopic = "11111111-1111-4111-8111-111111111111"
	uidOld   = "22222222-2222-4222-8222-222222222222"
	uidNew   = "33333333-3333-4333-8333-333333333333"
)

var orders = snapshot.Key{Namespace: "demo", Name: "orders"}

// at is a configuration in which orders is so far on its way from one shared store to
// another. cut is where the first one ends.
func at(phase cutover.Phase, cut *store.Position) *snapshot.Snapshot {
	t := &snapshot.Topic{Key: orders, UID: uidTopic, Epochs: []snapshot.Epoch{{Number: 1, StoreUID: uidOld, Physical: "old"}, {Number: 2, StoreUID: uidNew, Physical: "new"}}}
	t.Move = &snapshot.Move{Phase: phase}
	switch {
	case phase == cutover.Finished:
		t.Epochs, t.Move = t.Epochs[1:], nil
	case phase >= cutover.Draining:
		t.Cuts = map[uint32]map[string]store.Position{1: {}}
		if cut != nil {
			t.Cuts[1][cut.Partition] = *cut
		}
	}
	return &snapshot.Snapshot{Topics: map[snapshot.Key]*snapshot.Topic{orders: t}, Subscriptions: map[snapshot.Key]*snapshot.Subscription{}}
}

// world is two stores with the topic, and a proxy's way to them.
type world struct {
	*testing.T
	ctx      context.Context
	old, new *embedded.Store
	snaps    *latest.Value[*snapshot.Snapshot]
	in       *pipeline.Pipeline
	m        *Manager
	// fails, if set, is asked before events are written to the new store.
	mu    sync.Mutex
	fails func([]store.Outgoing, []store.Result) error
}

// failing is the new store, with what fails of it.
type failing struct {
	*embedded.Store
	w *world
}

func (f failing) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	f.w.mu.Lock()
	fails := f.w.fails
	f.w.mu.Unlock()
	if fails != nil {
		if err := fails(events, res); err != nil {
			return err
		}
	}
	return f.Store.Publish(ctx, topic, events, res)
}

func newWorld(t *testing.T) *world {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	w := &world{T: t, ctx: ctx, snaps: latest.New(at(cutover.Preparing, nil))}
	open := func(name string) *embedded.Store {
		st, err := embedded.Driver{}.Open(ctx, store.Config{Name: name, Dir: name, Options: embedded.Options{FS: vfs.NewMem()}})
		w.must(err)
		t.Cleanup(func() { w.must(st.Close(context.Background())) })
		w.must(st.(*embedded.Store).EnsureTopic(ctx, store.TopicSpec{Name: name}))
		return st.(*embedded.Store)
	}
	w.old, w.new = open("old"), open("new")
	get := func(uid string) (store.Store, error) {
		if uid == uidOld {
			return w.old, nil
		}
		return failing{w.new, w}, nil
	}
	log := slog.New(slog.DiscardHandler)
	w.in = pipeline.New(pipeline.Config{Snapshots: w.snaps, Store: get, Log: log})
	w.m = New(Config{Snapshots: w.snaps, Store: get, Write: w.in.WriteEach, Log: log})
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// run runs the manager until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.m.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		w.must(<-ended)
	})
}

func native(id, key string) *event.Event {
	return &event.Event{ID: id, Source: "/native", Type: "t", Ext: []event.Attr{{Name: event.AttrPartitionKey, Value: key}}, Data: []byte(id)}
}

// put writes to the old place, past the mesh, and gives the position of the last.
func (w *world) put(events ...*event.Event) store.Position {
	w.Helper()
	var res [1]store.Result
	for _, e := range events {
		w.must(w.old.Publish(w.ctx, "old", []store.Outgoing{{Event: e}}, res[:]))
	}
	return res[0].Pos
}

// group makes the group of followers, from the beginning: what is before the cut is not
// theirs all the same.
func (w *world) group() {
	w.must(w.old.EnsureGroup(w.ctx, "old", names.FollowGroup(uidTopic, 1), store.Start{}))
}

// got are the ids of the first n events of the new place.
func (w *world) got(n int) (ids []string) {
	w.Helper()
	tail, err := w.new.Tail(w.ctx, store.TailRequest{Topic: "new"})
	w.must(err)
	defer func() { w.must(tail.Close(w.ctx)) }()
	for msgs := make([]store.Message, n); len(ids) < n; {
		got, err := tail.Next(w.ctx, msgs[:n-len(ids)])
		w.must(err)
		for _, m := range msgs[:got] {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (w *world) is(what string, got, want any) {
	w.Helper()
	if !reflect.DeepEqual(got, want) {
		w.Errorf("%s: %v, want %v", what, got, want)
	}
}

// count waits until so many events have become this.
func (w *world) count(outcome string, want float64) {
	w.Helper()
	count := func() float64 {
		var m dto.Metric
		w.must(w.m.events.WithLabelValues(outcome).Write(&m))
		return m.Counter.GetValue()
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for count() != want {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("%v events are %s, want %v", count(), outcome, want)
		}
	}
}

// settled waits until all of the old place is settled.
func (w *world) settled() {
	w.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		lag, err := w.old.Lag(w.ctx, "old", names.FollowGroup(uidTopic, 1))
		w.must(err)
		if lag[0].Behind == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("not settled: %v", lag)
		}
	}
}

// TestFollow: what comes past the mesh behind the cut comes to the topic, in order, and is
// settled; not what lies before the cut, the marker, or what a proxy has written too late.
// It begins once the group is made, and goes on as long as the place is there.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.put(native("before", "k"))
	cut := w.put(cutover.Marker(uidTopic, 1, 1))
	w.must(w.in.Write(w.ctx, w.snaps.Get().Topics[orders], []event.Event{*native("late", "k")}))
	w.put(native("1", "k"), native("2", "k"), cutover.Marker(uidTopic, 1, 1), native("3", "k"))
	w.snaps.Store(at(cutover.Draining, &cut))
	w.run()
	w.group()
	w.is("the topic has", w.got(3), []string{"1", "2", "3"})
	w.put(native("4", "k"))
	w.is("the topic has", w.got(4), []string{"1", "2", "3", "4"})
	w.settled()
	w.count(forwarded, 4)
	w.count(late, 1)
	w.count(refused, 0)
}

// TestPlaces: only what a topic has left in a store that others reach is followed.
func TestPlaces(t *testing.T) {
	for _, p := range []cutover.Phase{cutover.Preparing, cutover.Leasing, cutover.Stopping, cutover.Marking, cutover.Finished} {
		if got := places(at(p, nil)); len(got) > 0 {
			t.Errorf("in phase %d it follows %v", p, got)
		}
	}
	for _, p := range []cutover.Phase{cutover.Draining, cutover.Drained} {
		s := at(p, nil)
		if got := places(s); len(got) != 1 || !got[place{orders, uidTopic, s.Topics[orders].Epochs[0]}] {
			t.Errorf("in phase %d it follows %v", p, got)
		}
		if s.Topics[orders].Epochs[0].Local = true; len(places(s)) > 0 {
			t.Error("it follows a store that is inside the proxy")
		}
	}
}

// TestLaterPartition: a partition that the cut does not have is forwarded from its
// beginning.
func TestLaterPartition(t *testing.T) {
	w := newWorld(t)
	w.group()
	w.put(native("1", "k"))
	w.snaps.Store(at(cutover.Draining, nil))
	w.run()
	w.is("the topic has", w.got(1), []string{"1"})
}

// TestRefusals: what the new store fails to take is tried again, in order; what it never
// takes stays where it is and holds up nothing.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.group()
	cut := w.put(cutover.Marker(uidTopic, 1, 1))
	w.put(native("1", "k"), native("large", "k"), native("2", "k"), native("3", "k"))
	calls := 0
	w.fails = func(events []store.Outgoing, res []store.Result) (err error) {
		if calls++; calls == 1 {
			err = fault.New(fault.Unavailable, "", "down", "down")
		} else if slices.ContainsFunc(events, func(e store.Outgoing) bool { return e.ID == "large" }) {
			err = fault.New(fault.TooLarge, "", "large", "large")
		}
		for i := range res {
			res[i].Err = err // as every store does
		}
		return err
	}
	w.snaps.Store(at(cutover.Draining, &cut))
	w.run()
	w.is("the topic has", w.got(3), []string{"1", "2", "3"})
	w.settled()
	w.count(forwarded, 3)
	w.count(refused, 1)
}

// fake is a store with one group of one member.
type fake struct {
	store.Store
	msgs    chan store.Message
	held    bool
	settled []string
	revoked func(string)
}

func (f *fake) Subscribe(_ context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	if !r.Ordered || r.Topic != "old" || r.Group != names.FollowGroup(uidTopic, 1) {
		return nil, errors.New("a wrong group")
	}
	f.revoked = r.Revoked
	return f, nil
}

func (f *fake) Fetch(ctx context.Context, dst []store.Message) (int, error) {
	select {
	case dst[0] = <-f.msgs:
		return 1, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (f *fake) Settle(msgs []*store.Message) int {
	for _, m := range msgs {
		f.settled = append(f.settled, m.ID)
	}
	return 0
}

func (f *fake) Holds(*store.Message) bool   { return f.held }
func (f *fake) Close(context.Context) error { return nil }

// TestRevoked: who has lost a partition writes nothing of it, and whoever takes it waits for
// what is on its way. Nothing is settled before it is in the topic.
func TestRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{msgs: make(chan store.Message), held: true}
		answer := make(chan error)
		var wrote []string
		m := New(Config{Snapshots: latest.New(at(cutover.Draining, nil)), Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return f, nil },
			Write: func(_ context.Context, _ *snapshot.Topic, events []event.Event, res []frontend.Result) error {
				wrote = append(wrote, events[0].ID)
				res[0].Err = <-answer
				return res[0].Err
			}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		f.msgs <- store.Message{Event: *native("1", "k")}
		synctest.Wait()
		gone := make(chan struct{})
		go func() {
			f.revoked("0")
			close(gone)
		}()
		synctest.Wait()
		select {
		case <-gone:
			t.Error("the next one may begin while something is on its way")
		default:
		}
		if len(f.settled) > 0 {
			t.Errorf("%v are settled", f.settled)
		}
		f.held = false
		answer <- fault.New(fault.Ambiguous, "", "ambiguous", "it may be there, or not")
		<-gone
		f.msgs <- store.Message{Event: *native("2", "k")}
		synctest.Wait()
		f.held = true
		f.msgs <- store.Message{Event: *native("3", "k")}
		answer <- nil
		synctest.Wait()
		if want := []string{"1", "3"}; !reflect.DeepEqual(wrote, want) || !reflect.DeepEqual(f.settled, want[1:]) {
			t.Errorf("%v are written, %v settled", wrote, f.settled)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestStoredKey: the key that a native producer has stored an event with is its own in the
// topic, where the event says none.
func TestStoredKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{msgs: make(chan store.Message), held: true}
		var keys []string
		m := New(Config{Snapshots: latest.New(at(cutover.Draining, nil)), Log: slog.New(slog.DiscardHandler), Store: func(string) (store.Store, error) { return f, nil },
			Write: func(_ context.Context, _ *snapshot.Topic, events []event.Event, _ []frontend.Result) error {
				for i := range events {
					keys = append(keys, events[i].Key(""))
				}
				return nil
			}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		plain := event.Event{ID: "1", Source: "/native", Type: "t", Ext: []event.Attr{{Name: "z", Value: "1"}}}
		f.msgs <- store.Message{Event: plain, StoredKey: "stored"}
		f.msgs <- store.Message{Event: *native("2", "own"), StoredKey: "stored"}
		f.msgs <- store.Message{Event: plain}
		synctest.Wait()
		if want := []string{"stored", "own", ""}; !reflect.DeepEqual(keys, want) || len(plain.Ext) != 1 {
			t.Errorf("their keys are %q", keys)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
