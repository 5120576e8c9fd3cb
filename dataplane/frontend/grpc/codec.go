package grpc

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/pkg/listener"
)

// codec is protobuf's wire. Publish requests are decoded straight to events whose
// data are the bytes that came in (request.go), and deliveries are encoded
// straight from events (deliveries.go); generated code reads and writes the rest.
type codec struct{ pool mem.BufferPool }

var _ encoding.CodecV2 = codec{}

// uncompressed refuses messages in gzip, which is registered in every process that
// exports traces: a few bytes would become as large as a message may be, in each call of
// a connection. What else may be compressed with is not registered.
type uncompressed struct{}

// Do refuses.
func (uncompressed) Do(io.Reader) ([]byte, error) {
	return nil, errors.New("messages are not taken compressed; send them as they are")
}

// Type is the encoding that is refused.
func (uncompressed) Type() string { return gzip.Name }

// Name is "proto": it is protobuf's wire.
func (codec) Name() string { return "proto" }

// maxRequest bounds a message without events, in bytes, and maxMessages the messages
// within one: what two bytes each of it may become in memory is many times as much. The
// longest that anybody needs settles MaxSettle deliveries, with reasons.
const (
	maxRequest  = 1 << 20
	maxMessages = 10_000
)

// Unmarshal decodes a message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *listener.Incoming:
		m.Count(data)
		return c.Unmarshal(data, m.To)
	case *publishRequest:
		return m.take(data, c.pool)
	case proto.Message:
		if data.Len() > maxRequest {
			return fmt.Errorf("a %s has at most %d bytes", m.ProtoReflect().Descriptor().Name(), maxRequest)
		}
		buf := data.MaterializeToBuffer(c.pool)
		defer buf.Free()
		return listener.Unmarshal(buf.ReadOnlyData(), m, maxMessages)
	}
	return fmt.Errorf("cannot decode a %T", v)
}

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *deliveries:
		return m.marshal(c.pool), nil
	case *listener.Answer:
		b, err := proto.Marshal(m.Message)
		if err != nil {
			return nil, err
		}
		return mem.BufferSlice{m.Watch(b)}, nil
	case proto.Message:
		b, err := proto.Marshal(m)
		if err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return nil, fmt.Errorf("cannot encode a %T", v)
}
