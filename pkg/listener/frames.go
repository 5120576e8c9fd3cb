package listener

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"
)

// Of HTTP/2 (RFC 9113, 4.1, 6.1 to 6.4).
const (
	clientPreface = 24 // bytes, before a client's first frame
	frameHead     = 9
	longestFrame  = 16 << 10 // of which gRPC takes the payload; it closes a connection for more

	frameData, frameHeaders, frameRST = 0, 1, 3
	flagEndStream, flagPadded         = 1, 8
)

// messageHead is what stands before a message of gRPC: a flag and its length.
const messageHead = 5

// frameCost is what a frame of data of n bytes takes while its message is not whole: its
// buffer, in a size that pools have, and what it takes to know it. Frames of one byte take
// dozens.
func frameCost(n int) int64 {
	if n > 1<<10 {
		n = 1 << bits.Len(uint(n-1))
	}
	return int64(n) + 64
}

// callCost is what a call takes that has no whole message yet, beside what it has of one:
// a goroutine that waits, and what gRPC knows of it.
const callCost = 12 << 10

// splitter takes the frames of one direction apart, however they are cut.
type splitter struct {
	preface int // bytes that are to come before the first frame
	head    [frameHead]byte
	have    int // bytes of head
	left    int // bytes of the payload to come, once head is there
}

// next takes what there is of the frame's head, and returns the rest; begun where the head
// is there now.
func (s *splitter) next(p []byte) (rest []byte, begun bool) {
	if s.preface > 0 {
		n := min(len(p), s.preface)
		s.preface -= n
		p = p[n:]
	}
	n := copy(s.head[s.have:], p)
	if s.have += n; s.have < frameHead {
		return p[n:], false
	}
	s.left = int(s.head[0])<<16 | int(s.head[1])<<8 | int(s.head[2])
	return p[n:], true
}

func (s *splitter) kind() byte       { return s.head[3] }
func (s *splitter) flag(f byte) bool { return s.head[4]&f != 0 }
func (s *splitter) stream() uint32   { return binary.BigEndian.Uint32(s.head[5:]) &^ (1 << 31) }

// calls follows what comes over a connection as far as to know which messages of gRPC
// have begun and are not whole. It is guarded by who has it.
type calls struct {
	splitter
	arriving *arriving
	from     *conn
	open     map[uint32]*message // calls that neither side has ended
	fresh    []uint32            // those that came with what is read now
	// Beyond as many calls as there may be, the server refuses; or it has refused others of
	// them and not said so yet, and takes these. waiting are those of which that is to be
	// seen: what they take before they have a message is counted where others have ended.
	waiting []uint32
	counted int // of open, which do not wait

	closed bool

	on    *message // whose frame of data is on its way; nil: nobody's
	size  int      // of that frame
	pad   int      // bytes of padding at its end; -1 where their number is to come
	known bool     // what it takes is counted
}

// take is told what was read.
func (c *calls) take(p []byte) {
	for len(p) > 0 && !c.closed {
		if c.have < frameHead {
			var begun bool
			if p, begun = c.next(p); begun {
				c.begin()
			}
		} else {
			n := min(len(p), c.left)
			c.payload(p[:n])
			c.left -= n
			p = p[n:]
		}
		if c.have == frameHead && c.left == 0 {
			c.end()
			c.have = 0
		}
	}
	if c.on != nil {
		c.hold()
	}
	for len(c.waiting) > 0 && c.counted < c.arriving.calls {
		c.count(c.open[c.waiting[0]])
		c.waiting = c.waiting[1:]
	}
	for _, id := range c.fresh {
		if m := c.open[id]; c.counted < c.arriving.calls {
			c.count(m)
		} else if m != nil && !m.counted {
			c.waiting = append(c.waiting, id)
		}
	}
	c.fresh = c.fresh[:0]
	if len(c.waiting) > 2*len(c.open) { // most have ended
		c.waiting = slices.DeleteFunc(c.waiting, func(id uint32) bool { return c.open[id] == nil })
	}
}

// count counts what a call takes, unless it has ended or was counted.
func (c *calls) count(m *message) {
	if m == nil || m.counted {
		return
	}
	m.counted = true
	c.counted++
	if m.first && !m.long {
		c.arriving.hold(m, callCost)
	}
}

func (c *calls) begin() {
	c.on, c.size, c.pad, c.known = nil, min(c.left, longestFrame), 0, false
	id := c.stream()
	switch c.kind() {
	case frameHeaders:
		if c.flag(flagEndStream) || c.open[id] != nil {
			return // there is no message, or no more
		}
		if c.open == nil {
			c.open = map[uint32]*message{}
		}
		m, _ := messages.Get().(*message)
		if m == nil {
			m = new(message)
		}
		m.from, m.first = c.from, true
		c.open[id] = m
		c.fresh = append(c.fresh, id)
	case frameData:
		if c.on = c.open[id]; c.on != nil && c.flag(flagPadded) {
			c.pad = -1
		}
	}
}

// payload is told of a part of the frame.
func (c *calls) payload(p []byte) {
	if c.on == nil {
		return
	}
	left := c.left // with p
	if c.pad < 0 {
		c.pad = int(p[0])
		p, left = p[1:], left-1
	}
	if data := left - c.pad; data < len(p) {
		p = p[:max(data, 0)]
	}
	if c.on.take(p, c.arriving) {
		c.known = false
	}
}

// end is where a frame is whole.
func (c *calls) end() {
	switch id := c.stream(); c.kind() {
	case frameHeaders, frameData:
		if c.flag(flagEndStream) {
			c.ended(id)
		} else if c.on != nil {
			c.hold()
		}
	case frameRST:
		c.ended(id)
	}
	c.on = nil
}

// hold counts the frame, where it has a message that is not whole.
func (c *calls) hold() {
	if m := c.on; !c.known && m.have > 0 {
		c.known = true
		c.arriving.hold(m, frameCost(c.size))
	}
}

// ended is told that a stream takes no more.
func (c *calls) ended(id uint32) {
	m := c.open[id]
	if m == nil {
		return
	}
	delete(c.open, id)
	if m.counted {
		c.counted--
	}
	if c.on == m {
		c.on = nil
	}
	c.arriving.whole(m)
	*m = message{}
	messages.Put(m)
}

// close ends all of them.
func (c *calls) close() {
	c.closed = true
	for id := range c.open {
		c.ended(id)
	}
}

var messages sync.Pool

// message is where a call's next message stands.
type message struct {
	from *conn
	head [messageHead]byte
	have int // bytes of head; 0 between messages
	left int // bytes of the message, once head is there

	first   bool // no message of the call was whole
	long    bool // it is longer than one may be: the server ends the call
	held    bool // it is, or was, with arriving
	counted bool // it is one of the calls that there may be

	// Guarded by arriving's mutex.
	bytes          int64 // what it takes; 0 where it is not in the list
	earlier, later *message
	cut            bool // its connection is closed
}

// take is told of the data of a call, and reports whether a message was whole in it.
func (m *message) take(p []byte, a *arriving) (whole bool) {
	for len(p) > 0 && !m.long {
		if m.have < messageHead {
			n := copy(m.head[m.have:], p)
			p = p[n:]
			if m.have += n; m.have < messageHead {
				break
			}
			m.left = int(binary.BigEndian.Uint32(m.head[1:]))
			if m.left > a.longest {
				m.long, m.have = true, 0
				a.whole(m)
				break
			}
		}
		n := min(len(p), m.left)
		m.left -= n
		p = p[n:]
		if m.left == 0 {
			m.have, m.first, whole = 0, false, true
			a.whole(m)
		}
	}
	return whole
}

// resets is told what the server writes, and tells which streams it resets: all that it ends
// before their client does.
func (s *splitter) resets(p []byte, reset func(uint32)) {
	for len(p) > 0 {
		if s.have < frameHead {
			p, _ = s.next(p)
		} else {
			n := min(len(p), s.left)
			s.left -= n
			p = p[n:]
		}
		if s.have == frameHead && s.left == 0 {
			if s.kind() == frameRST {
				reset(s.stream())
			}
			s.have = 0
		}
	}
}
