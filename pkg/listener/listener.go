// Package listener is where connections come in: listeners that bound their
// number, and the servers on them, which bound what one of them may do. Nothing
// else of Weft listens.
package listener

import (
	"net"
	"sync"
	"sync/atomic"
)

// Listener bounds the connections of a net.Listener and knows them, so that
// those that do not end by themselves can be cut. One too many is closed at
// once, so that whoever asks goes elsewhere instead of waiting. Its methods are
// safe for concurrent use.
type Listener struct {
	net.Listener
	most              int
	accepted, refused atomic.Int64

	mu      sync.Mutex
	conns   map[*conn]struct{}
	stopped bool

	closed chan struct{}
	once   sync.Once
}

type conn struct {
	net.Conn
	l *Listener
}

// Listen listens on a TCP address and takes at most most connections at a time.
func Listen(addr string, most int) (*Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Listener{Listener: l, most: most, conns: map[*conn]struct{}{}, closed: make(chan struct{})}, nil
}

// Accept waits for a connection that there is room for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, l.ended(err)
		}
		if out := l.take(c); out != nil {
			l.accepted.Add(1)
			return out, nil
		}
		l.refused.Add(1)
		_ = c.Close()
	}
}

func (l *Listener) take(c net.Conn) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= l.most {
		return nil
	}
	out := &conn{Conn: c, l: l}
	l.conns[out] = struct{}{}
	return out
}

// ended is what Accept returns where no more connections come. After Stop it
// waits until Close.
func (l *Listener) ended(err error) error {
	l.mu.Lock()
	stopped := l.stopped
	l.mu.Unlock()
	if stopped {
		<-l.closed
		return net.ErrClosed
	}
	return err
}

// Stop refuses new connections without whoever accepts noticing: Accept waits
// until Close.
func (l *Listener) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	_ = l.Listener.Close()
}

// Close stops accepting; connections go on.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Cut closes every connection and says how many there were.
func (l *Listener) Cut() int {
	l.mu.Lock()
	cs := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		cs = append(cs, c)
	}
	l.mu.Unlock()
	for _, c := range cs {
		_ = c.Close()
	}
	return len(cs)
}

// Count is the number of open connections.
func (l *Listener) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// Accepted is the number of connections that were taken, ever.
func (l *Listener) Accepted() int64 { return l.accepted.Load() }

// Refused is the number of connections that there was no room for.
func (l *Listener) Refused() int64 { return l.refused.Load() }

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
