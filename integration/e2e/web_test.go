package e2e

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// web is a publisher's client over HTTP, with one request at a time. It counts for each
// proxy the connections that it has closed by itself, though the proxy had answered and
// asked for no end: Go's client gives one up whose request it does not hear to be
// written within 50 ms of the answer, as happens on a busy machine.
type web struct {
	*http.Client
	k *keyed

	mu   sync.Mutex
	last map[string]*webConn // by address
}

type webConn struct {
	net.Conn
	w *web
	// Guarded by w.mu: ended, by the other side, before it was closed; failed: its last
	// exchange did not end as it should, or the proxy asked to close it.
	ended, closed, failed bool
}

func (k *keyed) newWeb() *web {
	w := &web{k: k, last: map[string]*webConn{}}
	w.Client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, DialContext: w.dial}}
	return w
}

// answered notes how the last exchange with an address has ended.
func (w *web) answered(addr string, fine bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.last[addr]; last != nil {
		last.failed = !fine
	}
}

func (w *web) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.last[addr]; last != nil && last.closed && !last.ended && !last.failed {
		for _, e := range w.k.at {
			if e.httpIn.addr == addr {
				e.givenUp.Add(1)
			}
		}
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.last[addr] = &webConn{Conn: c, w: w}
	return w.last[addr], nil
}

func (c *webConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		c.ended = c.ended || !c.closed
	}
	return n, err
}

func (c *webConn) Close() error {
	c.w.mu.Lock()
	c.closed = true
	c.w.mu.Unlock()
	return c.Conn.Close()
}
