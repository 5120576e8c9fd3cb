package moves

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	waited prometheus.Histogram
	late   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, leases func() float64) *metrics {
	m := &metrics{
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weft_proxy_move_wait_seconds", Help: "Time that writes to a topic which moves to another store waited until they could begin, or were refused.",
			Buckets: prometheus.ExponentialBuckets(0.001, 3, 9)}),
		late: prometheus.NewCounter(prometheus.CounterOpts{Name: "weft_proxy_move_ambiguous_total", Help: "Writes that a store acknowledged when their topic had moved, or their lease had ended: their publishers were told that the outcome is unknown."}),
	}
	if reg != nil {
		reg.MustRegister(m.waited, m.late, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_proxy_move_leases", Help: "Topics that move to another store and may be written to here under a lease."}, leases))
	}
	return m
}
