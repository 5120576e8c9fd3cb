package listener

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// maxHostile is how much all that is hostile on some connections may take, in bytes.
const maxHostile = 64 << 20

// victim is a server that speaks HTTP/2, and somebody else who uses it.
type victim struct {
	addr net.Addr
	tls  *tls.Config // nil: without
	path string
	ask  func() error // what others do
}

func (v victim) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", v.addr.String())
	if err == nil && v.tls != nil {
		c = tls.Client(c, v.tls)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// selfSigned is TLS of a server, and of those who do not mind who it is.
func selfSigned(t *testing.T) (server, insecure *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}} //nolint:gosec // the test's own
}

// victims are both kinds of server, with the limits that the proxy gives them.
func victims(t *testing.T) map[string]victim {
	on := serveGRPC(t, GRPCLimits{Message: 8 << 20, Streams: 1000, Arriving: maxHostile / 4}).Addr()
	client := healthClient(t, on)
	config, insecure := selfSigned(t)
	l, err := Listen("127.0.0.1:0", 100)
	if err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 256<<10)
	srv := HTTP(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(answer)
	}), HTTPLimits{Header: 32 << 10})
	srv.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLSConfig = config
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(l, "", "") }()
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true}, Timeout: time.Minute}
	t.Cleanup(func() {
		web.CloseIdleConnections()
		_ = srv.Close()
		<-ended
	})
	return map[string]victim{
		"gRPC": {addr: on, path: "/grpc.health.v1.Health/Check", ask: func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			return err
		}},
		"HTTP": {addr: l.Addr(), tls: insecure, path: "/", ask: func() error {
			resp, err := web.Post("https://"+l.Addr().String(), "text/plain", strings.NewReader("x"))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		}},
	}
}

// attacker is a connection with raw frames.
type attacker struct {
	*http2.Framer
	net.Conn
	path  string
	id    uint32 // of the last stream
	said  bytes.Buffer
	enc   *hpack.Encoder
	asked int // settings that are not acknowledged
}

func newAttacker(c net.Conn, path string) *attacker {
	a := &attacker{Framer: http2.NewFramer(c, c), Conn: c, path: path}
	a.id--
	a.enc = hpack.NewEncoder(&a.said)
	return a
}

// open begins another stream.
func (a *attacker) open(end bool) error {
	a.id += 2
	return a.WriteHeaders(http2.HeadersFrameParam{StreamID: a.id, BlockFragment: a.head(), EndHeaders: true, EndStream: end})
}

func (a *attacker) head(more ...hpack.HeaderField) []byte {
	a.said.Reset()
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: a.path}, {Name: ":authority", Value: "localhost"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}}, more...) {
		_ = a.enc.WriteField(f)
	}
	return a.said.Bytes()
}

const floods = 5000

// attacks are what connections do until they are cut off or have done it.
var attacks = map[string]struct {
	deaf bool   // reads nothing
	of   string // the kind of server that it is for; empty: all
	// ends: the server has to end the connection.
	ends bool
	do   func(a *attacker) error
}{
	"rapid reset": {do: func(a *attacker) error {
		for range floods {
			if err := a.open(false); err != nil {
				return err
			}
			if err := a.WriteRSTStream(a.id, http2.ErrCodeCancel); err != nil {
				return err
			}
		}
		return nil
	}},
	"made you reset": {do: func(a *attacker) error {
		for range floods {
			if err := a.open(true); err != nil {
				return err
			}
			// What follows the end of a stream, and a window that overflows.
			if err := a.WriteWindowUpdate(a.id, 1<<31-1); err != nil {
				return err
			}
			if err := a.WriteData(a.id, false, []byte("x")); err != nil {
				return err
			}
		}
		return nil
	}},
	"CONTINUATION without end": {ends: true, do: func(a *attacker) error {
		if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.head()}); err != nil {
			return err
		}
		const size = 16_000 // of a value: 127, 1 and 124*128
		block := append([]byte{0, 1, 'a', 0x7f, 0x81, 0x7c}, bytes.Repeat([]byte{'b'}, size)...)
		for range floods {
			if err := a.WriteContinuation(1, false, block); err != nil {
				return err
			}
		}
		return nil
	}},
	"empty CONTINUATION without end": {do: func(a *attacker) error {
		if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.head()}); err != nil {
			return err
		}
		for range 10 * floods {
			if err := a.WriteContinuation(1, false, nil); err != nil {
				return err
			}
		}
		return nil
	}},
	"SETTINGS, unread": {deaf: true, do: func(a *attacker) error {
		for range 10 * floods {
			if err := a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16}); err != nil {
				return err
			}
		}
		return nil
	}},
	"PING, unread": {deaf: true, do: func(a *attacker) error {
		for range 10 * floods {
			if err := a.WritePing(false, [8]byte{1}); err != nil {
				return err
			}
		}
		return nil
	}},
	"no window": {do: func(a *attacker) error {
		if err := a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
			return err
		}
		for range 2000 { // more than there may be at a time
			if err := a.open(true); err != nil {
				return err
			}
		}
		return nil
	}},
	"headers that grow": {do: func(a *attacker) error {
		// One field in the table of 4 KiB, and thousands of references to it.
		block := a.head(hpack.HeaderField{Name: "a", Value: strings.Repeat("b", 4000)})
		for range 100 {
			a.id += 2
			if err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: a.id, BlockFragment: append(block, bytes.Repeat([]byte{0x80 | 62}, 10_000)...), EndHeaders: true, EndStream: true}); err != nil {
				return err
			}
			block = a.head()
		}
		return nil
	}},
	"frames of no kind": {do: func(a *attacker) error {
		for range 10 * floods {
			if err := a.WriteRawFrame(0xfe, 0xff, 0, nil); err != nil {
				return err
			}
		}
		return nil
	}},
	"PRIORITY": {do: func(a *attacker) error {
		for i := range uint32(10 * floods) {
			if err := a.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 3}); err != nil {
				return err
			}
		}
		return nil
	}},
	"messages that are never whole": {do: func(a *attacker) error {
		for range 1000 {
			if err := a.begins(60 << 10); err != nil {
				return err
			}
		}
		return nil
	}},
	"messages of one byte a frame": {of: "gRPC", do: func(a *attacker) error {
		for range 60 {
			if err := a.begins(0); err != nil {
				return err
			}
			id := a.id
			one := append(binary.BigEndian.AppendUint32([]byte{0, 0, 1, 0, 0}, id), 'x')
			if _, err := a.Write(bytes.Repeat(one, 60<<10)); err != nil {
				return err
			}
		}
		return nil
	}},
	"a preface that lasts": {deaf: true, do: func(a *attacker) error { return nil }},
}

// inUse is the memory of heap and stacks, in bytes.
func inUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// TestHostileFrames: whatever a connection says in HTTP/2, what it takes is bounded,
// others are served meanwhile, and nothing stays of it.
func TestHostileFrames(t *testing.T) {
	for kind, v := range victims(t) {
		if err := v.ask(); err != nil { // others are connected
			t.Fatal(err)
		}
		for name, attack := range attacks {
			if attack.of != "" && attack.of != kind {
				continue
			}
			t.Run(kind+"/"+name, func(t *testing.T) {
				runtime.GC()
				before := inUse()
				goroutines := runtime.NumGoroutine()
				const attackers = 3
				var doing, reading sync.WaitGroup
				var conns []net.Conn
				ended := make(chan error, attackers)
				for range attackers {
					c := v.dial(t)
					conns = append(conns, c)
					if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
						t.Fatal(err)
					}
					a := newAttacker(c, v.path)
					_ = a.Framer.WriteSettings()
					if !attack.deaf {
						reading.Go(func() { _, _ = io.Copy(io.Discard, c) })
					}
					doing.Go(func() {
						// Who is not read from any more is held up; that is as good as an end.
						if attack.deaf {
							_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
						}
						ended <- attack.do(a)
					})
				}
				done := make(chan struct{})
				go func() { doing.Wait(); close(done) }()
				peak, served := uint64(0), 0
				for over := false; !over; served++ {
					select {
					case <-done:
						over = true // and once more
					default:
					}
					if err := v.ask(); err != nil {
						t.Fatalf("others are not served: %v", err)
					}
					now := inUse()
					if now > before+maxHostile { // also what is let go, where the collector gets no time
						runtime.GC()
						now = inUse()
					}
					peak = max(peak, now)
				}
				for range attackers {
					if err := <-ended; attack.ends && err == nil {
						t.Error("all of it was taken")
					}
				}
				if peak > before+maxHostile {
					t.Errorf("it took %d MiB", (peak-before)>>20)
				}
				for _, c := range conns {
					_ = c.Close()
				}
				reading.Wait()
				for limit := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines+8; {
					if time.Now().After(limit) {
						t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
					}
					runtime.Gosched()
				}
				t.Logf("others were served %d times, at most %d MiB", served, (max(peak, before)-before)>>20)
			})
		}
	}
}

// TestHalfHandshakes: whoever does not end a TLS handshake is cut off.
func TestHalfHandshakes(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 100)
	if err != nil {
		t.Fatal(err)
	}
	srv := HTTP(nil, HTTPLimits{ReadHeader: soon})
	srv.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLSConfig = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, io.EOF }}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	for what, says := range map[string]string{"silent": "", "half a record": "\x16\x03\x01\x02\x00\x01", "a record that is long": "\x16\x03\x01\x40\x00" + strings.Repeat("x", 100)} {
		p := dial(t, l.Addr())
		p.say(says)
		p.closed(what)
	}
}
