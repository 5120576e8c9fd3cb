package rocketmq

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// Times of locks. A broker forgets one that was not renewed for 60 s.
const (
	// lockFor is how long after it was asked for a lock counts here.
	lockFor = 30 * time.Second
	// lockAgain is how soon a member asks again for what another one holds.
	lockAgain = 250 * time.Millisecond
	// handOver is how long a member without order waits for a queue that is its own
	// now and that another one has locked, who hears of that once its route is renewed.
	handOver = routeAge + heartbeatEvery
)

// bootNow is the clock of locks: brokers forget them also while the machine sleeps.
var bootNow = clock.SinceBoot

// lock is a queue's lock at its broker, as of when it was last renewed. Brokers keep
// locks in memory: one that started anew may have given it to another member, so a
// lock lasts no longer than the connection on which it was asked for.
type lock struct {
	at   time.Duration // of bootNow
	conn *remoting.Conn
}

// holdsLocked reports whether nobody else can have the queue or, without order, whether
// nobody else is known to have it.
func (x *subscription) holdsLocked(o *ownership) bool {
	if o.revoked || o.lost {
		return false
	}
	if !x.ordered {
		return true
	}
	select {
	case <-o.lock.conn.Done():
		return false
	default:
		return bootNow()-o.lock.at < lockFor
	}
}

// lockLostLocked reports whether another member may have had the queue since this one had
// its lock.
func (o *ownership) lockLostLocked() bool {
	if o.lost || o.lock.conn == nil {
		return o.lost
	}
	select {
	case <-o.lock.conn.Done():
		return true
	default:
		return false
	}
}

// Holds reports whether a message is still this member's to deliver.
func (x *subscription) Holds(m *store.Message) bool {
	h, ok := m.Handle.(handle)
	x.mu.Lock()
	defer x.mu.Unlock()
	held := ok && x.holdsLocked(h.o)
	if ok && !held && !h.o.revoked {
		poke(x.moved) // it is revoked at once
	}
	return held
}

// lock locks the queues of want, or renews their locks, and gives those that are
// locked.
func (x *subscription) lock(ctx context.Context, r *route, want []queue, alive map[string]bool) (map[queue]lock, error) {
	ours, answered := map[queue]lock{}, map[string]bool{}
	var failed error
	for _, name := range sortedKeys(r.brokers) {
		var of []queue
		for _, q := range want {
			if q.broker == name && alive[name] {
				of = append(of, q)
				x.locked[q] = r.brokers[name]
			}
		}
		if len(of) == 0 {
			continue
		}
		held := lock{at: bootNow(), conn: x.c.current(r.brokers[name])}
		// Not cut short by Close: what the broker locks after it would stay locked.
		cmd, err := x.c.ask(context.WithoutCancel(ctx), r.brokers[name], reqLock, nil, x.lockBody(x.client, of))
		if err != nil || held.conn == nil {
			failed = cmp.Or(failed, err)
			continue
		}
		var answer struct {
			LockOKMQSet []struct {
				BrokerName string
				QueueID    int
			}
		}
		if err := decodeJSON(cmd.Body, &answer); err != nil {
			failed = cmp.Or(failed, unavailable(err))
			continue
		}
		answered[name] = true
		for _, q := range answer.LockOKMQSet {
			ours[queue{q.BrokerName, q.QueueID}] = held
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for q, o := range x.owned {
		held, still := ours[q]
		switch {
		case still && x.holdsLocked(o):
			o.lock = held
		case !still && answered[q.broker]:
			// It is another's; not so what was taken without a lock.
			o.lost = o.lock.conn != nil
		}
	}
	return ours, failed
}

// turn reports whether a queue that is not this member's yet may be read. Without order
// that is so also without a lock, after handOver, or at once where nobody else is there:
// a member that was killed leaves locks behind.
func (x *subscription) turn(q queue, locked, alone bool) bool {
	if locked || x.ordered {
		return locked
	}
	since, waits := x.waits[q]
	if !waits {
		since = bootNow()
		x.waits[q] = since
	}
	return alone || bootNow()-since >= handOver
}

// unlockGone has brokers forget what members had locked that are members no more, which
// else they would for a minute. With order they keep it: whose connection is lost delivers
// until it knows that.
func (x *subscription) unlockGone(ctx context.Context, r *route, members []string, alive map[string]bool) {
	was := x.met
	x.met = meeting{r.read, members}
	if x.ordered {
		return
	}
	for _, m := range was.members {
		if slices.Contains(members, m) {
			continue
		}
		at := map[string][]queue{}
		for _, q := range share(was.queues, was.members, m) {
			if alive[q.broker] {
				at[r.brokers[q.broker]] = append(at[r.brokers[q.broker]], q)
			}
		}
		x.unlockOf(ctx, m, at)
	}
}

// unlock lets other members have the queues that are not kept, at once.
func (x *subscription) unlock(ctx context.Context, keep func(queue) bool) {
	at := map[string][]queue{}
	for q, addr := range x.locked {
		if !keep(q) {
			at[addr] = append(at[addr], q)
			delete(x.locked, q)
		}
	}
	x.unlockOf(ctx, x.client, at)
}

// unlockOf unlocks a member's queues, by address of their brokers.
func (x *subscription) unlockOf(ctx context.Context, member string, at map[string][]queue) {
	for addr, of := range at {
		if _, err := x.c.ask(context.WithoutCancel(ctx), addr, reqUnlock, nil, x.lockBody(member, of)); err != nil {
			x.s.cfg.Log.Debug("queues cannot be unlocked; the broker forgets their locks in a minute", "topic", x.topic, "broker", addr, "error", err)
		}
	}
}

// lockBody names queues and whose locks it is about.
func (x *subscription) lockBody(member string, of []queue) []byte {
	type messageQueue struct {
		Topic      string `json:"topic"`
		BrokerName string `json:"brokerName"`
		QueueID    int    `json:"queueId"`
	}
	set := make([]messageQueue, len(of))
	for i, q := range of {
		set[i] = messageQueue{x.topic, q.broker, q.id}
	}
	body, _ := json.Marshal(map[string]any{"consumerGroup": x.group, "clientId": member, "mqSet": set}) // strings and numbers
	return body
}
