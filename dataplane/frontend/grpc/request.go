package grpc

import (
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// publishRequest is a PublishRequest, PublishBatchRequest, PublishStreamRequest,
// RequestRequest or ReplyRequest: their fields 1 to 3 agree, and 4 is of one type in
// each. Data of its events are parts of its buffer, so they are lent until release.
type publishRequest struct {
	namespace, topic string
	events           []event.Event
	// wrong has the error of each event that cannot be decoded, at its place;
	// nil where all can. The message itself can.
	wrong []error
	// tooMany is set where the message has more events than one may have; the
	// others are not decoded.
	tooMany       bool
	omitPositions bool
	timeout       []byte // the Duration of a RequestRequest, merged; nil without
	// single is set where the message has one event; by protobuf's rule that is, where
	// several come, what they are together.
	single bool
	size   int // bytes that it holds

	decoder cloudevents.ProtoDecoder
	buf     mem.Buffer
}

var errWire = errors.New("not a valid publish request")

// small is the size, in bytes, up to which a message is copied: the buffer of the
// transport that it is part of may be far larger.
const small = 1 << 10

// take decodes a message and keeps the buffer that it is in.
func (r *publishRequest) take(data mem.BufferSlice, pool mem.BufferPool) error {
	switch {
	case data.Len() <= small:
		r.buf = mem.SliceBuffer(data.Materialize())
	default:
		r.buf = data.MaterializeToBuffer(pool)
	}
	b := r.buf.ReadOnlyData()
	r.size = cap(b)
	return r.unmarshal(b)
}

// requests are publishRequests that were released.
var requests = sync.Pool{New: func() any { return &publishRequest{} }}

func newRequest() *publishRequest { return requests.Get().(*publishRequest) } //nolint:forcetypeassert // there is nothing else in it

// maxKept bounds the events that there is room for in a request that is used
// again.
const maxKept = 256

// release gives the request's memory back, once nobody uses its events any more.
// Where that is not known it is not called, and the garbage collector knows: a
// store that has not answered may still read them.
func (r *publishRequest) release() {
	if r.buf != nil {
		r.buf.Free()
	}
	if cap(r.events) > maxKept {
		return
	}
	clear(r.events) // behind them there is nothing: it costs what was used
	*r = publishRequest{events: r.events[:0]}
	requests.Put(r)
}

// unmarshal decodes b, which the events keep parts of.
func (r *publishRequest) unmarshal(b []byte) error {
	r.events = slices.Grow(r.events, countEvents(b))
	var one []byte // the event, where there is one
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		if num == 4 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return errWire
			}
			r.omitPositions, b = v != 0, b[n:]
			continue
		}
		if typ != protowire.BytesType || num > 4 {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errWire
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		switch num {
		case 1:
			r.namespace = string(v)
		case 2:
			r.topic = string(v)
		case 3:
			if r.single {
				one = merged(one, v, len(b))
			} else {
				r.event(v)
			}
		case 4:
			r.timeout = merged(r.timeout, v, len(b))
		}
	}
	if r.single {
		r.event(one)
	}
	return nil
}

// merged is a message of which v comes behind field, which is nil at first. At most
// rest bytes of it are still to come. It is a part of the buffer, or a copy.
func merged(field, v []byte, rest int) []byte {
	if field == nil {
		return slices.Clip(v)
	}
	return append(slices.Grow(field, len(v)+rest), v...)
}

// event decodes an event.
func (r *publishRequest) event(b []byte) {
	i := len(r.events)
	if i == pipeline.MaxBatch {
		r.tooMany = true
		return
	}
	r.events = append(r.events, event.Event{})
	if err := r.decoder.Decode(b, &r.events[i]); err != nil {
		r.wrong = append(append(r.wrong, make([]error, i-len(r.wrong))...), err)
	}
}

// countEvents is how many events b has, at most as many as one message may have.
func countEvents(b []byte) (events int) {
	for len(b) > 0 && events < pipeline.MaxBatch {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return events
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return events
		}
		if b = b[n+m:]; num == 3 && typ == protowire.BytesType {
			events++
		}
	}
	return events
}
