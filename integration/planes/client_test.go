package planes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// relay is what lies between a client and a proxy: cut, it is for the client as
// if the proxy's machine had died.
type relay struct {
	t        *testing.T
	addr, to string

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]struct{}
	taken int // connections that were let through
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{t: t, to: to, addr: "127.0.0.1:0", conns: map[net.Conn]struct{}{}}
	r.open()
	t.Cleanup(r.cut)
	return r
}

// open lets connections through, at the address that it always had.
func (r *relay) open() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.l, r.addr = l, l.Addr().String()
	r.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", r.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			r.mu.Lock()
			if r.l != l { // cut meanwhile
				_, _ = in.Close(), out.Close()
			}
			r.conns[in], r.conns[out] = struct{}{}, struct{}{}
			r.taken++
			r.mu.Unlock()
			for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(c[0], c[1])
					_, _ = c[0].Close(), c[1].Close()
				}()
			}
		}
	}()
}

// count is how many connections were let through.
func (r *relay) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
}

// cut ends every connection and lets none through.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.l != nil {
		_ = r.l.Close()
	}
	r.l = nil
	for c := range r.conns {
		_ = c.Close()
	}
	clear(r.conns)
}

// clientMesh is a control plane and proxies with the topic orders and the
// subscription billing.
func clientMesh(ctx context.Context, t *testing.T, proxies int) []*gateway {
	t.Helper()
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	var out []*gateway
	for range proxies {
		out = append(out, startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery))
	}
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), subscriptionRes("billing", "", "orders"), policyOf(everything("local")))
	for _, g := range out {
		g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	}
	return out
}

func clientOf(t *testing.T, addrs ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addresses: addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func numbered(n int) event.Event {
	return event.Event{ID: fmt.Sprint(n), Source: "/test", Type: "t", Data: fmt.Appendf(nil, "data %d", n)}
}

// published is how many events a proxy has kept.
func published(t *testing.T, g *gateway) float64 {
	t.Helper()
	return max(0, scrape(t, g.Addrs().Ops).value(`weft_proxy_publish_events_total{namespace="demo",topic="orders"}`))
}

// TestClientBalances: a client uses all proxies, goes on without one that died,
// and uses it again once it is back.
func TestClientBalances(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	gs := clientMesh(ctx, t, 2)
	relays := []*relay{newRelay(t, gs[0].Addrs().GRPC), newRelay(t, gs[1].Addrs().GRPC)}
	c := clientOf(t, relays[0].addr, relays[1].addr)
	n := 0
	publish := func() {
		t.Helper()
		n++
		for {
			_, err := c.Publish(ctx, "demo", "orders", numbered(n))
			if err == nil {
				return
			}
			// A call on a connection that dies may have been kept or not: the
			// same event again.
			if e, ok := errors.AsType[*client.Error](err); !ok || !e.Retryable() {
				t.Fatalf("event %d: %v", n, err)
			}
		}
	}
	until := func(what string, f func() bool) {
		t.Helper()
		for !f() {
			if ctx.Err() != nil {
				t.Fatal(what)
			}
			publish()
		}
	}
	until("both proxies are used", func() bool { return published(t, gs[0]) > 2 && published(t, gs[1]) > 2 })
	relays[0].cut()
	there, gone := published(t, gs[1]), published(t, gs[0])
	for range 20 {
		publish()
	}
	if got := published(t, gs[1]); got < there+20 {
		t.Errorf("the proxy that is left kept %v events before and %v after 20 more", there, got)
	}
	if got := published(t, gs[0]); got > gone+1 {
		t.Errorf("the proxy that cannot be reached kept %v events before, %v now", gone, got)
	}
	gone = published(t, gs[0])
	relays[0].open()
	until("the proxy that is back is used again", func() bool { return published(t, gs[0]) > gone+2 })
}

// TestClientResumesTail: over connections that break, a tail has every event once
// and in order.
func TestClientResumesTail(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	g := clientMesh(ctx, t, 1)[0]
	r := newRelay(t, g.Addrs().GRPC)
	direct := clientOf(t, g.Addrs().GRPC)
	var got, want []string
	opened := make(chan struct{}, 10)
	more := make(chan string, 1000)
	tctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- clientOf(t, r.addr).Tail(tctx, "demo", []string{"orders"}, client.TailOptions{Connected: func() { opened <- struct{}{} }}, func(d client.Delivery) error {
			more <- d.Event.ID + "=" + string(d.Event.Data)
			return nil
		})
	}()
	n := 0
	send := func() {
		for range 10 {
			n++
			if _, err := direct.Publish(ctx, "demo", "orders", numbered(n)); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("%d=data %d", n, n))
		}
	}
	take := func() {
		for len(got) < len(want) {
			select {
			case id := <-more:
				got = append(got, id)
			case <-ctx.Done():
				t.Fatalf("the tail has %v", got)
			}
		}
	}
	<-opened
	for i := range 4 {
		if i > 0 { // at first it has seen nothing
			send()
			take()
		}
		r.cut()
		send() // nobody hears it
		r.open()
		<-opened
		take()
	}
	if !slices.Equal(got, want) {
		t.Errorf("the tail has %v", got)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestClientMemberAgain: a member whose connection broke joins again; what it had
// not settled comes again, as another attempt, what it had settled does not.
func TestClientMemberAgain(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	g := clientMesh(ctx, t, 1)[0]
	r := newRelay(t, g.Addrs().GRPC)
	direct := clientOf(t, g.Addrs().GRPC)
	for i := range 2 {
		if _, err := direct.Publish(ctx, "demo", "orders", numbered(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	var seen []string
	mctx, stop := context.WithCancel(ctx)
	defer stop()
	settled := func() bool {
		return scrape(t, g.Addrs().Ops).value(`weft_proxy_delivery_acks_total{namespace="demo",subscription="billing"}`) == 1
	}
	err := clientOf(t, r.addr).Subscribe(mctx, "demo", "billing", func(hctx context.Context, d client.Delivery) error {
		seen = append(seen, fmt.Sprintf("%s on attempt %d", d.Event.ID, d.Attempt))
		switch len(seen) {
		case 1:
			return nil
		case 2: // it is held when the connection breaks
			for !settled() && hctx.Err() == nil {
				continue
			}
			r.cut()
			r.open()
			return errors.New("this is said to nobody")
		}
		stop()
		return nil
	}, client.SubscribeOptions{Credit: 1})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if want := []string{"1 on attempt 1", "2 on attempt 1", "2 on attempt 2"}; !slices.Equal(seen, want) {
		t.Errorf("the member has seen %v, want %v", seen, want)
	}
}

// TestClientPublisher: over connections that break, every event of a publisher is
// kept, and in order but for repeats.
func TestClientPublisher(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	g := clientMesh(ctx, t, 1)[0]
	r := newRelay(t, g.Addrs().GRPC)
	p := clientOf(t, r.addr).Publisher("demo", "orders", client.PublisherOptions{MaxPending: 100})
	const n = 1000
	var pending []*client.Pending
	for i := range n {
		if i%300 == 150 {
			r.cut()
			r.open()
		}
		e := numbered(i + 1)
		e.Ext = event.With(nil, event.AttrPartitionKey, "k")
		q, err := p.Publish(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, q)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for i, q := range pending {
		if pos, err := q.Wait(ctx); err != nil || pos == "" {
			t.Fatalf("event %d: %q %v", i+1, pos, err)
		}
	}
	if _, err := p.Publish(ctx, numbered(0)); err == nil {
		t.Error("a closed publisher takes an event")
	}
	next := 1
	repeats := 0
	err := clientOf(t, g.Addrs().GRPC).Tail(ctx, "demo", []string{"orders"}, client.TailOptions{Beginning: true}, func(d client.Delivery) error {
		switch d.Event.ID {
		case fmt.Sprint(next):
			next++
		default:
			repeats++
			var k int
			if _, err := fmt.Sscan(d.Event.ID, &k); err != nil || k > next {
				return fmt.Errorf("event %s comes where %d is next", d.Event.ID, next)
			}
		}
		if next > n {
			return io.EOF
		}
		return nil
	})
	if !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	t.Logf("%d repeats", repeats)

	// Why a publisher cannot go on is told to everybody who waits.
	p = clientOf(t, r.addr).Publisher("demo", "a..b", client.PublisherOptions{})
	q, err := p.Publish(ctx, numbered(1))
	if err == nil {
		_, err = q.Wait(ctx)
	}
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.InvalidArgument || e.Reason != "bad-name" {
		t.Errorf("a topic that cannot be: %v", err)
	}
	cctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_ = p.Close(cctx)
}

// TestClientKeepsItsKey: without TLS a key goes to this machine only, also where
// a registry names the proxies.
func TestClientKeepsItsKey(t *testing.T) {
	t.Parallel()
	cfg := client.Config{APIKey: func() (string, error) { return "weft_0_secret", nil }}
	cfg.Addresses = []string{"192.0.2.1:7411"}
	if _, err := client.New(cfg); err == nil || !strings.Contains(err.Error(), "not sent") {
		t.Errorf("%v", err)
	}
	cfg.Addresses, cfg.Target = nil, "passthrough:///192.0.2.1:7411"
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.Publish(ctx, "demo", "orders", numbered(1)); err == nil || !strings.Contains(err.Error(), "not sent to 192.0.2.1:7411 without TLS") {
		t.Errorf("%v", err)
	}
}

// TestClientExtend: a Handler that asks for more time has it; one that does not
// is overtaken by the ack time-out.
func TestClientExtend(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	billing := subscriptionRes("billing", "", "orders")
	billing.GetSubscription().AckTimeout = durationpb.New(time.Second)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), billing, policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, []string{"billing"}))
	c := clientOf(t, g.Addrs().GRPC)
	for i := range 2 {
		if _, err := c.Publish(ctx, "demo", "orders", numbered(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	mctx, stop := context.WithCancel(ctx)
	defer stop()
	timedOut := make(chan struct{})
	var mu sync.Mutex
	var seen []string
	err := c.Subscribe(mctx, "demo", "billing", func(_ context.Context, d client.Delivery) error {
		mu.Lock()
		seen = append(seen, fmt.Sprintf("%s on attempt %d", d.Event.ID, d.Attempt))
		mu.Unlock()
		switch {
		case d.Event.ID == "1":
			d.Extend(time.Minute)
		case d.Attempt == 3:
			close(timedOut)
		}
		<-timedOut
		stop()
		return nil
	}, client.SubscribeOptions{Credit: 8})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if slices.Sort(seen); !slices.Equal(seen, []string{"1 on attempt 1", "2 on attempt 1", "2 on attempt 2", "2 on attempt 3"}) {
		t.Errorf("the handlers have seen %v", seen)
	}
}

// TestClientPublisherLarge: however large the events that wait, a message is one
// that proxies take; an event that a topic does not take is refused alone.
func TestClientPublisherLarge(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	g := clientMesh(ctx, t, 1)[0]
	p := clientOf(t, g.Addrs().GRPC).Publisher("demo", "orders", client.PublisherOptions{})
	var pending []*client.Pending
	for i := range 100 {
		e := numbered(i)
		e.Data = make([]byte, 200<<10)
		if i == 50 {
			e.Data = make([]byte, 2<<20)
		}
		q, err := p.Publish(ctx, e)
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, q)
	}
	for i, q := range pending {
		_, err := q.Wait(ctx)
		if e, refused := errors.AsType[*client.Error](err); refused != (i == 50) || refused && e.Reason != "event-too-large" || err != nil && !refused {
			t.Errorf("event %d: %v", i, err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}
