package listener

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A call whose handler panics is answered, and the others go on: one request that nobody has
// thought of is not to end what everybody else has under way. net/http does so by itself.

func survivingUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
		defer Survive(ctx, log, &err)
		return h(ctx, req)
	}
}

func survivingStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
		defer Survive(ss.Context(), log, &err)
		return h(srv, ss)
	}
}

// Survive is deferred, also by what a handler does in a goroutine of its own: it makes the
// error of the call out of a panic, which it logs. ctx is the call's.
func Survive(ctx context.Context, log *slog.Logger, err *error) {
	if p := recover(); p != nil {
		method, _ := grpc.Method(ctx)
		log.ErrorContext(ctx, "a call has failed by a defect: please report it", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the call has failed by a defect of this server, whose log has more")
	}
}
