package rocketmq

import (
	"cmp"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/store"
)

// crew is members of a group that look after their queues when they are told to, and not by
// themselves.
type crew struct {
	*testing.T
	ctx     context.Context
	members []*subscription // in the order of their shares
}

// newCrew has n members without order, of whom no broker has heard.
func newCrew(t *testing.T, queues, n int) *crew {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	s, topic := prepare(ctx, t, servers.SharedRocketMQ(t), queues)
	shut(t, s.Close)
	c := &crew{T: t, ctx: ctx}
	for range n {
		x := s.member(store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
		shut(t, x.Close)
		c.members = append(c.members, x)
	}
	slices.SortFunc(c.members, func(a, b *subscription) int { return cmp.Compare(a.client, b.client) })
	return c
}

// look has a member look after its queues, and checks what it has afterwards and whether it
// waits for others.
func (c *crew) look(x *subscription, waits bool, want ...int) {
	c.Helper()
	have, err := x.rebalance(c.ctx)
	if err != nil {
		c.Fatal(err)
	}
	x.mu.Lock()
	var got []int
	for _, o := range x.order {
		got = append(got, o.q.id)
	}
	x.mu.Unlock()
	slices.Sort(got)
	if !slices.Equal(got, want) || have == waits {
		c.Errorf("member %d has %v, and has all: %v; %v were to be its own", slices.Index(c.members, x)+1, got, have, want)
	}
}

// locks has somebody lock a queue, or unlock it.
func (c *crew) locks(code int, who string, q int) {
	c.Helper()
	x := c.members[0]
	r, err := x.c.route(c.ctx, x.topic, false)
	if err != nil {
		c.Fatal(err)
	}
	of := r.read[q]
	if _, err := x.c.ask(c.ctx, r.brokers[of.broker], code, nil, x.lockBody(who, []queue{of})); err != nil {
		c.Fatal(err)
	}
}

// TestHandOver: a queue that becomes another member's is read by who had it until that one
// has heard of it, and by nobody else. Of members that are killed it is had at once.
func TestHandOver(t *testing.T) {
	crew := newCrew(t, 6, 3)
	a, b, c := crew.members[0], crew.members[1], crew.members[2]
	crew.look(a, false, 0, 1, 2, 3, 4, 5)
	crew.look(b, true)
	crew.look(a, false, 0, 1, 2)
	crew.look(b, false, 3, 4, 5)
	crew.look(c, true)
	crew.look(b, true, 3)
	crew.look(c, false, 4, 5)
	crew.look(a, false, 0, 1)
	crew.look(b, false, 2, 3)

	b.c.close()
	r, err := a.c.route(crew.ctx, a.topic, false)
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		members, _, err := a.meet(crew.ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(members, []string{a.client, c.client}) {
			break
		}
		<-tick.C
	}
	crew.look(a, false, 0, 1, 2)
	crew.look(c, false, 3, 4, 5)
}

// TestLocksLeft: queues whose locks nobody of the group has are read at once by a member
// that is alone, and else after handOver; and no longer by who has heard that another
// member has one.
func TestLocksLeft(t *testing.T) {
	crew := newCrew(t, 2, 2)
	a, b := crew.members[0], crew.members[1]
	ago := time.Duration(0)
	bootNow = func() time.Duration { return clock.SinceBoot() + ago }
	t.Cleanup(func() { bootNow = clock.SinceBoot })
	crew.locks(reqLock, "killed", 1)
	crew.look(a, false, 0, 1)
	crew.look(b, true)
	crew.look(a, false, 0)
	crew.look(b, true)
	ago += handOver
	crew.look(b, false, 1)
	crew.look(b, false, 1)

	crew.locks(reqUnlock, "killed", 1)
	crew.look(b, false, 1)
	crew.locks(reqUnlock, b.client, 1)
	crew.locks(reqLock, "another", 1)
	crew.look(b, true)
	ago += handOver
	crew.look(b, false, 1)
}
