package http

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/weft-mesh/weft/dataplane/frontend"
	"github.com/weft-mesh/weft/pkg/event"
	"github.com/weft-mesh/weft/pkg/fault"
)

// body reads a request's body while those of all requests together are within
// what the server may hold.
type body struct {
	s    *Server
	r    io.Reader
	read int64
}

// body is that of a request, of so many bytes at most. One that says that it is longer is
// refused before it is sent.
func (s *Server) body(w http.ResponseWriter, r *http.Request, most int64) *body {
	if r.ContentLength > most {
		return &body{s: s, r: tooLarge(most)}
	}
	return &body{s: s, r: http.MaxBytesReader(w, r.Body, most)}
}

// tooLarge is a body that is longer than it may be.
type tooLarge int64

func (l tooLarge) Read([]byte) (int, error) { return 0, &http.MaxBytesError{Limit: int64(l)} }

var errFull = &fault.Error{Class: fault.Throttled, Op: "http", Reason: "proxy-full", RetryAfter: time.Second, Msg: "the proxy reads as many requests as it may hold; nothing was published"}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read += int64(n)
	if all := b.s.bodies.Add(int64(n)); all > b.s.cfg.MaxBodies && all != b.read {
		return n, errFull
	}
	return n, err
}

// release lets others have the room. It may be called again.
func (b *body) release() {
	b.s.bodies.Add(-b.read)
	b.read = 0
}

// buffer has a request's body, of which events' data are parts, and then the answer;
// and room for one event and its result.
type buffer struct {
	b      []byte
	event  [1]event.Event
	result [1]frontend.Result
}

// Sizes of a buffer: what it has at first at most, since whoever says that a body
// is long has not sent it, and what it has at most to be used again.
const (
	firstBuffer = 64 << 10
	maxBuffer   = 256 << 10
)

// buffers are those that were given back.
var buffers = sync.Pool{New: func() any { return &buffer{} }}

func newBuffer() *buffer { return buffers.Get().(*buffer) } //nolint:forcetypeassert // there is nothing else in it

// read reads all of r, which says that it has length bytes, or less than 0.
func (f *buffer) read(r io.Reader, length int64) error {
	f.b = slices.Grow(f.b[:0], int(min(max(length, 0), firstBuffer))+1) // and the end of it
	for {
		n, err := r.Read(f.b[len(f.b):cap(f.b)])
		f.b = f.b[:len(f.b)+n]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(f.b) == cap(f.b) {
			f.b = slices.Grow(f.b, len(f.b))
		}
	}
}

// results has room for so many.
func (f *buffer) results(n int) []frontend.Result {
	if n == 1 {
		return f.result[:]
	}
	return make([]frontend.Result, n)
}

// release gives the buffer back once nobody reads what it has. Where that is not
// known it is not called, and the garbage collector knows.
func (f *buffer) release() {
	if spoil != nil {
		spoil(f.b[:cap(f.b)])
	}
	if cap(f.b) <= maxBuffer {
		f.event, f.result = [1]event.Event{}, [1]frontend.Result{}
		buffers.Put(f)
	}
}

// spoil, in tests, spoils what is given back, so that whoever still reads it
// notices.
var spoil func([]byte)
