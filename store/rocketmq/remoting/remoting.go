// Package remoting is a client of RocketMQ's remoting protocol: frames with a
// JSON header and a body, answered by their number.
//
// A frame is: 4 bytes total length, 4 bytes header length (its highest byte is
// the header's encoding, 0 for JSON), header, body.
package remoting

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/weft-mesh/weft/store"
)

// maxFrame bounds a frame; brokers answer pulls with at most a few MiB.
const maxFrame = 32 << 20

// maxRecord is the body that over TLS is copied behind its header: in the clear one system
// call writes both, TLS encrypts and writes each by itself.
const maxRecord = 16 << 10

// maxPending bounds requests without an answer on one connection.
const maxPending = 4096

// Command is a request or an answer.
type Command struct {
	Code      int               `json:"code"`
	Language  string            `json:"language"`
	Version   int               `json:"version"`
	Opaque    int32             `json:"opaque"`
	Flag      int               `json:"flag"`
	Remark    string            `json:"remark,omitempty"`
	ExtFields map[string]string `json:"extFields,omitempty"`
	Body      []byte            `json:"-"`
}

const (
	flagResponse = 1
	flagOneway   = 2
	// clientVersion is what requests say: that of RocketMQ 4.9.
	clientVersion = 399
)

// Int reads an integer of the header's fields.
func (c *Command) Int(name string) (int64, error) {
	n, err := strconv.ParseInt(c.ExtFields[name], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the answer's %s is %q", name, c.ExtFields[name])
	}
	return n, nil
}

// Append appends the frame of c.
func (c *Command) Append(b []byte) ([]byte, error) {
	b, err := c.appendHead(b)
	if err != nil {
		return b, err
	}
	return append(b, c.Body...), nil
}

// appendHead appends the frame of c but for its body.
func (c *Command) appendHead(b []byte) ([]byte, error) {
	header, err := json.Marshal(c)
	if err != nil {
		return b, err
	}
	if len(header) >= 1<<24 || 4+len(header)+len(c.Body) > maxFrame {
		return b, errors.New("the frame is too large")
	}
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(header)+len(c.Body))) //nolint:gosec // checked above
	b = binary.BigEndian.AppendUint32(b, uint32(len(header)))               //nolint:gosec // likewise
	return append(b, header...), nil
}

// Decode decodes a frame without its total length. It keeps b.
func Decode(b []byte) (*Command, error) {
	if len(b) < 4 {
		return nil, errors.New("the frame is too short")
	}
	mark := binary.BigEndian.Uint32(b)
	if mark>>24 != 0 {
		return nil, fmt.Errorf("the header's encoding is %d, not JSON", mark>>24)
	}
	n := int(mark & 0xffffff)
	if n > len(b)-4 {
		return nil, errors.New("the header is longer than the frame")
	}
	c := &Command{}
	if err := json.Unmarshal(b[4:4+n], c); err != nil {
		// Some servers write numbers and null among the fields.
		var loose struct {
			Command
			ExtFields map[string]any `json:"extFields"`
		}
		dec := json.NewDecoder(bytes.NewReader(b[4 : 4+n]))
		dec.UseNumber() // an offset is not a float
		if dec.Decode(&loose) != nil {
			return nil, fmt.Errorf("the header: %w", err)
		}
		*c = loose.Command
		c.ExtFields = map[string]string{}
		for k, v := range loose.ExtFields {
			if v != nil {
				c.ExtFields[k] = fmt.Sprint(v)
			}
		}
	}
	c.Body = b[4+n:]
	return c, nil
}

// ErrClosed is why calls fail that a lost connection leaves without an answer:
// whether they were done nobody knows.
var ErrClosed = errors.New("the connection was lost")

// ErrNotSent is why calls fail that were not sent.
var ErrNotSent = errors.New("the request was not sent")

// Conn is one connection. It is safe for concurrent use. After it is lost every
// call fails; make another.
type Conn struct {
	conn   net.Conn
	secure bool // by TLS
	notice func(*Command)

	wmu sync.Mutex // serialises writes

	mu      sync.Mutex
	pending map[int32]chan *Command
	next    int32
	err     error
	done    chan struct{}
	frames  uint64    // that the server has sent
	silent  time.Time // since when calls time out with no frame; zero when they do not
}

// Dial connects, by TLS where secure gives the settings; see store.Dial. notice is
// called, by the reading goroutine, for each request of the server; it must not block.
func Dial(ctx context.Context, addr string, secure func() (*tls.Config, error), notice func(*Command)) (*Conn, error) {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 2}}
	conn, err := store.Dial(ctx, d, addr, secure)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return NewConn(conn, notice), nil
}

// NewConn is a connection over one that stands; see Dial.
func NewConn(conn net.Conn, notice func(*Command)) *Conn {
	_, secure := conn.(*tls.Conn)
	c := &Conn{conn: conn, secure: secure, notice: notice, pending: map[int32]chan *Command{}, done: make(chan struct{})}
	go c.read()
	return c
}

// hangUp ends the connection at once. TLS would say so first, and wait for a server that
// does not read.
func (c *Conn) hangUp() {
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
		return
	}
	_ = c.conn.Close()
}

// Done is closed when the connection is lost.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits until its goroutine has ended.
func (c *Conn) Close() {
	c.hangUp()
	<-c.done
}

func (c *Conn) read() {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	_ = c.lose(c.readAll(r))
	c.mu.Lock()
	for id, ch := range c.pending {
		close(ch)
		delete(c.pending, id)
	}
	c.mu.Unlock()
	close(c.done)
}

// lose ends the connection because of err, unless it has ended already, and gives what
// its calls are told.
func (c *Conn) lose(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		lost := ErrClosed
		if c.frames == 0 {
			if store.RefusedTLS(err) {
				lost = ErrNotSent // the server did not come as far as to requests
			}
			err = fmt.Errorf("%s: %w", c.conn.RemoteAddr(), store.Unanswered(c.secure, err))
		}
		c.err = fmt.Errorf("%w: %w", lost, err)
	}
	c.hangUp() // after it is known why: others see no more than that it is closed
	return c.err
}

func (c *Conn) readAll(r io.Reader) error {
	var head [4]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > maxFrame {
			return fmt.Errorf("the server sent a frame of %d bytes", n)
		}
		b, err := readFrame(r, int(n))
		if err != nil {
			return err
		}
		cmd, err := Decode(b)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.frames++
		c.silent = time.Time{}
		c.mu.Unlock()
		if cmd.Flag&flagResponse == 0 {
			if c.notice != nil {
				c.notice(cmd)
			}
			continue
		}
		c.mu.Lock()
		ch := c.pending[cmd.Opaque]
		delete(c.pending, cmd.Opaque)
		c.mu.Unlock()
		if ch != nil {
			ch <- cmd
		}
	}
}

// readFrame reads n bytes. A large frame gets its memory as it comes: a length
// alone costs nothing.
func readFrame(r io.Reader, n int) ([]byte, error) {
	if n <= 1<<20 {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	var b bytes.Buffer
	b.Grow(1 << 20)
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Call sends a request and waits for its answer. It borrows body. The error is ErrNotSent where
// nothing was sent; after any other one the request may have been done.
func (c *Conn) Call(ctx context.Context, code int, fields map[string]string, body []byte) (*Command, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	ch := make(chan *Command, 1)
	c.mu.Lock()
	switch {
	case c.err != nil:
		err := c.err
		c.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	case len(c.pending) >= maxPending:
		c.mu.Unlock()
		return nil, fmt.Errorf("%w: %d requests wait for an answer", ErrNotSent, maxPending)
	}
	c.next++
	id, frames, began := c.next, c.frames, time.Now()
	c.pending[id] = ch
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}
	head, err := (&Command{Code: code, Language: "GO", Version: clientVersion, Opaque: id, ExtFields: fields, Body: body}).appendHead(nil)
	if err != nil {
		forget()
		return nil, fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	if c.secure && len(body) <= maxRecord {
		head, body = append(head, body...), nil
	}
	if err := c.write(net.Buffers{head, body}); err != nil {
		forget()
		return nil, err
	}
	select {
	case cmd, ok := <-ch:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		}
		return cmd, nil
	case <-ctx.Done():
		forget()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.unanswered(frames, began)
		}
		return nil, ctx.Err()
	}
}

// maxSilence is how long calls may time out, one after the other, without any frame
// of the server, until the connection counts as lost: the other end may be gone
// without a word, and TCP alone would go on sending for many minutes. It is more than
// a slow server needs for an answer to something.
const maxSilence = 10 * time.Second

// unanswered is told of a call that timed out: when it began, and how many frames had
// come by then.
func (c *Conn) unanswered(frames uint64, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frames != frames {
		return
	}
	if c.silent.IsZero() {
		c.silent = began
	}
	if time.Since(c.silent) >= maxSilence {
		c.hangUp()
	}
}

// writeTimeout bounds one write; a server that does not read is as good as
// gone.
const writeTimeout = 10 * time.Second

// write sends a frame that is in parts, so that a body is not copied.
func (c *Conn) write(frame net.Buffers) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = frame.WriteTo(c.conn)
	}
	if err != nil {
		return c.lose(err) // half a frame may be out: nothing more can be sent
	}
	return nil
}
