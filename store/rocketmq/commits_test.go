package rocketmq

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
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

// TestCommitWithoutLock: a member that had the lock of a queue, and has lost it or the
// connection on which it was asked for, does not put the group's place back behind that of a
// member that had the queue since.
func TestCommitWithoutLock(t *testing.T) {
	const settled, end = 10, 100
	for name, tc := range map[string]struct {
		gone, lost bool
		there      string // the group's place
		want       []int64
	}{
		"it has the lock":             {false, false, "20", []int64{settled}},
		"its connection was lost":     {true, false, "20", nil},
		"another one has the lock":    {false, true, "20", nil},
		"nobody has gone on":          {true, false, "0", []int64{settled}},
		"the other one is behind":     {false, true, "5", []int64{settled}},
		"the place is of another log": {true, false, "1000", []int64{settled}},
		"there is no place":           {true, false, "", []int64{settled}},
	} {
		t.Run(name, func(t *testing.T) {
			var committed []int64
			c := brokerOf(t, func(req *remoting.Command) *remoting.Command {
				offset := "0"
				switch req.Code {
				case reqQueryOffset:
					if offset = tc.there; offset == "" {
						return &remoting.Command{Code: resQueryNotFound}
					}
				case reqMaxOffset:
					offset = strconv.Itoa(end)
				case reqCommit:
					at, err := req.Int("commitOffset")
					if err != nil {
						t.Error(err)
					}
					committed = append(committed, at)
				}
				return &remoting.Command{ExtFields: map[string]string{"offset": offset}}
			})
			x := memberAt(c)
			held := lock{conn: c.current("b")}
			if tc.gone {
				held.conn = linkTo(t, nil)
				held.conn.Close()
			}
			o := x.owns("b", held)
			o.lost = tc.lost
			for i := range int64(settled) {
				x.settles(o, i)
			}
			for range 2 { // the second time there is nothing more
				if !x.commitOne(t.Context(), o) {
					t.Error("it has failed")
				}
			}
			c.close()
			if !slices.Equal(committed, tc.want) {
				t.Errorf("it has committed %v, want %v", committed, tc.want)
			}
		})
	}
}
