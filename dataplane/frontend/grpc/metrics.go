package grpc

import (
	"context"
	"path"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

func newCalls(reg prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_proxy_grpc_calls_total", Help: "Calls of clients that have ended, by method and code; a stream counts when it ends."}, []string{"method", "code"})
	if reg != nil {
		reg.MustRegister(c)
	}
	return c
}

// newHeld is of how long publishers were held back by a store.
func newHeld(reg prometheus.Registerer) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_publish_stream_held_seconds", Help: "Times for which a publish stream was not read on, since what it had sent waited for its store.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10)})
	if reg != nil {
		reg.MustRegister(h)
	}
	return h
}

// counting counts calls of the API's own methods as they end.
func (s *Server) counting() []grpc.ServerOption {
	count := func(method string, err error) {
		s.calls.WithLabelValues(path.Base(method), status.Code(err).String()).Inc()
	}
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			resp, err := h(ctx, req)
			count(info.FullMethod, err)
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			err := h(srv, ss)
			count(info.FullMethod, err)
			return err
		}),
	}
}
