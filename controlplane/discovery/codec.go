package discovery

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/weft-mesh/weft/pkg/listener"
)

// ServerOptions are what a gRPC server needs that serves discovery: responses are
// marshalled once and shared by the streams that they go to, and a connection, of
// which a proxy keeps one for days, has small buffers.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{listener.Codec(listener.MaxMessages)}),
		grpc.ReadBufferSize(4 << 10), grpc.WriteBufferSize(16 << 10),
	}
}

// frame is a marshalled message. It is immutable.
type frame []byte

// codec is protobuf, but for frames, which are sent as they are.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f)}, nil
	}
	return c.CodecV2.Marshal(v)
}
