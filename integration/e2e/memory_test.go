package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"

	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/integration/servers"
	"github.com/weft-mesh/weft/pkg/client"
	"github.com/weft-mesh/weft/pkg/event"
)

// peak is how much memory a process has taken at most, in bytes.
func (p *proxy) peak() int64 {
	p.m.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	p.m.must(err)
	var kib int64
	_, after, _ := strings.Cut(string(b), "VmHWM:")
	_, err = fmt.Sscan(after, &kib)
	p.m.must(err)
	return kib << 10
}

// begin opens a connection of gRPC that publishes so many events at once, of each of which
// it sends the first part alone, until the test ends.
func (m *mesh) begin(addr, bearer string, calls int) {
	m.Helper()
	c, err := net.Dial("tcp", addr)
	m.must(err)
	m.Cleanup(func() { _ = c.Close() })
	var out, head bytes.Buffer
	out.WriteString(http2.ClientPreface)
	frames, fields := http2.NewFramer(&out, nil), hpack.NewEncoder(&head)
	m.must(frames.WriteSettings())
	head1MiB, part := []byte{0, 0, 0x10, 0, 0}, make([]byte, 15<<10)
	for i := range uint32(calls) { //nolint:gosec // few
		head.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "x"}, {":path", eventsv1.EventService_Publish_FullMethodName}, {"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", bearer}} {
			m.must(fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
		}
		m.must(frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: head.Bytes(), EndHeaders: true}))
		m.must(frames.WriteData(2*i+1, false, head1MiB))
		for range 4 {
			m.must(frames.WriteData(2*i+1, false, part))
		}
	}
	_, _ = c.Write(out.Bytes()) // it may be closed by then
}

// TestLittleMemory: far more comes at once over HTTP than the process may take, and over
// gRPC from who begins messages that they never end, while others publish over gRPC and a
// member settles nothing of what it has. The proxy refuses what it has no room for, closes
// the connections of who begins and does not end, and stays near its limit; everything
// that was acknowledged is delivered.
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	const (
		limit    = 384 << 20 // GOMEMLIMIT
		most     = limit + limit/2
		overHTTP = 300 // publishers
		overGRPC = 8
		begun    = 12 // of 24 MiB each
		size     = 2<<20 - 64<<10
	)
	m := prepareMesh(t, servers.SharedEtcd(t))
	m.bin = plainBinary.path(t) // the race detector takes much itself
	m.startControlPlane()
	key, identity := m.key("shop")
	bearer := "Bearer " + m.read(key)
	p := m.newProxy("p1")
	p.Env = []string{fmt.Sprint("GOMEMLIMIT=", limit)}
	p.start()
	m.apply(onDisk + strings.ReplaceAll(topicYAML("orders"), "partitions: 2", "partitions: 2, max_event_bytes: 2097152") + subscriptionYAML("held", "orders", "") + subscriptionYAML("billing", "orders", "") + policyYAML("shop") + identity)
	m.settled(1)

	var members sync.WaitGroup
	t.Cleanup(members.Wait)
	held, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription("held"), 1000)
	m.must(err)
	members.Go(func() { _ = held.receive(func(*eventsv1.Delivery) bool { return false }) })
	got := &ids{}
	billing, err := m.dial(p.grpc, m.read(key), nil).open(m.ctx, subscription("billing"), 64)
	m.must(err)
	members.Go(func() {
		err := billing.receive(func(d *eventsv1.Delivery) bool { got.put(d.Event.Id); return true })
		t.Logf("the member ended: %v", err)
	})
	goroutines := p.metric("go_goroutines")

	for range begun {
		m.begin(p.grpc, bearer, 400)
	}
	m.await("who never ends to be cut off", func() error {
		if n := p.metric(`weft_proxy_connections_unfinished_total{listener="grpc"}`); n == 0 || n >= begun {
			return fmt.Errorf("%v of %d connections were closed", n, begun)
		}
		return nil
	})

	var refused atomic.Int64
	data := bytes.Repeat([]byte("x"), size)
	c := m.client(key, p)
	web := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(web.CloseIdleConnections)
	over := map[string]func(string) (again bool, err error){
		"gRPC": func(id string) (bool, error) {
			_, err := c.Publish(m.ctx, m.ns, "orders", event.Event{ID: id, Source: published, Type: "t", Data: data})
			e, ok := errors.AsType[*client.Error](err)
			return ok && e.Code == codes.ResourceExhausted, err
		},
		"HTTP": func(id string) (bool, error) {
			code, body, err := m.postBytes(web, "http://"+p.http, "orders", bearer, http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {published}, "Ce-Type": {"t"}}, data)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("%d %s", code, body)
			}
			// Who is refused while it still sends may not hear why: its connection ends.
			return code == http.StatusTooManyRequests || code == 0, err
		},
	}
	var running sync.WaitGroup
	for name, n := range map[string]int{"HTTP": overHTTP, "gRPC": overGRPC} {
		publish := over[name]
		for i := range n {
			running.Go(func() {
				for {
					again, err := publish(fmt.Sprint(name, i))
					if err == nil {
						return
					}
					if !again {
						t.Errorf("over %s: %v", name, err)
						return
					}
					refused.Add(1)
					select { // as Retry-After says
					case <-time.After(time.Second):
					case <-m.ctx.Done():
						return
					}
				}
			})
		}
	}
	running.Wait()
	m.await("what was acknowledged", func() error {
		if n := got.count(); n < overHTTP+overGRPC {
			return fmt.Errorf("%d have come", n)
		}
		return nil
	})
	m.await("goroutines", func() error {
		web.CloseIdleConnections()
		if n := p.metric("go_goroutines"); n > goroutines+20 {
			return fmt.Errorf("%.0f, and there were %.0f", n, goroutines)
		}
		return nil
	})
	peak := p.peak()
	t.Logf("%d were refused; it took %d MiB at most, of a limit of %d", refused.Load(), peak>>20, limit>>20)
	if peak > most {
		t.Errorf("it took %d MiB of a limit of %d", peak>>20, limit>>20)
	}
	if refused.Load() == 0 {
		t.Error("nothing was refused")
	}
	m.must(p.Stop())
}
