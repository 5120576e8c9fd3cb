package rocketmq

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/pkg/fault"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/ackwindow"
	"github.com/weft-mesh/weft/store/rocketmq/remoting"
)

// brokerOf is a broker and name server, by its address "b", that answers each request as answer says; what
// it gives no answer to is held for ever.
func brokerOf(t *testing.T, answer func(*remoting.Command) *remoting.Command) *cluster {
	t.Helper()
	c := newCluster(Options{NameServers: []string{"b"}}, nil, nil)
	c.conns["b"] = linkTo(t, answer)
	t.Cleanup(c.close)
	return c
}

// linkTo is a connection to it.
func linkTo(t *testing.T, answer func(*remoting.Command) *remoting.Command) *remoting.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for {
			frame := make([]byte, 4)
			if _, err := io.ReadFull(theirs, frame); err != nil {
				return
			}
			frame = make([]byte, binary.BigEndian.Uint32(frame))
			if _, err := io.ReadFull(theirs, frame); err != nil {
				return
			}
			req, err := remoting.Decode(frame)
			if err != nil {
				t.Error(err)
				return
			}
			out := answer(req)
			if out == nil {
				continue
			}
			out.Opaque, out.Flag = req.Opaque, 1
			b, err := out.Append(nil)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	return remoting.NewConn(ours, nil)
}

// found is an answer to a pull; next and end are of the queue.
func found(code int, next, end int64, body []byte) *remoting.Command {
	return &remoting.Command{Code: code, Body: body, ExtFields: map[string]string{"nextBeginOffset": strconv.FormatInt(next, 10), "minOffset": "0", "maxOffset": strconv.FormatInt(end, 10)}}
}

// compressed are messages of a native producer, by what their bodies inflate to.
func compressed(t *testing.T, sizes ...int) (out [][]byte) {
	t.Helper()
	bodies := map[int][]byte{} // to compress takes its time
	for i, n := range sizes {
		if bodies[n] == nil {
			var z bytes.Buffer
			w := zlib.NewWriter(&z)
			if _, err := w.Write(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			bodies[n] = z.Bytes()
		}
		out = append(out, stored(flagCompressed, int64(i), bodies[n], ""))
	}
	return out
}

// queueOf is a broker with one queue of messages. most is the highest offset that was asked
// for.
func queueOf(t *testing.T, messages [][]byte) (c *cluster, most *int64) {
	t.Helper()
	most = new(int64)
	end := int64(len(messages))
	return brokerOf(t, func(req *remoting.Command) *remoting.Command {
		from, err := req.Int("queueOffset")
		if err != nil || req.Code != reqPull {
			t.Errorf("request %d, %v", req.Code, err)
		}
		*most = max(*most, from)
		if from >= end {
			return nil // as long as nothing comes
		}
		next := min(from+pullMost, end)
		return found(resOK, next, end, bytes.Join(messages[from:next], nil))
	}), most
}

func sizes(n, of int) []int { return slices.Repeat([]int{of}, n) }

// TestPullIsBounded: a pull takes no more than prefetchBytes and one message, whatever the
// answer inflates to. The rest comes with the next ones, and one that inflates to more than
// any may as it is stored.
func TestPullIsBounded(t *testing.T) {
	const most = 4 << 20 // of one
	for name, tc := range map[string]struct {
		sizes []int
		pulls []int // how many messages each has
	}{
		"small ones":         {sizes(64, 1<<10), []int{64}},
		"of 1 MiB":           {sizes(10, 1<<20), []int{4, 4, 2}},
		"the largest":        {sizes(3, most), []int{1, 1, 1}},
		"too large":          {sizes(4, most+1), []int{4}},
		"too large, between": {[]int{1 << 20, 2 * most, 3 << 20, 1, 1}, []int{3, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				c, _ := queueOf(t, compressed(t, tc.sizes...))
				defer c.close()
				p := puller{c: c, addr: "b", topic: "t", q: queue{"b", 0}}
				n := 0
				for i, want := range tc.pulls {
					msgs, err := p.pull(ctx)
					if err != nil || len(msgs) != want || p.next != int64(n+want) || p.end != int64(len(tc.sizes)) {
						t.Fatalf("pull %d has %d messages, want %d, then goes on at %d, %v", i, len(msgs), want, p.next, err)
					}
					for j := range msgs {
						m := &msgs[j]
						if unreadable := tc.sizes[n] > most; m.Pos.Offset != uint64(n) || len(m.Data) != tc.sizes[n] != unreadable || (len(m.Mesh) > 0) != unreadable {
							t.Errorf("message %d has offset %d, %d bytes and %v", n, m.Pos.Offset, len(m.Data), m.Mesh)
						}
						n++
					}
				}
				cancel()
			})
		})
	}
}

// TestTailIsBounded: a tail of which nobody takes anything pulls no more than prefetchBytes of
// a queue, and what a pull has beyond; once it is taken all comes.
func TestTailIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 40
		c, most := queueOf(t, compressed(t, sizes(n, 1<<20)...))
		defer c.close()
		x := &tail{s: &Store{c: c}, topic: "t", events: make(chan tailed, prefetch), queues: map[queue]*tailQueue{}}
		x.life, x.end = context.WithCancel(t.Context())
		x.read(queue{"b", 0}, "b", 0)
		synctest.Wait()
		if *most != 0 || len(x.events) != 4 {
			t.Errorf("%d wait, and it has asked for what is behind %d", len(x.events), *most)
		}
		dst := make([]store.Message, 3)
		for at := 0; at < n; {
			k, err := x.Next(t.Context(), dst)
			if err != nil {
				t.Fatal(err)
			}
			for i := range dst[:k] {
				if dst[i].Pos.Offset != uint64(at) || len(dst[i].Data) != 1<<20 {
					t.Fatalf("%s comes after %d messages", dst[i].ID, at)
				}
				at++
			}
		}
		if err := x.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestHastyAnswers: a broker, or what stands before it, that answers pulls with nothing and
// does not wait is asked less and less often; one that waits, or whose answers lead on, is
// asked at once.
func TestHastyAnswers(t *testing.T) {
	const wait, leadsOn = 5 * time.Second, 30
	for name, tc := range map[string]struct {
		code  int
		wait  time.Duration
		leads int64         // how many answers lead on, before those that do not
		most  time.Duration // until it has asked leadsOn times
		least time.Duration
	}{
		"nothing":    {resPullNotFound, 0, 0, 3 * leadsOn * time.Second, 40 * time.Second},
		"again":      {resPullRetry, 0, 0, 3 * leadsOn * time.Second, 40 * time.Second},
		"it waits":   {resPullNotFound, wait, 0, leadsOn * wait, leadsOn * wait},
		"it goes on": {resPullMoved, 0, leadsOn, 0, 0},
	} {
		for kind, read := range map[string]func(context.Context, *cluster){
			"member": func(ctx context.Context, c *cluster) {
				x := &subscription{c: c, topic: "t", group: "g", wake: make(chan struct{})}
				x.pull(ctx, &ownership{window: ackwindow.New(8, 0), commits: ackwindow.NewCommits(), q: queue{"b", 0}, addr: "b", room: make(chan struct{})}, 0)
			},
			"tail": func(ctx context.Context, c *cluster) {
				x := &tail{s: &Store{c: c}, topic: "t", events: make(chan tailed, prefetch), queues: map[queue]*tailQueue{}, life: ctx}
				x.read(queue{"b", 0}, "b", 0)
				x.work.Wait()
			},
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(t.Context())
					pulls, began := 0, time.Now()
					var took time.Duration
					c := brokerOf(t, func(req *remoting.Command) *remoting.Command {
						if req.Code != reqPull {
							return nil // a tail looks for the topic as it ends
						}
						if pulls++; pulls > leadsOn {
							took = time.Since(began)
							cancel()
							return nil
						}
						if tc.wait > 0 {
							<-time.After(tc.wait)
						}
						from, err := req.Int("queueOffset")
						if err != nil {
							t.Error(err)
						}
						return found(tc.code, min(from+1, tc.leads), leadsOn, nil)
					})
					defer c.close()
					read(ctx, c)
					if took < tc.least || took > tc.most {
						t.Errorf("it has asked %d times in %s, want %s to %s", leadsOn, took, tc.least, tc.most)
					}
				})
			})
		}
	}
}

// TestTailTells: of a topic that is not there any more, or not to be read, Next tells; not of
// what passes by itself, as a broker that is away or has lost the topic while others have it.
// Then it goes on where it was.
func TestTailTells(t *testing.T) {
	for name, tc := range map[string]struct {
		pull, route int // what is answered
		want        fault.Class
		reason      string
	}{
		"deleted":             {resNoTopic, resNoTopic, fault.NotFound, "unknown-topic"},
		"denied":              {resNoPermission, resOK, fault.Unavailable, "store-access-denied"},
		"one broker lost it":  {resNoTopic, resOK, fault.Canceled, ""},
		"a broker that fails": {resSystemError, resOK, fault.Canceled, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var well atomic.Bool
				c := brokerOf(t, func(req *remoting.Command) *remoting.Command {
					body := `{"brokerDatas":[{"brokerName":"b","brokerAddrs":{"0":"b"}}],"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":1,"writeQueueNums":1}]}`
					switch {
					case req.Code == reqCluster:
						body = `{"brokerAddrTable":{"b":{"brokerAddrs":{"0":"b"}}}}`
					case req.Code == reqRoute && !well.Load():
						return &remoting.Command{Code: tc.route, Remark: "test", Body: []byte(body)}
					case req.Code == reqPull && !well.Load():
						return &remoting.Command{Code: tc.pull, Remark: "test"}
					case req.Code == reqPull && req.ExtFields["queueOffset"] == "7":
						return found(resOK, 8, 8, stored(0, 7, []byte("x"), ""))
					case req.Code == reqPull:
						return nil
					}
					return &remoting.Command{Body: []byte(body)}
				})
				defer c.close()
				x := &tail{s: &Store{c: c}, topic: "t", events: make(chan tailed, prefetch), failed: make(chan error, 1), queues: map[queue]*tailQueue{}}
				x.life, x.end = context.WithCancel(t.Context())
				x.read(queue{"b", 0}, "b", 7)
				dst := make([]store.Message, 2)
				for range 2 { // for each try
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if n, err := x.Next(ctx, dst); n != 0 || fault.ClassOf(err) != tc.want || tc.reason != "" && fault.From(err).Reason != tc.reason {
						t.Errorf("%d events, %v", n, err)
					}
					cancel()
				}
				well.Store(true)
				n, err := x.Next(t.Context(), dst)
				for err != nil {
					n, err = x.Next(t.Context(), dst)
				}
				if n != 1 || dst[0].Pos.Offset != 7 {
					t.Errorf("%d events, the first at %d", n, dst[0].Pos.Offset)
				}
				if err := x.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
