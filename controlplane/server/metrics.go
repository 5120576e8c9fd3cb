package server

import (
	"context"
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/weft-mesh/weft/pkg/listener"
	"github.com/weft-mesh/weft/pkg/resource"
	"github.com/weft-mesh/weft/pkg/version"
)

// register adds the metrics of the whole.
func (s *Server) register() {
	s.metrics.MustRegister(resources{s, prometheus.NewDesc("weft_controlplane_resources", "Resources in the configuration, by kind.", []string{"kind"}, nil)},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_revision", Help: "Newest etcd revision that this replica has read."}, func() float64 {
			if snap, _ := s.store.Snapshot(); snap != nil {
				return float64(snap.Revision)
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_build_info", Help: "Always 1; the label has the version.",
			ConstLabels: prometheus.Labels{"version": version.String()}}, func() float64 { return 1 }))
	for i, on := range s.listeners {
		if on == nil {
			continue
		}
		name := listeners[i]
		labels := prometheus.Labels{"listener": name}
		s.metrics.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_controlplane_connections", Help: "Open connections of a listener.", ConstLabels: labels},
				func() float64 { return float64(on.Count()) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_controlplane_connections_accepted_total", Help: "Connections that a listener took.", ConstLabels: labels},
				func() float64 { return float64(on.Accepted()) }))
		for _, why := range listener.Reasons() {
			s.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_controlplane_connections_refused_total", Help: "Connections that a listener had no room for: at its limit, or since the process has too few descriptors.",
				ConstLabels: prometheus.Labels{"listener": name, "reason": why.String()}}, func() float64 { return float64(on.Refused(why)) }))
		}
		if i <= listenDiscovery {
			s.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "weft_controlplane_connections_unfinished_total", Help: "Connections that were closed where messages that had begun and were not whole took too much, since one of theirs had begun first.", ConstLabels: labels},
				func() float64 { return float64(on.Unfinished()) }))
		}
	}
}

// resources counts the configuration when it is asked.
type resources struct {
	s    *Server
	desc *prometheus.Desc
}

func (r resources) Describe(to chan<- *prometheus.Desc) { to <- r.desc }

func (r resources) Collect(to chan<- prometheus.Metric) {
	n := map[resource.Kind]int{}
	if snap, _ := r.s.store.Snapshot(); snap != nil {
		for ns := range snap.Namespaces() {
			for kind, d := range snap.Digests(ns) {
				n[kind] += int(d.Count)
			}
		}
	}
	for _, k := range resource.Kinds() {
		to <- prometheus.MustNewConstMetric(r.desc, prometheus.GaugeValue, float64(n[k.Kind]), string(k.Kind))
	}
}

// counting counts and times the calls of the admin API.
func counting(reg prometheus.Registerer) []grpc.ServerOption {
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weft_controlplane_admin_calls_total", Help: "Calls of the admin API that have ended, by method and code."}, []string{"method", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "weft_controlplane_admin_call_duration_seconds", Help: "Time that a call of the admin API takes; streams are left out.",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"method"})
	reg.MustRegister(calls, seconds)
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			began, method := time.Now(), path.Base(info.FullMethod)
			resp, err := h(ctx, req)
			calls.WithLabelValues(method, status.Code(err).String()).Inc()
			seconds.WithLabelValues(method).Observe(time.Since(began).Seconds())
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			err := h(srv, ss)
			calls.WithLabelValues(path.Base(info.FullMethod), status.Code(err).String()).Inc()
			return err
		}),
	}
}
