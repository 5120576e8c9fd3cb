package listener

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a connection of the test's.
type peer struct {
	*testing.T
	net.Conn
}

func dial(t *testing.T, addr net.Addr) *peer {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &peer{t, c}
}

func (p *peer) say(s string) {
	p.Helper()
	if _, err := io.WriteString(p, s); err != nil {
		p.Fatal(err)
	}
}

// closed waits until the other side has closed and gives what it said.
func (p *peer) closed(what string) string {
	p.Helper()
	b, err := io.ReadAll(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.Fatalf("%s: the connection lives", what)
	}
	return string(b)
}

// TestListener: connections are bounded, one too many hears so at once, those
// that come later find room, stopping is not an error to whoever accepts, and
// what is left can be cut.
func TestListener(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 1)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial(t, l.Addr())
	first := <-accepted
	for range 3 {
		dial(t, l.Addr()).closed("one too many")
	}
	if l.Count() != 1 || l.Refused(Limit) != 3 {
		t.Errorf("%d connections, %d refused", l.Count(), l.Refused(Limit))
	}
	for range 2 {
		_ = first.Close() // twice is once
	}
	last := dial(t, l.Addr())
	<-accepted
	l.Stop()
	select {
	case err := <-ended:
		t.Fatalf("stopping is noticed: %v", err)
	default:
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("a stopped listener takes connections")
	}
	if n := l.Cut(); n != 1 || l.Count() != 0 {
		t.Errorf("%d were cut, %d are left", n, l.Count())
	}
	last.closed("cut")
	_ = l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// serveHTTP serves with limits that are over soon.
func serveHTTP(t *testing.T, l HTTPLimits, h http.HandlerFunc) net.Addr {
	t.Helper()
	on, err := Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	s := HTTP(h, l)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(on) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-ended
	})
	return on.Addr()
}

const soon = 50 * time.Millisecond

// counted counts the buffers that are lent.
type counted struct{ lent, got atomic.Int64 }

func (c *counted) Get(n int) *[]byte {
	c.lent.Add(1)
	c.got.Add(1)
	b := make([]byte, n)
	return &b
}

func (c *counted) Put(*[]byte) { c.lent.Add(-1) }

// TestReadOnReady: who waits for bytes holds no buffer meanwhile; deadlines and ends
// are those of the connection.
func TestReadOnReady(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := dial(t, l.Addr())
	taken, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := taken.(*conn)
	pool := &counted{}
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if b, n, err := c.ReadOnReady(4, pool); b != nil || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || pool.lent.Load() != 0 {
		t.Fatalf("without bytes: %v, %d, %v, %d buffers are lent", b, n, err, pool.lent.Load())
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	tried := pool.got.Load()
	go func() { // it looks, and waits without a buffer
		for pool.got.Load() == tried || pool.lent.Load() > 0 {
		}
		p.say("hello")
	}()
	for _, want := range []string{"hell", "o"} {
		b, n, err := c.ReadOnReady(4, pool)
		if err != nil || string((*b)[:n]) != want || pool.lent.Load() != 1 {
			t.Fatalf("%d, %v, %d buffers are lent", n, err, pool.lent.Load())
		}
		pool.Put(b)
	}
	_ = p.Close()
	if b, n, err := c.ReadOnReady(4, pool); b != nil || n != 0 || !errors.Is(err, io.EOF) || pool.lent.Load() != 0 {
		t.Fatalf("at its end: %v, %d, %v, %d buffers are lent", b, n, err, pool.lent.Load())
	}
}

// TestHTTPLimits: whoever is slow or large is cut off.
func TestHTTPLimits(t *testing.T) {
	ok := func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			_, _ = io.WriteString(w, "ok")
		}
	}
	addr := serveHTTP(t, HTTPLimits{ReadHeader: soon}, ok)
	dial(t, addr).closed("silent")
	p := dial(t, addr)
	p.say("GET / HTTP/1.1\r\nHost: x\r\n")
	p.closed("half the headers")

	p = dial(t, serveHTTP(t, HTTPLimits{Read: soon}, ok))
	p.say("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
	p.closed("half the body")

	p = dial(t, serveHTTP(t, HTTPLimits{Idle: soon}, ok))
	p.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := p.closed("idle"); !strings.HasSuffix(got, "ok") {
		t.Errorf("the first request: %q", got)
	}

	p = dial(t, serveHTTP(t, HTTPLimits{Header: 1}, ok)) // and 4 KiB that the server adds
	p.say("GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 8<<10) + "\r\n\r\n")
	if got := p.closed("large headers"); !strings.HasPrefix(got, "HTTP/1.1 431 ") {
		t.Errorf("large headers: %q", got)
	}

	cut := make(chan error, 1)
	p = dial(t, serveHTTP(t, HTTPLimits{Write: soon}, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				cut <- err
				return
			}
		}
	}))
	p.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case err := <-cut:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("whoever does not read: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("whoever does not read is waited for")
	}

	// What is not said has a bound too.
	if s := HTTP(nil, HTTPLimits{}); s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 || s.HTTP2.SendPingTimeout <= 0 {
		t.Errorf("%+v", s)
	}
}

// serveGRPC serves the health service of gRPC with limits that are over soon.
func serveGRPC(t *testing.T, l GRPCLimits) *Listener {
	t.Helper()
	on, err := Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	s := GRPC(l)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(on) }()
	t.Cleanup(func() {
		s.Stop()
		<-ended
	})
	return on
}

// flood serves a stream of messages that are as long as its request says, and tells how
// each of them ended.
func flood(t *testing.T) (on *Listener, sent chan error) {
	on, err := Listen("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	s := GRPC(GRPCLimits{Stall: soon})
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	sent = make(chan error, 100)
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{StreamName: "flood", ServerStreams: true, Handler: func(_ any, ss grpc.ServerStream) error {
		var size grpc_health_v1.HealthCheckRequest
		err := ss.RecvMsg(&size)
		for err == nil {
			err = ss.SendMsg(&grpc_health_v1.HealthCheckRequest{Service: strings.Repeat("x", len(size.Service))})
			sent <- err
		}
		return err
	}}}}, nil)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(on) }()
	t.Cleanup(func() {
		s.Stop()
		<-ended
	})
	return on, sent
}

// flooded is a client that opens the stream and reads nothing of it.
func flooded(ctx context.Context, t *testing.T, on *Listener, size int) grpc.ClientStream {
	t.Helper()
	conn, err := grpc.NewClient(on.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test/flood")
	if err == nil {
		err = errors.Join(stream.SendMsg(&grpc_health_v1.HealthCheckRequest{Service: strings.Repeat("x", size)}), stream.CloseSend())
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestStalledStream: the connection of a client that opens a stream and reads nothing of
// it is closed, and counted; others are served meanwhile.
func TestStalledStream(t *testing.T) {
	on, sent := flood(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream := flooded(ctx, t, on, 10<<10)
	other := healthClient(t, on.Addr())
	for over := false; !over; {
		select {
		case err := <-sent:
			if over = err != nil; over && status.Code(err) != codes.Unavailable && status.Code(err) != codes.Canceled {
				t.Errorf("the stream ends with %v", err)
			}
		case <-ctx.Done():
			t.Fatal("whoever does not read is waited for")
		default:
		}
		if _, err := other.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("others are not served: %v", err)
		}
	}
	var err error
	for err == nil { // what was on its way, and then the end
		err = stream.RecvMsg(&grpc_health_v1.HealthCheckRequest{})
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the client hears %v", err)
	}
	if n := on.Stalled(); n != 1 {
		t.Errorf("%d connections were closed since they took nothing", n)
	}
}

// TestSlowStream: a client that takes long for what is large is not taken for one that
// takes nothing: it would be sent the same again and again.
func TestSlowStream(t *testing.T) {
	on, sent := flood(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	slow := flooded(ctx, t, on, 1<<20)
	if err := <-sent; err != nil { // the transport has it whole
		t.Fatal(err)
	}
	flooded(ctx, t, on, 10<<10) // takes nothing
	for over := false; !over; {
		select {
		case err := <-sent:
			over = err != nil
		case <-ctx.Done():
			t.Fatal("whoever takes nothing is waited for")
		}
	}
	for range 3 {
		if err := slow.RecvMsg(&grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("who is slow is cut off: %v", err)
		}
	}
}

func healthClient(t *testing.T, addr net.Addr) grpc_health_v1.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient(addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpc_health_v1.NewHealthClient(conn)
}

// settings begins HTTP/2 and gives what the server says that it takes.
func (p *peer) settings() map[http2.SettingID]uint32 {
	p.Helper()
	p.say(http2.ClientPreface)
	f := http2.NewFramer(p, p)
	if err := f.WriteSettings(); err != nil {
		p.Fatal(err)
	}
	frame, err := f.ReadFrame()
	if err != nil {
		p.Fatal(err)
	}
	got := map[http2.SettingID]uint32{}
	if s, ok := frame.(*http2.SettingsFrame); ok {
		_ = s.ForeachSetting(func(s http2.Setting) error { got[s.ID] = s.Val; return nil })
	}
	return got
}

// drained answers pings until the other side has closed.
func (p *peer) drained(what string) {
	p.Helper()
	f := http2.NewFramer(p, p)
	for {
		frame, err := f.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.Fatalf("%s: the connection lives", what)
		}
		if err != nil {
			return
		}
		if ping, ok := frame.(*http2.PingFrame); ok {
			_ = f.WritePing(true, ping.Data)
		}
	}
}

// TestGRPCLimits: whoever is slow or large is cut off.
func TestGRPCLimits(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	addr := serveGRPC(t, GRPCLimits{Handshake: soon}).Addr()
	dial(t, addr).closed("silent")
	p := dial(t, addr)
	p.say(http2.ClientPreface[:10])
	p.closed("half the preface")
	p = dial(t, addr)
	p.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	p.closed("another protocol")
	config, _ := selfSigned(t)
	p = dial(t, serveGRPC(t, GRPCLimits{Handshake: soon, TLS: config}).Addr())
	p.say("\x16\x03\x01\x02\x00\x01")
	p.closed("half a handshake")

	p = dial(t, serveGRPC(t, GRPCLimits{Idle: soon}).Addr())
	p.settings()
	p.drained("idle")

	p = dial(t, serveGRPC(t, GRPCLimits{Age: soon}).Addr())
	p.settings()
	p.drained("old")
	// A call that is under way goes on, for as long as grace lets it.
	watch, err := healthClient(t, serveGRPC(t, GRPCLimits{Age: soon, Grace: soon}).Addr()).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("after the grace: %v", err)
	}

	for _, l := range []GRPCLimits{{Streams: 3, Header: 5 << 10}, {}} {
		got := dial(t, serveGRPC(t, l).Addr()).settings()
		if l.Streams == 0 {
			l.Streams, l.Header = 100, 32<<10
		}
		if got[http2.SettingMaxConcurrentStreams] != l.Streams || got[http2.SettingMaxHeaderListSize] != l.Header {
			t.Errorf("%+v: %v", l, got)
		}
	}

	for most, size := range map[int]int{0: 3 << 20, 10: 11} {
		api := healthClient(t, serveGRPC(t, GRPCLimits{Message: most}).Addr())
		if _, err := api.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: strings.Repeat("x", size)}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a message of %d: %v", size, err)
		}
		if _, err := api.Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}
