package remoting

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// pair is a certificate that is good for nobody in particular.
func pair(t *testing.T) []tls.Certificate {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	return s.TLS.Certificates
}

// trusting is a client's configuration that takes any server.
func trusting() (*tls.Config, error) {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, nil //nolint:gosec // who the server is does not matter here
}

// TestTurnedAway: what ends a connection before the server has answered anything is told
// to who waits, with what to look at. Where the server refused the client's certificate,
// which a client hears after the handshake, nothing was done.
func TestTurnedAway(t *testing.T) {
	for name, tc := range map[string]struct {
		secure func() (*tls.Config, error)
		server func(net.Conn)
		unsent bool
		want   string
	}{
		"no certificate": {trusting, func(c net.Conn) {
			_ = tls.Server(c, &tls.Config{Certificates: pair(t), ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}).Handshake()
		}, true, "tls.certificate_file must have one"},
		"closed": {trusting, func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: pair(t), MinVersion: tls.VersionTLS13})
			_, _ = s.Read(make([]byte, 1<<10))
		}, false, "another certificate than tls.certificate_file"},
		"in the clear": {nil, func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<10)) }, false, "it may want TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if c, err := l.Accept(); err == nil {
					tc.server(c)
					_ = c.Close()
				}
			}()
			c, err := Dial(t.Context(), l.Addr().String(), tc.secure, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Call(t.Context(), 10, nil, nil)
			if errors.Is(err, ErrNotSent) != tc.unsent || errors.Is(err, ErrClosed) == tc.unsent || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %q, not sent: %t: %v", tc.want, tc.unsent, err)
			}
			<-ended
		})
	}
}

// counted counts writes.
type counted struct {
	net.Conn
	writes atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// TestSecure: over TLS a request with its body is written at once, and a connection
// whose server does not read any more is given up without waiting for it.
func TestSecure(t *testing.T) {
	certificates := pair(t)
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		raw := &counted{Conn: ours}
		conf, _ := trusting()
		client, server := tls.Client(raw, conf), tls.Server(theirs, &tls.Config{Certificates: certificates, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
		go func() {
			frame := make([]byte, 1<<10)
			n, err := server.Read(frame)
			if err != nil || !strings.HasSuffix(string(frame[:n]), "the body") {
				t.Errorf("came %q, %v", frame[:n], err)
			}
			answer, err := (&Command{Opaque: 1, Flag: flagResponse}).Append(nil)
			if err != nil {
				t.Error(err)
			}
			if _, err := server.Write(answer); err != nil {
				t.Error(err)
			}
		}()
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		before := raw.writes.Load()
		c := NewConn(client, nil)
		if _, err := c.Call(t.Context(), 10, nil, []byte("the body")); err != nil {
			t.Fatal(err)
		}
		if n := raw.writes.Load() - before; n != 1 {
			t.Errorf("%d writes for a request", n)
		}
		began := time.Now()
		c.Close()
		if d := time.Since(began); d != 0 {
			t.Errorf("it took %s to close", d)
		}
		_, _ = io.Copy(io.Discard, theirs)
		_ = theirs.Close()
		if _, err := c.Call(context.Background(), 10, nil, nil); !errors.Is(err, ErrNotSent) {
			t.Error(err)
		}
	})
}
