package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// soaking makes faults as large as they are in make soak.
var soaking = os.Getenv("WEFT_TEST_SOAK") != ""

// heap follows how much of the proxy's heap is in use, in bytes, until the test ends.
type heap struct {
	p    *proxy
	peak atomic.Int64
	stop func()
}

// heapNow is what the proxy's last collection of garbage left: its goal for the next
// one is twice that.
func (p *proxy) heapNow(ctx context.Context) (int64, error) {
	v, err := metric(ctx, p.ops, "go_memstats_next_gc_bytes")
	return int64(v / 2), err
}

// live is what the proxy's heap has after garbage was collected, twice: pools let go of
// what they keep by the second time. Where nothing is under way it is exact. Memtables of
// the embedded store's engine are left out: it has them outside Go's heap, but for builds
// with the race detector, where by chance half of all processes have them in it
// (useGoAllocation in Pebble's internal/manual).
func (p *proxy) live() int64 {
	p.m.Helper()
	ctx, cancel := context.WithTimeout(p.m.ctx, 30*time.Second)
	defer cancel()
	var page []byte
	for range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.ops+"/debug/pprof/heap?gc=1&debug=1", nil)
		p.m.must(err)
		resp, err := http.DefaultClient.Do(req)
		p.m.must(err)
		page, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		p.m.must(err)
	}
	_, after, _ := strings.Cut(string(page), "\n# HeapAlloc = ")
	digits, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(digits, 10, 64)
	p.m.must(err)
	// Each stack begins with what it has in use, "1: 33554432 [1: 33554432] @ 0x…"; all
	// that is large is in the profile.
	_, stacks, _ := strings.Cut(string(page), "\n") // behind the sum of all
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if !strings.Contains(stack, "/pebble/v2/internal/manual.New+") {
			continue
		}
		_, rest, _ := strings.Cut(stack, ": ")
		digits, _, _ := strings.Cut(rest, " ")
		of, err := strconv.ParseInt(digits, 10, 64)
		p.m.must(err)
		n -= of
	}
	return n
}

// heap begins to follow, and tells what there is.
func (p *proxy) heap() (before int64, h *heap) {
	p.m.Helper()
	before, err := p.heapNow(p.m.ctx)
	p.m.must(err)
	h = &heap{p: p}
	ctx, cancel := context.WithCancel(p.m.ctx)
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if v, err := p.heapNow(ctx); err == nil {
				h.peak.Store(max(h.peak.Load(), v))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	h.stop = func() { cancel(); looking.Wait() }
	p.m.Cleanup(h.stop)
	return before, h
}

// grown checks how much the heap grew beyond before.
func (h *heap) grown(before, most int64) {
	h.p.m.Helper()
	h.stop()
	grown := h.peak.Load() - before
	h.p.m.Logf("the heap of %s grew by %d MiB at most; %d are allowed", h.p.name, grown>>20, most>>20)
	if grown > most || h.peak.Load() == 0 {
		h.p.m.Errorf("the heap of %s grew by %d MiB", h.p.name, grown>>20)
	}
}

// deaf is a client of HTTP on a connection of its own that reads little of an answer:
// the kernel holds little for it.
func (m *mesh) deaf() *http.Client {
	t := &http.Transport{ReadBufferSize: 4 << 10, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return c, err
	}}
	m.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// unread asks over HTTP and reads nothing of the answer.
func (m *mesh) unread(method string, p *proxy, path, authorization, body string) {
	m.Helper()
	req, err := http.NewRequestWithContext(m.ctx, method, "http://"+p.http+"/v1/"+m.ns+path, strings.NewReader(body))
	m.must(err)
	req.Header.Set("Authorization", authorization)
	req.Close = true // what the kernel takes as a whole is no reason to be cut off
	resp, err := m.deaf().Do(req)
	m.must(err)
	m.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		m.Fatalf("%s answers %s", path, resp.Status)
	}
}

// TestStalledClients: clients that stop reading, over every way out, harm themselves
// alone: what the proxy holds for them is bounded, they are cut off, what they have not
// settled comes to others, and everybody else gets everything.
func TestStalledClients(t *testing.T) {
	t.Parallel()
	const stalled, events, size = 8, 1200, 16 << 10
	m := newMesh(t, servers.SharedEtcd(t))
	key, identity := m.key("shop")
	bearer := "Bearer " + m.read(key)
	p := m.proxy("p1", "--client-stall", "4s")
	m.apply(onDisk + topicYAML("orders") + subscriptionYAML("billing", "orders", "") +
		"\napiVersion: weft/v1alpha1\nkind: Subscription\nmetadata: {namespace: NS, name: pulled}\nspec: {topics: [orders], start: beginning, ack_timeout: 2s, retry: {min_backoff: 100ms}}\n---" +
		policyYAML("shop") + identity)
	m.settled(1)

	// Those who read.
	c := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(c.CloseIdleConnections)
	sse := m.events(c, "http://"+p.http, "orders", bearer)
	tail, billing, pulled := newBox("a tail"), newBox("subscription billing"), newBox("subscription pulled")
	tailEnded := m.dial(p.grpc, m.read(key), nil).into(tail, tailOf("orders"))
	memberEnded := m.dial(p.grpc, m.read(key), nil).into(billing, subscription("billing"))
	pulling, stop := context.WithCancel(m.ctx)
	var pullers sync.WaitGroup
	reader := m.client(key, p)
	t.Cleanup(func() { stop(); pullers.Wait() })
	pullers.Go(func() {
		for pulling.Err() == nil {
			got, err := reader.Pull(pulling, m.ns, "pulled", client.PullOptions{MaxEvents: 64, Wait: time.Second})
			if err != nil {
				if pulling.Err() == nil {
					t.Errorf("pulling: %v", err)
				}
				return
			}
			var ids []string
			for _, d := range got {
				pulled.put(d.Event)
				ids = append(ids, d.ID)
			}
			if len(ids) == 0 {
				continue
			}
			if _, err := reader.Settle(pulling, m.ns, "pulled", client.Settlement{Ack: ids}); err != nil && pulling.Err() == nil {
				t.Errorf("settling: %v", err)
			}
		}
	})

	// Those who do not.
	conns := map[string]int{"http": p.connections("http"), "grpc": p.connections("grpc")}
	var tails, members []*member
	for range stalled {
		m.unread(http.MethodGet, p, "/topics/orders/events", bearer, "")
		s, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, tailOf("orders"), 1<<16)
		m.must(err)
		tails = append(tails, s)
		s, err = m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription("billing"), 1<<16)
		m.must(err)
		members = append(members, s)
	}
	before, h := p.heap()

	// Meanwhile events are published, and others pull without reading the answer.
	data := string(bytes.Repeat([]byte("x"), size))
	var publishers sync.WaitGroup
	sent := make([]event.Event, events)
	next := atomic.Int64{}
	for range 8 {
		publishers.Go(func() {
			for i := next.Add(1) - 1; i < events; i = next.Add(1) - 1 {
				sent[i] = textEvent(fmt.Sprint("e", i), data)
				if _, err := reader.Publish(m.ctx, m.ns, "orders", sent[i]); err != nil {
					t.Errorf("publishing: %v", err)
				}
			}
		})
	}
	for range stalled {
		m.unread(http.MethodPost, p, "/subscriptions/pulled:pull", bearer, `{"max_events": 1000, "wait": "10s"}`)
	}
	publishers.Wait()
	for _, b := range []*box{sse.box, tail, billing, pulled} {
		m.awaitAll(b, sent)
	}
	m.await("those who do not read to be cut off", func() error {
		for name, most := range conns {
			if n := p.connections(name); n > most+1 { // publishing has one
				return fmt.Errorf("%d connections of %s, %d read", n, name, most)
			}
		}
		return nil
	})
	// Each: a tail holds 1 MiB and writes 1 MiB, a member has 256 events, an answer to a
	// pull is 2 MiB of events, encoded. Then a feed and the store's buffers.
	h.grown(before, stalled*(2*(2<<20)+256*size+1<<20+6<<20)+64<<20)
	if n := p.metric(`weft_proxy_connections_stalled_total{listener="grpc"}`); n != 2*stalled {
		t.Errorf("%v connections were closed since they were stalled", n)
	}
	for _, s := range append(tails, members...) { // what was on its way, and then the end
		err := s.receive(func(*eventsv1.Delivery) bool { return false })
		if status.Code(err) != codes.Unavailable {
			t.Errorf("a stalled client hears %v", err)
		}
	}
	select {
	case err := <-tailEnded:
		t.Errorf("a tail that reads ended with %v", err)
	case err := <-memberEnded:
		t.Errorf("a member that reads ended with %v", err)
	case <-sse.ended:
		t.Errorf("a stream that is read ended with %s", sse.last)
	default:
	}
}
