package rocketmq

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// memberAt is a member whose queues are where c leads.
func memberAt(c *cluster) *subscription {
	x := &subscription{s: &Store{cfg: store.Config{Log: slog.New(slog.DiscardHandler)}}, c: c, topic: "t", group: "g", owned: map[queue]*ownership{}, wake: make(chan struct{})}
	x.life, x.end = context.WithCancel(context.Background())
	return x
}

// owns has it own a queue of a broker.
func (x *subscription) owns(broker string, held lock) *ownership {
	o := &ownership{q: queue{broker, 0}, addr: broker, lock: held, window: ackwindow.New(1024, 0), commits: ackwindow.NewCommits()}
	x.owned[o.q] = o
	return o
}

// settles settles the next message of a queue.
func (x *subscription) settles(o *ownership, offset int64) {
	x.mu.Lock()
	n := o.window.Deliver(offset)
	x.mu.Unlock()
	x.Settle([]*store.Message{{Handle: handle{o, n}}})
}

// TestCommitsBesideOneAway: a broker that takes no commits is asked less and less often, and
// those of other brokers' queues go on.
func TestCommitsBesideOneAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := map[string]*atomic.Int64{"there": {}, "away": {}}
		c := newCluster(Options{}, nil, nil)
		for broker, code := range map[string]int{"there": resOK, "away": resSystemError} {
			c.conns[broker] = linkTo(t, func(*remoting.Command) *remoting.Command {
				asked[broker].Add(1)
				return &remoting.Command{Code: code}
			})
		}
		defer c.close()
		x := memberAt(c)
		ctx, cancel := context.WithCancel(t.Context())
		var all []*ownership
		for _, broker := range []string{"there", "away"} {
			o := x.owns(broker, lock{conn: c.conns[broker]})
			o.work.Go(func() { x.commits(ctx, o) })
			all = append(all, o)
		}
		const n = 500
		for i := range int64(n) {
			for _, o := range all {
				x.settles(o, i)
			}
			<-time.After(commitInterval)
		}
		cancel()
		for _, o := range all {
			o.work.Wait()
		}
		if there, away := asked["there"].Load(), asked["away"].Load(); there < n-1 || away < 5 || away > 12 {
			t.Errorf("while %d events were settled one broker was asked %d times to commit, and the other one, which takes none, %d times", n, there, away)
		}
	})
}
