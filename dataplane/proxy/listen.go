package proxy

import (
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// listener bounds the connections of a net.Listener and knows them, so that
// those that do not end by themselves can be cut.
type listener struct {
	net.Listener
	// room has one element for each connection; more wait in the kernel's
	// queue.
	room chan struct{}

	mu      sync.Mutex
	conns   map[*conn]struct{}
	taken   int // connections ever
	stopped bool

	closed chan struct{}
	once   sync.Once
}

type conn struct {
	net.Conn
	l    *listener
	once sync.Once
}

func listen(addr string, most int) (*listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, room: make(chan struct{}, most), conns: map[*conn]struct{}{}, closed: make(chan struct{})}, nil
}

// Accept waits for a connection and for room for it.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		out := &conn{Conn: c, l: l}
		l.conns[out] = struct{}{}
		l.taken++
		return out, nil
	}
	<-l.room
	if l.stopped {
		l.mu.Unlock()
		<-l.closed
		l.mu.Lock()
		return nil, net.ErrClosed
	}
	return nil, err
}

// stop refuses new connections without whoever accepts noticing: Accept waits
// until Close.
func (l *listener) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	_ = l.Listener.Close()
}

// Close stops accepting; connections go on.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// cut closes every connection and says how many there were.
func (l *listener) cut() int {
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

func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

func (l *listener) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}

func (c *conn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		delete(c.l.conns, c)
		c.l.mu.Unlock()
		<-c.l.room
	})
	return c.Conn.Close()
}

// connections counts the open connections of the listeners.
func connections(ls map[string]*listener) []prometheus.Collector {
	var out []prometheus.Collector
	for name, l := range ls {
		out = append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_connections", Help: "Open connections of a listener.",
			ConstLabels: prometheus.Labels{"listener": name}}, func() float64 { return float64(l.count()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_proxy_connections_accepted_total", Help: "Connections that a listener took.",
				ConstLabels: prometheus.Labels{"listener": name}}, func() float64 { return float64(l.total()) }))
	}
	return out
}
