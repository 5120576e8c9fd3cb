package client

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	cev1 "github.com/weft-mesh/weft/proto/gen/io/cloudevents/v1"
	eventsv1 "github.com/weft-mesh/weft/proto/gen/weft/events/v1alpha1"

	"github.com/weft-mesh/weft/pkg/cloudevents"
	"github.com/weft-mesh/weft/pkg/event"
)

// codec is protobuf's wire. Publish requests are encoded straight from events and
// responses of Subscribe decoded straight to them; the stock codec has the rest.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(encoded); ok {
		return mem.BufferSlice(m), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes a message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*received)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	pieces := make([][]byte, len(data))
	for i := range data {
		pieces[i] = data[i].ReadOnlyData()
	}
	return m.unmarshal(bytes.Join(pieces, nil)) // does not clear what it fills
}

// encoded is a request to publish in parts: who and where, one for each event, and
// more.
type encoded []mem.Buffer

// request begins one.
func request(namespace, topic string) encoded {
	var b []byte
	b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), namespace)
	if topic != "" {
		b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), topic)
	}
	return encoded{mem.SliceBuffer(b)}
}

// maxMessage is the longest message that proxies take, in bytes.
const maxMessage = 8 << 20

// fits is why no proxy takes the message, if so: all that it does is to end the call, or
// the stream.
func (m encoded) fits() error {
	n := 0
	for _, b := range m {
		n += b.Len()
	}
	if n <= maxMessage {
		return nil
	}
	return &Error{Code: codes.InvalidArgument, Reason: "event-too-large", Message: fmt.Sprintf("the message has %d bytes with what is published, a proxy takes %d", n, maxMessage)}
}

// omitPositions is the field of a PublishStreamRequest that asks for no positions.
var omitPositions = mem.SliceBuffer(protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 1))

// prefix is what stands before an event in a request, which has events as field 3: the
// tag, and its length in as many bytes as any needs (protobuf takes a varint that is
// longer than it has to be), since the length is known last.
const prefix = 1 + 4

// encode is e as the part of a request, in a buffer of pool. Whoever sends it more than
// once takes a reference each time.
func encode(e *event.Event, pool mem.BufferPool) mem.Buffer {
	size := prefix + e.Size() + 64 + 24*(len(e.Ext)+6)
	if mem.IsBelowBufferPoolingThreshold(size) {
		return mem.SliceBuffer(appendEvent(make([]byte, 0, size), e))
	}
	b := pool.Get(size)
	*b = appendEvent((*b)[:0], e)
	return mem.NewBuffer(b, pool)
}

// appendEvent appends e to an empty slice.
func appendEvent(b []byte, e *event.Event) []byte {
	b = cloudevents.AppendProto(append(b, make([]byte, prefix)...), e)
	n := len(b) - prefix
	b[0] = byte(protowire.EncodeTag(3, protowire.BytesType))
	for i := 1; i < prefix; i++ {
		b[i], n = byte(n&0x7f|0x80), n>>7
	}
	b[prefix-1] &= 0x7f
	return b
}

// fromProto is an event that generated code has read.
func fromProto(e *cev1.CloudEvent) (event.Event, error) {
	b, err := proto.Marshal(e)
	if err != nil {
		return event.Event{}, err
	}
	return cloudevents.DecodeProto(b)
}

// received is a SubscribeResponse.
type received struct {
	opened *eventsv1.SubscribeOpened
	list   []delivered
}

// delivered is one of its deliveries; err is why its event cannot be read.
type delivered struct {
	id uint64
	Delivery
	err error
}

// maxReceived bounds the deliveries of a message: proxies send at most what the
// credit allows, which is at most this.
const maxReceived = 1 << 16

var errReceived = errors.New("client: the proxy sent what is not a response")

// fields calls f for each field of a message; v is empty but for bytes, and n 0 but
// for varints. Other types are skipped.
func fields(b []byte, f func(num protowire.Number, typ protowire.Type, v []byte, n uint64) error) error {
	for len(b) > 0 {
		num, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errReceived
		}
		b = b[size:]
		var v []byte
		var n uint64
		switch typ {
		case protowire.BytesType:
			v, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(b)
		default:
			if size = protowire.ConsumeFieldValue(num, typ, b); size >= 0 {
				b = b[size:]
				continue
			}
		}
		if size < 0 {
			return errReceived
		}
		b = b[size:]
		if err := f(num, typ, v, n); err != nil {
			return err
		}
	}
	return nil
}

// unmarshal decodes b, which it takes: the deliveries share it.
func (r *received) unmarshal(b []byte) error {
	var events cloudevents.ProtoDecoder
	topic := ""
	return fields(b, func(num protowire.Number, typ protowire.Type, v []byte, _ uint64) error {
		switch {
		case typ != protowire.BytesType:
			return nil
		case num == 1:
			r.opened = &eventsv1.SubscribeOpened{}
			if proto.Unmarshal(v, r.opened) != nil {
				return errReceived
			}
			return nil
		case num != 2:
			return nil
		}
		r.list = slices.Grow(r.list, count(v))
		return fields(v, func(num protowire.Number, typ protowire.Type, v []byte, _ uint64) error {
			if num != 1 || typ != protowire.BytesType {
				return nil
			}
			if len(r.list) == maxReceived {
				return errReceived
			}
			r.list = append(r.list, delivered{})
			d := &r.list[len(r.list)-1]
			err := d.unmarshal(v, topic, &events)
			topic = d.Topic
			return err
		})
	})
}

// count is how many deliveries b may have, as far as it can be read.
func count(b []byte) (n int) {
	for len(b) > 0 && n < maxReceived {
		_, _, size := protowire.ConsumeField(b)
		if size < 0 {
			break
		}
		b = b[size:]
		n++
	}
	return n
}

// unmarshal decodes b; like is the topic of the one before. Data end where the event does:
// who appends to them writes over no other.
func (d *delivered) unmarshal(b []byte, like string, events *cloudevents.ProtoDecoder) error {
	var ev []byte
	err := fields(b, func(num protowire.Number, typ protowire.Type, v []byte, n uint64) error {
		switch {
		case num == 1 && typ == protowire.VarintType:
			d.id = n
		case num == 2 && typ == protowire.BytesType:
			if d.Topic = like; string(v) != like {
				d.Topic = string(v)
			}
		case num == 3 && typ == protowire.BytesType:
			d.Position = unsafe.String(unsafe.SliceData(v), len(v)) // nobody modifies the message
		case num == 4 && typ == protowire.VarintType:
			d.Attempt = int(uint32(n)) //nolint:gosec // a uint32 on the wire
		case num == 5 && typ == protowire.BytesType:
			if ev == nil {
				ev = slices.Clip(v)
			} else {
				ev = append(ev, v...) // by protobuf's rule they are one
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.err = events.Decode(ev, &d.Event)
	return nil
}
