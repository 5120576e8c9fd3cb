package rocketmq

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store/ackwindow"
)

// membership says that this member lives, and takes its share of the queues
// whenever members or queues change.
func (x *subscription) membership() {
	retry := minRetry
	for {
		wait := heartbeatEvery
		if err := x.rebalance(x.life); err != nil && x.life.Err() == nil {
			x.s.cfg.Log.Warn("a group cannot be joined; trying again", "topic", x.topic, "group", x.group, "error", err)
			wait, retry = retry, min(2*retry, maxRetry)
			x.mu.Lock()
			x.failed = nil
			if fault.ClassOf(err) == fault.NotFound {
				x.failed = err
			}
			x.wakeLocked()
			x.mu.Unlock()
		} else {
			retry = minRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-x.moved:
			timer.Stop()
		case <-x.life.Done():
			timer.Stop()
			return
		}
	}
}

// rebalance makes this member's queues those that are its share: all members
// divide the sorted queues among the sorted members, as RocketMQ's averaging
// allocation does.
func (x *subscription) rebalance(ctx context.Context) error {
	r, err := x.c.route(ctx, x.topic, false)
	if err != nil {
		return err
	}
	beat, err := json.Marshal(map[string]any{"clientID": x.client, "producerDataSet": []any{}, "consumerDataSet": []any{map[string]any{
		"groupName": x.group, "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING", "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "unitMode": false,
		"subscriptionDataSet": []any{map[string]any{"topic": x.topic, "subString": "*", "tagsSet": []any{}, "codeSet": []any{}, "subVersion": 1, "expressionType": "TAG", "classFilterMode": false}}}}})
	if err != nil {
		return err
	}
	// A broker that is away must not stop the queues of the others.
	var failed error
	var members []string
	alive := map[string]bool{}
	for _, name := range sortedKeys(r.brokers) {
		// Not cut short by Close: a broker may take a heartbeat that waits in its
		// queue after it has heard that the member has left, and would keep queues
		// for it for two minutes.
		if _, err := x.c.ask(context.WithoutCancel(ctx), r.brokers[name], reqHeartbeat, nil, beat); err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		alive[name] = true
		if members == nil {
			if members, err = x.members(ctx, r.brokers[name]); err != nil {
				failed = cmp.Or(failed, err)
			}
		}
	}
	if members == nil {
		return cmp.Or(failed, unavailable(fmt.Errorf("no broker knows the members of %s", x.group)))
	}
	err = x.take(ctx, r, share(r.read, members, x.client), alive)
	x.recommit(ctx)
	return cmp.Or(failed, err)
}

// members are the client ids of the group's members, as a broker knows them.
func (x *subscription) members(ctx context.Context, addr string) ([]string, error) {
	cmd, err := x.c.ask(ctx, addr, reqConsumers, map[string]string{"consumerGroup": x.group}, nil)
	if err != nil {
		return nil, err
	}
	var list struct{ ConsumerIDList []string }
	if err := decodeJSON(cmd.Body, &list); err != nil {
		return nil, unavailable(err)
	}
	return list.ConsumerIDList, nil
}

// recommit looks after the offsets of brokers that were away: one that was killed
// has forgotten the commits of its last seconds, and a queue on which nothing
// more is settled would not be committed again.
func (x *subscription) recommit(ctx context.Context) {
	x.mu.Lock()
	var check []*ownership
	for _, o := range x.order {
		if now := x.c.current(o.addr); now != nil && now != o.conn {
			check = append(check, o)
		}
	}
	x.mu.Unlock()
	for _, o := range check {
		if x.recommitOne(ctx, o) != nil {
			return // the next heartbeat looks again
		}
	}
}

func (x *subscription) recommitOne(ctx context.Context, o *ownership) error {
	o.commit.Lock()
	defer o.commit.Unlock()
	now := x.c.current(o.addr)
	at, ok, err := x.c.committed(ctx, o.addr, x.topic, x.group, o.q)
	if err != nil {
		return err
	}
	x.mu.Lock()
	want, gone := o.committed, o.revoked
	x.mu.Unlock()
	if !gone && (!ok || at < want) {
		if err := x.c.commit(ctx, o.addr, x.topic, x.group, o.q, want); err != nil {
			return err
		}
	}
	x.mu.Lock()
	o.conn = now
	x.mu.Unlock()
	return nil
}

func sortedKeys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// share is RocketMQ's averaging allocation.
func share(queues []queue, members []string, me string) []queue {
	members = slices.Clone(members)
	slices.Sort(members)
	i := slices.Index(members, me)
	if i < 0 {
		return nil
	}
	n, k := len(queues), len(members)
	each, more := n/k, n%k
	from := i*each + min(i, more)
	to := from + each
	if i < more {
		to++
	}
	return queues[from:to]
}

// take gives up what is not in want and begins with what is new.
// Of brokers that are not alive nothing new is taken.
func (x *subscription) take(ctx context.Context, r *route, want []queue, alive map[string]bool) error {
	x.mu.Lock()
	x.failed = nil
	var gone []*ownership
	for q, o := range x.owned {
		if !slices.Contains(want, q) || r.brokers[q.broker] != o.addr {
			gone = append(gone, o)
			x.dropLocked(o)
		}
	}
	x.mu.Unlock()
	x.release(gone)
	var failed error
	for _, q := range want {
		x.mu.Lock()
		_, mine := x.owned[q]
		x.mu.Unlock()
		if mine || !alive[q.broker] {
			continue
		}
		addr := r.brokers[q.broker]
		conn := x.c.current(addr)
		at, ok, err := x.c.committed(ctx, addr, x.topic, x.group, q)
		if err == nil && !ok {
			// A queue that came after the group: from its beginning.
			at, err = x.c.offset(ctx, addr, reqMinOffset, x.topic, q, nil)
		}
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		octx, cancel := context.WithCancel(x.life)
		o := &ownership{q: q, addr: addr, conn: conn, cancel: cancel, ended: make(chan struct{}), window: ackwindow.New(x.s.cfg.Window, at),
			committed: at, again: at + int64(x.s.cfg.Window), room: make(chan struct{})}
		x.mu.Lock()
		x.owned[q] = o
		x.order = append(x.order, o)
		x.mu.Unlock()
		go func() {
			defer close(o.ended)
			x.pull(octx, o, at)
		}()
	}
	return failed
}

// dropLocked takes a queue away; from here on nothing of it is delivered or
// settled.
func (x *subscription) dropLocked(o *ownership) {
	o.revoked, o.buffer = true, nil
	o.cancel()
	delete(x.owned, o.q)
	x.order = slices.DeleteFunc(x.order, func(p *ownership) bool { return p == o })
}

// release waits for the pullers of queues that were given up and commits what
// was settled of them, for the next owner.
func (x *subscription) release(gone []*ownership) {
	for _, o := range gone {
		<-o.ended
		x.commitOne(context.Background(), o)
	}
}
