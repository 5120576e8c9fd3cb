package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// logStore is a store of a few lines in memory, whose partitions can be taken away
// from this proxy and given back.
type logStore struct {
	store.Store // what is not here is not called
	window      int
	mu          sync.Mutex
	wake        chan struct{}
	topics      map[string]*logTopic
	keys        map[string]string        // that events are stored with, by id
	delayed     func(*event.Event)       // sees what is parked
	fetched     func(logHandle)          // is called before Fetch returns
	refuse      func(*event.Event) error // why an event is not taken; nil where all are
	settling    func()                   // is called before Settle does anything
}

type logTopic struct {
	parts []*logPart
	subs  []*logSub // the first has all partitions that are here
}

type logPart struct {
	name        string
	log         []*event.Event
	settled     map[int]bool
	floor, next int
	here        bool
	lapsed      bool // nobody knows any more that it is here
	epoch       int  // of what was fetched
}

type logSub struct {
	s   *logStore
	t   *logTopic
	req store.SubscribeRequest
}

type logHandle struct {
	p         *logPart
	epoch, at int
}

func newLogStore(window int, topics map[string][]string) *logStore {
	s := &logStore{window: window, wake: make(chan struct{}), topics: map[string]*logTopic{}}
	for name, parts := range topics {
		t := &logTopic{}
		for _, p := range parts {
			t.parts = append(t.parts, &logPart{name: p, settled: map[int]bool{}, here: true})
		}
		s.topics[name] = t
	}
	return s
}

func (s *logStore) wakeLocked() {
	close(s.wake)
	s.wake = make(chan struct{})
}

// append adds an event to a partition.
func (s *logStore) append(topic string, part int, e *event.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.topics[topic].parts[part]
	p.log = append(p.log, e)
	s.wakeLocked()
}

func (s *logStore) refuses(e *event.Event) error {
	if s.refuse == nil {
		return nil
	}
	return s.refuse(e)
}

// Publish appends to the first partition.
func (s *logStore) Publish(_ context.Context, topic string, events []store.Outgoing, _ []store.Result) error {
	for i := range events {
		e := *events[i].Event
		if err := s.refuses(&e); err != nil {
			return err
		}
		s.append(topic, 0, &e)
	}
	return nil
}

// PublishDelayed appends when it is due.
func (s *logStore) PublishDelayed(_ context.Context, topic string, events []store.Outgoing, due []time.Time, _ []store.Result) error {
	for i := range events {
		e := *events[i].Event
		if err := s.refuses(&e); err != nil {
			return err
		}
		s.delayed(&e)
		time.AfterFunc(time.Until(due[i]), func() { s.append(topic, 0, &e) })
	}
	return nil
}

// Subscribe joins.
func (s *logStore) Subscribe(_ context.Context, r store.SubscribeRequest) (store.Subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := &logSub{s, s.topics[r.Topic], r}
	x.t.subs = append(x.t.subs, x)
	return x, nil
}

// lapse makes a partition one that this proxy may have lost.
func (s *logStore) lapse(p *logPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.lapsed = true
}

// revoke takes a partition away; another proxy settles the next n of it.
func (s *logStore) revoke(t *logTopic, p *logPart, n int) (settled []*event.Event) {
	s.mu.Lock()
	p.here = false
	p.resetLocked()
	var told func(string)
	if len(t.subs) > 0 {
		told = t.subs[0].req.Revoked
	}
	s.mu.Unlock()
	if told != nil {
		told(p.name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := p.floor; i < len(p.log) && len(settled) < n; i++ {
		if !p.settled[i] {
			p.settled[i] = true
			settled = append(settled, p.log[i])
		}
	}
	p.advanceLocked()
	return settled
}

// give gives a partition back.
func (s *logStore) give(p *logPart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.here, p.lapsed = true, false
	s.wakeLocked()
}

func (p *logPart) resetLocked() { p.next, p.epoch = p.floor, p.epoch+1 }

func (p *logPart) advanceLocked() {
	for p.settled[p.floor] {
		p.floor++
	}
	p.next = max(p.next, p.floor)
}

// Fetch fetches.
func (x *logSub) Fetch(ctx context.Context, dst []store.Message) (int, error) {
	s := x.s
	for {
		s.mu.Lock()
		n := 0
		if x.t.subs[0] == x {
			for _, p := range x.t.parts {
				for p.here && !p.lapsed && n < len(dst) && p.next < min(len(p.log), p.floor+s.window) {
					if at := p.next; !p.settled[at] {
						dst[n] = store.Message{Event: *p.log[at], StoredKey: s.keys[p.log[at].ID], Pos: store.Position{Partition: p.name, Offset: uint64(at)}, Handle: logHandle{p, p.epoch, at}} //nolint:gosec // an index
						n++
					}
					p.next++
				}
			}
		}
		wake := s.wake
		s.mu.Unlock()
		if n > 0 {
			if s.fetched != nil {
				s.fetched(dst[0].Handle.(logHandle))
			}
			return n, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, fault.From(ctx.Err())
		}
	}
}

// Holds: its partition is here still.
func (x *logSub) Holds(m *store.Message) bool {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	h := m.Handle.(logHandle)
	return h.p.here && !h.p.lapsed && h.epoch == h.p.epoch
}

// Settle settles.
func (x *logSub) Settle(msgs []*store.Message) (stale int) {
	if x.s.settling != nil {
		x.s.settling()
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, m := range msgs {
		h := m.Handle.(logHandle)
		if h.epoch != h.p.epoch || h.p.settled[h.at] {
			stale++
			continue
		}
		h.p.settled[h.at] = true
		h.p.advanceLocked()
	}
	x.s.wakeLocked()
	return stale
}

// Close gives everything back.
func (x *logSub) Close(context.Context) error {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	if x.t.subs[0] == x {
		for _, p := range x.t.parts {
			p.resetLocked()
		}
	}
	x.t.subs = slices.DeleteFunc(x.t.subs, func(o *logSub) bool { return o == x })
	x.s.wakeLocked()
	return nil
}
