package listener

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MaxMessages bounds the messages within a request, of servers that name no other bound.
const MaxMessages = 100_000

// Codec is Protocol Buffers' wire for servers: a request with more than most messages in
// it is refused before it is decoded. One of two bytes becomes hundreds in memory.
func Codec(most int) encoding.CodecV2 {
	return codec{encoding.GetCodecV2(protocodec.Name), most}
}

type codec struct {
	encoding.CodecV2
	most int
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if in, ok := v.(*Incoming); ok {
		in.Count(data)
		v = in.To
	}
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return Unmarshal(buf.ReadOnlyData(), m, c.most)
}

// Unmarshal decodes a message that has at most so many others in it.
func Unmarshal(b []byte, m proto.Message, most int) error {
	d := m.ProtoReflect().Descriptor()
	if countMessages(d, b, most) < 0 {
		return fmt.Errorf("a %s has at most %d messages in it", d.Name(), most)
	}
	return proto.Unmarshal(b, m)
}

// countMessages is how many more messages than those in b there may be, of left;
// negative where there are too many. It stops at what cannot be decoded.
func countMessages(d protoreflect.MessageDescriptor, b []byte, left int) int {
	for len(b) > 0 && left >= 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
			break
		}
		if f := d.Fields().ByNumber(number); f != nil && f.Kind() == protoreflect.MessageKind && wire == protowire.BytesType {
			if !f.IsMap() { // of which an entry is a message on the wire alone
				left--
			}
			part, _ := protowire.ConsumeBytes(b[:n])
			left = countMessages(f.Message(), part, left)
		}
		b = b[n:]
	}
	return left
}
