package delay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/embedded"
	"github.com/weft-mesh/weft/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is the embedded store without its own way to delay.
type plain struct {
	store.Store
	store.Admin
	store.Measurer
	store.Sealer

	mu     sync.Mutex
	broken map[string]error         // Publish to a topic fails with it, or of an event, by its id, if it is not parked
	hangs  map[string]chan struct{} // Publish to a topic waits for it
	tries  map[string]int           // of a topic
	joins  map[string]int           // of a group
	left   map[string]int           // of those
	tried  chan string              // a topic, for each try
}

func (p *plain) Subscribe(ctx context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	p.mu.Lock()
	p.joins[r.Group]++
	p.mu.Unlock()
	sub, err := p.Store.Subscribe(ctx, r)
	return &counted{sub, p, r.Group}, err
}

// counted is a member that says that it has left.
type counted struct {
	store.Subscription
	p     *plain
	group string
}

func (c *counted) Close(ctx context.Context) error {
	c.p.mu.Lock()
	c.p.left[c.group]++
	c.p.mu.Unlock()
	return c.Subscription.Close(ctx)
}

func (p *plain) Publish(ctx context.Context, topic string, events []store.Outgoing, res []store.Result) error {
	p.mu.Lock()
	err := p.broken[topic]
	for _, o := range events {
		if !strings.HasPrefix(topic, "weft-delay-") {
			err = cmp.Or(err, p.broken[o.Event.ID])
		}
	}
	p.tries[topic]++
	hang := p.hangs[topic]
	p.mu.Unlock()
	select {
	case p.tried <- topic:
	default:
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			err = fault.From(ctx.Err())
		}
	}
	if err != nil {
		for i := range res {
			res[i].Err = err
		}
		return err
	}
	return p.Store.Publish(ctx, topic, events, res)
}

func (p *plain) set(topic string, err error) {
	p.mu.Lock()
	p.broken[topic] = err
	p.mu.Unlock()
}

// count is how often a topic was tried, and the group that reads class 0 was joined.
func (p *plain) count(topic string) (tries, joins int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tries[topic], p.joins[names.DelayTopic("u", 0)]
}

// driver opens plain stores.
type driver struct {
	fs   vfs.FS
	last *plain
}

func (*driver) Kind() string { return "plain" }

func (d *driver) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	cfg.Options = embedded.Options{FS: d.fs}
	st, err := embedded.Driver{}.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	d.last = &plain{Store: st, Admin: st.(store.Admin), Measurer: st.(store.Measurer), Sealer: st.(store.Sealer), broken: map[string]error{}, hangs: map[string]chan struct{}{}, tries: map[string]int{}, joins: map[string]int{}, left: map[string]int{}, tried: make(chan string, 1000)}
	return d.last, nil
}

// open opens a store with its own topics made.
func open(t *testing.T, d *driver, window int) *Store {
	t.Helper()
	st, err := Driver{Driver: d}.Open(t.Context(), store.Config{Name: "test", UID: "u", Dir: "store", Window: window})
	if err != nil {
		t.Fatal(err)
	}
	s := st.(*Store)
	for _, own := range s.OwnTopics() {
		must(t, s.EnsureTopic(t.Context(), own.Spec))
		must(t, s.EnsureGroup(t.Context(), own.Spec.Name, own.Group, store.Start{}))
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestConformance: with delay in its place a store is what any store is.
func TestConformance(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	n := 0
	storetest.Run(t, storetest.Harness{
		Open:      func(t *testing.T, window int) store.Store { return open(t, d, window) },
		Exclusive: true,
		Topic:     func(_ *testing.T, name string) string { n++; return fmt.Sprintf("%s-%d", name, n) },
		Expect:    store.Capabilities{Durability: store.DurabilityDisk, Delay: MaxDelay, DelayEmulated: true, DelayPrecision: Precision, Order: true, Tail: true, Replay: true, TopicRetention: true, Local: true},
	})
}

// world is a topic with a group.
func world(t *testing.T, d *driver) *Store {
	t.Helper()
	s := open(t, d, 0)
	must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}))
	must(t, s.EnsureGroup(t.Context(), "t", "g", store.Start{}))
	return s
}

func park(t *testing.T, s *Store, topic string, delay time.Duration, ids ...string) {
	t.Helper()
	events, due := make([]store.Outgoing, len(ids)), make([]time.Time, len(ids))
	for i, id := range ids {
		events[i] = store.Outgoing{Event: &event.Event{ID: id, Source: "/s", Type: "t", Data: []byte("x"), Mesh: []event.Attr{{Name: "retry-attempt", Value: "3"}}}}
		due[i] = time.Now().Add(delay)
	}
	must(t, s.PublishDelayed(t.Context(), topic, events, due, make([]store.Result, len(ids))))
}

func subscribe(t *testing.T, s *Store) store.Subscription {
	t.Helper()
	sub, err := s.Subscribe(t.Context(), store.SubscribeRequest{Topic: "t", Group: "g"})
	must(t, err)
	return sub
}

// patience bounds what a test waits for; only a broken store takes so long.
const patience = 2 * time.Minute

// get fetches and settles one event.
func get(t *testing.T, sub store.Subscription) event.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dst := make([]store.Message, 1)
	_, err := sub.Fetch(ctx, dst)
	must(t, err)
	sub.Settle([]*store.Message{&dst[0]})
	return dst[0].Event
}

func closeAll(t *testing.T, s *Store, subs ...store.Subscription) {
	t.Helper()
	for _, sub := range subs {
		must(t, sub.Close(t.Context()))
	}
	must(t, s.Close(t.Context()))
}

// TestRestart: what is parked outlives whoever parked it, and comes as it was.
func TestRestart(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	s := world(t, d)
	sub := subscribe(t, s)
	park(t, s, "t", time.Second, "a")
	closeAll(t, s, sub)
	s = open(t, d, 0)
	sub = subscribe(t, s)
	e := get(t, sub)
	if e.ID != "a" || string(e.Data) != "x" || len(e.Mesh) != 1 || e.Mesh[0] != (event.Attr{Name: "retry-attempt", Value: "3"}) {
		t.Errorf("it came as %+v", e)
	}
	closeAll(t, s, sub)
}

// TestTopicFails: what cannot be written yet is not given up, nor is what comes
// behind it for another topic.
func TestTopicFails(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	s := world(t, d)
	d.last.set("t", fault.New(fault.Unavailable, "test", "store-unreachable", "not now"))
	sub := subscribe(t, s)
	park(t, s, "t", 50*time.Millisecond, "a", "b")
	for n, over := 0, time.After(patience); n < 3; {
		select {
		case topic := <-d.last.tried:
			if topic == "t" {
				n++
			}
		case <-over:
			t.Fatalf("it was tried %d times", n)
		}
	}
	d.last.set("t", nil)
	if got := get(t, sub).ID + get(t, sub).ID; got != "ab" && got != "ba" {
		t.Errorf("got %s", got)
	}
	closeAll(t, s, sub)
}

// TestOneRefused: an event that its topic never takes keeps none of those that are due
// with it from there, nor makes the topic one that fails. It is tried by itself from then on.
func TestOneRefused(t *testing.T) {
	for _, class := range []fault.Class{fault.TooLarge, fault.Invalid} {
		d := &driver{fs: vfs.NewMem()}
		s := world(t, d)
		d.last.set("b", fault.New(class, "test", "event-too-large", "it is too large"))
		sub := &moving{held: map[string]bool{}}
		for _, id := range []string{"a", "b", "c", "d"} {
			sub.add(parkedFor("t", id, time.Now()))
		}
		m := newMember(s, sub)
		step(t, m)
		have, err := s.Extents(t.Context(), "t")
		must(t, err)
		if n := have[0].End - have[0].Begin; n != 3 || sub.settled != 3 {
			t.Errorf("%d events of 3 were written, %d settled", n, sub.settled)
		}
		if q := m.lanes[lane{referred, "t"}]; q == nil || len(q.due) != 1 || q.due[0].msg.ID != "b" || m.n != 1 {
			t.Errorf("the one that is refused is not kept by itself: %+v", q)
		}
		if q := m.lanes[lane{written, "t"}]; q != nil && q.log != nil {
			t.Error("the topic is taken for one that fails")
		}
		must(t, s.Close(t.Context()))
	}
}

// TestRefusedElsewhere: what a topic never takes is given to who may take it, as it was.
// What that takes is done with; what it does not is kept.
func TestRefusedElsewhere(t *testing.T) {
	for _, takes := range []bool{true, false} {
		d := &driver{fs: vfs.NewMem()}
		s := world(t, d)
		for _, topic := range []string{"never", "other"} {
			must(t, s.EnsureTopic(t.Context(), store.TopicSpec{Name: topic}))
		}
		why := fault.New(fault.TooLarge, "test", "event-too-large", "it is too large")
		d.last.set("b", why)
		d.last.set("never", fault.New(fault.Unavailable, "test", "store-unreachable", "not now"))
		inTopic := func(topic string) uint64 {
			t.Helper()
			have, err := s.Extents(t.Context(), topic)
			must(t, err)
			return have[0].End - have[0].Begin
		}
		given := 0
		s.cfg.Refused = func(_ context.Context, topic string, e *event.Event, err error) error {
			if given++; topic != "t" || e.ID != "b" || string(e.Data) != "data" || len(e.Mesh) != 1 || e.Mesh[0].Name != "retry-attempt" || !errors.Is(err, why) {
				t.Errorf("of topic %s it gets %+v: %v", topic, e, err)
			}
			if takes {
				return nil
			}
			return errors.New("not this one")
		}
		sub := &moving{held: map[string]bool{}}
		for _, of := range [][2]string{{"t", "a"}, {"t", "b"}, {"t", "c"}, {"other", "d"}, {"never", "e"}} {
			msg := parkedFor(of[0], of[1], time.Now())
			msg.Data, msg.Mesh = []byte("data"), append(msg.Mesh, event.Attr{Name: "retry-attempt", Value: "3"})
			sub.add(msg)
		}
		m := newMember(s, sub)
		step(t, m)
		step(t, m)
		want := 4
		if !takes {
			want = 3
		}
		if n, other := inTopic("t"), inTopic("other"); n != 2 || other != 1 {
			t.Errorf("%d and %d of the others are written", n, other)
		}
		if given != 1 || sub.settled != want || m.n != 5-want {
			t.Errorf("taken: %t; it was given away %d times, %d of 5 are settled, want %d; %d are kept", takes, given, sub.settled, want, m.n)
		}
		if q := m.lanes[lane{referred, "t"}]; !takes && (q == nil || q.log == nil || len(q.due) != 1) {
			t.Errorf("it waits for no other try: %+v", q)
		}
		must(t, s.Close(t.Context()))
	}
}

// moving is a member of a group that loses a partition: what it has fetched, of which it
// holds what held has.
type moving struct {
	store.Subscription
	msgs []store.Message
	held map[string]bool

	mu      sync.Mutex
	settled int
}

// add adds a message that this member holds.
func (f *moving) add(m store.Message) {
	f.held[m.ID] = true
	f.msgs = append(f.msgs, m)
}

// step has a member fetch and release, and waits for what that has begun.
func step(t *testing.T, m *member) {
	t.Helper()
	must(t, m.fetch())
	m.release()
	m.writes.Wait()
	m.collect()
}

func (f *moving) Fetch(_ context.Context, dst []store.Message) (int, error) {
	n := copy(dst, f.msgs)
	f.msgs = f.msgs[n:]
	return n, nil
}

func (f *moving) Settle(msgs []*store.Message) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled += len(msgs)
	return 0
}

func (f *moving) Holds(m *store.Message) bool { return f.held[m.ID] }

func parkedFor(topic, id string, due time.Time) store.Message {
	return store.Message{Event: event.Event{ID: id, Source: "/s", Type: "t", Mesh: []event.Attr{{Name: headerDue, Value: fmt.Sprint(due.UnixNano())}, {Name: headerTopic, Value: topic}}}}
}

// TestPartitionLost: what a member held of a partition that another one has now is that
// one's to write, and takes no room here.
func TestPartitionLost(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	s := world(t, d)
	sub := &moving{held: map[string]bool{"ours": true, "later": true}, msgs: []store.Message{parkedFor("t", "another's", time.Now()), parkedFor("t", "ours", time.Now())}}
	m := newMember(s, sub)
	step(t, m)
	lag, err := s.Extents(t.Context(), "t")
	must(t, err)
	if n := lag[0].End - lag[0].Begin; n != 1 || m.n > 0 || m.bytes != 0 {
		t.Errorf("%d events were written, %d are held with %d bytes, want one and none", n, m.n, m.bytes)
	}
	for range maxHeld {
		sub.msgs = append(sub.msgs, parkedFor("t", "another's", time.Now().Add(time.Hour)))
	}
	for len(sub.msgs) > 0 {
		must(t, m.fetch())
	}
	sub.msgs = []store.Message{parkedFor("t", "later", time.Now().Add(time.Hour))}
	over := time.AfterFunc(patience, s.end)
	must(t, m.fetch())
	over.Stop()
	if len(m.held) != 1 || m.held[0].msg.ID != "later" || m.bytes != m.held[0].msg.Held() {
		t.Errorf("%d are held with %d bytes, want one that is this member's", len(m.held), m.bytes)
	}
	must(t, s.Close(t.Context()))
}

// TestMany: more than a member holds are all there in the end, and none before it
// is due.
func TestMany(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	s := world(t, d)
	const n = 2*maxHeld + 10
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	due := time.Now().Add(time.Second)
	park(t, s, "t", time.Second, ids...)
	sub := subscribe(t, s)
	seen := map[string]bool{}
	for len(seen) < n {
		e := get(t, sub)
		if time.Now().Before(due) {
			t.Fatalf("%s is early", e.ID)
		}
		seen[e.ID] = true
	}
	closeAll(t, s, sub)
}

// TestClasses: each delay has one class, which begins at or before it.
func TestClasses(t *testing.T) {
	for d, want := range map[time.Duration]int{time.Millisecond: 0, 8*time.Second - 1: 0, 8 * time.Second: 1, time.Minute: 1, 64 * time.Second: 2, time.Hour: 3, 24 * time.Hour: 5, MaxDelay: 5} {
		if got := classOf(d); got != want {
			t.Errorf("%s is of class %d, want %d", d, got, want)
		}
	}
}

// TestNothingRuns: a store whose topics nobody reads, as a control plane's, reads
// nothing that is parked.
func TestNothingRuns(t *testing.T) {
	d := &driver{fs: vfs.NewMem()}
	s := world(t, d)
	park(t, s, "t", time.Millisecond, "a")
	before := goleak.IgnoreCurrent()
	sub := subscribe(t, s)
	if err := goleak.Find(before); err == nil {
		t.Error("nobody looks after what is parked, also once somebody reads")
	}
	get(t, sub)
	closeAll(t, s, sub)
	s = open(t, d, 0)
	before = goleak.IgnoreCurrent()
	park(t, s, "t", time.Millisecond, "b")
	goleak.VerifyNone(t, before)
	closeAll(t, s)
}

// twoHalves is a plain store that publishes in two halves.
type twoHalves struct {
	*plain
	handed int
}

func (h *twoHalves) Hand(ctx context.Context, topic string, events []store.Outgoing) (func(context.Context, []store.Result) error, error) {
	h.handed += len(events)
	return func(ctx context.Context, res []store.Result) error { return h.Publish(ctx, topic, events, res) }, nil
}

type twoHalvesDriver struct {
	driver
	opened *twoHalves
}

func (d *twoHalvesDriver) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	_, err := d.driver.Open(ctx, cfg)
	d.opened = &twoHalves{plain: d.last}
	return d.opened, err
}

// TestHander: a store that publishes in two halves does so with delay in its place too, and
// one that does not is not said to.
func TestHander(t *testing.T) {
	one := open(t, &driver{fs: vfs.NewMem()}, 0)
	defer func() { must(t, one.Close(context.Background())) }()
	if _, ok := store.Store(one).(store.Hander); ok {
		t.Error("a store that publishes in one is a Hander")
	}
	d := &twoHalvesDriver{driver: driver{fs: vfs.NewMem()}}
	st, err := Driver{Driver: d}.Open(t.Context(), store.Config{Name: "test", UID: "u", Dir: "store"})
	must(t, err)
	defer func() { must(t, st.Close(context.Background())) }()
	must(t, st.(store.Admin).EnsureTopic(t.Context(), store.TopicSpec{Name: "t"}))
	wait, err := st.(store.Hander).Hand(t.Context(), "t", []store.Outgoing{{Event: &event.Event{ID: "1", Source: "/s", Type: "t"}}})
	must(t, err)
	res := make([]store.Result, 1)
	if must(t, wait(t.Context(), res)); d.opened.handed != 1 || res[0].Err != nil {
		t.Errorf("%d events were handed over, the result is %v", d.opened.handed, res[0].Err)
	}
	if _, ok := st.(store.Delayer); !ok {
		t.Error("it does not delay")
	}
}
