package listener

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
)

// Server is a server of gRPC. The message of a call whose client sends one only is handled
// when the client has ended the call, which it may never do: until then it counts as one
// that is not whole.
type Server struct{ *grpc.Server }

// RegisterService registers a service.
func (s Server) RegisterService(d *grpc.ServiceDesc, impl any) {
	counting := *d
	counting.Methods = slices.Clone(d.Methods)
	for i := range counting.Methods {
		handle := counting.Methods[i].Handler
		counting.Methods[i].Handler = func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			return handle(srv, ctx, func(v any) error { return incoming(origin(ctx), v, decode) }, intercept)
		}
	}
	s.Server.RegisterService(&counting, impl)
}

// Incoming is what a codec decodes the one message of a call to. It is To, which may be
// decoded once Count was told of the bytes.
type Incoming struct {
	To    any
	call  message
	bound *arriving
}

// Count counts the message.
func (in *Incoming) Count(data mem.BufferSlice) { in.bound.hold(&in.call, callCost+int64(data.Len())) }

// incoming receives the one message of a call to v, and waits for the end of it.
func incoming(from *conn, v any, receive func(any) error) error {
	if from == nil || from.arriving == nil {
		return receive(v)
	}
	in := &Incoming{To: v, call: message{from: from}, bound: from.arriving}
	defer in.bound.whole(&in.call)
	return receive(in)
}
