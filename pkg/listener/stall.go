package listener

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// peerAddr is where a connection comes from, and knows the connection: servers keep
// the address alone.
type peerAddr struct {
	net.Addr
	c *conn
}

// RemoteAddr is where the connection comes from.
func (c *conn) RemoteAddr() net.Addr { return &c.from }

// unstalled closes the connection of a stream that has waited for so long in one send.
func unstalled(after time.Duration) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		from := origin(ss.Context())
		if from == nil {
			return h(srv, ss)
		}
		w := &watched{ServerStream: ss, from: from, many: info.IsClientStream, after: after, wait: after, timer: time.AfterFunc(after, from.cutStalled)}
		w.timer.Stop()
		return h(srv, w)
	}
}

// origin is the connection of a call; nil where it is not of a Listener.
func origin(ctx context.Context) *conn {
	p, _ := grpcpeer.FromContext(ctx)
	if p == nil {
		return nil
	}
	from, _ := p.Addr.(*peerAddr)
	if from == nil {
		return nil
	}
	return from.c
}

// cutStalled closes a connection whose client takes nothing.
func (c *conn) cutStalled() { c.cut(&c.l.stalled) }

// cut closes the connection and counts it, unless it was closed before.
func (c *conn) cut(count *atomic.Int64) {
	if c.Close() == nil {
		count.Add(1)
	}
}

// watched is a stream whose sends are timed, one at a time.
type watched struct {
	grpc.ServerStream
	from  *conn
	many  bool // messages of the client
	after time.Duration
	wait  time.Duration // for what was sent before
	timer *time.Timer
}

// Sized is a message that knows how long it is, in bytes.
type Sized interface{ Size() int }

// SendMsg waits until the transport has room for the message: until the client has taken
// the one before, but for its end.
func (w *watched) SendMsg(m any) error {
	w.timer.Reset(w.wait)
	defer w.timer.Stop()
	n := 0
	switch m := m.(type) {
	case []byte:
		n = len(m)
	case Sized:
		n = m.Size()
	case proto.Message:
		if !w.many { // or it is one of many that are small
			n = proto.Size(m)
		}
	}
	w.wait = Patience(w.after, n)
	return w.ServerStream.SendMsg(m)
}

// RecvMsg waits for a message of the client.
func (w *watched) RecvMsg(m any) error {
	if w.many {
		return w.ServerStream.RecvMsg(m)
	}
	return incoming(w.from, m, w.ServerStream.RecvMsg)
}

// untaken gives the answers of calls to codecs with who waits for them.
func untaken(after time.Duration) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		resp, err := h(ctx, req)
		m, ok := resp.(proto.Message)
		if from := origin(ctx); ok && err == nil && from != nil {
			return &Answer{Message: m, from: from, after: after}, nil
		}
		return resp, err
	}
}

// Answer is the answer to a call that is no stream. The transport takes it whole,
// whether or not its client does, so a codec has it watched.
type Answer struct {
	proto.Message
	from  *conn
	after time.Duration
}

// leastRate is how many bytes a second a client takes of what is large, at least.
const leastRate = 64 << 10

// Patience is how long a client that may take nothing for so long may take for n bytes:
// a second more for each 64 KiB.
func Patience(after time.Duration, n int) time.Duration {
	return after + time.Duration(n/leastRate)*time.Second
}

// Watch gives the encoded answer to the transport. Where the client does not take it in
// time, its connection is closed.
func (a *Answer) Watch(b []byte) mem.Buffer {
	if mem.IsBelowBufferPoolingThreshold(cap(b)) {
		return mem.SliceBuffer(b) // of which nobody hears when it is taken
	}
	return mem.NewBuffer(&b, taken{time.AfterFunc(Patience(a.after, len(b)), a.from.cutStalled)})
}

// taken is told when the transport is done with a buffer.
type taken struct{ timer *time.Timer }

// Get makes a buffer.
func (taken) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put ends the wait.
func (t taken) Put(*[]byte) { t.timer.Stop() }
