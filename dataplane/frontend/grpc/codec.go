package grpc

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/dataplane/delivery"
	"github.com/weft-mesh/weft/dataplane/pipeline"
	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// codec is protobuf's wire, where requests with events are decoded straight to
// events, and deliveries encoded straight from them.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Name is "proto": it is protobuf's wire.
func (codec) Name() string { return "proto" }

// Unmarshal decodes a message.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*publishRequest); ok {
		// The events keep parts of it, so it is not given back to a pool.
		return r.unmarshal(data.Materialize())
	}
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("cannot decode a %T", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return proto.Unmarshal(buf.ReadOnlyData(), m)
}

// Marshal encodes a message.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	var b []byte
	switch m := v.(type) {
	case *deliveries:
		b = m.marshal()
	case proto.Message:
		var err error
		if b, err = proto.Marshal(m); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("cannot encode a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// publishRequest is a PublishRequest, PublishBatchRequest or
// PublishStreamRequest: their fields 1 to 4 agree.
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
	size          int // bytes of the message
}

var errWire = errors.New("not a valid publish request")

func (r *publishRequest) unmarshal(b []byte) error {
	r.size = len(b)
	r.events = make([]event.Event, 0, countEvents(b))
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
		if typ != protowire.BytesType || num > 3 {
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
			if len(r.events) == pipeline.MaxBatch {
				r.tooMany = true
				continue
			}
			e, err := cloudevents.DecodeProto(v)
			r.events = append(r.events, e)
			if err != nil {
				r.wrong = append(append(r.wrong, make([]error, len(r.events)-1-len(r.wrong))...), err)
			}
		}
	}
	return nil
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

// deliveries is a SubscribeResponse with deliveries.
type deliveries struct{ list []delivery.Delivery }

func (d *deliveries) marshal() []byte {
	size := 64
	for i := range d.list {
		size += d.list[i].Event.Size() + 256
	}
	inner := make([]byte, 0, size)
	var one, ev []byte
	for i := range d.list {
		x := &d.list[i]
		one = one[:0]
		if x.ID != 0 {
			one = protowire.AppendVarint(protowire.AppendTag(one, 1, protowire.VarintType), x.ID)
		}
		one = protowire.AppendString(protowire.AppendTag(one, 2, protowire.BytesType), x.Topic)
		one = protowire.AppendString(protowire.AppendTag(one, 3, protowire.BytesType), x.Position.String())
		one = protowire.AppendVarint(protowire.AppendTag(one, 4, protowire.VarintType), uint64(x.Attempt)) //nolint:gosec // attempts begin at 1
		ev = cloudevents.AppendProto(ev[:0], x.Event)
		one = protowire.AppendBytes(protowire.AppendTag(one, 5, protowire.BytesType), ev)
		inner = protowire.AppendBytes(protowire.AppendTag(inner, 1, protowire.BytesType), one)
	}
	out := make([]byte, 0, len(inner)+8)
	return protowire.AppendBytes(protowire.AppendTag(out, 2, protowire.BytesType), inner)
}
