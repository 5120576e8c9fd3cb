package planes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/controlplane/server"
	"github.com/weft-mesh/weft/dataplane/proxy"
)

// everyListener gives the address of each listener of both planes, by plane and
// field of its Addrs.
func everyListener(ctx context.Context, t *testing.T, most int) map[string]string {
	t.Helper()
	cp, err := server.New(server.Config{Etcd: startEtcd(ctx, t).Client(), AdminAddr: "127.0.0.1:0", DiscoveryAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		HealthAddr: "127.0.0.1:0", MetricsAddr: "127.0.0.1:0", MaxConnections: most, DrainTime: time.Millisecond, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	runs(t, cp.Run)
	begin := func(overHTTP, overGRPC string) proxy.Addrs {
		cfg := proxyConfig(filepath.Join(t.TempDir(), "proxy"), cp.Addrs().Discovery)
		cfg.HTTPAddr, cfg.GRPCAddr, cfg.MetricsAddr, cfg.MaxConnections = overHTTP, overGRPC, "127.0.0.1:0", most
		p, err := proxy.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		runs(t, p.Run)
		if err := p.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		return p.Addrs()
	}
	all := map[string]string{}
	for plane, addrs := range map[string]any{"control plane": cp.Addrs(), "proxy": begin("127.0.0.1:0", "127.0.0.1:0"), "sidecar": begin(sockets(t))} {
		v := reflect.ValueOf(addrs)
		for i := range v.NumField() {
			all[plane+" "+v.Type().Field(i).Name] = v.Field(i).String()
		}
	}
	return all
}

// runs runs something until the test ends.
func runs(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// raw is a connection that a test speaks on by itself.
type raw struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *raw {
	t.Helper()
	c, err := dialing(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &raw{t, c, nil}
}

// ended waits until the other side has closed.
func (c *raw) ended(what string) {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("%s: the connection lives", what)
	}
}

// overHTTP asks for something and reads the answer.
func (c *raw) overHTTP() error {
	if _, err := io.WriteString(c, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return err
	}
	if c.in == nil {
		c.in = bufio.NewReaderSize(c, 512)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// overGRPC begins HTTP/2, at first, and pings.
func (c *raw) overGRPC() error {
	first := c.in == nil
	if first {
		c.in = bufio.NewReaderSize(c, 512)
	}
	var out bytes.Buffer
	f := http2.NewFramer(&out, c.in)
	if first {
		out.WriteString(http2.ClientPreface)
		_ = f.WriteSettings()
		_ = f.WriteSettingsAck()
	}
	_ = f.WritePing(false, [8]byte{1})
	if _, err := c.Write(out.Bytes()); err != nil {
		return err
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
			return nil
		}
	}
}

// listenerKinds says what each listener speaks and how many connections it
// takes, where everyListener is told 50. One that is not here fails the test.
var listenerKinds = map[string]struct {
	grpc bool
	most int
}{
	"control plane Admin": {true, 50}, "control plane Discovery": {true, 50}, "control plane Ops": {false, 64}, "control plane Health": {false, 64}, "control plane Metrics": {false, 64},
	"proxy HTTP": {false, 50}, "proxy GRPC": {true, 50}, "proxy Health": {false, 256}, "proxy Ops": {false, 64}, "proxy Metrics": {false, 64},
	"sidecar HTTP": {false, 50}, "sidecar GRPC": {true, 50}, "sidecar Health": {false, 256}, "sidecar Ops": {false, 64}, "sidecar Metrics": {false, 64},
}

// TestEveryListener: connections above the limit are refused at once, those
// below it are served, those that never finish what they begin are cut off, and
// then new clients are served.
func TestEveryListener(t *testing.T) {
	ctx := testContext(t)
	for name, addr := range everyListener(ctx, t, 50) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kind, ok := listenerKinds[name]
			if !ok {
				t.Fatal("the listener is not in the table")
			}
			begin, serves := []string{"", "G", "GET /readyz HTTP/1.1\r\n", "GET /readyz HTTP/1.1\r\nHost: localhost\r\nA: "}, (*raw).overHTTP
			if kind.grpc {
				begin, serves = []string{"", "P", http2.ClientPreface[:len(http2.ClientPreface)-1]}, (*raw).overGRPC
			}
			most := kind.most
			if name == "control plane Discovery" {
				most -= 2 // the proxies'
			}
			first := dialRaw(t, addr)
			var slow []*raw
			for i := range most - 1 {
				c := dialRaw(t, addr)
				if _, err := io.WriteString(c, begin[i%len(begin)]); err != nil {
					t.Fatal(err)
				}
				slow = append(slow, c)
			}
			for range 5 {
				dialRaw(t, addr).ended("one too many")
			}
			if err := serves(first); err != nil {
				t.Fatalf("the first connection: %v", err)
			}
			_ = first.Close()
			for i, c := range slow {
				c.ended(fmt.Sprintf("%q", begin[i%len(begin)]))
			}
			if err := serves(dialRaw(t, addr)); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if kind.grpc {
				tooLarge(ctx, t, addr)
			} else {
				largeHeaders(t, addr)
			}
		})
	}
}

// largeHeaders: they are refused before they are there.
func largeHeaders(t *testing.T, addr string) {
	c := dialRaw(t, addr)
	go func() { _, _ = io.WriteString(c, "GET /readyz HTTP/1.1\r\nA: "+strings.Repeat("a", 16<<20)) }()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "HTTP/1.1 431 ") || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("large headers: %q %v", line, err)
	}
}

// tooLarge: a message above the limit fails its call by itself.
func tooLarge(ctx context.Context, t *testing.T, addr string) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, method := range []string{"/weft.admin.v1alpha1.AdminService/Apply", "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", "/weft.events.v1alpha1.EventService/Publish"} {
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(plainBytes{}))
		if err != nil {
			t.Fatal(err)
		}
		_ = st.SendMsg(make([]byte, 9<<20))
		if err := st.RecvMsg(new([]byte)); status.Code(err) != codes.ResourceExhausted && status.Code(err) != codes.Unimplemented {
			t.Errorf("%s, 9 MiB: %v", method, err)
		}
	}
	if err := conn.Invoke(ctx, "/x/Y", make([]byte, 1), new([]byte), grpc.ForceCodec(plainBytes{})); status.Code(err) != codes.Unimplemented {
		t.Errorf("afterwards: %v", err)
	}
}

// plainBytes sends messages as they are.
type plainBytes struct{}

func (plainBytes) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (plainBytes) Unmarshal([]byte, any) error   { return nil }
func (plainBytes) Name() string                  { return "plain" }

// TestManyIdle: idle connections cost little and harm nobody; at the limit more
// are refused, and when they have gone others come.
func TestManyIdle(t *testing.T) {
	const most = 2000
	ctx := testContext(t)
	all := everyListener(ctx, t, most)
	for _, tc := range []struct {
		name   string
		serves func(*raw) error
		bytes  uint64 // of each connection, both ends
	}{{"proxy HTTP", (*raw).overHTTP, 40 << 10}, {"proxy GRPC", (*raw).overGRPC, 112 << 10}} {
		t.Run(tc.name, func(t *testing.T) {
			before := memory()
			conns := make([]*raw, most)
			for i := range conns {
				conns[i] = dialRaw(t, all[tc.name])
			}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for ; i < most; i += 8 {
						if err := tc.serves(conns[i]); err != nil {
							t.Errorf("connection %d: %v", i, err)
						}
					}
				})
			}
			wg.Wait()
			each := (max(memory(), before) - before) / most
			t.Logf("%d bytes for each of %d idle connections, both ends", each, most)
			if each > tc.bytes {
				t.Errorf("an idle connection takes %d bytes, the most is %d", each, tc.bytes)
			}
			for range 10 {
				dialRaw(t, all[tc.name]).ended("one too many")
			}
			for _, i := range []int{0, most / 2, most - 1} {
				if err := tc.serves(conns[i]); err != nil {
					t.Errorf("connection %d, when all are there: %v", i, err)
				}
			}
			for _, c := range conns {
				_ = c.Close()
			}
			// The proxy hears of it a little later.
			for {
				err := tc.serves(dialRaw(t, all[tc.name]))
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("when all are gone: %v", err)
				}
			}
		})
	}
}

// memory is what the heap and the stacks take.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
