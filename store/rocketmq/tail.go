package rocketmq

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// tailGroup is the group that pulls of tails name: brokers want one. Nothing is
// committed for it.
const tailGroup = "weft-tail"

// tail reads every queue of a topic, each by a goroutine, into one channel.
type tail struct {
	s      *Store
	topic  string
	events chan tailed
	failed chan error // why nothing can be read, said once for each try; capacity 1
	life   context.Context
	end    context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex
	queues map[queue]*tailQueue
}

// tailed is a message of a queue.
type tailed struct {
	store.Message
	q *tailQueue
}

// tailQueue is where a tail is in a queue.
type tailQueue struct {
	given  int64        // all before it was given by Next, which alone knows it
	read   atomic.Int64 // all before it is in the channel, or was taken from it
	behind atomic.Bool  // the broker has said that there is more
	// waiting is how many bytes were pulled and not given; no more are pulled from
	// prefetchBytes on, until room says that there are less.
	waiting atomic.Int64
	room    chan struct{} // capacity 1
}

// Tail reads a topic without a group. Where it begins in each queue is fixed when
// it returns.
func (s *Store) Tail(ctx context.Context, r store.TailRequest) (store.Tail, error) {
	rt, err := s.c.route(ctx, r.Topic, true)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]any{"groupName": tailGroup, "consumeEnable": true, "consumeFromMinEnable": true, "consumeBroadcastEnable": true,
		"retryQueueNums": 1, "retryMaxTimes": 16, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 1, "notifyConsumerIdsChangedEnable": false})
	if err != nil {
		return nil, err
	}
	for _, addr := range rt.brokers {
		if _, err := s.c.ask(ctx, addr, reqGroup, nil, body); err != nil {
			return nil, err
		}
	}
	t := &tail{s: s, topic: r.Topic, events: make(chan tailed, prefetch), failed: make(chan error, 1), queues: map[queue]*tailQueue{}}
	t.life, t.end = context.WithCancel(s.life)
	for _, q := range rt.read {
		at, err := s.start(ctx, rt.brokers[q.broker], r.Topic, q, r.From)
		if err != nil {
			t.end()
			t.work.Wait()
			return nil, err
		}
		t.read(q, rt.brokers[q.broker], at)
	}
	t.work.Go(t.follow)
	return t, nil
}

// follow looks for queues that come later; they are read from their beginning.
func (t *tail) follow() {
	tick := time.NewTicker(routeAge)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.life.Done():
			return
		}
		rt, err := t.s.c.route(t.life, t.topic, false)
		if err != nil {
			continue
		}
		for _, q := range rt.read {
			if t.queue(q) == nil {
				t.read(q, rt.brokers[q.broker], 0)
			}
		}
	}
}

// read reads one queue until the tail ends. Its broker may move.
func (t *tail) read(q queue, addr string, at int64) {
	tq := &tailQueue{given: at, room: make(chan struct{}, 1)}
	tq.read.Store(at)
	t.mu.Lock()
	t.queues[q] = tq
	t.mu.Unlock()
	t.work.Go(func() {
		p := puller{c: t.s.c, addr: addr, topic: t.topic, group: tailGroup, q: q, next: at}
		retry := minRetry
		for t.life.Err() == nil {
			asked := p.next
			msgs, err := p.pull(t.life)
			if err == nil && p.next < asked {
				// The log has gone back: from its beginning, as members do.
				p.next, err = t.s.c.offset(t.life, p.addr, reqMinOffset, t.topic, q, nil)
				if err != nil {
					p.next = asked
				}
			}
			if err != nil {
				if pause(t.life, &retry); t.life.Err() != nil {
					return // or whoever ends would look where the topic is
				}
				rt, gone := t.s.c.route(t.life, t.topic, false)
				switch {
				case gone == nil && rt.brokers[q.broker] != "":
					p.addr = rt.brokers[q.broker]
				case fault.ClassOf(gone) == fault.NotFound: // all brokers say so, and not only this one
					t.say(gone)
				}
				if store.Why(err) == "AccessDenied" {
					t.say(err)
				}
				continue
			}
			tq.behind.Store(p.next < p.end)
			for i := range msgs {
				tq.waiting.Add(int64(msgs[i].Held()))
			}
			for _, m := range msgs {
				select {
				case t.events <- tailed{m, tq}:
				case <-t.life.Done():
					return
				}
			}
			tq.read.Store(p.next)
			for tq.waiting.Load() >= prefetchBytes {
				select {
				case <-tq.room:
				case <-t.life.Done():
					return
				}
			}
			p.pace(t.life, &retry)
		}
	})
}

// say has Next tell why nothing can be read.
func (t *tail) say(err error) {
	select {
	case t.failed <- err:
	default:
	}
}

// Next waits for messages.
func (t *tail) Next(ctx context.Context, dst []store.Message) (int, error) {
	take := func(at int, m tailed) {
		dst[at], m.q.given = m.Message, int64(m.Pos.Offset)+1 //nolint:gosec // offsets are below 2^63
		m.q.waiting.Add(-int64(m.Held()))
		poke(m.q.room)
	}
	select {
	case m := <-t.events:
		take(0, m)
	case err := <-t.failed:
		return 0, err
	case <-t.life.Done():
		return 0, fault.New(fault.Unavailable, "rocketmq.tail", "store-closed", "the tail or its store is closed")
	case <-ctx.Done():
		return 0, fault.From(ctx.Err())
	}
	n := 1
	for n < len(dst) {
		select {
		case m := <-t.events:
			take(n, m)
			n++
			continue
		default:
		}
		break
	}
	return n, nil
}

// AtEnd reports whether nothing is here that Next has not given, and no broker has said
// that there is more.
func (t *tail) AtEnd() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range t.queues {
		if q.behind.Load() {
			return false
		}
	}
	return len(t.events) == 0
}

// Mark asks the brokers where the queues end now.
func (t *tail) Mark(ctx context.Context) (passed func() bool, err error) {
	rt, err := t.s.c.route(ctx, t.topic, true)
	if err != nil {
		return nil, err
	}
	ends := map[queue]int64{}
	for _, q := range rt.read {
		if ends[q], err = t.s.c.offset(ctx, rt.brokers[q.broker], reqMaxOffset, t.topic, q, nil); err != nil {
			return nil, err
		}
	}
	return func() bool {
		for q, end := range ends {
			tq := t.queue(q)
			switch {
			case tq == nil && end == 0: // it comes later, and has nothing yet
			case tq == nil:
				return false
			case tq.given < end && (tq.read.Load() < end || len(t.events) > 0):
				return false
			}
		}
		return true
	}, nil
}

// queue is where the tail is in a queue; nil where it does not read it.
func (t *tail) queue(q queue) *tailQueue {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queues[q]
}

// Close ends the tail.
func (t *tail) Close(context.Context) error {
	t.end()
	t.work.Wait()
	return nil
}
