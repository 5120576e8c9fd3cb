package listener

import (
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
)

// arriving bounds what the messages of gRPC take that have begun and are not whole, of
// all connections of a server: gRPC itself bounds one message and the calls of one
// connection, which is a thousand times too much. It is safe for concurrent use.
type arriving struct {
	most    int64 // bytes, of all
	longest int   // bytes of one message
	calls   int   // of one connection

	mu          sync.Mutex
	bytes       int64
	first, last *message // those that are held, in the order in which they began
}

// hold counts n bytes more of a message. Where all take too much, those that began first
// are given up, each with its connection: whoever sends what was begun is hit last.
func (a *arriving) hold(m *message, n int64) {
	m.held = true
	a.mu.Lock()
	if m.cut {
		a.mu.Unlock()
		return
	}
	if m.bytes == 0 {
		m.earlier = a.last
		if a.last != nil {
			a.last.later = m
		} else {
			a.first = m
		}
		a.last = m
	}
	m.bytes += n
	a.bytes += n
	var cut []*conn
	for a.bytes > a.most {
		oldest := a.first
		oldest.cut = true
		cut = append(cut, oldest.from)
		a.remove(oldest)
	}
	a.mu.Unlock()
	for _, c := range cut {
		c.cut(&c.l.unfinished)
	}
}

// whole is told that a message is whole, or that nobody waits for the rest of it.
func (a *arriving) whole(m *message) {
	if !m.held {
		return
	}
	m.held = false
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.bytes > 0 {
		a.remove(m)
	}
}

// remove takes a message from the list.
func (a *arriving) remove(m *message) {
	if m.earlier != nil {
		m.earlier.later = m.later
	} else {
		a.first = m.later
	}
	if m.later != nil {
		m.later.earlier = m.earlier
	} else {
		a.last = m.earlier
	}
	a.bytes -= m.bytes
	m.bytes, m.earlier, m.later = 0, nil, nil
}

// held is the sum.
func (a *arriving) held() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes
}

// followed is a connection whose calls are followed.
type followed struct {
	net.Conn
	reset func(stream uint32)

	mu   sync.Mutex
	in   calls
	said splitter // by the server; of who writes
}

func (f *followed) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.take(p[:n])
	return n, err
}

func (f *followed) take(p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in.take(p)
}

func (f *followed) Write(p []byte) (int, error) {
	f.said.resets(p, f.reset)
	return f.Conn.Write(p)
}

func (f *followed) ended(stream uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.in.ended(stream)
}

func (f *followed) Close() error {
	f.mu.Lock()
	f.in.close()
	f.mu.Unlock()
	return f.Conn.Close()
}

// followedReady is one that takes its buffers once there is something to read.
type followedReady struct {
	*followed
	c *conn
}

// ReadOnReady is that of the connection.
func (f followedReady) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	buf, n, err := f.c.ReadOnReady(size, pool)
	if buf != nil {
		f.take((*buf)[:n])
	}
	return buf, n, err
}

// following has the calls of the connections that its handshakes are of followed.
type following struct {
	credentials.TransportCredentials
	secure   bool // by TLS
	arriving *arriving
	pool     mem.BufferPool // of what is read beneath TLS
}

// ServerHandshake is the handshake of a connection that came.
func (c following) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	defer shaken(raw)
	from, ok := raw.(*conn)
	if !ok {
		return c.TransportCredentials.ServerHandshake(raw)
	}
	from.arriving = c.arriving
	f := &followed{in: calls{splitter: splitter{preface: clientPreface}, arriving: c.arriving, from: from}}
	f.reset = f.ended
	var out net.Conn = followedReady{f, from}
	if c.secure {
		r := newRecords(from, c.pool)
		raw, out = r, &securedReady{followed: f, records: r}
	}
	var info credentials.AuthInfo
	var err error
	if f.Conn, info, err = c.TransportCredentials.ServerHandshake(raw); err != nil {
		return nil, nil, err
	}
	return out, info, nil
}

// Clone is the same.
func (c following) Clone() credentials.TransportCredentials {
	c.TransportCredentials = c.TransportCredentials.Clone()
	return c
}
