// Package listener is where connections come in: listeners that bound their
// number, and the servers on them, which bound what one of them may do. Nothing
// else of Weft listens.
package listener

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/pkg/outage"
)

// Listener bounds the connections of a net.Listener and knows them, so that
// those that do not end by themselves can be cut. One too many is closed at
// once, so that whoever asks goes elsewhere instead of waiting. Its methods are
// safe for concurrent use.
type Listener struct {
	net.Listener
	most int
	// stalled counts those that were closed since they took nothing, unfinished those
	// whose messages were not whole where such took too much.
	accepted, stalled, unfinished atomic.Int64
	refused                       [reasons]atomic.Int64

	// room is shared with others, of which this one takes share at most; nil is
	// without bound. say hears of what is refused.
	room  *Room
	share int
	say   *outage.Log
	// handshakes has an element for each connection that is in its handshake; nil is
	// without bound.
	handshakes    chan struct{}
	handshakeTurn time.Duration

	mu      sync.Mutex
	conns   map[*conn]struct{}
	full    bool // one was refused, and there is little more room since
	stopped bool

	closed chan struct{}
	once   sync.Once

	// spare is a descriptor that is kept for when there are none; guarded by spareMu,
	// which is held while one connection is shed.
	spareMu sync.Mutex
	spare   *os.File
}

type conn struct {
	net.Conn
	l     *Listener
	from  peerAddr
	ready ready
	// arriving is of the server of gRPC that it is a connection of; nil before its
	// handshake.
	arriving *arriving
	turn     turn
}

// Listen listens on a TCP address and takes at most most connections at a time.
func Listen(addr string, most int) (*Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return bounded(l, most)
}

func bounded(l net.Listener, most int) (*Listener, error) {
	spare, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Listener{Listener: l, most: most, conns: map[*conn]struct{}{}, closed: make(chan struct{}), spare: spare}, nil
}

// Accept waits for a connection that there is room for.
func (l *Listener) Accept() (net.Conn, error) {
	l.awaitTurn()
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			c, err = l.shed(err)
		}
		if errors.Is(err, errShed) {
			l.refuse(Descriptors, err)
			continue
		}
		if err != nil {
			l.giveTurn()
			return nil, l.ended(err)
		}
		if l.handshakes != nil && gone(c) {
			_ = c.Close()
			continue
		}
		out, why, err := l.take(c)
		if err == nil {
			l.accepted.Add(1)
			return out, nil
		}
		l.refuse(why, err)
		_ = c.Close()
	}
}

func (l *Listener) refuse(why Reason, err error) {
	l.refused[why].Add(1)
	l.mu.Lock()
	l.full = true
	l.mu.Unlock()
	if l.say != nil {
		l.say.Is(err)
	}
}

// errShed is of a connection that was closed, since the process has no descriptor for it.
var errShed = errors.New("the process has no descriptors left")

// shed takes the connection that there was no descriptor for, with one that is kept for
// this, and closes it where there is still none: who connects hears so, and does not
// wait. It is called by who accepts.
func (l *Listener) shed(why error) (net.Conn, error) {
	l.spareMu.Lock()
	defer l.spareMu.Unlock()
	if l.spare == nil {
		if l.spare, _ = os.Open(os.DevNull); l.spare == nil {
			return nil, why
		}
	}
	_ = l.spare.Close()
	c, err := l.Listener.Accept()
	if l.spare, _ = os.Open(os.DevNull); l.spare != nil || err != nil {
		return c, err // there is room again
	}
	_ = c.Close()
	l.spare, _ = os.Open(os.DevNull)
	return nil, errShed
}

// take takes a connection, or says why there is no room for it.
func (l *Listener) take(c net.Conn) (*conn, Reason, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.conns) >= l.most:
		return nil, Limit, fmt.Errorf("there are %d connections, which is the most", l.most)
	case l.room == nil:
	case len(l.conns) >= l.share || !l.room.take():
		return nil, Descriptors, fmt.Errorf("there are %d connections, and %d descriptors for them and the rest", l.room.taken.Load(), l.room.descriptors)
	}
	out := &conn{Conn: c, l: l, ready: newReady(c)}
	out.from = peerAddr{c.RemoteAddr(), out}
	out.begin() // before others may close it
	l.conns[out] = struct{}{}
	return out, 0, nil
}

// forget gives the room of a connection back.
func (l *Listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	most := l.most
	if l.room != nil {
		l.room.leave()
		most = min(most, l.share)
	}
	if l.full && len(l.conns) <= most*3/4 && (l.room == nil || l.room.taken.Load() <= l.room.most*3/4) {
		l.full = false
		if l.say != nil {
			l.say.Is(nil)
		}
	}
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
	err := l.Listener.Close()
	l.once.Do(func() {
		close(l.closed)
		l.spareMu.Lock()
		defer l.spareMu.Unlock()
		if l.spare != nil {
			_ = l.spare.Close()
		}
	})
	return err
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
func (l *Listener) Refused(why Reason) int64 { return l.refused[why].Load() }

// Stalled is the number of connections of gRPC that were closed since they took nothing.
func (l *Listener) Stalled() int64 { return l.stalled.Load() }

// Unfinished is the number of connections of gRPC that were closed where messages that
// were not whole took too much, since one of theirs had begun first.
func (l *Listener) Unfinished() int64 { return l.unfinished.Load() }

func (c *conn) Close() error {
	c.l.forget(c)
	c.turn.end()
	return c.Conn.Close()
}
