package rocketmq

import (
	"context"
	"encoding/json"
	"sync"
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
	events chan store.Message
	life   context.Context
	end    context.CancelFunc
	work   sync.WaitGroup
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
	t := &tail{s: s, topic: r.Topic, events: make(chan store.Message, prefetch)}
	t.life, t.end = context.WithCancel(s.life)
	seen := map[queue]bool{}
	for _, q := range rt.read {
		at, err := s.start(ctx, rt.brokers[q.broker], r.Topic, q, r.From)
		if err != nil {
			t.end()
			t.work.Wait()
			return nil, err
		}
		seen[q] = true
		t.read(q, rt.brokers[q.broker], at)
	}
	t.work.Go(func() { t.follow(seen) })
	return t, nil
}

// follow looks for queues that come later; they are read from their beginning.
func (t *tail) follow(seen map[queue]bool) {
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
			if !seen[q] {
				seen[q] = true
				t.read(q, rt.brokers[q.broker], 0)
			}
		}
	}
}

// read reads one queue until the tail ends. Its broker may move.
func (t *tail) read(q queue, addr string, at int64) {
	t.work.Go(func() {
		p := puller{c: t.s.c, addr: addr, topic: t.topic, group: tailGroup, q: q, next: at}
		retry := minRetry
		for t.life.Err() == nil {
			msgs, err := p.pull(t.life)
			if err != nil {
				pause(t.life, &retry)
				if rt, err := t.s.c.route(t.life, t.topic, false); err == nil && rt.brokers[q.broker] != "" {
					p.addr = rt.brokers[q.broker]
				}
				continue
			}
			retry = minRetry
			for _, m := range msgs {
				select {
				case t.events <- m:
				case <-t.life.Done():
					return
				}
			}
		}
	})
}

// Next waits for messages.
func (t *tail) Next(ctx context.Context, dst []store.Message) (int, error) {
	select {
	case m := <-t.events:
		dst[0] = m
	case <-t.life.Done():
		return 0, fault.New(fault.Unavailable, "rocketmq.tail", "store-closed", "the tail or its store is closed")
	case <-ctx.Done():
		return 0, fault.From(ctx.Err())
	}
	n := 1
	for n < len(dst) {
		select {
		case m := <-t.events:
			dst[n] = m
			n++
			continue
		default:
		}
		break
	}
	return n, nil
}

// Close ends the tail.
func (t *tail) Close(context.Context) error {
	t.end()
	t.work.Wait()
	return nil
}
