package rocketmq

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/weft-mesh/weft/pkg/clock"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// TestLockLasts: a lock counts for half of the minute that a broker gives it, and not
// beyond the connection on which it was asked for.
func TestLockLasts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := remoting.Dial(context.Background(), l.Addr().String(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	x := &subscription{ordered: true, moved: make(chan struct{}, 1)}
	o := &ownership{lock: lock{conn: conn}}
	held := func(ago time.Duration) bool {
		o.lock.at = bootNow() - ago
		return x.Holds(&store.Message{Handle: handle{o: o}})
	}
	if !held(0) || !held(25*time.Second) || len(x.moved) > 0 {
		t.Error("a lock that was renewed 25 s ago does not count")
	}
	if held(30 * time.Second) {
		t.Error("a lock that was renewed 30 s ago counts")
	}
	if len(x.moved) == 0 {
		t.Error("what is not held any more is not looked after at once")
	}
	held(0)
	bootNow = func() time.Duration { return clock.SinceBoot() + time.Minute }
	t.Cleanup(func() { bootNow = clock.SinceBoot })
	if x.Holds(&store.Message{Handle: handle{o: o}}) {
		t.Error("a lock that the broker has forgotten while the machine slept counts")
	}
	conn.Close()
	<-conn.Done()
	if held(0) {
		t.Error("a lock counts whose broker may have started anew")
	}
}
