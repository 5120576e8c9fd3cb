package planes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// cutter forwards connections and can cut them all.
type cutter struct {
	l  net.Listener
	mu sync.Mutex
	on map[net.Conn]struct{}
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{l: l, on: map[net.Conn]struct{}{}}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		c.cut()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			c.mu.Lock()
			c.on[in], c.on[out] = struct{}{}, struct{}{}
			c.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
				})
			}
		}
	})
	return c
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.on {
		_ = conn.Close()
		delete(c.on, conn)
	}
}

// TestPublisher: every event that was published has one answer; one that says it
// is kept is right, however often the connection was cut, and a refusal comes
// with its reason.
func TestPublisher(t *testing.T) {
	ctx := testContext(t)
	cp := startReplica(ctx, t, startEtcd(ctx, t))
	g := startProxy(ctx, t, filepath.Join(t.TempDir(), "data"), cp.Addrs().Discovery)
	apply(ctx, t, cp, eventStore("demo", "main", "1"), topic("demo", "orders"), policyOf(everything("local")))
	g.await("the topic", ready([]string{"orders"}, nil))
	way := newCutter(t, g.Addrs().GRPC)
	c, err := client.New(client.Config{Addresses: []string{way.l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	p := c.Publisher("demo", "orders", client.PublisherOptions{InFlight: 64 << 10})
	const total = 5000
	var answers [total]atomic.Int32
	var refused atomic.Int64
	for i := range total {
		if i%1000 == 500 {
			way.cut()
		}
		if err := p.Publish(ctx, event.Event{ID: fmt.Sprint(i), Source: "/test", Type: "t", Data: make([]byte, 100)}, func(r client.Result) {
			answers[i].Add(1)
			if r.Err != nil || r.Position == "" {
				refused.Add(1)
				t.Errorf("event %d: %+v", i, r)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range total {
		if n := answers[i].Load(); n != 1 {
			t.Fatalf("event %d has %d answers", i, n)
		}
	}
	// All are there, each for the first time in the order of publishing.
	tctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next, again := 0, 0
	err = c.Tail(tctx, "demo", []string{"orders"}, client.TailOptions{Beginning: true}, func(d client.Delivery) error {
		switch n := 0; {
		case d.Event.ID == fmt.Sprint(next):
			if next++; next == total {
				cancel()
			}
		default:
			if _, err := fmt.Sscan(d.Event.ID, &n); err != nil || n > next {
				return fmt.Errorf("event %s came, %d is next", d.Event.ID, next)
			}
			again++
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || next != total {
		t.Errorf("%d of %d came: %v", next, total, err)
	}
	t.Logf("%d came twice after 5 cuts", again)

	// What is refused says why, and what follows goes on.
	results := make(chan client.Result, 2)
	if err := p.Publish(ctx, event.Event{ID: "big", Source: "/test", Type: "t", Data: make([]byte, 2<<20)}, func(r client.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(ctx, event.Event{ID: "after", Source: "/test", Type: "t"}, func(r client.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	if r := <-results; reasonOf(r.Err) != "event-too-large" {
		t.Errorf("too large: %+v", r)
	}
	if r := <-results; r.Err != nil {
		t.Errorf("behind one that was refused: %+v", r)
	}
	if err := p.Publish(ctx, event.Event{ID: "no source"}, nil); reasonOf(err) != "bad-event" {
		t.Errorf("an event that is wrong: %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := p.Publish(ctx, event.Event{ID: "1", Source: "/test", Type: "t"}, nil); err == nil {
		t.Error("a closed publisher takes an event")
	}
	other := c.Publisher("demo", "secret", client.PublisherOptions{})
	if err := other.Publish(ctx, event.Event{ID: "1", Source: "/test", Type: "t"}, func(r client.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	if e, ok := errors.AsType[*client.Error]((<-results).Err); !ok || e.Code != codes.NotFound {
		t.Errorf("a topic that is not there: %v", e)
	}
	// Nobody answers any more: closing says so of what is in flight.
	g.stop()
	if err := other.Publish(ctx, event.Event{ID: "1", Source: "/test", Type: "t"}, func(r client.Result) { results <- r }); err != nil {
		t.Fatal(err)
	}
	gone, now := context.WithCancel(ctx)
	now()
	if err := other.Close(gone); err == nil {
		t.Error("it waits for nothing and says all is well")
	}
	if r := <-results; reasonOf(r.Err) != "ambiguous" {
		t.Errorf("without an answer: %+v", r)
	}
}

func reasonOf(err error) string {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Reason
	}
	return ""
}
