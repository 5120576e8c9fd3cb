package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
	"github.com/weft-mesh/weft/store/sendqueue"
)

// TestOnlyOneAnswerAcknowledges: every answer to a send but one is an error, and
// whoever may find the event kept all the same is told that nobody knows.
func TestOnlyOneAnswerAcknowledges(t *testing.T) {
	for _, c := range []struct {
		code int
		err  error
		want fault.Class
	}{
		{code: resFlushDisk, want: fault.Ambiguous},
		{code: resFlushSlave, want: fault.Ambiguous},
		{code: resNoSlave, want: fault.Ambiguous},
		{code: resBusy, want: fault.Throttled},
		{code: resIllegal, want: fault.Invalid},
		{code: resNoTopic, want: fault.NotFound},
		{code: resFlowControl, want: fault.Throttled},
		{code: resNotAvailable, want: fault.Unavailable},
		{code: resNoPermission, want: fault.Unavailable},
		{code: 1, want: fault.Ambiguous}, // it failed, before or while it wrote
		{code: 4711, want: fault.Ambiguous},
		{err: fmt.Errorf("dial: %w", remoting.ErrNotSent), want: fault.Unavailable},
		{err: remoting.ErrClosed, want: fault.Ambiguous},
		{err: context.DeadlineExceeded, want: fault.Ambiguous},
		{err: errors.New("anything else"), want: fault.Ambiguous},
		{code: resOK, want: fault.Ambiguous}, // kept, but without its place
	} {
		cmd := &remoting.Command{Code: c.code, ExtFields: map[string]string{}}
		if c.code != resOK {
			cmd.ExtFields["queueOffset"] = "7" // brokers send it with these answers too
		}
		if _, err := sent(cmd, c.err); err == nil || fault.ClassOf(err) != c.want {
			t.Errorf("code %d, error %v: got %v, want %v", c.code, c.err, err, c.want)
		}
	}
	n, err := sent(&remoting.Command{Code: resOK, ExtFields: map[string]string{"queueOffset": "7"}}, nil)
	if n != 7 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}

// TestLanes: events with a key wait for one sender of their queue, whatever else is
// under way; a large call without keys goes to a sender that has nothing to do, else
// where least waits, and stays together; a small one waits, so that it goes with
// others.
func TestLanes(t *testing.T) {
	q := queue{broker: "a", id: 1}
	r := &route{write: []queue{q}, keyed: []queue{q}}
	s := &Store{out: sendqueue.New[encoded]("test", limits), senders: map[senderKey]*sender{}}
	free := make(chan struct{})
	defer s.out.Close(t.Context(), func() {})
	defer close(free)
	key := func(lane int) senderKey { return senderKey{topic: "t", queue: q, lane: lane} }
	const size = 42
	for lane := range lanes {
		busy := &sender{senderKey: key(lane), Queue: s.out.Queue(func() { <-free })}
		if _, err := s.out.Give([]outgoing{{Size: size, To: busy.Queue}}); err != nil {
			t.Fatal(err)
		}
		s.senders[key(lane)] = busy
	}
	waiting := func() (of [lanes]int) {
		for lane := range lanes {
			bytes, _ := s.senders[key(lane)].Load()
			of[lane] = bytes / size
		}
		return of
	}
	hand := func(n int, ordered string) map[int]int {
		t.Helper()
		events, all := make([]store.Outgoing, n), make([]outgoing, n)
		for i := range all {
			events[i].Key, all[i].Size = ordered, size
		}
		before := waiting()
		if _, err := s.hand(r, "t", events, all, q); err != nil {
			t.Fatal(err)
		}
		got := map[int]int{}
		for lane, n := range waiting() {
			if n > before[lane] {
				got[lane] = n - before[lane]
			}
		}
		return got
	}
	for i, c := range []struct {
		n       int
		ordered string
		lane    int
	}{{ownRequest, "", 0}, {ownRequest, "", 1}, {ownRequest + 1, "k", 0}, {1, "", 0}, {ownRequest, "", 2}, {ownRequest, "", 3}, {ownRequest, "", 1}, {ownRequest, "k", 0}, {ownRequest - 1, "", 0}} {
		if got := hand(c.n, c.ordered); len(got) != 1 || got[c.lane] != c.n {
			t.Errorf("call %d, %d events with key %q: by lane %v, expected in %d", i, c.n, c.ordered, got, c.lane)
		}
	}
}

// TestSendersEnd: of a topic to which nothing is on its way no sender is kept, and one
// that was given something while it ended is: another one beside it would mix up keys.
func TestSendersEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	s, topic := prepare(ctx, t, servers.SharedRocketMQ(t), 4)
	shut(t, s.Close)
	publishAll(ctx, t, s, topic, "a", 100)
	kept := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.senders)
	}
	// The last of them is answered before its sender ends.
	for tick := time.NewTicker(time.Millisecond); kept() > 0; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d senders are kept of a topic to which nothing is on its way", kept())
		}
	}
	free := make(chan struct{})
	busy := &sender{senderKey: senderKey{topic: "t"}}
	busy.Queue = s.out.Queue(func() { <-free; busy.Take(); busy.Take() })
	s.senders[busy.senderKey] = busy
	if _, err := s.out.Give([]outgoing{{Size: 1, To: busy.Queue}}); err != nil {
		t.Fatal(err)
	}
	if s.drop(busy); kept() != 1 {
		t.Error("a sender that has something to do is forgotten")
	}
	close(free)
}
