// Package delay gives a store that cannot hold messages back a way to: it parks
// them in topics of their own, one for each class of delays, which are read by a
// group whose members wait until a message is due and then write it where it
// belongs. So a delayed message costs one more write, and is as durable as others.
//
// A member holds as many messages as the store's window lets it: while fewer wait
// in a class, each is on time. Of more, those that came first are looked at first,
// and one that is due earlier than those may be late by what its class spans.
//
// A topic that does not take what is due for it holds up no others: each is written to
// by itself, and tried again after a pause of its own. What stays so in the way of others, or
// for long, is parked anew, behind them, and only then settled where it was. So it takes no
// room for ever. But where a member holds nothing else, what comes after that waits until it
// is out of the way, some seconds for each maxHeld of them.
package delay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
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
	// lookAgain is how soon it is seen that the clock was set, or the machine was asleep.
	lookAgain = 10 * time.Second
	minRetry  = 50 * time.Millisecond
	maxRetry  = 2 * time.Second
	// minFailing is how long a topic must fail before what is in the way of others is parked
	// anew, maxFailing how long one that is in nobody's way waits here for its topic.
	minFailing = 2 * time.Second
	maxFailing = time.Minute
	// goneAfter is how long each answer must be that there is no such topic, before what is
	// parked for it is dropped: one is missing for a moment where it is made anew, or to a
	// broker that has just started. goneUnless is how long may lie between two answers.
	goneAfter  = 10 * time.Minute
	goneUnless = time.Minute
	// referTimeout bounds how long who takes what topics do not take is asked at a time.
	referTimeout = 5 * time.Second
	// lookTimeout bounds one look at whether something waits, closeTimeout leaving a group.
	lookTimeout  = 5 * time.Second
	closeTimeout = 5 * time.Second
	// notYet is how long the topics of a store may be missing before it is told: who makes
	// them may be at it.
	notYet = 30 * time.Second
	// lookEvery is how often it is looked whether something waits in a class that nobody
	// need read before, an eighth of its shortest delay at most, maxLook that of those that
	// wait for longer: so there is time to join the group, with all others who found it.
	// A class is left when nothing has waited in it for lookEvery.
	lookEvery = 8 * time.Second
	maxLook   = time.Minute
)

// classes are the shortest delays of each class. A class spans a factor of eight. The first
// two are always read; of the others, readers cost servers more than what they do is worth.
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
	s := &Store{inner: in, cfg: cfg, clock: d.Clock, missing: map[string]*absence{}}
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

	mu      sync.Mutex
	missing map[string]*absence // by topic
}

// absence is that of a topic.
type absence struct{ since, last time.Time }

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

// Trim removes what a group is done with, if the store is a store.Trimmer.
func (s *Store) Trim(ctx context.Context, topic, group string) error {
	if t, ok := s.inner.(store.Trimmer); ok {
		return t.Trim(ctx, topic, group)
	}
	return nil
}

func (s *Store) topic(class int) string { return names.DelayTopic(s.cfg.UID, class) }

// OwnTopics are the topics of the classes; see store.TopicOwner.
func (s *Store) OwnTopics() []store.OwnTopic {
	out := make([]store.OwnTopic, len(classes))
	for i := range out {
		out[i] = store.OwnTopic{Spec: store.TopicSpec{Name: s.topic(i), Partitions: 1}, Group: s.topic(i), Delay: classes[i]}
	}
	return out
}

// Subscribe joins a group. Whoever reads a topic wants what is parked for it, so
// from the first time on the store also looks after that.
func (s *Store) Subscribe(ctx context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	s.begin.Do(func() {
		for i := range classes {
			s.work.Go(func() { s.run(i) })
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
				e.Mesh = parking(e.Mesh, topic, due[i])
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

// gone tells how a write to a topic was answered. It reports whether all answers for long
// were that there is no such topic.
func (s *Store) gone(topic string, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || fault.ClassOf(err) != fault.NotFound {
		delete(s.missing, topic)
		return false
	}
	now := time.Now()
	maps.DeleteFunc(s.missing, func(_ string, a *absence) bool { return now.Sub(a.last) > goneUnless })
	a := s.missing[topic]
	if a == nil {
		a = &absence{since: now}
		s.missing[topic] = a
	}
	a.last = now
	return now.Sub(a.since) >= goneAfter
}

// run looks after a class until the store closes.
func (s *Store) run(class int) {
	topic, began := s.topic(class), time.Now()
	always := classes[class]/8 < lookEvery
	log := outage.New(s.cfg.Log.With("topic", topic), "a topic of delayed events cannot be read; trying again", "a topic of delayed events is read again")
	retry := minRetry
	good := func() { retry = minRetry; log.Is(nil) }
	for s.life.Err() == nil {
		waits, err := true, error(nil)
		if !always {
			waits, err = s.waits(topic)
		}
		if err == nil && waits {
			err = s.follow(topic, always, good)
		}
		if s.life.Err() != nil {
			return
		}
		if err == nil {
			good()
			every := min(classes[class]/8, maxLook)
			pause(s.life, every/2+rand.N(every/2))
			continue
		}
		if fault.ClassOf(err) != fault.NotFound || time.Since(began) >= notYet {
			log.Is(err)
		}
		pause(s.life, retry)
		retry = min(2*retry, maxRetry)
	}
}

// waits reports whether something is in a class that its group has not settled.
func (s *Store) waits(topic string) (bool, error) {
	ctx, cancel := context.WithTimeout(s.life, lookTimeout)
	defer cancel()
	lag, err := s.inner.Lag(ctx, topic, topic)
	return slices.ContainsFunc(lag, func(l store.PartitionLag) bool { return l.Committed < l.End }), err
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
