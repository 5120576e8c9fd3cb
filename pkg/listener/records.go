package listener

import (
	"net"

	"google.golang.org/grpc/mem"
)

// recordHead is what stands before a record of TLS (RFC 8446, 5.1): its type, a version
// and its length.
const recordHead = 5

// recordsRead is how much is read of a connection at once.
const recordsRead = 32 << 10

// records is what TLS reads of a connection: never beyond the end of a record, so that
// it has nothing left where all of a record was read from it, and whether there is more
// is known. It takes its buffer once there is something to read. It is read from by one
// goroutine at a time.
type records struct {
	net.Conn
	from *conn
	pool mem.BufferPool
	buf  *[]byte // nil where nothing waits
	rest []byte  // of buf
	head [recordHead]byte
	have int // bytes of head
	left int // bytes of the record, once head is there
}

func newRecords(from *conn, pool mem.BufferPool) *records {
	return &records{Conn: from, from: from, pool: pool}
}

// fill waits until there is something to read. What failed fails again.
func (r *records) fill() (err error) {
	if len(r.rest) > 0 {
		return nil
	}
	var n int
	if r.buf, n, err = r.from.ReadOnReady(recordsRead, r.pool); r.buf != nil {
		if r.rest = (*r.buf)[:n]; n > 0 {
			return nil
		}
		r.drained()
	}
	return err
}

func (r *records) drained() {
	r.pool.Put(r.buf)
	r.buf, r.rest = nil, nil
}

func (r *records) Read(p []byte) (int, error) {
	if err := r.fill(); err != nil || len(p) == 0 {
		return 0, err
	}
	var n int
	if r.have < recordHead {
		n = copy(p, r.rest[:min(len(r.rest), recordHead-r.have)])
		copy(r.head[r.have:], p[:n])
		if r.have += n; r.have == recordHead {
			r.left = int(r.head[3])<<8 | int(r.head[4])
		}
	} else {
		n = copy(p, r.rest[:min(len(r.rest), r.left)])
		r.left -= n
	}
	if r.have == recordHead && r.left == 0 {
		r.have = 0
	}
	if r.rest = r.rest[n:]; len(r.rest) == 0 {
		r.drained()
	}
	return n, nil
}

// securedReady is a connection of TLS that takes its buffers once there is something to
// read. It is read from by one goroutine at a time.
type securedReady struct {
	*followed
	records *records
	more    bool // of a record that was read there may be more
}

// ReadOnReady waits for bytes and reads at most size of them into a buffer of pool, as
// that of the connection does.
func (s *securedReady) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	if !s.more {
		if err := s.records.fill(); err != nil {
			return nil, 0, err
		}
	}
	buf := pool.Get(size)
	n, err := s.Read(*buf)
	s.more = n == size
	if n == 0 && err != nil {
		pool.Put(buf)
		buf = nil
	}
	return buf, n, err
}
