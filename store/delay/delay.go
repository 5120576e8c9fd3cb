// Package delay gives a store that cannot hold messages back a way to: it parks
// them in topics of their own, one for each class of delays, which are read by a
// group whose members wait until a message is due and then write it where it
// belongs. So a delayed message costs one more write, and is as durable as others.
//
// A member holds as many messages as the store's window lets it: while fewer wait
// in a class, each is on time. Of more, those that came first are looked at first,
// and one that is due earlier than those may be late by what its class spans.
package delay

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/names"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store"
)

// Limits and times.
const (
	// MaxDelay is the longest delay.
	MaxDelay = 3 * 24 * time.Hour
	// Precision is how late a message is written where it belongs at most, while the
	// store keeps up and no more wait in its class than a member holds.
	Precision = 100 * time.Millisecond
	// maxHeld and maxBytes bound what a member holds of a class.
	maxHeld  = 1024
	maxBytes = 8 << 20
	maxFetch = 32
	minRetry = 50 * time.Millisecond
	maxRetry = 2 * time.Second
	// referTimeout bounds what others wait for who takes what topics do not take.
	referTimeout = 5 * time.Second
	// closeTimeout bounds leaving a group.
	closeTimeout = 5 * time.Second
)

// classes are the shortest delays of each class. A class spans a factor of eight.
var classes = [...]time.Duration{0, 8 * time.Second, 64 * time.Second, 512 * time.Second, 4096 * time.Second, 32768 * time.Second}

// Mesh headers of a parked message.
const (
	headerDue   = "delay-due"   // when it is due, in nanoseconds since 1970
	headerTopic = "delay-topic" // where it belongs
)

// Driver opens the stores of another driver, and gives them the way.
type Driver struct {
	store.Driver
	// Clock tells what is due.
	Clock clock.Clock
}

// inner is what a store must be.
type inner interface {
	store.Store
	store.Admin
	store.Measurer
	store.Sealer
}

// Open opens the store.
func (d Driver) Open(ctx context.Context, cfg store.Config) (store.Store, error) {
	st, err := d.Driver.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	in, ok := st.(inner)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a store of kind %s cannot be given delay", d.Kind()), st.Close(ctx))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{inner: in, cfg: cfg, clock: d.Clock}
	s.life, s.end = context.WithCancel(context.Background())
	if h, ok := st.(store.Hander); ok {
		return struct {
			*Store
			store.Hander
		}{s, h}, nil
	}
	return s, nil
}

// Store is a store that can hold messages back.
type Store struct {
	inner
	cfg   store.Config
	clock clock.Clock
	life  context.Context // ends when the store closes
	end   context.CancelFunc
	begin sync.Once
	work  sync.WaitGroup
}

// Probe adds what the emulation gives, and costs.
func (s *Store) Probe(ctx context.Context) (store.Capabilities, error) {
	caps, err := s.inner.Probe(ctx)
	if err == nil {
		caps.Delay, caps.DelayEmulated, caps.DelayPrecision = MaxDelay, true, Precision
	}
	return caps, err
}

// Check asks the store, if it is a store.Checker.
func (s *Store) Check(ctx context.Context) error {
	if c, ok := s.inner.(store.Checker); ok {
		return c.Check(ctx)
	}
	return nil
}

// Fence puts a fence around a topic, if the store is a store.Fencer.
func (s *Store) Fence(ctx context.Context, topic string) (store.Fence, error) {
	if f, ok := s.inner.(store.Fencer); ok {
		return f.Fence(ctx, topic)
	}
	return 0, store.NoFence(topic, "a store of this kind has none")
}

// Unfence removes it.
func (s *Store) Unfence(ctx context.Context, topic string) error {
	if f, ok := s.inner.(store.Fencer); ok {
		return f.Unfence(ctx, topic)
	}
	return nil
}

func (s *Store) topic(class int) string { return names.DelayTopic(s.cfg.UID, class) }

// OwnTopics are the topics of the classes; see store.TopicOwner.
func (s *Store) OwnTopics() []store.OwnTopic {
	out := make([]store.OwnTopic, len(classes))
	for i := range out {
		out[i] = store.OwnTopic{Spec: store.TopicSpec{Name: s.topic(i), Partitions: 1}, Group: s.topic(i)}
	}
	return out
}

// Subscribe joins a group. Whoever reads a topic wants what is parked for it, so
// from the first time on the store also looks after that.
func (s *Store) Subscribe(ctx context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	s.begin.Do(func() {
		for i := range classes {
			s.work.Go(func() { s.run(s.topic(i)) })
		}
	})
	return s.inner.Subscribe(ctx, r)
}

// Close ends what the store runs, and closes it.
func (s *Store) Close(ctx context.Context) error {
	s.end()
	s.begin.Do(func() {}) // it begins no more
	s.work.Wait()
	return s.inner.Close(ctx)
}

// PublishDelayed parks events; see store.Delayer. What is due already is published.
func (s *Store) PublishDelayed(ctx context.Context, topic string, events []store.Outgoing, due []time.Time, res []store.Result) error {
	now := s.clock.Now()
	to := map[string][]int{}
	for i := range events {
		switch d := due[i].Sub(now); {
		case d > MaxDelay:
			err := fault.New(fault.Invalid, "delay.publish", "delay", "the delay is longer than %s", MaxDelay)
			for i := range res {
				res[i] = store.Result{Err: err}
			}
			return err
		case d <= 0:
			to[topic] = append(to[topic], i)
		default:
			name := s.topic(classOf(d))
			to[name] = append(to[name], i)
		}
	}
	var first error
	for name, of := range to {
		out, got := make([]store.Outgoing, len(of)), make([]store.Result, len(of))
		for n, i := range of {
			e := *events[i].Event
			if name != topic {
				e.Mesh = event.With(event.With(e.Mesh, headerDue, strconv.FormatInt(due[i].UnixNano(), 10)), headerTopic, topic)
			}
			out[n].Event = &e
		}
		if err := s.inner.Publish(ctx, name, out, got); err != nil && first == nil {
			first = err
		}
		for n, i := range of {
			res[i] = store.Result{Err: got[n].Err}
		}
	}
	return first
}

// classOf is the class of a delay.
func classOf(d time.Duration) int {
	class := 0
	for class+1 < len(classes) && d >= classes[class+1] {
		class++
	}
	return class
}

// run looks after a class until the store closes.
func (s *Store) run(topic string) {
	log := outage.New(s.cfg.Log.With("topic", topic), "a topic of delayed events cannot be read; trying again", "a topic of delayed events is read again")
	retry := minRetry
	for s.life.Err() == nil {
		err := s.follow(topic, func() { retry = minRetry; log.Is(nil) })
		if s.life.Err() != nil {
			return
		}
		log.Is(err)
		pause(s.life, retry)
		retry = min(2*retry, maxRetry)
	}
}

// follow is a member of a class's group, until something fails.
func (s *Store) follow(topic string, good func()) error {
	sub, err := s.inner.Subscribe(s.life, store.SubscribeRequest{Topic: topic, Group: topic})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.life), closeTimeout)
		defer cancel()
		if err := sub.Close(ctx); err != nil {
			s.cfg.Log.Warn("a group could not be left cleanly; some delayed events may come twice", "group", topic, "error", err)
		}
	}()
	m := &member{s: s, sub: sub}
	for {
		if err := m.fetch(); err != nil {
			return err
		}
		if err := m.release(); err != nil {
			return err
		}
		good()
	}
}

// member holds what is parked until it is due.
type member struct {
	s     *Store
	sub   store.Subscription
	held  byDue
	bytes int
	// refused are those that their topics do not take, until refer.
	refused []refusal
}

// parked is a message that waits.
type parked struct {
	msg *store.Message
	to  string // the topic where it belongs
	due time.Time
}

// refusal is a message that its topic does not take for what it is, and why.
type refusal struct {
	msg   *store.Message
	topic string
	why   error
}

// fetch waits until something is due, or comes.
func (m *member) fetch() error {
	if m.full() {
		m.forget()
	}
	ctx, cancel := m.s.life, context.CancelFunc(func() {})
	if len(m.held) > 0 {
		ctx, cancel = context.WithTimeout(m.s.life, max(m.held[0].due.Sub(m.s.clock.Now()), 0))
	}
	defer cancel()
	if m.full() {
		<-ctx.Done()
		return m.s.life.Err()
	}
	msgs := make([]store.Message, min(maxFetch, maxHeld-len(m.held)))
	n, err := m.sub.Fetch(ctx, msgs)
	if err != nil && ctx.Err() != nil {
		return m.s.life.Err() // something is due
	}
	for i := range msgs[:n] {
		p := parked{msg: &msgs[i]}
		p.to, _ = event.Lookup(p.msg.Mesh, headerTopic)
		at, _ := event.Lookup(p.msg.Mesh, headerDue)
		if v, err := strconv.ParseInt(at, 10, 64); err == nil {
			p.due = time.Unix(0, v)
		}
		heap.Push(&m.held, p)
		m.bytes += p.msg.Size()
	}
	return err
}

func (m *member) full() bool { return len(m.held) >= maxHeld || m.bytes >= maxBytes }

// forget drops what came from partitions that this member has lost: it comes again, to
// whoever has them now.
func (m *member) forget() {
	m.held = slices.DeleteFunc(m.held, func(p parked) bool {
		lost := !m.sub.Holds(p.msg)
		if lost {
			m.bytes -= p.msg.Size()
		}
		return lost
	})
	heap.Init(&m.held)
}

// release writes what is due where it belongs.
func (m *member) release() (failed error) {
	due := map[string][]*store.Message{}
	now := m.s.clock.Now()
	for len(m.held) > 0 && !m.held[0].due.After(now) {
		p := heap.Pop(&m.held).(parked)
		m.bytes -= p.msg.Size()
		if m.sub.Holds(p.msg) { // else it is another's to write
			due[p.to] = append(due[p.to], p.msg)
		}
	}
	for topic, msgs := range due {
		// What is not settled comes again; one topic that fails is not to hold up others.
		if err := m.write(topic, msgs); failed == nil {
			failed = err
		}
	}
	return cmp.Or(m.refer(), failed)
}

// refer gives what topics do not take to somebody else, and settles what that takes.
// It is last, since it may take a while.
func (m *member) refer() (failed error) {
	ctx, cancel := context.WithTimeout(m.s.life, referTimeout)
	defer cancel()
	for _, r := range m.refused {
		err := r.why
		if m.s.cfg.Refused != nil {
			e := r.msg.Event
			e.Mesh = without(e.Mesh)
			if err = m.s.cfg.Refused(ctx, r.topic, &e, r.why); err != nil {
				err = fmt.Errorf("%w; it goes nowhere else: %w", r.why, err)
			}
		}
		if err == nil {
			m.sub.Settle([]*store.Message{r.msg})
			continue
		}
		failed = err
	}
	m.refused = nil
	return failed
}

// write writes messages to their topic, and settles them. What has no topic any
// more has no reader: it is dropped. What the topic does not take is left to refer.
func (m *member) write(topic string, msgs []*store.Message) error {
	out, res := make([]store.Outgoing, len(msgs)), make([]store.Result, len(msgs))
	for i, msg := range msgs {
		e := msg.Event
		e.Mesh = without(e.Mesh)
		out[i].Event = &e
	}
	var err error = fault.New(fault.NotFound, "delay.release", "unknown-topic", "it is no event that was delayed")
	if topic != "" {
		if err = m.s.inner.Publish(m.s.life, topic, out, res); err == nil {
			m.sub.Settle(msgs)
			return nil
		}
	}
	if fault.ClassOf(err) == fault.NotFound {
		m.s.cfg.Log.Warn("delayed events were dropped: their topic is gone", "topic", topic, "events", len(msgs))
		m.sub.Settle(msgs)
		return nil
	}
	if fault.Untakeable(err) && len(msgs) == 1 {
		m.refused = append(m.refused, refusal{msgs[0], topic, err})
		return nil
	}
	var others []*store.Message
	for i := range res {
		if res[i].Err == nil {
			m.sub.Settle(msgs[i : i+1])
		} else {
			others = append(others, msgs[i])
		}
	}
	if !fault.Untakeable(err) {
		return err
	}
	// It may be another one that the topic does not take, with which it would come again
	// each time.
	for i := range others {
		if err := m.write(topic, others[i:i+1]); err != nil {
			return err // the topic takes nothing now
		}
	}
	return nil
}

// without is a parked message's headers without those of parking.
func without(mesh []event.Attr) []event.Attr {
	out := make([]event.Attr, 0, len(mesh))
	for _, a := range mesh {
		if a.Name != headerDue && a.Name != headerTopic {
			out = append(out, a)
		}
	}
	return out
}

// byDue is a heap, the first that is due first.
type byDue []parked

func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byDue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byDue) Push(x any)        { *h = append(*h, x.(parked)) }
func (h *byDue) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = parked{}
	*h = old[:len(old)-1]
	return last
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
