package listener

import (
	"errors"
	"io"
	"net"
	"syscall"

	"google.golang.org/grpc/mem"
)

// ready reads from a connection into a buffer that it takes once there is something
// to read: one that is idle holds none. It is used by one reader at a time.
type ready struct {
	raw  syscall.RawConn // nil where the connection has none
	try  func(fd uintptr) bool
	size int
	pool mem.BufferPool
	buf  *[]byte
	n    int
	err  error
}

func newReady(c net.Conn) (r ready) {
	if sc, ok := c.(syscall.Conn); ok {
		r.raw, _ = sc.SyscallConn()
	}
	return r
}

// ReadOnReady waits for bytes and reads at most size of them into a buffer of pool,
// which is the caller's. gRPC uses it where a connection has it, and otherwise holds a
// buffer for each.
func (c *conn) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	r := &c.ready
	if r.raw == nil {
		buf := pool.Get(size)
		n, err := c.Read(*buf)
		if n == 0 && err != nil {
			pool.Put(buf)
			buf = nil
		}
		return buf, n, err
	}
	if r.try == nil {
		r.try = r.read
	}
	r.size, r.pool, r.buf, r.n, r.err = size, pool, nil, 0, nil
	err := r.raw.Read(r.try)
	buf, n := r.buf, r.n
	if err == nil {
		err = r.err
	}
	r.pool, r.buf = nil, nil
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		if buf != nil {
			pool.Put(buf)
		}
		return nil, 0, err
	}
	return buf, n, nil
}

// read tries to read, and reports false where there is nothing yet.
func (r *ready) read(fd uintptr) (done bool) {
	r.buf = r.pool.Get(r.size)
	for r.n, r.err = syscall.Read(int(fd), *r.buf); errors.Is(r.err, syscall.EINTR); { //nolint:gosec // a file descriptor
		r.n, r.err = syscall.Read(int(fd), *r.buf) //nolint:gosec // likewise
	}
	if r.err == nil {
		return true
	}
	r.pool.Put(r.buf)
	r.buf, r.n = nil, 0
	return !errors.Is(r.err, syscall.EAGAIN)
}
