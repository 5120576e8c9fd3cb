package rocketmq

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/pkg/outage"
	"github.com/weft-mesh/weft/store/ackwindow"
)

// membership says that this member lives, and takes its share of the queues
// whenever members or queues change.
func (x *subscription) membership() {
	log := outage.New(x.s.cfg.Log.With("topic", x.topic, "group", x.group), "a group cannot be joined; trying again", "a group is joined again")
	retry := minRetry
	for {
		wait := heartbeatEvery
		locked, err := x.rebalance(x.life)
		if !locked {
			wait = lockAgain
		}
		if err != nil && x.life.Err() == nil {
			log.Is(err)
			wait, retry = retry, min(2*retry, maxRetry)
			x.mu.Lock()
			x.failed = nil
			if fault.ClassOf(err) == fault.NotFound {
				x.failed = err
			}
			x.wakeLocked()
			x.mu.Unlock()
		} else {
			if err == nil {
				log.Is(nil)
			}
			retry, wait = minRetry, min(wait, x.c.heartbeat(x.topic))
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
// allocation does. locked is false where it must ask again soon for a queue that
// another member has locked.
func (x *subscription) rebalance(ctx context.Context) (locked bool, err error) {
	locked = true
	r, err := x.c.route(ctx, x.topic, false)
	if err != nil {
		return locked, err
	}
	members, alive, failed := x.meet(ctx, r)
	if len(members) == 0 {
		return locked, cmp.Or(failed, unavailable(fmt.Errorf("no broker knows the members of %s", x.group)))
	}
	want := share(r.read, members, x.client)
	failed = cmp.Or(failed, x.startOver(ctx))
	x.giveUp(func(o *ownership) bool { return !slices.Contains(want, o.q) || r.brokers[o.q.broker] != o.addr })
	x.unlock(ctx, func(q queue) bool { return slices.Contains(want, q) && r.brokers[q.broker] == x.locked[q] })
	x.unlockGone(ctx, r, members, alive)
	ours, lerr := x.lock(ctx, r, want, alive)
	x.giveUp(func(o *ownership) bool { return !x.holdsLocked(o) })
	have, err := x.take(ctx, r, want, alive, ours, len(members) == 1)
	x.recommit(ctx)
	return have, cmp.Or(failed, lerr, err)
}

// meet tells each broker that this member lives, and gives the members in their order and
// the brokers that answered. Whom any broker knows is a member: one that has just come back
// knows few of them, and who it knows would read what others read already.
func (x *subscription) meet(ctx context.Context, r *route) (members []string, alive map[string]bool, failed error) {
	beat, err := json.Marshal(map[string]any{"clientID": x.client, "producerDataSet": []any{}, "consumerDataSet": []any{map[string]any{
		"groupName": x.group, "consumeType": "CONSUME_PASSIVELY", "messageModel": "CLUSTERING", "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "unitMode": false,
		"subscriptionDataSet": []any{map[string]any{"topic": x.topic, "subString": "*", "tagsSet": []any{}, "codeSet": []any{}, "subVersion": 1, "expressionType": "TAG", "classFilterMode": false}}}}})
	if err != nil {
		return nil, nil, err
	}
	known := map[string]bool{}
	alive = map[string]bool{}
	// A broker that is away must not stop the queues of the others.
	for _, name := range sortedKeys(r.brokers) {
		// Not cut short by Close: a broker may take a heartbeat that waits in its
		// queue after it has heard that the member has left, and would keep queues
		// for it for two minutes.
		if _, err := x.c.ask(context.WithoutCancel(ctx), r.brokers[name], reqHeartbeat, nil, beat); err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		alive[name] = true
		some, err := x.members(ctx, r.brokers[name])
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		for _, m := range some {
			known[m] = true
		}
	}
	return slices.Sorted(maps.Keys(known)), alive, failed
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

// recommit looks after the offsets of queues on which nothing more is settled, which
// would not be committed again. A broker that was killed has forgotten the commits of its
// last seconds, and as long as it does not know all members yet, one of them may take
// another's queue, begin where the broker is, and leave that behind as the group's place.
func (x *subscription) recommit(ctx context.Context) {
	x.mu.Lock()
	owned := slices.Clone(x.order)
	x.mu.Unlock()
	away := map[string]bool{}
	for _, o := range owned {
		if x.c.current(o.addr) != nil && !away[o.addr] {
			away[o.addr] = x.recommitOne(ctx, o) != nil // the next heartbeat looks again
		}
	}
}

func (x *subscription) recommitOne(ctx context.Context, o *ownership) error {
	o.commit.Lock()
	defer o.commit.Unlock()
	at, ok, err := x.c.committed(ctx, o.addr, x.topic, x.group, o.q)
	if err != nil {
		return err
	}
	x.mu.Lock()
	want, gone := o.committed, o.revoked || o.back
	x.mu.Unlock()
	if !gone && (!ok || at < want) {
		end, err := x.c.offset(ctx, o.addr, reqMaxOffset, x.topic, o.q, nil)
		if err != nil {
			return err
		}
		gone = want > end // the broker has lost more than commits; its puller learns it
	}
	if !gone && (!ok || at < want) {
		return x.c.commit(ctx, o.addr, x.topic, x.group, o.q, want)
	}
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

// share is RocketMQ's averaging allocation, to members in their order.
func share(queues []queue, members []string, me string) []queue {
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

// giveUp drops the queues of which it is true, and leaves them to their next owner:
// nothing is delivered any more, and what was settled is committed.
func (x *subscription) giveUp(it func(*ownership) bool) {
	x.mu.Lock()
	var gone []*ownership
	for _, o := range x.owned {
		if it(o) {
			gone = append(gone, o)
		}
	}
	for _, o := range gone {
		x.dropLocked(o)
	}
	x.mu.Unlock()
	for _, o := range gone {
		if x.ordered && x.revoked != nil {
			x.revoked(o.q.name())
		}
		o.work.Wait()
		x.commitOne(context.Background(), o)
	}
}

// startOver has the group begin anew, with the oldest message that there is, in queues
// whose log has gone back, as that of a broker that was restored from a backup: which of
// its messages have come after the restore nobody knows.
func (x *subscription) startOver(ctx context.Context) (failed error) {
	x.mu.Lock()
	var back []*ownership
	for _, o := range x.order {
		if o.back {
			back = append(back, o)
		}
	}
	x.mu.Unlock()
	for _, o := range back {
		begin, err := x.c.offset(ctx, o.addr, reqMinOffset, x.topic, o.q, nil)
		if err == nil {
			err = x.c.commit(ctx, o.addr, x.topic, x.group, o.q, begin)
		}
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		x.s.cfg.Log.Warn("a queue has lost its end, as by the restore of a backup; the group begins with the oldest event that there is", "topic", x.topic, "group", x.group, "queue", o.q.name(), "offset", begin)
		x.giveUp(func(p *ownership) bool { return p == o })
	}
	return failed
}

// take begins with what is new of want; ours are the queues that are locked. Of brokers
// that are not alive nothing new is taken. all is false where another member has some of
// what is left.
func (x *subscription) take(ctx context.Context, r *route, want []queue, alive map[string]bool, ours map[queue]lock, alone bool) (all bool, failed error) {
	x.mu.Lock()
	x.failed = nil
	x.mu.Unlock()
	maps.DeleteFunc(x.waits, func(q queue, _ time.Duration) bool { return !slices.Contains(want, q) })
	all = true
	for _, q := range want {
		x.mu.Lock()
		_, mine := x.owned[q]
		x.mu.Unlock()
		if mine || !alive[q.broker] {
			continue
		}
		held, locked := ours[q]
		if !x.turn(q, locked, alone) {
			all = false
			continue
		}
		delete(x.waits, q)
		addr := r.brokers[q.broker]
		at, _, _, err := x.c.place(ctx, addr, x.topic, x.group, q)
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		octx, cancel := context.WithCancel(x.life)
		o := &ownership{q: q, addr: addr, cancel: cancel, commits: ackwindow.NewCommits(), window: ackwindow.New(x.s.cfg.Window, at),
			committed: at, again: at + int64(x.s.cfg.Window), room: make(chan struct{}), lock: held}
		x.mu.Lock()
		x.owned[q] = o
		x.order = append(x.order, o)
		o.work.Go(func() { x.pull(octx, o, at) })
		o.work.Go(func() { x.commits(octx, o) })
		x.mu.Unlock()
	}
	return all, failed
}

// dropLocked takes a queue away; from here on nothing of it is delivered or
// settled.
func (x *subscription) dropLocked(o *ownership) {
	o.revoked, o.buffer = true, nil
	o.cancel()
	delete(x.owned, o.q)
	x.order = slices.DeleteFunc(x.order, func(p *ownership) bool { return p == o })
}
