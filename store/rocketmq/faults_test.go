package rocketmq

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
)

// shut closes what was opened, after the test's own context.
func shut(t *testing.T, close func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := close(ctx); err != nil {
			t.Error(err)
		}
	})
}

// follower is a member of a group and a tail, with what came to each.
type follower struct {
	group, tail *tally
}

func follow(ctx context.Context, t *testing.T, s *Store, topic string) follower {
	t.Helper()
	sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: groupOf(topic)})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, sub.Close)
	tail, err := s.Tail(ctx, store.TailRequest{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	shut(t, tail.Close)
	f := follower{newTally(), newTally()}
	fctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for fctx.Err() == nil {
			// A topic that is not there is said once, and may come back.
			consume(fctx, sub, f.group.add)
		}
	})
	work.Go(func() {
		dst := make([]store.Message, 16)
		for fctx.Err() == nil {
			n, _ := tail.Next(fctx, dst)
			for i := range dst[:n] {
				f.tail.add(dst[i].ID)
			}
		}
	})
	t.Cleanup(func() { stop(); work.Wait() })
	return f
}

// wait waits for n different events at both.
func (f follower) wait(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	f.group.wait(ctx, t, n)
	f.tail.wait(ctx, t, n)
}

// TestHanging: a name server that takes connections and never answers, and one that
// closes them at once, are unreachable, by TLS and without; nobody asks them again and
// again.
func TestHanging(t *testing.T) {
	silent, closing := func(net.Conn) {}, func(c net.Conn) { _ = c.Close() }
	bare := func() (*tls.Config, error) { return &tls.Config{MinVersion: tls.VersionTLS12}, nil }
	for name, tc := range map[string]struct {
		answer func(net.Conn)
		tls    func() (*tls.Config, error)
		want   string
	}{
		"silent":          {silent, nil, ""},
		"closing":         {closing, nil, "it may want TLS"},
		"silent, by TLS":  {silent, bare, "does not answer the handshake"},
		"closing, by TLS": {closing, bare, "look whether it speaks TLS there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var connections atomic.Int64
			var work sync.WaitGroup
			work.Go(func() {
				var open []net.Conn
				for {
					c, err := l.Accept()
					if err != nil {
						break
					}
					connections.Add(1)
					open = append(open, c)
					tc.answer(c)
				}
				for _, c := range open {
					_ = c.Close()
				}
			})
			t.Cleanup(func() { _ = l.Close(); work.Wait() })
			s := openWith(t, 0, Options{NameServers: []string{l.Addr().String()}, TLS: tc.tls})
			shut(t, s.Close)
			ctx := t.Context()
			var ask sync.WaitGroup
			for what, f := range map[string]func() error{
				"Check": func() error { return s.Check(ctx) },
				"Publish": func() error {
					return s.Publish(ctx, "t", []store.Outgoing{{Event: &event.Event{ID: "x", Source: "/s", Type: "t"}}}, make([]store.Result, 1))
				},
				"Subscribe": func() error {
					return second(s.Subscribe(ctx, store.SubscribeRequest{Topic: "t", Group: "g"}))
				},
				"TopicExists": func() error { return second(s.TopicExists(ctx, "t")) },
			} {
				ask.Go(func() {
					if err := f(); fault.ClassOf(err) != fault.Unavailable || store.Why(err) != "Unreachable" || fault.From(err).RetryAfter <= 0 || !strings.Contains(err.Error(), tc.want) {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			ask.Wait()
			if n := connections.Load(); n == 0 || n > 100 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// TestTopicUnderneath: a topic that is deleted and made again while it is written and
// read: publishers are told that it is not there; then the same publishers, member and
// tail go on with what is new.
func TestTopicUnderneath(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	nameServer := servers.SharedRocketMQ(t)
	s, topic := prepare(ctx, t, nameServer, 2)
	shut(t, s.Close)
	other := open(t, nameServer, 0) // who does it behind the store's back
	shut(t, other.Close)
	f := follow(ctx, t, s, topic)
	publishAll(ctx, t, s, topic, "a", 100)
	f.wait(ctx, t, 100)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(other.DeleteTopic(ctx, topic))
	gone := []store.Outgoing{{Event: &event.Event{ID: "gone", Source: "/s", Type: "t"}}}
	if err := s.Publish(ctx, topic, gone, make([]store.Result, 1)); fault.ClassOf(err) != fault.NotFound {
		t.Errorf("to a topic that was deleted: %v", err)
	}
	must(other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: 2}))
	must(other.EnsureGroup(ctx, topic, groupOf(topic), store.Start{}))
	for published := false; !published; {
		err := s.Publish(ctx, topic, gone, make([]store.Result, 1))
		if published = err == nil; !published && fault.ClassOf(err) != fault.NotFound {
			t.Fatalf("to a topic that was made again: %v", err)
		}
	}
	publishAll(ctx, t, s, topic, "b", 50)
	f.wait(ctx, t, 151)
}

// TestQueuesUnderneath: somebody adds queues to a topic while it is written and read.
// They are written to and read without anything being opened anew, from their beginning.
func TestQueuesUnderneath(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	nameServer := servers.SharedRocketMQ(t)
	s, topic := prepare(ctx, t, nameServer, 2)
	shut(t, s.Close)
	other := open(t, nameServer, 0) // who does it behind the store's back
	shut(t, other.Close)
	f := follow(ctx, t, s, topic)
	const grown = 6
	new, published := map[string]bool{}, 0
	for len(new) < grown-2 {
		if published == 100 {
			if err := other.EnsureTopic(ctx, store.TopicSpec{Name: topic, Partitions: grown}); err != nil {
				t.Fatal(err)
			}
		}
		res := make([]store.Result, 1)
		e := store.Outgoing{Event: &event.Event{ID: fmt.Sprint("e", published), Source: "/s", Type: "t"}, Key: fmt.Sprint("k", published%50)}
		if err := s.Publish(ctx, topic, []store.Outgoing{e}, res); err != nil {
			t.Fatal(err)
		}
		published++
		if p := res[0].Pos.Partition; p != "broker-a/0" && p != "broker-a/1" {
			new[p] = true
		}
	}
	f.wait(ctx, t, published)
}

// TestOlderAndShorter: a broker that has lost what is old, as by retention, and one that
// has lost what is new, as by the restore of a backup. Groups whose place is not there
// begin with the oldest event that there is, as their lag says, and members and tails
// that were there all the time miss nothing of what comes after.
func TestOlderAndShorter(t *testing.T) {
	servers.NeedServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), servers.StartTimeout)
	defer cancel()
	const segment = 8 << 20
	r, err := servers.StartRocketMQ(ctx, servers.RocketMQOptions{Broker: []string{fmt.Sprint("mappedFileSizeCommitLog=", segment)}})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	t.Cleanup(func() { must(r.Stop()) })
	s, topic := prepare(ctx, t, r.NameServer, 1)
	shut(t, s.Close)
	const large = 12 // of 1 MiB
	for i := range large {
		e := store.Outgoing{Event: &event.Event{ID: fmt.Sprint("large", i), Source: "/s", Type: "t", Data: make([]byte, 1<<20)}}
		must(s.Publish(ctx, topic, []store.Outgoing{e}, make([]store.Result, 1)))
	}
	// Retention removes whole segments.
	must(r.Broker.Stop())
	segments, err := filepath.Glob(filepath.Join(r.Data, "commitlog", "*"))
	must(err)
	if slices.Sort(segments); len(segments) < 2 {
		t.Fatalf("segments: %q", segments)
	}
	must(os.Remove(segments[0]))
	must(r.Broker.Start(ctx))
	serves := func() {
		t.Helper()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for s.Check(ctx) != nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatal("the broker does not serve")
			}
		}
	}
	serves()
	extents, err := s.Extents(ctx, topic)
	must(err)
	begin, end := extents[0].Begin, extents[0].End
	if begin == 0 || begin >= end || end != large {
		t.Fatalf("the queue is from %d to %d", begin, end)
	}
	rt, err := s.c.route(ctx, topic, true)
	must(err)
	for what, at := range map[string]int64{"before what is left": 0, "beyond the end": 1000} {
		group := groupOf(topic) + fmt.Sprint(at)
		must(s.EnsureGroup(ctx, topic, group, store.Start{}))
		must(s.c.commit(ctx, r.BrokerAddr, topic, group, rt.read[0], at))
		if lag, err := s.Lag(ctx, topic, group); err != nil || len(lag) != 1 || lag[0].Committed != begin || lag[0].Behind != int64(end-begin) { //nolint:gosec // it is small
			t.Errorf("%s: the lag is %+v, %v", what, lag, err)
		}
		sub, err := s.Subscribe(ctx, store.SubscribeRequest{Topic: topic, Group: group})
		must(err)
		dst := make([]store.Message, 1)
		if n, err := sub.Fetch(ctx, dst); err != nil || n != 1 || dst[0].Pos.Offset != begin {
			t.Errorf("%s: it begins at %+v, %v", what, dst[0].Pos, err)
		}
		must(sub.Close(ctx))
	}

	// A backup is taken; what comes later is not in it.
	must(r.Broker.Stop())
	backup := filepath.Join(t.TempDir(), "backup")
	must(os.CopyFS(backup, os.DirFS(r.Data)))
	must(r.Broker.Start(ctx))
	serves()
	f := follow(ctx, t, s, topic)
	publishAll(ctx, t, s, topic, "lost", 40)
	f.wait(ctx, t, int(end-begin)+40) //nolint:gosec // likewise
	must(r.Broker.Kill())
	must(os.RemoveAll(r.Data))
	must(os.CopyFS(r.Data, os.DirFS(backup)))
	must(r.Broker.Start(ctx))
	publishAll(ctx, t, s, topic, "after", 20)
	f.wait(ctx, t, int(end-begin)+60) //nolint:gosec // likewise
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for lag := []store.PartitionLag{{Behind: 1}}; lag[0].Behind != 0 || lag[0].End < end+20; {
		<-tick.C
		lag, err = s.Lag(ctx, topic, groupOf(topic))
		must(err)
	}
}
