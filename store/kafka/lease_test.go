package kafka

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/store"
)

// jumping makes the clock of leases one that can jump, as it does over a sleep of the
// machine.
func jumping(t *testing.T) *atomic.Int64 {
	var ahead atomic.Int64
	bootNow = func() time.Duration { return clock.SinceBoot() + time.Duration(ahead.Load()) }
	t.Cleanup(func() { bootNow = clock.SinceBoot })
	return &ahead
}

// TestLease: a lease lasts from when it was asked for, and one that has ended is not
// renewed by an answer that comes late.
func TestLease(t *testing.T) {
	now := time.Hour
	bootNow = func() time.Duration { return now }
	t.Cleanup(func() { bootNow = clock.SinceBoot })
	var l lease
	if l.holds() || l.over() {
		t.Error("it has begun by itself")
	}
	asked := now
	now += sessionTimeout / 2
	l.renew(asked)
	if now = asked + leaseFor() - 1; !l.holds() {
		t.Error("it has ended early")
	}
	late := lease{until: l.until}
	if now = asked + leaseFor(); l.holds() || !l.over() {
		t.Error("it lasts longer than the session may")
	}
	for _, over := range []*lease{&l, &late} {
		if over.renew(now); over.holds() {
			t.Error("it holds again")
		}
	}
}

// TestSuspended: a member of an ordered group that was suspended for longer than its
// session holds nothing of what it had fetched, though it has heard of nothing; it
// comes again.
func TestSuspended(t *testing.T) {
	broker := servers.SharedKafka(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	ahead := jumping(t)
	s := open(t, Options{Brokers: []string{broker}}, 0)
	topic := prepare(ctx, t, s, 1)
	revoked := make(chan string, 10)
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic), Ordered: true, Revoked: func(p string) { revoked <- p }})
	if err != nil {
		t.Fatal(err)
	}
	publishAll(ctx, t, s, topic, "a", 3)
	fetch := func(n int) (out []store.Message) {
		for len(out) < n {
			dst := make([]store.Message, n-len(out))
			k, err := sub.Fetch(ctx, dst)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, dst[:k]...)
		}
		return out
	}
	got := fetch(3)
	if !sub.Holds(&got[0]) {
		t.Error("it does not hold what it has just fetched")
	}
	sub.Settle([]*store.Message{&got[0]})
	kept(ctx, t, s, topic, 1)
	ahead.Add(int64(sessionTimeout))
	for i := range got {
		if sub.Holds(&got[i]) {
			t.Errorf("it holds %s, which another member may have", got[i].ID)
		}
	}
	select {
	case p := <-revoked:
		if p != "0" {
			t.Errorf("revoked is %q", p)
		}
	case <-ctx.Done():
		t.Fatal("the partition is not revoked")
	}
	again := fetch(2)
	if again[0].ID != got[1].ID || again[1].ID != got[2].ID || !sub.Holds(&again[0]) || sub.Holds(&got[1]) {
		t.Errorf("%s and %s come again, held %v; those of before: %v", again[0].ID, again[1].ID, sub.Holds(&again[0]), sub.Holds(&got[1]))
	}
	if stale := sub.Settle([]*store.Message{&got[1], &again[0], &again[1]}); stale != 1 {
		t.Errorf("%d are stale", stale)
	}
	if err := sub.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}
