package rocketmq

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
	r := &route{write: []queue{q}}
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
		if _, err := s.hand(r, "t", events, all); err != nil {
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
