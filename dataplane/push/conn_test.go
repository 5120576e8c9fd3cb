package push

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	configv1 "github.com/weft-mesh/weft/proto/gen/weft/config/v1alpha1"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/snapshot"
	"github.com/weft-mesh/weft/pkg/rest"
)

// serve has serve at the other end of each connection of c.
func serve(c *client, serve func(net.Conn)) {
	c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go serve(theirs)
		return ours, nil
	}
}

// TestProtocolSwitched: a target that answers 101 has answered, whatever it does with the
// connection then.
func TestProtocolSwitched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(&Config{}, "demo")
		defer c.close()
		serve(c, func(conn net.Conn) {
			defer conn.Close()
			r := bufio.NewReader(conn)
			if req, err := http.ReadRequest(r); err != nil || req.Body.Close() != nil {
				t.Error("no request came")
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			_, _ = io.Copy(io.Discard, r)
		})
		push := &snapshot.Push{URL: "http://target.example", Timeout: time.Second, Origin: "mesh.example"}
		if a, _ := c.post(t.Context(), push, nil, snapshot.Key{}, &delivery.Delivery{Event: ev("1")}); a.outcome != Refused || a.reason != "http 101" {
			t.Errorf("%+v", a)
		}
		if _, a := c.ask(t.Context(), push); a.outcome != NoConsent || !strings.HasSuffix(a.reason, "http 101") {
			t.Errorf("asked for its consent: %+v", a)
		}
	})
}

// TestLocationUnread: a redirect is the answer that it is, wherever it would lead.
func TestLocationUnread(t *testing.T) {
	h := newHook(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/orders/100%")
		w.WriteHeader(http.StatusSeeOther)
	})
	c := newClient(&Config{Allow: loopback}, "demo")
	defer c.close()
	settle, err := rest.ParseStatuses([]string{"303"})
	if err != nil {
		t.Fatal(err)
	}
	push := &snapshot.Push{URL: h.URL, Timeout: 10 * time.Second, SettleOn: settle}
	if a, _ := c.post(t.Context(), push, nil, snapshot.Key{}, &delivery.Delivery{Event: ev("1")}); a.outcome != outcomeOK {
		t.Errorf("%+v", a)
	}
}

// lossy is a connection whose writes wait for nobody, and are lost while lost says so.
type lossy struct {
	net.Conn
	lost   atomic.Bool
	out    chan []byte
	closed context.Context
	close  context.CancelFunc
}

func newLossy(c net.Conn) *lossy {
	l := &lossy{Conn: c, out: make(chan []byte, 64)}
	l.closed, l.close = context.WithCancel(context.Background())
	go func() {
		for {
			select {
			case b := <-l.out:
				_, _ = c.Write(b)
			case <-l.closed.Done():
				return
			}
		}
	}()
	return l
}

func (l *lossy) Write(b []byte) (int, error) {
	if !l.lost.Load() {
		l.out <- bytes.Clone(b)
	}
	return len(b), l.closed.Err()
}

func (l *lossy) Close() error { l.close(); return l.Conn.Close() }

// TestConnectionLost: where nothing comes through a connection over HTTP/2 any more, as
// behind a balancer that has forgotten it, another is made, and not only once TCP gives up.
func TestConnectionLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner, dir, n := newAuthority(t), t.TempDir(), make(pipes)
		put(t, filepath.Join(dir, "demo", "ca"), partner.pem())
		var over2 atomic.Bool
		conf := partner.server()
		conf.ClientAuth = tls.NoClientCert
		server := &http.Server{ReadHeaderTimeout: time.Minute, TLSConfig: conf, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			over2.Store(r.ProtoMajor == 2)
		})}
		served := make(chan error, 1)
		go func() { served <- server.ServeTLS(n, "", "") }()
		c := newClient(&Config{Secrets: dir}, "demo")
		var last *lossy
		c.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := n.dial(ctx, network, addr)
			last = newLossy(conn)
			return last, err
		}
		push := &snapshot.Push{URL: "https://target.example", CA: "ca", Timeout: 10 * time.Second}
		post := func() answer {
			a, _ := c.post(t.Context(), push, nil, snapshot.Key{}, &delivery.Delivery{Event: ev("1")})
			return a
		}
		if a := post(); a.outcome != outcomeOK || !over2.Load() {
			t.Fatalf("%+v, over HTTP/2: %v", a, over2.Load())
		}
		last.lost.Store(true)
		failures := 0
		for a := post(); a.outcome != outcomeOK; a = post() {
			if failures++; failures > 5 {
				t.Errorf("%d requests in a row have failed: %s", failures, a.reason)
				break
			}
		}
		c.close()
		close(n)
		_ = server.Close()
		<-served
	})
}

// TestSentOnce: an attempt is one request, also where a connection breaks under one that
// has an idempotency key.
func TestSentOnce(t *testing.T) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		synctest.Test(t, func(t *testing.T) {
			c := newClient(&Config{}, "demo")
			defer c.close()
			var requests atomic.Int32
			serve(c, func(conn net.Conn) {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if req.Header.Get(name) == "" {
						t.Errorf("it has no %s: %v", name, req.Header)
					}
					if requests.Add(1) == 2 {
						return // without an answer
					}
					_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
				}
			})
			push := &snapshot.Push{URL: "http://target.example", Timeout: time.Second,
				Request: request(t, &configv1.RestRequest{Path: "/orders", Headers: map[string]string{name: "{id}"}})}
			for _, want := range []string{outcomeOK, Failed} {
				if a, _ := c.post(t.Context(), push, nil, snapshot.Key{}, &delivery.Delivery{Event: ev("1")}); a.outcome != want {
					t.Errorf("%+v, want %s", a, want)
				}
				synctest.Wait()
			}
			if n := requests.Load(); n != 2 {
				t.Errorf("%s: two attempts are %d requests", name, n)
			}
		})
	}
}
