package delivery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/latest"
	"github.com/weft-mesh/weft/pkg/names"
)

// step is an operation of the model, with what it chooses by.
type step struct{ op, a, b int }

// orderModel is delivery in order, and what it must be.
type orderModel struct {
	w       *world
	st      *logStore
	orders  *logTopic
	sub     *snapshot.Subscription
	members []Member
	given   []given // everything, the settled too
	seqs    map[string]int
	err     error

	mu       sync.Mutex
	done     map[string]string // why an event will not come again
	failed   map[string]bool   // keys and events that have failed
	rejected map[string]bool

	// homes are the members that got keys, while those who are there stay the same.
	homes map[string]Member
}

// given is a delivery that a member got.
type given struct {
	m        Member
	id       uint64
	event    string
	until    time.Time // when it times out
	finished bool
}

const orderKeys, orderParts, orderWindow = 5, 2, 6

// TestOrderModel: members join, leave, settle, fail, extend and time out, partitions
// are lost to another proxy and come back, while events of some keys, and of none, are
// published. Nothing is lost. One event of a key is out at a time, and it is the
// oldest that is not done with. No more is held than may be, and a key that is blocked
// holds up no other while there is room. Those that an event blocks whose attempts are over
// are known.
func TestOrderModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := 1 + evenly(250).Draw(rt, "number")
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{evenly(16).Draw(rt, "op"), evenly(64).Draw(rt, "a"), evenly(64).Draw(rt, "b")}
		}), n, n).Draw(rt, "steps")
		block, dead, inFlight := rapid.Bool().Draw(rt, "block"), rapid.Bool().Draw(rt, "dead"), rapid.IntRange(1, 16).Draw(rt, "max_in_flight")
		var err error
		synctest.Test(t, func(t *testing.T) {
			err = runOrderModel(t, steps, func(s *snapshot.Subscription) {
				s.Ordered, s.Block, s.MaxInFlight, s.MaxAttempts = true, block, inFlight, 2
				s.MinBackoff, s.MaxBackoff = 2*time.Second, 2*time.Second // longer than inMemory
				if dead {
					s.DeadLetter = "dead"
				}
			})
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// evenly draws from 0 to n-1; rapid's ranges favour what is small.
func evenly(n int) *rapid.Generator[int] {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return rapid.SampledFrom(all)
}

func runOrderModel(t *testing.T, steps []step, change func(*snapshot.Subscription)) error {
	o := &orderModel{w: &world{T: t, ctx: context.Background()}, seqs: map[string]int{}, done: map[string]string{}, failed: map[string]bool{}, rejected: map[string]bool{}, homes: map[string]Member{}}
	o.st = newLogStore(orderWindow, map[string][]string{"orders": {"p0", "p1"}, "dead": {""}, names.RetryTopic(uidSub): {""}})
	o.st.delayed = func(e *event.Event) {
		if e.Key("") != "" {
			o.wrong("%s is parked, and will be overtaken", e.ID)
		}
	}
	o.orders = o.st.topics["orders"]
	o.w.st = o.st
	o.w.snaps = latest.New(o.w.snapshot(change))
	o.sub = o.w.snaps.Get().Subscriptions[snapshot.Key{Namespace: "demo", Name: "billing"}]
	o.w.start()
	for _, s := range steps {
		o.do(s)
		synctest.Wait()
		o.readDead()
		o.held()
		if o.failure() != nil {
			break
		}
	}
	if o.failure() == nil {
		o.finish()
	}
	for _, m := range o.members {
		m.Close()
	}
	o.w.stop()
	return o.failure()
}

func (o *orderModel) wrong(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = fmt.Errorf(format, args...)
	}
}

func (o *orderModel) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

func keyOf(id string) string {
	k, _, _ := strings.Cut(id, "/")
	return k
}

func seqOf(id string) int {
	_, n, _ := strings.Cut(id, "/")
	i, _ := strconv.Atoi(n)
	return i
}

func (o *orderModel) do(s step) {
	var m Member
	if len(o.members) > 0 {
		m = o.members[s.a%len(o.members)]
	}
	switch {
	case s.op <= 3:
		for range 1 + s.b%4 {
			o.publish(s.a % (orderKeys + 1))
		}
	case s.op == 4 && len(o.members) < 3, m == nil:
		o.members = append(o.members, o.w.join(s.b%5))
		clear(o.homes) // it gets its share
	case s.op == 4 && s.b%2 == 0:
		m.Close()
		o.members = slices.DeleteFunc(o.members, func(x Member) bool { return x == m })
		maps.DeleteFunc(o.homes, func(_ string, x Member) bool { return x == m })
		for i := range o.given {
			o.given[i].finished = o.given[i].finished || o.given[i].m == m
		}
	case s.op == 5:
		m.Credit(s.b % 5)
	case s.op <= 8:
		o.take(m, 1+s.b%4)
	case s.op <= 11 && len(o.given) > 0:
		o.settle(&o.given[s.a%len(o.given)], s.b)
	case s.op == 12:
		p := o.orders.parts[s.a%orderParts]
		if p.lapsed {
			o.revoke(p, 0)
		}
		o.st.give(p)
	case s.op == 13:
		o.revoke(o.orders.parts[s.a%orderParts], s.b%4)
	case s.op == 14:
		if p := o.orders.parts[s.a%orderParts]; p.here {
			o.st.lapse(p)
		}
	case s.op == 15:
		<-time.After(time.Duration(s.b) * time.Second)
		o.expire()
		for range 2 { // until all are there again
			clear(o.homes)
			for _, m := range o.members {
				o.take(m, 1)
			}
		}
	}
}

// publish appends the next event of a key; the last key is none.
func (o *orderModel) publish(k int) {
	key := "k" + strconv.Itoa(k)
	o.seqs[key]++
	e := &event.Event{ID: fmt.Sprintf("%s/%d", key, o.seqs[key]), Source: "/test", Type: "t"}
	if k < orderKeys {
		e.Ext = []event.Attr{{Name: event.AttrPartitionKey, Value: key}}
	}
	o.st.append("orders", k%orderParts, e)
}

// take has a member take up to n, and checks each.
func (o *orderModel) take(m Member, n int) (got int) {
	ctx, cancel := context.WithTimeout(o.w.ctx, time.Millisecond)
	defer cancel()
	dst := make([]Delivery, n)
	got, err := m.Next(ctx, dst)
	if err != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		o.wrong("Next: %v", err)
	}
	synctest.Wait()
	o.expire()
	o.readDead()
	for _, d := range dst[:got] {
		o.check(d.Event.ID)
		o.home(m, d.Event)
		o.given = append(o.given, given{m: m, id: d.ID, event: d.Event.ID, until: time.Now().Add(o.sub.AckTimeout)})
	}
	return got
}

// check is of an event that is delivered now.
func (o *orderModel) check(id string) {
	key := keyOf(id)
	if key == "k"+strconv.Itoa(orderKeys) {
		return // in no order
	}
	for _, g := range o.given {
		if !g.finished && keyOf(g.event) == key {
			o.wrong("%s is delivered while %s is out", id, g.event)
		}
	}
	if p := o.orders.parts[o.part(key)]; !p.here || p.lapsed {
		o.wrong("%s is delivered, of a partition that is not held", id)
	}
	if why := o.done[id]; why != "" && why != "dead" {
		o.wrong("%s is delivered again: it was %s", id, why)
	}
	for i := 1; i < seqOf(id); i++ {
		if before := fmt.Sprintf("%s/%d", key, i); o.done[before] == "" {
			o.wrong("%s is delivered before %s", id, before)
		}
	}
}

// home checks that a key stays where it is, while there is room.
func (o *orderModel) home(m Member, e *event.Event) {
	key := keyOf(e.ID)
	if e.Key("") == "" {
		return
	}
	r := m.(*member).r
	r.mu.Lock()
	full := r.fullLocked()
	for x := range r.members {
		full = full || x.doubted // while it has its probe others have its keys
	}
	r.mu.Unlock()
	if was := o.homes[key]; was != nil && was != m && !full {
		o.wrong("%s comes to another member than what was before it", e.ID)
	}
	if !full {
		o.homes[key] = m
	}
}

func (o *orderModel) part(key string) int {
	k, _ := strconv.Atoi(key[1:])
	return k % orderParts
}

// settle ends a delivery, or extends it; one that has ended before is stale.
func (o *orderModel) settle(g *given, how int) {
	var stale int
	live := !g.finished
	switch how % 6 {
	case 0:
		stale = g.m.Nack("no", time.Duration(how%3-1)*time.Second, g.id)
		o.failed[keyOf(g.event)] = true
	case 1:
		stale = g.m.Reject("never", g.id)
		o.failed[keyOf(g.event)] = true
		if live {
			o.rejected[g.event] = true
		}
	case 2:
		if stale = g.m.Extend(2*time.Minute, g.id); stale == 0 {
			g.until = time.Now().Add(2 * time.Minute)
		}
		if live != (stale == 0) {
			o.wrong("extending %s: %d are stale, it is out: %v", g.event, stale, live)
		}
		return
	default:
		if stale = g.m.Ack(g.id); stale == 0 {
			o.done[g.event] = "acked"
		}
	}
	if live != (stale == 0) {
		o.wrong("settling %s: %d are stale, it is out: %v", g.event, stale, live)
	}
	g.finished = true
}

// expire ends deliveries that have timed out.
func (o *orderModel) expire() {
	synctest.Wait()
	for i := range o.given {
		if g := &o.given[i]; !g.finished && !time.Now().Before(g.until) {
			g.finished = true
			o.failed[keyOf(g.event)] = true
		}
	}
}

func (o *orderModel) revoke(p *logPart, n int) {
	if !p.here {
		return
	}
	for _, e := range o.st.revoke(o.orders, p, n) {
		if o.done[e.ID] == "" {
			o.done[e.ID] = "settled elsewhere"
		}
	}
	for i := range o.given {
		g := &o.given[i]
		o.given[i].finished = g.finished || o.orders.parts[o.part(keyOf(g.event))] == p && !o.parked(g)
	}
}

// parked reports whether a delivery is of an event that came by the retry topic.
func (o *orderModel) parked(g *given) bool {
	o.st.mu.Lock()
	defer o.st.mu.Unlock()
	return slices.ContainsFunc(o.st.topics[names.RetryTopic(uidSub)].parts[0].log, func(e *event.Event) bool { return e.ID == g.event })
}

// readDead notes what was dead-lettered.
func (o *orderModel) readDead() {
	o.st.mu.Lock()
	defer o.st.mu.Unlock()
	for _, e := range o.st.topics["dead"].parts[0].log {
		if o.done[e.ID] == "" {
			o.done[e.ID] = "dead"
		}
		if o.sub.Block && !o.rejected[e.ID] {
			o.wrong("%s is dead-lettered; it was to block", e.ID)
		}
	}
}

// held checks what the proxy has.
func (o *orderModel) held() {
	o.w.m.mu.Lock()
	r := o.w.m.runtimes[uidSub]
	o.w.m.mu.Unlock()
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Two sources, the topic and the retries, look for room side by side.
	if n := r.held - r.behind.events; r.flights.n > o.sub.MaxInFlight || n > 2*o.sub.MaxInFlight || n < 0 {
		o.wrong("%d events are held, %d are out, %d may be", n, r.flights.n, o.sub.MaxInFlight)
	}
	behind, stuck := backlog{}, 0
	have := map[*item]bool{}
	for _, it := range slices.Concat(r.buffer, r.timers.others, slices.Collect(r.flights.all())) {
		have[it] = true
	}
	for _, l := range r.lanes {
		if len(l.items) == 0 {
			o.wrong("a lane is kept without events")
		} else if first := l.items[0]; first.msg.attempt > o.sub.MaxAttempts {
			if _, told := r.stuck[first]; !told {
				o.wrong("%s blocks its key, and nobody is told", first.msg.stored.ID)
			}
			stuck++
		}
		for i, it := range l.items {
			if have[it] = true; i > 0 {
				behind.add(it)
			}
		}
	}
	if behind != r.behind || behind.events > orderParts*orderWindow {
		o.wrong("%v wait in lanes, %v are counted", behind, r.behind)
	}
	if stuck != len(r.stuck) {
		o.wrong("%d keys are told to be blocked, %d are", len(r.stuck), stuck)
	}
	size := 0
	for it := range have {
		size += it.msg.stored.Held()
	}
	if size != r.bytes {
		o.wrong("the events that are here have %d bytes, %d are counted", size, r.bytes)
	}
	if len(have) != r.held { // nothing is being written: that takes no time here
		o.wrong("%d events are here, %d are counted", len(have), r.held)
	}
}

// flow checks that, with members that take whatever they are given, a key that has
// not failed is held up by nobody while there is room.
func (o *orderModel) flow() {
	o.w.m.mu.Lock()
	r := o.w.m.runtimes[uidSub]
	o.w.m.mu.Unlock()
	r.mu.Lock()
	full := r.held-r.behind.events >= o.sub.MaxInFlight
	r.mu.Unlock()
	if full {
		return
	}
	for _, p := range o.orders.parts {
		o.st.mu.Lock()
		var window []*event.Event
		if p.here && !p.lapsed {
			window = p.log[p.floor:min(len(p.log), p.floor+orderWindow)]
		}
		o.st.mu.Unlock()
		seen := map[string]bool{}
		for _, e := range window {
			key := keyOf(e.ID)
			if o.done[e.ID] != "" || seen[key] || key == "k"+strconv.Itoa(orderKeys) {
				continue
			}
			seen[key] = true
			if !o.failed[key] && !slices.ContainsFunc(o.given, func(g given) bool { return !g.finished && g.event == e.ID }) {
				o.wrong("%s is not delivered, though nothing of its key has failed and there is room", e.ID)
			}
		}
	}
}

// finish takes and settles everything: nothing is lost.
func (o *orderModel) finish() {
	for _, p := range o.orders.parts {
		if p.lapsed {
			o.revoke(p, 0)
		}
		o.st.give(p)
	}
	last := o.w.join(1000)
	clear(o.homes)
	o.members = append(o.members, last)
	for _, m := range o.members {
		m.Credit(1000)
	}
	all := 0
	for _, n := range o.seqs {
		all += n
	}
	for rounds := 0; len(o.done) < all; rounds++ {
		for got := 1; got > 0 && o.failure() == nil; { // who has a probe leaves its keys to others
			got = 0
			for _, m := range o.members {
				got += o.take(m, 64)
			}
		}
		o.flow()
		if o.failure() != nil {
			return
		}
		for i := range o.given {
			if !o.given[i].finished {
				o.settle(&o.given[i], 5)
			}
		}
		<-time.After(time.Second)
		o.expire()
		o.readDead()
		if rounds > 3*all+100 {
			missing := map[string]bool{}
			for key, n := range o.seqs {
				for i := 1; i <= n; i++ {
					if id := fmt.Sprintf("%s/%d", key, i); o.done[id] == "" {
						missing[id] = true
					}
				}
			}
			o.wrong("%v are lost", slices.Sorted(maps.Keys(missing)))
			return
		}
	}
}
