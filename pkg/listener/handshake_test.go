package listener

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// queue is a listener whose connections a test puts in.
type queue chan net.Conn

func (q queue) Accept() (net.Conn, error) {
	if c, ok := <-q; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (q queue) Close() error { close(q); return nil }
func (queue) Addr() net.Addr { return &net.TCPAddr{} }

// TestHandshakesAtOnce: of many that come at once so many are in their handshake at a
// time; more come when some are done, have gone, or have had their turn, whatever they do.
func TestHandshakesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, atOnce = 100, 4
		come := make(queue, many)
		for range many {
			a, b := net.Pipe()
			defer b.Close()
			come <- a
		}
		l, err := bounded(come, many)
		if err != nil {
			t.Fatal(err)
		}
		l.handshakes, l.handshakeTurn = make(chan struct{}, atOnce), time.Second
		var mu sync.Mutex
		var open []net.Conn // guarded by mu
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				open = append(open, c)
				mu.Unlock()
			}
		})
		are := func(n int, when string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(open) != n {
				t.Fatalf("%s: %d are taken, wanted are %d", when, len(open), n)
			}
		}
		all := func() []net.Conn {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(open)
		}
		are(4, "at first")
		shaken(all()[0])
		are(5, "when one is done")
		shaken(all()[0])
		are(5, "when it is done again")
		_ = all()[0].Close()
		are(5, "when it has gone")
		_ = all()[1].Close()
		_ = all()[1].Close()
		are(6, "when one has gone")
		<-time.After(999 * time.Millisecond) // of the bubble
		are(6, "before their turn is over")
		<-time.After(2 * time.Millisecond) // of the bubble
		are(10, "when their turn is over")
		for _, c := range all() {
			_ = c.Close()
		}
		are(14, "when all of them have gone")
		_ = l.Close()
		accepting.Wait()
		for _, c := range all() {
			_ = c.Close()
		}
		for c := range come {
			_ = c.Close()
		}
	})
}

// TestHandshakesEnd: servers of both kinds tell when a handshake is done: many come one
// after the other and stay, where two may be in theirs at a time.
func TestHandshakesEnd(t *testing.T) {
	config, insecure := selfSigned(t)
	for name, serve := range map[string]func(net.Listener) (stop func() error){
		"http/1.1": func(l net.Listener) func() error {
			s := HTTP(http.NotFoundHandler(), HTTPLimits{})
			s.ErrorLog = log.New(io.Discard, "", 0)
			go func() { _ = s.Serve(tls.NewListener(l, config)) }()
			return s.Close
		},
		"h2": func(l net.Listener) func() error {
			s := GRPC(GRPCLimits{TLS: config})
			grpc_health_v1.RegisterHealthServer(s, health.NewServer())
			go func() { _ = s.Serve(l) }()
			return func() error { s.Stop(); return nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Listen("127.0.0.1:0", 100)
			if err != nil {
				t.Fatal(err)
			}
			l.handshakes, l.handshakeTurn = make(chan struct{}, 2), time.Hour
			stop := serve(l)
			t.Cleanup(func() { _ = stop() })
			for range 20 {
				if name == "h2" {
					conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(insecure)))
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = conn.Close() })
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
					if cancel(); err != nil {
						t.Fatal(err)
					}
					continue
				}
				c := tls.Client(dial(t, l.Addr()), insecure)
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCutAsAccepted: a connection that is cut before Accept has returned it gives its turn back.
func TestCutAsAccepted(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 100)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.handshakes, l.handshakeTurn = make(chan struct{}, 2), time.Hour
	dial(t, l.Addr())
	c, err := l.Listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.awaitTurn()
	if _, _, err := l.take(c); err != nil {
		t.Fatal(err)
	}
	if n := l.Cut(); n != 1 || len(l.handshakes) != 0 {
		t.Errorf("%d are cut, %d are in their handshake", n, len(l.handshakes))
	}
}
