package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve takes connections and does something with each, until the test ends.
func serve(t *testing.T, each func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			each(c)
		}
	})
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	return l.Addr().String()
}

// TestDial: a server that is who it must be is reached by TLS; of any other, and of what
// is no server of TLS, the error says what to look at. None is waited for beyond ctx.
func TestDial(t *testing.T) {
	begin := func(change func(*httptest.Server)) string {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = nil
		change(s)
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	trust := x509.NewCertPool()
	good := begin(func(s *httptest.Server) { s.StartTLS(); trust.AddCert(s.Certificate()) })
	strict := begin(func(s *httptest.Server) {
		s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12} //nolint:gosec // by which it refuses within the handshake
		s.StartTLS()
	})
	clear := begin(func(s *httptest.Server) { s.Start() })
	missing := errors.New("the file is not there")
	for name, tc := range map[string]struct {
		addr   string
		change func(*tls.Config)
		err    error
		want   string
	}{
		"good":          {addr: good},
		"a stranger":    {addr: good, change: func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, want: "tls.ca_file"},
		"another name":  {addr: good, change: func(c *tls.Config) { c.ServerName = "elsewhere.test" }, want: "tls.server_name"},
		"expired":       {addr: good, change: func(c *tls.Config) { c.Time = func() time.Time { return time.Now().AddDate(200, 0, 0) } }, want: "not valid"},
		"who are you":   {addr: strict, want: "tls.certificate_file"},
		"in the clear":  {addr: clear, want: "does not speak TLS"},
		"closing":       {addr: serve(t, func(c net.Conn) { _ = c.Close() }), want: "closed the connection"},
		"hanging":       {addr: serve(t, func(net.Conn) {}), want: "does not answer the handshake"},
		"without files": {addr: good, err: missing, want: missing.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			within := 20 * time.Second
			if name == "hanging" {
				within = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			got := make(chan error, 1)
			go func() {
				c, err := Dial(ctx, &net.Dialer{}, tc.addr, func() (*tls.Config, error) {
					conf := &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}
					if tc.change != nil {
						tc.change(conf)
					}
					return conf, tc.err
				})
				if err == nil {
					_ = c.Close()
				}
				got <- err
			}()
			timer := time.NewTimer(30 * time.Second)
			defer timer.Stop()
			select {
			case err := <-got:
				if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("want %q: %v", tc.want, err)
				}
			case <-timer.C:
				t.Fatal("it is waited for")
			}
		})
	}
	c, err := Dial(t.Context(), &net.Dialer{}, clear, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("in the clear a connection is %T, which does not write several buffers at once", c)
	}
	_ = c.Close()
}
