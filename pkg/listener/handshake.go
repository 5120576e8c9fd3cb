package listener

import (
	"crypto/tls"
	"net"
	"time"
)

const (
	// mostHandshakes is how many connections of a listener are in their TLS handshake at
	// a time. Of thousands that come at once some are done soon, where all would be done
	// late, when nobody waits any more; the rest wait for Accept.
	mostHandshakes = 256
	// handshakeTurn is for how long one is counted: whoever takes longer goes on, and
	// keeps nobody from coming. Who begins handshakes and says nothing so keeps others
	// waiting with no less than a thousand connections a second.
	handshakeTurn = time.Second / 4
)

// LimitHandshakes bounds how many connections are in their TLS handshake at a time,
// where the servers are of HTTP or GRPC. It is called before Accept.
func (l *Listener) LimitHandshakes() {
	l.handshakes, l.handshakeTurn = make(chan struct{}, mostHandshakes), handshakeTurn
}

// awaitTurn waits until one more may be in its handshake.
func (l *Listener) awaitTurn() {
	if l.handshakes == nil {
		return
	}
	select {
	case l.handshakes <- struct{}{}:
	case <-l.closed:
	}
}

func (l *Listener) giveTurn() {
	select {
	case <-l.handshakes:
	default: // the listener was closed while who accepts waited
	}
}

// turn is what a connection has while it is in its handshake. Stopping the timer tells
// who gives it back.
type turn struct {
	timer *time.Timer // nil without
	give  func()
}

func (c *conn) begin() {
	if l := c.l; l.handshakes != nil {
		c.turn = turn{time.AfterFunc(l.handshakeTurn, l.giveTurn), l.giveTurn}
	}
}

// end ends it: the handshake is done, or the connection.
func (t *turn) end() {
	if t.timer != nil && t.timer.Stop() {
		t.give()
	}
}

// shaken is told that a connection is through its handshake.
func shaken(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.turn.end()
	}
}
